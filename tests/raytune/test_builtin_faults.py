"""Ray's HyperBand and BOHB beside ours under the same injections.

Each test first shows what Ray's does, so that it says so when Ray has repaired it. The clock is
simulated (`tests.raytune.interrupted`); a run that would hang ends in `SimulationStuck`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ConfigSpace import ConfigurationSpace, OrdinalHyperparameter
from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import HyperBandForBOHB, HyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.search.bohb import TuneBOHB

from tests.raytune.interrupted import Kind, Listed, Reached, Run
from tune_ext.benchmark.simulation import SimulationStuck
from tune_ext.raytune import BOHBSearch, HyperBand

R = 9
MINIMUM: dict[str, Any] = {"metric": "loss", "mode": "min"}


def rays() -> Any:
    return HyperBandScheduler(max_t=R, **MINIMUM)


def rays_for_bohb() -> Any:
    return HyperBandForBOHB(max_t=R, **MINIMUM)


def ours(**options: Any) -> Any:
    return HyperBand(max_t=R, **MINIMUM, **options)


class Curve:
    """The loss is the configuration, or what its name says; no two are as fast."""

    fails_at = 9

    def __init__(self, config: dict[str, Any]) -> None:
        self.x, self.number, self.epoch = config["x"], config.get("number", 0), 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        if self.x == "fails" and self.epoch == self.fails_at:
            raise RuntimeError("as planned")
        losses = {"fails": 0.1, "nan": math.nan, "none": None}
        seconds = 3.0 if self.x == "fails" else 1 + self.number / 100
        return {"loss": losses.get(self.x, self.x), "seconds": seconds, "done": False}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state


def reached(scheduler: Any, values: list[Any], home: Path) -> dict[Any, int]:
    """The epochs of each configuration when all start at once."""
    seen = Reached()
    Run(Curve, Listed(values), scheduler, storage=home, workers=9, callbacks=[seen]).step()
    return seen.epochs


FINITE = [6, 7, 8, 0.5, 0.6, 0.7, 0.8]  # Ray's first bracket is the first three


def test_the_last_runner_fails_while_its_peer_waits(tmp_path: Path) -> None:
    values = [*FINITE[:4], "fails", *FINITE[4:]]
    with pytest.raises(SimulationStuck, match="1 PAUSED"):
        reached(rays(), values, tmp_path)
    assert reached(rays(), [0.1 if v == "fails" else v for v in values], tmp_path)[0.1] == R
    epochs = reached(ours(brackets=1), values, tmp_path)
    assert epochs["fails"] == 8
    assert sorted(epochs.values()) == [1] * 6 + [3, 8]


def test_nan_is_promoted_over_finite_losses(tmp_path: Path) -> None:
    values = [*FINITE, "nan"]
    epochs = reached(rays(), values, tmp_path)
    assert (epochs["nan"], epochs[0.6]) == (R, 3)
    assert reached(rays_for_bohb(), values, tmp_path)["nan"] == R
    epochs = reached(ours(), values, tmp_path)
    assert (epochs["nan"], epochs[0.5], epochs[0.6]) == (1, R, 3)


@pytest.mark.parametrize("scheduler", [rays, rays_for_bohb])
def test_none_ends_the_run(tmp_path: Path, scheduler: Callable[[], Any]) -> None:
    values = [*FINITE[:4], "none", *FINITE[4:]]
    with pytest.raises((TuneError, TypeError), match="NoneType"):
        reached(scheduler(), values, tmp_path)
    epochs = reached(ours(), values, tmp_path)
    assert (epochs["none"], epochs[0.5], epochs[0.6]) == (1, R, 3)


def interrupted(
    scheduler: Callable[[], Any], steps: int, home: Path, values: list[Any]
) -> dict[Any, int]:
    """The epochs of each configuration when the run is restored after so many steps."""
    seen = Reached()
    first = Run(Curve, Listed(values), scheduler(), storage=home, workers=3, callbacks=[seen])
    snapshot = first.step(steps)
    if snapshot is not None:
        options: dict[str, Any] = {"storage": home, "workers": 3, "callbacks": [seen]}
        Run(Curve, Listed([]), scheduler(), after=snapshot, **options).step()
    return seen.epochs


MANY = [float(7 * i % 20) for i in range(20)]


def test_a_restored_run_hangs(tmp_path: Path) -> None:
    """Trials that have ended come back as live ones in a new bracket (ray #39900)."""
    for steps in (60, 90):
        with pytest.raises(SimulationStuck, match="PAUSED"):
            interrupted(rays_for_bohb, steps, tmp_path, MANY)
        with pytest.raises(SimulationStuck, match="PAUSED"):
            interrupted(rays, steps, tmp_path, MANY)
    whole = interrupted(ours, 10**6, tmp_path, MANY)
    assert whole[0.0] == R
    assert interrupted(ours, 60, tmp_path, MANY) == whole
    assert interrupted(ours, 90, tmp_path, MANY) == whole


def test_a_restored_trial_passes_max_t(tmp_path: Path) -> None:
    most = {steps: 0 for steps in range(4, 40, 2)}
    for steps in most:
        most[steps] = max(interrupted(rays, steps, tmp_path, MANY[:3]).values())
        assert max(interrupted(ours, steps, tmp_path, MANY[:3]).values()) <= R
    assert max(most.values()) == R + 1


# --- TuneBOHB


def limited(kind: type[Searcher], count: int) -> type[Any]:
    """A searcher that ends after so many suggestions."""

    class Limited(kind):  # type: ignore[misc, valid-type]
        left = count

        def suggest(self, trial_id: str) -> Any:
            if not self.left:
                return Searcher.FINISHED
            self.left -= 1
            config = super().suggest(trial_id)
            assert config is not None
            return config

    return Limited


SPACE = {"x": tune.uniform(0, 1)}


def resolved(space: Any) -> Any:
    """For Ray's, which would warn of a conversion."""
    return space if isinstance(space, ConfigurationSpace) else TuneBOHB.convert_search_space(space)


def bohb(count: int = 10**6, space: Any = SPACE, **options: Any) -> Any:
    given = {"seed": 0, **MINIMUM, **options}
    return limited(TuneBOHB, count)(resolved(space), **given)


def our_bohb(count: int = 10**6, space: Any = SPACE, **options: Any) -> Any:
    return limited(BOHBSearch, count)(space, **{"seed": 0, **MINIMUM, **options})


def test_results_of_the_last_rung_never_reach_the_model(tmp_path: Path) -> None:
    theirs, mine = bohb(9), our_bohb(9)
    Run(Curve, theirs, rays_for_bohb(), storage=tmp_path, workers=2).step()
    assert set(theirs.bohber.configs) == {1, 3}
    Run(Curve, mine, ours(brackets=1), storage=tmp_path, workers=2).step()
    assert mine._model.counts() == {1: 9, 3: 3, 9: 1}


class Flaky(Curve):
    """Fails in its first life where x is large."""

    ill = True

    def step(self) -> dict[str, Any]:
        if self.ill and self.x > 0.8:
            raise RuntimeError("as planned")
        return super().step()


class Healed(Flaky):
    ill = False


def test_restart_errored_is_a_key_error(tmp_path: Path) -> None:
    def restarted(make: Callable[..., Any], scheduler: Callable[[], Any]) -> Any:
        first = Run(Flaky, make(12), scheduler(), storage=tmp_path, workers=2)
        snapshot = first.step(40)
        assert snapshot is not None
        assert any(t.status == "ERROR" for t in first.trials())
        second = Run(
            Healed,
            make(0),
            scheduler(),
            storage=tmp_path,
            workers=2,
            after=snapshot,
            errored=Kind.RESTART,
        )
        second.step()
        return second

    with pytest.raises(TuneError, match="KeyError"):
        restarted(bohb, rays_for_bohb)
    run = restarted(our_bohb, ours)
    assert all(trial.status == "TERMINATED" for trial in run.trials())
    with pytest.raises(KeyError):
        bohb().on_trial_complete("never suggested")
    our_bohb().on_trial_complete("never suggested")


def fed(search: Any, count: int = 24) -> list[dict[str, Any]]:
    """Its suggestions, each with a result at the first rung."""
    configs = []
    for number in range(count):
        config = search.suggest(str(number))
        configs.append(copy.deepcopy(config))
        loss = float(sum(v for v in config.values() if isinstance(v, int | float)))
        budget = {"hyperband_info": {"budget": 1}, "hyperband_budget": 1.0}
        result = {"loss": loss, "training_iteration": 1, **budget}
        search.on_trial_result(str(number), result)
        search.on_trial_complete(str(number), result=result)
    return configs


def test_one_seed_gives_two_searches() -> None:
    state = np.random.get_state()  # noqa: NPY002 (Ray's draws from it; it is put back)
    try:
        np.random.seed(0)  # noqa: NPY002
        first, second = fed(bohb(seed=7)), fed(bohb(seed=7))
        assert first[0] == second[0]
        assert first != second
        np.random.seed(1)  # noqa: NPY002
        mine = fed(our_bohb(seed=7))
        np.random.seed(2)  # noqa: NPY002
        assert fed(our_bohb(seed=7)) == mine
    finally:
        np.random.set_state(state)  # noqa: NPY002


def test_choices_come_back_as_numpy_values() -> None:
    space = {
        "kind": tune.choice(["sgd", "adam"]),
        "depth": tune.choice([1, 2]),
        "bias": tune.choice([True, False]),
    }
    theirs, mine = bohb(space=space).suggest("a"), our_bohb(space=space).suggest("a")
    assert [type(theirs[name]) for name in space] == [np.str_, np.int64, np.bool_]
    assert [type(mine[name]) for name in space] == [str, int, bool]


def test_ordered_parameters_are_refused() -> None:
    space = ConfigurationSpace()
    space.add(OrdinalHyperparameter("depth", [1, 2, 4]))
    with pytest.raises(RuntimeError, match="ordinal"):
        bohb(space=space)
    assert {config["depth"] for config in fed(our_bohb(space=space))} == {1, 2, 4}


def test_quantised_domains_lose_their_step() -> None:
    space = {"x": tune.quniform(0, 1, 0.25)}
    steps = {0.0, 0.25, 0.5, 0.75, 1.0}
    assert not {config["x"] for config in fed(bohb(space=space))} <= steps
    assert {config["x"] for config in fed(our_bohb(space=space))} <= steps


def test_points_are_taken_from_the_callers_list() -> None:
    theirs, mine = [{"x": 0.5}], [{"x": 0.5}]
    assert bohb(points_to_evaluate=theirs).suggest("a") == {"x": 0.5}
    assert our_bohb(points_to_evaluate=mine).suggest("a") == {"x": 0.5}
    assert (theirs, mine) == ([], [{"x": 0.5}])


def test_points_must_be_flat_and_without_constants() -> None:
    nested = {"model": {"x": tune.uniform(0, 1)}}
    with pytest.raises(Exception, match="model"):
        fed(bohb(space=nested, points_to_evaluate=[{"model": {"x": 0.5}}]))
    mine = our_bohb(space=nested, points_to_evaluate=[{"model": {"x": 0.5}}])
    assert fed(mine)[0] == {"model": {"x": 0.5}}
    constant = {"x": tune.uniform(0, 1), "epochs": 9}
    with pytest.raises(Exception, match="epochs"):
        fed(bohb(space=constant, points_to_evaluate=[{"x": 0.5, "epochs": 9}]))
    mine = our_bohb(space=constant, points_to_evaluate=[{"x": 0.5, "epochs": 9}])
    assert fed(mine)[0]["x"] == 0.5
