import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmark.examples import FAKE, is_gone, make_record, make_study
from tune_ext import cli
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.processes import descendants
from tune_ext.benchmark.progress import LiveProgress, PlainProgress, time_left
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.runner import CellRun
from tune_ext.benchmark.study import Cell, TaskSpec
from tune_ext.benchmark.tasks import names

OWN = ["--task-module", "tests.benchmark.fake"]

STUDY = f"""\
title = "A fake study"
[[tasks]]
name = "{FAKE}"
options = {{ epochs = 3 }}
[compare]
methods = ["default"]
seeds = 2
budget = 10
final_seeds = 2
"""


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def test_list_names_everything(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in [*names(), *METHODS, "digits", "fashion_mnist"]:
        assert f"  {name} " in text


def test_list_says_what_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    from dataclasses import replace

    lacking = replace(METHODS["bohb"], needs={"no_such_module": "pip install it"})
    monkeypatch.setitem(METHODS, "bohb", lacking)
    assert cli.main(["list"]) == 0
    assert "no_such_module is not installed: pip install it" in capsys.readouterr().out


def test_compare_runs_resumes_and_reports(study_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", str(study_file), "--jobs", "1", *OWN]) == 0
    out = capsys.readouterr().out
    assert "A fake study: 2 cells, 1 at once" in out
    assert "[2/2]" in out
    assert "Only default has test results" in out
    results = tmp_path / "results" / tmp_path.name
    assert {p.name for p in results.iterdir()} >= {
        "records.jsonl",
        "study.json",
        "report.md",
        "comparison.png",
        "comparison.svg",
    }
    records = (results / "records.jsonl").read_text()
    assert cli.main(["compare", str(study_file), *OWN]) == 0
    assert "2 done before" in capsys.readouterr().out
    assert (results / "records.jsonl").read_text() == records
    assert cli.main(["report", str(results)]) == 0
    assert "default" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "nothing"], "no study 'nothing'"),
        (["compare", "STUDY", "--seeds", "x"], "seeds must be"),
        (["compare", "STUDY", "--methods", "nothing"], "choose from default"),
        (["compare", "STUDY", "--budget", "0"], "budget must be positive"),
        (["compare", "STUDY", "--jobs", "0"], "jobs must be"),
        (["compare", "STUDY", "--workers", "0"], "workers must be"),
        (["compare", "STUDY", "--address", "auto"], "give --storage"),
        (["compare", "OTHERS"], "give --task-module tests.benchmark.fake"),
        (["report", "OUT"], "not the directory of a comparison"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, words, study_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"STUDY": str(study_file), "OTHERS": str(study_file), "OUT": str(tmp_path)}
    own = OWN if "STUDY" in arguments else []
    assert cli.main([*(places.get(a, a) for a in arguments), *own]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tune-ext: ")
    assert words in error
    assert len(error.splitlines()) == 1


def test_other_settings_are_refused_with_the_fix(study_file, tmp_path, capsys):
    store = RecordStore(tmp_path / "out")
    store.open(make_study())
    assert cli.main(["compare", str(study_file), *OWN, "--out", str(store.directory)]) == 2
    assert "--out" in capsys.readouterr().err


def test_overrides_reach_the_study(study_file, tmp_path, capsys):
    out = tmp_path / "elsewhere"
    more = ["--seeds", "5,8", "--budget", "7", "--out", str(out), "--data-dir", str(tmp_path)]
    before = os.environ.get("TUNE_EXT_DATA")
    try:
        assert cli.main(["compare", str(study_file), *OWN, *more]) == 0
        assert os.environ["TUNE_EXT_DATA"] == str(tmp_path)
    finally:
        os.environ.pop("TUNE_EXT_DATA", None)
        if before is not None:
            os.environ["TUNE_EXT_DATA"] = before
    settings = json.loads((out / "study.json").read_text())
    assert settings["settings"]["budget"] == 7
    assert sorted(r.seed for r in RecordStore(out).load()) == [5, 8]


@pytest.fixture
def hanging(study_file, tmp_path):
    """`tune-ext compare` in a process of its own, on a task whose epochs never end."""
    study_file.write_text(STUDY.replace(FAKE, "tests.benchmark.fake:SlowTask"), encoding="utf-8")
    scratch = tmp_path / "t"
    scratch.mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tune_ext.cli",
            "compare",
            str(study_file),
            *OWN,
            "--jobs",
            "1",
            "--out",
            str(tmp_path / "out"),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not descendants(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process, scratch
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_stopping_it_leaves_nothing_behind_and_says_how_to_go_on(hanging):
    process, scratch = hanging
    workers = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "goes on where this one stopped" in error
    assert list(scratch.iterdir()) == []
    assert workers
    assert all(is_gone(pid) for pid in workers)


@pytest.mark.slow
def test_workers_end_when_the_runner_is_killed(hanging):
    process, _ = hanging
    time.sleep(2)  # a worker that is just starting notices when it has started
    workers = descendants(process.pid)
    process.kill()
    process.communicate()
    assert workers
    assert all(is_gone(pid) for pid in workers)


def test_what_the_report_needs_is_told_first(study_file, capsys, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["compare", str(study_file), *OWN]) == 2
    assert "rich and vl_convert not installed: pip install" in capsys.readouterr().err


def test_time_left_by_hand():
    assert time_left([], 3, 1) is None
    assert time_left([10.0, 30.0], 4, 2) == 40.0


def test_plain_lines_tell_what_runs_and_what_failed():
    lines = []
    view = PlainProgress(lines.append, every=0.0)
    study = make_study()
    run = CellRun(Cell(study.tasks[0], "random", 0), study)
    result = {"epoch": 1, "validation_error": 0.25}
    run.handle("epoch", {"trial_id": "a", "config": {"lr": 1}, "result": result, "seconds": 1})
    with view:
        view.begin(study, 4, [make_record()], jobs=1)
        view.tick([run])
        view.finish_cell(make_record(failures=["it hung"]))
    text = "\n".join(lines)
    assert "1 of 4 cells done" in text
    assert "about 9 s left" in text
    assert "search 1 of 10 epochs, best 25.00 %" in text
    assert "[2/4] fake · random · seed 0: test error 20.00 % with lr 0.01" in text
    assert "FAILED: it hung" in text


def quick(**changes):
    return make_record(clock="simulated", search_seconds=0.01, evaluation_seconds=0.0, **changes)


def test_cells_of_milliseconds_are_counted_and_not_printed():
    lines = []
    view = PlainProgress(lines.append, every=1e9, often=0.0)
    study = make_study()
    view.begin(study, 1000, [], jobs=1)
    run = CellRun(Cell(study.tasks[0], "random", 0), study)
    for seed in range(500):
        view.finish_cell(quick(seed=seed, percent=False, test_errors=(2.5,)))
    for seed in range(500, 510):
        view.finish_cell(quick(seed=seed, failures=["it hung"]))
    assert len(lines) == 1 + 3
    assert "FAILED: it hung; more of these are counted and not printed" in lines[-1]
    view.tick([run])
    view.tick([run])
    assert len(lines) == 4 + 2
    assert "510 of 1000 cells done" in lines[4]
    view.finish_cell(make_record(clock="simulated", search_seconds=5.0))
    assert "test error 20.00 %" in lines[-1]


def test_the_best_method_so_far_is_told():
    lines = []
    view = PlainProgress(lines.append, every=0.0)
    study = make_study(tasks=(TaskSpec(FAKE, {"epochs": 4}, "fake"),))
    view.begin(study, 9, [make_record("asha", test_errors=(0.1,))], jobs=1)
    view.finish_cell(quick(method="random", test_errors=(0.3,)))
    view.tick([CellRun(Cell(study.tasks[0], "random", 0), study)])
    assert lines[-1].endswith("best method so far asha, 10.00 %")


def test_errors_that_are_no_percentages_are_plain_numbers():
    from tune_ext.benchmark.progress import outcome

    told = outcome(make_record(percent=False, test_errors=(0.25,), label="mse"))
    assert told.startswith("mse · random · seed 0: test error 0.25 with lr 0.01")


def test_records_are_exported(tmp_path, capsys):
    store = RecordStore(tmp_path / "out")
    assert cli.main(["export", str(store.directory)]) == 2
    assert "not the directory of a comparison" in capsys.readouterr().err
    store.open(make_study())
    assert cli.main(["export", str(store.directory)]) == 2
    assert "no finished cell" in capsys.readouterr().err
    store.append(make_record())
    assert cli.main(["export", str(store.directory), "--to", str(tmp_path / "p")]) == 0
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "cells.parquet",
        "trials.parquet",
        "incumbents.parquet",
    }


def reported(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study(methods=("random", "tpe")))
    chosen = {"config": {"lr": 0.0001234, "weight_decay": 0.00001234}}
    for seed in range(3):
        store.append(make_record("random", seed, (0.3,), recommendation=chosen))
        more = {"config": {"lr": 0.0023 * (seed + 1), "weight_decay": 0.0012 * (seed + 1)}}
        store.append(make_record("tpe", seed, (0.2,), recommendation=more))
    store.close()


def test_what_was_chosen_is_not_broken_in_a_pipe(tmp_path, capsys):
    reported(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("lr 0.0046 (0.0023 to 0.0069)" in line for line in lines)
    assert any("weight_decay 0.0024 (0.0012 to 0.0036)" in line for line in lines)
    assert max(map(len, lines[:12])) <= 140


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    reported(tmp_path)
    command = [sys.executable, "-m", "tune_ext.cli", "report", str(tmp_path)]
    read, write = os.pipe()
    os.close(read)  # nobody reads, as when `head` has ended
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_live_table_shows_the_same():
    from rich.console import Console

    view = LiveProgress()
    study = make_study()
    run = CellRun(Cell(study.tasks[0], "random", 0), study)
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    view._live.console = console
    view.begin(study, 4, [make_record()], jobs=1)
    view.tick([run])
    view.finish_cell(make_record(seed=1))
    console.print(view._draw())
    text = console.export_text()
    assert "2 of 4 cells done" in text
    assert "search 0 of 10 epochs, best none yet" in text
    assert "seed 1: test error 20.00 %" in text
