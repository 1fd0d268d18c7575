"""Tasks as what Ray trains: a class trainable, and one for the simulated clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from tune_ext._loss_monitor import LossMonitor
from tune_ext.benchmark import tasks
from tune_ext.benchmark._ledger import RemotePermits
from tune_ext.benchmark._permits import Permits
from tune_ext.benchmark._run_files import check_no_pickle, read_run, write_run
from tune_ext.benchmark.study import TaskSpec
from tune_ext.errors import StateError
from tune_ext.raytune._base import RESERVED_KEY

__all__ = ["LookupTrainable", "TaskTrainable", "permits_of"]


def permits_of(journal: str) -> Path:
    """Where the permits are counted whose epochs are written into `journal`."""
    return Path(f"{journal}.permits")


class TaskTrainable(Trainable):  # type: ignore[misc] # Ray's classes are untyped
    """A task as a class trainable: one step is one epoch, and a reset costs next to nothing.

    `reset_config` starts a new run in the same process, where torch is imported and the
    data is loaded, so that with `reuse_actors=True` a trial costs its training. A run that
    has diverged, or has ended because there is nothing more to gain, ends its own trial.
    `tune.with_parameters` passes the arguments of `setup`.
    """

    def setup(
        self,
        config: dict[str, Any],
        task: TaskSpec,
        seed: int,
        journal: str | None = None,
        permits: int | None = None,
        ledger: Any = None,
    ) -> None:
        """Remember the task, and start the first run.

        Args:
            config: Ray's configuration of the trial.
            task: What to train.
            seed: Of the data split, the weights and the batches.
            journal: A file that gets one line for every epoch trained, whatever Ray makes
                of its result: the count that budgets are checked against.
            permits: How many epochs all trials together may train, counted beside the
                journal; None where one trial runs at a time and the stopper counts.
            ledger: The actor that counts instead where trials share no file.
        """
        self._task, self._seed, self._journal = task.create(), seed, journal
        self._permits, self._ledger = None, ledger
        if journal is not None and permits is not None:
            self._permits = Permits(permits_of(journal), permits)
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        values = {k: v for k, v in config.items() if k != RESERVED_KEY}
        self._run = tasks.start(self._task, values, seed=self._seed)
        self._loss_monitor = LossMonitor(config) if self._task.loss is not None else None

    def step(self) -> dict[str, Any]:
        """Train one epoch, if the budget has one left."""
        remote = None
        if self._ledger is not None:
            remote = RemotePermits(self._ledger, self.trial_id)
            self._catch_up(remote.catch_up())
        if not self._may_train(remote):
            return {"epoch": self._run.epoch, "train_seconds": 0.0, "done": True, "over": True}
        started, processed = time.perf_counter(), time.process_time()
        try:
            metrics = self._run.train_epoch()
        except BaseException:
            if (permits := remote or self._permits) is not None:
                permits.give_back()
            raise
        seconds, processed = time.perf_counter() - started, time.process_time() - processed
        if remote is not None:
            remote.trained()
        if self._journal is not None:
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(f"{self.trial_id} {self._run.epoch}\n")
        return {
            **metrics,
            "epoch": self._run.epoch,
            "train_seconds": seconds,
            "cpu_seconds": processed,
            "done": bool(metrics.get("diverged", False) or metrics.get("ended", False)),
            "found": {"lr": self._run.lr} if isinstance(self._run, tasks.OwnRateRun) else {},
            **_report_losses(self._loss_monitor, self._run),
        }

    def _may_train(self, remote: RemotePermits | None) -> bool:
        if remote is not None:
            return remote.wait()
        return self._permits is None or self._permits.wait(Path(str(self._journal)))

    def _catch_up(self, epoch: int) -> None:
        """Train up to an epoch whose result was told before this trial's process was lost."""
        while self._run.epoch < epoch:
            self._run.train_epoch()
            _report_losses(self._loss_monitor, self._run)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the run's state, as data: see `_run_files`."""
        monitor = None if self._loss_monitor is None else self._loss_monitor.state_dict()
        write_run(checkpoint_dir, {"run": self._run.state_dict(), "monitor": monitor})

    def restore(self, checkpoint_path: Any) -> None:
        """As Ray's, for a checkpoint of ours alone."""
        check_no_pickle(checkpoint_path)
        super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on where the state was written."""
        state = read_run(checkpoint)
        try:
            run, monitor = state["run"], state["monitor"]
        except KeyError as error:
            raise StateError(f"{checkpoint} holds no run of a comparison: no {error}") from None
        self._run.load_state_dict(run)
        if self._loss_monitor is not None:
            self._loss_monitor.load_state_dict(monitor)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start over with another configuration, in this process."""
        del self._run  # a GPU may have no room for two networks
        self._begin(new_config)
        return True


class LookupTrainable:
    """A simulated task for `simulation.simulate`: one step is one epoch that is looked up.

    Args:
        task: Its `train_epoch` says how many `seconds` an epoch costs.
        seed: Of the runs.
        config: Ray's configuration of the trial.
    """

    def __init__(self, task: tasks.Task, seed: int, config: Mapping[str, Any]) -> None:
        values = {k: v for k, v in config.items() if k != RESERVED_KEY}
        self._run = tasks.start(task, values, seed=seed)
        self._loss_monitor = LossMonitor(config) if task.loss is not None else None

    def step(self) -> dict[str, Any]:
        """Look up one epoch."""
        metrics = dict(self._run.train_epoch())
        found = {"lr": self._run.lr} if isinstance(self._run, tasks.OwnRateRun) else {}
        done = bool(metrics.get("diverged", False) or metrics.get("ended", False))
        told = {"epoch": self._run.epoch, "done": done, "found": found}
        return {**metrics, **told, **_report_losses(self._loss_monitor, self._run)}

    def state(self) -> Any:
        """What `load` needs."""
        monitor = None if self._loss_monitor is None else self._loss_monitor.state_dict()
        return {"run": self._run.state_dict(), "monitor": monitor}

    def load(self, state: Any) -> None:
        """Go on from there."""
        self._run.load_state_dict(state["run"])
        if self._loss_monitor is not None:
            self._loss_monitor.load_state_dict(state["monitor"])


def _report_losses(monitor: LossMonitor | None, run: tasks.TaskRun) -> dict[str, Any]:
    """What `tune_ext.LossMonitor` has to say of the losses of the run's last epoch."""
    if monitor is None:
        return {}
    for loss in run.step_losses:
        monitor.step(loss)
    return monitor.report()
