"""A ladder of short trainings of one torch model, one rung after another."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tune_ext._checks import check_choice, check_count, check_flag, check_positive
from tune_ext._ladder_result import LadderResult, LadderRung
from tune_ext._rung_training import RungTraining, Workbench, move_to, supervised
from tune_ext._torch_snapshot import all_finite
from tune_ext.errors import InvalidTypeError, InvalidValueError, NoLearningRateError
from tune_ext.exptest import Ladder, Rung, RungTest, learning_rate_bound

__all__ = ["find_lr", "resolve_lr"]

FALLBACK = 1e-2
"""Where a ladder starts if the inputs say nothing, as token numbers do not."""

_CURVATURE: dict[Any, Literal["mse", "cross_entropy"]] = {
    nn.MSELoss: "mse",
    nn.CrossEntropyLoss: "cross_entropy",
    nn.NLLLoss: "cross_entropy",
    nn.BCEWithLogitsLoss: "cross_entropy",
    functional.mse_loss: "mse",
    functional.cross_entropy: "cross_entropy",
    functional.nll_loss: "cross_entropy",
    functional.binary_cross_entropy_with_logits: "cross_entropy",
}


def find_lr(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Any] | None,
    loader: Iterable[Any],
    *,
    optimizer: Any = torch.optim.SGD,
    optimizer_kwargs: dict[str, Any] | None = None,
    steps: int = 60,
    alpha: float = 0.05,
    beta: float = 0.33,
    bound: float | None = None,
    loss: Literal["mse", "cross_entropy"] | None = None,
    lower: float = 0.0,
    upper: float = math.inf,
    max_rungs: int = 25,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    accumulate: int = 1,
    autocast: Any = None,
    clip_norm: float | None = None,
    transform: Literal["log", "identity"] = "log",
    device: torch.device | str | None = None,
    move: Callable[[Any, torch.device], Any] = move_to,
    callback: Callable[[LadderRung], object] | None = None,
    progress: bool = False,
) -> LadderResult:
    """Find a learning rate from a ladder of short trainings (arXiv 2411.16975).

    The ladder starts at the bound 2/tr(Σ), which comes from the second moments of the inputs
    (twice that for cross-entropy), and climbs by factors 1/β until a rung's loss no longer passes
    the test for exponential decay; it also descends where that pays. The rate is the passing
    rung's with the lowest loss at its end. Theory, α and β are the paper's; the climbing and
    descending, and the choice by the end loss, are ours.

    Every rung starts from the same weights, optimiser state and random state, and sees the
    same ``steps × accumulate`` batches, which are drawn from the loader once and kept in
    memory where the loader put them. A shorter loader is run through again. While it runs, the
    parameters, the buffers and the optimiser's state are there twice.

    Afterwards everything is as it was, also after an exception: parameters, buffers,
    gradients, flags (``training``, ``requires_grad``) and plain attributes of the model and of a
    `loss_fn` that is a module; the optimiser; the random states of Python, numpy, torch
    and the loader's generators. What cannot be put back: an iterator that was handed over is used
    up by the batches drawn, persistent workers keep their own random states, and lists or
    tensors that a module keeps outside of its buffers stay as the last rung left them.

    Args:
        model: In any mode; it is trained in training mode. Submodules that a user put into
            evaluation mode while the model itself is training stay there.
        loss_fn: ``loss_fn(model(x), y)`` of a batch ``(x, y)``, a mean over the batch; not
            needed with `forward`.
        loader: A `torch.utils.data.DataLoader`, a list, or another iterable of batches.
        optimizer: A class, made as ``optimizer(parameters, lr=…, **optimizer_kwargs)``; an
            optimiser, whose groups keep the ratios of their rates and the rest of their options;
            or a function from the parameters to an optimiser. The rate that is found is that of
            the group with the largest rate.
        optimizer_kwargs: Options for a class, for example ``{"momentum": 0.9}``.
        steps: Training steps of a rung, at least 3.
        alpha: Level of the test for decay, between 0 and 1.
        beta: Ratio of neighbouring rates, between 0 and 1.
        bound: Where the ladder starts. None computes it from the inputs of the same batches; if
            they are not floating-point, it starts at 0.01, as the result says.
        loss: "mse" or "cross_entropy", for the bound; None recognises torch's own and takes
            "mse", the smaller bound, for others.
        lower: The smallest rate to try.
        upper: The largest rate to try.
        max_rungs: No more rungs than this.
        forward: From the model and a batch to the loss, for a loss that is not
            ``loss_fn(model(x), y)``.
        accumulate: Batches of a step; its loss is their mean.
        autocast: A data type such as ``torch.bfloat16`` for `torch.autocast` on the device, or a
            context manager that can be entered again. Float16 scales the gradients.
        clip_norm: Clip the norm of the gradients, as `torch.nn.utils.clip_grad_norm_`.
        transform: "log", or "identity" for losses that may be negative; see `tune_ext.DecayTest`.
        device: Where batches go; None for the device of the model's first parameter.
        move: From a batch and the device to the batch there; the default moves whatever has a
            method ``to``, also inside of lists, tuples and dictionaries.
        callback: Called with each finished rung.
        progress: Show rungs as they are trained, with rich if it is installed.

    Returns:
        The rate as ``lr``, every rung with its losses, a table and a picture.

    Raises:
        NoLearningRateError: No rung passed; its ``result`` has the rungs.
        InvalidTypeError: An argument has a wrong type.
        InvalidValueError: An argument has a wrong value, the loader is empty, or the optimiser
            does not train this model.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(256, 4, generator=generator)
    >>> y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> loader = torch.utils.data.DataLoader(data, batch_size=32)
    >>> model = torch.nn.Linear(4, 1)
    >>> search = find_lr(model, torch.nn.functional.mse_loss, loader, steps=30)
    >>> 0.03 < search.lr < 1.5
    True
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {model!r}")
    single = np.ndim(loader) == 0 if isinstance(loader, np.generic | np.ndarray) else False
    if single or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise InvalidTypeError(f"loader must be an iterable of batches, got {loader!r}")
    if forward is None and not callable(loss_fn):
        raise InvalidTypeError(f"loss_fn must be callable (or give forward=), got {loss_fn!r}")
    check_flag("progress", progress)
    if loss is not None:
        check_choice("loss", loss, ("mse", "cross_entropy"))
    # All batches of a rung are kept, and every rung sees the same ones.
    accumulate = check_count("accumulate", accumulate, 1, 10_000)
    count = check_count("steps", steps, 3, 100_000) * accumulate
    if clip_norm is not None:
        check_positive("clip_norm", clip_norm, below=math.inf)
    if device is not None:
        device = _device(device)
    modules = [m for m in (model, loss_fn) if isinstance(m, nn.Module)]
    with Workbench(modules, optimizer, optimizer_kwargs or {}, loader) as bench:
        batches = _draw(loader, count)
        start, source = bound, "given"
        if start is None:
            start, source = _bound(batches, loss or _recognise(loss_fn))
        ladder = Ladder(
            start, beta=beta, alpha=alpha, steps=steps, lower=lower, upper=upper,
            max_rungs=max_rungs,
        )  # fmt: skip
        training = RungTraining(
            model=model,
            forward=forward or supervised(loss_fn),  # type: ignore[arg-type]  # callable, see above
            batches=batches,
            device=bench.device if device is None else device,
            move=move,
            accumulate=accumulate,
            autocast=autocast,
            clip_norm=clip_norm,
        )
        new_test = functools.partial(RungTest, steps, alpha, transform=transform)
        rungs = _climb(ladder, bench, training, new_test, callback, progress)
    result = LadderResult(
        lr=math.nan if ladder.lr is None else ladder.lr,
        bound=ladder.bound,
        source=source,
        rungs=tuple(rungs),
        explanation=ladder.explain(),
    )
    if ladder.lr is None:
        raise NoLearningRateError(_nothing(result), result)
    return result


