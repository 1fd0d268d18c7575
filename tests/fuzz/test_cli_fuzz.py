"""The command line given anything: status 0 or 2, a clear line, no traceback, nothing overwritten.

The commands run in this process, up to where a worker would be started; nothing starts Ray.
"""

import contextlib
import io
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmark.examples import make_record, make_study
from tests.fuzz.odd import COUNTS, LONGEST, fuzz, huge, texts
from tune_ext import cli
from tune_ext.benchmark import _preflight, runner
from tune_ext.benchmark.records import RecordStore
from tune_ext.errors import InvalidValueError

STUDY = """\
[[tasks]]
name = "function-branin"
[compare]
methods = ["default", "random"]
seeds = 2
budget = 10
"""


class StartedError(Exception):
    """What was asked for can run."""


class NoWorker:
    """Stands for the process of a worker."""

    def __init__(self, *_: object) -> None:
        raise StartedError


def no_cluster(place, *_):
    raise InvalidValueError(f"no Ray cluster answered at {place.address!r}")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current directory: a study, somebody's files, and no way to start anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUNE_EXT_DATA", str(tmp_path))
    monkeypatch.setattr(runner, "WorkerProcess", NoWorker)
    monkeypatch.setattr(_preflight, "_look", no_cluster)
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    (tmp_path / "mine").mkdir()
    for name in ("report.html", "lock", "study.json.bak", "notes.txt"):
        (tmp_path / "mine" / name).write_text("mine", encoding="utf-8")
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def files(directory):
    """Every file and link below a directory, and what is in it."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = path.read_bytes()
    return found


def command(*arguments):
    """The status of a command, None where it would begin to run; and what it printed as errors."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = cli.main([str(a) for a in arguments])
        except StartedError:
            status = None
        except SystemExit as error:  # of argparse, which tells how it is used, and what was said
            return error.code, errors.getvalue().splitlines()[-1]
    return status, errors.getvalue()


def refused(*arguments):
    """The error of a command that has to be refused, clearly and without a trace."""
    here = Path.cwd()
    before = files(here)
    status, error = command(*arguments)
    assert status == 2, (status, error)
    assert "Traceback" not in error
    assert len(error) <= LONGEST
    after = files(here)
    assert {path: after.get(path) for path in before} == before
    COUNTS["refused"] += 1
    return error


arguments = st.one_of(
    texts,
    st.integers(-2, 4).map(str),
    huge.map(str),
    st.floats().map(str),
    st.sampled_from(["0,1", "random", "auto", "local", "study.toml", "mine", ".", "~nobody/x"]),
    st.sampled_from(["s3://", "x://y", "file:///", "gs://a?b", "http://[", "٣", "1_0", "--", "-"]),
)
OPTIONS = [
    "--methods",
    "--seeds",
    "--budget",
    "--workers",
    "--jobs",
    "--out",
    "--data-dir",
    "--address",
    "--storage",
    "--cpus-per-trial",
    "--gpus-per-trial",
    "--task-modules",
    "--by",
    "--to",
    "--other",
]
options = st.sampled_from(OPTIONS)


@st.composite
def commands(draw):
    """A command line whose study, options and values may be anything."""
    name = draw(st.sampled_from(["compare"] * 6 + ["report", "importance", "export", "other"]))
    first = draw(st.one_of(st.just("study.toml"), arguments))
    pairs = draw(st.lists(st.tuples(options, arguments), max_size=2))
    return [name, first, *(word for pair in pairs for word in pair)]


