import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.benchmark.examples import FAKE, is_gone, make_study
from tune_ext.benchmark import runner
from tune_ext.benchmark.methods import METHODS, Setup, missing
from tune_ext.benchmark.processes import WorkerProcess, descendants
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.runner import CellRun, Phase, run_study
from tune_ext.benchmark.study import Cell, TaskSpec
from tune_ext.errors import InvalidValueError, MissingDependencyError

WORKER = "tests.benchmark.fake_worker"


class Silent:
    """An observer that remembers what it was told."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.before, self.finished, self.lacking = [], [], {}

    def begin(self, study, total, finished, jobs):
        self.before, self.total = list(finished), total

    def unavailable(self, name, why):
        self.lacking[name] = why

    def tick(self, running):
        pass

    def finish_cell(self, record):
        self.finished.append(record)
        if len(self.finished) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _fake_worker_files(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "searches.txt"))
    monkeypatch.setenv("FAKE_CHILD", str(tmp_path / "child.txt"))


def searches(tmp_path):
    path = tmp_path / "searches.txt"
    return path.read_text().splitlines() if path.exists() else []


def run(tmp_path, observer=None, *, jobs=1, worker=WORKER, **changes):
    study = make_study(**changes)
    store = RecordStore(tmp_path / "out")
    return run_study(study, store, observer or Silent(), jobs=jobs, worker=worker)


# The state of one cell, without processes


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def cell_run(method="random", **changes):
    clock = Clock()
    study = make_study(**changes)
    return CellRun(Cell(study.tasks[0], method, 0), study, clock), clock


def epoch(trial, lr, error, number=1):
    result = {"epoch": number, "validation_error": error}
    return "epoch", {"trial_id": trial, "config": {"lr": lr}, "result": result, "seconds": 1.0}


def searched(answer=None, errors=()):
    return "searched", {"answer": answer, "details": {}, "errors": list(errors)}


def test_a_cell_goes_from_search_to_evaluation_to_its_record():
    cell, clock = cell_run()
    assert cell.request(Path("j"))[0] == "search"
    cell.handle(*epoch("a", 0.1, 0.5))
    cell.handle(*epoch("b", 0.2, 0.4))
    assert cell.best == 0.4
    clock.now = 7.0
    cell.handle(*searched())
    assert cell.phase is Phase.EVALUATE
    kind, request = cell.request(Path("j"))
    assert (kind, request["config"]) == ("evaluate", {"lr": 0.2})
    assert request["seeds"] == cell.study.evaluation_seeds(0)
    clock.now = 9.0
    cell.handle("evaluated", [{"seed": 1, "test_error": 0.3}])
    record = cell.record()
    assert cell.phase is Phase.DONE
    assert (record.epochs_used, record.test_error, record.failures) == (2, 0.3, [])
    assert (record.search_seconds, record.evaluation_seconds) == (7.0, 2.0)
    assert record.recommendation["source"] == "validation"


def test_the_default_searches_nothing():
    cell, _ = cell_run("default")
    kind, request = cell.request(Path("j"))
    assert (kind, request["config"]) == ("evaluate", {"lr": 1e-3})
    assert cell.failures == []


def test_a_methods_own_answer_goes_before_the_validation_rule():
    cell, _ = cell_run("autohyper")
    cell.handle(*epoch("a", 0.1, 0.01))
    cell.handle(*searched({"lr": 0.7}))
    assert cell.recommendation == {"config": {"lr": 0.7}, "source": "method"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_without_a_finite_result_the_default_is_evaluated_and_it_is_a_failure(bad):
    cell, _ = cell_run()
    cell.handle(*epoch("a", 0.1, bad))
    cell.handle(*searched())
    assert cell.recommendation == {"config": {"lr": 1e-3}, "source": "default"}
    assert "no finite result" in cell.failures[0]


def test_crashed_trials_and_a_diverged_final_training_are_failures():
    cell, _ = cell_run()
    cell.handle(*epoch("a", 0.1, 0.5))
    cell.handle(*searched(errors=["OSError: x", "OSError: y"]))
    cell.handle("evaluated", [{"seed": 1, "test_error": None}])
    assert cell.failures == [
        "2 of its trials crashed, the last with OSError: y",
        "the recommendation diverged at full length",
    ]
    assert cell.record().test_error == 1.0


def test_the_watchdog_knows_stalls_and_time_limits():
    cell, clock = cell_run(stall_seconds=10, cell_seconds=25)
    clock.now = 9.0
    assert cell.overdue() is None
    cell.handle(*epoch("a", 0.1, 0.5))
    clock.now = 18.0
    assert cell.overdue() is None
    clock.now = 20.0
    assert cell.overdue() == "no progress for 10 s"
    cell.handle("alive", "x")
    clock.now = 26.0
    assert cell.overdue() == "not finished within 25 s"


def test_a_search_that_fails_before_its_first_epoch_is_tried_once_more():
    cell, _ = cell_run()
    cell.fail("the machine was busy")
    assert (cell.phase, cell.failures) == (Phase.SEARCH, [])
    cell.fail("again")
    assert cell.phase is Phase.EVALUATE
    assert cell.failures[0] == "search, after 0 epochs: again"


def test_a_search_that_fails_later_is_not_tried_again():
    cell, _ = cell_run()
    cell.journaled = 1
    cell.fail("it hung")
    assert cell.phase is Phase.EVALUATE
    assert cell.failures[0] == "search, after 1 epochs: it hung"


def test_epochs_that_were_trained_but_never_reported_count():
    cell, _ = cell_run()
    cell.handle(*epoch("a", 0.1, 0.5))
    cell.journaled = 3
    cell.handle(*searched())
    cell.handle("evaluated", [])
    assert cell.record().epochs_used == 3


# Processes, with a worker that misbehaves on demand


class ClockOfStalls(Silent):
    """Time passes only while a search hangs that has told its epoch and has a child."""

    def __init__(self, child):
        super().__init__()
        self.child, self.clock = child, Clock()

    def tick(self, running):
        for run in running:
            told = run.cell.method == "asha" and run.phase is Phase.SEARCH and run.best is not None
            if told and self.child.exists() and self.child.read_text():
                self.clock.now += 1.0


@pytest.fixture
def stalls(tmp_path, monkeypatch):
    """An observer; the watchdog goes by its clock."""
    observer = ClockOfStalls(tmp_path / "child.txt")
    monkeypatch.setattr(runner, "CellRun", partial(CellRun, clock=observer.clock))
    return observer


def test_failures_of_every_kind_are_counted_and_the_study_goes_on(tmp_path, stalls):
    methods = ("one-epoch", "asha", "hyperband", "bohb", "autohyper", "random")
    records = run(tmp_path, stalls, methods=methods, seeds=(0,), stall_seconds=1.5)
    told = {r.method: r for r in records}
    assert told["asha"].failures == ["search, after 1 epochs: no progress for 1.5 s"]
    assert told["hyperband"].failures == [
        "search, after 1 epochs: the worker process ended with code 3"
    ]
    assert told["bohb"].failures[0] == "search, after 0 epochs: ValueError: no"
    assert "no finite result" in told["bohb"].failures[1]
    assert "no finite result" in told["one-epoch"].failures[0]
    # what a search had found before it ended is evaluated all the same
    assert told["asha"].recommendation["config"] == {"lr": 0.1}
    assert told["asha"].test_error == pytest.approx(0.1)
    assert told["random"].recommendation["config"] == {"lr": 0.2}
    assert told["autohyper"].recommendation["config"] == {"lr": 0.3}
    assert told["random"].failures == told["autohyper"].failures == []


def test_a_hanging_search_is_ended_with_all_that_it_started(tmp_path, stalls):
    run(tmp_path, stalls, methods=("asha",), seeds=(0,), stall_seconds=1.5)
    assert is_gone(int((tmp_path / "child.txt").read_text()))


def test_running_again_repeats_nothing(tmp_path):
    changes = {"methods": ("random", "autohyper"), "seeds": (0, 1)}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Silent(stop_after=2), **changes)
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert sum("tune-ext.cell" in line for line in lines) == 2
    observer = Silent()
    records = run(tmp_path, observer, **changes)
    assert len(observer.before) == 2
    assert [(r.method, r.seed) for r in records] == [
        ("random", 0),
        ("autohyper", 0),
        ("random", 1),
        ("autohyper", 1),
    ]
    assert (tmp_path / "out" / "records.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert searches(tmp_path) == ["random 0", "autohyper 0", "random 1", "autohyper 1"]
    again = Silent()
    run(tmp_path, again, **changes)
    assert len(searches(tmp_path)) == 4
    assert again.finished == []


def test_a_label_that_is_written_out_in_the_records_is_known_again(tmp_path):
    """Labels in right-to-left scripts may hold marks of their direction."""
    tasks = (TaskSpec(FAKE, {"epochs": 4}, "\u05e8\u200f"),)
    for _ in range(2):
        assert len(run(tmp_path, methods=("random",), seeds=(0,), tasks=tasks)) == 1
    assert searches(tmp_path) == ["random 0"]


def test_several_cells_run_at_once(tmp_path):
    observer = Silent()
    records = run(tmp_path, observer, jobs=3, methods=("random", "autohyper"), seeds=(0, 1, 2))
    assert len(records) == len(observer.finished) == 6
    assert len(list((tmp_path / "out" / "logs").glob("job-*.log"))) == 3


def test_scratch_directories_are_removed():
    worker = WorkerProcess([WORKER], {}, Path(os.devnull))
    assert worker.scratch.is_dir()
    worker.stop()
    assert not worker.scratch.exists()


def test_a_worker_that_does_not_stop_is_killed():
    worker = WorkerProcess(["http.server", "0", "--bind", "127.0.0.1", "-d"], {}, Path(os.devnull))
    worker.kill()
    assert worker.exit_reason() == "the worker process was killed by SIGKILL" or "code" in (
        worker.exit_reason()
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_descendants_are_found():
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while len(descendants(child.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert child.pid in descendants(os.getpid())
        assert len(descendants(child.pid)) == 1
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_mistakes_are_told_before_anything_runs(tmp_path):
    with pytest.raises(InvalidValueError, match="no method 'nothing'"):
        run(tmp_path, methods=("random", "nothing"))
    with pytest.raises(MissingDependencyError, match="fetch it"):
        run(tmp_path, tasks=(TaskSpec(FAKE, {"absent": True}),))
    with pytest.raises(InvalidValueError, match="jobs"):
        run(tmp_path, jobs=0)
    assert searches(tmp_path) == []


def test_a_method_that_cannot_run_here_is_named_and_the_others_run(tmp_path, monkeypatch):
    lacking = replace(METHODS["bohb"], needs={"no_such_module": "pip install it"})
    monkeypatch.setitem(METHODS, "bohb", lacking)
    observer = Silent()
    records = run(tmp_path, observer, methods=("bohb", "random"), seeds=(0,))
    assert [r.method for r in records] == ["random"]
    why = "no_such_module is not installed: pip install it"
    assert observer.lacking == {"bohb": why}
    assert RecordStore(tmp_path / "out").load_settings()["unavailable"] == {"bohb": why}


# The real thing: Ray, every method, on a task that is a formula


KINDS = (
    "default",
    "one-epoch",
    "random",
    "asha",
    "hyperband",
    "bohb",
    "autohyper",
    "exptest",
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Methods of every kind at a budget of 47 epochs, on a task whose runs have 6."""
    out = tmp_path_factory.mktemp("comparison")
    study = make_study(
        tasks=(TaskSpec(FAKE, {"epochs": 6, "nan_above": 0.05}),),
        methods=tuple(name for name in KINDS if not missing(name)),
        seeds=(0,),
        budget=47,
        final_seeds=2,
    )
    return {r.method: r for r in run_study(study, RecordStore(out), Silent())}


