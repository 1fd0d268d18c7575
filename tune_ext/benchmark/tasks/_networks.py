"""The networks of the tasks, with reproducible initial weights.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["BasicBlock", "ResNet", "build", "mlp", "plain_cnn"]


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs, 3, stride)
        self.second = _conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet for small images: the widths double and the size halves per stage.

    With `blocks=(1, 1, 1)` it has 9 convolutions: the stem, two in each block, and the
    1×1 shortcuts of the second and third stage.

    Args:
        channels: Channels of the images.
        classes: How many classes there are.
        width: Channels of the stem and the first stage.
        blocks: Basic blocks in each stage.
    """

    def __init__(self, channels: int, classes: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = _conv_norm(channels, width, 3)
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(inputs, width * 2**stage, stride))
                inputs = width * 2**stage
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, classes)."""
        x = self.stages(torch.relu(self.stem(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def plain_cnn(
    channels: int, classes: int, widths: Sequence[int], strides: Sequence[int]
) -> nn.Sequential:
    """A stack of 3×3 convolutions with batch normalisation, pooled into one linear layer.

    Args:
        channels: Channels of the images.
        classes: How many classes there are.
        widths: Output channels of each convolution.
        strides: Stride of each convolution.
    """
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise([channels, *widths]), strides, strict=True):
        layers += [_conv_norm(inputs, outputs, 3, stride), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)
    )


def mlp(inputs: int, outputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them.

    Args:
        inputs: Values of an example, of any shape.
        outputs: Values of an answer.
        hidden: The width of each layer but the last.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([inputs, *hidden]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], outputs))


def build(make: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """Build a network on the CPU with initial weights from `seed` alone.

    Convolutions and linear layers have torch's own initial weights; the convolutions of a
    network with an attribute `he` that is true have He's (arXiv 1502.01852, by fan-out).

    The module is made without storage first, so that torch's global random state is
    neither read nor changed.

    Args:
        make: Makes the module, on torch's default device.
        seed: Decides the weights.
    """
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    he = bool(getattr(network, "he", False))
    for module in network.modules():
        _initialise(module, generator, he)
    return network


@torch.no_grad()
def _initialise(module: nn.Module, generator: torch.Generator, he: bool) -> None:
    """Torch's own initial weights: uniform in ±1/√fan_in, for biases too; or He's."""
    if he and isinstance(module, nn.Conv2d):
        fan_out = module.weight[:, 0].numel() / module.groups
        module.weight.normal_(0, math.sqrt(2 / fan_out), generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        bound = 1 / math.sqrt(module.weight[0].numel())
        module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            module.bias.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_running_stats()
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif module._parameters or module._buffers:
        raise NotImplementedError(f"no initial weights for a {type(module).__name__}")