def resolve_lr(
    lr: float | str,
    model: nn.Module | None = None,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    loader: Iterable[Any] | None = None,
    **options: Any,
) -> LadderResult:
    """A learning rate from a configuration: a number as it is, or ``"exptest"`` searched for.

    So a search over other hyper-parameters leaves the rate out of its space: its configurations
    have ``"lr": "exptest"``, and each trial finds its own.

    Args:
        lr: A number, which costs nothing (nothing else is looked at), or ``"exptest"``, which
            calls `find_lr` with the other arguments.
        model: See `find_lr`.
        loss_fn: See `find_lr`.
        loader: See `find_lr`.
        **options: See `find_lr`.

    Returns:
        ``lr``, and ``steps``, the training steps that it cost.

    Raises:
        InvalidTypeError: `lr` is neither; or an argument of `find_lr` is missing.
        InvalidValueError: `lr` is another string, or not positive and finite.
        NoLearningRateError: See `find_lr`.

    >>> resolve_lr(0.1).lr, resolve_lr(0.1).steps
    (0.1, 0)
    """
    if not isinstance(lr, str):
        return LadderResult.given(check_positive("lr", lr, below=math.inf))
    check_choice("lr", lr, ("exptest",))
    if model is None or loader is None:
        raise InvalidTypeError('lr="exptest" needs the model, the loss function and the loader')
    return find_lr(model, loss_fn, loader, **options)


