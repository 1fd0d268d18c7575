"""Budgets that count trials, trials that end by themselves, and what training them cost."""

import pytest

from tests.benchmark.examples import make_record, make_study
from tests.benchmark.fake import FakeRun, FakeTask
from tune_ext.benchmark._lines import pack, unpack
from tune_ext.benchmark.analysis import used
from tune_ext.benchmark.cell_run import CellRun
from tune_ext.benchmark.history import History
from tune_ext.benchmark.methods import METHODS, missing, unsuited
from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.runner import split_available
from tune_ext.benchmark.study import Cell, TaskSpec
from tune_ext.benchmark.tune_parts import TaskTrainable
from tune_ext.benchmark.worker import _Worker
from tune_ext.errors import InvalidValueError

BRIEF = "tests.benchmark.test_evaluations:BriefTask"


class BriefRun(FakeRun):
    """Ends after two of its four epochs where its rate is small; an epoch costs 3 seconds."""

    def train_epoch(self):
        ended = self.lr < 1e-3 and self.epoch == 1
        return {**super().train_epoch(), "ended": ended, "seconds": 3.0}


class BriefTask(FakeTask):
    name, simulated = "brief", True

    def start(self, config, *, seed):
        return BriefRun(config.get("lr", 1e-3), seed, self.nan_above)


class Pipe(list):
    def send(self, message):
        self.append(message)


def searched(method, tmp_path, **changes):
    """The cell of a search by a worker in this process."""
    spec = TaskSpec(BRIEF)
    study = make_study(tasks=(spec,), methods=(method,), unit="evaluations", budget=9, **changes)
    cell, pipe = CellRun(Cell(spec, method, 0), study), Pipe()
    _Worker(pipe, tmp_path).search(cell.request(None)[1])
    for kind, payload in pipe:
        cell.handle(kind, payload)
    return cell


@pytest.mark.parametrize("method", [m for m in ("random", "tpe", "grid") if not missing(m)])
@pytest.mark.parametrize("workers", [1, 4])
def test_so_many_trials_are_trained_however_long_they_take(method, workers, tmp_path):
    cell = searched(method, tmp_path, workers=workers)
    record = cell.record()
    lengths = {t["config"]["lr"] < 1e-3: t["epochs"] for t in record.trials}
    assert len(record.trials) == used(record) == 9
    assert lengths == {True: 2, False: 4}
    assert all(t["ended"] == (t["epochs"] == 2) for t in record.trials)
    assert record.epochs_used == sum(t["epochs"] for t in record.trials)
    assert record.busy_seconds == 3 * record.epochs_used
    assert record.incumbents[-1][0] <= 9


def test_methods_that_stop_trials_are_not_counted_in_evaluations():
    assert unsuited("random", FakeTask(), "evaluations") is None
    assert "not all of its trials" in unsuited("asha", FakeTask(), "evaluations")
    assert unsuited("asha", FakeTask()) is None
    whole = {name for name, method in METHODS.items() if method.whole}
    assert {"default", "grid", "random", "tpe", "gp", "cma-es", "nsga2", "smac"} <= whole
    assert not whole & {"one-epoch", "median", "asha", "pbt", "bohb", "autohyper", "exptest"}
    study = make_study(methods=("random", "asha"), unit="evaluations")
    assert list(split_available(study)[1]) == [f"asha on {study.tasks[0].label}"]
    with pytest.raises(InvalidValueError, match="counts evaluations"):
        split_available(make_study(methods=("asha",), unit="evaluations"))


def test_an_evaluation_ends_where_the_training_does(tmp_path, monkeypatch):
    monkeypatch.setattr(BriefTask, "simulated", False)
    pipe = Pipe()
    request = {"task": {"name": BRIEF}, "config": {"lr": 1e-4}, "seeds": [0]}
    _Worker(pipe, tmp_path).evaluate(request)
    assert pipe[-1][1][0]["epochs"] == 2


def test_a_training_that_ends_tells_ray_and_what_it_cost():
    made = TaskTrainable.__new__(TaskTrainable)
    made._trial_info = None
    made.setup({"lr": 1e-4}, TaskSpec(BRIEF), seed=0)
    first, second = made.step(), made.step()
    assert (first["done"], second["done"]) == (False, True)
    assert first["cpu_seconds"] >= 0


def test_a_record_says_what_its_trials_cost_and_an_old_one_nothing():
    history = History()
    for epoch, cost in ((1, 2.0), (2, 1.0)):
        row = {"epoch": epoch, "train_seconds": 2 * cost, "cpu_seconds": cost, "ended": epoch == 2}
        history.add("a", {"lr": 0.1}, row, 1.0)
    history.add("b", {"lr": 0.2}, {"epoch": 1, "train_seconds": 1.0, "cpu_seconds": 0.5}, 2.0)
    trials = history.trials()
    assert [t["train_seconds"] for t in trials] == [6.0, 1.0]
    assert [t["ended"] for t in trials] == [True, False]
    assert history.total("cpu_seconds") == 3.5
    assert isinstance(pack(trials), dict)
    assert unpack(pack(trials)) == trials
    record = make_record(trials=trials, cpu_seconds=3.5)
    again = CellRecord.from_line(record.to_line())
    assert (again.trials, again.cpu_seconds) == (trials, 3.5)
    old = record.to_json()
    del old["cpu_seconds"]
    old["trials"] = {k: v for k, v in old["trials"].items() if not k.endswith("seconds")}
    assert CellRecord.from_json(old, {}).cpu_seconds is None
    history.add("b", {"lr": 0.2}, {"epoch": 2}, 3.0)
    assert history.total("cpu_seconds") is None
    assert "cpu_seconds" not in history.trials()[0]