@pytest.mark.slow
def test_budgets_are_exact(comparison):
    for method, record in comparison.items():
        assert record.failures == [], method
        assert record.epochs_used == len(record.history["trial"]), method
        if method == "default":
            assert record.epochs_used == 0
        elif method in ("autohyper", "exptest"):
            assert 0 < record.epochs_used <= 47  # may end by itself
        else:
            assert record.epochs_used == 47, method
        assert sum(t["epochs"] for t in record.trials) == record.epochs_used, method
        assert all(t["epochs"] <= 6 for t in record.trials), method


def test_methods_share_their_configurations(comparison):
    def drawn(method):
        return [t["config"]["lr"] for t in comparison[method].trials]

    stream = drawn("one-epoch")
    assert len(stream) == len(set(stream)) >= 20
    for method in ("random", "asha", "hyperband"):
        # which trial reports first may differ; what is drawn may not
        assert set(drawn(method)) <= set(stream), method
    if "bohb" in comparison:
        assert set(stream[:3]) <= set(drawn("bohb"))


def test_screening_trains_the_best_to_full_length(comparison):
    trials = comparison["one-epoch"].trials
    long = [t for t in trials if t["epochs"] > 1]
    assert len(long) == 4  # 23 epochs pay for four times five more
    assert [t["epochs"] for t in long] == [6, 6, 6, 6]
    assert len(trials) == 27


