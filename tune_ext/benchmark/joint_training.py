"""The tasks of the joint search as what Ray trains in budgets of seconds.

`TaskTrainable` reports epochs and knows no other time. Published budgets are seconds of training,
which end anywhere in an epoch; here a trial reports where a cycle of the learning rate ends.

    tune.Tuner(
        tune.with_parameters(JointTrainable, task=TaskSpec("cifar10-joint", {
            "unit": "seconds", "budgets": [400, 1200, 3600, 10800], "device": "cuda"})),
        tune_config=tune.TuneConfig(
            search_alg=BOHBSearch(joint_space(), time_attr="train_seconds"),
            scheduler=HyperBand("train_seconds", max_t=10800, min_t=400), ...))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ray.tune import Trainable
from ray.tune.result import SHOULD_CHECKPOINT

from tune_ext._checks import check_positive
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.tasks.joint import JointTask
from tune_ext.errors import InvalidTypeError, StateError
from tune_ext.raytune._base import RESERVED_KEY

if TYPE_CHECKING:
    from tune_ext.benchmark.tasks._recipe import RecipeRun

__all__ = ["JointTrainable", "load_run"]

_FILE = "run.pt"


class JointTrainable(Trainable):  # type: ignore[misc] # Ray's classes are untyped
    """A `tune_ext.benchmark.tasks.joint.JointTask` that reports at the end of each epoch and cycle.

    Every budget of the task ends a cycle, so a result is overshot by one batch at most: give a
    scheduler the same budgets. Such a result is saved as well, so that a promoted trial continues
    from there; one that Ray pauses is saved in any case. A trial ends with the last budget, or
    when it diverges.

    Results have, beside the metrics of `TaskRun.train_epoch`:

    * `epoch`, those that are over;
    * `train_seconds`, of all of the trial's training, without validation and saving: the
      `time_attr` of schedulers and of `BOHBSearch`;
    * `position`, in the task's unit, and `restart`, whether a cycle has ended there;
    * `parameters`, how many the network has.

    `tune.with_parameters` passes the arguments of `setup`.
    """

    def setup(
        self,
        config: dict[str, Any],
        task: TaskSpec,
        seed: int = 0,
        report_seconds: float | None = None,
    ) -> None:
        """Remember the task, and start the first run.

        Args:
            config: Ray's configuration of the trial.
            task: What to train.
            seed: Of the data split, the weights and the batches.
            report_seconds: Report after so much training, and not where epochs end.

        Raises:
            InvalidTypeError: The task is none of the joint search.
            InvalidValueError: A value is impossible.
        """
        made = task.create()
        if not isinstance(made, JointTask):
            raise InvalidTypeError(f"task must be one of the joint search, got {made.name!r}")
        if report_seconds is not None:
            check_positive("report_seconds", report_seconds, below=math.inf)
        self._task, self._seed, self._every = made, seed, report_seconds
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        from tune_ext.models import count_parameters

        values = {k: v for k, v in config.items() if k != RESERVED_KEY}
        self._run = cast("RecipeRun", self._task.start(values, seed=self._seed))
        self._parameters = count_parameters(lambda: self._task.build(values))

    def step(self) -> dict[str, Any]:
        """Train until there is something to report."""
        run, cycles = self._run, self._task.restarts
        end = cycles.next_boundary(run.position)
        if self._every is None:
            metrics = run.train_to(end)
        else:
            metrics = run.train_to(end, across=True, seconds=self._every)
        next_end = cycles.next_boundary(run.position)
        restart = next_end > end
        return {
            **metrics,
            "epoch": run.epoch,
            "position": run.position,
            "train_seconds": run.train_seconds,
            "restart": restart,
            "parameters": self._parameters,
            "done": math.isinf(next_end) or bool(metrics["diverged"]),
            SHOULD_CHECKPOINT: restart,
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


def load_run(folder: str | Path) -> dict[str, Any]:
    """The state of a run from a checkpoint of `JointTrainable`, on the CPU, for `load_state_dict`.

    Args:
        folder: Of the checkpoint.

    Raises:
        StateError: It holds no such state.
    """
    import torch

    try:
        state = torch.load(Path(folder, _FILE), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise StateError(f"{folder} holds no run of the joint search: {error}") from error
    if not isinstance(state, dict):
        raise StateError(f"{folder} holds no run of the joint search")
    return state
