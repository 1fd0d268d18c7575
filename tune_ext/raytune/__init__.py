"""The only package, with the benchmark's runner, that knows Ray."""

from tune_ext.raytune.autohyper import AutoHyperScheduler, AutoHyperSearch

__all__ = ["AutoHyperScheduler", "AutoHyperSearch"]
