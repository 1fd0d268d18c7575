"""ExpTestScheduler by itself: what it decides, what it remembers, which rungs it cancels."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict

from tune_ext import ExpTestScheduler, LossMonitor
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune._play import FakeController, fake_trial
from tune_ext.raytune.exptest_scheduler import TUNING_FOLDER, _Paced

ONCE, TWICE = 0.1 * 0.33, 0.1 * 0.33 * 0.33


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    return StorageContext(str(tmp_path), experiment_dir_name="experiment")


class Run:
    """One trial under a scheduler; checkpoints as Ray keeps them."""

    def __init__(self, storage: Any, config: Mapping[str, Any] | None = None, **options: Any):
        self.storage, self.options = storage, {"max_t": 100, "correction": "none", **options}
        self.scheduler, self.controller = ExpTestScheduler(**self.options), FakeController()
        self.trial = fake_trial(storage, {"lr": 0.1, **(config or {})}, "a")
        self.controller.add(self.scheduler, self.trial)

    def report(self, iteration: int, kind: str = "flat", saved: bool = True, **more: Any) -> str:
        """Report forty steps that decay, do not ("flat"), or break."""
        monitor = LossMonitor(self.trial.config)
        for step in range(40):
            monitor.step(
                {"falls": 0.99 ** (40 * iteration + step), "flat": 1.0, "breaks": math.nan}[kind]
            )
        result = {"training_iteration": iteration, **monitor.report(), **more}
        if saved:
            result["should_checkpoint"] = True
        said = self.controller.report(self.scheduler, self.trial, result)
        if saved and said != "NOOP":
            self.keep(iteration)
        return said

    def keep(self, iteration: int) -> None:
        metrics = {"training_iteration": iteration}
        found = _TrainingResult(Checkpoint(f"/checkpoint-{iteration}"), metrics)
        self.trial.run_metadata.checkpoint_manager.register_checkpoint(found)

    def reports(self, kinds: str) -> list[str]:
        names = {"f": "falls", "-": "flat", "x": "breaks"}
        return [self.report(i, names[kind]) for i, kind in enumerate(kinds, 1)]

    def retry(self, scheduler: Any = None) -> None:
        """Ray brings the trial back, to this scheduler or to one that knows nothing."""
        self.scheduler = scheduler or self.scheduler
        self.trial.set_status(Trial.PENDING)
        self.scheduler.on_trial_add(self.controller, self.trial)

    def restart(self) -> None:
        self.retry(ExpTestScheduler(**self.options))

    @property
    def lr(self) -> float:
        return self.trial.config["lr"]

    @property
    def latest(self) -> str | None:
        found = self.trial.latest_checkpoint_result
        return found and found.checkpoint.path


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_t": 0}, InvalidValueError, "max_t must be at least 1"),
        ({"max_t": 2.5}, InvalidTypeError, "max_t must be a whole number"),
        ({"window": 2}, InvalidValueError, "window must be at least 3"),
        ({"alpha": 0.0}, InvalidValueError, "alpha must be positive"),
        ({"beta": 1.0}, InvalidValueError, "beta must be positive and below 1"),
        ({"min_lr": -1.0}, InvalidValueError, "min_lr must lie between 0"),
        ({"min_lr": "small"}, InvalidTypeError, "min_lr must be a number"),
        ({"lr": ""}, InvalidTypeError, "lr must be the name of the learning rate"),
        ({"lr": None}, InvalidTypeError, "lr must be the name of the learning rate"),
        ({"time_attr": None}, InvalidTypeError, "time_attr must be the name"),
        ({"time_attr": 3}, InvalidTypeError, "time_attr must be the name"),
        ({"mode": "least"}, InvalidValueError, "mode must be one of"),
        ({"max_restores": -1}, InvalidValueError, "max_restores must be at least 0"),
        ({"correction": "some"}, InvalidValueError, "correction must be one of"),
        ({"transform": "sqrt"}, InvalidValueError, "transform must be one of"),
        ({"autocorrelation": "ma"}, InvalidValueError, "autocorrelation must be one of"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        ExpTestScheduler(**options)


def test_a_window_that_does_not_decay_pauses_the_trial_with_a_smaller_rate(storage: Any) -> None:
    run = Run(storage)
    original = run.trial.config
    assert run.reports("ff-") == ["CONTINUE", "CONTINUE", "PAUSE"]
    assert run.lr == ONCE
    assert original == {"lr": 0.1}
    assert run.scheduler.choose_trial_to_run(run.controller) is run.trial
    assert [run.report(i) for i in (4, 5, 6, 7)] == ["CONTINUE"] * 3 + ["PAUSE"]  # 122 steps
    assert run.lr == TWICE
    assert f"a: {ONCE:.3g} after 3, {TWICE:.3g} after 7" in run.scheduler.debug_string()
    rows = run.scheduler.explain().to_rows()
    assert [(r["trial"], r["iteration"], r["event"]) for r in rows] == [
        ("a", 1, "keep"),
        ("a", 2, "keep"),
        ("a", 3, "decay"),
        ("a", 7, "decay"),
    ]


def test_the_searcher_learns_of_the_rate(storage: Any) -> None:
    run = Run(storage)
    monitor = LossMonitor(run.trial.config)
    for _ in range(40):
        monitor.step(1.0)
    result = flatten_dict({"training_iteration": 1, **monitor.report()})
    run.scheduler.on_trial_result(run.controller, run.trial, result)
    assert (result["exptest/lr"], result["exptest/window"]) == (ONCE, 122)


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"optimizer": {"lr": 0.1, "momentum": 0.9}}, "optimizer/lr"),
        ({"optimizer/lr": 0.1}, "optimizer/lr"),
        ({"eta": 0.1, "lr": 5}, "eta"),
        ({"eta": 0.1, "lr": 5, "tune_ext": {"role": "final", "lr": "eta"}}, "lr"),
    ],
)
def test_the_rate_may_be_anywhere(storage: Any, config: dict[str, Any], path: str) -> None:
    run = Run(storage, config, lr=path)
    monitor = LossMonitor({"lr": 0.1})
    for _ in range(40):
        monitor.step(1.0)
    result = {"training_iteration": 1, "should_checkpoint": True, **monitor.report()}
    assert run.controller.report(run.scheduler, run.trial, result) == "PAUSE"
    changed = json.dumps({"lr": 0.1, **config}, sort_keys=True)
    place = "optimizer" if "optimizer" in path else "eta"
    before, after = changed.split(f'"{place}', 1)
    after = after.replace("0.1", str(ONCE), 1)
    assert json.dumps(run.trial.config, sort_keys=True) == f'{before}"{place}{after}'


def test_the_rate_that_a_trial_has_found_is_taken_over(storage: Any) -> None:
    run = Run(storage, {"lr": "exptest"})
    monitor = LossMonitor(run.trial.config)
    monitor.resolve(lambda *_: type("Found", (), {"lr": 0.1, "steps": 60}))
    for _ in range(40):
        monitor.step(1.0)
    result = {"training_iteration": 1, "should_checkpoint": True, **monitor.report()}
    assert run.controller.report(run.scheduler, run.trial, result) == "PAUSE"
    assert run.lr == ONCE


def test_the_first_window(storage: Any) -> None:
    assert Run(storage).reports("-") == ["PAUSE"]
    assert Run(storage, window=80).reports("--") == ["CONTINUE", "PAUSE"]
    run = Run(storage)
    said = []
    for iteration in range(1, 31):  # a report at each step: a window of one step says nothing
        monitor = LossMonitor()
        monitor.step(1.0)
        result = {"training_iteration": iteration, "should_checkpoint": True, **monitor.report()}
        said.append(run.controller.report(run.scheduler, run.trial, result))
    assert said == ["CONTINUE"] * 29 + ["PAUSE"]


def test_min_lr_ends_the_pauses(storage: Any) -> None:
    run = Run(storage, min_lr=0.05)
    assert run.reports("-----") == ["PAUSE", *["CONTINUE"] * 4]
    assert run.lr == 0.05
    small = Run(storage, {"lr": 0.01}, min_lr=0.05)
    assert small.reports("--") == ["CONTINUE"] * 2
    assert small.lr == 0.01


def test_max_t_ends_a_trial(storage: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert Run(storage, max_t=3).reports("ff-") == ["CONTINUE", "CONTINUE", "STOP"]
    run = Run(storage, max_t=7, time_attr="epochs_spent")
    assert run.report(1, "falls", epochs_spent=6.5) == "CONTINUE"
    assert not caplog.text
    assert run.report(2, "falls", epochs_spent=math.nan) == "CONTINUE"
    assert "reports no 'epochs_spent' (time_attr)" in caplog.text
    assert run.report(3, "falls", epochs_spent=7.5) == "STOP"


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"exptest": None},
        {"exptest": {"steps": 40}},
        {"exptest": {"steps": 40, "n": math.nan, "diverged": False}},
        {"exptest": {"steps": 0}},
        {"exptest": {"steps": None}},
    ],
)
def test_without_readable_statistics_a_trial_is_left_alone(
    storage: Any, caplog: pytest.LogCaptureFixture, report: Any
) -> None:
    run = Run(storage, max_t=3)
    for iteration in (1, 2):
        result = {"training_iteration": iteration, "loss": 1.0, **report}
        assert run.controller.report(run.scheduler, run.trial, result) == "CONTINUE"
    assert caplog.text.count("statistics") >= 1
    assert len(caplog.records) == 1
    assert run.report(3) == "STOP"


@pytest.mark.parametrize("config", [{"lr": None}, {"lr": "exptest"}, {"lr": "high"}])
def test_without_a_rate_a_trial_is_left_alone(
    storage: Any, caplog: pytest.LogCaptureFixture, config: Any
) -> None:
    run = Run(storage, config)
    assert run.reports("---") == ["CONTINUE"] * 3
    assert len(caplog.records) == 1
    assert "no learning rate 'lr'" in caplog.text
    assert run.trial.config == config


def test_statistics_of_another_transform_are_not_mixed(storage: Any, caplog: Any) -> None:
    for transform, said in (("log", ["CONTINUE"] * 2), ("identity", ["PAUSE", "CONTINUE"])):
        run = Run(storage, transform=transform)
        monitor = LossMonitor(run.trial.config, transform="identity")
        made = []
        for iteration in (1, 2):
            for _ in range(40):
                monitor.step(-1.0)
            result = {"training_iteration": iteration, "should_checkpoint": True}
            result |= monitor.report()
            made.append(run.controller.report(run.scheduler, run.trial, result))
        assert made == said
    assert "tests its losses by transform='identity', not 'log'" in caplog.text


def test_a_decay_waits_for_a_checkpoint_and_tests_nothing_in_between(
    storage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(storage)
    with caplog.at_level(logging.WARNING):
        assert [run.report(i, saved=False) for i in (1, 2, 3, 4)] == ["CONTINUE"] * 4
        assert (run.lr, run.latest) == (0.1, None)
        assert run.report(5, saved=True) == "PAUSE"
    assert run.lr == ONCE
    assert len(caplog.records) == 1
    assert [r["iteration"] for r in run.scheduler.explain().rows] == [1]
    assert [run.report(i) for i in (6, 7, 8, 9)] == ["CONTINUE"] * 3 + ["PAUSE"]


def test_a_retry_rewinds_the_tuner_to_its_checkpoint(storage: Any) -> None:
    straight, run = Run(storage), Run(storage)
    expected = straight.reports("f---------")
    said = [run.report(i, "falls" if i == 1 else "flat") for i in (1, 2, 3)]
    said += [run.report(i, saved=False) for i in (4, 5)]
    run.retry()
    assert run.lr == ONCE
    assert (run.latest, said[:3]) == ("/checkpoint-3", expected[:3])
    assert [run.report(i) for i in range(4, 11)] == expected[3:]
    assert run.scheduler.explain() == straight.scheduler.explain()


def test_after_a_restart_the_file_says_what_was(storage: Any) -> None:
    straight, run = Run(storage), Run(storage)
    expected = straight.reports("f---------")
    for until in (2, 5, 10):
        done = int(run.latest.split("-")[1]) if run.latest else 0
        said = [run.report(i, "falls" if i == 1 else "flat") for i in range(done + 1, until + 1)]
        assert said == expected[done:until]
        run.trial.set_config({"lr": 0.1})  # as Ray brings it back
        run.restart()
        assert run.lr == (ONCE if until < 6 else TWICE)
    assert straight.lr == TWICE


def test_a_checkpoint_from_before_a_decay_brings_the_old_rate_back(storage: Any) -> None:
    run = Run(storage)
    run.report(1, "falls")
    run.report(2, saved=False)
    run.trial.set_config({"lr": ONCE})  # paused, but the checkpoint was lost
    run.retry()
    assert (run.lr, run.latest) == (0.1, "/checkpoint-1")
    assert run.report(2) == "PAUSE"
    assert run.lr == ONCE


def test_a_long_history_is_kept_short(storage: Any) -> None:
    run = Run(storage, max_t=999)
    for i in range(1, 200):
        run.report(i, "falls" if i != 7 else "flat")
    document = json.loads((Path(storage.experiment_fs_path) / TUNING_FOLDER / "a.json").read_text())
    assert len(document["moments"]) == 35  # before and after the first, the decay, the last 32
    manager = run.trial.run_metadata.checkpoint_manager
    manager._latest_checkpoint_result = manager.best_checkpoint_results[49]
    run.restart()
    assert run.lr == ONCE
    assert run.scheduler.explain().rows[-1]["iteration"] == 7


@pytest.mark.parametrize(("seconds", "written"), [(0.01, 10), (1.0, 3)])
def test_a_slow_storage_is_not_written_to_all_the_time(seconds: float, written: int) -> None:
    class Storage:
        now, documents = 0.0, 0

        def write(self, document: Any) -> None:
            self.now += seconds
            self.documents += 1

    slow = Storage()
    paced = _Paced(slow, clock=lambda: slow.now)  # type: ignore[arg-type]
    for second in range(10):
        slow.now = max(slow.now, float(second))
        paced.write({}, now=second in (0, 4, 8))
    assert slow.documents == written


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 9}', '{"version": 1, "moments": []}'])
def test_a_damaged_file_is_ignored(
    storage: Any, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    run = Run(storage)
    run.reports("-f")
    (Path(storage.experiment_fs_path) / TUNING_FOLDER / "a.json").write_text(text)
    run.restart()
    assert run.lr == ONCE
    assert "Ignoring" in caplog.text
    assert run.report(3, "falls") == "CONTINUE"


def test_a_loss_that_is_not_finite_sends_the_trial_back(storage: Any) -> None:
    run = Run(storage, window=80)
    assert run.reports("ffffff")[-1] == "CONTINUE"
    assert run.report(7, "falls") == "CONTINUE"
    assert run.report(8, "breaks") == "NOOP"
    assert (run.trial.status, run.lr, run.latest) == ("PAUSED", ONCE, "/checkpoint-6")
    assert run.scheduler.choose_trial_to_run(run.controller) is run.trial
    assert run.report(7, "breaks") == "NOOP"
    assert (run.lr, run.latest) == (TWICE, "/checkpoint-6")
    assert [r["iteration"] for r in run.scheduler.explain().rows] == [2, 4, 6, 8, 7]


def test_in_the_first_window_it_goes_back_to_the_beginning(storage: Any) -> None:
    run = Run(storage, window=120)
    run.report(1, "falls")
    assert run.report(2, "breaks") == "NOOP"
    assert (run.lr, run.latest) == (ONCE, None)
    assert run.report(1, "falls") == "CONTINUE"
    run.retry()
    assert (run.lr, run.latest) == (ONCE, "/checkpoint-1")


def test_where_only_later_checkpoints_are_left_the_first_of_them_serves(storage: Any) -> None:
    run = Run(storage, window=80)
    run.reports("fff")
    manager = run.trial.run_metadata.checkpoint_manager
    manager._checkpoint_results = manager._checkpoint_results[-1:]
    assert run.report(4, "breaks") == "NOOP"
    assert run.latest == "/checkpoint-3"


def test_without_a_checkpoint_it_is_stopped(storage: Any, caplog: Any) -> None:
    run = Run(storage)
    run.report(1, "falls", saved=False)
    assert run.report(2, "breaks", saved=False) == "STOP"
    assert "no checkpoint to go back to" in caplog.text


def test_it_goes_back_a_few_times_only(storage: Any, caplog: Any) -> None:
    run = Run(storage, max_restores=2)
    run.report(1, "falls")
    assert [run.report(2, "breaks") for _ in range(3)] == ["NOOP", "NOOP", "STOP"]
    assert "too often" in caplog.text
    caplog.clear()
    assert Run(storage, max_restores=0).report(1, "breaks", saved=False) == "STOP"
    assert "too often" in caplog.text


def test_a_damaged_role_is_an_ordinary_trial(storage: Any) -> None:
    run = Run(storage, {"tune_ext": {"role": "rung"}})
    result = {"training_iteration": 1, "loss": 1.0}
    assert run.controller.report(run.scheduler, run.trial, result) == "CONTINUE"
