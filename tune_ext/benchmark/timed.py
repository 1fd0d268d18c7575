"""A training counted in seconds as what Ray trains: one step is one cycle of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Trainable

from tune_ext._warm_restarts import CosineRestarts
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.tasks.joint import JointTask
from tune_ext.errors import InvalidTypeError
from tune_ext.raytune._base import RESERVED_KEY

if TYPE_CHECKING:
    from tune_ext.benchmark.tasks._recipe import RecipeRun

__all__ = ["TimedTrainable", "load_run"]

_FILE = "run.pt"


class TimedTrainable(Trainable):  # type: ignore[misc] # Ray's classes are untyped
    """A task of the joint search, trained from the end of one cycle to that of the next.

    It reports there, where a network is at its best, and has a checkpoint there; every budget of
    the task is such an end. Results have `train_seconds`, the training so far without validation,
    which is what a scheduler is to count (``HyperBand(time_attr="train_seconds")``).
    `tune.with_parameters` passes the arguments of `setup`.
    """

    def setup(self, config: dict[str, Any], task: TaskSpec, seed: int) -> None:
        """Start the first run.

        Args:
            config: Ray's configuration of the trial.
            task: What to train: a task of the joint search.
            seed: Of the data split, the weights and the batches.

        Raises:
            InvalidTypeError: The task is another one.
        """
        made = task.create()
        if not isinstance(made, JointTask):
            raise InvalidTypeError(f"task must be one of the joint search, got {task.name!r}")
        self._task, self._seed = made, seed
        self._restarts: CosineRestarts = made.restarts
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        from tune_ext.models import count_parameters

        values = {k: v for k, v in config.items() if k != RESERVED_KEY}
        self._run: RecipeRun = self._task.start(values, seed=self._seed)  # type: ignore[assignment]
        self._parameters = count_parameters(lambda: self._task.build(values))

    def step(self) -> dict[str, Any]:
        """Train to the end of the cycle."""
        run, end = self._run, self._restarts.next_boundary(self._run.position)
        over = math.isinf(end)
        metrics = {} if over else run.train_to(end, across=True)
        return {
            **metrics,
            "epoch": run.epoch,
            "train_seconds": run.train_seconds,
            "parameters": self._parameters,
            "done": over or bool(metrics["diverged"]),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the run's state."""
        import torch

        torch.save(self._run.state_dict(), Path(checkpoint_dir, _FILE))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on where the state was written."""
        self._run.load_state_dict(load_run(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start over with another configuration, in this process."""
        self._begin(new_config)
        return True


def load_run(checkpoint: str | Path) -> dict[str, Any]:
    """The state of a run in the folder of a checkpoint, for `TaskRun.load_state_dict`."""
    import torch

    state: dict[str, Any] = torch.load(
        Path(checkpoint, _FILE), map_location="cpu", weights_only=True
    )
    return state
