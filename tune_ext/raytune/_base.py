"""What every searcher here shares: metric and mode, results, versioned JSON state."""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.tune.result import DEFAULT_METRIC
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.util import placement_group_table

from tune_ext._checks import check_choice
from tune_ext._json import loads
from tune_ext._names import RESERVED_KEY
from tune_ext._sealed import seal, unseal
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = [
    "IF_RESTORED",
    "RESERVED_KEY",
    "PendingLimit",
    "Polls",
    "StatefulSearcher",
    "as_number",
    "check_name",
    "has_room",
    "is_diverged",
    "loss_of",
    "read_json",
    "reported_names",
    "role_of",
    "unchecked",
    "write_json",
]


IF_RESTORED = (
    "After Tuner.restore it means that Ray could not read the state of the experiment, as its log "
    "says: nothing was overwritten, and tune_ext.repair_experiment(path) puts back what was kept"
)
"""Of a search without a space: Ray hands on none when it restores, as the state has it."""


class _UncheckedName(str):
    """A metric's name for which Ray does not abort the run when one result lacks it.

    Ray checks every result for the searcher's metric unless that is its own placeholder
    name, and ends the whole experiment where it is missing. A trial without the metric is a
    failed trial to us, not the end of the others.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return other != DEFAULT_METRIC and str.__ne__(self, other)

    def __reduce__(self) -> tuple[type[_UncheckedName], tuple[str]]:
        return _UncheckedName, (str(self),)


def unchecked(metric: str | None) -> str | None:
    """The metric's name such that a result without it does not end the experiment."""
    return None if metric is None else _UncheckedName(metric)


