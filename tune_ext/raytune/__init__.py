"""The only package, with the benchmark's runner, that knows Ray."""

from tune_ext.raytune._grouped import GroupedScheduler
from tune_ext.raytune._patience import NoGainStopper
from tune_ext.raytune._stalls import StallGuard
from tune_ext.raytune._state_copy import repair_experiment
from tune_ext.raytune.autohyper import AutoHyperScheduler, AutoHyperSearch
from tune_ext.raytune.bohb import BOHBSearch
from tune_ext.raytune.brackets import HyperBand
from tune_ext.raytune.exptest import ExpTestScheduler, ExpTestSearch
from tune_ext.raytune.image_growth import ImageGrowthSearch
from tune_ext.raytune.scaling import ArchitectureScaledSearch

__all__ = [
    "ArchitectureScaledSearch",
    "AutoHyperScheduler",
    "AutoHyperSearch",
    "BOHBSearch",
    "ExpTestScheduler",
    "ExpTestSearch",
    "GroupedScheduler",
    "HyperBand",
    "ImageGrowthSearch",
    "NoGainStopper",
    "StallGuard",
    "repair_experiment",
]
