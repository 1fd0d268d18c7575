"""The networks of the field by name, for images of any size: ResNets, VGG-16, wide ResNets.

Importing this module imports torch; torchvision is imported where its networks are made.
"""

from __future__ import annotations

from torch import nn

from tune_ext._wide_resnet import wide_resnet
from tune_ext.benchmark.tasks._networks import ResNet

__all__ = ["make"]

_SMALL = 64
"""Up to so many pixels a ResNet has the stem for small images."""


def _resnet(name: str, channels: int, classes: int, size: int) -> nn.Module:
    """A ResNet of torchvision; for small images with a 3×3 stem that does not make them smaller."""
    from torchvision import models

    network: nn.Module = getattr(models, name)(weights=None, num_classes=classes)
    if size <= _SMALL:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    return network


def _vgg16(channels: int, classes: int, size: int) -> nn.Module:
    """VGG-16 of torchvision with batch normalisation, pooled into one linear layer.

    The two wide layers with dropout are for images of 224 pixels. An image has to be of 32
    pixels to be halved five times: smaller ones are halved less often.
    """
    from torchvision import models

    network: nn.Module = models.vgg16_bn(weights=None, init_weights=False, num_classes=classes)
    layers = list(network.get_submodule("features").children())
    if channels != 3:
        layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    for i in pools[size.bit_length() - 1 :]:
        layers[i] = nn.Identity()
    network.features = nn.Sequential(*layers)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, classes)
    return network


def make(name: str, *, channels: int, classes: int, size: int, width: int) -> nn.Module:
    """A network by name, on torch's default device.

    Args:
        name: "small-resnet", "resnet18", "resnet34", "vgg16" or "wrn-DEPTH-WIDTH".
        channels: Channels of the images.
        classes: How many classes there are.
        size: Height and width of the images.
        width: Channels of the first stage of "small-resnet".
    """
    if name == "small-resnet":
        return ResNet(channels, classes, width, (1, 1, 1))
    if name.startswith("wrn-"):
        _, depth, factor = name.split("-")
        return wide_resnet(int(depth), int(factor), channels, classes)
    if name == "vgg16":
        network = _vgg16(channels, classes, size)
    else:
        network = _resnet(name, channels, classes, size)
    network.he = True  # type: ignore[assignment]
    return network
