"""Noise that takes the place of dropout in residual networks: Shake-Shake and ShakeDrop (torch).

Both multiply what residual branches compute by random numbers, other ones in the backward pass
than in the forward pass, and in evaluation mode by the expectation:

* Shake-Shake (Gastaldi, 2017, arXiv 1705.07485): y = Σ_i α_i·f_i(x), and ∂L/∂f_i = β_i·∂L/∂y,
  where α and β are independent and uniform among the weights that are positive and add up to 1.
* ShakeDrop (Yamada, Iwamura, Akiba, Kise, 2018, arXiv 1802.02375, equation 6):
  y = (b + α − b·α)·f(x), and ∂L/∂f = (b + β − b·β)·∂L/∂y, where b is 0 with the rate of the
  block and else 1, α uniform in [−1, 1] and β in [0, 1].

Every image has numbers of its own. So that a training can be repeated and continued, they can be
drawn from a generator of the model's own (`seed_noise_`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tune_ext._checks import as_number, check_choice
from tune_ext._random import check_seed
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["COEFFICIENTS", "Coefficients", "ShakeDrop", "ShakeShake", "seed_noise_"]

Coefficients = Literal["uniform", "softmax"]
COEFFICIENTS: tuple[Coefficients, ...] = get_args(Coefficients)


class _Weighted(torch.autograd.Function):
    """Σ_i α_i·x_i whose gradients are β_i times what comes in."""

    @staticmethod
    def forward(ctx: Any, forward: Tensor, backward: Tensor, *terms: Tensor) -> Tensor:
        """Add up the terms.

        Args:
            ctx: Of autograd.
            forward: α: (terms, N, 1, …).
            backward: β, of the same shape.
            terms: Tensors of one shape (N, …).
        """
        ctx.save_for_backward(backward)
        total = forward[0] * terms[0]
        for weight, term in zip(forward[1:], terms[1:], strict=True):
            total.addcmul_(weight, term)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of every term."""
        (weights,) = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        return (
            None,
            None,
            *(w * gradient if i else None for w, i in zip(weights, wanted, strict=True)),
        )


class _Noise(nn.Module):
    """What draws random numbers in training: from `generator`, or from torch's global one."""

    generator: torch.Generator | None = None

    def _draw(self, kind: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Numbers of a distribution: (…, N, 1, …), to be multiplied with `like` (N, …).

        They are single precision at least, also where `like` is not.
        """
        generator = None if like.is_meta else self.generator  # nothing is drawn on meta
        if generator is not None and generator.device.type != like.device.type:
            raise InvalidValueError(
                f"the noise is drawn on {generator.device} but the model runs on {like.device}: "
                "call seed_noise_ after moving the model"
            )
        shape = (*shape, like.shape[0], *[1] * (like.ndim - 1))
        dtype = torch.promote_types(like.dtype, torch.float32)
        numbers = torch.empty(shape, dtype=dtype, device=like.device)
        if kind == "exponential":
            return numbers.exponential_(generator=generator)
        return numbers.uniform_(generator=generator)


class ShakeShake(_Noise):
    """Adds residual branches up with random weights, in evaluation mode with equal ones.

    Weights of each image and pass: positive, of sum 1, and uniformly distributed among such; for
    two branches α and 1 − α with α uniform in [0, 1], as in the paper (arXiv 1705.07485, which
    has two branches only).

    Args:
        coefficients: "uniform", or "softmax": the softmax of numbers uniform in [0, 1], which are
            weaker noise (for two branches from .27 to .73), as in the published code of the
            joint search (arXiv 1807.06906).

    >>> shake = ShakeShake().eval()
    >>> shake([torch.tensor([[1.0]]), torch.tensor([[3.0]])])
    tensor([[2.]])
    """

    def __init__(self, coefficients: Coefficients = "uniform") -> None:
        super().__init__()
        check_choice("coefficients", coefficients, COEFFICIENTS)
        self.coefficients = coefficients

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        """Map at least one tensor (N, …), all of one shape, to one of that shape."""
        if not branches:
            raise InvalidValueError("Shake-Shake needs at least one branch, got none")
        first = branches[0]
        if not self.training:
            total = first
            for branch in branches[1:]:
                total = total + branch
            return total / len(branches)
        weights = self._weights(len(branches), first).to(first.dtype)
        mixed: Tensor = _Weighted.apply(weights[0], weights[1], *branches)
        return mixed

    def _weights(self, count: int, like: Tensor) -> Tensor:
        """α and β: (2, count, N, 1, …), of sum 1 along the branches."""
        if self.coefficients == "softmax":
            return self._draw("uniform", (2, count), like).softmax(dim=1)
        spacings = self._draw("exponential", (2, count), like)
        return spacings / spacings.sum(dim=1, keepdim=True)

    def extra_repr(self) -> str:
        """What is special about this one."""
        return f"coefficients={self.coefficients!r}"


class ShakeDrop(_Noise):
    """Multiplies a residual branch by random numbers where it is dropped; see the module.

    Args:
        death_rate: How often the branch of an image is dropped, from 0 to 1. In evaluation mode
            the branch counts 1 − death_rate, its expectation.

    >>> ShakeDrop(0.25).eval()(torch.ones(1, 2))
    tensor([[0.7500, 0.7500]])
    """

    def __init__(self, death_rate: float) -> None:
        super().__init__()
        self.death_rate = check_death_rate(death_rate)

    def forward(self, branch: Tensor) -> Tensor:
        """Map a tensor (N, …) to one of that shape."""
        if not self.training:
            return branch * (1 - self.death_rate)
        dropped, alpha, beta = self._draw("uniform", (3, 1), branch)
        dead = dropped < self.death_rate
        forward = torch.where(dead, 2 * alpha - 1, 1).to(branch.dtype)
        backward = torch.where(dead, beta, 1).to(branch.dtype)
        shaken: Tensor = _Weighted.apply(forward, backward, branch)
        return shaken

    def extra_repr(self) -> str:
        """What is special about this one."""
        return f"death_rate={self.death_rate:g}"


def check_death_rate(value: object) -> float:
    """`value` as a float from 0 to 1."""
    rate = as_number("death_rate", value)
    if not 0 <= rate <= 1:
        raise InvalidValueError(f"death_rate must be from 0 to 1, got {rate}")
    return rate


def seed_noise_(model: nn.Module, seed: int) -> None:
    """Let all Shake-Shake and ShakeDrop of a model draw from one generator of its own.

    Without, they draw from torch's global generator, as `torch.nn.Dropout` does. The generator
    is on the device of the model's parameters: seed after moving the model. It is not in the
    model's state_dict: a training that is to continue exactly seeds at the start of every epoch,
    with a seed of the training and the epoch. torch.compile cuts its graph wherever a generator
    is used that is not torch's own.

    Args:
        model: What has such modules; one that has none stays as it is.
        seed: What decides the noise.

    Raises:
        InvalidTypeError: `seed` is no whole number.
        InvalidValueError: `seed` is negative, or the model is on the meta device.
    """
    checked = check_seed(seed)
    if checked is None:
        raise InvalidTypeError("seed must be an integer, got None")
    first = next(iter(model.parameters()), None)
    device = torch.device("cpu") if first is None else first.device
    if device.type == "meta":
        raise InvalidValueError("the model is on the meta device: seed its noise once it has data")
    generator = torch.Generator(device=device).manual_seed(checked)
    for module in model.modules():
        if isinstance(module, _Noise):
            module.generator = generator
