"""A training counted in seconds as what Ray trains: one step is one cycle of the learning rate.

tune.Tuner(
    tune.with_parameters(TimedTrainable, seed=0, task=TaskSpec("cifar10-joint", {
        "unit": "seconds", "budgets": [400, 1200, 3600, 10800], "device": "cuda"})),
    tune_config=tune.TuneConfig(
        search_alg=BOHBSearch(joint_space(), time_attr="train_seconds"),
        scheduler=HyperBand("train_seconds", max_t=10800, min_t=400), ...))
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Trainable
from ray.tune.result import SHOULD_CHECKPOINT

from tune_ext._checks import check_positive
from tune_ext._sealed import seal_bytes, unseal_bytes
from tune_ext._warm_restarts import CosineRestarts
from tune_ext.benchmark._run_files import check_no_pickle
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.tasks._joint_task import JointTask
from tune_ext.errors import InvalidTypeError, StateError
from tune_ext.raytune._base import RESERVED_KEY

if TYPE_CHECKING:
    from tune_ext.benchmark.tasks._recipe import RecipeRun

__all__ = ["TimedTrainable", "load_run"]

_FILE = "run.pt"


class TimedTrainable(Trainable):  # type: ignore[misc] # Ray's classes are untyped
    """A task of the joint search, trained from the end of one cycle to that of the next.

    It reports there, where a network is at its best, and asks Ray for a checkpoint, from which a
    promoted trial continues. Every budget of the task is such an end, overshot by one batch at
    most: give a scheduler the same budgets. A trial ends with the last one, or when it diverges.

    Results have, beside the metrics of `TaskRun.train_epoch`:

    * `train_seconds`, the training so far without validation and saving, which is what a
      scheduler is to count (``HyperBand(time_attr="train_seconds")``);
    * `restart`, whether a cycle has ended there (a result between is that of a worse network);
    * `epoch`, those that are over, and `parameters` of the network.

    `tune.with_parameters` passes the arguments of `setup`.
    """

    def setup(
        self,
        config: dict[str, Any],
        task: TaskSpec,
        seed: int = 0,
        report_seconds: float | None = None,
    ) -> None:
        """Start the first run.

        Args:
            config: Ray's configuration of the trial.
            task: What to train: a task of the joint search.
            seed: Of the data split, the weights and the batches.
            report_seconds: Report after so much training, too, and not only where cycles end.

        Raises:
            InvalidTypeError: The task is another one.
            InvalidValueError: A value is impossible.
        """
        made = task.create()
        if not isinstance(made, JointTask):
            raise InvalidTypeError(f"task must be one of the joint search, got {task.name!r}")
        every = math.inf if report_seconds is None else report_seconds
        if not math.isinf(every):
            check_positive("report_seconds", every, below=math.inf)
        self._task, self._seed, self._every = made, seed, every
        self._restarts: CosineRestarts = made.restarts
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        from tune_ext.models import count_parameters

        values = {k: v for k, v in config.items() if k != RESERVED_KEY}
        self._run: RecipeRun = self._task.start(values, seed=self._seed)  # type: ignore[assignment]
        self._parameters = count_parameters(lambda: self._task.build(values))

    def step(self) -> dict[str, Any]:
        """Train to the end of the cycle, or until there is something to report."""
        run, end = self._run, self._restarts.next_boundary(self._run.position)
        if math.isinf(end):  # restored after its last result
            metrics = run.measure()
        else:
            metrics = run.train_to(end, across=True, seconds=self._every)
        next_end = self._restarts.next_boundary(run.position)
        return {
            **metrics,
            "epoch": run.epoch,
            "train_seconds": run.train_seconds,
            "restart": next_end > end,
            "parameters": self._parameters,
            "done": math.isinf(next_end) or bool(metrics["diverged"]),
            SHOULD_CHECKPOINT: next_end > end,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the run's state."""
        import torch

        whole = io.BytesIO()
        torch.save(self._run.state_dict(), whole)
        Path(checkpoint_dir, _FILE).write_bytes(seal_bytes(whole.getvalue()))

    def restore(self, checkpoint_path: Any) -> None:
        """As Ray's, for a checkpoint of ours alone."""
        check_no_pickle(checkpoint_path)
        super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on where the state was written."""
        self._run.load_state_dict(load_run(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start over with another configuration, in this process."""
        del self._run  # a GPU may have no room for two networks
        self._begin(new_config)
        return True


def load_run(checkpoint: str | Path) -> dict[str, Any]:
    """The state of a run in the folder of a checkpoint, for `TaskRun.load_state_dict`.

    Raises:
        StateError: It holds no such state.
    """
    import torch

    try:
        data, _ = unseal_bytes(Path(checkpoint, _FILE).read_bytes())
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's advice is to trust the file
        told = "holds something else than tensors and plain values; it was left alone"
        raise StateError(f"{checkpoint} {told}") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise StateError(f"{checkpoint} holds no run of the joint search: {error}") from error
    if not isinstance(state, dict):
        raise StateError(f"{checkpoint} holds no run of the joint search")
    return state
