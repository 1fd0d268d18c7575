"""Do a network's activations keep their size when it grows, at the start and while it learns?

For each size (a depth, a width, …) a network is made, and trained for a few steps. After each, the
same examples go through it, and the size of every layer's output is taken, and that of its change
since the start. A parametrisation whose hyper-parameters carry over to larger networks keeps both
from growing or vanishing with the size. The idea is that of the coordinate check of Yang et al.,
"Tensor Programs V" (arXiv 2203.03466), appendix D.1; the code is not theirs.

Notation: n a size, x an output, x₀ the same at the start, RMS(x) = √mean(x²). A slope is that of
log RMS against log n, by least squares: 0 stays, 1 grows in proportion to n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from tune_ext._checks import as_number, check_count, check_positive
from tune_ext._coordinate_result import Coordinate, CoordinateCheck
from tune_ext._random import check_seed, derive_seed
from tune_ext._torch_snapshot import RandomState
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["coordinate_check"]

OUTPUT = "(output)"


@runtime_checkable
class _Plan(Protocol):
    """What is used of a `tune_ext.scaling.Plan`."""

    def initialize_(self, model: nn.Module, generator: torch.Generator) -> object: ...

    def param_groups(self, lr: float, model: nn.Module) -> Any: ...


def coordinate_check(
    make_model: Callable[[Any], Any],
    sizes: Sequence[float],
    batches: Iterable[tuple[Any, Any]],
    *,
    lr: float | None = None,
    loss_fn: Callable[[Any, Any], Tensor] = functional.cross_entropy,
    steps: int = 3,
    seeds: int = 3,
    seed: int = 0,
    tolerance: float = 0.25,
    layers: Callable[[str, nn.Module], bool] | None = None,
) -> CoordinateCheck:
    """Measure the activations of networks of several sizes while they learn.

    The models that `make_model` makes are trained, and thrown away. The global random state of
    Python, numpy and torch is put back; while `make_model` runs it derives from `seed`.

    Args:
        make_model: From a size to a model and its optimiser, ``(model, optimizer)``; or to a model
            and its plan, ``(model, plan)``: then the plan initialises the model and scales the
            rate of plain SGD; or to a model alone, for which `tune_ext.scaling.plan` makes the
            plan from the first batch.
        sizes: At least two positive numbers, handed to `make_model` as they are.
        batches: Pairs ``(x, y)`` of tensors, on the model's device. The first `steps` are trained
            on, and again from the start if there are fewer; the first one's inputs are what the
            activations are measured on.
        lr: The base learning rate; needed with plans, and not used with optimisers.
        loss_fn: ``loss_fn(model(x), y)``.
        steps: Training steps. The start counts as step 0.
        seeds: So many models of each size; sizes of activations are averaged over them
            (geometrically).
        seed: Of initial weights and of whatever else is random in a model.
        tolerance: A slope within ±tolerance counts as staying.
        layers: From a module's name and the module to whether its output is measured. None takes
            every module without children but what only passes on. The model's own output is always
            measured.

    Returns:
        Sizes, slopes and what they say: `print` it, or call its `table` and `plot`.

    Raises:
        InvalidTypeError: `make_model` makes something else, or an argument is not of its type.
        InvalidValueError: There are fewer than two sizes, a size is not positive, there is no
            batch, or `lr` is missing.

    >>> def make_model(width):
    ...     model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))
    ...     return model, torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x = torch.linspace(-1, 1, 256).view(32, 8)
    >>> batches = [(x, (x[:, 0] > 0).long())]
    >>> check = coordinate_check(make_model, [64, 256, 1024], batches, steps=1)
    >>> round(check.slope("(output)", change=True))  # torch's defaults: grows like the width
    1
    >>> check.verdict
    'grow'
    """
    check_count("steps", steps)
    check_count("seeds", seeds)
    checked_seed = check_seed(seed) or 0
    numbers = _check_sizes(sizes)
    check_positive("tolerance", tolerance, below=math.inf)
    rate = None if lr is None else check_positive("lr", lr, below=math.inf)
    drawn = _draw(batches, steps)
    chosen = layers or _is_layer
    found: list[Coordinate] = []
    with _random_state_kept():
        for size, number in zip(sizes, numbers, strict=True):
            for repeat in range(seeds):
                start = derive_seed(checked_seed, "coordinate check", repeat)
                torch.manual_seed(start)
                np.random.seed(start % 2**32)  # noqa: NPY002  # a model may draw from it
                model, optimizer = _make(make_model, size, drawn[0][0], rate, start)
                for step, name, values in _train(model, optimizer, drawn, steps, loss_fn, chosen):
                    found.append(Coordinate(number, repeat, step, name, *values))
    return CoordinateCheck(tuple(found), tolerance)


def _is_layer(_name: str, module: nn.Module) -> bool:
    passes_on = isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten | _DropoutNd)
    return not passes_on and not any(True for _ in module.children())


def _check_sizes(sizes: Sequence[float]) -> list[float]:
    numbers = [as_number(f"sizes[{i}]", size) for i, size in enumerate(sizes)]
    if len(set(numbers)) < 2 or len(set(numbers)) < len(numbers):
        raise InvalidValueError(f"sizes must be at least two different numbers, got {sizes!r}")
    if min(numbers) <= 0 or not math.isfinite(max(numbers)):
        raise InvalidValueError(f"sizes must be positive and finite, got {sizes!r}")
    return numbers


def _draw(batches: Iterable[tuple[Any, Any]], steps: int) -> list[tuple[Any, Any]]:
    drawn = [batch for batch, _ in zip(batches, range(steps), strict=False)]
    if not drawn:
        raise InvalidValueError("batches holds no batch: give at least one pair (x, y)")
    for batch in drawn:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InvalidTypeError(f"batches must hold pairs (x, y), got a {type(batch).__name__}")
    return drawn


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = RandomState(())
    try:
        yield
    finally:
        state.restore()


def _make(
    make_model: Callable[[Any], Any], size: Any, x: Any, lr: float | None, seed: int
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and what trains it."""
    made = make_model(size)
    model, partner = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(
            "make_model must return a model, (model, optimizer) or (model, plan), "
            f"got {type(made).__name__}"
        )
    if isinstance(partner, torch.optim.Optimizer):
        return model, partner
    if lr is None:
        raise InvalidValueError(
            "lr is missing: give the base rate that plans scale, or let make_model return "
            "(model, optimizer)"
        )
    if partner is None:
        from tune_ext import scaling

        partner = scaling.plan(model, x)
    if not isinstance(partner, _Plan):
        raise InvalidTypeError(
            f"make_model must pair the model with an optimiser or a plan, got {partner!r}"
        )
    partner.initialize_(model, torch.Generator().manual_seed(seed))
    return model, torch.optim.SGD(partner.param_groups(lr, model), lr=lr)


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Any, Any]],
    steps: int,
    loss_fn: Callable[[Any, Any], Tensor],
    chosen: Callable[[str, nn.Module], bool],
) -> Iterator[tuple[int, str, tuple[float, float, float, float]]]:
    """At the start and after each step: every layer's name and the sizes of its output."""
    probe = batches[0][0]
    start = _outputs(model, probe, chosen)
    for name, output in start.items():
        yield 0, name, (*_sizes(output), 0.0, 0.0)
    for step in range(1, steps + 1):
        x, y = batches[(step - 1) % len(batches)]
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, output in _outputs(model, probe, chosen).items():
            yield step, name, (*_sizes(output), *_sizes(output - start[name]))