def test_diverged_trials_end_and_never_win(comparison):
    everything = [t for r in comparison.values() for t in r.trials]
    diverged = [t for t in everything if t["config"]["lr"] > 0.05]
    assert diverged
    assert all(t["validation_error"] is None and t["epochs"] == 1 for t in diverged)
    for record in comparison.values():
        assert record.recommendation["config"]["lr"] <= 0.05


def test_recommendations_are_evaluated_with_the_same_seeds(comparison):
    assert {tuple(t["seed"] for t in r.tests) for r in comparison.values()} == {
        tuple(make_study(final_seeds=2).evaluation_seeds(0))
    }
    assert comparison["default"].recommendation["config"] == {"lr": 1e-3}
    for method in ("autohyper", "exptest"):
        assert comparison[method].recommendation["source"] == "method"
        assert comparison[method].details["moves"]


def test_exptest_finds_the_rate_in_a_few_epochs(comparison):
    record = comparison["exptest"]
    assert 0.005 < record.recommendation["config"]["lr"] <= 0.05
    assert record.epochs_used <= 10
    rungs = [m for m in record.details["moves"] if m["event"] == "rung"]
    assert len(rungs) == record.epochs_used
    assert [m["lr"] for m in rungs] == [t["config"]["lr"] for t in record.trials]
    assert {m["steps"] for m in rungs} <= {2, 40}  # all of an epoch, or up to the divergence