def _climb(
    ladder: Ladder,
    bench: Workbench,
    training: RungTraining,
    new_test: Callable[[], RungTest],
    callback: Callable[[LadderRung], object] | None,
    progress: bool,
) -> list[LadderRung]:
    """Train the rungs that the ladder asks for, one after another."""
    done: list[LadderRung] = []
    with _watch(ladder.steps, progress) as watch:
        while not ladder.finished:
            for rung in ladder.ask():
                watch.begin(rung)
                done.append(_train(rung, new_test(), bench, training, watch.step))
                ladder.tell(rung.index, done[-1].result)
                watch.end(done[-1])
                if callback is not None:
                    callback(done[-1])
    return done


def _train(
    rung: Rung,
    test: RungTest,
    bench: Workbench,
    training: RungTraining,
    on_step: Callable[[], object],
) -> LadderRung:
    losses: list[float] = []
    optimizer = bench.begin(rung.lr)
    try:
        training.run(optimizer, test, losses, on_step)
    except (ArithmeticError, ValueError, RuntimeError):
        # A model that refuses NaN (a distribution, a decomposition) has diverged like one that
        # computes on; anything else that goes wrong is the user's to see.
        if all_finite(bench.parameters):
            raise
        losses.append(math.nan)
        test.update(math.nan)
    return LadderRung(rung.index, rung.lr, tuple(losses), test.result())


def _device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidValueError(f"device {device!r} cannot be used: {error}") from None
    return found


def _draw(loader: Iterable[Any], count: int) -> list[Any]:
    """The first `count` batches; the loader begins again where it is shorter."""
    batches: list[Any] = []
    while len(batches) < count:
        before = len(batches)
        batches += itertools.islice(iter(loader), count - before)
        if len(batches) == before:
            break
    if not batches:
        raise InvalidValueError("the loader has no batches")
    if len(batches) < count:
        raise InvalidValueError(
            f"the loader gave {len(batches)} batches and cannot begin again, but {count} are "
            "needed: give something that can be run through again, such as a DataLoader"
        )
    return batches


def _recognise(loss_fn: Any) -> Literal["mse", "cross_entropy"]:
    while isinstance(loss_fn, functools.partial):
        loss_fn = loss_fn.func
    for known, name in _CURVATURE.items():
        if loss_fn is known or (isinstance(known, type) and isinstance(loss_fn, known)):
            return name
    return "mse"


def _bound(batches: Sequence[Any], loss: Literal["mse", "cross_entropy"]) -> tuple[float, str]:
    """Where the ladder starts, and why there."""
    inputs = [_inputs(batch) for batch in batches]
    known = [x for x in inputs if x is not None]
    if len(known) < len(inputs):
        return FALLBACK, f"{FALLBACK:g}, as the inputs are not floating-point tensors"
    return learning_rate_bound((x.float() for x in known), loss=loss), f"2/tr of the inputs, {loss}"


def _inputs(batch: Any) -> Tensor | None:
    """The inputs of a batch, a row each; None if their second moments say nothing."""
    if isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor) or not batch.is_floating_point() or not batch.ndim:
        return None
    return batch.detach()


def _nothing(result: LadderResult) -> str:
    return (
        f"no learning rate passed; the ladder started at {result.bound:.3g} ({result.source}). "
        "Do the data, the loss or the weights contain NaN, is the loss too noisy for so few "
        "steps (raise steps=), at its minimum already, or is every step skipped?\n"
        f"{result.explanation}"
    )


class _Watch:
    """Shows nothing."""

    def begin(self, rung: Rung) -> None:
        """A rung begins."""

    def step(self) -> None:
        """A training step was made."""

    def end(self, rung: LadderRung) -> None:
        """A rung has ended."""


class _Lines(_Watch):
    """A line for each rung."""

    def end(self, rung: LadderRung) -> None:
        print(rung, file=sys.stderr, flush=True)


class _Bar(_Watch):
    """A bar for the rung that is being trained, a line for each that has ended."""

    def __init__(self, bar: Any, steps: int) -> None:
        self._bar, self._steps = bar, steps
        self._task = bar.add_task("", total=steps)

    def begin(self, rung: Rung) -> None:
        self._bar.reset(self._task, total=self._steps, description=f"lr {rung.lr:.3g}")

    def step(self) -> None:
        self._bar.advance(self._task)

    def end(self, rung: LadderRung) -> None:
        self._bar.console.print(str(rung), highlight=False)


@contextmanager
def _watch(steps: int, progress: bool) -> Iterator[_Watch]:
    if not progress:
        yield _Watch()
        return
    try:
        from rich.progress import Progress
    except ImportError:
        yield _Lines()
        return
    with Progress(transient=True) as bar:
        yield _Bar(bar, steps)
