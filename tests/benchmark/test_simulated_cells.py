"""Cells of tasks that are looked up: no Ray cluster, a simulated clock."""

import json

import pytest

from tests.benchmark.examples import make_study
from tune_ext.benchmark.cell_run import CellRun, Phase, Place
from tune_ext.benchmark.history import Incumbents, best_trial
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.runner import run_study
from tune_ext.benchmark.study import Cell, TaskSpec
from tune_ext.benchmark.tally import Tally
from tune_ext.errors import InvalidValueError

BRANIN = TaskSpec("function-branin")


class Quiet:
    def begin(self, study, total, finished, jobs):
        pass

    def unavailable(self, name, why):
        pass

    def tick(self, running):
        pass

    def finish_cell(self, record):
        pass


def study(**changes):
    values = {
        "tasks": (BRANIN, TaskSpec("function-branin", label="again", budget=2)),
        "methods": ("default", "random", "asha"),
        "seeds": (0,),
        "budget": 4,
        "unit": "trainings",
        "workers": 3,
    }
    return make_study(**{**values, **changes})


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    store = RecordStore(tmp_path_factory.mktemp("simulated"), sync_every=1.0)
    run_study(study(), store, Quiet())
    return store, {(r.label, r.method): r for r in store.load()}


def test_budgets_in_trainings_are_exact_and_a_task_may_have_its_own(records):
    _, by = records
    full = BRANIN.create().max_epochs
    for label, budget in (("function-branin", 4), ("again", 2)):
        for method in ("random", "asha"):
            record = by[label, method]
            assert record.failures == []
            assert (record.budget, record.unit, record.max_epochs) == (budget, "trainings", full)
            assert record.epochs_used == budget * full
            assert record.workers == 3


def test_a_simulated_record_tells_the_clock_and_true_incumbents(records):
    _, by = records
    record = by["function-branin", "random"]
    assert record.clock == "simulated"
    assert record.history == {}
    assert record.trials
    assert 0 < record.busy_seconds <= 3 * record.makespan + 1e-6
    used, seconds, error = record.incumbents[-1]
    assert used <= 4
    assert 0 < seconds <= record.makespan
    assert error == record.tests[0]["test_error"]
    assert len(record.tests) == 1
    task = BRANIN.create()
    assert error == pytest.approx(task.true_error(record.recommendation["config"]))
    default = by["function-branin", "default"]
    assert default.epochs_used == 0
    assert default.test_error is not None


def test_the_provenance_is_written_once_and_cut_off_when_half_written(records, tmp_path):
    store, by = records
    lines = store.path.read_bytes().splitlines(keepends=True)
    schemas = [json.loads(line)["schema"] for line in lines]
    assert schemas == ["tune-ext.provenance", *["tune-ext.cell"] * 6]
    assert "versions" in by["again", "asha"].provenance
    assert "finished" in by["again", "asha"].provenance
    cut = RecordStore(tmp_path)
    cut.path.write_bytes(lines[0][:40])
    assert cut.open(study()) == []
    cut.append(by["again", "asha"])
    cut.close()
    assert cut.path.read_bytes().splitlines(keepends=True)[0] == lines[0]
    assert cut.load() == [by["again", "asha"]]


