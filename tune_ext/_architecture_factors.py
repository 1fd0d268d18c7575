"""The learning-rate factor of the architecture that a configuration describes, planned once.

`ArchitectureFactors` builds the module of a configuration on torch's meta device, plans it
(`tune_ext.scaling`) and keeps the factor for every configuration that agrees on all that the
builder read (`tune_ext._plan_cache`). It knows configurations, modules and factors; no Ray.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tune_ext._checks import check_choice
from tune_ext._paths import AGGREGATES, CONVENTIONS
from tune_ext._plan_cache import Path, Read, ReadCache, Recorder
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

if TYPE_CHECKING:
    from tune_ext._graph import Aggregate, Convention
    from tune_ext.scaling import Plan

__all__ = ["ArchitectureFactors", "Unplanned"]

Config = Mapping[Any, Any]

_PLACEHOLDERS = ("__fn_ph", "__ref_ph")
"""The first element of the tuple by which Ray replaces, for searchers, what is no plain value."""


@dataclass(frozen=True)
class Unplanned:
    """Why an architecture has no factor.

    Attributes:
        reason: What went wrong, in words.
        known: It was told before, of a configuration with the same architecture.
    """

    reason: str
    known: bool


class ArchitectureFactors:
    """Plans architectures, each one once.

    Args:
        model_fn: Configuration → ``nn.Module``. It is called on torch's meta device.
        example_input: Tensors as `tune_ext.scaling.plan` takes them, or a function from a
            configuration to these.
        base: A plan, a configuration, or None for the published base.
        rate: The path of the learning rate, on which no architecture depends.
        aggregate: An option of `tune_ext.scaling.plan`; None for that of a base that is a plan,
            or else for its default.
        in_degree: As `aggregate`.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: An option is not known, or not that of the base.
    """

    def __init__(
        self,
        model_fn: Callable[[Any], Any],
        example_input: Any,
        base: Any = None,
        rate: Path = (),
        aggregate: Aggregate | None = None,
        in_degree: Convention | None = None,
    ) -> None:
        if not callable(model_fn):
            raise InvalidTypeError(
                f"model_fn must be a function from a configuration to a module, got {model_fn!r}"
            )
        self._model_fn, self._example = model_fn, _on_meta(example_input)
        check_choice("aggregate", aggregate, (*AGGREGATES, None))
        check_choice("in_degree", in_degree, (*CONVENTIONS, None))
        self._base = _check_base(base)
        self._options = _options(self._base, {"aggregate": aggregate, "in_degree": in_degree})
        self._rates = (rate,)
        self._base_plan: Plan | None = None
        self._factors = ReadCache[float]()
        self._failures = ReadCache[str]()
        self._warned = False

    def plan(self, config: Config) -> Plan:
        """The plan of a configuration's architecture, made anew.

        Raises:
            InvalidValueError: It cannot be built or planned; the message says why.
        """
        made = self._plan(config)[0]
        if isinstance(made, str):
            raise InvalidValueError(made)
        return made

    def factor(self, config: Config, constants: Config) -> float | Unplanned:
        """What the base learning rate is multiplied by for a configuration's architecture.

        Args:
            config: The whole configuration.
            constants: What a base that is a configuration may leave out.

        Raises:
            InvalidValueError: The base cannot be planned.
        """
        factor = self._factors.find(config)
        if factor is not None:
            return factor
        reason = self._failures.find(config)
        if reason is not None:
            return Unplanned(reason, known=True)
        base = self.prepare(constants)
        plan, reads = self._plan(config)
        answer = plan if isinstance(plan, str) else _factor(plan, base)
        if isinstance(answer, str):
            self._failures.add(config, reads, answer)
            return Unplanned(answer, known=False)
        self._factors.add(config, reads, answer)
        return answer

    def prepare(self, constants: Config) -> Plan | None:
        """The plan of the base, made when it is first asked for.

        Raises:
            InvalidValueError: It cannot be built or planned.
        """
        if isinstance(self._base, Mapping) and self._base_plan is None:
            made = self._plan(_merged(constants, self._base))[0]
            if isinstance(made, str):
                raise InvalidValueError(f"base, as a configuration, cannot be planned: {made}")
            made.factor()  # an error unless it has a learning rate
            self._base_plan = made
        return self._base_plan if isinstance(self._base, Mapping) else self._base

    def settings(self) -> dict[str, Any]:
        """On what the factors depend, JSON-able."""
        base: Any = self._base
        if base is not None:
            base = _digest(base if isinstance(base, Mapping) else base.to_dict())
        return {"rate": list(self._rates[0]), "base": base, **self._options}

    def state(self) -> dict[str, Any]:
        """Everything that was planned, JSON-able; what failed is tried again after a restore."""
        return {"settings": self.settings(), "factors": self._factors.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            StateError: It was made with other settings, or is damaged.
        """
        if state["settings"] != self.settings():
            raise StateError(
                f"the factors were saved with the settings {state['settings']}, but these are "
                f"{self.settings()}: use the same lr, base, aggregate and in_degree"
            )
        factors: ReadCache[float] = ReadCache.of_state(state["factors"])
        for factor in factors.answers():
            if not isinstance(factor, float) or not 0 < factor < math.inf:
                raise StateError(f"the saved plans have an impossible factor: {factor!r}")
        self._factors, self._failures = factors, ReadCache[str]()

    def _plan(self, config: Config) -> tuple[Plan | str, tuple[Read, ...]]:
        """The plan, or why there is none; and what was read of the configuration."""
        from tune_ext import scaling

        recorder = Recorder(config, self._rates)
        said: list[warnings.WarningMessage] = []
        with _same_random_state():
            try:
                model, example = self._build(recorder.lend)
            except Exception as error:  # a user's function may raise anything; it is reported
                # It may insist on a dictionary, which does not tell what is read of it.
                try:
                    model, example = self._build(lambda: copy.deepcopy(dict(config)))
                    recorder.read_everything()
                except Exception as again:
                    if repr(again) != repr(error):
                        recorder.read_everything()
                    return _explain("model_fn", again, config, recorder.reads), recorder.reads
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always", scaling.ScalingWarning)
                    plan = scaling.plan(model, example, **self._options)
            except Exception as error:
                return _explain("planning", error, config, recorder.reads), recorder.reads
        self._warn(said)
        return plan, recorder.reads  # which its forward may have read, too

    def _warn(self, said: Sequence[warnings.WarningMessage]) -> None:
        """Pass on what was said of the first architecture alone: the others are much like it."""
        for warning in () if self._warned else said:
            text = f"{warning.message} (said of the first architecture only; plan(config).warnings)"
            warnings.warn(text, warning.category, stacklevel=8)
        self._warned = self._warned or bool(said)

    def _build(self, lend: Callable[[], Any]) -> tuple[Any, Any]:
        """The module and its inputs; again with numbers if that is what its builder misses."""
        try:
            return self._build_once(lend(), numbers=False)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            return self._build_once(lend(), numbers=True)

    def _build_once(self, config: Any, numbers: bool) -> tuple[Any, Any]:
        import torch

        from tune_ext._on_meta import built_on_meta

        with built_on_meta(numbers=numbers):
            model = self._model_fn(config)
            if not isinstance(model, torch.nn.Module):
                raise InvalidTypeError(f"model_fn must return a torch module, got {model!r}")
            example = self._example
            return model, _on_meta(example(config)) if callable(example) else example


