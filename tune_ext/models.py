"""Networks whose architecture is a value: what architecture searches build and train.

* `DagMLP` and `DagCNN`: a stem, a directed acyclic graph such as "2_02_002" and a read-out, as in
  Chen, Wu, Wang, Hanin, "Principled Architecture-aware Scaling of Hyperparameters" (ICLR 2024,
  arXiv 2402.17440).
* `CellNetwork`: the networks of NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv 2001.00326).
* `random_dags`: graphs for the first two.
* `PreActResNet`: wide ResNets whose groups differ in depth, width and residual branches, joined
  by `ShakeShake` or dropped by `ShakeDrop`; `joint_network` builds the one of a configuration of
  `tune_ext.spaces.joint_space` (Zela, Klein, Falkner, Hutter, arXiv 1807.06906), `wide_resnet`
  the published WRN-28-10 and so on (Zagoruyko and Komodakis, arXiv 1605.07146), `seed_noise_`
  makes their noise repeatable, `count_parameters` counts what any of these has.
* `growth_network`: convolutions, each followed by a pooling, then fully connected layers, for
  images of any size (Hinz, Navarro-Guerrero, Magg, Wermter, arXiv 1807.07362); its space is
  `tune_ext.spaces.growth_space`.

What an architecture does not use is not built: no edge "0" or "none", and none that no path from
the input to the output runs through. Weights are torch's own until something else sets them
(`tune_ext.scaling.Plan.initialize_` does, from a generator of its own). Under
``torch.device("meta")`` a network has no storage and drawing its weights costs nothing.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn

from tune_ext._checks import LARGEST_LAYER, MOST_LAYERS, check_choice, check_count, check_flag
from tune_ext._dags import alive, parse_cell, parse_dag
from tune_ext._growth_network import growth_network
from tune_ext._random import check_seed
from tune_ext._shake import ShakeDrop, ShakeShake, seed_noise_
from tune_ext._wide_resnet import PreActResNet, count_parameters, joint_network, wide_resnet
from tune_ext.errors import InvalidValueError

__all__ = [
    "CellNetwork",
    "DagCNN",
    "DagMLP",
    "PreActResNet",
    "ShakeDrop",
    "ShakeShake",
    "count_parameters",
    "growth_network",
    "joint_network",
    "random_dags",
    "seed_noise_",
    "wide_resnet",
]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class _Dag(nn.Module):
    """Nodes that are sums of their incoming edges.

    Args:
        groups: For each node but the first, an entry for every earlier node.
        make: Makes the module of an edge from its entry.
    """

    def __init__(self, groups: Sequence[Sequence[str]], make: Callable[[str], nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        self._sources: list[list[int]] = []
        for j, (group, live) in enumerate(zip(groups, alive(groups), strict=True), start=1):
            self._sources.append([k for k, is_alive in enumerate(live) if is_alive])
            for k in self._sources[-1]:
                self.edges[f"{k}_to_{j}"] = make(group[k])

    def forward(self, x: Tensor) -> Tensor:
        nodes: list[Tensor | None] = [x]
        for j, sources in enumerate(self._sources, start=1):
            total: Tensor | None = None
            for k in sources:
                term: Tensor = self.edges[f"{k}_to_{j}"](nodes[k])
                total = term if total is None else total + term
            nodes.append(total)
        last = nodes[-1]
        assert last is not None  # a path leads there, or the string would not have been read
        return last


def _layer(layer: nn.Module, norm: nn.Module | None, activation: str) -> nn.Sequential:
    parts = {"layer": layer, "norm": norm, "activation": _ACTIVATIONS[activation]()}
    block = nn.Sequential()
    for name, part in parts.items():
        if part is not None:
            block.add_module(name, part)
    return block


class DagMLP(nn.Module):
    """A multilayer perceptron whose hidden layers form a directed acyclic graph.

    A stem (inputs → width), the graph, and a linear read-out (width → classes). A weighted edge
    and the stem are a linear layer, batch normalisation if asked for, and the activation.

    Args:
        dag: Groups of characters, "2_02_002": character k of group j is the edge from node k to
            node j + 1 (counted from 0); 0 is none, 1 the identity, 2 a weighted layer.
        inputs: Values of an example; its shape does not matter.
        width: Units of every hidden layer.
        classes: Values of an answer.
        activation: "relu", "gelu", "silu", "tanh", "elu", "leaky_relu", "hardswish", "identity".
        norm: Whether every layer but the read-out is followed by batch normalisation.
        bias: Whether layers have biases.

    Raises:
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: The string is no such graph, or no path leads through it; or a size
            is below 1.

    >>> import torch
    >>> DagMLP("2_02", inputs=64, width=16, classes=10)(torch.ones(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        dag: str,
        inputs: int,
        width: int,
        classes: int,
        activation: str = "relu",
        norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        groups = parse_dag(dag)
        inputs = check_count("inputs", inputs, 1, LARGEST_LAYER)
        classes = check_count("classes", classes, 1, LARGEST_LAYER)
        width = check_count("width", width, 1, LARGEST_LAYER)
        check_choice("activation", activation, _ACTIVATIONS)
        check_flag("norm", norm)
        check_flag("bias", bias)
        self.dag = dag

        def layer(before: int) -> nn.Module:
            linear = nn.Linear(before, width, bias=bool(bias))
            return _layer(linear, nn.BatchNorm1d(width) if norm else None, activation)

        self.stem = layer(inputs)
        self.graph = _Dag(groups, lambda edge: layer(width) if edge == "2" else nn.Identity())
        self.readout = nn.Linear(width, classes, bias=bool(bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map examples (N, …) of `inputs` values each to answers (N, classes)."""
        answer: Tensor = self.readout(self.graph(self.stem(x.flatten(1))))
        return answer


class DagCNN(nn.Module):
    """A convolutional network whose hidden layers form a directed acyclic graph.

    A stem (channels → width), the graph, global average pooling, and a linear read-out
    (width → classes). A weighted edge and the stem are a convolution, batch normalisation if
    asked for, and the activation.

    Args:
        dag: As for `DagMLP`.
        channels: Channels of the images.
        width: Channels of every hidden layer.
        classes: Values of an answer.
        kernel_size: Height and width of every kernel.
        stride: Stride of the stem. Edges keep the size, so that what they lead to can be added
            (the published code gives the stride to all of them and was run with 1).
        activation: As for `DagMLP`.
        norm: Whether every convolution is followed by batch normalisation.
        bias: Whether layers have biases.

    Raises:
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: As for `DagMLP`.

    >>> import torch
    >>> DagCNN("2_02", channels=1, width=4, classes=10)(torch.ones(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        dag: str,
        channels: int,
        width: int,
        classes: int,
        kernel_size: int = 3,
        stride: int = 1,
        activation: str = "relu",
        norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        groups = parse_dag(dag)
        channels = check_count("channels", channels, 1, LARGEST_LAYER)
        classes = check_count("classes", classes, 1, LARGEST_LAYER)
        width = check_count("width", width, 1, LARGEST_LAYER)
        kernel_size = check_count("kernel_size", kernel_size, 1, MOST_LAYERS)
        stride = check_count("stride", stride, 1, LARGEST_LAYER)
        check_choice("activation", activation, _ACTIVATIONS)
        check_flag("norm", norm)
        check_flag("bias", bias)
        self.dag = dag

        def layer(before: int, step: int) -> nn.Module:
            padding: int | str = "same" if step == 1 else (kernel_size - 1) // 2
            conv = nn.Conv2d(before, width, kernel_size, step, padding=padding, bias=bool(bias))
            return _layer(conv, nn.BatchNorm2d(width) if norm else None, activation)

        self.stem = layer(channels, stride)
        self.graph = _Dag(groups, lambda edge: layer(width, 1) if edge == "2" else nn.Identity())
        self.readout = nn.Linear(width, classes, bias=bool(bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to answers (N, classes)."""
        answer: Tensor = self.readout(self.graph(self.stem(x)).mean(dim=(2, 3)))
        return answer


class _ReLUConvNorm(nn.Sequential):
    """ReLU, a convolution without bias that keeps the size but for its stride, normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class _Reduction(nn.Module):
    """The residual block between two stages: half the size, twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _ReLUConvNorm(channels, 2 * channels, 3, stride=2)
        self.second = _ReLUConvNorm(2 * channels, 2 * channels, 3)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.second(self.first(x))
        return y


def _operation(name: str, channels: int) -> nn.Module:
    """An operation of a NAS-Bench-201 cell that keeps size and channels."""
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return _ReLUConvNorm(channels, channels, 3 if name == "nor_conv_3x3" else 1)


class CellNetwork(nn.Module):
    """A network of NAS-Bench-201 (arXiv 2001.00326, figure 1): one cell, repeated.

    A 3×3 stem with batch normalisation; three stages of `cells` cells each, with `width`,
    2·`width` and 4·`width` channels; between them a residual block of stride 2; then
    normalisation, ReLU, global average pooling and a linear read-out. The convolutions of a cell
    are ReLU, convolution, batch normalisation.

    Args:
        cell: The published string of a cell, with an operation from every earlier node:
            "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|".
        channels: Channels of the images.
        classes: Values of an answer.
        width: Channels of the first stage.
        cells: Cells in each stage.

    Raises:
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: The string is no such cell, or no path leads through it; or a size is
            below 1.

    >>> import torch
    >>> cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|"
    >>> CellNetwork(cell, channels=3, classes=10, width=4, cells=1)(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, cell: str, channels: int, classes: int, width: int = 16, cells: int = 5
    ) -> None:
        super().__init__()
        nodes = parse_cell(cell)
        channels = check_count("channels", channels, 1, LARGEST_LAYER)
        classes = check_count("classes", classes, 1, LARGEST_LAYER)
        width = check_count("width", width, 1, LARGEST_LAYER)
        cells = check_count("cells", cells, 1, MOST_LAYERS)
        self.cell = cell
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.stages = nn.Sequential()
        for stage in range(3):
            size = width * 2**stage
            if stage:
                self.stages.append(_Reduction(size // 2))
            for _ in range(cells):
                self.stages.append(_Dag(nodes, partial(_operation, channels=size)))
        self.last = nn.Sequential(nn.BatchNorm2d(4 * width), nn.ReLU())
        self.readout = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to answers (N, classes)."""
        answer: Tensor = self.readout(self.last(self.stages(self.stem(x))).mean(dim=(2, 3)))
        return answer


def random_dags(nodes: int, count: int, seed: int | None = None) -> list[str]:
    """Different graphs for `DagMLP` and `DagCNN`, uniformly drawn among those without dead edges.

    An edge is dead when no path from the first node to the last one runs through it: two strings
    that differ in dead edges are one network.

    Args:
        nodes: Nodes of a graph, the first and the last one included: 4 for "2_02_002".
        count: How many graphs.
        seed: Decides the graphs; None: others each time.

    Raises:
        InvalidTypeError: An argument is not a whole number.
        InvalidValueError: `nodes` is below 2, or there are fewer than `count` such graphs.

    >>> random_dags(nodes=4, count=2, seed=0) == random_dags(nodes=4, count=2, seed=0)
    True
    """
    nodes = check_count("nodes", nodes, 2, MOST_LAYERS)
    count = check_count("count", count, 1, LARGEST_LAYER)
    rng = np.random.default_rng(check_seed(seed))
    edges = nodes * (nodes - 1) // 2
    found: dict[str, None] = {}
    everything = rng.permutation(3**edges) if edges <= 10 else None
    tried = 0
    while len(found) < count:
        if everything is None:
            digits = rng.integers(3, size=edges)
        elif tried == len(everything):
            raise InvalidValueError(
                f"count must be at most {len(found)}, the number of graphs of {nodes} nodes "
                f"without dead edges, got {count}"
            )
        else:
            digits = everything[tried] // 3 ** np.arange(edges) % 3
        tried += 1
        dag = _as_string(digits, nodes)
        if _has_no_dead_edge(dag):
            found[dag] = None
    return list(found)


def _as_string(digits: np.ndarray[tuple[int, ...], np.dtype[np.int64]], nodes: int) -> str:
    text = "".join(map(str, digits.tolist()))
    return "_".join(text[j * (j - 1) // 2 : j * (j + 1) // 2] for j in range(1, nodes))


def _has_no_dead_edge(dag: str) -> bool:
    groups = dag.split("_")
    live = alive(groups)
    return any(live[-1]) and all(
        is_alive == (edge != "0")
        for group, row in zip(groups, live, strict=True)
        for edge, is_alive in zip(group, row, strict=True)
    )