def test_records_go_into_parquet(records, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    store, by = records
    cells, trials, incumbents = store.to_parquet(tmp_path / "tables")
    assert parquet.read_schema(cells).metadata[b"tune_ext.version"] == b"1"
    rows = {(r["label"], r["method"]): r for r in parquet.read_table(cells).to_pylist()}
    assert rows.keys() == by.keys()
    assert rows["again", "asha"]["test_error"] == by["again", "asha"].test_error
    assert parquet.read_table(trials).num_rows == sum(len(r.trials) for r in by.values())
    assert parquet.read_table(incumbents).num_rows == sum(len(r.incumbents) for r in by.values())


def test_seconds_count_to_the_last_epoch_that_has_room(tmp_path):
    made = study(tasks=(BRANIN,), unit="seconds", budget=100, methods=("random",), workers=1)
    (record,) = run_study(made, RecordStore(tmp_path), Quiet())
    assert record.failures == []
    assert record.incumbents[-1][0] <= 100
    assert record.epochs_used > 0
    # The epoch that was under way at the end is paid for up to then, and seen by nobody.
    assert record.busy_seconds == pytest.approx(100)
    assert record.makespan == pytest.approx(100)


def test_running_again_repeats_nothing_and_the_workers_are_a_setting(records):
    store, _ = records
    before = store.path.read_bytes()
    run_study(study(), store, Quiet())
    assert store.path.read_bytes() == before
    with pytest.raises(InvalidValueError, match="workers was 3, is 4"):
        store.open(study(workers=4))


def test_a_run_that_would_hang_is_a_failure_of_its_method_and_the_worker_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(METHODS, "hyperband", METHODS["hyperband"])
    cell = CellRun(Cell(BRANIN, "hyperband", 0), study())
    history = Tally(BRANIN.create()).history
    history.add("a", {"x0": 0.1, "x1": 0.2}, {"epoch": 1, "validation_error": 0.5}, 1.0)
    cell.handle("history", {"history": history, "incumbents": [[1, 1.0, 0.5]]})
    cell.handle("failed", "SimulationStuckError: nothing can happen any more")
    assert cell.phase is Phase.EVALUATE
    assert cell.failures[0].startswith("search, after 1 epochs: SimulationStuckError")
    assert cell.recommendation["config"] == {"x0": 0.1, "x1": 0.2}
    assert cell.incumbents == [[1, 1.0, 0.5]]
    fresh = CellRun(Cell(BRANIN, "hyperband", 0), study())
    fresh.handle("failed", "it cannot be built")  # trying again would change nothing
    assert fresh.phase is Phase.EVALUATE


def test_incumbents_are_what_the_rule_would_recommend_at_every_epoch():
    import numpy as np

    random = np.random.default_rng(3)
    seen, tally = Incumbents(), Tally(TaskSpec("digits-cnn").create())
    epochs = [0] * 12
    for _ in range(400):
        trial = int(random.integers(12))
        epochs[trial] += 1
        error = None if random.random() < 0.2 else float(random.integers(5)) / 5
        loss = None if random.random() < 0.5 else float(random.integers(3))
        row = {"epoch": epochs[trial], "validation_error": error, "validation_loss": loss}
        tally.add(str(trial), {"config": {"lr": trial}, **row}, 0.0, 1.0)
        number = tally.history.trial[-1]
        found = seen.add(number, epochs[trial], error, loss)
        expected = best_trial(tally.history)
        assert found == (None if expected is None else expected["trial"])
        if expected is not None:
            assert tally.incumbents[-1][2] == expected["validation_error"]


def test_a_methods_own_answer_is_its_incumbent():
    task = BRANIN.create()
    answers = [None, dict(task.default_config)]
    tally = Tally(task, "seconds", lambda: answers[0])
    config = {name: task.default_config[name] for name in task.space}
    row = {"epoch": 1, "validation_error": 0.9, "config": config}
    tally.add("a", row, 2.0, 5.0)
    assert tally.incumbents == [[5.0, 2.0, task.true_error(config)]]
    answers.pop(0)
    assert tally.look(3.0) is None  # the same error: nothing new


def test_a_record_of_version_one_is_read_and_told_in_full():
    from tests.benchmark.examples import make_record

    record = make_record(history={"trial": [0, 1, 0], "epoch": [1, 1, 2]})
    data = record.to_json()
    for new in ("label", "unit", "max_epochs", "workers", "clock", "incumbents", "makespan"):
        del data[new]
    for new in ("busy_seconds", "worst_error", "percent", "error_name", "regret_range"):
        del data[new]
    data["version"] = 1
    data["history"] |= {"validation_error": [0.5, 0.4, 0.3], "seconds": [1.0, 2.0, 3.0]}
    data["history"]["validation_loss"] = [None] * 3
    read = CellRecord.from_json(data, {})
    assert read.key == ("fake", "random", 0)
    assert read.incumbents == [[1, 1.0, 0.5], [2, 2.0, 0.4], [3, 3.0, 0.3]]
    assert (read.unit, read.clock, read.percent, read.makespan) == ("epochs", "wall", True, 2.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"address": "auto"}, "--storage"),
        ({"cpus_per_trial": -1.0}, "cpus_per_trial"),
        ({"gpus_per_trial": float("nan")}, "gpus_per_trial"),
    ],
)
def test_a_place_is_checked(arguments, words):
    with pytest.raises(InvalidValueError, match=words):
        Place(**arguments)


def test_a_storage_may_be_a_path(tmp_path):
    assert Place("auto", tmp_path) == Place("auto", str(tmp_path))


def test_exptest_sees_the_losses_of_recorded_trainings_and_each_final_seed_is_looked_up(tmp_path):
    recorded = TaskSpec("response-digits-cnn")
    small = study(tasks=(recorded,), methods=("exptest",), workers=1, final_seeds=3)
    (record,) = run_study(small, RecordStore(tmp_path), Quiet())
    assert record.failures == []
    assert record.recommendation["source"] == "method"
    assert [t["seed"] for t in record.tests] == small.evaluation_seeds(0)
    assert len({t["test_loss"] for t in record.tests}) == 3


def test_a_simulated_trial_goes_on_with_the_losses_that_it_has_seen():
    from tune_ext.benchmark.tune_parts import LookupTrainable

    task = TaskSpec("response-digits-cnn").create()
    whole, first, second = (LookupTrainable(task, 0, {"lr": 0.01}) for _ in range(3))
    whole.step(), first.step()
    second.load(first.state())
    assert second.step() == whole.step()


def test_workers_go_through_sets_in_the_same_order():
    from tune_ext.benchmark.runner import _ENVIRONMENT

    assert _ENVIRONMENT["PYTHONHASHSEED"] == "0"


def test_a_few_slow_configurations_do_not_shrink_what_is_planned_for_seconds():
    from tune_ext.benchmark._cost import epoch_seconds

    class Run:
        def __init__(self, seconds):
            self.seconds = seconds

        def train_epoch(self):
            return {"seconds": self.seconds}

    class Uneven(type(BRANIN.create())):
        started = 0

        def start(self, config, *, seed):
            self.started += 1
            return Run(1000.0 if self.started % 8 == 0 else 1.0)

    assert epoch_seconds(Uneven("function-branin")) == 1.0
