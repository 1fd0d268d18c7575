"""Trainables for ExpTest: linear regression by mini-batches, seeded, in numpy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from tests.raytune.trainables import note
from tune_ext import Ladder, LossMonitor
from tune_ext.exptest import RungResult, RungTest

STEPS = 60
SPACE = {"lr": tune.loguniform(1e-5, 10.0)}


def losses(lr: float) -> Iterator[float]:
    """The losses of plain SGD; always from the same start, over the same batches.

    Rates above about 0.25 diverge.
    """
    generator = np.random.default_rng(0)
    truth, weights = generator.normal(size=8), np.zeros(8)
    while True:
        x = generator.normal(size=(16, 8)) * np.linspace(0.2, 1.5, 8)
        error = x @ weights - x @ truth - 0.3 * generator.normal(size=16)
        with np.errstate(over="ignore", invalid="ignore"):  # never around a yield: numpy crashes
            loss = float(np.mean(error**2))
            weights = weights - lr * 2 * x.T @ error / 16
        yield loss


def rung_result(lr: float, steps: int = STEPS) -> RungResult:
    """What a rung at this rate shows."""
    test = RungTest(steps)
    for loss in losses(lr):
        if test.update(loss):
            break
    return test.result()


def serial(bound: float = 0.01, *, crash_above: float = float("inf"), **options: Any) -> Ladder:
    """The ladder, climbed by a single worker without Ray."""
    ladder = Ladder(bound, **{"lower": 1e-5, "upper": 10.0, "steps": STEPS, **options})
    while not ladder.finished:
        for rung in ladder.ask():
            crashed = rung.lr > crash_above
            ladder.tell(rung.index, None if crashed else rung_result(rung.lr, ladder.steps))
    return ladder


def function(config: dict[str, Any], *, final_steps: int = 40) -> None:
    """Train; report every 20 steps. A rung ends by itself, and so does a final trial."""
    monitor = LossMonitor(config)
    ours = config["tune_ext"]
    crash = config.get("crash_above", float("inf"))
    for step, loss in enumerate(losses(config["lr"]), start=1):
        ended = monitor.step(loss) or (ours["role"] == "final" and step == final_steps)
        if config["lr"] > crash:
            raise RuntimeError("too large")
        if ended or step % 20 == 0:
            time.sleep(config.get("sleep", 0))
            here = {"trial": tune.get_context().get_trial_id(), "step": step, "rung": ours["rung"]}
            note(config, **here)
            tune.report({"loss": loss, **monitor.report()})
        if ended:
            return


def nested(config: dict[str, Any]) -> None:
    """The same for a rate that is not at the top of the configuration."""
    function({**config, "lr": config["optimizer"]["lr"]})


def fails_once(config: dict[str, Any]) -> None:
    """End the first life of the first rung in the middle."""
    mark = Path(config["home"], "failed")
    if config["tune_ext"]["rung"] == 0 and not mark.exists():
        mark.touch()
        monitor = LossMonitor(config)
        for loss in itertools.islice(losses(config["lr"]), 20):
            monitor.step(loss + 100)
        tune.report({"loss": loss, **monitor.report()})
        raise RuntimeError("this life ends here")
    function(config)


def cancelled_ahead(config: dict[str, Any]) -> None:
    """Train 20 steps, then: the last rung that is needed waits for one that is not.

    That one waits for the final trial, and would train on if nobody had cancelled it.
    """
    ours, home = config["tune_ext"], Path(config["home"])
    if ours["role"] == "final":
        (home / "final").touch()
    monitor = LossMonitor(config)
    for step, loss in enumerate(losses(config["lr"]), start=1):
        ended = monitor.step(loss)
        if step % 20 == 0:
            note(config, rung=ours["rung"], step=step)
            tune.report({"loss": loss, **monitor.report()})
        if ended or step == 100:
            return
        if step == 20 and ours["role"] == "rung":
            needed = config["needed"]
            if ours["rung"] not in needed:
                (home / "ahead").touch()
                wait_for(home / "final")
            elif ours["rung"] == needed[-1]:
                wait_for(home / "ahead")


def wait_for(mark: Path) -> None:
    for _ in range(5000):
        if mark.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody left {mark.name}")


def nothing(config: dict[str, Any]) -> None:
    """Report no statistics."""
    for _ in range(50):
        tune.report({"loss": 1.0})
