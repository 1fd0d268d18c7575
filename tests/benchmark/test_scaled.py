"""Tests of the methods that scale rates and weights to the architecture, on a fake task."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ConfigSpace import UniformIntegerHyperparameter

from tests.benchmark.fake import FakeTask
from tune_ext import scaling
from tune_ext.benchmark.history import best_trial
from tune_ext.benchmark.methods import METHODS, Setup, missing
from tune_ext.benchmark.simulation import simulate
from tune_ext.benchmark.tally import Tally
from tune_ext.benchmark.tune_parts import BudgetStopper
from tune_ext.models import DagMLP

EPOCHS = 4
SCALED = [name for name in METHODS if name.endswith("+scaled")]


def chain(depth):
    return "_".join("0" * k + "2" for k in range(depth))


class Chains(FakeTask):
    """The fake task, whose configuration also names a depth."""

    name = "chains"
    searches_architecture = True
    example_input = torch.zeros(1, 3)

    def __init__(self, parameters=("lr",)):
        super().__init__(epochs=EPOCHS, parameters=parameters)
        self.space.add(UniformIntegerHyperparameter("depth", 1, 3))
        self.default_config |= {"depth": 1, "initialization": "default"}

    def build(self, config):
        return DagMLP(chain(config["depth"]), 3, 4, 2)


class Looked:
    """A run as the simulation wants it."""

    def __init__(self, task, config):
        self.run = task.start(config, seed=0)

    def step(self):
        result = {**self.run.train_epoch(), "epoch": self.run.epoch, "seconds": 1.0}
        return {**result, "done": result["diverged"]}

    def state(self):
        return self.run.state_dict()

    def load(self, state):
        self.run.load_state_dict(state)


def trained(name, task, path):
    """The tally of a search, and the configuration of every trial as Ray has it."""
    setup = Setup(task, 12 * EPOCHS, 3)
    np.random.seed(3)  # noqa: NPY002 (as whoever runs a cell does)
    search = METHODS[name].build(setup)
    tally, configs = Tally(task, answer=search.answer), {}

    def report(trial_id, result):
        configs[trial_id] = result["config"]
        tally.add(trial_id, result, 0.0, 1.0)

    full = None if search.stops_trials else EPOCHS
    simulate(
        lambda config: Looked(task, config),
        search_alg=search.search_alg,
        scheduler=search.scheduler,
        stopper=BudgetStopper(setup.budget, full, report),
        workers=1,
        storage=path,
    )
    return tally, list(configs.values())


@pytest.mark.parametrize("name", [n for n in SCALED if not missing(n)])
@pytest.mark.parametrize("parameters", [("lr",), ()])
def test_each_trial_has_the_rate_of_its_depth_and_scaled_weights(name, parameters, tmp_path):
    tally, configs = trained(name, Chains(parameters), tmp_path)
    assert len({config["depth"] for config in configs}) == 3
    for config in configs:
        factor = scaling.plan_of_dag(chain(config["depth"])).factor()
        noted = config["tune_ext"]
        assert config["lr"] == pytest.approx(factor * noted["base_lr"])
        assert config["initialization"] == "scaled"
        if not parameters:
            assert noted["base_lr"] == 1e-3
    best = best_trial(tally.history)["config"]
    assert {"depth", "lr", "initialization"} <= best.keys()
    assert any(best == {k: c[k] for k in best} for c in configs)


def test_random_searches_try_the_same_architectures_and_base_rates(tmp_path):
    """What is compared differs in the scaling alone."""
    task = Chains()
    plain = [c for _, c in zip(range(12), Setup(task, 1, 3).configurations(), strict=False)]
    _, scaled = trained("random+scaled", task, tmp_path / "a")
    bases = [{"lr": c["tune_ext"]["base_lr"], "depth": c["depth"]} for c in scaled]
    assert bases == plain
    _, weights = trained("random+init", task, tmp_path / "b")
    assert weights == [{**c, "initialization": "scaled"} for c in plain]


@pytest.mark.parametrize("name", [n for n in ("tpe", "bohb") if not missing(n)])
def test_the_searcher_inside_models_the_base_rate(name, tmp_path):
    """Its first trials are the shared ones; then it goes where the base rate was good."""
    task = Chains()
    _, configs = trained(f"{name}+scaled", task, tmp_path)
    count = 3 if name == "bohb" else 10
    bases = [c["tune_ext"]["base_lr"] for c in configs]
    shared = itertools.islice(Setup(task, 1, 3).configurations(), count)
    assert bases[:count] == pytest.approx([c["lr"] for c in shared])
    assert all(1e-6 <= lr <= 1.0 for lr in bases)
