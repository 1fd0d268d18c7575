"""HyperBand and BOHBSearch in Ray, interrupted and restored; Ray's own beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import HyperBandForBOHB

from tests.raytune.interrupted import Listed, Run
from tests.raytune.test_restore import drive, let_ray_end
from tests.raytune.trainables import RATES, Counter, response
from tune_ext.raytune import BOHBSearch, HyperBand, _state_copy

HIGHEST: dict[str, Any] = {"metric": "response_mean", "mode": "max"}


@pytest.fixture(autouse=True)
def saved_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0.001")
    monkeypatch.setattr(_state_copy, "_SHARE", 0.0)


class Frail(Counter):
    """One rate fails until the run has been interrupted."""

    def step(self) -> dict[str, Any]:
        healed = Path(self.settings["home"], "ended-0").exists()
        if self.settings["lr"] == RATES[1] and not healed:
            raise RuntimeError("as planned")
        return super().step()


class Ends(tune.Callback):
    """Ends the driver's loop after some results, or when nothing has happened for long."""

    patience = 40  # steps of a tenth of a second without a running trial

    def __init__(self, home: Path, after: list[int]) -> None:
        self.home, self.after, self.results, self.idle = home, after, 0, 0

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        self.results += 1
        ended = list(self.home.glob("ended-*"))
        if len(ended) < len(self.after) and self.results == self.after[len(ended)]:
            (self.home / f"ended-{len(ended)}").touch()
            raise RuntimeError("the driver ends here")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        waits = any(trial.status == "PAUSED" for trial in trials)
        runs = any(trial.status in ("RUNNING", "PENDING") for trial in trials)
        self.idle = self.idle + 1 if waits and not runs else 0
        if self.idle > self.patience:
            raise RuntimeError("nothing happens any more")


def tuner(home: Path, after: list[int], scheduler: Any, search: Any, trainable: Any) -> Any:
    return tune.Tuner(
        trainable,
        param_space={"lr": tune.loguniform(1e-6, 1e-2), "home": str(home)},
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=len(RATES),
            reuse_actors=True,
            **HIGHEST,
        ),
        run_config=tune.RunConfig(
            name="experiment",
            storage_path=str(home),
            verbose=0,
            callbacks=[Ends(home, after)],
        ),
    )


def fitted(
    home: Path, after: list[int], *parts: Any, workers: int = 1, trainable: Any = Counter
) -> Any:
    """How far each rate came, and the best one, of a run that is restored after each end."""
    trainable = tune.with_resources(trainable, {"cpu": 2 / workers})
    experiment = tuner(home, after, *parts, trainable)
    for _ in after:
        with pytest.raises(Exception, match="the driver ends here"):
            experiment.fit()
        let_ray_end(home / "experiment")
        experiment = tune.Tuner.restore(
            str(home / "experiment"), trainable=trainable, restart_errored=True
        )
    results = experiment.fit()
    assert not results.errors
    reached = {r.config["lr"]: r.metrics["training_iteration"] for r in results}
    return reached, max(reached, key=lambda lr: (reached[lr], response(lr)))


class Looked:
    """`Counter` on the simulated clock."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.rate, self.epoch = config.get("lr") or config["x"], 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        value = response(self.rate)
        return {"response_mean": value, "loss": -value, "seconds": 1.0, "done": False}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state


def uninterrupted(home: Path, scheduler: Any, search: Any, workers: int = 1) -> Any:
    """The same on the simulated clock."""
    run = Run(Looked, search, scheduler, storage=home, workers=workers)
    run.step()
    rates = {t.config.get("lr") or t.config["x"]: t for t in run.trials()}
    reached = {rate: t.last_result["training_iteration"] for rate, t in rates.items()}
    return reached, max(reached, key=lambda lr: (reached[lr], response(lr)))


def hyperband(asynchronous: bool = False) -> HyperBand:
    return HyperBand(**HIGHEST, max_t=4, reduction_factor=2, asynchronous=asynchronous)


class Bounded(BOHBSearch):
    """As many suggestions as `num_samples` in Ray."""

    left = len(RATES)

    def suggest(self, trial_id: str) -> Any:
        self.left -= 1
        return super().suggest(trial_id) if self.left >= 0 else "FINISHED"


def test_rungs_and_their_observations_are_kept(cluster: str, tmp_path: Path) -> None:
    """At random, as two workers need not report in the same order twice."""
    options = {**HIGHEST, "seed": 0, "random_fraction": 1}
    simulated = Bounded({"lr": tune.loguniform(1e-6, 1e-2)}, **options)
    expected = uninterrupted(tmp_path / "simulated", hyperband(), simulated, workers=2)
    assert sorted(expected[0].values()) == [1, 1, 2, 2, 2, 4, 4]
    done = fitted(tmp_path, [3, 6], hyperband(), BOHBSearch(**options), workers=2)
    assert done == expected
    search = BOHBSearch()
    search.restore(str(max((tmp_path / "experiment").glob("searcher-state-*"))))
    assert simulated._model is not None
    assert search._model is not None
    assert search._model.counts() == simulated._model.counts()


def given() -> BOHBSearch:
    return BOHBSearch(points_to_evaluate=[{"lr": rate} for rate in RATES])


def test_asynchronous_promotions_are_the_same(cluster: str, tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "simulated", hyperband(True), Listed(RATES))
    assert max(expected[0].values()) == 4
    assert fitted(tmp_path, [6], hyperband(True), given()) == expected


@pytest.mark.slow
def test_a_killed_driver_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "simulated", hyperband(), Listed(RATES))
    drive(tmp_path, "hyperband", 9)
    drive(tmp_path, "hyperband", None)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["lr"]: row["epochs"] for row in rows} == expected[0]


def test_a_trial_that_failed_is_restarted(cluster: str, tmp_path: Path) -> None:
    reached, best = fitted(tmp_path, [4], hyperband(), given(), trainable=Frail)
    assert set(reached) == set(RATES)
    assert set(reached.values()) == {1, 2, 4}
    assert best == min(RATES)


def test_rays_own_waits_for_trials_that_have_ended(cluster: str, tmp_path: Path) -> None:
    """Ray #39900; ours goes on under the same interruption, in the tests above."""
    scheduler = HyperBandForBOHB(max_t=4, reduction_factor=2)
    with pytest.raises(RuntimeError, match="nothing happens any more"):
        fitted(tmp_path, [11], scheduler, given())
