"""Training images that differ a little each epoch. Importing this module imports torch.

These are our own, and not those of torchvision.transforms.v2, because those draw from torch's
global generator (to fork it is no way out: it belongs to all threads, and Ray runs trainables in
one), and because RandomCrop, RandomHorizontalFlip and RandomErasing treat all images of a batch
alike: an image at a time they take longer than a step of a small network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

__all__ = ["Augmentation", "Cutout", "Mixup"]


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


@dataclass(frozen=True)
class Cutout:
    """Zeros in one square of each image (DeVries and Taylor, arXiv 1708.04552).

    The middle of the square is any pixel of the image, so that part of it may lie outside (in
    torchvision's RandomErasing it may not).

    Attributes:
        length: The side of the square in pixels; 0 leaves images as they are.
    """

    length: int

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Cut out of a batch of images, N × C × H × W, that have a mean of zero."""
        if self.length == 0:
            return images
        n, _, height, width = images.shape
        rows = self._outside(height, torch.from_numpy(rng.integers(height, size=n)))
        columns = self._outside(width, torch.from_numpy(rng.integers(width, size=n)))
        kept = rows[:, None, :, None] | columns[:, None, None, :]
        return images * kept.to(images.device)

    def _outside(self, size: int, middle: Tensor) -> Tensor:
        """Whether rows are outside the square, N × size, by the row of each square's middle."""
        start = middle - self.length // 2
        where = torch.arange(size)
        return (where < start[:, None]) | (where >= start[:, None] + self.length)


@dataclass(frozen=True)
class Mixup:
    """Weighted means of two images and of their classes (Zhang et al., arXiv 1710.09412).

    One weight, from Beta(α, α), serves all images of a batch, as published; each is mixed with
    another one of the batch, drawn without replacement.

    Attributes:
        alpha: α; 0 leaves images as they are.
        classes: How many there are.
    """

    alpha: float
    classes: int

    def __call__(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: N × C × H × W.
            targets: N classes.
            rng: Draws the weight and the pairs.

        Returns:
            The images, and, if they are mixed, the share of each class, N × classes. The cross
            entropy of these is the weighted mean of both classes' cross entropies.
        """
        if self.alpha == 0:
            return images, targets
        weight = float(rng.beta(self.alpha, self.alpha))
        other = torch.from_numpy(rng.permutation(len(images))).to(images.device)
        shares = one_hot(targets, self.classes).to(images.dtype)
        mixed = (weight * some + (1 - weight) * some[other] for some in (images, shares))
        return next(mixed), next(mixed)
