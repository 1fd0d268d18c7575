"""Public constructors and functions with arguments of any kind: they work, or say what is wrong.

Each entry makes a thing with sound arguments and uses it once; one or two of its arguments are
exchanged for anything at all.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from ConfigSpace import ConfigurationSpace
from hypothesis import given
from hypothesis import strategies as st
from ray import tune

import tune_ext
from tests.fuzz.odd import clear, fuzz, numbers, values
from tune_ext import brackets, importance, models, resizing, spaces
from tune_ext.benchmark import stats, study
from tune_ext.benchmark.cell_run import Place
from tune_ext.exptest import RungTest
from tune_ext.raytune.smac import SMACSearch
from tune_ext.scaling import plan_of_dag

SPACE = {"lr": tune.loguniform(1e-5, 1.0)}
BOTH = {"lr": tune.loguniform(1e-5, 1.0), "weight_decay": tune.uniform(0, 1)}
PARAMETER = tune_ext.Parameter("lr", 0.1, 5.0)
TABLE = brackets.bracket_table(9)
CONFIGS = [{"x": i / 20} for i in range(20)]
RATES = [[0.1, 0.2, 0.3], [0.2, 0.1, 0.4], [0.3, 0.2, 0.1]]


def config_space():
    return ConfigurationSpace({"x": (0.0, 1.0)})


def suggests(searcher):
    searcher.suggest("a")
    searcher.get_state()


def tells(core):
    for probe in core.ask():
        core.tell(probe.id, 0.5)
    core.state_dict()


def takes_losses(test):
    for loss in np.linspace(2.0, 1.0, 50):
        test.add(float(loss))


def steps(scheduler):
    for _ in range(3):
        scheduler.step(1.0)


def resolve_device(device):
    data = [(torch.zeros(2, 4), torch.zeros(2, 2))]
    tune_ext.find_lr(network(), torch.nn.functional.mse_loss, data, device=device)


def weightless(make):
    """Networks without memory for their weights: what is asked for may be larger than any."""

    def made(**arguments):
        with torch.device("meta"):
            return make(**arguments)

    return made


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def lr_scheduler(**arguments):
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    return tune_ext.ExpTestLR(**{"optimizer": optimizer, **arguments})


def loader():
    return [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))]


common = {"metric": "loss", "mode": "min"}
ladder = {"alpha": 0.05, "beta": 0.33}
MADE = {
    "AutoHyper": (
        tune_ext.AutoHyper,
        {
            "parameters": [PARAMETER],
            "region": "auto",
            "reuse": "points",
            "establish_below": 0.85,
            "plateau": 0.005,
            "power": 0.8,
            "shrink": 2.5,
            "scale_tolerance": 0.005,
            "max_probes": 5,
            "initial_points": (),
        },
        tells,
    ),
    "AutoHyperScheduler": (
        tune_ext.AutoHyperScheduler,
        {"time_attr": "epoch", "probe_epochs": 5, "max_t": 10, **common},
        None,
    ),
    "AutoHyperSearch": (
        tune_ext.AutoHyperSearch,
        {
            "space": BOTH,
            "start": {"lr": 0.1},
            "scale": {"lr": 5.0},
            "probe_epochs": 5,
            "max_concurrent": 2,
            "final_trials": 1,
            "seed": 0,
            "points_to_evaluate": [],
            "time_attr": "epoch",
            "region": "auto",
            "max_probes": 9,
            "constants": {"power": 0.8},
            **common,
        },
        suggests,
    ),
    "BOHB": (
        tune_ext.BOHB,
        {
            "space": config_space(),
            "min_points": 3,
            "top": 0.15,
            "samples": 8,
            "random_fraction": 0.3,
            "bandwidth_factor": 3.0,
            "min_bandwidth": 1e-3,
            "seed": 0,
        },
        lambda made: made.suggest(),
    ),
    "BOHBSearch": (
        tune_ext.BOHBSearch,
        {
            "space": SPACE,
            "points_to_evaluate": [{"lr": 0.1}],
            "time_attr": "epoch",
            "min_points": 3,
            "top": 0.15,
            "samples": 8,
            "random_fraction": 0.3,
            "budgets": [1, 3],
            "seed": 0,
            **common,
        },
        suggests,
    ),
    "Brackets": (
        tune_ext.Brackets,
        {"table": TABLE, "reduction_factor": 3, "asynchronous": False},
        None,
    ),
    "DecayTest": (
        tune_ext.DecayTest,
        {"alpha": 0.05, "autocorrelation": "ar1", "transform": "log"},
        None,
    ),
    "ExpTestLR": (
        lr_scheduler,
        {
            "lr": 0.1,
            "window": 5,
            "min_lr": 0.0,
            "correction": "spending",
            "autocorrelation": "ar1",
            "transform": "log",
            "total_steps": 50,
            "cooldown": 0.2,
            "snapshot": "cpu",
            "save_snapshot": False,
            "max_restores": 3,
            "read_every": 4,
            **ladder,
        },
        steps,
    ),
    "ExpTestScheduler": (
        tune_ext.ExpTestScheduler,
        {
            "time_attr": "epoch",
            "max_t": 10,
            "window": 5,
            "min_lr": 0.0,
            "lr": "lr",
            "max_restores": 5,
            "correction": "spending",
            "autocorrelation": "ar1",
            "transform": "log",
            **ladder,
            **common,
        },
        None,
    ),
    "ExpTestSearch": (
        tune_ext.ExpTestSearch,
        {
            "space": SPACE,
            "lr": "lr",
            "bound": 1.0,
            "loss": "mse",
            "steps": 60,
            "max_concurrent": 2,
            "final_trials": 1,
            "seed": 0,
            **ladder,
            **common,
        },
        suggests,
    ),
    "HyperBand": (
        tune_ext.HyperBand,
        {
            "time_attr": "epoch",
            "max_t": 9,
            "reduction_factor": 3,
            "min_t": 1,
            "asynchronous": False,
            "brackets": 2,
            "rounding": "formula",
            **common,
        },
        None,
    ),
    "ImageGrowth": (
        tune_ext.ImageGrowth,
        {
            "space": config_space(),
            "sizes": [(8, 9), (16, 5)],
            "points": [{"x": 0.5}],
            "probes": 2,
            "best": 2,
            "top": 0.2,
            "floor": 0.2,
            "enough": 0.9,
            "transfer": 0.5,
            "seed": 0,
        },
        None,
    ),
    "ImageGrowthSearch": (
        tune_ext.ImageGrowthSearch,
        {
            "searcher_factory": "random",
            "sizes": [(8, 9), (16, 5)],
            "space": SPACE,
            "points_to_evaluate": [],
            "size_key": "image_size",
            "probes": 2,
            "best": 2,
            "top": 0.2,
            **common,
        },
        suggests,
    ),
    "Ladder": (
        tune_ext.Ladder,
        {"bound": 1.0, "steps": 60, "lower": 0.0, "upper": 10.0, "max_rungs": 5, **ladder},
        lambda made: made.ask(),
    ),
    "NoGainStopper": (
        tune_ext.NoGainStopper,
        {"patience": 5, "min_gain": 0.0, "grace_period": 0, "time_attr": "epoch", **common},
        lambda made: made("a", {"loss": 1.0, "epoch": 1}),
    ),
    "Parameter": (
        tune_ext.Parameter,
        {"name": "lr", "start": 1, "scale": 2, "lower": 0, "upper": 9, "step_from_zero": 1e-7},
        None,
    ),
    "ResponseMeter": (
        tune_ext.ResponseMeter,
        {"model": network(), "linear": True, "count": "unfoldings", "threshold": "published"},
        lambda made: made.measure(),
    ),
    "RungTest": (
        RungTest,
        {"steps": 60, "alpha": 0.05, "autocorrelation": "none", "transform": "log"},
        None,
    ),
    "SMACSearch": (SMACSearch, {"space": SPACE, "n_trials": 9, "seed": 0, **common}, None),
    "Tuner": (
        tune_ext.Tuner,
        {
            "lr": 0.1,
            "window": 5,
            "min_lr": 0.0,
            "correction": "spending",
            "autocorrelation": "ar1",
            "transform": "log",
            "total_steps": 50,
            "cooldown": 0.2,
            **ladder,
        },
        None,
    ),
    "evbmf": (tune_ext.evbmf, {"matrix": np.eye(3), "threshold": "published"}, None),
    "knowledge_gain": (
        tune_ext.knowledge_gain,
        {"weight": np.ones((2, 2, 3, 3)), "groups": 1, "transposed": False},
        None,
    ),
    "find_lr": (
        tune_ext.find_lr,
        {
            "model": network(),
            "loss_fn": torch.nn.functional.cross_entropy,
            "loader": loader(),
            "steps": 3,
            "bound": 1.0,
            "loss": "mse",
            "lower": 0.0,
            "upper": 10.0,
            "max_rungs": 1,
            "accumulate": 1,
            "clip_norm": 1.0,
            "transform": "log",
            "device": "cpu",
            "progress": False,
            **ladder,
        },
        None,
    ),
    "learning_rate_bound": (
        tune_ext.learning_rate_bound,
        {
            "batches": [np.ones((4, 3))],
            "loss": "mse",
            "method": "trace",
            "bias": True,
            "iterations": 9,
            "tolerance": 1e-3,
            "seed": 0,
        },
        None,
    ),
    "bracket_table": (
        brackets.bracket_table,
        {"max_budget": 27, "reduction_factor": 3, "min_budget": 1, "rounding": "formula"},
        None,
    ),
    "importance": (
        importance.importance,
        {
            "space": config_space(),
            "configs": CONFIGS,
            "values": [c["x"] for c in CONFIGS],
            "n_trees": 2,
            "seed": 0,
            "mode": "min",
            "failed": "worst",
        },
        None,
    ),
    "DagMLP": (
        weightless(models.DagMLP),
        {"dag": "1", "inputs": 4, "width": 4, "classes": 2, "activation": "relu"},
        None,
    ),
    "CellNetwork": (
        weightless(models.CellNetwork),
        {
            "cell": "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|skip_connect~2|",
            "channels": 1,
            "classes": 2,
            "width": 2,
            "cells": 1,
        },
        None,
    ),
    "wide_resnet": (
        weightless(models.wide_resnet),
        {"depth": 10, "width": 1, "channels": 1, "classes": 2},
        None,
    ),
    "DagCNN": (
        weightless(models.DagCNN),
        {"dag": "2_02", "channels": 1, "width": 4, "classes": 3, "kernel_size": 3, "stride": 1},
        None,
    ),
    "random_dags": (models.random_dags, {"nodes": 4, "count": 2, "seed": 0}, None),
    "plan_of_dag": (plan_of_dag, {"dag": "1", "inputs": 4, "width": 4, "classes": 2}, None),
    "resize": (resizing.resize, {"images": np.zeros((1, 1, 8, 8), np.uint8), "size": 4}, None),
    "growth_space": (spaces.growth_space, {"flat": True, "limits": {"filters": (4, 8)}}, None),
    "joint_space": (spaces.joint_space, {"limits": {}, "part": "joint"}, None),
    "Study": (
        study.Study,
        {
            "title": "t",
            "tasks": (study.TaskSpec("digits-cnn"),),
            "methods": ("random",),
            "seeds": (0,),
            "budget": 9,
            "final_seeds": 1,
            "stall_seconds": 9.0,
            "cell_seconds": 9.0,
            "unit": "epochs",
            "workers": 1,
        },
        lambda made: (made.cells(), made.settings()),
    ),
    "TaskSpec": (
        study.TaskSpec,
        {"name": "digits-cnn", "options": {}, "label": "", "budget": 9, "methods": ("random",)},
        lambda made: made.create(),
    ),
    "Place": (
        Place,
        {"address": "auto", "storage": "/tmp", "cpus_per_trial": 1.0, "gpus_per_trial": 0.0},
        None,
    ),
    "critical_difference": (
        stats.critical_difference,
        {"scores": RATES, "methods": ["a", "b", "c"], "alpha": 0.05},
        None,
    ),
    "bootstrap_iqm": (
        stats.bootstrap_iqm,
        {"groups": [[0.1, 0.2], [0.3]], "resamples": 9, "level": 0.95, "seed": 0},
        None,
    ),
    "wilcoxon_holm": (stats.wilcoxon_holm, {"scores": RATES, "methods": "abc"}, None),
}


# Found by these tests when they ran for longer.
KNOWN = [
    lambda: spaces.growth_space(flat=np.array([1.0, 2.0])),
    lambda: stats.critical_difference(RATES, None),
    lambda: stats.bootstrap_iqm([[0.1, 0.2], [0.3]], level=Fraction(1, 3)),
    lambda: suggests(
        tune_ext.BOHBSearch({"lr": tune.uniform(0, 1e308)}, metric="loss", mode="min")
    ),
    lambda: tune_ext.repair_experiment(b"no/such"),
    lambda: tune_ext.HyperBand(max_t=9, reduction_factor=1 + 1e-9),
    lambda: brackets.bracket_table(1e308, 1.5),
    lambda: brackets.bracket_table(9, 3, min_budget=1e-300),
    lambda: resolve_device(2**63),
]


@pytest.mark.parametrize("made", KNOWN)
def test_what_was_not_clear_once(made):
    clear(made)


@pytest.mark.parametrize("name", MADE)
@fuzz(8)
@given(data=st.data())
def test_arguments_of_any_kind(name, data):
    make, sound, use = MADE[name]
    wrong = st.dictionaries(
        st.sampled_from(sorted(sound)), st.one_of(numbers, values), min_size=1, max_size=2
    )
    arguments = {**sound, **data.draw(wrong)}

    def made():
        thing = make(**arguments)
        if use is not None:
            use(thing)

    clear(made)


@pytest.mark.parametrize("name", MADE)
def test_the_sound_arguments_are_sound(name):
    make, sound, use = MADE[name]
    thing = make(**sound) if name != "find_lr" else None
    if use is not None:
        use(thing)
