"""A copy of a module that has no weights in memory, made to be traced and thrown away (torch)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from tune_ext._layers import plain_name, unwrapped
from tune_ext.errors import InvalidValueError

__all__ = ["Clone", "Substitute", "substitute_inputs", "to_meta", "weightless"]

Substitute: TypeAlias = Callable[[Tensor], Tensor]
"""Makes the stand-in of a tensor: same shape and type, no memory."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OTHER_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Clone:
    """A module's copy.

    Args:
        module: The copy.
        names: For each parameter of the copy, by its identity, its path in the original. No
            wrapper (torch.compile, DataParallel, …) shows in it.
        norms: Paths (in the copy) of normalisations that only mark their input.
        dropped_hooks: How many hooks of the original the copy does not have.
    """

    module: nn.Module
    names: dict[int, str]
    norms: frozenset[str]
    dropped_hooks: int


def to_meta(tensor: Tensor) -> Tensor:
    """A stand-in on the meta device."""
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def weightless(model: nn.Module, substitute: Substitute, *, training: bool, bare: bool) -> Clone:
    """Copy a module with a stand-in for each of its tensors.

    Normalisations that only mark their input need neither statistics nor more than one example,
    and a network with many is traced in half the time. Hooks are left out, except torch's own
    (weight norm, pruning): they may keep what they see.

    Args:
        model: Any module; it is not changed.
        substitute: Makes the stand-in of a tensor.
        training: Whether the copy is in training mode.
        bare: Whether normalisations that only mark their input lose their parameters, too. Few
            modules look at these; leaving them out saves another third of the time.

    Raises:
        InvalidValueError: A parameter is lazy: nobody knows its shape.
    """
    inner = unwrapped(model)
    memo: dict[int, Any] = {}
    dropped = sum(_copy_tensors(module, memo, substitute) for module in inner.modules())
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in memo:
            names[id(memo[id(parameter)])] = plain_name(model, name)
    clone = _deep_copy(inner, memo)
    clone.train(training)
    norms = [(name, module) for name, module in clone.named_modules() if _mark(module)]
    for _, module in norms if bare else ():
        module._parameters.update(dict.fromkeys(module._parameters))
        module._buffers.update(dict.fromkeys(module._buffers))
    return Clone(clone, names, frozenset(name for name, _ in norms), dropped)


def substitute_inputs(value: Any, substitute: Substitute) -> Any:
    """The same nested inputs with a stand-in of its own for each tensor."""
    if isinstance(value, Tensor):
        return substitute(value)
    if isinstance(value, dict):
        return {key: substitute_inputs(item, substitute) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(substitute_inputs(item, substitute) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(substitute_inputs(item, substitute) for item in value)
    return value


def _copy_tensors(module: nn.Module, memo: dict[int, Any], substitute: Substitute) -> int:
    """Fill deepcopy's memo with stand-ins; return how many hooks are left out."""
    for name, parameter in module._parameters.items():
        if parameter is not None and is_lazy(parameter):
            raise InvalidValueError(
                f"parameter {name!r} of a {type(module).__name__} is lazy and has no shape yet: "
                "run one batch through the model first"
            )
        if parameter is not None and id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(substitute(parameter), parameter.requires_grad)
    others = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_modules")}
    for tensor in _tensors(others):
        memo.setdefault(id(tensor), substitute(tensor))
    dropped = 0
    for attribute in _HOOKS:
        hooks = getattr(module, attribute)
        kept = OrderedDict((key, hook) for key, hook in hooks.items() if _is_torchs(hook))
        memo[id(hooks)] = OrderedDict((k, copy.copy(hook)) for k, hook in kept.items())
        dropped += len(hooks) - len(kept)
    for attribute in _OTHER_HOOKS:
        memo[id(getattr(module, attribute))] = OrderedDict()
    return dropped


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in nested builtin containers."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, depth - 1)


def _is_torchs(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def _deep_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; what cannot be copied (locks, files, …) is shared with the original."""
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception:
        for part in module.modules():
            for name, value in vars(part).items():
                if name not in ("_parameters", "_buffers", "_modules") and not _copies(value, memo):
                    memo[id(value)] = value
        return copy.deepcopy(module, memo)


def _copies(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _mark(module: nn.Module) -> bool:
    """Let a normalisation only mark its input, if it is one of torch's own."""
    forward = type(module).forward
    own = (_BatchNorm.forward, SyncBatchNorm.forward, _InstanceNorm.forward)
    if not isinstance(module, _BatchNorm | _InstanceNorm) or forward not in own:
        return False
    check = module._check_input_dim
    module.forward = partial(_marked, check)  # type: ignore[method-assign]
    return True


def _marked(check: Callable[[Tensor], None], input: Tensor) -> Tensor:
    check(input)
    marked: Tensor = torch.ops.aten.alias(input)
    return marked
