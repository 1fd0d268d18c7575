"""Study files of any bytes: a study, or an error of ours that says where and what."""

import copy
import datetime
import inspect
import json
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.fuzz.odd import clear, fuzz, huge, texts
from tune_ext.benchmark import tasks
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.runner import split_available
from tune_ext.benchmark.study import UNITS, Study, parse_seeds
from tune_ext.benchmark.study_file import load_study, parse_study
from tune_ext.errors import InvalidValueError, TuneExtError

VALID = {
    "title": "Fuzzed",
    "description": "what is mutated",
    "tasks": [
        {
            "name": "function-branin",
            "options": {},
            "label": "b",
            "budget": 9,
            "methods": ["random"],
        },
        {"name": "digits-cnn", "options": {"epochs": 7, "parameters": ["lr"]}},
    ],
    "compare": {
        "methods": ["default", "random"],
        "seeds": [4, 2],
        "budget": 30,
        "unit": "epochs",
        "workers": 2,
        "final_seeds": 2,
    },
    "limits": {"stall_seconds": 5, "cell_seconds": 90.5},
}


def toml(value):
    """A value as TOML, tables in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return json.dumps(value)


def document(data):
    return "".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in data.items())


plain_texts = texts.filter(lambda t: not any(0xD800 <= ord(c) < 0xE000 for c in t))
words = st.one_of(
    plain_texts,
    st.sampled_from([*METHODS, *UNITS, *tasks.names()]),
    st.sampled_from([":", "a:", ":b", "os:getcwd", "..x:y", "no.such:thing", "json:JSONDecoder"]),
)
leaves = st.one_of(
    words,
    st.booleans(),
    st.integers(-2, 5),
    st.integers(-(2**63), 2**63 - 1),
    huge,
    st.floats(),
    st.dates(),
    st.times().filter(lambda t: t.tzinfo is None),
    st.datetimes(),
)
toml_values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(plain_texts, inner, max_size=2)
    ),
    max_leaves=4,
)


def places(data, path=()):
    """Every place of a document: the keys that lead to it."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


@st.composite
def documents(draw):
    """The valid study with some of its places changed, removed, or new keys in them."""
    data = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(data))[1:]))
        node = data
        for key in path[:-1]:
            node = node[key]
        what = draw(st.sampled_from(["change", "change", "remove", "add"]))
        if what == "remove":
            del node[path[-1]]
            assume(data)
        elif what == "change" or not isinstance(node[path[-1]], dict):
            node[path[-1]] = draw(toml_values)
        else:
            known = st.sampled_from(["label", "epochs", "seeds", "budget", "lr", "methods", ""])
            node[path[-1]][draw(st.one_of(known, plain_texts))] = draw(toml_values)
    return data


def use(study):
    """What the command does with a study before anything runs."""
    assert isinstance(study, Study)
    study.settings()
    for task in study.tasks:
        _ = task.create().simulated
    runnable, _ = split_available(study)
    return len(runnable.cells())


@fuzz(150)
@given(documents())
def test_values_of_any_kind_at_any_place(data):
    text = document(data)
    study = clear(lambda: parse_study(text, where="s.toml"))
    if isinstance(study, TuneExtError):
        assert str(study).startswith("s.toml")
    else:
        clear(lambda: use(study))


@st.composite
def mangled(draw):
    """The bytes of a valid study after some editing."""
    text = document(VALID)
    codec = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]))
    raw = text.replace("\n", draw(st.sampled_from(["\n", "\r\n", "\r"]))).encode(codec)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 20)))
        new = draw(st.one_of(st.binary(max_size=6), st.sampled_from([b"[", b"]]", b'"', b"=\n"])))
        raw = raw[:start] + new + raw[end:]
    return raw


@fuzz(100)
@given(raw=st.one_of(st.binary(max_size=60), mangled()))
def test_bytes_of_any_kind(raw, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(raw)
    study = clear(lambda: load_study(path))
    if not isinstance(study, TuneExtError):
        clear(lambda: use(study))
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    "line",
    [
        "a = " + "[" * 20_000,
        "a = " + "[" * 20_000 + "]" * 20_000,
        "a = " + '{"a" = ' * 5000 + "1" + "}" * 5000,
        "a" + ".a" * 1000 + " = 1",
        "compare.budget = 1" + "0" * 5000,
        "compare.budget = 0x" + "f" * 50_000,
        "limits.cell_seconds = 1e400",
        "limits.cell_seconds = 9223372036854775808",
    ],
    ids=["open", "lists", "tables", "dotted", "integer", "hexadecimal", "infinite", "65 bits"],
)
def test_text_that_is_deep_or_long(line):
    data = {k: v for k, v in VALID.items() if k not in ("compare", "limits")}
    with pytest.raises(InvalidValueError, match=r"s\.toml"):
        parse_study(line + "\n" + document(data), where="s.toml")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_as_editors_write_them(codec, end, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(document(VALID).replace("\n", end).encode(codec))
    assert load_study(path) == parse_study(document(VALID))


options = st.one_of(
    toml_values,
    st.sampled_from([0, -1, 1, 2.0, [], ["lr"], ["lr", "lr"], "adam", "cuda", "cpu", "cosine"]),
)


@fuzz(150)
@given(data=st.data(), name=st.sampled_from(tasks.names()))
def test_options_of_any_task(data, name):
    known = inspect.signature(tasks._TASKS[name]).parameters
    chosen = data.draw(st.dictionaries(st.sampled_from([*known, "other"]), options, max_size=2))
    spec = {"name": name, "options": chosen}
    text = document({**VALID, "tasks": [spec], "compare": {**VALID["compare"], "unit": "epochs"}})
    study = clear(lambda: parse_study(text))
    if not isinstance(study, TuneExtError):
        clear(lambda: use(study))


@fuzz(60)
@given(st.one_of(leaves, st.lists(leaves, max_size=3), texts))
def test_seeds_of_any_kind(value):
    seeds = clear(lambda: parse_seeds(value))
    if not isinstance(seeds, TuneExtError):
        assert all(type(seed) is int and seed >= 0 for seed in seeds)
