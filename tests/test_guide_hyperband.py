"""The code of the guide to HyperBand and BOHB runs as it stands, without Ray's processes."""

from __future__ import annotations

import re
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch
from ray import tune
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "hyperband-bohb.md"

pytestmark = pytest.mark.usefixtures("one_thread")


def played(trainable, config):
    """The results of one trial, which goes on from its third checkpoint in a second life."""
    results, saved = [], []

    def report(metrics, checkpoint):
        results.append({**metrics, "training_iteration": len(results) + 1, "config": config})
        saved.append(Path(checkpoint.path, "state.pt").read_bytes())
        if len(saved) == 3:
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "report", report)
        patch.setattr(tune, "get_checkpoint", lambda: None)
        with pytest.raises(InterruptedError):
            trainable(config)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "state.pt").write_bytes(saved[2])
            checkpoint = tune.Checkpoint.from_directory(folder)
            patch.setattr(tune, "get_checkpoint", lambda: checkpoint)
            trainable(config)
    return results


def run(trainable, config, metric, mode, search_alg, scheduler, num_samples, reuse_actors):
    assert search_alg.set_search_properties(metric, mode, config)
    assert scheduler.set_search_properties(metric, mode)
    best = search_alg.suggest("a")
    results = played(trainable, best)
    assert [r["training_iteration"] for r in results] == list(range(1, 10))
    for result in results:
        search_alg.on_trial_result("a", result)
    return types.SimpleNamespace(best_config=best)


class Tuner:
    def __init__(self, trainable, param_space, tune_config, run_config):
        assert tune_config.scheduler.set_search_properties(tune_config.metric, tune_config.mode)
        Tuner.last, self.trainable, self.space = self, trainable, param_space
        self.path = str(Path(run_config.storage_path, run_config.name))

    def fit(self):
        config = {name: domain.sample() for name, domain in self.space.items()}
        result = played(self.trainable, config)[-1]
        best = types.SimpleNamespace(config=config, metrics=result)
        return types.SimpleNamespace(get_best_result=lambda: best)

    @classmethod
    def restore(cls, path, trainable):
        assert (path, trainable) == (cls.last.path, cls.last.trainable)
        return cls.last


def test_it_runs(tmp_path, monkeypatch, capsys):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    project = types.ModuleType("my_project")
    project.make_model = lambda width: nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2)
    )
    project.make_loader = lambda: DataLoader(data, 16)
    monkeypatch.setitem(sys.modules, "my_project", project)
    monkeypatch.setattr(tune, "run", run)
    monkeypatch.setattr(tune, "Tuner", Tuner)
    names = {"storage": tmp_path}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert len(blocks) == 5
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert "rungs at 400, 1200, 3600" in names["scheduler"].debug_string()
