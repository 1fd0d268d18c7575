"""What the studies of DAG networks share: networks, initial weights, data, training, records.

A network is trained by plain SGD: no momentum, no weight decay, a constant rate. A seed decides
the initial weights and the order of the batches, and both are the same for every rate. Networks
of one architecture are trained side by side by `torch.vmap` where that is faster (multilayer
perceptrons; not convolutions); one that diverges harms no other one.
"""

from __future__ import annotations

import math
import platform
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from tune_ext import scaling
from tune_ext._random import derive_seed, generator
from tune_ext.benchmark.tasks._datasets import CIFAR10, FASHION_MNIST, open_part
from tune_ext.models import DagCNN, DagMLP

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from experiments.lines import append, read  # noqa: E402

__all__ = [
    "INITS",
    "Images",
    "Network",
    "Result",
    "append",
    "as_record",
    "chain",
    "load",
    "plan_of",
    "read",
    "start",
    "train",
    "versions",
]

Array = NDArray[np.float64]
DATA = {"fashion-mnist": FASHION_MNIST, "cifar10": CIFAR10}
# What sets the initial weights: (in_degree, fan) of the plan; None for what needs no plan.
INITS: dict[str, tuple[str, str] | None] = {
    "target-in": ("target", "in"),
    "source-in": ("source", "in"),
    "target-out": ("target", "out"),
    "source-out": ("source", "out"),
    "published": None,
    "he": None,
    "torch": None,
}
SIDE_BY_SIDE = 32  # at most


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        kind: "mlp" or "cnn".
        dag: As for `DagMLP`.
        width: Units, or channels, of every hidden layer.
        kernel: Height and width of the kernels; 1 for "mlp".
        activation: "relu" or "gelu".
    """

    kind: Literal["mlp", "cnn"]
    dag: str
    width: int
    kernel: int = 1
    activation: str = "relu"

    def build(self, images: Images) -> nn.Module:
        """The network with torch's own initial weights."""
        channels, side = images.inputs.shape[1], images.inputs.shape[-1]
        if self.kind == "mlp":
            inputs = channels * side * side
            return DagMLP(self.dag, inputs, self.width, 10, activation=self.activation)
        return DagCNN(
            self.dag, channels, self.width, 10, kernel_size=self.kernel, activation=self.activation
        )


def chain(hidden: int) -> str:
    """The string of `hidden` layers one after another.

    >>> chain(3)
    '2_02_002'
    """
    return "_".join("0" * k + "2" for k in range(hidden))


# Data --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Images to train on and to test with, standardised by the former.

    Attributes:
        inputs: n × channels × side × side.
        labels: n.
        test_inputs: m × channels × side × side.
        test_labels: m.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


@cache
def load(name: str, side: int, train: int, test: int, data_dir: str | None = None) -> Images:
    """Some of a data set's images, the same ones each time.

    Args:
        name: A key of `DATA`.
        side: Height and width that they are brought to.
        train: How many of the training part.
        test: How many of the test part.
        data_dir: Where the files are, if not in one of the usual places.
    """
    data = DATA[name]
    folder = data.find(data_dir)
    if folder is None:
        raise SystemExit(f"no {data.title} here: {data.fetch}")

    def some(part: Literal["train", "test"], count: int) -> tuple[Tensor, Tensor]:
        everything = open_part(data, folder, part)
        order = generator(0, "images", part).permutation(len(everything.labels))
        rows = np.sort(order[:count])
        pixels = torch.from_numpy(everything.load(rows, side)).float()
        return pixels, torch.from_numpy(everything.labels[rows])

    inputs, labels = some("train", train)
    others, other_labels = some("test", test) if test else (inputs[:0], labels[:0])
    mean, deviation = inputs.mean((0, 2, 3), True), inputs.std((0, 2, 3), keepdim=True)
    return Images((inputs - mean) / deviation, labels, (others - mean) / deviation, other_labels)


# Initial weights ---------------------------------------------------------------------------


def start(network: Network, init: str, seed: int, images: Images) -> nn.Module:
    """The network with its initial weights.

    Args:
        network: The architecture.
        init: A key of `INITS`. Named by in-degree and fan: what `tune_ext.scaling` sets. "he":
            N(0, 2/fan_in) whatever the in-degree, and the same read-out. "torch": torch's own.
            "published": what the published code does.
        seed: Decides the weights.
        images: For their size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "torch's weights"))
        model = network.build(images)
    convention = INITS[init]
    if convention is not None:
        plan_of(network, images, *convention).initialize_(model, generator=seed)
    elif init == "he":
        _he(model, seed)
    elif init == "published":
        _published(model, network.dag, seed)
    return model


@cache
def _plan(network: Network, inputs: int, in_degree: Any, fan: Any, aggregate: Any) -> scaling.Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scaling.ScalingWarning)  # of GELU
        return scaling.plan_of_dag(
            network.dag,
            inputs=inputs,
            width=network.width,
            classes=10,
            kernel_size=network.kernel if network.kind == "cnn" else None,
            activation=network.activation,
            in_degree=in_degree,
            fan=fan,
            aggregate=aggregate,
        )


def plan_of(
    network: Network,
    images: Images | None = None,
    in_degree: str = "target",
    fan: str = "in",
    aggregate: str = "sum",
) -> scaling.Plan:
    """The network's plan; without images only the learning rate's part of it is right."""
    if images is None:
        return _plan(network, 1, in_degree, fan, aggregate)
    channels, side = images.inputs.shape[1], images.inputs.shape[-1]
    inputs = channels * side**2 if network.kind == "mlp" else channels
    return _plan(network, inputs, in_degree, fan, aggregate)


def _he(model: nn.Module, seed: int) -> None:
    rng = torch.Generator().manual_seed(derive_seed(seed, "he"))
    weights = [p for name, p in model.named_parameters() if p.dim() > 1]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for p in weights:
            fan = p[0].numel()
            deviation = math.sqrt(2) / fan if p is weights[-1] else math.sqrt(2 / fan)
            p.normal_(0, deviation, generator=rng)


def _published(model: nn.Module, dag: str, seed: int) -> None:
    """N(0, 2/(fan_out·d)), d edges into the node that an edge leaves; read-out (2/fan_out)²."""
    rng = torch.Generator().manual_seed(derive_seed(seed, "published"))
    degrees = [1, *(len(group) - group.count("0") for group in dag.split("_"))]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.zero_()
                continue
            variance = 2 / (p.shape[0] * p[0, 0].numel())
            if name.startswith("readout"):
                variance **= 2
            elif "_to_" in name:
                variance /= degrees[int(name.split("_to_")[0].rsplit(".", 1)[1])]
            p.normal_(0, math.sqrt(variance), generator=rng)


# Training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of a network; infinite losses where it diverged.

    Attributes:
        loss: Mean loss on the training images after the last epoch.
        running: Mean loss of the last epoch's batches, each before its step.
        accuracy: On the test images after the last epoch; NaN where there are none.
    """

    loss: float
    running: float
    accuracy: float


