"""experiments/image_growth: what the records say, and trainings at every size that go on."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.benchmark.examples import make_record, make_study
from tests.benchmark.test_growth_methods import Pixels
from tune_ext.benchmark import tasks
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.stats import Interval
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.study_file import load_study
from tune_ext.errors import InvalidValueError, StateError

FOLDER = Path(__file__).parents[1] / "experiments" / "image_growth"
MODULES = ("gains", "report", "importances")
SIZED = "tests.test_image_growth_study:SizedTask"
SIZES = (8, 12, 16)


class SizedRun:
    """One epoch; `a` matters at every size, and `b` at the full one only."""

    def __init__(self, config):
        self.config, self.epoch = config, 0

    def train_epoch(self):
        self.epoch += 1
        weight = {8: 0.0, 12: 0.0, 16: 1.0}[self.config["image_size"]]
        error = 0.3 * self.config["a"] + 0.6 * weight * self.config["b"]
        diverged = self.config["a"] > 0.95
        return {"validation_error": math.nan if diverged else error, "diverged": diverged}


class SizedTask(Pixels):
    name = "sized"

    def __init__(self, device="cpu"):
        super().__init__()
        self.options = {"device": device}

    def start(self, config, *, seed):
        return SizedRun({**self.default_config, **config})


@pytest.fixture(scope="module")
def study():
    """The study's modules by their plain names; a record may name the task as one of ours."""
    tasks._TASKS[SizedTask.name] = SizedTask
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        del tasks._TASKS[SizedTask.name]
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


# The study -----------------------------------------------------------------------------------


def test_every_study_compares_each_searcher_with_itself_at_equal_evaluations():
    for path in sorted(FOLDER.glob("*.toml")):
        study = load_study(path)
        assert study.unit == "evaluations"
        grown = [m for m in study.methods if m.endswith("+growth")]
        assert grown
        assert {m.removesuffix("+growth") for m in grown} | set(grown) == set(study.methods)
        assert len(study.seeds) >= 5
        for spec in study.tasks:
            task = spec.create()
            assert len(task.image_sizes) == 3
            assert all(METHODS[m].unsuited(task) is None for m in study.methods)
            assert task.space.conditions == [], "searchers see one space, with and without growth"


# The report ----------------------------------------------------------------------------------


def trial(size, error, seconds):
    config = {"a": 0.1, "b": 0.2} | ({} if size is None else {"image_size": size})
    costs = {"cpu_seconds": seconds, "train_seconds": seconds}
    return {"trial": 0, "config": config, "epochs": 2, "validation_error": error, **costs}


def cell(method, seed, error, seconds, trials=(), device="cpu", **changes):
    return make_record(
        method,
        seed,
        (error,),
        task={"name": SizedTask.name, "options": {"device": device}},
        label="images",
        trials=list(trials),
        cpu_seconds=seconds,
        **changes,
    )


def staged(correlation):
    row = {"evaluations": 8, "failed": 1, "correlation": None, "weight": None}
    later = {**row, "correlation": correlation, "weight": 0.5}
    return {"stages": [row, later, later]}


def test_a_search_that_was_ended_before_its_time_has_saved_none(study):
    ended = {"failures": ["search, after 9 epochs: not finished within 60 s"]}
    crashed = {"failures": ["2 of its trials crashed, the last with no"]}
    made = [
        *(cell(m, 0, 0.2, s, **crashed) for m, s in (("tpe", 10.0), ("tpe+growth", 8.0))),
        cell("tpe", 1, 0.2, 10.0),
        cell("tpe+growth", 1, 0.2, 1.0, **ended),
    ]
    (gain,) = study.gains.gains(study.gains.cells(made))
    assert (gain.seeds, gain.seconds) == (1, (10.0, 8.0))


def test_where_a_gpu_trains_time_is_the_clocks(study):
    clocked = [
        [{**trial(size, 0.3, 4.0), "train_seconds": s}] * 2 for size, s in ((None, 25.0), (16, 3.0))
    ]
    made = [
        cell("tpe", 0, 0.2, 8.0, clocked[0], device="cuda", busy_seconds=50.0),
        cell("tpe+growth", 0, 0.2, 8.0, clocked[1], device="cuda", busy_seconds=6.0),
    ]
    (gain,) = study.gains.gains(study.gains.cells(made))
    assert gain.seconds == (50.0, 6.0)
    assert gain.at_equal_time == (math.inf, 0.3), "not one at full size had ended by then"


