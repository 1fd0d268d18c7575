"""The code of the guides runs as it stands."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "learning-rate.md"

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
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert (tmp_path / "ladder.png").stat().st_size > 10_000
    assert names["scheduler"].last_epoch == 4
    assert Trainer.last.scheduler.last_epoch == 3 * 16
    assert Trainer.last.scheduler.get_last_lr()[0] <= names["search"].lr
