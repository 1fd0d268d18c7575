"""The convolutional network of Hinz et al., arXiv 1807.07362. Importing this imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tune_ext._checks import check_count, check_flag
from tune_ext.errors import InvalidConfigurationError, InvalidValueError

__all__ = ["growth_network", "most_poolings"]


def most_poolings(size: int) -> int:
    """How often the height and width of an image can be halved, rounded down.

    >>> [most_poolings(size) for size in (14, 21, 28, 32, 128)]
    [3, 4, 4, 5, 7]
    """
    return check_count("size", size).bit_length() - 1


def growth_network(
    config: Mapping[str, Any],
    channels: int,
    classes: int,
    size: int,
    *,
    global_pooling: bool = False,
) -> nn.Sequential:
    """Build the network of arXiv 1807.07362 for images of one size.

    Each of `conv_layers` convolutions (zero padding keeps the size, ReLU) is followed by a 2×2
    max-pooling, so that the image is a quarter of what it was; `fc_layers` fully connected layers
    with ReLU follow, and a linear read-out of logits, whose softmax is in the loss. Weights are
    torch's own until something else sets them.

    Args:
        config: conv_layers; filters_i and kernel_radius_i of each (a kernel has 2r + 1 pixels a
            side); fc_layers, 0 for none; units_i of each. Whatever else it has is ignored: also
            the values of layers that there are not. See `tune_ext.spaces.growth_space`.
        channels: Channels of the images.
        classes: Values of an answer.
        size: Height and width of the images.
        global_pooling: Whether the last maps are averaged over their pixels: the weights then
            fit images of any size. Otherwise they are flattened, and the first fully connected
            layer has as many inputs as the size makes them.

    Returns:
        A module from (N, channels, size, size) to (N, classes).

    Raises:
        InvalidTypeError: A number of something is no whole number.
        InvalidConfigurationError: There are more poolings than the size allows.
        InvalidValueError: A value is missing, or a number is below 1.

    >>> import torch
    >>> config = {"conv_layers": 2, "filters_1": 8, "kernel_radius_1": 1, "filters_2": 16,
    ...           "kernel_radius_2": 2, "fc_layers": 1, "units_1": 32}
    >>> network = growth_network(config, channels=1, classes=10, size=28)
    >>> network(torch.zeros(5, 1, 28, 28)).shape, network.fc_1.in_features  # 16 × 7 × 7
    (torch.Size([5, 10]), 784)
    >>> growth_network({**config, "conv_layers": 4}, channels=1, classes=10, size=14)
    Traceback (most recent call last):
    tune_ext.errors.InvalidConfigurationError: conv_layers must be at most 3 for images of 14×14,
    because each is followed by a pooling (14 → 7 → 3 → 1), got 4
    """
    check_flag("global_pooling", global_pooling)
    before, classes = check_count("channels", channels), check_count("classes", classes)
    convolutions = _count(config, "conv_layers")
    _check_poolings(convolutions, size)
    network = nn.Sequential()
    for layer in range(1, convolutions + 1):
        filters, radius = (
            _count(config, f"filters_{layer}"),
            _count(config, f"kernel_radius_{layer}"),
        )
        convolution = nn.Conv2d(before, filters, 2 * radius + 1, padding=radius)
        network.add_module(f"conv_{layer}", convolution)
        network.add_module(f"conv_{layer}_relu", nn.ReLU())
        network.add_module(f"pool_{layer}", nn.MaxPool2d(2))
        before = filters
    if global_pooling:
        network.add_module("average", nn.AdaptiveAvgPool2d(1))
    else:
        before *= (size >> convolutions) ** 2
    network.add_module("flatten", nn.Flatten())
    for layer in range(1, _count(config, "fc_layers", least=0) + 1):
        units = _count(config, f"units_{layer}")
        network.add_module(f"fc_{layer}", nn.Linear(before, units))
        network.add_module(f"fc_{layer}_relu", nn.ReLU())
        before = units
    network.add_module("readout", nn.Linear(before, classes))
    return network


def _count(config: Mapping[str, Any], name: str, least: int = 1) -> int:
    if config.get(name) is None:
        raise InvalidValueError(f"the configuration lacks {name!r}, which its layers need")
    return check_count(f"config[{name!r}]", config[name], least)


def _check_poolings(count: int, size: int) -> None:
    most = most_poolings(size)
    if count > most:
        sizes = " → ".join(str(size >> k) for k in range(most + 1))
        raise InvalidConfigurationError(
            f"conv_layers must be at most {most} for images of {size}×{size}, because each is "
            f"followed by a pooling ({sizes}), got {count}"
        )
