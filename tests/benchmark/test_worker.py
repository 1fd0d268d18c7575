"""The worker's parts that train: schedules, a cluster that runs already."""

from types import SimpleNamespace

import pytest

from tests.benchmark.examples import FAKE, make_study
from tests.benchmark.fake import FakeTask
from tests.benchmark.test_simulated_cells import Quiet
from tune_ext.benchmark import _cost
from tune_ext.benchmark._cost import epoch_seconds
from tune_ext.benchmark.cell_run import CellRun, Phase, Place
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.runner import run_study
from tune_ext.benchmark.study import Cell
from tune_ext.benchmark.worker import _Worker


class Pipe:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


def evaluated(tmp_path, **request):
    pipe = Pipe()
    _Worker(pipe, tmp_path).evaluate(
        {"task": {"name": FAKE, "options": {"epochs": 4}}, "seeds": [7], **request}
    )
    assert pipe.sent[-1][0] == "evaluated"
    return pipe.sent[-1][1]


def test_a_schedule_is_trained_with_its_switches(tmp_path):
    schedule = [[0, {"lr": 0.5}], [2, {"lr": 0.01}]]
    (test,) = evaluated(tmp_path, config={"lr": 0.01}, schedule=schedule)
    (plain,) = evaluated(tmp_path, config={"lr": 0.01}, schedule=None)
    # the fake's error depends on its rate now and the number of its epochs: both carried over
    assert test["test_error"] == plain["test_error"]
    assert test["epochs"] == 4
    (other,) = evaluated(tmp_path, config={"lr": 0.01}, schedule=schedule[:1])
    assert other["test_error"] > plain["test_error"]
    with pytest.raises(RuntimeError, match="does not begin at epoch 0"):
        evaluated(tmp_path, config={"lr": 0.01}, schedule=schedule[1:])


def test_a_schedule_is_recommended_recorded_and_asked_for():
    study = make_study(methods=("pbt",))
    cell = CellRun(Cell(study.tasks[0], "pbt", 0), study)
    steps = [(0, {"lr": 0.5}), (2, {"lr": 0.01})]
    result = {"epoch": 1, "validation_error": 0.5}
    cell.handle("epoch", {"trial_id": "a", "config": {}, "result": result, "seconds": 1.0})
    searched = {"answer": {"lr": 0.01}, "schedule": steps, "details": {}, "errors": []}
    cell.handle("searched", searched)
    assert cell.phase is Phase.EVALUATE
    assert cell.request(None)[1]["schedule"] == [[0, {"lr": 0.5}], [2, {"lr": 0.01}]]
    cell.handle("evaluated", [{"seed": 1, "test_error": 0.5}])
    assert cell.record().recommendation["schedule"][1] == [2, {"lr": 0.01}]


@pytest.mark.parametrize(("device", "seconds"), [("cuda", 2.0), ("cpu", 1.5)])
def test_what_an_epoch_costs_is_timed_where_it_is_trained(monkeypatch, device, seconds):
    clock, processor = iter([10.0, 15.0, 20.0, 22.0]), iter([0.0, 4.0, 5.0, 6.5])
    clocks = {"perf_counter": lambda: next(clock), "process_time": lambda: next(processor)}
    monkeypatch.setattr(_cost, "time", SimpleNamespace(**clocks))
    task = FakeTask()
    task.options = {**task.options, "device": device}
    assert epoch_seconds(task) == seconds  # the first epoch loads the data


def test_epochs_that_nobody_asked_for_were_used_all_the_same():
    study = make_study(workers=3)
    cell = CellRun(Cell(study.tasks[0], "random", 0), study)
    cell.journaled = 12
    assert cell.epochs_used == 12


def test_workers_train_exactly_the_budget_and_every_epoch_is_seen(tmp_path):
    study = make_study(methods=("random",), seeds=(0,), budget=9, workers=2)
    (record,) = run_study(study, RecordStore(tmp_path / "out"), Quiet())
    assert record.failures == []
    # The journal of the trials, which names every epoch that was trained, had no other.
    assert record.epochs_used == len(record.history["trial"]) == 9


def test_trials_run_on_a_cluster_that_runs_already(cluster, tmp_path):
    storage = tmp_path / "shared"
    storage.mkdir()
    place = Place(cluster, str(storage), cpus_per_trial=1.0)
    study = make_study(methods=("random",), seeds=(0,), budget=9, workers=2)
    (record,) = run_study(study, RecordStore(tmp_path / "out"), Quiet(), place=place)
    assert record.failures == []
    assert record.epochs_used == len(record.history["trial"]) == 9
    assert record.makespan > 0
    assert record.incumbents[-1][0] <= 9
    assert list(storage.iterdir()) == []
