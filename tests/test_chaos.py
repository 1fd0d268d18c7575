"""The short part of experiments/chaos, and the suite itself: a hang and a crash are results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.chaos import run as chaos
from experiments.chaos.outcome import Case, Outcome, load

SHORT = [case for case in load().values() if case.short]


HERE = """
import itertools, pathlib, sys
from experiments.chaos import run as chaos
from experiments.chaos.outcome import load
for case in load().values():
    if case.short and case.here:
        directory = pathlib.Path(sys.argv[1], case.name)
        (directory / "work").mkdir(parents=True)
        chaos.run_one(case, 0, directory, ours=True)
"""


@pytest.fixture(scope="module")
def those_that_share_a_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short cases that start no processes, ours alone, in one process of their own: what one
    of them would do to it, it does not do to the other tests."""
    directory = tmp_path_factory.mktemp("here")
    command = [sys.executable, "-c", HERE, str(directory)]
    root = Path(__file__).parents[1]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    (directory / "said").write_text(f"{ended.returncode}: {ended.stderr[-2000:]}")
    return directory


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name.replace(" ", "-"))
def test_ours_survives(case: Case, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if case.here:
        shared = request.getfixturevalue("those_that_share_a_process")
        rows = chaos.read(shared / case.name / "outcomes.jsonl")
        assert rows, (shared / "said").read_text()
        outcomes = [Outcome(**row) for row in rows]
    else:
        outcomes = chaos.run(case, 0, tmp_path)
    ours = [outcome for outcome in outcomes if outcome.is_ours]
    assert ours
    assert [outcome for outcome in ours if not outcome.is_well] == []


def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, seconds: float) -> Case:
    """A case whose process runs a script."""
    script = tmp_path / "script.py"
    script.write_text(f"import json, os, sys, time\nout = sys.argv[-1]\n{body}\n")
    monkeypatch.setattr(chaos, "__file__", str(script))
    return Case("scripted", "a script", lambda directory, seed: [], False, False, seconds)


ROW = asdict(Outcome("scripted", "ours: all", 3, 3))
YIELD = f"open(out + '/outcomes.jsonl', 'w').write(json.dumps({ROW!r}) + chr(10))"


def test_a_hang_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said before is kept, and a process that it has started ends with it."""
    child = "import subprocess\nc = subprocess.Popen(['sleep', '600'], start_new_session=True)"
    body = f"{YIELD}\n{child}\nopen(out + '/pid', 'w').write(str(c.pid))\ntime.sleep(600)"
    case = scripted(tmp_path, monkeypatch, body, 3.0)
    first, last = chaos.run(case, 0, tmp_path / "case")
    assert asdict(first) == ROW
    assert (last.ended, last.survived, last.is_well, last.is_ours) == ("hung", 0, False, True)
    pid = int((tmp_path / "case" / "pid").read_text())
    for _ in range(500):
        if not _runs(pid):
            break
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_crash_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = scripted(tmp_path, monkeypatch, f"{YIELD}\nos._exit(3)", 60.0)
    first, last = chaos.run(case, 0, tmp_path / "case")
    assert asdict(first) == ROW
    assert (last.ended, last.note) == ("crashed", "the case ended with 3")


def test_what_is_known_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = scripted(tmp_path, monkeypatch, YIELD, 60.0)
    monkeypatch.setattr(chaos, "_sources", lambda case: [Path(chaos.__file__)])
    chaos.run_all([case], 0, tmp_path)
    chaos.run_all([case], 0, tmp_path)
    assert "known" in capsys.readouterr().out
    with (tmp_path / "chaos.jsonl").open("a") as file:
        file.write('{"case": "scri')  # cut short
    entries = chaos.write(tmp_path, {case.name: case})
    assert [entry["outcomes"] for entry in entries] == [[ROW]]
    assert json.loads((tmp_path / "chaos.json").read_text()) == entries
    assert "| scripted: a script | ours: all | 3 | 3 |" in (tmp_path / "chaos.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"survived": 2},
        {"lost_results": 1},
        {"repeated_trials": 1},
        {"same_answer": False},
        {"ended": "hung"},
        {"ended": "crashed"},
    ],
    ids=str,
)
def test_what_is_not_well(changes: dict[str, object]) -> None:
    assert Outcome(**ROW).is_well
    assert not Outcome(**{**ROW, **changes}).is_well
