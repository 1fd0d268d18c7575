"""No worker is idle while there is something to train: our searchers and schedulers in Ray's loop.

On the simulated clock, with trials of uneven length and one that takes twenty times as long.
"""

import dataclasses
import importlib
from pathlib import Path

import pytest

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "cluster"

OURS = ["autoHyper", "ExpTest", "our HyperBand", "our HyperBand, asynchronous", "our BOHB"]


@pytest.fixture
def utilisation(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENT))
    return importlib.import_module("utilisation")


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("name", OURS)
def test_no_worker_is_idle_while_there_is_something_to_train(utilisation, name, workers):
    told = utilisation.simulated(name, 0, workers, "straggler", utilisation.count(name, {}))
    assert not told["hung"]
    assert told["avoidable"] == 0.0


@pytest.mark.parametrize("name", ["autoHyper", "ExpTest"])
def test_workers_that_are_not_used_are_noticed(utilisation, name, monkeypatch):
    """The same measure of a search that is held back to two trials at a time."""
    system = utilisation.SYSTEMS[name]
    held = dataclasses.replace(system, searcher=lambda seed, workers: system.searcher(seed, 2))
    monkeypatch.setitem(utilisation.SYSTEMS, name, held)
    assert utilisation.simulated(name, 0, 8, "lognormal", None)["avoidable"] > 0.3
