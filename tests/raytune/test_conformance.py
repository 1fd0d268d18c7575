"""The conformance suites over what we ship, and over Ray's built-ins as a control.

Where a built-in is known to miss a point, the point is marked: strictly, so that a Ray in which
it is repaired shows up here.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.optuna import OptunaSearch

from tune_ext import LossMonitor
from tune_ext.raytune import (
    AutoHyperScheduler,
    AutoHyperSearch,
    ExpTestScheduler,
    ExpTestSearch,
)
from tune_ext.raytune._play import MISSING
from tune_ext.raytune.testing import SchedulerConformance, SearcherConformance


def misses(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


class TestAutoHyperSearch(SearcherConformance):
    finishes = True

    def make(self, **options: Any) -> Any:
        return AutoHyperSearch(probe_epochs=3, **options)

    def other_objective(self, config: Mapping[str, Any]) -> float:
        return abs(math.log10(config["lr"]) + 4) / 10


class TestAutoHyperSearchAtOnce(TestAutoHyperSearch):
    workers = 4

    def test_another_process_gives_the_same_run(self) -> None:
        pytest.skip("a process takes seconds, and the class above starts one")


class TestExpTestSearch(SearcherConformance):
    finishes = True

    def make(self, **options: Any) -> Any:
        return ExpTestSearch(**options)

    def objective(self, config: Mapping[str, Any]) -> float:
        return 0.1 + abs(math.log10(config["lr"]) + 2.5)

    def other_objective(self, config: Mapping[str, Any]) -> float:
        return 0.1 + abs(math.log10(config["lr"]) + 4)

    def report(self, config: Mapping[str, Any], value: Any, epoch: int) -> Mapping[str, Any]:
        """Losses that fall to the value, a third of a rung an epoch."""
        if value == MISSING:
            return {}
        monitor = LossMonitor(config)
        end = float("nan") if value is None else abs(value)
        for step in range(20 * epoch):
            monitor.step(end * math.exp(3 - step / 20))
        report = monitor.report()["exptest"]
        return {"exptest": dict.fromkeys(report) if value is None else report}


class TestExpTestSearchAtOnce(TestExpTestSearch):
    workers = 4

    def make(self, **options: Any) -> Any:
        return ExpTestSearch(**{"max_concurrent": 4, **options})

    def test_another_process_gives_the_same_run(self) -> None:
        pytest.skip("a process takes seconds, and the class above starts one")


class TestOptunaSearch(SearcherConformance):
    trials = 14

    def make(self, **options: Any) -> Any:
        return OptunaSearch(**options)

    @misses("a result without the metric is a KeyError")
    def test_invalid_metrics_neither_raise_nor_stall(self) -> None:
        super().test_invalid_metrics_neither_raise_nor_stall()

    @misses("a trial that it did not suggest is a KeyError")
    def test_trials_of_others_are_ignored(self) -> None:
        super().test_trials_of_others_are_ignored()

    @misses("it has no on_pause")
    def test_a_trial_may_pause(self) -> None:
        super().test_a_trial_may_pause()


@pytest.mark.skipif(importlib.util.find_spec("hpbandster") is None, reason="needs hpbandster")
class TestTuneBOHB(SearcherConformance):
    def make(self, **options: Any) -> Any:
        return TuneBOHB(**options)

    def test_another_process_gives_the_same_run(self) -> None:
        pytest.skip("a process takes seconds, and two classes above start one")

    @misses("what arrives at completion never reaches its model")
    def test_the_last_result_counts_also_when_it_arrives_at_completion_alone(self) -> None:
        super().test_the_last_result_counts_also_when_it_arrives_at_completion_alone()

    @misses("a trial that it did not suggest is a KeyError")
    def test_trials_of_others_are_ignored(self) -> None:
        super().test_trials_of_others_are_ignored()

    @misses("it pops from the list that it was given")
    def test_what_the_caller_passes_stays_as_it_is(self) -> None:
        super().test_what_the_caller_passes_stays_as_it_is()


class TestAutoHyperScheduler(SchedulerConformance):
    def make(self, **options: Any) -> Any:
        return AutoHyperScheduler(probe_epochs=2, max_t=4, **options)

    def config(self, number: int) -> dict[str, Any]:
        role = "final" if number == 2 else "probe"
        ours = {"role": role, "probe": number, "continue_from": "trial0"}
        return {**super().config(number), "tune_ext": ours}


class TestExpTestScheduler(SchedulerConformance):
    """Trial 2 is a rung of a ladder; the others train at a plateau."""

    def make(self, **options: Any) -> Any:
        return ExpTestScheduler(max_t=4, **options)

    def config(self, number: int) -> dict[str, Any]:
        if number != 2:
            return super().config(number)
        ladder = {"bound": 0.01, "beta": 0.33, "alpha": 0.05, "steps": 60, "upper": None}
        ours = {"role": "rung", "rung": 0, "steps": 60, "ladder": ladder, "continue_from": None}
        return {**super().config(number), "tune_ext": ours}

    def result(self, epoch: int, value: Any) -> dict[str, Any]:
        result = super().result(epoch, value)
        if value == MISSING:
            return result
        monitor = LossMonitor(self.config(0))
        for _ in range(40):
            monitor.step(math.nan if value is None else abs(value))
        report = monitor.report()["exptest"]
        return {**result, "exptest": dict.fromkeys(report) if value is None else report}


class TestFIFO(SchedulerConformance):
    epochs = None

    def make(self, **options: Any) -> Any:
        return FIFOScheduler()


class TestASHA(SchedulerConformance):
    def make(self, **options: Any) -> Any:
        return ASHAScheduler(max_t=4, grace_period=1, **options)

    @misses("None is a TypeError")
    def test_invalid_metrics_do_not_raise(self, tmp_path: Path) -> None:
        super().test_invalid_metrics_do_not_raise(tmp_path)

    @misses("it chooses brackets by numpy's global generator")
    def test_the_global_random_state_is_untouched(self, tmp_path: Path) -> None:
        super().test_the_global_random_state_is_untouched(tmp_path)


class TestHyperBand(SchedulerConformance):
    epochs = None

    def make(self, **options: Any) -> Any:
        return HyperBandScheduler(max_t=4, **options)


class TestMedianStopping(SchedulerConformance):
    epochs = None

    def make(self, **options: Any) -> Any:
        return MedianStoppingRule(grace_period=1, **options)

    @misses("None is a TypeError")
    def test_invalid_metrics_do_not_raise(self, tmp_path: Path) -> None:
        super().test_invalid_metrics_do_not_raise(tmp_path)