@pytest.fixture(scope="module")
def own_rates(tmp_path_factory):
    """ExpTest with random search for the other parameter: twice 6 epochs and their ladders."""
    out = tmp_path_factory.mktemp("own-rates")
    options = {"epochs": 6, "nan_above": 0.05, "parameters": ["lr", "other"]}
    study = make_study(
        tasks=(TaskSpec(FAKE, options), TaskSpec(f"{FAKE}Alone", {"epochs": 6})),
        methods=("default", "exptest+random"),
        seeds=(0,),
        budget=25,
        final_seeds=1,
    )
    observer = Silent()
    records = run_study(study, RecordStore(out), observer)
    return {(r.method, r.task["name"]): r for r in records}, observer


@pytest.mark.slow
def test_each_trial_of_exptest_and_random_finds_its_own_rate(own_rates):
    records, _ = own_rates
    record = records["exptest+random", FAKE]
    assert record.failures == []
    assert record.epochs_used == len(record.history["trial"]) == 25
    first, *_ = record.trials
    assert first["epochs"] == 6
    assert 0.005 < first["config"]["lr"] <= 0.05
    drawn = Setup(TaskSpec(**record.task).create(), 25, 0).configurations()
    assert [t["config"]["other"] for t in record.trials] == [
        next(drawn)["other"] for _ in record.trials
    ]
    ladder = [
        e for t, e in zip(record.history["trial"], record.history["epoch"], strict=True) if t == 0
    ]
    assert 3 <= ladder.count(0) <= 9  # the rungs; one of them is the training's first epoch
    assert ladder[-5:] == [2, 3, 4, 5, 6]
    assert record.recommendation["config"].keys() == {"lr", "other"}
    assert record.recommendation["source"] == "validation"


def test_where_a_method_cannot_search_it_is_said_and_the_rest_runs(own_rates, tmp_path):
    records, observer = own_rates
    name = f"exptest+random on {FAKE}Alone"
    assert list(observer.lacking) == [name]
    assert "nothing but the learning rate" in observer.lacking[name]
    assert set(records) == {
        ("default", FAKE),
        ("default", f"{FAKE}Alone"),
        ("exptest+random", FAKE),
    }
    with pytest.raises(InvalidValueError, match="nothing but the learning rate"):
        run(tmp_path, methods=("exptest+random",))
    assert not (tmp_path / "out").exists()
