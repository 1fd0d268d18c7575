"""The training of one rung of a ladder: some steps on given batches, losses watched."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tune_ext._losses import LossBuffer
from tune_ext._rung import RungTest
from tune_ext._torch_snapshot import RandomState, Snapshot, Surroundings, parameters_of
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = [
    "RungTraining",
    "Workbench",
    "largest_rate",
    "move_to",
    "rate_ratios",
    "set_rates",
    "supervised",
]

READ_EVERY = 16


def move_to(batch: Any, device: torch.device) -> Any:
    """A batch on `device`: whatever has a method ``to``, also inside of lists, tuples, dicts.

    Tensors are copied, so that a model that changes its inputs in place does not change the batch
    for the next rung.

    >>> move_to({"x": [torch.ones(1)], "name": "a"}, torch.device("meta"))["x"][0].device.type
    'meta'
    """
    if isinstance(batch, Tensor):
        return batch.to(device, copy=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: move_to(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_to(part, device) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move_to(part, device) for part in batch)
    return batch


def supervised(loss_fn: Callable[[Any, Any], Any]) -> Callable[[nn.Module, Any], Any]:
    """``loss_fn(model(x), y)`` of batches that are pairs."""

    def forward(model: nn.Module, batch: Any) -> Any:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            kind = type(batch).__name__
            count = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
            raise InvalidValueError(
                f"a batch must be a pair (x, y), got a {kind}{count}; for other batches give "
                "forward=, a function of the model and a batch that returns the loss"
            )
        x, y = batch
        return loss_fn(model(x), y)

    return forward


def rate_ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each parameter group's learning rate over the largest one.

    Where every rate is 0 (a warm-up has just begun), the groups' ``initial_lr`` count.

    Raises:
        InvalidValueError: Every rate is 0, or one is negative or not finite.
    """
    groups = optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    if not any(rates):
        rates = [float(group.get("initial_lr", 0.0)) for group in groups]
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or not any(rates):
        raise InvalidValueError(
            "the learning rates of the optimizer's groups must be finite, not negative and not "
            f"all 0, so that their ratios can be kept; got {rates}"
        )
    largest = max(rates)
    return [rate / largest for rate in rates]