def records(errors=(0.19, 0.18, 0.2)):
    """Three seeds: 100 seconds at .2, and 60 with growth; the last of these has failed."""
    grown = [trial(8, 0.01, 10.0), trial(12, 0.02, 20.0), trial(16, 0.19, 30.0)]
    plain = [trial(None, e, 25.0) for e in (0.4, 0.3, 0.2, 0.1)]
    made = [cell("tpe", s, 0.2, 100.0, plain) for s in range(4)]
    made += [
        cell("tpe+growth", s, e, 60.0, grown, details=staged(0.5 + s / 10))
        for s, e in enumerate(errors)
    ]
    return [*made, cell("tpe+growth", 3, None, 60.0, worst_error=None), cell("random", 0, 0.1, 1.0)]


def test_each_searcher_is_compared_with_itself_on_the_seeds_that_both_have(study):
    (gain,) = study.gains.gains(study.gains.cells(records()))
    assert (gain.method, gain.seeds, gain.seconds) == ("tpe", 3, (100.0, 60.0))
    assert gain.saved == pytest.approx((0.4, 0.4, 0.4))
    assert gain.errors == pytest.approx((0.2, 0.19))
    assert gain.relative.value == pytest.approx(-0.05)
    assert (gain.relative.low, gain.relative.high) == pytest.approx((-0.1, 0.0))
    assert (gain.better, gain.worse) == (2, 0)
    assert gain.verdict == "met"
    # 60 seconds pay for two trials of 25 s; of the small images' errors none counts.
    assert gain.at_equal_time == (0.3, 0.19)


@pytest.mark.parametrize(
    ("saved", "relative", "said"),
    [
        (0.31, -0.01, "met"),
        (0.31, 0.0, "met"),
        (0.31, 0.01, "error within 2 %"),
        (0.31, 0.03, "missed: the error"),
        (0.29, -0.5, "too little time saved"),
    ],
)
def test_the_goal(study, saved, relative, said):
    nothing = math.nan
    gain = study.gains.Gain(
        "t",
        "tpe",
        5,
        (1.0, 1.0),
        Interval(saved, nothing, nothing),
        (0.1, 0.1),
        Interval(relative, nothing, nothing),
        (0.1, 0.1),
        0,
        0,
    )
    assert gain.verdict == said


def test_the_interval_of_the_change_keeps_seeds_together(study):
    """Each seed's errors differ by 10 %, and the seeds by far more: the change is certain."""
    first = np.array([0.1, 0.2, 0.4, 0.8])
    found = study.gains.relative_change(np.column_stack([first, 1.1 * first]))
    assert found == pytest.approx((0.1, 0.1, 0.1))
    assert math.isnan(study.gains.relative_change(np.array([[0.1, 0.2]])).low)


def test_a_record_cannot_have_code_of_any_module_run(study):
    made = [
        replace(cell(m, 0, 0.2, 1.0), task={"name": SIZED, "options": {}})
        for m in ("tpe", "tpe+growth")
    ]
    with pytest.raises(InvalidValueError, match="which a file alone may not run"):
        study.gains.gains(study.gains.cells(made))


def test_old_records_have_the_seconds_of_the_clock(study):
    made = [cell(m, 0, 0.2, None, busy_seconds=s) for m, s in (("tpe", 8.0), ("tpe+growth", 2.0))]
    (gain,) = study.gains.gains(study.gains.cells(made))
    assert gain.saved.value == pytest.approx(0.75)
    assert not study.gains.gains(study.gains.cells([cell("tpe", 0, 0.2, 1.0)]))


def test_all_searchers_of_a_task_together(study):
    """TPE saves 40 % at 5 % less error; random search half of the time at 10 % more."""
    made = records((0.19, 0.19, 0.19))[:-1]  # without the seed that only random search has
    assert study.gains.pooled(study.gains.cells(made)) == [], "one searcher is not pooled"
    made += [cell("random", s, 0.2, 10.0) for s in range(3)]
    made += [cell("random+growth", s, 0.22, 5.0) for s in range(3)]
    (found,) = study.gains.pooled(study.gains.cells(made))
    assert (found.task, found.searchers, found.seeds) == ("images", 2, 3)
    assert found.saved == pytest.approx((0.45, 0.45, 0.45))
    assert found.relative == pytest.approx((0.025, 0.025, 0.025))


