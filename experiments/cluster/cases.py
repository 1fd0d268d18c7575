"""Every searcher and scheduler of ours as a run of Ray's, for `nodes.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from trained import network

import tune_ext
from tune_ext.raytune.smac import SMACSearch

__all__ = ["CASES", "Case"]

RATES = tune.loguniform(1e-5, 1.0)
WORKERS = 4


@dataclass(frozen=True)
class Case:
    """A run.

    Args:
        make: Makes the searcher, and the scheduler or None.
        ordered: Whether it learns from results in the order in which they come. Trials then
            report in turn. The answer of one that is not ordered must be the same in any order.
        space: What is searched, beside the rate.
        trials: How many.
    """

    make: Callable[[], tuple[Any, Any]]
    ordered: bool = True
    space: dict[str, Any] = field(default_factory=dict)
    trials: int = -1


def _autohyper() -> tuple[Any, Any]:
    search = tune_ext.AutoHyperSearch(probe_epochs=2)
    return search, tune_ext.AutoHyperScheduler(probe_epochs=2, max_t=4)


def _scaled() -> tuple[Any, Any]:
    import torch

    inside = tune_ext.AutoHyperSearch(probe_epochs=2, max_probes=9)
    search = tune_ext.ArchitectureScaledSearch(inside, network, torch.zeros(2, 4))
    return search, tune_ext.AutoHyperScheduler(probe_epochs=2, max_t=4)


def _scaled_bohb() -> tuple[Any, Any]:
    import torch

    inside = tune_ext.BOHBSearch(metric="loss", mode="min", seed=0)
    return tune_ext.ArchitectureScaledSearch(inside, network, torch.zeros(2, 4)), _brackets(False)


def _exptest() -> tuple[Any, Any]:
    return tune_ext.ExpTestSearch(bound=0.01), tune_ext.ExpTestScheduler(max_t=5)


def _brackets(asynchronous: bool) -> Any:
    return tune_ext.HyperBand(
        metric="loss", mode="min", max_t=9, brackets=2, asynchronous=asynchronous
    )


def _bohb(asynchronous: bool) -> tuple[Any, Any]:
    return tune_ext.BOHBSearch(metric="loss", mode="min", seed=0), _brackets(asynchronous)


def _growth() -> tuple[Any, Any]:
    sizes = [(16, 5), (32, 4), (64, 3)]
    return tune_ext.ImageGrowthSearch("tpe", sizes, metric="loss", mode="min", seed=0), None


def _grouped() -> tuple[Any, Any]:
    from ray.tune.schedulers import ASHAScheduler

    sizes = [(16, 5), (32, 4), (64, 3)]
    search = tune_ext.ImageGrowthSearch("random", sizes, metric="loss", mode="min", seed=0)
    asha = {"metric": "loss", "mode": "min", "max_t": 4, "grace_period": 2, "reduction_factor": 2}
    return search, tune_ext.GroupedScheduler(lambda: ASHAScheduler(**asha))


def _smac() -> tuple[Any, Any]:
    return SMACSearch(metric="loss", mode="min", n_trials=10, seed=0), None


_DECAY = {"weight_decay": tune.loguniform(1e-5, 1e-1)}
_DEPTH = {"depth": tune.choice([1, 2, 3, 4])}

CASES: dict[str, Case] = {
    "autoHyper": Case(_autohyper, ordered=False),
    "autoHyper, scaled to the architecture": Case(_scaled, ordered=False, space={"depth": 4}),
    "ExpTest": Case(_exptest, ordered=False),
    "BOHB + HyperBand": Case(lambda: _bohb(False), space=_DECAY, trials=13),
    "BOHB + HyperBand, asynchronous": Case(lambda: _bohb(True), space=_DECAY, trials=13),
    "BOHB + HyperBand, scaled to the architecture": Case(_scaled_bohb, space=_DEPTH, trials=13),
    "image growth (TPE)": Case(_growth, space=_DECAY),
    "image growth (random), ASHA at every size": Case(_grouped, space=_DECAY),
    "SMAC": Case(_smac, space=_DECAY, trials=10),
}
