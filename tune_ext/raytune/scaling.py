"""One learning rate for many architectures: a wrapper around any searcher of Ray's.

The wrapped searcher searches the base learning rate, that of a small base network. Each trial
gets the rate that its own architecture needs (`tune_ext.scaling`, arXiv 2402.17440), and the
searcher gets the results back with the base rate. The wrapper decides nothing else.
"""

from __future__ import annotations

import base64
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.util import _set_search_properties_backwards_compatible
from ray.tune.utils.util import merge_dicts

from tune_ext._architecture_factors import ArchitectureFactors, Unplanned
from tune_ext._checks import check_choice
from tune_ext._json import loads
from tune_ext._sealed import unseal
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune._base import (
    RESERVED_KEY,
    StatefulSearcher,
    check_name,
    read_json,
    write_json,
)
from tune_ext.raytune._scaled_config import (
    at,
    check_rate,
    constants_of,
    decoded,
    encoded,
    locate,
    may_have,
    replaced,
    unscaled,
)
from tune_ext.raytune._space import flatten, has_domains, unflatten

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tune_ext._graph import Aggregate, Convention
    from tune_ext.scaling import Plan

__all__ = ["ArchitectureScaledSearch"]

Config = Mapping[str, Any]

_BASE, _FACTOR = "base_lr", "lr_factor"