def _factor(plan: Plan, base: Plan | None) -> float | str:
    try:
        return float(plan.factor(base))
    except InvalidValueError as error:
        return str(error)


def _explain(what: str, error: Exception, config: Config, reads: tuple[Read, ...]) -> str:
    said = f"{what} failed with {type(error).__name__}: {str(error)[:800]}"
    if what == "model_fn" and "meta" in str(error):
        said += (
            ". Models are planned without data: where the builder reads numbers from a tensor, "
            'make that with device="cpu"'
        )
    hidden = [path for kind, path in reads if kind == "value" and _is_placeholder(config, path)]
    if hidden:
        names = ", ".join("/".join(map(str, path)) for path in hidden)
        said += (
            f". Ray hides what is no number, string or list from searchers, here: {names}. "
            "Search a name instead, and let model_fn look up what it stands for"
        )
    return said


def _is_placeholder(config: Any, path: Path) -> bool:
    for key in path:
        if not isinstance(config, Mapping) or key not in config:
            return False
        config = config[key]
    return isinstance(config, tuple) and len(config) == 2 and config[0] in _PLACEHOLDERS


def _on_meta(example: Any) -> Any:
    """Example inputs without their data; a function as it is."""
    import torch
    from torch.utils import _pytree

    if callable(example) and not isinstance(example, torch.Tensor):
        return example
    leaves = _pytree.tree_leaves(example)
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise InvalidTypeError(
            "example_input must be a tensor, a tuple of arguments or a dictionary of keyword "
            f"arguments with a tensor among them, or a function from a configuration to these, "
            f"got {example!r}"
        )
    return _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), example)


def _check_base(base: Any) -> Any:
    from tune_ext.scaling import Plan

    if base is None or isinstance(base, Plan):
        if base is not None:
            base.factor()  # an error unless it has a learning rate
        return base
    if isinstance(base, Mapping):
        return copy.deepcopy(dict(base))
    raise InvalidTypeError(
        f"base must be a plan, a configuration for model_fn, or None, got {base!r}"
    )


def _options(base: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """How networks are planned: as the base, if that is a plan."""
    from tune_ext.scaling import Plan, plan

    options = {}
    for name, value in asked.items():
        options[name] = inspect.signature(plan).parameters[name].default
        if isinstance(base, Plan):
            options[name] = getattr(base, name)
            if value not in (None, options[name]):
                raise InvalidValueError(
                    f"base was planned with {name}={options[name]!r}, so {name} cannot be "
                    f"{value!r}: make both the same, or leave it out"
                )
        elif value is not None:
            options[name] = value
    return options


def _merged(below: Config, above: Config) -> dict[Any, Any]:
    """`above` over `below`, at every level."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda item: type(item).__qualname__)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Leave the global generators as they were, whatever a user's function does to them."""
    import torch

    python, numpy_ = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)  # noqa: NPY002
