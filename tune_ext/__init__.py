"""tune_ext: search algorithms and schedulers for Ray Tune.

Importing this package starts neither torch nor Ray: its public names are imported when they
are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_ext._loss_monitor import LossMonitor
    from tune_ext.autohyper import AutoHyper, Parameter, Probe
    from tune_ext.bohb import BOHB
    from tune_ext.brackets import Brackets
    from tune_ext.exptest import DecayTest, Ladder, Tuner, learning_rate_bound
    from tune_ext.image_growth import ImageGrowth
    from tune_ext.lowrank import ResponseMeter, evbmf, knowledge_gain
    from tune_ext.lr_scheduler import ExpTestLR, find_lr, resolve_lr
    from tune_ext.raytune import (
        ArchitectureScaledSearch,
        AutoHyperScheduler,
        AutoHyperSearch,
        BOHBSearch,
        ExpTestScheduler,
        ExpTestSearch,
        GroupedScheduler,
        HyperBand,
        ImageGrowthSearch,
        NoGainStopper,
        StallGuard,
        repair_experiment,
    )

__all__ = [
    "BOHB",
    "ArchitectureScaledSearch",
    "AutoHyper",
    "AutoHyperScheduler",
    "AutoHyperSearch",
    "BOHBSearch",
    "Brackets",
    "DecayTest",
    "ExpTestLR",
    "ExpTestScheduler",
    "ExpTestSearch",
    "GroupedScheduler",
    "HyperBand",
    "ImageGrowth",
    "ImageGrowthSearch",
    "Ladder",
    "LossMonitor",
    "NoGainStopper",
    "Parameter",
    "Probe",
    "ResponseMeter",
    "StallGuard",
    "Tuner",
    "evbmf",
    "find_lr",
    "knowledge_gain",
    "learning_rate_bound",
    "register",
    "repair_experiment",
    "resolve_lr",
]

_HOME = {
    "ArchitectureScaledSearch": "tune_ext.raytune",
    "AutoHyper": "tune_ext.autohyper",
    "AutoHyperScheduler": "tune_ext.raytune",
    "AutoHyperSearch": "tune_ext.raytune",
    "BOHB": "tune_ext.bohb",
    "BOHBSearch": "tune_ext.raytune",
    "Brackets": "tune_ext.brackets",
    "DecayTest": "tune_ext.exptest",
    "ExpTestLR": "tune_ext.lr_scheduler",
    "ExpTestScheduler": "tune_ext.raytune",
    "ExpTestSearch": "tune_ext.raytune",
    "GroupedScheduler": "tune_ext.raytune",
    "HyperBand": "tune_ext.raytune",
    "ImageGrowth": "tune_ext.image_growth",
    "ImageGrowthSearch": "tune_ext.raytune",
    "Ladder": "tune_ext.exptest",
    "LossMonitor": "tune_ext._loss_monitor",
    "NoGainStopper": "tune_ext.raytune",
    "Parameter": "tune_ext.autohyper",
    "Probe": "tune_ext.autohyper",
    "ResponseMeter": "tune_ext.lowrank",
    "StallGuard": "tune_ext.raytune",
    "Tuner": "tune_ext.exptest",
    "evbmf": "tune_ext.lowrank",
    "find_lr": "tune_ext.lr_scheduler",
    "knowledge_gain": "tune_ext.lowrank",
    "learning_rate_bound": "tune_ext.exptest",
    "repair_experiment": "tune_ext.raytune",
    "resolve_lr": "tune_ext.lr_scheduler",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make our names known to Ray; doing so again changes nothing.

    Afterwards ``tune.create_searcher("autohyper", …)``,
    ``tune.create_scheduler("autohyper", …)`` and ``tune.run(search_alg="autohyper")`` work; and
    "exptest" likewise.
    """
    from ray.tune.schedulers import SCHEDULER_IMPORT
    from ray.tune.search import SEARCH_ALG_IMPORT

    from tune_ext.raytune import (
        AutoHyperScheduler,
        AutoHyperSearch,
        ExpTestScheduler,
        ExpTestSearch,
    )

    SEARCH_ALG_IMPORT["autohyper"] = lambda: AutoHyperSearch
    SEARCH_ALG_IMPORT["exptest"] = lambda: ExpTestSearch
    SCHEDULER_IMPORT["autohyper"] = AutoHyperScheduler
    SCHEDULER_IMPORT["exptest"] = ExpTestScheduler
