"""A plan applied to a module: drawing its weights, grouping its parameters (torch)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tune_ext._assumptions import ScalingWarning
from tune_ext._layers import unwrapped
from tune_ext._random import check_seed
from tune_ext.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from tune_ext._plan import LayerPlan

__all__ = ["Initialization", "initialize", "param_groups"]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Initialization:
    """Which parameters were set, by name.

    Args:
        weights: Drawn from a normal distribution.
        biases: Biases of layers, set to 0.
        norms: Weights and biases of normalisation layers, set to 1 and 0.
        untouched: All others: as they were.
    """

    weights: tuple[str, ...]
    biases: tuple[str, ...]
    norms: tuple[str, ...]
    untouched: tuple[str, ...]


@dataclass(frozen=True)
class _Slot:
    """A parameter of a module, or a weight that a parametrisation computes."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def parameters(self) -> frozenset[int]:
        """The parameters behind it: the same for weights that are shared."""
        if parametrize.is_parametrized(self.module, self.attribute):
            steps = self.module.get_submodule(f"parametrizations.{self.attribute}")
            return frozenset(map(id, steps.parameters()))
        return frozenset([id(self.module._parameters[self.attribute])])

    def check(self, shape: tuple[int, ...], part: bool = False) -> None:
        """Raise unless it can be set to values of this shape.

        A weight may be used transposed; if `part`, the layer uses some of its rows.
        """
        value = getattr(self.module, self.attribute)
        if is_lazy(value):
            raise InvalidValueError(
                f"{self.name} is lazy and has no values yet: run one batch through the model first"
            )
        if value.is_meta:
            raise InvalidValueError(
                f"{self.name} is on the meta device: model.to_empty(device=…) comes first"
            )
        if hasattr(value, "device_mesh"):
            raise InvalidValueError(f"{self.name} is sharded: initialise the model before that")
        if not value.is_floating_point():
            raise InvalidTypeError(f"{self.name} must be of real numbers, is {value.dtype}")
        same_rows = part and tuple(value.shape[1:]) == shape[1:]
        if sorted(value.shape) != sorted(shape) and not same_rows:
            raise InvalidValueError(
                f"{self.name} has shape {tuple(value.shape)}, the plan says {shape}: it is of "
                "another architecture"
            )

    def set(self, values: Tensor) -> None:
        """Give it these values, wherever it is."""
        now = getattr(self.module, self.attribute)
        if parametrize.is_parametrized(self.module, self.attribute):
            setattr(self.module, self.attribute, values.to(now))
        else:
            now.copy_(values)


def initialize(
    layers: Sequence[LayerPlan],
    model: nn.Module,
    generator: torch.Generator | int,
    parts: Set[str] = frozenset(),
    computed: Set[str] = frozenset(),
) -> Initialization:
    """What `Plan.initialize_` does.

    Args:
        layers: What to draw.
        model: Whose weights.
        generator: A generator or a seed.
        parts: Weights of which a layer uses some rows; all of them are drawn alike.
        computed: Weights that are functions of parameters: left alone if they are none themselves.
    """
    source = _generator(generator)
    modules = _modules(model)
    biases = [_slot(modules, plan.layer.bias) for plan in layers if plan.layer.bias is not None]
    layers = [plan for plan in layers if not _is_lacking(modules, plan.layer.name, computed)]
    weights = {plan.layer.name: _slot(modules, plan.layer.name) for plan in layers}
    stds: dict[frozenset[int], float] = {}
    for plan in layers:
        slot = weights[plan.layer.name]
        slot.check(plan.layer.shape, plan.layer.name in parts)
        stds[slot.parameters] = min(plan.std, stds.get(slot.parameters, plan.std))
    for bias in biases:
        bias.check(tuple(getattr(bias.module, bias.attribute).shape))
    done = set().union(*stds, *(bias.parameters for bias in biases))
    with torch.no_grad():
        for slot in weights.values():
            if (std := stds.pop(slot.parameters, None)) is not None:
                shape = getattr(slot.module, slot.attribute).shape
                values = torch.empty(shape, device=source.device, dtype=torch.float32)
                slot.set(values.normal_(0.0, std, generator=source))
        for bias in biases:
            shape = getattr(bias.module, bias.attribute).shape
            bias.set(torch.zeros((), device=source.device).expand(shape))
        norms = [name for where, module in modules.items() for name in _reset(where, module)]
    return _report(modules, tuple(weights), tuple(bias.name for bias in biases), norms, done)


