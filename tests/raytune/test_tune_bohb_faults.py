"""Ray's TuneBOHB beside our BOHBSearch under the same injections.

Each test first shows what Ray's does, so that it says so when Ray has repaired it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ConfigSpace import ConfigurationSpace, OrdinalHyperparameter
from ray import tune
from ray.tune.error import TuneError
from ray.tune.search import Searcher
from ray.tune.search.bohb import TuneBOHB

from tests.raytune.interrupted import MINIMUM, Curve, Kind, Run, ours, rays_for_bohb
from tune_ext.raytune import BOHBSearch

pytest.importorskip("hpbandster")


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
        search = make(12, points_to_evaluate=[{"x": 0.9}, {"x": 0.3}])
        first = Run(Flaky, search, scheduler(), storage=tmp_path, workers=2)
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
