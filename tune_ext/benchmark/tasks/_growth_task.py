"""What the tasks at any image size have in common: options, space, network, start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tune_ext._checks import as_number, check_choice, check_count, check_flag, check_folder
from tune_ext._growth_space import GROWTH_DEFAULTS, growth_space
from tune_ext._random import check_seed, derive_seed
from tune_ext.benchmark.tasks._growth_data import Grown, Source, split
from tune_ext.benchmark.tasks._training_task import TrainingTask
from tune_ext.errors import (
    DataNotFoundError,
    InvalidConfigurationError,
    InvalidTypeError,
    InvalidValueError,
)

if TYPE_CHECKING:
    from torch import nn

    from tune_ext.benchmark.tasks._base import TaskRun

__all__ = ["MOST_WEIGHTS", "GrowthTask"]

MOST_WEIGHTS = 10_000_000
"""Of a network, where nothing else is asked for."""

_SIZE = "image_size"
_LEAST_QUARTER = 14


class GrowthTask(TrainingTask):
    """A data set of images and the network of arXiv 1807.07362, trained at any image size.

    The test images are the official ones; training and validation images are disjoint parts of
    the others, drawn by seed with the classes' shares: the same ones at every size. Images are
    resized once for each size and kept in files that all trials of a machine share
    (`tune_ext.resizing`): of a part of n images, n × channels × size² bytes.

    A configuration that has more poolings than its image size allows, or more than `most_weights`
    weights, is an `InvalidConfigurationError`; a comparison counts its trial as failed.

    Args:
        size: The full height and width.
        data_dir: The only place to look for the files.
        cache_dir: Where the resized images are kept; None: the directory that TUNE_EXT_CACHE
            names, or else ~/.cache/tune_ext.
        train_size: Training images; None: all that are left.
        validation_size: Validation images; None: a tenth.
        grey: Whether colours are left out.
        epochs: The full length of a run.
        patience: Epochs without a lower validation error that end a run; None: none do.
        optimizer: "adam" or "sgd" (momentum 0.9), at a constant rate.
        limits: Other ranges; see `tune_ext.spaces.growth_space`.
        flat: Whether the space is without conditions; see there. Either way a configuration may
            have values of layers that it has not: they are ignored.
        global_pooling: Whether the last maps are averaged and not flattened.
        most_weights: Of a network; more are an invalid configuration, and not a machine without
            memory.
        device: Where to train.
        sizes: The image sizes that a search may grow through, increasing up to the full one;
            None: a quarter, a half and the whole of it, as published, or a half, three quarters
            and the whole where a quarter is less than 14 pixels.
    """

    loss = None  # its rate is no "lr" that a ladder could search
    grey: ClassVar[bool] = False
    share: ClassVar[float] = 0.1

    def __init__(
        self,
        *,
        size: int,
        cache_dir: str | None,
        train_size: int | None,
        validation_size: int | None,
        epochs: int,
        patience: int | None,
        optimizer: str,
        limits: Mapping[str, tuple[float, float]] | None,
        flat: bool,
        global_pooling: bool,
        most_weights: int,
        device: str,
        sizes: Sequence[int] | None,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            epochs=epochs,
            batch_size=int(GROWTH_DEFAULTS["batch_size"]),
            schedule="constant",
            parameters=("lr",),
            measure_response=False,
            device=device,
        )
        self._size = check_count("size", size, 2)
        self.image_sizes = _grown_sizes(self._size, sizes)
        self._cache_dir = check_folder("cache_dir", cache_dir)
        self._sizes = (
            None if train_size is None else check_count("train_size", train_size, 2),
            None if validation_size is None else check_count("validation_size", validation_size),
        )
        self._patience = None if patience is None else check_count("patience", patience)
        self._pooled = check_flag("global_pooling", global_pooling)
        self._most_weights = check_count("most_weights", most_weights)
        self.space = growth_space(flat=check_flag("flat", flat), limits=limits)
        given = {name: (low, high) for name, (low, high) in (limits or {}).items()}
        every = growth_space(flat=True, limits=given)
        self.default_config = {k: v for k, v in _defaults(every).items()} | {_SIZE: self._size}
        self.options = {
            "size": self._size,
            "cache_dir": self._cache_dir,
            "train_size": self._sizes[0],
            "validation_size": self._sizes[1],
            "epochs": self.max_epochs,
            "patience": self._patience,
            "optimizer": optimizer,
            "limits": {name: list(pair) for name, pair in given.items()} or None,
            "flat": bool(flat),
            "global_pooling": self._pooled,
            "most_weights": self._most_weights,
            "device": device,
            "sizes": None if sizes is None else list(self.image_sizes),
        }

    def start(self, config: Mapping[str, Any], *, seed: int) -> TaskRun:
        """Start a run; see `Task.start`."""
        values = self._values(config)
        if check_seed(seed) is None:
            raise InvalidTypeError("seed must be an integer, got None")
        build = partial(self.build, values)
        self._check_weights(build)
        if problem := self.missing():
            raise DataNotFoundError(problem)
        from tune_ext.benchmark.tasks._growth_run import GrowthRun
        from tune_ext.benchmark.tasks._networks import build as weighted
        from tune_ext.benchmark.tasks._training import RunSettings

        settings = RunSettings(
            lr=values["learning_rate"],
            weight_decay=0.0,
            optimizer=self._optimizer,
            schedule="constant",
            epochs=self.max_epochs,
            batch_size=values["batch_size"],
            measure_response=False,
            device=self._device,
        )
        return GrowthRun(
            weighted(build, seed=derive_seed(seed, self.name, "weights")),
            self._parts(int(seed), values[_SIZE]),
            settings,
            seed=int(seed),
            l1=values["l1"],
            l2=values["l2"],
            patience=self._patience,
        )

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The default configuration, overwritten by `config`."""
        for name in config:
            check_choice("a name in config", name, self.default_config)
        values = {**self.default_config, **config}
        for name in ("learning_rate", "l1", "l2"):
            number = as_number(f"config[{name!r}]", values[name])
            if not 0 <= number < float("inf"):
                raise InvalidValueError(
                    f"config[{name!r}] must be a finite number of at least 0, got {number!r}"
                )
            values[name] = number
        for name in ("batch_size", _SIZE):
            values[name] = check_count(f"config[{name!r}]", values[name])
        return values

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a configuration, for images of its size."""
        from tune_ext._growth_network import growth_network

        values = {**self.default_config, **config}
        return growth_network(
            values, self._channels(), self._classes(), values[_SIZE], global_pooling=self._pooled
        )

    def _check_weights(self, build: partial[nn.Module]) -> None:
        import torch

        with torch.device("meta"):
            weights = sum(p.numel() for p in build().parameters())
        if weights > self._most_weights:
            raise InvalidConfigurationError(
                f"the network has {weights:,} weights, and the option most_weights allows "
                f"{self._most_weights:,}: take more convolutions (each is followed by a pooling) "
                "or fewer filters and units"
            )

    def _split(self, seed: int) -> Grown:
        return self._parts(int(seed), self._size)

    def _parts(self, seed: int, size: int) -> Grown:
        return split(self._source(), size, *self._sizes, self.share, seed)

    def _network(self) -> nn.Module:
        return self.build(self.default_config)

    def _source(self) -> Source:
        raise NotImplementedError

    def _channels(self) -> int:
        raise NotImplementedError

    def _classes(self) -> int:
        raise NotImplementedError


def _grown_sizes(size: int, sizes: Sequence[int] | None) -> tuple[int, ...]:
    if sizes is None:
        parts = (size // 4, size // 2, size)
        parts = parts if parts[0] >= _LEAST_QUARTER else (size // 2, 3 * size // 4, size)
        return tuple(sorted({max(2, part) for part in parts}))
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise InvalidTypeError(f"sizes must be a list of whole numbers, got {sizes!r}")
    checked = tuple(check_count("a size of sizes", part, 2) for part in sizes)
    if not checked or list(checked) != sorted(set(checked)) or checked[-1] != size:
        raise InvalidValueError(f"sizes must increase up to size={size}, got {list(checked)}")
    return checked


def _defaults(space: Any) -> dict[str, Any]:
    config = dict(space.get_default_configuration())
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in config.items()}
