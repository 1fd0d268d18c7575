"""Pre-activation residual networks of any widths and depths, as wide ResNets have (torch).

Sources: the block is B(3,3) of Zagoruyko and Komodakis, "Wide residual networks" (BMVC 2016,
arXiv 1605.07146); blocks, widths and branches by group are those of Zela, Klein, Falkner, Hutter,
"Towards automated deep learning" (arXiv 1807.06906).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tune_ext._checks import (
    LARGEST_LAYER,
    MOST_LAYERS,
    as_number,
    check_choice,
    check_count,
    check_positive,
)
from tune_ext._on_meta import built_on_meta
from tune_ext._shake import COEFFICIENTS, Coefficients, ShakeDrop, ShakeShake, check_death_rate
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["PreActResNet", "count_parameters", "joint_network", "wide_resnet"]

_GROUPS = 3


class _Branch(nn.Sequential):
    """Convolution, normalisation, ReLU, convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)


class _Block(nn.Module):
    """Residual branches beside a shortcut.

    The branches, and the 1×1 convolution of a shortcut that changes size or channels, start
    from the same normalisation and ReLU.

    Args:
        inputs: Channels before the block.
        outputs: Channels behind it.
        stride: By how much the block makes images smaller.
        branches: How many residual branches there are.
        shake: What joins several branches, or changes the only one; None if nothing does.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, branches: int, shake: nn.Module | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.branches = nn.ModuleList(_Branch(inputs, outputs, stride) for _ in range(branches))
        self.shake = shake
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        active = torch.relu(self.norm1(x))
        terms = [branch(active) for branch in self.branches]
        residual: Tensor = terms[0]
        if self.shake is not None:
            residual = self.shake(terms if len(terms) > 1 else residual)
        return residual + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(nn.Module):
    """Three groups of pre-activation residual blocks between a 3×3 stem and global pooling.

    A residual branch is a 3×3 convolution, batch normalisation, ReLU and a 3×3 convolution;
    every block starts with batch normalisation and ReLU. The first block of the second and the
    third group halves the image. Where a group has several branches, Shake-Shake joins them;
    where it has one, ShakeDrop drops it: block l of L, counted through the network, with a
    probability of l/L·death_rate (arXiv 1802.02375). With one branch and a death_rate of 0 the
    network is a wide ResNet (arXiv 1605.07146) without dropout.

    Args:
        channels: Channels of the images.
        classes: How many classes there are.
        blocks: Residual blocks in each group.
        filters: Channels of the stem.
        widen: By how much each group multiplies the channels of what is before it; rounded.
        branches: Residual branches in each block of a group.
        death_rate: How often the last block's branch is dropped, where it is the only one.
        coefficients: The weights that Shake-Shake draws: "uniform" or "softmax" (see
            `tune_ext.models.ShakeShake`).

    Raises:
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: An argument is out of its range.

    >>> network = PreActResNet(3, 10, blocks=(1, 2, 1), filters=8, widen=(0.5, 2, 1.3))
    >>> [group[0].shortcut.out_channels for group in network.groups]
    [4, 8, 10]
    >>> network(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    he = True
    """Tells the tasks of this package to draw He's initial weights (arXiv 1502.01852)."""

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        blocks: Sequence[int] = (2, 2, 2),
        filters: int = 16,
        widen: Sequence[float] = (1, 2, 2),
        branches: Sequence[int] = (1, 1, 1),
        death_rate: float = 0.0,
        coefficients: Coefficients = "uniform",
    ) -> None:
        super().__init__()
        channels = check_count("channels", channels, 1, LARGEST_LAYER)
        classes = check_count("classes", classes, 1, LARGEST_LAYER)
        counts = [
            check_count("blocks", count, 1, MOST_LAYERS) for count in _three("blocks", blocks)
        ]
        factors = [
            check_positive("widen", factor, below=LARGEST_LAYER)
            for factor in _three("widen", widen)
        ]
        several = [
            check_count("branches", count, 1, MOST_LAYERS) for count in _three("branches", branches)
        ]
        death_rate = check_death_rate(death_rate)
        check_choice("coefficients", coefficients, COEFFICIENTS)
        inputs = check_count("filters", filters, 1, LARGEST_LAYER)
        self.stem = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.groups = nn.Sequential()
        depth = 0
        for i in range(_GROUPS):
            group, outputs = nn.Sequential(), max(1, round(inputs * factors[i]))
            for block in range(counts[i]):
                depth += 1
                shake: nn.Module | None = None
                if several[i] > 1:
                    shake = ShakeShake(coefficients)
                elif death_rate:
                    shake = ShakeDrop(death_rate * depth / sum(counts))
                stride = 2 if i and not block else 1
                group.append(_Block(inputs, outputs, stride, several[i], shake))
                inputs = outputs
            self.groups.append(group)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, classes)."""
        x = torch.relu(self.norm(self.groups(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def _three(name: str, values: Any) -> Sequence[Any]:
    """`values`, if they are a value for each group."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidTypeError(f"{name} must be three numbers, one for each group, got {values!r}")
    if len(values) != _GROUPS:
        raise InvalidValueError(f"{name} must be three numbers, one for each group, got {values!r}")
    return values