def largest_rate(optimizer: torch.optim.Optimizer) -> float:
    """The largest learning rate of the parameter groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, ratios: Sequence[float]) -> None:
    """Give each group its share of `lr`; a rate that is a tensor is filled in place."""
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * ratio)
        else:
            group["lr"] = lr * ratio


@dataclass(frozen=True)
class RungTraining:
    """How rungs are trained; see `tune_ext.lr_scheduler.find_lr`.

    Attributes:
        model: Trained in place.
        forward: From the model and a batch (moved) to the loss, one number.
        batches: ``steps × accumulate`` batches, as the loader gave them.
        device: Where the batches go.
        move: From a batch and the device to the batch on the device.
        accumulate: Batches of one step.
        autocast: A data type, a context manager that can be entered again, or None.
        clip_norm: The largest norm of the gradients; None leaves them.
    """

    model: nn.Module
    forward: Callable[[nn.Module, Any], Any]
    batches: Sequence[Any]
    device: torch.device
    move: Callable[[Any, torch.device], Any]
    accumulate: int
    autocast: Any
    clip_norm: float | None

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        test: RungTest,
        losses: list[float],
        on_step: Callable[[], object],
    ) -> None:
        """Train until the test has all it needs.

        Args:
            optimizer: Takes the steps.
            test: Is given every loss.
            losses: The loss of each step is appended; the last one is not finite if the training
                diverged.
            on_step: Called after each step.
        """
        step = _Step(self, optimizer)
        waiting = LossBuffer(READ_EVERY)
        for index in range(test.steps):
            first = index * self.accumulate
            waiting.add(step.take(self.batches[first : first + self.accumulate]))
            on_step()
            if not waiting.waiting or index + 1 == test.steps:
                for loss in waiting.take():
                    if not test.done:
                        losses.append(loss)
                        test.update(loss)
            if test.done:
                break


class _Step:
    """One step of an optimiser, with what belongs to it."""

    def __init__(self, how: RungTraining, optimizer: torch.optim.Optimizer) -> None:
        self._how = how
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._closure_needed = _needs_closure(optimizer)
        self._scaler = self._make_scaler()

    def _make_scaler(self) -> torch.amp.GradScaler | None:
        """A scaler of gradients, if the loss is computed in half precision."""
        autocast = self._how.autocast
        dtype = autocast if isinstance(autocast, torch.dtype) else None
        if isinstance(autocast, torch.autocast):
            dtype = autocast.fast_dtype
        if dtype != torch.float16:
            return None
        if self._closure_needed:
            raise InvalidValueError(
                f"{type(self._optimizer).__name__} evaluates the loss itself, which cannot be "
                "scaled for float16; use autocast=torch.bfloat16 or None"
            )
        return torch.amp.GradScaler(self._how.device.type)

    def take(self, batches: Sequence[Any]) -> Tensor:
        """Train one step; returns its loss, the mean over the batches."""
        if self._closure_needed:
            loss: Tensor = self._optimizer.step(lambda: self._gradients(batches))  # type: ignore
            return loss
        loss = self._gradients(batches)
        scaler = self._scaler
        if scaler is None:
            self._optimizer.step()
            return loss
        scaler.step(self._optimizer)
        scaler.update()
        return loss

    def _gradients(self, batches: Sequence[Any]) -> Tensor:
        """Compute the gradients of the mean loss, and clip them; returns the loss."""
        for parameter in self._parameters:
            parameter.grad = None
        total: Tensor | None = None
        with torch.enable_grad():
            for batch in batches:
                loss = self._loss(batch)
                part = loss if len(batches) == 1 else loss / len(batches)
                scaled = part if self._scaler is None else self._scaler.scale(part)
                scaled.backward()  # type: ignore[no-untyped-call]  # torch's is untyped
                total = part.detach() if total is None else total + part.detach()
        if self._how.clip_norm is not None:
            if self._scaler is not None:
                self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._how.clip_norm)
        assert total is not None  # a step has at least one batch
        return total

    def _loss(self, batch: Any) -> Tensor:
        how = self._how
        batch = how.move(batch, how.device)
        with self._autocast():
            loss = how.forward(how.model, batch)
        if not isinstance(loss, Tensor):
            raise InvalidTypeError(f"the loss must be a tensor, got {loss!r}")
        if loss.numel() != 1:
            raise InvalidValueError(
                f"the loss must be one number, got shape {tuple(loss.shape)}: "
                "take the mean over the batch"
            )
        if not loss.requires_grad:
            raise InvalidValueError("the loss does not depend on any parameter that is trained")
        return loss.reshape(())

    def _autocast(self) -> AbstractContextManager[Any]:
        autocast = self._how.autocast
        if isinstance(autocast, torch.dtype):
            return torch.autocast(self._how.device.type, dtype=autocast)
        return autocast if autocast is not None else nullcontext()


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser evaluates the loss itself, as LBFGS does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class Workbench:
    """A model and its optimisers for one rung after another; afterwards all is as it was.

    Args:
        modules: The model, and the loss if it is a module.
        optimizer: See `tune_ext.lr_scheduler.find_lr`.
        options: For an optimiser that is a class.
        loader: Its generators are restored.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optimizer: Any,
        options: dict[str, Any],
        loader: Iterable[Any],
    ) -> None:
        self._modules, self._loader = modules, loader
        self.parameters = parameters_of(modules)
        self._trained = [p for p in self.parameters if p.requires_grad]
        if not self._trained:
            raise InvalidValueError("the model has no parameter that requires a gradient")
        self.device = self.parameters[0].device
        self._made: torch.optim.Optimizer | None = None
        if isinstance(optimizer, torch.optim.Optimizer):
            self._made, self._ratios = optimizer, rate_ratios(optimizer)
            _check_trains(optimizer, self.parameters)
        elif not callable(optimizer):
            raise InvalidTypeError(
                "optimizer must be a class of torch.optim, an optimiser, or a function from "
                f"the parameters to an optimiser; got {optimizer!r}"
            )
        if options and not isinstance(optimizer, type):
            raise InvalidValueError("optimizer_kwargs are for a class; give them to the optimiser")
        if "lr" in options:
            raise InvalidValueError(
                f"optimizer_kwargs has lr={options['lr']!r}, which is what is searched for: leave "
                "it out (bound= says where to start)"
            )
        self._make, self._options = optimizer, options

    def __enter__(self) -> Self:
        self._random = RandomState(_generators(self._loader))
        self._surroundings = Surroundings(self._modules, self._made)
        self._snapshot = Snapshot(self._modules, self._made)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _restore(self) -> None:
        self._snapshot.restore()
        self._surroundings.restore()
        self._random.restore()

    def begin(self, lr: float) -> torch.optim.Optimizer:
        """Go back to the beginning, in training mode and without gradients.

        Returns:
            An optimiser whose largest rate is `lr`.
        """
        self._restore()
        self._surroundings.clear_gradients()
        for module in self._modules:
            if not module.training:
                module.train()
        if self._made is not None:
            set_rates(self._made, lr, self._ratios)
            return self._made
        if isinstance(self._make, type):
            return self._make(self._trained, lr=lr, **self._options)  # type: ignore[no-any-return]
        made = self._make(self._trained)
        if not isinstance(made, torch.optim.Optimizer):
            raise InvalidTypeError(f"optimizer must return an optimiser, it returned {made!r}")
        set_rates(made, lr, rate_ratios(made))
        return made


def _check_trains(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    known = {id(p) for p in parameters}
    if not any(id(p) in known for group in optimizer.param_groups for p in group["params"]):
        raise InvalidValueError(
            "the optimiser does not have any parameter of this model: make it from "
            "model.parameters(), after the model was moved or wrapped"
        )


def _generators(loader: object) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers draw from."""
    found, owners = [], [loader]
    for name in ("sampler", "batch_sampler"):
        owners.append(getattr(loader, name, None))
    owners.append(getattr(owners[-1], "sampler", None))
    for owner in owners:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            found.append(generator)
    return found