class ArchitectureScaledSearch(StatefulSearcher):
    """Let any searcher search one base learning rate for architectures of every shape.

    The learning rate of each suggested configuration is multiplied by the factor of its
    architecture relative to `base`, and the wrapped searcher sees the base rate in all that comes
    back. So bounds in the search space, and points to evaluate, are those of the base rate. The
    trial's configuration says what was done: ``{"tune_ext": {"base_lr": …, "lr_factor": …}}``.
    A configuration without a learning rate (a conditional one) passes as it is; one that is a
    constant of ``param_space`` is scaled like one that is searched.

    An architecture is planned once: its factor serves all configurations that agree on every
    entry that `model_fn` reads, and is part of the saved state. The model is built on torch's
    meta device, which takes no memory for weights; that `model_fn` moves it to another device
    does no harm.

    Args:
        searcher: Any Ray searcher, also one inside a ``ConcurrencyLimiter`` or a ``Repeater``.
            Ray's ``BasicVariantGenerator`` (random and grid search) is none; for random search
            take ``OptunaSearch(sampler=optuna.samplers.RandomSampler(seed))``.
        model_fn: Configuration → module. It gets what the trial gets, constants of
            ``param_space`` too, with the base learning rate and without the key ``tune_ext``;
            the module's shape must depend on nothing else, nor on the learning rate.
        example_input: What the module takes, as for `tune_ext.scaling.plan`: a tensor, a tuple of
            arguments or a dictionary of keyword arguments; or a function from the configuration
            to that. Only shapes and types matter.
        base: The network to which the base learning rate belongs: a `tune_ext.scaling.Plan`, a
            configuration for `model_fn` (what it leaves out comes from the constants of
            ``param_space``), or None for the published one, which has the kernel size of
            whatever it is compared with: give one where kernel sizes are searched.
        lr: Where the learning rate is in the configuration; ``"optimizer/lr"`` if it is nested.
        aggregate: An option of `tune_ext.scaling.plan`. None: as in a base that is a plan, or else
            its default.
        in_degree: As `aggregate`.
        on_error: What becomes of an architecture that cannot be planned: "unscaled" warns once
            and keeps the base rate, "raise" ends the run.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: An argument has an impossible value.
    """

    WHOLE_STATE = False
    CKPT_FILE_TMPL = "scaled-searcher-state-{}.json"

    def __init__(
        self,
        searcher: Searcher,
        model_fn: Callable[[Any], nn.Module],
        example_input: torch.Tensor | tuple[Any, ...] | dict[str, Any] | Callable[[Any], Any],
        *,
        base: Plan | Config | None = None,
        lr: str = "lr",
        aggregate: Aggregate | None = None,
        in_degree: Convention | None = None,
        on_error: Literal["unscaled", "raise"] = "unscaled",
    ) -> None:
        super().__init__(None, None)
        self.searcher = _check_searcher(searcher)
        check_name("lr", lr, "an entry of the configuration")
        check_choice("on_error", on_error, ("unscaled", "raise"))
        self._lr, self._on_error = lr, on_error
        self._factors = ArchitectureFactors(
            model_fn, example_input, base, tuple(lr.split("/")), aggregate, in_degree
        )
        self._constants: dict[str, Any] = {}
        self._has_rate: bool | None = None

    @property
    def metric(self) -> Any:
        """The wrapped searcher's metric."""
        return self.searcher.metric

    @property
    def mode(self) -> Any:
        """The wrapped searcher's mode."""
        return self.searcher.mode

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Pass on the limit of an outer ConcurrencyLimiter."""
        return bool(self.searcher.set_max_concurrency(max_concurrent))

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Config, **spec: Any
    ) -> bool:
        """Pass the space on, and keep its constants for `model_fn`.

        Raises:
            InvalidValueError: The space has no learning rate, or the base cannot be planned.
        """
        taken = _set_search_properties_backwards_compatible(
            self.searcher.set_search_properties, metric, mode, config, **spec
        )
        if taken and has_domains(config) and not may_have(config, self._lr):
            names = ", ".join("/".join(map(str, path)) for path in flatten(config))
            raise InvalidValueError(
                f"lr={self._lr!r} is not in the search space, which has {names}: name the entry "
                'that is the learning rate, as in lr="optimizer/lr"'
            )
        self._constants = constants_of(config)
        self._factors.prepare(self._constants)
        return bool(taken)

    def plan(self, config: Config) -> Plan:
        """The plan of a configuration's architecture, constants included; made anew.

        Raises:
            InvalidValueError: It cannot be built or planned.
        """
        return self._factors.plan(self._for_model(config))

    def scale(self, config: Config) -> dict[str, Any]:
        """A copy of a configuration with the base learning rate, with that of its architecture.

        A trial's configuration, which says how it was scaled, is first given its base rate: so
        ``scale({**best, "depth": 20})`` is for an architecture that was never tried.

        Raises:
            InvalidValueError: The learning rate is no positive number; or, with
                ``on_error="raise"``, the architecture cannot be planned.
        """
        if _BASE in (config.get(RESERVED_KEY) or ()):
            config = self.unscale(config)
        path = locate(merge_dicts(self._constants, dict(config)), self._lr)
        if path is None:
            return dict(config)
        base = check_rate(self._lr, at(config, path, at(self._constants, path, None)))
        factor = self._factor(config, base)
        scaled = replaced(config, path, base * factor)
        ours = scaled.get(RESERVED_KEY, {})
        if not isinstance(ours, Mapping):
            raise InvalidValueError(
                f"the configuration's entry {RESERVED_KEY!r} is {ours!r}, but this name is reserved"
            )
        return {**scaled, RESERVED_KEY: {**ours, _BASE: base, _FACTOR: factor}}

    def unscale(self, config: Config) -> dict[str, Any]:
        """A copy of a trial's configuration with its base learning rate.

        A configuration that does not say how it was scaled is taken for one that was trained
        with the rate that it has, which is divided by the factor of its architecture.

        Raises:
            InvalidValueError: As `scale`.
        """
        path = locate(config, self._lr)
        ours = config.get(RESERVED_KEY, {})
        if isinstance(ours, Mapping) and _BASE in ours:
            plain = {k: v for k, v in ours.items() if k not in (_BASE, _FACTOR)}
            kept = {k: v for k, v in config.items() if k != RESERVED_KEY}
            if path is not None:
                rate = unscaled(at(config, path, None), ours[_BASE], ours.get(_FACTOR))
                kept = replaced(kept, path, rate)
            return {**kept, RESERVED_KEY: plain} if plain else kept
        if path is None:
            return dict(config)
        rate = check_rate(self._lr, at(config, path, None))
        nested = unflatten({tuple(str(k).split("/")): v for k, v in config.items()})
        return replaced(config, path, rate / self._factor(nested, rate))

    def _factor(self, config: Config, rate: float) -> float:
        factor = self._factors.factor(self._for_model(config), self._constants)
        if not isinstance(factor, Unplanned) and not 0 < rate * factor < math.inf:
            factor = Unplanned(f"{rate} times its factor {factor} is {rate * factor}", known=False)
        if not isinstance(factor, Unplanned):
            return factor
        said = f"the architecture of {dict(config)!r} cannot be planned: {factor.reason}"
        if self._on_error == "raise":
            raise InvalidValueError(said)
        if not factor.known:
            warnings.warn(f"{said}. Its learning rate is left unscaled", stacklevel=4)
        return 1.0

    def _for_model(self, config: Config) -> dict[str, Any]:
        whole: dict[str, Any] = merge_dicts(self._constants, dict(config))
        whole.pop(RESERVED_KEY, None)
        return whole

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the wrapped searcher's next configuration with its own rate; None, FINISHED."""
        suggested: dict[str, Any] | str | None = self.searcher.suggest(trial_id)
        if not isinstance(suggested, Mapping):
            return suggested
        config = self.scale(suggested)
        self._note_rate(config)
        return config

    def _note_rate(self, config: Config) -> None:
        """Warn once if the first configuration has no learning rate: its name may be wrong."""
        if self._has_rate is None:
            self._has_rate = locate(config, self._lr) is not None
            if not self._has_rate:
                warnings.warn(
                    f"lr={self._lr!r} is not in the first suggested configuration, which has "
                    f"{', '.join(map(str, config))}; configurations without it are not scaled",
                    stacklevel=3,
                )

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass a result on with the base learning rate."""
        self.searcher.on_trial_result(trial_id, self._of_base(result))

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass the last result on with the base learning rate; None, and a crash, as they are."""
        last = None if result is None else self._of_base(result)
        self.searcher.on_trial_complete(trial_id, result=last, error=error)

    def _of_base(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a result in which the configuration, nested or flat, has the base rate."""
        ours, rate = f"config/{RESERVED_KEY}/", f"config/{self._lr}"
        passed = {k: v for k, v in result.items() if k not in (ours + _BASE, ours + _FACTOR)}
        if ours + _BASE in result and rate in result:
            base, factor = result[ours + _BASE], result.get(ours + _FACTOR)
            passed[rate] = unscaled(result[rate], base, factor)
        config = result.get("config")
        if isinstance(config, Mapping) and _BASE in (config.get(RESERVED_KEY) or ()):
            passed["config"] = self.unscale(config)
        return passed

    def add_evaluated_point(
        self,
        parameters: Config,
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> Any:
        """Pass on what is known of a configuration that was trained with the rate it has."""
        return self.searcher.add_evaluated_point(
            self.unscale(parameters), value, error, pruned, intermediate_values
        )

    def on_pause(self, trial_id: str) -> None:
        """Pass it on; a searcher that does not know pauses need not hear of them."""
        if self._hears_of("on_pause"):
            self.searcher.on_pause(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """As `on_pause`."""
        if self._hears_of("on_unpause"):
            self.searcher.on_unpause(trial_id)

    def _hears_of(self, callback: str) -> bool:
        """Whether the searcher inside any limiters, which pass on everything, has a callback."""
        inner = self.searcher
        while isinstance(inner, ConcurrencyLimiter):
            inner = inner.searcher
        return hasattr(inner, callback)

    def save(self, checkpoint_path: str) -> None:
        """Write this state, and the wrapped searcher's own file within it, whole or not at all.

        Ray does not call this: it saves every searcher along ``.searcher`` in its own way.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "searcher")
            self.searcher.save(str(file))
            inner = base64.b64encode(file.read_bytes()).decode("ascii")
        write_json(Path(checkpoint_path), {**self.get_state(), "searcher": inner})

    def restore(self, checkpoint_path: str, *, trusted: bool = False) -> None:
        """Go on from a file that `save` wrote; the file is only read.

        What our searchers write within it is JSON. Ray's write a pickle, and whoever has written
        a pickle has what he likes run by its reader.

        Args:
            checkpoint_path: The file.
            trusted: Whether you know who wrote the file, so that a pickle in it may be read.

        Raises:
            StateError: The file is damaged, of an unknown version, of something else, or of a
                search with another base, learning rate, aggregate or in-degree. Or there is a
                pickle in it, and it is not trusted.
        """
        where = f"the searcher's state in {checkpoint_path}"
        try:
            state = read_json(Path(checkpoint_path))
            inner = base64.b64decode(state.pop("searcher"), validate=True)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"{where} is damaged ({error!r}); it was left alone") from None
        if not trusted and not _is_json(inner):
            raise StateError(
                f"{where} holds a pickle of the wrapped {type(self.searcher).__name__}, and "
                "reading a pickle can run code: if you know who wrote it, pass trusted=True"
            )
        before = self.get_state()
        self._accept(state, where)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "searcher")
            file.write_bytes(inner)
            try:
                self.searcher.restore(str(file))
            except Exception as error:  # unpickling raises anything
                self._accept(before, where)
                name = type(self.searcher).__name__
                raise StateError(f"{where} is not one of a {name}: {error!r}") from error

    def _state(self) -> dict[str, Any]:
        constants = []
        for path, value in flatten(self._constants).items():
            try:
                constants.append([[encoded(key) for key in path], encoded(value)])
            except TypeError:
                continue  # model_fn will say that it misses it
        return {
            "lr": self._lr,
            "constants": constants,
            "has_rate": self._has_rate,
            "plans": self._factors.state(),
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        constants = unflatten(
            {tuple(decoded(key) for key in path): decoded(v) for path, v in state["constants"]}
        )
        has_rate = state["has_rate"]
        self._factors.load_state(state["plans"])
        # Nothing above has changed the searcher: a damaged state leaves it as it was.
        self._constants, self._has_rate = constants, has_rate


def _is_json(data: bytes) -> bool:
    """Whether a file is JSON: no text is that and a pickle as well, as none of them begins so."""
    try:
        loads(unseal(data.decode("utf-8")))
    except ValueError:
        return False
    return True


def _check_searcher(searcher: Any) -> Searcher:
    if isinstance(searcher, SearchAlgorithm):
        raise InvalidTypeError(
            f"searcher must be a Searcher, but {type(searcher).__name__} makes the trials itself; "
            "for random search take OptunaSearch(sampler=optuna.samplers.RandomSampler(seed=0))"
        )
    if not isinstance(searcher, Searcher):
        raise InvalidTypeError(f"searcher must be a Searcher of Ray's, got {searcher!r}")
    inner: Any = searcher
    while inner is not None:
        if isinstance(inner, ArchitectureScaledSearch):
            raise InvalidTypeError("searcher is scaled to architectures already; scale it once")
        inner = getattr(inner, "searcher", None)
    return searcher
