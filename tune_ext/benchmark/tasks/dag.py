"""Networks whose depth, width and topology are searched beside the learning rate.

The network is a stem, a directed acyclic graph and a read-out (`tune_ext.models`). Node k of the
graph gets a weighted layer from node k − 1, and the nodes further back are connected to it in the
order of their distance, as many of them as `density` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from tune_ext._checks import as_number, check_choice, check_count, check_positive, check_texts
from tune_ext.benchmark.tasks._architecture_task import ArchitectureTask
from tune_ext.benchmark.tasks._training_task import check_values
from tune_ext.benchmark.tasks.digits import DigitsMLP
from tune_ext.benchmark.tasks.fashion_mnist import FashionMNISTResNet
from tune_ext.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import nn

    from tune_ext.benchmark.tasks._training_task import TrainingTask
    from tune_ext.scaling import Plan

__all__ = ["DigitsDAG", "FashionMNISTDAG", "dag_string"]

_SKIPS = {"identity": "1", "layer": "2"}
_CLASSES = 10
_RATES = ("lr", "weight_decay")
_ARCHITECTURE = ("depth", "width", "density", "skip")


def dag_string(depth: int, density: float, skip: str) -> str:
    """A graph in the published notation: what node k gets from nodes 0 to k − 1, for each k.

    Args:
        depth: Nodes after the first one; a chain of weighted layers leads through all of them.
        density: The share of the other depth·(depth − 1)/2 edges that are there, rounded; the
            shortest ones first, then those nearer to the input. At least 0, at most 1.
        skip: What these are: "identity" or "layer".

    >>> dag_string(3, 0.0, "identity"), dag_string(3, 0.5, "identity"), dag_string(3, 1.0, "layer")
    ('2_02_002', '2_12_012', '2_22_222')
    """
    edges = sorted((k - j, j, k) for k in range(2, depth + 1) for j in range(k - 1))
    there = {(j, k) for _, j, k in edges[: int(density * len(edges) + 0.5)]}
    return "_".join(
        "".join(_SKIPS[skip] if (j, k) in there else "0" for j in range(k - 1)) + "2"
        for k in range(1, depth + 1)
    )


class _DagTask(ArchitectureTask):
    """What is the same for all data.

    Args:
        data: A task with the data.
        shape: Channels, height and width of an image.
        network: "mlp" or "cnn" (3×3 kernels).
        lr: The rate of the default configuration.
        parameters: What is searched.
        training: The other options of `TrainingTask`.
    """

    def __init__(
        self,
        data: TrainingTask,
        shape: tuple[int, int, int],
        *,
        network: str,
        lr: float,
        parameters: Sequence[str],
        **training: Any,
    ) -> None:
        super().__init__(data, shape, **training)
        check_choice("network", network, ("mlp", "cnn"))
        self._kind = network
        self.default_config |= {
            "lr": check_positive("lr", lr, below=float("inf")),
            "depth": 2,
            "width": 64 if network == "mlp" else 16,
            "density": 0.0,
            "skip": "identity",
            "initialization": "default",
        }
        self.space = self._space(parameters)
        del self.options["measure_response"]
        self.options |= {"network": network, "lr": lr, "parameters": list(self.space)}

    def _space(self, parameters: Sequence[str]) -> ConfigurationSpace:
        """The part of the space that is searched."""
        default = self.default_config
        narrow, wide = (16, 128) if self._kind == "mlp" else (4, 32)
        lr, decay = min(max(default["lr"], 1e-4), 1.0), 1e-7
        known: dict[str, Any] = {
            "lr": UniformFloatHyperparameter("lr", 1e-4, 1.0, lr, log=True),
            "weight_decay": UniformFloatHyperparameter("weight_decay", 1e-7, 1e-1, decay, log=True),
            "depth": UniformIntegerHyperparameter("depth", 1, 6, default["depth"]),
            "width": UniformIntegerHyperparameter(
                "width", narrow, wide, default["width"], log=True
            ),
            "density": UniformFloatHyperparameter("density", 0.0, 1.0, default["density"]),
            "skip": CategoricalHyperparameter("skip", list(_SKIPS), default_value="identity"),
        }
        names = check_texts("parameters", parameters)
        if not names:
            raise InvalidValueError(f"parameters must name some of {tuple(known)}, got none")
        space = ConfigurationSpace(name=self.name)
        for name in dict.fromkeys(names):
            check_choice("parameters", name, known)
            space.add(known[name])
        return space

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        for name in config:
            check_choice("a name in config", name, self.default_config)
        how = config.get("initialization", self.default_config["initialization"])
        check_choice("config['initialization']", how, ("default", "scaled"))
        rates = {name: config.get(name, self.default_config[name]) for name in _RATES}
        rates = check_values(rates, rates)
        return {**rates, **self._architecture(config), "initialization": str(how)}

    def _architecture(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a configuration that decides the network; nothing else is looked at."""
        values = {name: config.get(name, self.default_config[name]) for name in _ARCHITECTURE}
        for name in ("depth", "width"):
            values[name] = check_count(f"config[{name!r}]", values[name])
        values["density"] = share = as_number("config['density']", values["density"])
        if not 0 <= share <= 1:
            raise InvalidValueError(f"config['density'] must be from 0 to 1, got {share!r}")
        check_choice("config['skip']", values["skip"], _SKIPS)
        return {**values, "skip": str(values["skip"])}

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a configuration; see `Task.build`."""
        return _make(*self._key(config))

    def _key(self, config: Mapping[str, Any]) -> tuple[str, str, int, tuple[int, int, int]]:
        values = self._architecture(config)
        dag = dag_string(values["depth"], values["density"], values["skip"])
        return self._kind, dag, values["width"], self._shape

    def _plan(self, values: Mapping[str, Any], network: nn.Module) -> Plan:
        return _plan(*self._key(values))


def _make(kind: str, dag: str, width: int, shape: tuple[int, int, int]) -> nn.Module:
    from tune_ext.models import DagCNN, DagMLP

    if kind == "cnn":
        return DagCNN(dag, shape[0], width, _CLASSES)
    return DagMLP(dag, math.prod(shape), width, _CLASSES)


def _plan(kind: str, dag: str, width: int, shape: tuple[int, int, int]) -> Plan:
    from tune_ext import scaling

    convolutions = kind == "cnn"
    return scaling.plan_of_dag(
        dag,
        inputs=shape[0] if convolutions else math.prod(shape),
        width=width,
        classes=_CLASSES,
        kernel_size=3 if convolutions else None,
    )


class DigitsDAG(_DagTask):
    """The digits and splits of `DigitsCNN`, and a network whose architecture is searched.

    The space is of the learning rate, from 1e-4 to 1 (logarithmic), `depth` (1 to 6), `width` (16
    to 128 units or 4 to 32 channels, logarithmic), and the edges' `density` (0 to 1) and kind,
    `skip` (see `dag_string`); weight decay by option. A configuration may have
    `initialization="scaled"`. An epoch of an MLP takes a few hundredths of a second on a thread.

    Args:
        network: "mlp" or "cnn" (3×3 kernels), without normalisation.
        lr: The learning rate of the default configuration.
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Images in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched, the learning rate or the architecture or both.
        device: Where to train.
    """

    name = "digits-dag"
    description = "scikit-learn's digits; depth, width and topology of an MLP or CNN with SGD"

    def __init__(
        self,
        *,
        network: str = "mlp",
        lr: float = 1e-3,
        optimizer: str = "sgd",
        epochs: int = 10,
        batch_size: int = 64,
        schedule: str = "cosine",
        parameters: Sequence[str] = ("lr", "depth", "width", "density", "skip"),
        device: str = "cpu",
    ) -> None:
        super().__init__(
            DigitsMLP(),
            (1, 8, 8),
            network=network,
            lr=lr,
            parameters=parameters,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            device=device,
        )


class FashionMNISTDAG(_DagTask):
    """The images of `FashionMNISTResNet`, and a network whose architecture is searched.

    See `DigitsDAG` for the space.

    Args:
        data_dir: The only place to look for the files.
        train_size: Training images.
        validation_size: Validation images.
        image_size: Height and width; 14 halves them.
        network: "mlp" or "cnn" (3×3 kernels), without normalisation.
        lr: The learning rate of the default configuration.
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Images in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched, the learning rate or the architecture or both.
        device: Where to train.
    """

    name = "fashion-mnist-dag"
    description = "Fashion-MNIST; depth, width and topology of an MLP or CNN with SGD"

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        train_size: int = 5_000,
        validation_size: int = 2_000,
        image_size: int = 14,
        network: str = "mlp",
        lr: float = 1e-3,
        optimizer: str = "sgd",
        epochs: int = 10,
        batch_size: int = 64,
        schedule: str = "cosine",
        parameters: Sequence[str] = ("lr", "depth", "width", "density", "skip"),
        device: str = "cpu",
    ) -> None:
        images = FashionMNISTResNet(
            data_dir=data_dir,
            train_size=train_size,
            validation_size=validation_size,
            image_size=image_size,
        )
        super().__init__(
            images,
            (1, image_size, image_size),
            network=network,
            lr=lr,
            parameters=parameters,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            device=device,
        )
        for name in ("data_dir", "train_size", "validation_size", "image_size"):
            self.options[name] = images.options[name]