class StatefulSearcher(Searcher):
    """A Ray searcher whose state is one JSON document with a version.

    A subclass translates between Ray and a pure core; it implements `_state` and
    `_load_state`, and this class does the files.

    Args:
        metric: The result that the searcher reads; None takes Ray's.
        mode: "min" or "max"; None takes Ray's.

    Raises:
        InvalidTypeError: `metric` is not a string.
        InvalidValueError: `mode` is neither "min" nor "max".
    """

    STATE_VERSION: ClassVar[int] = 1
    WHOLE_STATE: ClassVar[bool] = True
    """Whether `get_state` holds everything; that of a wrapper leaves out what it wraps."""
    CKPT_FILE_TMPL = "searcher-state-{}.json"
    _refused: tuple[str, str] | None = None
    """Where Ray could not restore it from, and why; Ray itself logs that and begins again."""

    def __init__(self, metric: str | None, mode: str | None) -> None:
        if metric is not None:
            check_name("metric", metric)
        check_choice("mode", mode, ("min", "max", None))
        # Given no mode, Ray's constructor checks nothing by assertion.
        super().__init__(metric=None, mode=None)
        self._metric: str | None = None
        self._mode: str | None = mode
        self._set_metric(metric)

    def _set_metric(self, metric: str | None) -> None:
        self._metric = unchecked(metric)

    def _fill_metric_and_mode(self, metric: str | None, mode: str | None) -> None:
        """Take what the experiment names for what the constructor left open."""
        if self._metric is None:
            self._set_metric(metric)
        if self._mode is None:
            self._mode = mode

    def _check_ready(self, has_space: bool) -> None:
        """Raise unless there is something to search, and something to compare it by."""
        name = type(self).__name__
        if not has_space:
            raise InvalidValueError(
                f"{name} has no search space: pass space, or a param_space with Tune domains. "
                f"{IF_RESTORED}"
            )
        if self._metric is None or self._mode is None:
            raise InvalidValueError(
                f"{name} needs a metric and a mode, got {self._metric!r} and {self._mode!r}: "
                "pass them to it, or to TuneConfig (Ray hands these on only with a param_space)"
            )

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """The state as JSON-able values."""

    @abstractmethod
    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `_state` returned, or raise without changing anything."""

    def get_state(self) -> dict[str, Any]:
        """Return everything that a new instance needs to go on, JSON-able."""
        return {"kind": type(self).__name__, "version": self.STATE_VERSION, **self._state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` returned.

        Raises:
            StateError: It is the state of something else, of an unknown version, or damaged.
        """
        self._accept(state, "the given state")

    def save(self, checkpoint_path: str) -> None:
        """Write the state to a file, whole or not at all."""
        write_json(Path(checkpoint_path), self.get_state())

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a file that `save` wrote; the file is only read.

        Raises:
            StateError: The file is damaged, of an unknown version, or of something else.
        """
        where = f"the searcher's state in {checkpoint_path}"
        try:
            state = read_json(Path(checkpoint_path))
        except StateError as error:
            raise StateError(f"{where} is damaged: {error}; it was left alone") from None
        except ValueError as error:
            raise StateError(f"{where} is not readable JSON ({error}); it was left alone") from None
        self._accept(state, where)

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Go on from the newest state in Ray's directory of the experiment.

        Raises:
            StateError: As `restore`. Ray goes on without it, so that this search refuses to be
                saved over the one that it was to be.
        """
        try:
            super().restore_from_dir(checkpoint_dir)
        except Exception as error:
            self._refused = checkpoint_dir, str(error)
            raise
        self._refused = None

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Write the state into Ray's directory of the experiment.

        Raises:
            StateError: It could not be restored from there before.
        """
        if self._refused is not None and self._refused[0] == checkpoint_dir:
            raise StateError(
                f"the search cannot go on: {self._refused[1]}. The experiment ends before that is "
                "saved over; tune_ext.repair_experiment puts back a state that was kept. To begin "
                "again, give another name and a new search"
            )
        super().save_to_dir(checkpoint_dir, session_str)

    def _accept(self, state: Any, where: str) -> None:
        if not isinstance(state, Mapping) or state.get("kind") != type(self).__name__:
            raise StateError(f"{where} is not the state of a {type(self).__name__}")
        if state.get("version") != self.STATE_VERSION:
            raise StateError(
                f"{where} has version {state.get('version')!r}, but this tune_ext knows "
                f"version {self.STATE_VERSION}; use the tune_ext that wrote it"
            )
        try:
            self._load_state(state)
        except StateError as error:  # says itself what is wrong; the state may be of another search
            raise StateError(f"{where} cannot be used: {error}; it was left alone") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"{where} is damaged: {error!r}; it was left alone") from error


class Polls:
    """Notices that Ray has nothing to run and waits for a suggestion.

    It then asks once a second, where it otherwise asks several times.
    """

    def __init__(self) -> None:
        self._last = -math.inf
        self._slow = 0

    def blocked(self) -> int:
        """Note one more question; tell how many of the last ones came a second apart."""
        now = time.monotonic()
        self._slow = self._slow + 1 if 0.9 < now - self._last < math.inf else 0
        self._last = now
        return self._slow


class PendingLimit(ConcurrencyLimiter):
    """Tells Ray how many pending trials it may keep; limits nothing.

    Ray gives a custom searcher one pending trial at a time, unless it meets a
    ConcurrencyLimiter on its way along the attribute ``searcher``. This object ends that
    chain: it has no such attribute itself, and passes the files on to the real searcher.
    """

    def __init__(self, owner: StatefulSearcher, max_concurrent: int) -> None:
        self.owner = owner
        self.max_concurrent = max_concurrent

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        self.owner.save_to_dir(checkpoint_dir, session_str)

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        self.owner.restore_from_dir(checkpoint_dir)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document so that a reader sees the old file or the new one, whole.

    It ends with a checksum.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(seal(json.dumps(document)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """A document that `write_json` wrote, or one without a checksum.

    Raises:
        StateError: It does not fit its checksum.
        ValueError: It is no JSON.
    """
    return loads(unseal(path.read_text(encoding="utf-8")))


def as_number(value: Any) -> float | None:
    """Return a reported value as a finite float; None for anything else.

    >>> as_number(True), as_number("x"), as_number(float("nan")), as_number(2)
    (None, None, None, 2.0)
    """
    if value is None or isinstance(value, bool | str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def loss_of(result: Mapping[str, Any], metric: str | None, mode: str | None) -> float | None:
    """The metric of a result such that lower is better; None if it is no finite number.

    >>> loss_of({"accuracy": 0.9}, "accuracy", "max"), loss_of({}, "loss", "min")
    (-0.9, None)
    """
    value = as_number(result.get(str(metric)))
    return -value if value is not None and mode == "max" else value


def is_diverged(result: Mapping[str, Any], metric: str | None) -> bool:
    """Tell whether a result says that training has diverged.

    It does when its ``diverged`` is true, or its metric is a number that is not finite.

    >>> is_diverged({"loss": float("inf")}, "loss"), is_diverged({"loss": None}, "loss")
    (True, False)
    """
    value = result.get(metric) if metric is not None else None
    if bool(result.get("diverged", False)):
        return True
    try:
        return value is not None and not math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def reported_names(result: Mapping[str, Any]) -> list[str]:
    """The names under which a trial has reported something, for a message.

    >>> reported_names({"loss": 1.0, "config/lr": 0.1})
    ['loss']
    """
    return sorted(key for key in result if not key.startswith("config/"))


def role_of(config: Mapping[str, Any] | None) -> str:
    """What a trial is for: "probe", "rung", or "final" where its configuration does not say."""
    ours = (config or {}).get(RESERVED_KEY)
    role = ours.get("role") if isinstance(ours, Mapping) else None
    return str(role) if role in ("probe", "rung") else "final"


def has_room(live: int) -> bool:
    """Whether the cluster would run one more trial at once, beside `live` ones.

    Ray tells a searcher neither what a trial needs nor which trials are still waiting; the
    placement groups do, one a trial. There is room when none of them waits, each live trial has
    its own, and the cluster has the resources for more trials of the largest kind.
    """
    if not ray.is_initialized():
        return False
    table = placement_group_table().values()
    groups = [group for group in table if group["state"] != "REMOVED"]
    if len(groups) < live or any(group["state"] != "CREATED" for group in groups):
        return False
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return live < min((_slots(group["bundles"].values(), nodes) for group in groups), default=1)


def _slots(bundles: Iterable[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials with these bundles fit into a cluster of these nodes.

    A bundle is on one node, and a part of a GPU on one GPU. Several bundles may be on several
    nodes: they are counted against all of these together.

    >>> _slots([{"GPU": 0.4}], [{"GPU": 1}, {"GPU": 2}]), _slots([{"GPU": 2}], [{"GPU": 1}] * 4)
    (6, 0)
    """
    needs = [{k: n for k, n in bundle.items() if n > 0} for bundle in bundles]
    needs = [need for need in needs if need]
    if not needs:
        return 1
    if len(needs) == 1:
        return sum(_fits(needs[0], node) for node in nodes)
    needed, total = Counter[str](), Counter[str]()
    for need in needs:
        needed.update(need)
    for node in nodes:
        total.update(node)
    return _fits(needed, total)


def _fits(need: Mapping[str, float], have: Mapping[str, float]) -> int:
    whole = {k: math.floor(1 / n + 1e-9) if k == "GPU" and n < 1 else 0 for k, n in need.items()}
    counts = [
        int(have.get(k, 0)) * whole[k] if whole[k] else int(have.get(k, 0) / n + 1e-9)
        for k, n in need.items()
    ]
    return min(counts)


def check_name(name: str, value: Any, of: str = "a reported number") -> None:
    """Raise unless `value` is a non-empty string; `of` says what it names."""
    if not isinstance(value, str) or not value:
        raise InvalidTypeError(f"{name} must be the name of {of}, got {value!r}")
