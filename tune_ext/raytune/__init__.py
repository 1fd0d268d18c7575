"""The only package, with the benchmark's runner, that knows Ray."""

from tune_ext.raytune.autohyper import AutoHyperScheduler, AutoHyperSearch
from tune_ext.raytune.exptest import ExpTestScheduler, ExpTestSearch
from tune_ext.raytune.exptest_scheduler import ExpTestScheduler

__all__ = ["AutoHyperScheduler", "AutoHyperSearch", "ExpTestScheduler", "ExpTestScheduler", "ExpTestSearch"]
