"""What the tasks of the joint search have in common; `joint` has them by data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tune_ext._bracket_table import bracket_table
from tune_ext._checks import as_number, check_choice, check_count, check_positive
from tune_ext._joint_space import Part, ranges
from tune_ext._warm_restarts import CosineRestarts, check_budgets
from tune_ext.benchmark.tasks._architecture_task import ArchitectureTask
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.spaces import joint_space

if TYPE_CHECKING:
    from torch import nn

    from tune_ext._shake import Coefficients
    from tune_ext.benchmark.tasks._recipe import RecipeRun
    from tune_ext.benchmark.tasks._training_task import TrainingTask
    from tune_ext.scaling import Plan

__all__ = ["JointTask", "Limits", "small_limits"]

_CLASSES = 10
_PUBLISHED_SIZE = 32
_REDUCTION_FACTOR = 3

Limits = Literal["published", "small"] | Mapping[str, Sequence[float]]


def small_limits(image_size: int) -> dict[str, tuple[float, float]]:
    """Limits for networks that a CPU trains, and squares that leave something of an image.

    Cutout's largest square has the same share of the side as published: 20 of 32 pixels.

    Args:
        image_size: Height and width.

    >>> limits = small_limits(14)
    >>> limits["length"], limits["nr_residual_blocks_1"]
    ((0, 9), (1, 3))
    """
    return {
        **{f"nr_residual_blocks_{group}": (1, 3) for group in (1, 2, 3)},
        "initial_filters": (4, 8),
        "widen_factor_1": (0.5, 1.0),
        **{f"widen_factor_{group}": (0.5, 2.0) for group in (2, 3)},
        **{f"res_branches_{group}": (1, 2) for group in (1, 2, 3)},
        "length": (0, round(20 * image_size / _PUBLISHED_SIZE)),
    }


class JointTask(ArchitectureTask):
    """What is the same for all data.

    Args:
        data: A task with the data.
        channels: Of an image.
        image_size: Height and width.
        flip: Whether a mirrored image is of the same class.
        limits: "published", "small" (see `small_limits`), or a lower and an upper limit by
            parameter, the others as published.
        epochs: The full length of a run, where runs are counted in epochs.
        budgets: Where runs are judged, and cycles of the learning rate end, in units; None: the
            full length divided by 3, by 9 and so on, as HyperBand does.
        first_cycle: The first cycle, which budgets may stretch; None: all of the first budget.
        unit: What budgets and cycles are counted in: "epochs", or "seconds" of training.
        coefficients: The weights that Shake-Shake draws: "uniform", or "softmax" as in the
            published code; see `tune_ext.models.ShakeShake`.
        device: Where to train.

    Attributes:
        budgets: Where runs are judged.
        restarts: The cycles of the learning rate, each budget the end of one.
    """

    part: ClassVar[Part] = "joint"
    rate_name: ClassVar[str] = "learning_rate"
    rate_is_of_default: ClassVar[bool] = True

    def __init__(
        self,
        data: TrainingTask,
        channels: int,
        image_size: int,
        *,
        flip: bool,
        limits: Limits,
        epochs: int,
        budgets: Sequence[float] | None,
        first_cycle: float | None,
        unit: str,
        coefficients: Coefficients,
        device: str,
    ) -> None:
        super().__init__(
            data,
            (channels, image_size, image_size),
            optimizer="sgd",
            epochs=epochs,
            batch_size=128,
            schedule="cosine",
            device=device,
        )
        check_choice("unit", unit, ("epochs", "seconds"))
        check_choice("coefficients", coefficients, ("uniform", "softmax"))
        self._flip, self._unit = flip, unit
        self.counts_epochs = unit == "epochs"
        self._coefficients: Coefficients = coefficients
        given = self._limits(limits)
        searched = ranges(given)
        self._integers = frozenset(one.name for one in searched if one.integer)
        self.default_config = {
            one.name: (int if one.integer else float)(one.default) for one in searched
        }
        self._architecture = tuple(one.name for one in searched if one.architecture)
        self._batch_size = self.default_config["batch_size"]
        self.default_config["initialization"] = "default"
        self.space = joint_space(limits=given, part=self.part)
        self.space.name = self.name
        self.budgets = check_budgets(self._ladder() if budgets is None else budgets)
        if first_cycle is not None:
            check_positive("first_cycle", first_cycle, below=float("inf"))
        self.restarts = CosineRestarts.through(self.budgets, first_cycle)
        self.options = {
            "limits": limits if isinstance(limits, str) else {k: list(v) for k, v in given.items()},
            "epochs": self.max_epochs,
            "budgets": None if budgets is None else list(self.budgets),
            "first_cycle": first_cycle,
            "unit": unit,
            "coefficients": coefficients,
            "device": device,
        }

    def _limits(self, limits: Limits) -> dict[str, Any]:
        if isinstance(limits, str):
            check_choice("limits", limits, ("published", "small"))
            return {} if limits == "published" else {**small_limits(self._shape[1])}
        if not isinstance(limits, Mapping):
            raise InvalidTypeError(
                f'limits must be "published", "small" or pairs of numbers by parameter, '
                f"got {limits!r}"
            )
        return dict(limits)

    def _ladder(self) -> list[float]:
        """The rungs of HyperBand's longest bracket."""
        if self._unit == "seconds":
            raise InvalidValueError(
                "budgets in seconds must be given, as [400, 1200, 3600, 10800], got None"
            )
        table = bracket_table(self.max_epochs, _REDUCTION_FACTOR, whole=True)
        return [rung.budget for rung in table[0]]

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        for name in config:
            check_choice("a name in config", name, self.default_config)
        values = {**self.default_config, **config}
        check_choice("config['initialization']", values["initialization"], ("default", "scaled"))
        for name, value in values.items():
            if name in self._integers:
                least = 0 if name == "length" else 1
                values[name] = check_count(f"config[{name!r}]", value, least)
            elif name != "initialization":
                number = as_number(f"config[{name!r}]", value)
                most = 1.0 if name == "momentum" else float("inf")
                if not 0 <= number < most:
                    raise InvalidValueError(
                        f"config[{name!r}] must be at least 0 and below {most:g}, got {number}"
                    )
                values[name] = number
        return values

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a configuration; see `Task.build`."""
        from tune_ext.models import joint_network

        read = {name: config.get(name, self.default_config[name]) for name in self._architecture}
        channels, weights = self._shape[0], self._coefficients
        return joint_network(read, channels, _CLASSES, coefficients=weights)

    def _plan(self, values: Mapping[str, Any], network: nn.Module) -> Plan:
        from tune_ext import scaling

        return scaling.plan(network, self.example_input)

    def _run(self, network: nn.Module, values: Mapping[str, Any], seed: int) -> RecipeRun:
        from tune_ext.benchmark.tasks._augment import Augmentation, Cutout, Mixup
        from tune_ext.benchmark.tasks._recipe import RecipeRun, RecipeSettings

        settings = RecipeSettings(
            lr=values["learning_rate"],
            weight_decay=values["weight_decay"],
            optimizer="sgd",
            schedule="restarts",
            epochs=self.max_epochs,
            batch_size=values["batch_size"],
            measure_response=False,
            device=self._device,
            augmentation=Augmentation(padding=self._shape[1] // 8, flip=self._flip),
            momentum=values["momentum"],
            restarts=self.restarts,
            unit="seconds" if self._unit == "seconds" else "epochs",
            cutout=Cutout(values["length"]),
            mixup=Mixup(values["alpha"], _CLASSES),
        )
        return RecipeRun(network, self._split(seed), settings, seed=seed)
