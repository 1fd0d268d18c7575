"""What a tuning task is: the contract between the tasks and whoever runs them.

A `Task` is a description that is cheap to build and to send to another process (by its
name and options); it loads its data when the first run starts. A `TaskRun` is one
training run in progress. Neither knows anything of Ray.

State rules:

* The data split, the initial weights and the order of the batches derive from the seed
  alone, so seed s means the same to every method that is compared (paired seeds).
* Training and choosing see training and validation data; `TaskRun.test` is the only
  access to test data.
* Divergence is a result, not an error: a run whose loss is no longer finite reports
  NaN and `diverged=True`, and does no more work.
* `load_state_dict(state_dict())` continues exactly, also in another process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from ConfigSpace import ConfigurationSpace
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Task", "TaskRun"]


@runtime_checkable
class TaskRun(Protocol):
    """One training run of a task with one configuration and one seed."""

    @property
    def epoch(self) -> int:
        """How many epochs have been trained."""
        ...

    @property
    def step_losses(self) -> Sequence[float]:
        """The mini-batch losses of the last epoch, each from before its step.

        The last one is NaN if the epoch diverged. Only tasks that say what their `loss` is
        need to have them.
        """
        ...

    def train_epoch(self) -> dict[str, float | bool]:
        """Train one more epoch and return its metrics.

        Returns:
            `train_loss` (mean over the epoch's batches), `validation_loss`,
            `validation_error` (in [0, 1]), `diverged`, and, where the task measures it,
            `response`, `response_mean` and `knowledge_gain`. NaN where diverged. `ended`, where
            it is true, ends the training before its full length: there is nothing more to gain.
        """
        ...

    def test(self) -> dict[str, float]:
        """Return `test_error` and `test_loss`: the only access to test data."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that this run needs to go on, as tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the run that wrote `state` stood."""
        ...


class Task(ABC):
    """What is tuned: data, a network and an optimiser, with the space of its parameters.

    Attributes:
        name: The name that `tasks.create` knows.
        description: One line for a listing.
        metric: What a method that sees validation data minimises or maximises.
        mode: "min" or "max".
        max_epochs: The full length of a training run.
        space: The hyper-parameters that are searched.
        default_config: The optimiser's own defaults, for every parameter it has.
        options: JSON-able; `tasks.create(name, **options)` builds an equal task.
        loss: What is trained with, where runs have `TaskRun.step_losses` and the task has
            `training_inputs`; None where they do not. ExpTest needs them.
        simulated: Whether epochs are looked up and not trained: `train_epoch` then reports
            `seconds`, its cost on the simulated clock, and a change of configuration in
            mid-training means nothing.
        measures_response: Whether runs report the response of the network.
        error_name: What `validation_error` and `test_error` are, in words.
        percent: Whether errors are fractions that people read as percentages.
        worst_error: What an evaluation counts as that diverged; None where there is no worst.
        searches_architecture: Whether the configuration decides the network too: there are then
            `build` and `example_input`, and a configuration may say how the weights are first
            drawn: "initialization" is "default" or "scaled" (see `tune_ext.scaling`).
        counts_epochs: Whether runs end with an epoch; else by the seconds that they trained, and
            a comparison cannot share its budget out among them.
        rate_name: The name of the learning rate.
        rate_is_of_default: Whether learning rates that are scaled to an architecture are those
            of the default configuration's; else of the published base.
        image_sizes: The heights and widths that a configuration's "image_size" may grow through,
            the full one last; empty where a configuration says no image size.
        regret_range: The true errors of the best configuration and of the median one, where
            both are known.
    """

    name: str
    description: str
    metric: ClassVar[str] = "validation_error"
    mode: ClassVar[str] = "min"
    loss: ClassVar[Literal["mse", "cross_entropy"] | None] = None
    simulated: ClassVar[bool] = False
    measures_response: bool = True
    searches_architecture: ClassVar[bool] = False
    counts_epochs: bool = True
    rate_name: ClassVar[str] = "lr"
    rate_is_of_default: ClassVar[bool] = False
    error_name: str = "error"
    percent: bool = True
    worst_error: float | None = 1.0
    image_sizes: tuple[int, ...] = ()
    regret_range: tuple[float, float] | None = None
    max_epochs: int
    space: ConfigurationSpace
    default_config: dict[str, Any]
    options: dict[str, Any]

    @abstractmethod
    def missing(self) -> str | None:
        """None if the task can run here, else a sentence: what is missing, how to get it."""

    @abstractmethod
    def start(self, config: Mapping[str, Any], *, seed: int) -> TaskRun:
        """Start a training run.

        Args:
            config: Values of the hyper-parameters; those left out have their default.
            seed: Decides the data split, the initial weights and the order of batches.

        Raises:
            InvalidValueError: `config` has an unknown name or an impossible value.
            DataNotFoundError: The data is not on this machine, or is damaged.
        """

    def training_inputs(self, seed: int) -> Sequence[NDArray[Any]]:
        """The inputs of one epoch, an array a batch, in any order; loads the data.

        Args:
            seed: Of the data split.
        """
        raise NotImplementedError(f"{self.name} gives no training inputs")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a configuration, on torch's default device, with any initial weights.

        Args:
            config: See `start`.
        """
        raise NotImplementedError(f"{self.name} does not search an architecture")

    @property
    def example_input(self) -> Tensor:
        """A batch of one example for `build`'s network."""
        raise NotImplementedError(f"{self.name} does not search an architecture")

    def true_error(self, config: Mapping[str, Any]) -> float | None:
        """The error of `config` at full length without noise, where it is known, else None."""
        return None
