"""What a training changes, kept so that it can be put back: weights, optimiser, randomness.

Restoring is done in place wherever that is possible: parameters, buffers and the tensors of an
optimiser stay the objects that others (a compiled step, a wrapper, the user) hold.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tune_ext.errors import InvalidValueError, StateError

__all__ = ["RandomState", "Snapshot", "Surroundings", "all_finite", "parameters_of"]

_TENSOR, _DEVICE = "tensor", "device"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class _Kept:
    """A copy of a tensor, and the device that the tensor was on."""

    copy: Tensor
    device: torch.device


def _keep(value: Any, device: torch.device | None, old: Any = None) -> Any:
    """A deep copy of a state, in the tensors of an older copy where they fit.

    The copies are on `device`, or on None where the originals are.
    """
    if isinstance(value, Tensor):
        if isinstance(old, _Kept) and _fits(value, old):
            old.copy.copy_(value)
            return old
        where = value.device if device is None else device
        return _Kept(value.detach().to(where, copy=True), value.device)
    if isinstance(value, dict):
        known = old if isinstance(old, dict) else {}
        return {name: _keep(entry, device, known.get(name)) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_keep(entry, device) for entry in value)
    return value


def _put_back(current: Any, kept: Any) -> Any:
    """The state that was kept; in `current`'s own tensors where they fit."""
    if isinstance(kept, _Kept):
        if isinstance(current, Tensor) and _fits(current, kept):
            current.copy_(kept.copy)
            return current
        return kept.copy.to(kept.device, copy=True)
    if isinstance(kept, dict):
        known = current if isinstance(current, dict) else {}
        return {name: _put_back(known.get(name), entry) for name, entry in kept.items()}
    if type(kept) in (list, tuple):
        return type(kept)(_put_back(None, entry) for entry in kept)
    return kept


def _fits(tensor: Tensor, kept: _Kept) -> bool:
    return (
        tensor.shape == kept.copy.shape
        and tensor.dtype == kept.copy.dtype
        and tensor.device == kept.device
    )


def _overlaps(tensor: Tensor) -> bool:
    """Whether numbers share memory, as those of an expanded buffer: it cannot be written."""
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _packed(value: Any) -> Any:
    """Copies as dictionaries of a tensor and the name of its device, for `torch.save`."""
    if isinstance(value, _Kept):
        return {_TENSOR: value.copy, _DEVICE: str(value.device)}
    if isinstance(value, dict):
        return {name: _packed(entry) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_packed(entry) for entry in value)
    return value


def _unpacked(value: Any, device: torch.device | None, home: torch.device) -> Any:
    """What `_packed` made; a tensor that was on an accelerator belongs to `home` now."""
    if isinstance(value, dict) and value.keys() == {_TENSOR, _DEVICE}:
        belongs = home if torch.device(value[_DEVICE]).type != "cpu" else torch.device("cpu")
        return _Kept(value[_TENSOR].to(belongs if device is None else device), belongs)
    if isinstance(value, dict):
        return {name: _unpacked(entry, device, home) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_unpacked(entry, device, home) for entry in value)
    return value


def _kept_bytes(value: Any) -> int:
    if isinstance(value, _Kept):
        return value.copy.numel() * value.copy.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif type(value) not in (list, tuple):
        return 0
    return sum(map(_kept_bytes, value))


