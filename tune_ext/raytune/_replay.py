"""Searchers of others in our own state files: by what they were asked and told, not by a pickle.

Ray's searchers save themselves as pickles, and a pickle runs what its writer wants. A searcher
here notes every call, in JSON. To bring it back, a new one of the same factory is called the same
way. That it suggests the same again, as one with a seed does, is checked on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from tune_ext._narrowing import plain
from tune_ext.errors import StateError
from tune_ext.raytune._base import StatefulSearcher

__all__ = ["NotedSearcher"]

_HEARD = ("on_pause", "on_unpause")


class NotedSearcher:
    """A searcher whose calls are noted, where it has no state in JSON itself.

    Args:
        searcher: Any of Ray's.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        has_state = isinstance(searcher, StatefulSearcher) and searcher.WHOLE_STATE
        self._stateful = searcher if has_state else None
        self._calls: list[list[Any]] = []
        # What of a result the searcher reads, where that is known; else all.
        self._reads: frozenset[str] | None = getattr(searcher, "reads", None)

    def suggest(self, trial_id: str) -> Any:
        """What the searcher suggests."""
        suggested = self.searcher.suggest(trial_id)
        self._note("suggest", trial_id, _jsonable(suggested))
        return suggested

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass a result on."""
        self._note("result", trial_id, self._read(result))
        self.searcher.on_trial_result(trial_id, dict(result))

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None, *, error: bool
    ) -> None:
        """Pass the end of a trial on."""
        self._note("complete", trial_id, None if result is None else self._read(result), error)
        given = None if result is None else dict(result)
        self.searcher.on_trial_complete(trial_id, result=given, error=error)

    def add_evaluated_point(self, config: Mapping[str, Any], value: float) -> None:
        """Pass on what is known; NotImplementedError or AttributeError where it takes nothing."""
        self.searcher.add_evaluated_point(dict(config), value)
        self._note("point", _jsonable(config), float(value))

    def hears_of(self, callback: str, trial_id: str) -> None:
        """Pass a pause on; a searcher that does not know pauses need not hear of them."""
        heard = getattr(self.searcher, callback, None)
        if heard is not None:
            self._note(callback, trial_id)
            heard(trial_id)

    def _note(self, *call: Any) -> None:
        if self._stateful is None:
            self._calls.append(list(call))

    def _read(self, result: Mapping[str, Any]) -> Any:
        if self._reads is not None:
            result = {k: v for k, v in result.items() if k in self._reads}
        return _jsonable(result)

    def to_json(self) -> dict[str, Any]:
        """Its state, or its calls."""
        if self._stateful is not None:
            return {"state": self._stateful.get_state()}
        return {"calls": [list(call) for call in self._calls]}

    def load_json(self, state: Mapping[str, Any]) -> bool:
        """Bring a new searcher to where `to_json` was written.

        Returns:
            Whether it is there. If not, it has suggested something else than the one that was
            saved, as a searcher without a seed does, and is of no use any more.

        Raises:
            StateError: The state is of another kind of searcher, or damaged.
        """
        if self._stateful is not None:
            self._stateful.set_state(state["state"])
            return True
        calls: Sequence[Any] = state["calls"]
        try:
            return all(self._repeat(*call) for call in calls)
        except Exception as error:  # a searcher of anybody's, with calls that nobody may have made
            name = type(self.searcher).__name__
            raise StateError(f"a {name} cannot repeat its calls: {error!r}") from error

    def _repeat(self, what: str, *given: Any) -> bool:
        """Make one call again; whether it was answered as it was then."""
        if what == "suggest":
            return bool(_jsonable(self.suggest(given[0])) == given[1])
        if what == "result":
            self.on_trial_result(*given)
        elif what == "complete":
            self.on_trial_complete(given[0], given[1], error=bool(given[2]))
        elif what == "point":
            self.add_evaluated_point(*given)
        elif what in _HEARD:
            self.hears_of(what, *given)
        else:
            raise ValueError(f"an unknown call: {what!r}")
        return True


def _jsonable(value: Any) -> Any:
    """What JSON can hold of a value; the rest is left out."""
    value = plain(value)
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items() if _is_jsonable(v)}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value if _is_jsonable(item)]
    return value if _is_jsonable(value) else None


def _is_jsonable(value: Any) -> bool:
    value = plain(value)
    return value is None or isinstance(value, (bool, int, float, str, Mapping, list, tuple))
