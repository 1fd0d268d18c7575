"""What a function reads of a configuration is noticed, however it reads it."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from tune_ext._plan_cache import Read, ReadCache, Recorder
from tune_ext.errors import StateError

CONFIG: dict[str, Any] = {
    "lr": 0.1,
    "width": 8,
    "kind": "deep",
    "net": {"depth": 3, "drop": 0.2},
    "sizes": [3, 5],
}


def changed(**values: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    for name, value in values.items():
        node, *path = config, *name.split("__")
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    return config


def known_after(function: Any, ignored: Any = ()) -> ReadCache[Any]:
    """A cache that knows what the function answers to `CONFIG`."""
    recorder, cache = Recorder(CONFIG, ignored), ReadCache[Any]()
    with contextlib.suppress(KeyError):
        function(recorder.lend())
    assert cache.add(CONFIG, recorder.reads, "known")
    return cache


def everything(config: Any, ignored: Any = ()) -> tuple[Read, ...]:
    recorder = Recorder(config, ignored)
    recorder.read_everything()
    return recorder.reads


EACH: dict[str, Any] = {
    "an entry": lambda c: c["width"],
    "get": lambda c: c.get("width"),
    "a branch": lambda c: c["width"] if c["kind"] == "deep" else c["net"]["drop"],
    "nested": lambda c: c["net"]["depth"],
    "a part that is lent": lambda c: [part := c["net"], part["depth"]],
    "a list": lambda c: c["sizes"][1],
    "presence": lambda c: "width" in c and "other" not in c,
    "a default": lambda c: c.get("other", 3),
    "an absent one": lambda c: c["other"],
    "keywords": lambda c: (lambda **rest: rest["width"])(**c),
    "a dictionary": lambda c: dict(c),
    "a union": lambda c: c | {"new": 1},
    "the other union": lambda c: {"new": 1} | c,
    "unpacking": lambda c: {**c},
    "updating": lambda c: {}.update(c),
    "a copy": lambda c: c.copy()["net"]["depth"],
    "a deep copy": lambda c: copy.deepcopy(c)["net"]["depth"],
    "a copy of a part": lambda c: copy.deepcopy(c["net"])["depth"],
    "a shallow copy": lambda c: copy.copy(c)["width"],
    "a copy that is not read": lambda c: [c.copy(), copy.copy(c), copy.deepcopy(c)],
    "text": lambda c: str(c),
    "pickling": lambda c: pickle.dumps(c),
    "comparing": lambda c: c == {},
    "the length": lambda c: len(c),
    "the keys": lambda c: list(c),
    "a pattern": lambda c: [w for w in [c] if isinstance(w["net"].get("depth"), int)],
    "popping": lambda c: c.pop("width"),
    "popping an absent one": lambda c: c.pop("other", None),
    "a default that is set": lambda c: c.setdefault("other", 4),
    "deleting": lambda c: c.__delitem__("width"),
}

SEEN = {
    "width": changed(width=9),
    "depth": changed(net__depth=4),
    "kind": changed(kind="wide"),
    "drop": changed(net__drop=0.3),
    "sizes": changed(sizes=[3, 6]),
    "more": changed(other=1),
    "no net": {k: v for k, v in CONFIG.items() if k != "net"},
    "flat net": changed(net=3),
}

ALL = {"width", "depth", "kind", "drop", "sizes", "more", "no net", "flat net"}
WHOLE = {
    "a dictionary": {"width", "kind", "sizes", "more", "no net", "flat net"},
    "text": ALL,
    "pickling": ALL,
}
"""Of which of `SEEN` each way of reading must not take the answer of `CONFIG`."""
NOTICES = {
    "an entry": {"width"},
    "get": {"width"},
    "a branch": {"width", "kind"},
    "nested": {"depth", "no net", "flat net"},
    "a part that is lent": {"depth", "no net", "flat net"},
    "a list": {"sizes"},
    "presence": {"more"},
    "a default": {"more"},
    "an absent one": {"more"},
    "keywords": WHOLE["a dictionary"],
    **WHOLE,
    "a union": WHOLE["a dictionary"],
    "the other union": WHOLE["a dictionary"],
    "unpacking": WHOLE["a dictionary"],
    "updating": WHOLE["a dictionary"],
    "a copy": {"depth", "no net", "flat net"},
    "a deep copy": {"depth", "no net", "flat net"},
    "a copy of a part": {"depth", "no net", "flat net"},
    "a shallow copy": {"width"},
    "a copy that is not read": set(),
    "comparing": WHOLE["a dictionary"],
    "the length": {"more", "no net"},
    "the keys": {"more", "no net"},
    "a pattern": {"depth", "no net", "flat net"},
    "popping": {"width"},
    "popping an absent one": {"more"},
    "a default that is set": {"more"},
    "deleting": set(),
}


@pytest.mark.parametrize("way", EACH)
def test_what_is_read_is_noticed_and_nothing_else(way: str) -> None:
    before = copy.deepcopy(CONFIG)
    cache = known_after(EACH[way])
    assert before == CONFIG, "the caller's configuration was changed"
    missed = {name for name, config in SEEN.items() if cache.find(config) is None}
    assert missed == NOTICES[way]
    assert cache.find(changed()) == "known"


def test_what_the_function_writes_is_its_own() -> None:
    def builds(config: Any) -> None:
        config["width"] = 3 * config["net"]["depth"]
        config["net"]["depth"] = 7
        config["sizes"].append(4)
        twin = copy.deepcopy(config)
        twin["net"]["depth"], twin["sizes"][0] = 9, 0
        assert (config["width"], config["net"]["depth"], config["sizes"]) == (9, 7, [3, 5, 4])

    cache = known_after(builds)
    assert cache.find(changed(width=99)) == "known"
    assert cache.find(changed(net__depth=7)) is None


def test_an_ignored_value_may_be_read_but_must_be_there() -> None:
    cache = known_after(lambda c: dict(c), ignored=[("lr",)])
    assert cache.find(changed(lr=0.7)) == "known"
    conditional = {k: v for k, v in CONFIG.items() if k != "lr"}
    assert known_after(lambda c: c["lr"], ignored=[("lr",)]).find(conditional) is None


def test_values_of_other_types_are_others() -> None:
    cache = known_after(lambda c: c["width"])
    assert [cache.find(changed(width=w)) for w in (8.0, True, "8")] == [None] * 3
    assert cache.find(changed(width=np.int64(8))) == "known"
    assert cache.find(changed(width=object())) is None


def test_what_cannot_be_compared_is_not_kept() -> None:
    for value in (object(), float("nan")):
        cache = ReadCache[int]()
        assert not cache.add({"a": value}, everything({"a": value}), 1)
        assert len(cache) == 0


def test_everything_is_all_but_what_is_ignored() -> None:
    cache = ReadCache[str]()
    cache.add(CONFIG, everything(CONFIG, [("lr",)]), "known")
    assert {name for name, config in SEEN.items() if cache.find(config) is None} == ALL
    assert cache.find(changed(lr=9)) == "known"


def test_a_cache_survives_as_json() -> None:
    cache = known_after(lambda c: [c["net"]["depth"], c.get(3), dict(c)])
    again = ReadCache[str].of_state(json.loads(json.dumps(cache.state())))
    assert again.state() == cache.state()
    assert again.find(changed()) == "known"
    assert again.find(changed(net__depth=4)) is None


@pytest.mark.parametrize(
    "part",
    [
        {"reads": [["value", ["a"]]], "answers": [[["1", "2"], 3]]},
        {"reads": [["guess", ["a"]]], "answers": [[["1"], 3]]},
    ],
)
def test_a_damaged_state_is_an_error(part: Any) -> None:
    with pytest.raises(StateError, match="impossible entry"):
        ReadCache[int].of_state([part])