class Snapshot:
    """A copy of the parameters and buffers of modules, and of an optimiser.

    It takes one more copy of the parameters, the buffers and the optimiser's state (`nbytes`).

    Args:
        modules: Their submodules are included.
        optimizer: Its state, its options and those of its parameters that are in no module.
        device: Where the copies are kept; None for where the originals are.

    Raises:
        InvalidValueError: A parameter of a lazy module has no shape yet.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        optimizer: torch.optim.Optimizer | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._modules = list(_all_modules(modules))
        self._optimizer, self._device = optimizer, device
        self._tensors: list[tuple[Tensor, _Kept]] = []
        self._groups: list[dict[str, Any]] = []
        self._state: dict[Any, Any] = {}
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Take everything as it is now, in the memory of the last time."""
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (table, dict(table))
            for module in self._modules
            for table in (module._parameters, module._buffers)
        ]
        tensors = {id(t): t for _, table in self._tables for t in table.values() if t is not None}
        device, optimizer = self._device, self._optimizer
        if optimizer is not None:
            groups = optimizer.param_groups
            tensors |= {id(p): p for group in groups for p in group["params"]}
            self._groups = [_keep(_options(group), device) for group in groups]
            self._state = {
                p: _keep(state, device, self._state.get(p)) for p, state in optimizer.state.items()
            }
        if any(map(is_lazy, tensors.values())):
            raise InvalidValueError(
                "the model has lazy parameters without a shape: run it on one batch first"
            )
        old = {id(tensor): kept for tensor, kept in self._tensors}
        self._tensors = [(t, _keep(t, device, old.get(key))) for key, t in tensors.items()]

    def state_dict(self) -> dict[str, Any]:
        """The copies, for `torch.save`; loading needs nothing but tensors and plain types."""
        order = self._order()
        return {
            "tensors": [_packed(copy) for _, copy in self._tensors],
            "groups": _packed(self._groups),
            "state": {order[p]: _packed(state) for p, state in self._state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take another snapshot's copies, of the same modules and optimiser.

        Raises:
            StateError: It is damaged, or of other modules. Nothing has been changed.
        """
        try:
            parameters = list(self._order())
            home = self._tensors[0][0].device if self._tensors else torch.device("cpu")
            copies = [
                _unpacked(packed, self._device, tensor.device)
                for (tensor, _), packed in zip(self._tensors, state["tensors"], strict=True)
            ]
            if any(
                t.shape != c.copy.shape for (t, _), c in zip(self._tensors, copies, strict=True)
            ):
                raise StateError("the snapshot is of a model of other shapes")
            groups = _unpacked(state["groups"], self._device, home)
            kept = {
                parameters[i]: _unpacked(entry, self._device, parameters[i].device)
                for i, entry in state["state"].items()
            }
            if len(groups) != len(self._groups):
                raise StateError("the snapshot is of an optimiser of other groups")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise StateError(f"the snapshot does not fit to the model: {error}") from error
        self._tensors = [(t, c) for (t, _), c in zip(self._tensors, copies, strict=True)]
        self._groups, self._state = groups, kept

    def _order(self) -> dict[Tensor, int]:
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        return {p: i for i, p in enumerate(p for group in groups for p in group["params"])}

    @property
    def nbytes(self) -> int:
        """Memory that the copies take, in bytes."""
        copies = [copy for _, copy in self._tensors]
        return sum(map(_kept_bytes, [copies, self._groups, self._state]))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; any number of times."""
        for table, kept in self._tables:
            now = dict(table)
            if now.keys() != kept.keys() or any(now[name] is not kept[name] for name in kept):
                table.clear()  # a scripted module cannot do that, nor does it ever have to
                table.update(kept)
        for tensor, copy in self._tensors:
            if _fits(tensor, copy) and not _overlaps(tensor):
                tensor.copy_(copy.copy)
            else:
                tensor.data = copy.copy.to(copy.device, copy=True)
        if self._optimizer is not None:
            self._restore_optimizer(self._optimizer)

    def _restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        for group, options in zip(optimizer.param_groups, self._groups, strict=False):
            current = _options(group)
            for name in current.keys() - options.keys():
                del group[name]
            group.update(_put_back(current, options))
        for parameter in [p for p in optimizer.state if p not in self._state]:
            del optimizer.state[parameter]
        for parameter, state in self._state.items():
            optimizer.state[parameter] = _put_back(optimizer.state.get(parameter), state)


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _all_modules(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Each module once, its submodules included."""
    yield from {id(m): m for root in modules for m in root.modules()}.values()


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Each parameter once."""
    return list({id(p): p for module in modules for p in module.parameters()}.values())


class Surroundings:
    """What a training leaves behind beside weights: gradients, flags, plain attributes.

    Args:
        modules: Their submodules are included.
        optimizer: Its plain attributes are kept too.
    """

    def __init__(
        self, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        parameters = parameters_of(modules)
        if optimizer is not None:
            own = {id(p): p for group in optimizer.param_groups for p in group["params"]}
            parameters = list({**{id(p): p for p in parameters}, **own}.values())
        self._parameters = [
            (p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone())
            for p in parameters
        ]
        # A scripted module keeps its mode where `vars` does not show it.
        self._modes = [(module, module.training) for module in _all_modules(modules)]
        owners: list[Any] = [module for module, _ in self._modes]
        owners += [] if optimizer is None else [optimizer]
        self._plain = [
            (vars(owner), {k: v for k, v in vars(owner).items() if isinstance(v, _PLAIN)})
            for owner in owners
        ]

    def clear_gradients(self) -> None:
        """Take the gradients away, without touching their tensors."""
        for parameter, *_ in self._parameters:
            parameter.grad = None

    def restore(self) -> None:
        """Put everything back."""
        for parameter, requires_grad, grad, content in self._parameters:
            parameter.requires_grad_(requires_grad)
            if grad is not None and content is not None:
                grad.detach().copy_(content)
            parameter.grad = grad
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        for attributes, plain in self._plain:
            added = attributes.keys() - plain.keys()
            for name in [n for n in added if isinstance(attributes[n], _PLAIN)]:
                del attributes[name]
            attributes.update(plain)


class RandomState:
    """The global random states of Python, numpy and torch, and those of some generators.

    Accelerators are included if they were in use before.

    Args:
        generators: `torch.Generator` objects that are restored as well.
    """

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002  # the user's, to be left as it is
        self._torch = torch.get_rng_state()
        self._devices: list[tuple[Callable[[Any], None], Any]] = []
        for name in ("cuda", "xpu"):
            backend = getattr(torch, name, None)
            if backend is not None and backend.is_available() and backend.is_initialized():
                self._devices.append((backend.set_rng_state_all, backend.get_rng_state_all()))
        if torch.backends.mps.is_available():
            self._devices.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
        unique = {id(g): g for g in generators}.values()
        self._generators = [(g, g.get_state()) for g in unique]

    def restore(self) -> None:
        """Put every state back; any number of times."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        for put_back, state in self._devices:
            put_back(state)
        for generator, state in self._generators:
            generator.set_state(state)


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor has a NaN or an infinity; waits for the device once."""
    floats = [t.detach() for t in tensors if t.is_floating_point() or t.is_complex()]
    if not floats:
        return True
    # Sums are many times faster than anything that looks at each number. In float32 they
    # overflow where the weights would be of no use either.
    sums = [
        (torch.view_as_real(t) if t.is_complex() else t).sum(dtype=torch.float32) for t in floats
    ]
    return math.isfinite(float(torch.stack([x.to(sums[0].device) for x in sums]).sum()))
