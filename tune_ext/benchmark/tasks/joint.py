"""Architecture and hyper-parameters of a residual network, searched together or one of them.

The space, the network and the recipe are those of Zela, Klein, Falkner and Hutter (arXiv
1807.06906); see `tune_ext.spaces`, `tune_ext.models.joint_network` and `_recipe`. For each data
set there is a task that searches everything, one that searches the architecture alone and one that
searches the hyper-parameters alone: what is not searched has its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from tune_ext._checks import check_count
from tune_ext.benchmark.tasks._joint_task import JointTask, Limits, small_limits
from tune_ext.benchmark.tasks.digits import DigitsCNN
from tune_ext.benchmark.tasks.images import CIFAR10, FashionMNIST, ImageDataTask

if TYPE_CHECKING:
    from tune_ext._shake import Coefficients

__all__ = [
    "JOINT_TASKS",
    "CIFAR10Joint",
    "DigitsJoint",
    "FashionMNISTJoint",
    "JointTask",
    "small_limits",
]


class DigitsJoint(JointTask):
    """The digits and splits of `DigitsCNN`, for tests and first tries; see `JointTask`.

    A quarter of what is not for testing are validation images, as in the other tasks of digits.

    Args:
        limits: "published", "small", or a lower and an upper limit by parameter.
        epochs: The full length of a run.
        budgets: Where runs are judged, and cycles of the learning rate end.
        first_cycle: The first cycle; None: all of the first budget.
        unit: Of budgets and cycles: "epochs", or "seconds" of training.
        coefficients: The weights of Shake-Shake: "uniform", or "softmax" as in the published code.
        device: Where to train.
    """

    name = "digits-joint"
    description = "scikit-learn's digits (8×8), a residual network: architecture and training"

    def __init__(
        self,
        *,
        limits: Limits = "small",
        epochs: int = 9,
        budgets: Sequence[float] | None = None,
        first_cycle: float | None = None,
        unit: str = "epochs",
        coefficients: Coefficients = "uniform",
        device: str = "cpu",
    ) -> None:
        super().__init__(
            DigitsCNN(),
            1,
            8,
            flip=False,
            limits=limits,
            epochs=epochs,
            budgets=budgets,
            first_cycle=first_cycle,
            unit=unit,
            coefficients=coefficients,
            device=device,
        )


class FashionMNISTJoint(JointTask):
    """Fashion-MNIST's garments; see `JointTask`, and `ImageDataTask` for where the files lie.

    Args:
        data_dir: The only place to look for the files.
        train_size: Training images; None: all that are left.
        validation_size: Validation images; None: a tenth of those for training and validation.
        image_size: Height and width; None: as they are.
        limits: "published", "small", or a lower and an upper limit by parameter.
        epochs: The full length of a run.
        budgets: Where runs are judged, and cycles of the learning rate end.
        first_cycle: The first cycle; None: all of the first budget.
        unit: Of budgets and cycles: "epochs", or "seconds" of training.
        coefficients: The weights of Shake-Shake: "uniform", or "softmax" as in the published code.
        device: Where to train.
    """

    name = "fashion-mnist-joint"
    description = "Fashion-MNIST, a residual network: architecture and training"
    images: ClassVar[type[ImageDataTask]] = FashionMNIST

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        train_size: int | None = 5_000,
        validation_size: int | None = None,
        image_size: int | None = 14,
        limits: Limits = "small",
        epochs: int = 9,
        budgets: Sequence[float] | None = None,
        first_cycle: float | None = None,
        unit: str = "epochs",
        coefficients: Coefficients = "uniform",
        device: str = "cpu",
    ) -> None:
        known = self.images.data
        images = self.images(
            data_dir=data_dir,
            train_size=train_size,
            validation_size=_tenth(train_size, validation_size),
            image_size=image_size,
        )
        super().__init__(
            images,
            known.channels,
            images.options["image_size"],
            flip=known.flip,
            limits=limits,
            epochs=epochs,
            budgets=budgets,
            first_cycle=first_cycle,
            unit=unit,
            coefficients=coefficients,
            device=device,
        )
        for name in ("data_dir", "train_size", "validation_size", "image_size"):
            self.options[name] = images.options[name]


class CIFAR10Joint(FashionMNISTJoint):
    """CIFAR-10's photographs, all of them, and the published limits; see `FashionMNISTJoint`.

    As published it is with `unit="seconds"` and `budgets=[400, 1200, 3600, 10800]`, on a GPU.

    Args:
        data_dir: The only place to look for the files.
        train_size: Training images; None: all that are left.
        validation_size: Validation images; None: a tenth of those for training and validation.
        image_size: Height and width; None: as they are.
        limits: "published", "small", or a lower and an upper limit by parameter.
        epochs: The full length of a run.
        budgets: Where runs are judged, and cycles of the learning rate end.
        first_cycle: The first cycle; None: all of the first budget.
        unit: Of budgets and cycles: "epochs", or "seconds" of training.
        coefficients: The weights of Shake-Shake: "uniform", or "softmax" as in the published code.
        device: Where to train.
    """

    name = "cifar10-joint"
    description = "CIFAR-10, a residual network: architecture and training"
    images: ClassVar[type[ImageDataTask]] = CIFAR10

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        train_size: int | None = None,
        validation_size: int | None = None,
        image_size: int | None = None,
        limits: Limits = "published",
        epochs: int = 81,
        budgets: Sequence[float] | None = None,
        first_cycle: float | None = None,
        unit: str = "epochs",
        coefficients: Coefficients = "uniform",
        device: str = "cpu",
    ) -> None:
        super().__init__(
            data_dir=data_dir,
            train_size=train_size,
            validation_size=validation_size,
            image_size=image_size,
            limits=limits,
            epochs=epochs,
            budgets=budgets,
            first_cycle=first_cycle,
            unit=unit,
            coefficients=coefficients,
            device=device,
        )


def _tenth(train_size: int | None, validation_size: int | None) -> int | None:
    """How many validation images; None: a tenth of all there are."""
    if validation_size is not None or train_size is None:
        return validation_size
    return max(1, round(check_count("train_size", train_size, 2) / 9))


def _parts(whole: type[JointTask]) -> tuple[type[JointTask], ...]:
    """The task, and those that search a part of it."""
    said = {"architecture": "its architecture alone", "hyperparameters": "its training alone"}
    made = [
        type(
            f"{whole.__name__}{part.capitalize()}",
            (whole,),
            {
                "__doc__": f"`{whole.__name__}`, {said[part]}; the other part has its default.",
                "name": f"{whole.name}-{part}",
                "description": whole.description.replace("architecture and training", said[part]),
                "part": part,
                "searches_architecture": part == "architecture",
            },
        )
        for part in said
    ]
    return whole, *made


JOINT_TASKS: tuple[type[JointTask], ...] = tuple(
    task for whole in (DigitsJoint, FashionMNISTJoint, CIFAR10Joint) for task in _parts(whole)
)
"""All of them, for the catalogue."""
