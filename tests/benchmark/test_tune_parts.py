"""The parts that go into Ray Tune, without a running Ray."""

import itertools
import math
import weakref
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tests.benchmark.examples import FAKE
from tests.benchmark.fake import FakeTask
from tune_ext.benchmark.methods import METHODS, Setup, missing, unsuited
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.tune_parts import (
    BudgetStopper,
    ScreeningScheduler,
    StreamSearch,
    TaskTrainable,
    Watch,
)
from tune_ext.errors import InvalidValueError

SETUP = Setup(FakeTask(), budget=20, seed=3)


def result(epoch=1, error=0.5):
    return {"epoch": epoch, "validation_error": error}


def test_a_stream_ends_at_its_limit_and_goes_on_after_a_restore(tmp_path):
    expected = list(itertools.islice(SETUP.configurations(), 5))
    search = StreamSearch(SETUP, limit=5)
    assert [search.suggest(str(i)) for i in range(3)] == expected[:3]
    search.save(str(tmp_path / "state"))
    again = StreamSearch(SETUP, limit=5)
    again.restore(str(tmp_path / "state"))
    assert [again.suggest(str(i)) for i in range(3)] == [*expected[3:], Searcher.FINISHED]
    again.on_trial_complete("0", result=None, error=True)


def test_a_budget_ends_the_run_to_the_epoch():
    seen = []
    stopper = BudgetStopper(5, 3, lambda trial, row: seen.append((trial, row["epoch"])))
    answers = [stopper(t, result(e)) for t, e in [("a", 1), ("a", 2), ("a", 3), ("b", 1)]]
    assert answers == [False, False, True, False]  # a has its full length
    assert not stopper.stop_all()
    assert stopper("b", result(2))
    assert stopper.stop_all()
    assert seen == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2)]


def test_a_run_can_be_given_up():
    hopeless = []
    stopper = BudgetStopper(5, None, lambda *_: None, lambda: bool(hopeless))
    assert not stopper("a", result(99))
    assert not stopper.stop_all()
    hopeless.append(1)
    assert stopper.stop_all()


def test_crashes_in_a_row_are_hopeless_but_not_with_epochs_between():
    watch = Watch(tolerance=3)
    trial = SimpleNamespace(error_file=None)
    for _ in range(4):
        watch.on_trial_error(0, [], trial)
        watch.on_trial_error(0, [], trial)
        assert not watch.hopeless
        watch.on_trial_result(0, [], trial, {})
    for _ in range(3):
        watch.on_trial_error(0, [], trial)
    assert watch.hopeless
    assert watch.errors == ["unknown"] * 11


def test_why_a_trial_crashed_is_read_from_text(tmp_path):
    told = tmp_path / "error.txt"
    told.write_text("Failure # 1\n" + "at line 3\n" * 9000 + "ValueError: no \xe9 here\n\n")
    watch = Watch(tolerance=3)
    for path in (str(told), str(tmp_path / "none.txt")):
        watch.on_trial_error(0, [], SimpleNamespace(error_file=path))
    told.write_text("")
    watch.on_trial_error(0, [], SimpleNamespace(error_file=str(told)))
    assert watch.errors == ["ValueError: no \xe9 here", "unknown", "unknown"]


class Controller:
    def __init__(self, trials):
        self.trials = trials

    def get_trials(self):
        return self.trials


class Trial:
    """Hashable, as Ray's."""

    def __init__(self, status="PAUSED"):
        self.status = status


def screened(scores, mode="min"):
    scheduler = ScreeningScheduler(len(scores), "validation_error", mode)
    trials = [Trial("RUNNING") for _ in scores]
    for one, score in zip(trials, scores, strict=True):
        decision = scheduler.on_trial_result(None, one, {"validation_error": score})
        assert decision == TrialScheduler.PAUSE
        one.status = "PAUSED"
    return scheduler, trials


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "x"])
def test_screening_goes_on_with_the_best_and_never_with_what_is_not_finite_first(bad):
    scheduler, trials = screened([bad, 0.4, 0.2, 0.3])
    order = []
    while (chosen := scheduler.choose_trial_to_run(Controller(trials))) is not None:
        assert scheduler.on_trial_result(None, chosen, result(2)) == TrialScheduler.CONTINUE
        chosen.status = "TERMINATED"
        order.append(trials.index(chosen))
    assert order == [2, 3, 1, 0]


def test_screening_waits_until_all_are_screened_and_runs_what_is_pending_first():
    _, trials = screened([0.4, 0.2])
    waiting = ScreeningScheduler(3, "validation_error", "min")
    for trial, error in zip(trials, (0.4, 0.2), strict=True):
        told = {"validation_error": error}
        assert waiting.on_trial_result(None, trial, told) == TrialScheduler.PAUSE
    assert waiting.choose_trial_to_run(Controller(trials)) is None
    pending = Trial("PENDING")
    waiting.on_trial_add(None, pending)
    assert waiting.choose_trial_to_run(Controller([*trials, pending])) is pending
    waiting.on_trial_complete(None, pending, {})  # diverged in its first epoch
    pending.status = "TERMINATED"
    assert waiting.choose_trial_to_run(Controller([*trials, pending])) is trials[1]


