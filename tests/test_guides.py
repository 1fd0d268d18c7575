"""The code of the guides runs as it stands."""

from __future__ import annotations

import itertools
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from ray import tune
from ray.tune.search.sample import Domain
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tune_ext.brackets import bracket_table

GUIDES = Path(__file__).parents[1] / "docs" / "guides"

pytestmark = pytest.mark.usefixtures("one_thread")


class LightningModule(nn.Module):
    def log(self, name, value):
        self.logged = {name: value.detach()}


class Trainer:
    """What Lightning does with a scheduler that monitors a loss at every step."""

    def __init__(self, max_epochs):
        self.max_epochs = max_epochs

    def fit(self, module, loader):
        configured = module.configure_optimizers()
        how, optimizer = configured["lr_scheduler"], configured["optimizer"]
        assert how["interval"] == "step"
        assert how["reduce_on_plateau"]
        for _ in range(self.max_epochs):
            for index, batch in enumerate(loader):
                optimizer.zero_grad()
                module.training_step(batch, index).backward()
                optimizer.step()
                how["scheduler"].step(module.logged[how["monitor"]])
        self.scheduler = how["scheduler"]
        Trainer.last = self


class Tuner:
    """What Ray does with a searcher and a function, trials one after another in here.

    Four of them, or as many as the searcher has.
    """

    def __init__(self, trainable, param_space, tune_config):
        self.trainable, self.space, self.config = trainable, param_space, tune_config
        self.results = []

    def fit(self):
        search = self.config.search_alg
        assert search.set_search_properties(None, None, self.space)
        constants = {k: v for k, v in self.space.items() if not isinstance(v, Domain)}
        for number in itertools.count():
            if number == (4 if self.config.num_samples > 0 else None):
                break
            suggested = search.suggest(f"trial{number}")
            if suggested == "FINISHED":
                break
            config = {**constants, **suggested}
            with pytest.MonkeyPatch.context() as patch:
                reports = []
                patch.setattr(tune, "report", reports.append)
                self.trainable(config)
            result = {**reports[-1], "training_iteration": len(reports), "config": config}
            search.on_trial_complete(f"trial{number}", result)
            self.results.append(types.SimpleNamespace(config=config, metrics=result))
        return self

    def get_best_result(self, metric, mode):
        assert mode == "min"
        return min(self.results, key=lambda result: result.metrics[metric])


def run_blocks(guide, names):
    """Run the Python of a guide in one namespace; return how many blocks it has."""
    path = GUIDES / guide
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(path), "exec"), names)
    return len(blocks)


def test_the_learning_rate_guide_runs(tmp_path, monkeypatch):
    lightning = types.ModuleType("lightning")
    lightning.LightningModule, lightning.Trainer = LightningModule, Trainer
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)
    names = {
        "model": nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
        "loader": DataLoader(TensorDataset(x, y), 16, shuffle=True),
        "dictionaries": [
            {"image": a, "label": b} for a, b in zip(x.split(32), y.split(32), strict=True)
        ],
        "loss_fn": functional.cross_entropy,
        "epochs": 3,
        "device": "cpu",
    }
    assert run_blocks("learning-rate.md", names) == 8
    assert (tmp_path / "ladder.png").stat().st_size > 10_000
    assert names["scheduler"].last_epoch == 4
    assert Trainer.last.scheduler.last_epoch == 3 * 16
    assert Trainer.last.scheduler.get_last_lr()[0] <= names["search"].lr


def test_the_architecture_scaling_guide_runs(monkeypatch, capsys):
    monkeypatch.setattr(tune, "Tuner", Tuner)
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    y = (x @ torch.randn(64, 10)).argmax(1)
    names = {
        "loader": DataLoader(TensorDataset(x, y), 32, shuffle=True),
        "loss_fn": functional.cross_entropy,
        "epochs": 1,
    }
    assert run_blocks("architecture-scaling.md", names) == 4
    best, longer, plan = names["best"], names["longer"], names["search"].plan
    assert 0 < names["base_lr"] < 10
    (group,) = names["optimizer"].param_groups
    factor = names["large_plan"].factor(names["small_plan"])
    assert group["lr"] == pytest.approx(names["base_lr"] * factor)
    assert 1e-2 <= best["tune_ext"]["base_lr"] <= 10
    assert longer["lr"] == pytest.approx(
        best["tune_ext"]["base_lr"] * plan(longer).factor(names["small_plan"])
    )
    assert longer["lr"] < best["lr"]
    assert " times " in capsys.readouterr().out


def test_the_joint_search_guide_runs_and_its_hours_are_right(monkeypatch, capsys):
    made = []

    class Recorder:
        def __init__(self, trainable, tune_config):
            made.append((trainable, tune_config))

        def fit(self):
            return []

    monkeypatch.setattr(tune, "Tuner", Recorder)
    names: dict[str, object] = {}
    assert run_blocks("joint-search.md", names) == 2
    assert int(capsys.readouterr().out.split()[1]) == pytest.approx(36.5e6, rel=0.002)
    ((_, config),) = made
    assert config.search_alg.metric == "validation_error"
    table = bracket_table(10_800, 3, min_budget=400, rounding="published")
    assert 8 * sum(rungs[0].size for rungs in table) == config.num_samples
    continued = scratch = 0.0
    for rungs in table:
        before = 0.0
        for rung in rungs:
            continued += rung.size * (rung.budget - before)
            scratch += rung.size * rung.budget
            before = rung.budget
    assert (8 * continued / 3600, 8 * scratch / 3600) == (304, 360)


def test_the_image_growth_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNE_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "Tuner", Tuner)
    torch.manual_seed(0)
    images = torch.randn(96, 1, 8, 8)
    labels = images.mean((1, 2, 3)).argsort().argsort() * 10 // 96

    def validate(model, size):
        assert size in (4, 8)
        return float(sum(parameter.norm() for parameter in model.parameters()).detach())

    names = {"images": images, "labels": labels, "epochs": 1, "validate": validate}
    names["__name__"] = "guide"
    assert run_blocks("image-growth.md", names) == 3
    assert names["small"].shape == (100, 3, 32, 32)
    said = capsys.readouterr().out
    assert "image_size': 8" in said
    assert "correlation" in said
    assert sorted(r.config["image_size"] for r in names["results"].results) == [4] * 12 + [8] * 8
    assert names["search"].set_search_properties("loss", "min", names["tuner"].space)
    assert set(names["search"].suggest("a")) == {"lr", "filters", "image_size"}
    assert capsys.readouterr().out == "12 trials on 4 pixels\n"
