"""The only package, with the benchmark's runner, that knows Ray."""

from tune_ext.raytune.autohyper import AutoHyperScheduler, AutoHyperSearch
from tune_ext.raytune.exptest import ExpTestScheduler, ExpTestSearch

__all__ = ["AutoHyperScheduler", "AutoHyperSearch", "ExpTestScheduler", "ExpTestSearch"]
