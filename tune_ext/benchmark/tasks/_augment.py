"""Training images that differ a little each epoch. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """A crop after padding with zeros, and perhaps a flip from left to right.

    Attributes:
        padding: Pixels added on each side before the crop to the old size.
        flip: Whether half of the images are flipped.
    """

    padding: int
    flip: bool

    def draw(self, count: int, *, seed: int) -> Callable[..., Tensor]:
        """Draw an epoch's crops and flips.

        Args:
            count: How many images an epoch has.
            seed: Decides all of them.

        Returns:
            A function of a batch of images, N × C × H × W, and of `which` images these are
            (N indices below `count`).
        """
        generator = torch.Generator().manual_seed(seed)
        shifts = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        flips = torch.randint(0, 2, (count,), generator=generator, dtype=torch.bool)
        if not self.flip:
            flips = torch.zeros_like(flips)

        def vary(images: Tensor, which: Tensor) -> Tensor:
            n, channels, height, width = images.shape
            device = images.device
            (down, right), flipped = shifts[:, which.cpu()].to(device), flips[which.cpu()]
            rows = down[:, None] + torch.arange(height, device=device)
            columns = right[:, None] + torch.arange(width, device=device)
            columns = torch.where(flipped.to(device)[:, None], columns.flip(1), columns)
            return pad(images, [self.padding] * 4)[
                torch.arange(n, device=device)[:, None, None, None],
                torch.arange(channels, device=device)[:, None, None],
                rows[:, None, :, None],
                columns[:, None, None, :],
            ]

        return vary
