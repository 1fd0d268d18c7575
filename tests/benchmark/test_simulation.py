"""Ray's control loop on a simulated clock."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune import Callback
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import ConcurrencyLimiter, Searcher

from tune_ext.benchmark import tasks
from tune_ext.benchmark.methods import METHODS, Setup
from tune_ext.benchmark.simulation import SimulationStuck, simulate
from tune_ext.benchmark.tune_parts import BudgetStopper, LookupTrainable
from tune_ext.errors import InvalidValueError


class Listed(Searcher):
    """Suggests what it is given."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        super().__init__(metric="error", mode="min")
        self.left = list(configs)
        self.told: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> Any:
        return self.left.pop(0) if self.left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.told[trial_id] = "error" if error else (result or {}).get("error")


class Lookup:
    """Costs `seconds` an epoch; its error falls to `level`."""

    def __init__(self, config: dict[str, Any], length: int = 9) -> None:
        if config.get("broken"):
            raise RuntimeError("broken on purpose")
        self.config, self.length, self.epoch = config, length, 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        error = self.config.get("level", 0.0) + 1 / self.epoch
        done = self.epoch >= self.config.get("length", self.length)
        return {"error": error, "seconds": self.config.get("seconds", 1.0), "done": done}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state


class Seen(Callback):
    """Every result, in Ray's order."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, float]] = []

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        self.rows.append((result["config"]["level"], result["training_iteration"], result["error"]))


def halving(**more: Any) -> dict[str, Any]:
    return {"metric": "error", "mode": "min", "max_t": 9, **more}


def levels(number: int) -> list[dict[str, Any]]:
    return [{"level": (7 * n % number) / number} for n in range(number)]


def test_the_clock_is_that_of_the_workers(tmp_path: Path) -> None:
    # Epochs of 1, 4, 2 and 3 s, two each, on two workers: the first runs 0 to 2, the second
    # 0 to 8, the third 2 to 6, the fourth 6 to 12.
    configs = [{"seconds": float(s), "length": 2} for s in (1, 4, 2, 3)]
    run = simulate(Lookup, search_alg=Listed(configs), workers=2, storage=tmp_path)
    assert (run.clock, run.busy, run.trials, run.steps) == (12.0, 20.0, 4, 8)


def test_one_worker_trains_one_trial_after_another(tmp_path: Path) -> None:
    run = simulate(Lookup, search_alg=Listed(levels(5)), storage=tmp_path)
    assert run.clock == run.busy == 45.0


@pytest.mark.parametrize("workers", [1, 3])
def test_asha_stops_the_worse_half(tmp_path: Path, workers: int) -> None:
    scheduler = AsyncHyperBandScheduler(**halving(reduction_factor=3))
    search = Listed(levels(30))
    run = simulate(
        Lookup, search_alg=search, scheduler=scheduler, workers=workers, storage=tmp_path
    )
    assert run.trials == 30 == len(search.told)
    assert 30 < run.steps < 150


def test_hyperband_pauses_and_goes_on(tmp_path: Path) -> None:
    seen = Seen()
    run = simulate(
        Lookup,
        search_alg=ConcurrencyLimiter(Listed(levels(17)), max_concurrent=17),
        scheduler=HyperBandScheduler(**halving(reduction_factor=3)),
        callbacks=[seen],
        workers=4,
        storage=tmp_path,
    )
    assert run.errors == ()
    by_trial: dict[float, list[int]] = {}
    for level, iteration, error in seen.rows:
        by_trial.setdefault(level, []).append(iteration)
        assert error == pytest.approx(level + 1 / iteration)
    # A paused trial goes on where it was: no epoch twice, none left out.
    assert all(epochs == list(range(1, len(epochs) + 1)) for epochs in by_trial.values())
    assert {len(epochs) for epochs in by_trial.values()} > {9}


def test_the_same_run_twice_is_the_same(tmp_path: Path) -> None:
    def once(name: str) -> tuple[Any, ...]:
        seen = Seen()
        run = simulate(
            Lookup,
            search_alg=Listed(levels(40)),
            scheduler=MedianStoppingRule(metric="error", mode="min"),
            callbacks=[seen],
            workers=3,
            storage=tmp_path / name,
        )
        return run, seen.rows

    assert once("a") == once("b")


class Choosing(FIFOScheduler):
    """Keeps how many trials it is shown: when it chooses, and when a result comes."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen_from = 0
        self.all = 0
        self.statistics: list[dict[str, Any]] = []

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        self.chosen_from = max(self.chosen_from, len(tune_controller.get_trials()))
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
        self.all = max(self.all, len(tune_controller.get_trials()))
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        self.statistics.append(trial.metric_analysis["error"])


def test_a_scheduler_chooses_among_what_is_not_finished(tmp_path: Path) -> None:
    scheduler = Choosing()
    simulate(
        functools.partial(Lookup, length=2),
        search_alg=Listed(levels(50)),
        scheduler=scheduler,
        storage=tmp_path,
    )
    assert scheduler.all == 50
    assert scheduler.chosen_from <= 2, "each choice would cost as much as there were trials"


