"""A torch model whose trials find their own learning rate: the pattern of the documentation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tune_ext import LossMonitor, resolve_lr

RUNG = 20
"""Steps of a rung; an epoch has 40."""


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(640, 8, generator=generator)
    y = torch.tanh(x @ torch.randn(8, 1, generator=generator))
    y = y + 0.3 * torch.randn(y.shape, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=generator)


def function(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, config["width"]), nn.Tanh(), nn.Linear(config["width"], 1))
    loader, loss_fn, epoch = data(), nn.MSELoss(), 0
    monitor = LossMonitor(config)
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"))
        model.load_state_dict(state["model"])
        monitor.load_state_dict(state["monitor"])
        epoch = state["epoch"]
    searched = monitor.spent
    optimizer = torch.optim.SGD(model.parameters(), momentum=config.get("momentum", 0.0), lr=1.0)
    lr = monitor.resolve(resolve_lr, model, loss_fn, loader, optimizer=optimizer, steps=RUNG)
    if checkpoint:
        optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        group["lr"] = lr
    _note(config, epoch, lr, monitor.spent - searched)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
        epoch += 1
        _disturb(config, epoch)
        with tempfile.TemporaryDirectory() as folder:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "monitor": monitor.state_dict(),
                "epoch": epoch,
            }
            torch.save(state, Path(folder, "state.pt"))
            spent = {"epochs_spent": monitor.epochs(len(loader)), "epoch": epoch}
            result = {"loss": loss.item(), **spent, **monitor.report()}
            tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


def _note(config: dict[str, Any], epoch: int, lr: float, steps: int) -> None:
    """Leave a line for each life of the trial: where it starts, its rate, steps of a search."""
    trial = tune.get_context().get_trial_id()
    entry = {"trial": trial, "width": config["width"], "epoch": epoch, "lr": lr, "search": steps}
    with Path(config["home"], "lives.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def lives(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(home, "lives.jsonl").read_text().splitlines()]


def _disturb(config: dict[str, Any], epoch: int) -> None:
    mark = Path(config["home"], "crash")
    if config.get("crash") == epoch and not mark.exists():
        mark.touch()
        raise RuntimeError("this life ends here")