def wide_resnet(depth: int, width: float, channels: int = 3, classes: int = 10) -> PreActResNet:
    """WRN-depth-width of Zagoruyko and Komodakis (arXiv 1605.07146), without dropout.

    Args:
        depth: 6n + 4 for n blocks in each group.
        width: By how much the groups are wider than 16, 32 and 64 channels.
        channels: Channels of the images.
        classes: How many classes there are.

    Raises:
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: An argument is out of its range.

    >>> count_parameters(lambda: wide_resnet(28, 10))
    36479194
    """
    depth = check_count("depth", depth, 10, MOST_LAYERS)
    if depth % 6 != 4:
        raise InvalidValueError(f"depth must be 6n + 4, as 16, 28 or 40, got {depth}")
    blocks = [(depth - 4) // 6] * _GROUPS
    return PreActResNet(channels, classes, blocks=blocks, widen=(width, 2, 2))


def joint_network(
    config: Mapping[str, Any],
    channels: int,
    classes: int,
    *,
    coefficients: Coefficients = "uniform",
) -> PreActResNet:
    """The network of a configuration of `tune_ext.spaces.joint_space`.

    Args:
        config: Has nr_residual_blocks_1, _2, _3, initial_filters, widen_factor_1, _2, _3,
            res_branches_1, _2, _3, and perhaps death_rate (without it 0); what else it has
            is left alone.
        channels: Channels of the images.
        classes: How many classes there are.
        coefficients: As for `PreActResNet`; "softmax" is that of the published code.

    Raises:
        InvalidTypeError: A value is not of its type.
        InvalidValueError: A value is missing or out of its range.

    >>> from tune_ext.spaces import JOINT_DEFAULTS
    >>> count_parameters(lambda: joint_network(JOINT_DEFAULTS, channels=3, classes=10))
    2748890
    """

    def three(name: str) -> list[Any]:
        return [value(f"{name}_{i}") for i in range(1, _GROUPS + 1)]

    def value(name: str) -> Any:
        if name not in config:
            raise InvalidValueError(f"config must have {name}, got {dict(config)!r}")
        return config[name]

    rate = config.get("death_rate")
    return PreActResNet(
        channels,
        classes,
        blocks=three("nr_residual_blocks"),
        filters=value("initial_filters"),
        widen=three("widen_factor"),
        branches=three("res_branches"),
        death_rate=0.0 if rate is None else as_number("death_rate", rate),
        coefficients=coefficients,
    )


def count_parameters(build: Callable[[], nn.Module]) -> int:
    """How many parameters a module has that is built without memory for them.

    Args:
        build: Builds the module.

    >>> count_parameters(lambda: nn.Linear(10**6, 10**6))
    1000001000000
    """
    with built_on_meta():
        return sum(parameter.numel() for parameter in build().parameters())