def test_studies_of_several_directories_are_one_report(study, tmp_path):
    for name in ("a", "b"):
        store = RecordStore(tmp_path / name)
        store.open(make_study())
        for record in records():
            store.append(replace(record, label=f"images {name}"))
    page = study.report.write([tmp_path / "a", tmp_path / "b"])[0]
    assert page.parent.name == "a"
    text = page.read_text(encoding="utf-8")
    assert "| images a | tpe |" in text
    assert "| images b | tpe |" in text


def test_the_page_the_numbers_and_the_picture(study, tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    with pytest.raises(StateError, match="no searcher"):
        study.report.write([tmp_path])
    for record in records((0.21, 0.22, 0.23)):
        store.append(record)
    written = study.report.write([tmp_path])
    assert [p.name for p in written] == ["growth.md", "growth.json", "growth.png", "growth.svg"]
    text = written[0].read_text(encoding="utf-8")
    assert "is met by 0 of 1; 1 are more than 2 % relative worse" in text
    assert "| images | tpe | 3 | 100.0 | 60.0 | 40.0 [40.0, 40.0] | 20.00 | 22.00 | +10.0" in text
    rows = [line for line in text.splitlines() if line.startswith("| images | tpe+growth")]
    assert rows[2] == "| images | tpe+growth | 16 | 8 | 30.00 | 0.60 (0.50) | 0.50 | 3 |"
    data = json.loads(written[1].read_text(encoding="utf-8"))
    assert data["gains"][0]["verdict"] == "missed: the error"
    assert written[2].read_bytes().startswith(b"\x89PNG")


# Importances ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("importances") / "importances.jsonl"
    study.importances.run(TaskSpec(SIZED, label="sized"), path, 30)
    return path


def test_every_configuration_is_trained_at_every_size_once(study, trained):
    before = trained.read_text(encoding="utf-8")
    rows = study.importances.load(trained)
    assert sorted(rows) == list(range(30))
    assert all(tuple(at) == SIZES for at in rows.values())
    assert all(len({json.dumps(r["config"]) for r in at.values()}) == 1 for at in rows.values())
    study.importances.run(TaskSpec(SIZED, label="sized"), trained, 30)
    assert trained.read_text(encoding="utf-8") == before


def test_a_run_that_was_ended_goes_on_where_it_was(study, trained, tmp_path):
    lines = trained.read_text(encoding="utf-8").splitlines(keepends=True)
    cut = tmp_path / "importances.jsonl"
    cut.write_text("".join(lines[:8]), encoding="utf-8")
    study.importances.run(TaskSpec(SIZED, label="sized"), cut, 30)
    whole = [{**json.loads(line), "cpu_seconds": 0} for line in lines]
    again = [json.loads(line) for line in cut.read_text(encoding="utf-8").splitlines()]
    assert [{**row, "cpu_seconds": 0} for row in again] == whole
    with pytest.raises(StateError, match="another task"):
        study.importances.run(TaskSpec(SIZED, label="other"), cut, 30)
    cut.write_text("".join([*lines[:3], "{]\n"]), encoding="utf-8")
    with pytest.raises(StateError, match="damaged"):
        study.importances.load(cut)


def test_the_page_tells_what_depends_on_the_size(study, trained):
    page = study.importances.report(trained, resamples=10)
    text = page.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    first = rows.index(next(row for row in rows if row[0] == "| from")) + 2
    ranks = {(row[0][2:], row[1]): float(row[2].split()[0]) for row in rows[first : first + 3]}
    assert ranks["8", "12"] == 1.0
    assert ranks["8", "16"] < 0.9
    assert "between 8 and 16 these differ: a, b." in text
    assert "The published finding does not hold here." in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_is_chosen_at_one_size_is_judged_at_the_other(study):
    first = np.array([0.1, 0.2, 0.3, math.nan])
    second = np.array([0.5, 0.2, math.nan, 0.1])
    assert study.importances.regret_of_transfer(first, second, 0.5) == (0.1, 0.2, 0.35)
    same = study.importances.rank_correlation(first, first)
    assert (same.value, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))
    assert study.importances.rank_correlation(first, second).value < 0
    assert list(itertools.islice(study.importances._configurations(SizedTask()), 1))