def _sizes(x: Tensor) -> tuple[float, float]:
    """Mean |x| and RMS."""
    return float(x.abs().mean()), float(x.square().mean().sqrt())


@torch.no_grad()
def _outputs(
    model: nn.Module, x: Any, chosen: Callable[[str, nn.Module], bool]
) -> dict[str, Tensor]:
    """What each layer makes of `x`, in the order of computation, in double precision.

    Nothing is dropped out, as that is no change of the network. A layer that is called again
    counts as another one, "name (2)".
    """
    outputs: dict[str, Tensor] = {}
    last: Any = None

    def keep(name: str, output: Any) -> None:
        nonlocal last
        last = output
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor) and first.is_floating_point():
            times = sum(known == name or known.startswith(f"{name} (") for known in outputs)
            # A copy: what follows may change it in place.
            outputs[f"{name} ({times + 1})" if times else name] = first.detach().double().clone()

    hooks = [
        module.register_forward_hook(lambda _module, _args, out, name=name: keep(name, out))
        for name, module in model.named_modules()
        if name and chosen(name, module)
    ]
    dropping = [m for m in model.modules() if isinstance(m, _DropoutNd) and m.training]
    try:
        for module in dropping:
            module.eval()
        output = model(x)
        if outputs and last is output:  # one number is enough for what is the same
            outputs.popitem()
        keep(OUTPUT, output)
    finally:
        for hook in hooks:
            hook.remove()
        for module in dropping:
            module.train()
    return outputs