def test_trials_have_the_statistics_of_rays(tmp_path: Path) -> None:
    scheduler = Choosing()
    simulate(Lookup, search_alg=Listed([{"length": 3}]), scheduler=scheduler, storage=tmp_path)
    (seen,) = scheduler.statistics
    assert (seen["min"], seen["max"], seen["last"]) == (1 / 3, 1.0, 1 / 3)
    assert seen["avg"] == seen["last-5-avg"] == pytest.approx(11 / 18)


def test_a_crash_ends_its_trial_alone(tmp_path: Path) -> None:
    configs = [{"level": 0.1}, {"broken": True}, {"level": 0.2}]
    search = Listed(configs)
    run = simulate(Lookup, search_alg=search, storage=tmp_path)
    assert run.errors == ("RuntimeError: broken on purpose",)
    assert [value for value in search.told.values() if value == "error"] == ["error"]
    assert run.steps == 18


class Silent(Searcher):
    """Never suggests anything and never ends."""

    def suggest(self, trial_id: str) -> None:
        return None


class Asleep(FIFOScheduler):
    """Pauses every trial for ever."""

    def on_trial_result(self, controller: Any, trial: Any, result: Any) -> str:
        return TrialScheduler.PAUSE

    def choose_trial_to_run(self, controller: Any) -> Any:
        return next((t for t in controller.get_trials() if t.status == "PENDING"), None)


def test_a_searcher_that_hangs_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(SimulationStuck, match="suggests nothing"):
        simulate(Lookup, search_alg=Silent(metric="error", mode="min"), storage=tmp_path)


def test_a_scheduler_that_hangs_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(SimulationStuck, match="3 PAUSED"):
        simulate(Lookup, search_alg=Listed(levels(3)), scheduler=Asleep(), storage=tmp_path)


class EndsBeforehand(FIFOScheduler):
    """Ends every trial before it starts, as ours do with probes that were recorded before."""

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        trial.init_local_path()
        trial.update_last_result({"error": 1.0, "done": True, "trial_id": trial.trial_id})
        trial.set_status("TERMINATED")


def test_a_trial_may_write_to_its_directory(tmp_path: Path) -> None:
    run = simulate(
        Lookup, search_alg=Listed(levels(2)), scheduler=EndsBeforehand(), storage=tmp_path
    )
    assert (run.trials, run.steps) == (2, 0)


@pytest.mark.parametrize("method", ["autohyper", "exptest", "exptest+random"])
def test_ours_run_on_recorded_trainings(tmp_path: Path, method: str) -> None:
    task = tasks.create("response-digits-cnn")
    setup = Setup(task, budget=60, seed=3)
    build = METHODS[method].build
    assert build is not None
    search = build(setup)
    rows: list[Any] = []
    run = simulate(
        functools.partial(LookupTrainable, task, 3),
        search_alg=search.search_alg,
        scheduler=search.scheduler,
        stopper=BudgetStopper(
            60,
            None if search.stops_trials else setup.max_epochs,
            lambda trial_id, result: rows.append(result),
        ),
        storage=tmp_path,
    )
    assert run.errors == ()
    assert 0 < len(rows) <= 60
    assert search.answer() is not None or method == "exptest+random"


def test_workers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="workers"):
        simulate(Lookup, search_alg=Listed([]), workers=0, storage=tmp_path)


def _decisions(rows: list[tuple[float, int, float]]) -> dict[float, int]:
    longest: dict[float, int] = {}
    for level, iteration, _ in rows:
        longest[level] = max(iteration, longest.get(level, 0))
    return longest


def test_ray_itself_decides_the_same(tmp_path: Path, cluster: str) -> None:
    """With one worker there is one order of events: real Ray must give the same results."""
    from ray import tune

    class Real(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.lookup = Lookup(config)

        def step(self) -> dict[str, Any]:
            return self.lookup.step()

        def save_checkpoint(self, directory: str) -> None:
            Path(directory, "epoch").write_text(str(self.lookup.epoch))

        def load_checkpoint(self, directory: str) -> None:
            self.lookup.epoch = int(Path(directory, "epoch").read_text())

        def reset_config(self, config: dict[str, Any]) -> bool:
            self.lookup = Lookup(config)
            return True

    def scheduler() -> Any:
        return AsyncHyperBandScheduler(**halving(reduction_factor=3))

    simulated, real = Seen(), Seen()
    simulate(
        Lookup,
        search_alg=Listed(levels(12)),
        scheduler=scheduler(),
        callbacks=[simulated],
        storage=tmp_path / "simulated",
    )
    tune.run(
        Real,
        search_alg=Listed(levels(12)),
        scheduler=scheduler(),
        callbacks=[real],
        num_samples=-1,
        reuse_actors=True,
        resources_per_trial={"cpu": 2},  # all that there are: one worker
        storage_path=str(tmp_path / "real"),
        verbose=0,
    )
    assert simulated.rows == real.rows
    assert math.isfinite(sum(row[2] for row in real.rows))
    assert len(set(_decisions(real.rows).values())) > 1