def train(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    seeds: Sequence[int],
    images: Images,
    *,
    batch: int,
    epochs: int = 1,
    side_by_side: bool,
) -> list[Result]:
    """Train networks of one architecture.

    Args:
        models: Their initial weights; they are left alone.
        rates: A learning rate for each.
        seeds: The seed of the order of its batches for each.
        images: The data.
        batch: Examples of a batch; an incomplete last one is left out.
        epochs: How often the images are seen.
        side_by_side: Whether `torch.vmap` trains many at once.
    """
    size = SIDE_BY_SIDE if side_by_side else 1
    out: list[Result] = []
    for k in range(0, len(models), size):
        here = slice(k, k + size)
        out += _train(models[here], rates[here], seeds[here], images, batch, epochs)
    return out


def _orders(seeds: Iterable[int], images: int, batch: int, epoch: int) -> dict[int, Tensor]:
    """Each seed's batches of an epoch, steps × batch."""
    steps = images // batch
    return {
        seed: torch.from_numpy(
            generator(seed, "batches", epoch).permutation(images)[: steps * batch]
        ).view(steps, batch)
        for seed in set(seeds)
    }


def _train(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    seeds: Sequence[int],
    images: Images,
    batch: int,
    epochs: int,
) -> list[Result]:
    net, alone = models[0], len(models) == 1
    stacked, _ = stack_module_state(list(models))
    weights = {
        name: (p[0] if alone else p).detach().clone().requires_grad_()
        for name, p in stacked.items()
    }
    if alone:
        forward = lambda w, x: functional_call(net, w, (x[0],))[None]  # noqa: E731
    else:
        forward = vmap(lambda w, x: functional_call(net, w, (x,)))
    steps = torch.tensor(rates)
    running = torch.zeros(len(models))
    for epoch in range(epochs):
        orders = _orders(seeds, len(images.labels), batch, epoch)
        running = torch.zeros(len(models))
        count = len(images.labels) // batch
        for step in range(count):
            rows = torch.stack([orders[seed][step] for seed in seeds])
            losses = _losses(forward(weights, images.inputs[rows]), images.labels[rows])
            running += losses.detach() / count
            if alone and not math.isfinite(losses.item()):
                return [Result(math.inf, math.inf, math.nan)]
            gradients = torch.autograd.grad(losses.sum(), list(weights.values()))
            with torch.no_grad():
                for p, gradient in zip(weights.values(), gradients, strict=True):
                    p -= (
                        steps.view(-1, *[1] * (gradient.dim() - 1)) * gradient
                        if not alone
                        else (steps[0] * gradient)
                    )
    with torch.no_grad():
        loss, _ = _evaluate(forward, weights, images.inputs, images.labels, len(models))
        _, hits = _evaluate(forward, weights, images.test_inputs, images.test_labels, len(models))
    return [
        Result(*(v if math.isfinite(v) else math.inf for v in (a, b)), c)
        for a, b, c in zip(loss.tolist(), running.tolist(), hits.tolist(), strict=True)
    ]


def _losses(answers: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of each network: answers networks × batch × classes."""
    each = functional.cross_entropy(answers.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(1)


def _evaluate(
    forward: Any, weights: dict[str, Tensor], inputs: Tensor, labels: Tensor, networks: int
) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy of each network; NaN where there are no images."""
    loss, hits = torch.zeros(networks), torch.zeros(networks)
    for x, y in zip(inputs.split(512), labels.split(512), strict=True) if len(labels) else ():
        answers = forward(weights, x.expand(networks, *x.shape))
        loss += _losses(answers, y.expand(networks, -1)) * len(y)
        hits += (answers.argmax(-1) == y).sum(1)
    return loss / len(labels) if len(labels) else loss * math.nan, (
        hits / len(labels) if len(labels) else hits * math.nan
    )


# Records -----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "threads": str(torch.get_num_threads()),
    }


def as_record(network: Network) -> dict[str, Any]:
    """The network as JSON has it."""
    return asdict(network)