@fuzz(60)
@given(commands())
def test_arguments_of_any_kind(home, arguments):
    mine = files(home / "mine")
    status, error = command(*arguments)
    assert status in (None, 0, 2), error
    assert "Traceback" not in error
    assert status != 2 or "tune-ext" in error
    assert len(error) <= LONGEST
    assert files(home / "mine") == mine
    assert (home / "study.toml").read_text(encoding="utf-8") == STUDY
    COUNTS["accepted" if status is None else "refused"] += 1
    for path in home.iterdir():  # what was begun is no part of the next example
        if path.name not in ("mine", "study.toml"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize(
    "arguments",
    [["report", "s3://"], ["report", "study.toml", "x" * 9000], ["report", "a", "\x1b[2J"]],
)
def test_what_was_not_clear_once(home, arguments):
    error = refused(*arguments)
    assert error.startswith("tune-ext")
    assert "\x1b" not in error


def other_study(home):
    store = RecordStore(home / "other")
    store.open(make_study())
    store.append(make_record())
    store.close()
    return store.directory


def foreign(home, name, content):
    directory = home / "foreign"
    directory.mkdir()
    (directory / name).write_bytes(content)
    return directory


def link_to_itself(home):
    (home / "loop").symlink_to("loop")
    return home / "loop"


def link_to_nothing(home):
    (home / "dangling").symlink_to("nothing")
    return home / "dangling"


def in_the_way(home, name):
    (home / "way" / name).mkdir(parents=True)
    return home / "way"


PLACES = {
    "a file": lambda home: home / "study.toml",
    "below a file": lambda home: home / "study.toml" / "x" / "y",
    "a link to itself": link_to_itself,
    "below a link to itself": lambda home: link_to_itself(home) / "x",
    "a link to nothing": link_to_nothing,
    "a name that is too long": lambda home: home / ("n" * 300),
    "a path that is too long": lambda home: home / "/".join(["n" * 200] * 40),
    "no place for files": lambda home: "/proc/none/x",
    "a NUL": lambda home: "a\0b",
    "half a character": lambda home: "\ud800",
    "somebody's report": lambda home: home / "mine",
    "another study": other_study,
    "study.json of somebody": lambda home: foreign(home, "study.json", b'{"a": 1}'),
    "study.json that is a list": lambda home: foreign(home, "study.json", b"[]"),
    "study.json that is no JSON": lambda home: foreign(home, "study.json", b"{"),
    "study.json that is no text": lambda home: foreign(home, "study.json", b"\xff\xfe\x00"),
    "study.json that is deep": lambda home: foreign(home, "study.json", b"[" * 50_000),
    "records of somebody": lambda home: foreign(home, "records.jsonl", b'{"a": 1}\n'),
    "records that are no JSON": lambda home: foreign(home, "records.jsonl", b"a,b\n1,2\n"),
    "records that are no text": lambda home: foreign(home, "records.jsonl", b"\xff\x00\n\n"),
    "study.json that is a folder": lambda home: in_the_way(home, "study.json"),
    "records that are a folder": lambda home: in_the_way(home, "records.jsonl"),
    "lock that is a folder": lambda home: in_the_way(home, "lock"),
    "logs that is a file": lambda home: foreign(home, "logs", b"mine"),
}


@pytest.mark.parametrize("place", PLACES)
def test_directories_that_cannot_take_a_study(home, place):
    out = PLACES[place](home)
    error = refused("compare", "study.toml", "--out", out)
    assert error.startswith("tune-ext: ")
    assert "--out" in error or "give" in error or str(out) in error


@pytest.mark.parametrize("verb", ["report", "importance", "export"])
@pytest.mark.parametrize("place", [p for p in PLACES if p not in ("another study", "a file")])
def test_directories_without_a_study(home, verb, place):
    assert refused(verb, PLACES[place](home)).startswith("tune-ext: ")


@pytest.mark.parametrize(
    "out", ["new", "a/b/c/", "./x/../y", "mit Leerzeichen", "été-雪-🜁", "linked", "-x", "empty"]
)
def test_directories_of_any_name_are_fine(home, out):
    (home / "empty").mkdir()
    (home / "linked").symlink_to("empty")
    assert command("compare", "study.toml", f"--out={out}")[0] is None
    assert (home / out / "study.json").is_file()


def test_results_below_results_and_files_beside_them_stay(home):
    directory = foreign(home, "notes.txt", b"mine")
    (directory / "lock").write_bytes(b"mine")
    assert command("compare", "study.toml", "--out", directory)[0] is None
    assert (directory / "notes.txt").read_bytes() == b"mine"
    assert (directory / "lock").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name", ["study", ".", "", "nothing", "mine", "s\0", "n" * 5000, "/proc/1"]
)
def test_names_of_studies(home, name):
    status, error = command("compare", name)
    assert status in (2, None), error
    assert status is None or error.startswith("tune-ext: ")


def test_a_full_disk_is_one_line(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "results/x/records.jsonl")

    monkeypatch.setattr(RecordStore, "open", full)
    error = refused("compare", "study.toml")
    assert "No space left on device: results/x/records.jsonl" in error
    assert "goes on from it" in error


def has_ray():
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@pytest.fixture(scope="module", autouse=True)
def nothing_of_this_starts_ray():
    """Other tests of this process may have started it."""
    before = has_ray()
    yield
    assert has_ray() == before
