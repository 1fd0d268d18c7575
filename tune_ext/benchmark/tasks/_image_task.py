"""What the image classification tasks have in common: options, space, start."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ConfigSpace import ConfigurationSpace, UniformFloatHyperparameter
from numpy.typing import NDArray

from tune_ext._checks import check_choice, check_count
from tune_ext._random import check_seed, derive_seed
from tune_ext.benchmark.tasks._base import Task, TaskRun
from tune_ext.errors import DataNotFoundError, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from torch import nn

    from tune_ext.benchmark.tasks._data import Split

__all__ = ["ImageTask"]

_RANGES = {"lr": (1e-6, 1.0), "weight_decay": (1e-7, 1e-1)}


class ImageTask(Task):
    """A classifier of images whose learning rate and weight decay are searched.

    Args:
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Images in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        measure_response: Whether runs report the response of the network.
        device: Where to train; bit-exact repetition is promised for "cpu" alone.
    """

    loss = "cross_entropy"

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
        self._measure_response = self.measures_response = bool(measure_response)
        self._device = device
        # Torch's own defaults of both optimisers.
        self.default_config = {"lr": 1e-3, "weight_decay": 0.0}
        self.space = self._make_space(parameters)
        self.options = {
            "optimizer": optimizer,
            "epochs": epochs,
            "batch_size": batch_size,
            "schedule": schedule,
            "parameters": list(self.space.keys()),
            "measure_response": self._measure_response,
            "device": device,
        }

    def _make_space(self, parameters: Sequence[str]) -> ConfigurationSpace:
        names = [parameters] if isinstance(parameters, str) else list(parameters)
        if not names:
            raise InvalidValueError(f"parameters must name some of {tuple(_RANGES)}, got none")
        for name in names:
            check_choice("parameters", name, _RANGES)
        space = ConfigurationSpace(name=self.name)
        for name in dict.fromkeys(names):
            lower, upper = _RANGES[name]
            default = max(self.default_config[name], lower)
            space.add(UniformFloatHyperparameter(name, lower, upper, default, log=True))
        return space

    def start(self, config: Mapping[str, Any], *, seed: int) -> TaskRun:
        """Start a run; see `Task.start`."""
        values = self._values(config)
        if check_seed(seed) is None:
            raise InvalidTypeError("seed must be an integer, got None")
        if problem := self.missing():
            raise DataNotFoundError(problem)
        from tune_ext.benchmark.tasks._networks import build
        from tune_ext.benchmark.tasks._training import ImageRun, RunSettings

        settings = RunSettings(
            **values,
            optimizer=self._optimizer,
            schedule=self._schedule,
            epochs=self.max_epochs,
            batch_size=self._batch_size,
            measure_response=self._measure_response,
            device=self._device,
        )
        network = build(self._network, seed=derive_seed(seed, self.name, "weights"))
        return ImageRun(network, self._split(int(seed)), settings, seed=int(seed))

    def training_inputs(self, seed: int) -> Sequence[NDArray[Any]]:
        """The training images of an epoch; see `Task.training_inputs`."""
        if problem := self.missing():
            raise DataNotFoundError(problem)
        images, size = self._split(seed).train.images, self._batch_size
        return [images[i * size : (i + 1) * size] for i in range(max(1, len(images) // size))]

    def _values(self, config: Mapping[str, Any]) -> dict[str, float]:
        """The defaults, overwritten by `config`, checked."""
        values = dict(self.default_config)
        for name, value in config.items():
            check_choice("a name in config", name, values)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise InvalidValueError(
                    f"config[{name!r}] must be a finite number of at least 0, got {value!r}"
                )
            values[name] = float(value)
        return values

    @abstractmethod
    def _split(self, seed: int) -> Split:
        """The images for `seed`, cached in this process."""

    @abstractmethod
    def _network(self) -> nn.Module:
        """A new network; its weights are overwritten."""
