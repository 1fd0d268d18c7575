"""Regression: scikit-learn's diabetes and California housing, with an MLP."""

from __future__ import annotations

import importlib.util
import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_folder
from tune_ext._random import generator
from tune_ext.benchmark.tasks._data import Part, Split
from tune_ext.benchmark.tasks._training_task import TrainingTask, check_counts
from tune_ext.errors import DataNotFoundError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CaliforniaHousing", "Diabetes"]

_HOUSING = "cal_housing_py3.pkz"


def _divide(
    name: str, features: NDArray[np.float64], targets: NDArray[np.float64], seed: int
) -> Split:
    """20 % test examples, the same for every seed; of the others a quarter for validation.

    Features have zero mean and unit deviation over the training examples. Targets are counted
    from the training examples' mean, in deviations of all but the test examples, so that an
    error is in the same unit for every seed.
    """
    order = generator(0, name, "test").permutation(len(targets))
    rest, test = np.split(order, [round(0.8 * len(order))])
    drawn = generator(seed, name, "split").permutation(rest)
    train, validation = np.split(drawn, [round(0.75 * len(drawn))])
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
    scaled = (features - mean) / np.where(deviation > 0, deviation, 1)
    answers = (targets - targets[train].mean()) / targets[rest].std()
    return Split(
        *(
            Part(scaled[part].astype(np.float32), answers[part].astype(np.float32))
            for part in (train, validation, test)
        )
    )


@lru_cache(maxsize=4)
def _diabetes(seed: int) -> Split:
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    return _divide("diabetes", data.data, data.target, seed)


@lru_cache(maxsize=4)
def _housing(folder: Path, seed: int) -> Split:
    from sklearn.datasets import fetch_california_housing

    try:
        data = fetch_california_housing(data_home=str(folder), download_if_missing=False)
    except Exception as error:  # an archive of objects: damage can raise anything
        raise DataNotFoundError(
            f"{folder / _HOUSING} cannot be read ({error}): delete it and fetch it again"
        ) from error
    return _divide("california-housing", data.data, data.target, seed)


class _Regression(TrainingTask):
    """What both have in common.

    A diverged evaluation counts as 1: what it costs to answer the mean, which is what is left to
    do without a model. An error that is finite can be above.
    """

    loss = "mse"
    error_name = "MSE / variance"
    percent = False
    worst_error = 1.0
    _features: int

    def __init__(
        self,
        *,
        hidden: Sequence[int],
        optimizer: str,
        epochs: int,
        batch_size: int,
        schedule: str,
        parameters: Sequence[str],
        device: str,
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

    def missing(self) -> str | None:
        """None, unless scikit-learn or the data is not here."""
        if importlib.util.find_spec("sklearn") is None:
            return "scikit-learn is not installed: pip install scikit-learn"
        return None

    def _network(self) -> nn.Module:
        from tune_ext.benchmark.tasks._networks import mlp

        return mlp(self._features, 1, self._hidden)

    @abstractmethod
    def _split(self, seed: int) -> Split: ...


class Diabetes(_Regression):
    """442 patients and the progress of their disease after a year, from scikit-learn's wheel.

    The error is the mean squared error in units of the variance of the targets: 1 is what the
    mean answers. The test examples are a fifth, the same for every seed; the seed splits the
    others into three parts for training and one for validation. An epoch takes milliseconds.

    Args:
        hidden: The width of each hidden layer.
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Examples in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        device: Where to train.
    """

    name = "diabetes"
    description = "regression: scikit-learn's 442 patients with diabetes, an MLP"
    _features = 10

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (64, 64),
        optimizer: str = "adam",
        epochs: int = 50,
        batch_size: int = 16,
        schedule: str = "cosine",
        parameters: Sequence[str] = ("lr", "weight_decay"),
        device: str = "cpu",
    ) -> None:
        super().__init__(
            hidden=hidden,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            parameters=parameters,
            device=device,
        )

    def _split(self, seed: int) -> Split:
        return _diabetes(seed)


class CaliforniaHousing(_Regression):
    """20,640 districts of California and the median value of their houses.

    Error and split are those of `Diabetes`. Nothing is ever downloaded: scikit-learn's file is
    looked for in `data_dir`, or, without one, in the directory that the environment variable
    TUNE_EXT_DATA names and in scikit-learn's own (SCIKIT_LEARN_DATA, ~/scikit_learn_data).

    Args:
        data_dir: The only place to look for the file (scikit-learn's `data_home`).
        hidden: The width of each hidden layer.
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Examples in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        device: Where to train.
    """

    name = "california-housing"
    description = "regression: scikit-learn's 20,640 districts of California, an MLP"
    _features = 8

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        hidden: Sequence[int] = (128, 128),
        optimizer: str = "adam",
        epochs: int = 30,
        batch_size: int = 128,
        schedule: str = "cosine",
        parameters: Sequence[str] = ("lr", "weight_decay"),
        device: str = "cpu",
    ) -> None:
        super().__init__(
            hidden=hidden,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            parameters=parameters,
            device=device,
        )
        self._data_dir = check_folder("data_dir", data_dir)
        self.options["data_dir"] = self._data_dir

    def _folder(self) -> Path | None:
        own = os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")
        usual = [os.environ.get("TUNE_EXT_DATA"), own]
        for root in [self._data_dir] if self._data_dir else usual:
            if root and (Path(root).expanduser() / _HOUSING).is_file():
                return Path(root).expanduser().resolve()
        return None

    def missing(self) -> str | None:
        """None, unless scikit-learn or its file is not here."""
        if problem := super().missing():
            return problem
        if self._folder() is not None:
            return None
        where = self._data_dir or "TUNE_EXT_DATA or ~/scikit_learn_data"
        given = "" if self._data_dir is None else f"data_home={self._data_dir!r}"
        return (
            f"California housing is not in {where}: "
            f"sklearn.datasets.fetch_california_housing({given}) fetches it"
        )

    def _split(self, seed: int) -> Split:
        folder = self._folder()
        if folder is None:
            raise DataNotFoundError(self.missing() or f"{_HOUSING} is not here")
        return _housing(folder, seed)
