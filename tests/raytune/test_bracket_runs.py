"""HyperBand in whole runs: in Ray, and on the simulated clock."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import Callback
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher

from tune_ext.benchmark.simulation import simulate
from tune_ext.raytune import HyperBand


def test_a_result_without_the_metric_does_not_end_the_run(tmp_path: Path) -> None:
    class Silent(_Lookup):
        def step(self) -> dict[str, Any]:
            result = super().step()
            if self.x == 3:
                result["other"] = result.pop("loss")
            return result

    done = simulate(
        Silent,
        search_alg=_Any(9),
        scheduler=HyperBand(metric="loss", mode="min", max_t=9, brackets=1),
        storage=tmp_path,
    )
    assert done.trials == 9


def _train(config: dict[str, Any]) -> None:
    import json
    import tempfile
    from pathlib import Path

    from ray import tune

    first, found = 1, tune.get_checkpoint()
    if found:
        with found.as_directory() as folder:
            first = json.loads((Path(folder) / "epoch").read_text()) + 1
    for epoch in range(first, 100):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "epoch").write_text(json.dumps(epoch))
            if config["x"] == config.get("crash") and epoch == 2:
                raise RuntimeError("as planned")
            loss = math.nan if config["x"] == config.get("nan") else config["x"] + 1 / epoch
            with Path(config["home"], "epochs").open("a") as file:
                file.write(f"{config['x']} {epoch}\n")
            tune.report(
                {"loss": loss, "epoch": epoch}, checkpoint=tune.Checkpoint.from_directory(folder)
            )


def test_a_whole_run_ends_and_the_best_gets_everything(run: Any, tmp_path: Path) -> None:
    analysis = run(
        _train,
        config={
            "x": tune.grid_search([0, 1, 2, 3]),
            "home": str(tmp_path),
            "crash": 1,
            "nan": 2,
        },
        search_alg=BasicVariantGenerator(max_concurrent=3),
        scheduler=HyperBand(metric="loss", mode="min", max_t=4, reduction_factor=2, brackets=1),
        num_samples=1,
        resources_per_trial={"cpu": 0.5},
    )
    epochs = {t.config["x"]: t.last_result.get("epoch", 0) for t in analysis.trials}
    assert epochs == {0: 4, 1: 1, 2: 1, 3: 1}
    assert all(t.is_finished() for t in analysis.trials)
    lines = Path(tmp_path, "epochs").read_text().split("\n")[:-1]
    assert len(lines) == len(set(lines))  # resumed from checkpoints, nothing twice


class _Listed(Searcher):
    """Suggests what it is given; takes part in pauses as the built-in limiter does."""

    def __init__(self, count: int) -> None:
        super().__init__(metric="loss", mode="min")
        self.left = list(range(count))

    def suggest(self, trial_id: str) -> Any:
        return {"x": self.left.pop(0)} if self.left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learned."""


class _Any(_Listed):
    """Without a metric of its own, which Ray would insist on."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._metric = None


class _Lookup:
    """Trial 0 is the best; every fifth is NaN, every seventh fails in its second epoch."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.x, self.epoch = config["x"], 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        if self.x % 7 == 6 and self.epoch == 2:
            raise RuntimeError("as planned")
        loss = math.nan if self.x % 5 == 4 else self.x + 1 / self.epoch
        return {"loss": loss, "seconds": 1.0 + self.x % 3, "done": False}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("limit", [None, 3])
def test_whole_runs_on_the_simulated_clock(
    tmp_path: Path, asynchronous: bool, workers: int, limit: int | None
) -> None:
    """Ray's own control loop: it ends, with limiters too, and no one gets more than R."""
    searcher: Any = _Listed(60)
    if limit is not None:
        searcher = ConcurrencyLimiter(searcher, max_concurrent=limit)
    seen: dict[int, int] = {}

    class Seen(Callback):
        def on_trial_result(self, result: dict[str, Any], **_: Any) -> None:
            x, epoch = result["config"]["x"], result["training_iteration"]
            assert epoch == seen.get(x, 0) + 1
            seen[x] = epoch

    simulate(
        _Lookup,
        search_alg=searcher,
        scheduler=HyperBand(metric="loss", mode="min", max_t=9, asynchronous=asynchronous),
        callbacks=[Seen()],
        workers=workers,
        storage=tmp_path,
    )
    assert len(seen) == 60
    assert seen[0] == 9
    assert max(seen.values()) == 9
    assert sum(epoch == 1 for epoch in seen.values()) > 15
