"""Handwritten digits from scikit-learn's wheel: real images without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tune_ext._random import generator
from tune_ext.benchmark.tasks._data import Part, Split, stratified
from tune_ext.benchmark.tasks._training_task import TrainingTask, check_counts

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DigitsCNN", "DigitsMLP"]

# Chosen so that the response falls gradually: five epochs of Adam at 1e-4, 1e-3, 3e-3 and
# 1e-2 give 1.00, .87, .50 and .17; shallower or narrower networks have fewer steps.
_WIDTHS = (16, 32, 32, 64, 64, 64)
_STRIDES = (1, 2, 1, 2, 1, 1)


@lru_cache(maxsize=4)
def _digits(seed: int) -> Split:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images[:, None].astype(np.float32)
    labels = data.target.astype(np.int64)
    # The test images are the same for every seed: a choice made on one seed's validation
    # images is tested with trainings of other seeds, and must not have seen their test.
    rest, test = stratified(labels, (0.8,), generator(0, "digits-cnn", "test"))
    rng = generator(seed, "digits-cnn", "split")
    train, validation = (rest[part] for part in stratified(labels[rest], (0.75,), rng))
    return Split.scaled(*(Part(images[part], labels[part]) for part in (train, validation, test)))


class _Digits(TrainingTask):
    """What is the same for all networks."""

    def missing(self) -> str | None:
        """None, unless scikit-learn is not installed."""
        if importlib.util.find_spec("sklearn") is None:
            return "scikit-learn is not installed: pip install scikit-learn"
        return None

    def _split(self, seed: int) -> Split:
        return _digits(seed)


class DigitsCNN(_Digits):
    """1,797 handwritten digits of 8×8 pixels, and a network of six convolutions.

    The classes have equal shares of every part: 20 % are the test images, the same for
    every seed; the seed splits the others into 60 % training and 20 % validation. An
    epoch takes about a tenth of a second on one thread.

    Args:
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Images in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        measure_response: Whether runs report the response of the network.
        device: Where to train.
    """

    name = "digits-cnn"
    description = "scikit-learn's 1,797 handwritten digits (8×8), a CNN of six convolutions"

    def __init__(
        self,
        *,
        optimizer: str = "adam",
        epochs: int = 20,
        batch_size: int = 64,
        schedule: str = "cosine",
        parameters: Sequence[str] = ("lr", "weight_decay"),
        measure_response: bool = True,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            parameters=parameters,
            measure_response=measure_response,
            device=device,
        )

    def _network(self) -> nn.Module:
        from tune_ext.benchmark.tasks._networks import plain_cnn

        return plain_cnn(1, 10, _WIDTHS, _STRIDES)


class DigitsMLP(_Digits):
    """The same digits and splits as of `DigitsCNN`, and a network without convolutions.

    The response is of convolutions, so it is not measured. An epoch takes a few tens of
    milliseconds on one thread.

    Args:
        hidden: The width of each hidden layer.
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Images in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        device: Where to train.
    """

    name = "digits-mlp"
    description = "scikit-learn's 1,797 handwritten digits (8×8), an MLP"

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (128, 128),
        optimizer: str = "adam",
        epochs: int = 20,
        batch_size: int = 64,
        schedule: str = "cosine",
        parameters: Sequence[str] = ("lr", "weight_decay"),
        device: str = "cpu",
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            parameters=parameters,
            measure_response=False,
            device=device,
        )
        del self.options["measure_response"]
        self._hidden = check_counts("hidden", hidden)
        self.options["hidden"] = list(self._hidden)

    def _network(self) -> nn.Module:
        from tune_ext.benchmark.tasks._networks import mlp

        return mlp(64, 10, self._hidden)