def _generator(generator: object) -> torch.Generator:
    if isinstance(generator, torch.Generator):
        return generator
    seed = check_seed(generator, "generator")
    if seed is None:
        raise InvalidTypeError("generator must be a torch.Generator or a seed, got None")
    return torch.Generator().manual_seed(seed)


def _modules(model: object) -> dict[str, nn.Module]:
    """Every module by each of its names, in which no wrapper shows."""
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return dict(_walk(model, "", ()))


def _walk(
    module: nn.Module, name: str, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    if any(module is other for other in above):
        return
    yield name, module
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _walk(
                child, f"{name}.{child_name}" if name else child_name, (*above, module)
            )


def _slot(modules: Mapping[str, nn.Module], name: str) -> _Slot:
    """The parameter of this name."""
    where, _, attribute = name.rpartition(".")
    module = modules.get(where)
    if module is None or not _has(module, attribute):
        raise InvalidValueError(
            f"the model has no parameter {name!r}: the plan is of another architecture"
        )
    return _Slot(name, module, attribute)


def _is_lacking(modules: Mapping[str, nn.Module], name: str, computed: Set[str]) -> bool:
    """Whether a weight is computed in forward, so that nothing can be set."""
    where, _, attribute = name.rpartition(".")
    module = modules.get(where)
    return name in computed and (module is None or not _has(module, attribute))


def _has(module: nn.Module, attribute: str) -> bool:
    plain = module._parameters.get(attribute) is not None
    return plain or parametrize.is_parametrized(module, attribute)


def _reset(where: str, module: nn.Module) -> Iterator[str]:
    """Make a normalisation layer new, and name its parameters."""
    if not isinstance(module, _NORMS):
        return
    for kind, value in (("weight", 1.0), ("bias", 0.0)):
        parameter = module._parameters.get(kind)
        if parameter is not None:
            parameter.fill_(value)
            yield f"{where}.{kind}" if where else kind
    if isinstance(module, _NormBase):
        module.reset_running_stats()


def _report(
    modules: Mapping[str, nn.Module],
    weights: tuple[str, ...],
    biases: tuple[str, ...],
    norms: Sequence[str],
    done: set[int],
) -> Initialization:
    """What was done, with a warning if some parameters were left alone."""
    names: dict[int, str] = {}
    for where, module in modules.items():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), f"{where}.{attribute}" if where else attribute)
    known = {*norms}
    left = tuple(n for key, n in names.items() if key not in done and n not in known)
    if left:
        warnings.warn(
            f"initialize_ left {len(left)} parameters as they were, which belong to no planned "
            f"layer: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}",
            ScalingWarning,
            stacklevel=4,
        )
    return Initialization(weights, biases, tuple(norms), left)


def param_groups(
    model: nn.Module,
    lr: float,
    scales: Mapping[str, float],
    weight_decay: float | None,
    computed: Set[str] = frozenset(),
) -> list[dict[str, Any]]:
    """What `Plan.param_groups` does, with the learning rate of the network.

    Args:
        model: Whose parameters.
        lr: Of a layer without an entry in `scales`.
        scales: Name of a weight → factor of its learning rate.
        weight_decay: See `Plan.param_groups`.
        computed: As in `initialize`.
    """
    modules = _modules(model)
    factors: dict[int, float] = {}
    for name, scale in scales.items():
        if _is_lacking(modules, name, computed):
            continue
        for key in _slot(modules, name).parameters:
            factors[key] = scale
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        rate, decays = lr * factors.get(id(parameter), 1.0), parameter.ndim >= 2
        group = {"params": [], "lr": rate}
        if weight_decay is not None:
            group["weight_decay"] = weight_decay if decays else 0.0
        kind = (rate, decays or weight_decay is None)
        groups.setdefault(kind, group)["params"].append(parameter)
    return list(groups.values())
