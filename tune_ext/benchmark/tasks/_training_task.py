"""What the tasks that train a network have in common: options, space, start."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ConfigSpace import ConfigurationSpace, UniformFloatHyperparameter
from numpy.typing import NDArray

from tune_ext._checks import check_choice, check_count, check_device, check_flag, check_texts
from tune_ext._random import check_seed, derive_seed
from tune_ext.benchmark.tasks._base import Task, TaskRun
from tune_ext.benchmark.tasks._data import Batches
from tune_ext.errors import DataNotFoundError, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from torch import nn

    from tune_ext.benchmark.tasks._augment import Augmentation
    from tune_ext.benchmark.tasks._data import Parts

__all__ = ["TrainingTask", "check_counts", "check_values", "make_space"]

_RANGES = {"lr": (1e-6, 1.0), "weight_decay": (1e-7, 1e-1)}


def make_space(
    name: str, parameters: Sequence[str], defaults: Mapping[str, float]
) -> ConfigurationSpace:
    """The logarithmic space of "lr", "weight_decay" or both.

    Args:
        name: Of the space.
        parameters: What is searched.
        defaults: A value for each; the range's lower end where it is below.

    Raises:
        InvalidValueError: No parameter, or one that there is not.
    """
    names = check_texts("parameters", parameters)
    if not names:
        raise InvalidValueError(f"parameters must name some of {tuple(_RANGES)}, got none")
    for parameter in names:
        check_choice("parameters", parameter, _RANGES)
    space = ConfigurationSpace(name=name)
    for parameter in dict.fromkeys(names):
        lower, upper = _RANGES[parameter]
        default = max(defaults[parameter], lower)
        space.add(UniformFloatHyperparameter(parameter, lower, upper, default, log=True))
    return space


def check_values(config: Mapping[str, Any], defaults: Mapping[str, float]) -> dict[str, float]:
    """The defaults, overwritten by `config`.

    Args:
        config: Values of some parameters.
        defaults: A value for every parameter.

    Raises:
        InvalidValueError: `config` has an unknown name or an impossible value.
    """
    values = dict(defaults)
    for name, value in config.items():
        check_choice("a name in config", name, values)
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise InvalidValueError(
                f"config[{name!r}] must be a finite number of at least 0, got {value!r}"
            )
        values[name] = float(value)
    return values


def check_counts(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """`values` as a tuple of at least one positive whole number.

    Args:
        name: Of the option.
        values: Its value.

    Raises:
        InvalidTypeError: It is not a sequence of whole numbers, or empty.
        InvalidValueError: A number is not positive.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise InvalidTypeError(f"{name} must be a sequence of integers, got {values!r}")
    return tuple(check_count(name, value) for value in values)


class TrainingTask(Task):
    """A network whose learning rate and weight decay are searched; a classifier by default.

    Args:
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Examples in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        measure_response: Whether runs report the response of the network.
        device: Where to train; bit-exact repetition is promised for "cpu" alone.
    """

    loss: ClassVar[Literal["mse", "cross_entropy"] | None] = "cross_entropy"

    def __init__(
        self,
        *,
        optimizer: str,
        epochs: int,
        batch_size: int,
        schedule: str,
        parameters: Sequence[str],
        measure_response: bool,
        device: str,
    ) -> None:
        check_choice("optimizer", optimizer, ("adam", "sgd"))
        check_choice("schedule", schedule, ("cosine", "constant"))
        self.max_epochs = check_count("epochs", epochs)
        self._batch_size = check_count("batch_size", batch_size, 2)
        self._optimizer = optimizer
        self._schedule = schedule
        self._measure_response = self.measures_response = check_flag(
            "measure_response", measure_response
        )
        self._device = check_device(device)
        # Torch's own defaults of both optimisers.
        self.default_config = {"lr": 1e-3, "weight_decay": 0.0}
        self.space = make_space(self.name, parameters, self.default_config)
        self.options = {
            "optimizer": optimizer,
            "epochs": epochs,
            "batch_size": batch_size,
            "schedule": schedule,
            "parameters": list(self.space.keys()),
            "measure_response": self._measure_response,
            "device": device,
        }

    def start(self, config: Mapping[str, Any], *, seed: int) -> TaskRun:
        """Start a run; see `Task.start`."""
        values = self._values(config)
        if check_seed(seed) is None:
            raise InvalidTypeError("seed must be an integer, got None")
        if problem := self.missing():
            raise DataNotFoundError(problem)
        network = self._weighted(values, derive_seed(seed, self.name, "weights"))
        return self._run(network, values, int(seed))

    def _run(self, network: nn.Module, values: Mapping[str, Any], seed: int) -> TaskRun:
        """The run of a network with its initial weights."""
        from tune_ext.benchmark.tasks._training import RunSettings, TrainingRun

        settings = RunSettings(
            lr=values["lr"],
            weight_decay=values["weight_decay"],
            optimizer=self._optimizer,
            schedule=self._schedule,
            epochs=self.max_epochs,
            batch_size=self._batch_size,
            measure_response=self._measure_response,
            device=self._device,
            loss=self.loss or "cross_entropy",
            augmentation=self._augmentation(),
        )
        return TrainingRun(network, self._split(seed), settings, seed=seed)

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The default configuration, overwritten by `config`; see `check_values`."""
        return check_values(config, self.default_config)

    def _weighted(self, values: Mapping[str, Any], seed: int) -> nn.Module:
        """The network of a configuration with initial weights from `seed` alone."""
        from tune_ext.benchmark.tasks._networks import build

        return build(self._network, seed=seed)

    def training_inputs(self, seed: int) -> Sequence[NDArray[Any]]:
        """The training inputs of an epoch; see `Task.training_inputs`."""
        if problem := self.missing():
            raise DataNotFoundError(problem)
        return Batches(self._split(seed).train, self._batch_size)

    @abstractmethod
    def _split(self, seed: int) -> Parts:
        """The examples for `seed`, cached in this process."""

    @abstractmethod
    def _network(self) -> nn.Module:
        """A new network; its weights are overwritten."""

    def _augmentation(self) -> Augmentation | None:
        """How training images are varied; None: they are not."""
        return None
