"""ExpTest on a task: how its ladder is laid, and runs that find their own learning rate.

A rung is a whole number of epochs, so that everything is counted in the epochs of the task:
as few as have `RUNG_STEPS` training steps. Nothing here knows of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune_ext.benchmark.tasks._base import Task, TaskRun
from tune_ext.errors import InvalidValueError, StateError
from tune_ext.exptest import Ladder, RungTest, learning_rate_bound

if TYPE_CHECKING:
    from tune_ext.exptest import Explanation

__all__ = ["OwnRateRun", "RungPlan", "no_ladder", "plan_rungs"]

RUNG_STEPS = 30
"""Training steps of a rung at least: enough on tasks as these."""

_STATE_VERSION = 1


@dataclass(frozen=True)
class RungPlan:
    """How the ladder of a task is laid.

    Args:
        bound: The rate of rung 0, from the training inputs.
        epochs: Of a rung.
        steps: Training steps of a rung.
        lower: The smallest rate of the task's space.
        upper: The largest.
    """

    bound: float
    epochs: int
    steps: int
    lower: float
    upper: float

    def ladder(self) -> Ladder:
        """A new ladder."""
        return Ladder(self.bound, steps=self.steps, lower=self.lower, upper=self.upper)


def no_ladder(task: Task) -> str | None:
    """None if ExpTest can search the task's learning rate, else the reason why not."""
    if "lr" not in task.space:
        return f"{task.name} has no learning rate to search among {list(task.space)}"
    if task.loss is None:
        return f"{task.name} does not report the losses of its training steps"
    return None


def plan_rungs(task: Task, seed: int) -> RungPlan:
    """Lay the ladder of a task; loads its data.

    Args:
        task: For which `no_ladder` is None.
        seed: Of the data split.

    Raises:
        InvalidValueError: The task has no learning rate, or does not report its losses.
    """
    reason = no_ladder(task)
    if reason is not None or task.loss is None:
        raise InvalidValueError(reason or "")
    batches = task.training_inputs(seed)
    epochs = min(math.ceil(RUNG_STEPS / len(batches)), task.max_epochs)
    epochs = max(epochs, math.ceil(3 / len(batches)))  # fewer losses are no curve
    rate: Any = task.space["lr"]  # a range of floats
    return RungPlan(
        bound=learning_rate_bound(batches, loss=task.loss),
        epochs=epochs,
        steps=epochs * len(batches),
        lower=float(rate.lower),
        upper=float(rate.upper),
    )


class OwnRateRun:
    """A `TaskRun` that first finds its learning rate by a ladder, then trains with it.

    Every epoch is trained by one call of `train_epoch`, those of the ladder too, so that who
    counts calls counts the whole cost. The training goes on from the chosen rung, which was its
    beginning: the same weights, batches and rate.

    Args:
        task: What is trained.
        config: Its hyper-parameters without "lr".
        seed: As of `Task.start`, for every rung and the training.
    """

    def __init__(self, task: Task, config: Mapping[str, Any], *, seed: int) -> None:
        self._task, self._config, self._seed = task, dict(config), seed
        self._plan = plan_rungs(task, seed)
        self._ladder = self._plan.ladder()
        self._training = False
        self._index = 0
        self._best: TaskRun | None = None
        self._begin()

    def _begin(self) -> None:
        """Start the rung that the ladder needs."""
        (rung,) = self._ladder.ask()
        self._index = rung.index
        self._test = RungTest(self._plan.steps, self._ladder.alpha)
        self._start(rung.lr)

    def _start(self, lr: float) -> None:
        self._lr = lr
        self._run = self._task.start({**self._config, "lr": lr}, seed=self._seed)

    @property
    def lr(self) -> float:
        """The learning rate of the last epoch: that of its rung, or at last the chosen one."""
        return self._lr

    @property
    def epoch(self) -> int:
        """Epochs of the training; 0 while the ladder is climbed."""
        return self._run.epoch if self._training else 0

    @property
    def step_losses(self) -> Sequence[float]:
        """See `TaskRun.step_losses`."""
        return self._run.step_losses

    def explain(self) -> Explanation:
        """Every rung, and what followed from it."""
        return self._ladder.explain()

    def train_epoch(self) -> dict[str, float | bool]:
        """Train one more epoch, of a rung or of the training.

        Returns:
            See `TaskRun.train_epoch`. A rung that diverged is not the run's end; that no rung
            passed is.
        """
        if self._ladder.finished and not self._training:
            self._train_with_the_best()
        elif not self._training and self._ladder.results.get(self._index):
            self._begin()
        metrics = self._run.train_epoch()
        if self._training:
            return metrics
        self._judge(diverged=bool(metrics["diverged"]))
        nothing = self._ladder.finished and self._best is None
        return {**metrics, "diverged": nothing}

    def _judge(self, *, diverged: bool) -> None:
        for loss in self._run.step_losses:
            self._test.update(loss)
        if diverged:
            self._ladder.tell(self._index, None)
        elif self._test.done:
            self._ladder.tell(self._index, self._test.result())
            if self._ladder.best is not None and self._ladder.best.index == self._index:
                self._best = self._run

    def _train_with_the_best(self) -> None:
        best = self._ladder.best
        if best is None or self._best is None:
            return  # diverged for good: the last rung's run reports that again
        self._training = True
        self._lr = best.lr
        self._run, self._best = self._best, None
        if self._run.epoch >= self._task.max_epochs:
            self._start(best.lr)  # the rungs were as long as the training

    def test(self) -> dict[str, float]:
        """See `TaskRun.test`."""
        return self._run.test()

    def state_dict(self) -> dict[str, Any]:
        """See `TaskRun.state_dict`."""
        return {
            "version": _STATE_VERSION,
            "ladder": self._ladder.state_dict(),
            "index": self._index,
            "training": self._training,
            "lr": self._lr,
            "test": self._test.state_dict(),
            "run": self._run.state_dict(),
            "best": None if self._best is None else self._best.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `TaskRun.load_state_dict`.

        Raises:
            StateError: `state` is not of this version, or not of such a run.
        """
        if state.get("version") != _STATE_VERSION or "ladder" not in state:
            raise StateError(
                f"state must be of version {_STATE_VERSION} of a run that finds its own rate"
            )
        self._ladder = Ladder.from_state_dict(state["ladder"])
        self._index, self._training = state["index"], state["training"]
        self._test = RungTest.from_state_dict(state["test"])
        self._best = None
        best = self._ladder.best
        if state["best"] is not None and best is not None:
            self._start(best.lr)
            self._run.load_state_dict(state["best"])
            self._best = self._run
        self._start(state["lr"])
        self._run.load_state_dict(state["run"])
        if self._best is not None and best is not None and best.index == self._index:
            self._best = self._run  # the rung that was just trained is the best so far