def test_screening_finds_the_next_trial_without_a_look_at_all_of_them():
    scheduler, trials = screened([k / 1000 for k in range(999, -1, -1)])
    asked = Controller([])  # a thousand trials, of which Ray would be asked at every choice
    assert scheduler.choose_trial_to_run(asked) is trials[-1]
    assert scheduler.choose_trial_to_run(asked) is trials[-1], "Ray asks until it runs"
    trials[-1].status = "PENDING"
    assert scheduler.choose_trial_to_run(asked) is trials[-1], "one after another"
    trials[-1].status = "RUNNING"
    assert scheduler.choose_trial_to_run(asked) is trials[-2]


def test_screening_keeps_the_place_of_a_trial_that_is_not_yet_paused():
    scheduler, trials = screened([0.1, 0.2])
    trials[0].status = "RUNNING"  # its state is being saved
    assert scheduler.choose_trial_to_run(Controller(trials)) is trials[1]
    trials[0].status = "PAUSED"
    assert scheduler.choose_trial_to_run(Controller(trials)) is trials[0]


def test_screening_knows_the_direction():
    scheduler, trials = screened([0.4, 0.2, 0.9], mode="max")
    assert scheduler.choose_trial_to_run(Controller(trials)) is trials[2]


def test_the_trainable_resets_continues_and_ends_when_it_diverges(tmp_path):
    made = TaskTrainable.__new__(TaskTrainable)
    made._trial_info = None
    spec = TaskSpec(FAKE, {"epochs": 4, "nan_above": 0.5})
    notes = {"role": "probe"}
    journal = tmp_path / "journal"
    made.setup({"lr": 0.1, "tune_ext": notes}, task=spec, seed=0, journal=str(journal))
    first = made.step()
    second = made.step()
    assert (first["epoch"], second["epoch"], second["done"]) == (1, 2, False)
    made.save_checkpoint(str(tmp_path))
    assert made.reset_config({"lr": 0.9})
    diverged = made.step()
    assert (diverged["epoch"], diverged["done"]) == (1, True)
    assert made.reset_config({"lr": 0.1})
    made.load_checkpoint(str(tmp_path))
    assert made.step()["epoch"] == 3
    assert len(journal.read_text().splitlines()) == 4


def test_a_reset_lets_go_of_a_run_before_the_next_one_begins(monkeypatch):
    made = TaskTrainable.__new__(TaskTrainable)
    made.setup({"lr": 0.1}, task=TaskSpec(FAKE, {"epochs": 4}), seed=0)
    run, there, begin = weakref.ref(made._run), [], made._begin
    monkeypatch.setattr(made, "_begin", lambda config: (there.append(run()), begin(config)))
    assert made.reset_config({"lr": 0.2})
    assert there == [None]


# What scales to the architecture has tests of its own, with a task that has architectures.
ANYWHERE = [n for n in METHODS if not n.endswith(("+scaled", "+init", "+growth"))]


@pytest.mark.parametrize("name", [n for n in ANYWHERE if METHODS[n].build and not missing(n)])
def test_every_method_is_built_and_leaves_the_task_alone(name):
    parameters = ["lr", "other"] if name in ("exptest+random", "cma-es") else ["lr"]
    task, untouched = FakeTask(parameters=parameters), FakeTask(parameters=parameters)
    assert unsuited(name, task) is None
    task.space.seed(5)
    setup = Setup(task, budget=20, seed=3)
    search = METHODS[name].build(setup)
    config = search.search_alg.suggest("first")
    if name == "exptest+random":
        assert config == {**next(setup.configurations()), "lr": "exptest"}
    else:
        assert 1e-6 <= config["lr"] <= 1.0
    untouched.space.seed(5)
    assert task.space.sample_configuration() == untouched.space.sample_configuration()
    if name not in ("autohyper", "exptest", "exptest+random", "grid", "smac"):
        assert config == next(setup.configurations())


def test_the_trainable_reports_losses_and_finds_a_rate_of_its_own(tmp_path):
    made = TaskTrainable.__new__(TaskTrainable)
    made._trial_info = None
    spec = TaskSpec(FAKE, {"epochs": 4, "nan_above": 0.05})
    made.setup({"lr": 0.01}, task=spec, seed=0)
    report = made.step()
    assert (report["exptest"]["n"], report["exptest"]["lr"], report["found"]) == (40, 0.01, {})
    ladder = {"alpha": 0.05}
    made.reset_config({"lr": 0.01, "tune_ext": {"role": "rung", "steps": 40, "ladder": ladder}})
    rung = made.step()["exptest"]
    assert (rung["verdict"], rung["complete"], rung["steps"]) == ("decaying", True, 40)
    made.reset_config({"lr": "exptest"})
    results = [made.step() for _ in range(3)]
    made.save_checkpoint(str(tmp_path))
    results += [made.step() for _ in range(6)]
    assert [r["epoch"] for r in results[:3]] == [0, 0, 0]
    assert results[-1]["epoch"] >= 3
    made.reset_config({"lr": "exptest"})
    made.load_checkpoint(str(tmp_path))
    again = [made.step() for _ in range(6)]
    for key in ("epoch", "found", "validation_error", "done"):
        assert [repr(r[key]) for r in again] == [repr(r[key]) for r in results[3:]]


def test_exptest_needs_a_rate_and_losses():
    assert unsuited("exptest", FakeTask()) is None
    assert "no learning rate" in unsuited("exptest", FakeTask(parameters=["other"]))
    mute = FakeTask()
    mute.loss = None
    for name in ("exptest", "exptest+random"):
        assert "does not report" in unsuited(name, mute)
    with pytest.raises(InvalidValueError, match="does not report"):
        METHODS["exptest"].build(Setup(mute, budget=9, seed=0))
    assert unsuited("random", mute) is None
