"""Which layers of a model have a response, and what weight each of them uses (torch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from tune_ext._checks import check_flag
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["current_weight", "find_layers", "is_transposed", "plain_name", "unwrapped"]

#: Where torch keeps what a parametrised weight is computed from.
_PARAMETRISED = "parametrizations.weight"
#: Modules that hold the model itself as `module`.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def find_layers(model: nn.Module, linear: bool) -> dict[str, nn.Module]:
    """The layers to be measured, by the name that they have in the unwrapped model.

    Args:
        model: Any module, possibly wrapped, or with wrapped parts.
        linear: Whether linear layers are among them.

    Raises:
        InvalidTypeError: A weight is not of real floating-point numbers.
        InvalidValueError: There is no such layer, or one has no usable weight yet.
    """
    check_flag("linear", linear)
    layers: dict[str, nn.Module] = {}
    seen: set[frozenset[int]] = set()
    others = 0
    for name, module in _walk(model, "", set()):
        if isinstance(module, nn.Linear) and not linear:
            others += 1
        elif isinstance(module, _ConvNd | nn.Linear):
            _check(name, module)
            key = _identity(module)
            if key not in seen and current_weight(module).numel():
                seen.add(key)
                layers[name] = module
    if layers:
        return layers
    if others:
        raise InvalidValueError(
            f"the model has no convolution to measure, but {others} linear "
            f"layer{'s' if others > 1 else ''}: linear=True includes them"
        )
    raise InvalidValueError(
        "the model has nothing to measure: neither a convolution (torch.nn.Conv1d, Conv2d, "
        "Conv3d or their transposed forms) nor a torch.nn.Linear layer (linear=True)"
    )


def _walk(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with names in which no wrapper shows."""
    module = unwrapped(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all wrappers."""
    while (inside := _wrapped_as(module)) is not None:
        module = getattr(module, inside)
    return module


def _wrapped_as(module: nn.Module) -> str | None:
    """Under which name a wrapper holds the model; None if it is no wrapper."""
    # What torch.compile returns; naming its class would import the compiler.
    if module._modules.get("_orig_mod") is not None:
        return "_orig_mod"
    return "module" if isinstance(module, _WRAPPERS) else None


def plain_name(model: nn.Module, name: str) -> str:
    """The name of a module or parameter without the wrappers on its way.

    >>> plain_name(nn.Sequential(nn.DataParallel(nn.Linear(2, 2))), "0.module.weight")
    '0.weight'
    """
    kept: list[str] = []
    module: nn.Module | None = model
    for part in name.split("."):
        if module is None or part != _wrapped_as(module):
            kept.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(kept)


def _identity(layer: nn.Module) -> frozenset[int]:
    """The same for layers that share the parameters of their weight."""
    names = ("weight", _PARAMETRISED)
    parameters = [p for n, p in layer.named_parameters() if n.startswith(names)]
    return frozenset(map(id, parameters)) or frozenset([id(layer)])


def _check(name: str, layer: nn.Module) -> None:
    """Raise unless the layer has a weight of its own that can be measured."""
    where = f"layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__
    if any(is_lazy(p) for p in layer.parameters(recurse=False)):
        raise InvalidValueError(
            f"{where} is lazy and has no weight yet: run one batch through the model first"
        )
    weight = current_weight(layer)
    if weight.is_meta:
        raise InvalidValueError(
            f"{where} is on the meta device: move the model to a real one first"
        )
    if not weight.is_floating_point():
        raise InvalidTypeError(
            f"{where} must have a real floating-point weight, has {weight.dtype}"
        )
    if weight.ndim < 2:
        raise InvalidValueError(
            f"{where} has a weight of shape {tuple(weight.shape)}: sharded or flattened weights "
            "cannot be unfolded; measure the model before it is sharded"
        )


def is_transposed(layer: nn.Module) -> bool:
    """Whether the weight is stored as `(in, out / groups, …)`."""
    return isinstance(layer, _ConvTransposeNd)


def current_weight(layer: nn.Module) -> Tensor:
    """The weight that the layer would use now, without changing the layer.

    A parametrisation is evaluated as in evaluation mode: spectral norm, for one, would
    otherwise take a step of its power iteration. Hook-based weight norm and pruning keep
    the weight of the last forward pass, so it is computed anew.
    """
    with torch.no_grad():
        weight: Tensor = _evaluated(layer).detach()
    return weight


def _evaluated(layer: Any) -> Any:
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return hook.compute_weight(layer)
        if isinstance(hook, SpectralNorm) and hook.name == "weight":
            return hook.compute_weight(layer, do_power_iteration=False)
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            mask: Any = hook
            return mask.apply_mask(layer)
    modes: dict[nn.Module, bool] = {}
    if parametrize.is_parametrized(layer, "weight"):
        modes = {step: step.training for step in layer.get_submodule(_PARAMETRISED).modules()}
    try:
        for step in modes:
            step.training = False
        return layer.weight
    finally:
        for step, mode in modes.items():
            step.training = mode
