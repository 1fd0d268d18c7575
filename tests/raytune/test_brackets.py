"""HyperBand under Ray: the conformance suite, decisions, memories that survive a restore."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune import HyperBand
from tune_ext.raytune._play import FakeController, fake_trial
from tune_ext.raytune.brackets import BUDGET
from tune_ext.raytune.testing import SchedulerConformance


class TestHyperBand(SchedulerConformance):
    epochs = None  # trials that lose end while they wait, without another result

    def make(self, **options: Any) -> Any:
        return HyperBand(max_t=4, reduction_factor=2, **options)


class TestAsynchronous(SchedulerConformance):
    epochs = None  # trials that lose end while they wait, without another result

    def make(self, **options: Any) -> Any:
        return HyperBand(max_t=4, reduction_factor=2, asynchronous=True, **options)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_t": 0}, InvalidValueError, "max_budget"),
        ({"reduction_factor": 1}, InvalidValueError, "reduction_factor"),
        ({"min_t": 100}, InvalidValueError, "min_budget"),
        ({"brackets": 9}, InvalidValueError, "brackets must be in 1 to 5"),
        ({"metric": 3}, InvalidTypeError, "metric"),
        ({"mode": "least"}, InvalidValueError, "mode"),
        ({"rounding": "up"}, InvalidValueError, "rounding"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        HyperBand(**options)


class Play:
    """A population of pending trials under a scheduler, reporting in any order."""

    def __init__(self, tmp_path: Path, count: int, **options: Any) -> None:
        given = {"metric": "loss", "mode": "min", "max_t": 9, "reduction_factor": 3}
        self.scheduler = HyperBand(**{**given, **options})
        self.controller = FakeController()
        storage = StorageContext(str(tmp_path), experiment_dir_name="experiment")
        self.trials = [fake_trial(storage, {"x": i}, f"t{i}") for i in range(count)]
        for trial in self.trials:
            self.controller.add(self.scheduler, trial)

    def report(self, number: int, epoch: int, loss: Any) -> str:
        result = {"training_iteration": epoch, "loss": loss}
        return self.controller.report(self.scheduler, self.trials[number], result)

    def chosen(self) -> str | None:
        trial = self.scheduler.choose_trial_to_run(self.controller)
        return None if trial is None else str(trial.trial_id)

    def resume(self) -> list[str]:
        """Start all that may go on."""
        names = []
        while (name := self.chosen()) is not None:
            names.append(name)
            next(t for t in self.trials if t.trial_id == name).set_status(Trial.RUNNING)
        return names


def test_the_best_third_is_resumed_and_the_others_end(tmp_path: Path) -> None:
    play = Play(tmp_path, 9)
    for i in range(9):
        assert play.report(i, 1, 1.0 - i / 10) == ("PAUSE" if i < 8 else "CONTINUE")
    assert play.resume() == ["t6", "t7"]
    ended = [t.trial_id for t in play.trials if t.status == Trial.TERMINATED]
    assert ended == [f"t{i}" for i in range(6)]
    assert play.report(8, 2, 0.1) == "CONTINUE"
    assert play.report(8, 3, 0.1) == "PAUSE"
    assert play.report(7, 3, 0.2) == "PAUSE"
    assert play.report(6, 3, 0.3) == "PAUSE"
    assert play.resume() == ["t8"]
    assert play.report(8, 9, 0.1) == "STOP"


def test_the_last_runner_fails_while_its_peers_wait(tmp_path: Path) -> None:
    """Ray's HyperBandScheduler waits for ever here."""
    play = Play(tmp_path, 9)
    for i in range(8):
        play.report(i, 1, float(i))
    assert play.scheduler.choose_trial_to_run(play.controller) is play.trials[8]
    play.trials[8].set_status(Trial.RUNNING)
    play.scheduler.on_trial_error(play.controller, play.trials[8])
    play.trials[8].set_status(Trial.ERROR)
    assert play.resume() == ["t0", "t1", "t2"]


@pytest.mark.parametrize("bad", [math.nan, None, math.inf, -math.inf, "text"])
def test_what_is_no_number_never_wins(tmp_path: Path, bad: Any) -> None:
    """Ray's promotes NaN over finite losses, and raises at None."""
    play = Play(tmp_path, 9)
    for i in range(9):
        decision = play.report(i, 1, bad if i < 7 else float(i))
        assert decision == ("STOP" if i < 7 else "PAUSE" if i == 7 else "CONTINUE")
    assert play.resume() == ["t7"]


def test_a_bracket_that_nobody_else_joins_is_decided(tmp_path: Path) -> None:
    play = Play(tmp_path, 4)
    for i in range(4):
        assert play.report(i, 1, float(i)) == "PAUSE"
    assert play.resume() == ["t0"]
    assert play.report(0, 3, 0.0) == "CONTINUE"  # alone in its rung
    assert play.report(0, 9, 0.0) == "STOP"
    assert all(t.status == Trial.TERMINATED for t in play.trials)


def test_new_trials_enter_the_next_bracket_while_one_waits(tmp_path: Path) -> None:
    play = Play(tmp_path, 12)
    for i in range(8):
        play.report(i, 1, float(i))
    play.trials[8].set_status(Trial.RUNNING)
    assert play.resume() == ["t9", "t10", "t11"]
    assert play.report(9, 1, 0.0) == "CONTINUE"
    assert play.report(9, 3, 0.0) == "PAUSE"


def test_a_trial_that_ray_tries_again_keeps_its_place(tmp_path: Path) -> None:
    play = Play(tmp_path, 9)
    for i in range(8):
        play.report(i, 1, float(i))
    last = play.trials[8]
    last.set_status(Trial.ERROR)  # as Ray does before it tells the scheduler of a retry
    play.scheduler.on_trial_error(play.controller, last)
    last.set_status(Trial.PENDING)
    play.scheduler.on_trial_add(play.controller, last)
    assert play.chosen() == "t8"
    assert play.report(8, 1, -1.0) == "CONTINUE"
    assert play.resume() == ["t0", "t1"]


def test_the_searcher_is_told_the_budget_of_every_rung(tmp_path: Path) -> None:
    play = Play(tmp_path, 1, brackets=1)
    trial, seen = play.trials[0], []
    for epoch in range(1, 10):
        result = {"training_iteration": epoch, "loss": 1.0}
        play.scheduler.on_trial_result(play.controller, trial, result)
        seen.append(result.get(BUDGET))
        trial.set_status(Trial.PAUSED if epoch in (1, 3) else Trial.RUNNING)
        play.scheduler.choose_trial_to_run(play.controller)
    assert seen == [1, None, 3, None, None, None, None, None, 9]


def test_budgets_in_seconds(tmp_path: Path) -> None:
    play = Play(tmp_path, 4, time_attr="time_total_s", max_t=10.0, min_t=2.5, reduction_factor=2)
    flat = {"time_total_s": 2.4, "loss": 1.0, "training_iteration": 7}
    assert play.scheduler.on_trial_result(play.controller, play.trials[0], dict(flat)) == "CONTINUE"
    flat["time_total_s"] = 2.6
    assert play.scheduler.on_trial_result(play.controller, play.trials[0], dict(flat)) == "PAUSE"


def test_results_without_the_time_are_told_once(tmp_path: Path, caplog: Any) -> None:
    play = Play(tmp_path, 1, time_attr="seconds")
    result = {"training_iteration": 1, "loss": 0.5}
    for _ in range(2):
        assert (
            play.scheduler.on_trial_result(play.controller, play.trials[0], dict(result))
            == "CONTINUE"
        )
    (record,) = caplog.records
    assert "time_attr='seconds'" in record.message
    assert "has loss, training_iteration" in record.message


def test_a_blank_scheduler_takes_over_in_the_middle(tmp_path: Path) -> None:
    """What trials remember is saved by Ray with them: statuses come back as Ray restores them."""
    play = Play(tmp_path, 14)
    for i in range(9):
        play.report(i, 1, float(i))
    assert play.resume()[:3] == ["t0", "t1", "t2"]
    play.report(0, 3, 0.5)
    play.report(1, 3, 0.4)
    restored = [Trial.from_json_state(t.get_json_state()[0], stub=True) for t in play.trials]
    blank, controller = HyperBand("training_iteration", "loss", "min", 9, 3), FakeController()
    for trial in reversed(restored):
        if not trial.is_finished():
            trial.set_status(Trial.PENDING)
        controller.add(blank, trial)
    assert blank.choose_trial_to_run(controller).trial_id == "t9"  # of those that ran, the first
    by_name = {trial.trial_id: trial for trial in restored}
    assert [by_name[n].status for n in ("t0", "t1")] == [Trial.PAUSED] * 2
    assert controller.report(blank, by_name["t2"], {"training_iteration": 3, "loss": 0.6}) == (
        "PAUSE"
    )
    chosen = [blank.choose_trial_to_run(controller).trial_id for _ in range(5)]
    assert chosen == ["t10", "t11", "t12", "t13", "t1"]


class _Loop(FakeController):
    """Ray's rules for the end of a trial; what the searcher is shown then."""

    def _set_trial_status(self, trial: Any, status: str) -> None:
        trial.set_status(status)

    def stop_trial(self, trial: Any) -> None:
        if trial.status == Trial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, flatten_dict(trial.last_result))
            self.on_trial_complete(trial.trial_id, flatten_dict(trial.last_result))
        else:
            self.scheduler.on_trial_remove(self, trial)
            self.on_trial_complete(trial.trial_id)
        trial.set_status(Trial.TERMINATED)


def _restored(trials: list[Any], **options: Any) -> tuple[_Loop, dict[str, Any]]:
    """As Ray puts trials back: the newest result first, all that have not ended as pending."""
    controller = _Loop()
    controller.scheduler = HyperBand("training_iteration", "loss", "min", 9, 3, **options)
    found = [Trial.from_json_state(t.get_json_state()[0], stub=True) for t in trials]
    for trial in reversed(found):
        if not trial.is_finished():
            trial.set_status(Trial.PENDING)
        controller.add(controller.scheduler, trial)
    return controller, {trial.trial_id: trial for trial in found}


def test_all_that_were_promoted_together_are_resumed_after_a_restore(tmp_path: Path) -> None:
    play = Play(tmp_path, 9)
    for i in range(9):
        play.report(i, 1, float(i) if i < 8 else 9.0)
    assert play.chosen() == "t0"  # the others wait for their turn
    controller, trials = _restored(play.trials)
    resumed = []
    while (trial := controller.scheduler.choose_trial_to_run(controller)) is not None:
        resumed.append(trial.trial_id)
        trial.set_status(Trial.RUNNING)
    assert sorted(resumed) == ["t0", "t1", "t2"]
    assert all(trials[f"t{i}"].status == Trial.TERMINATED for i in range(3, 9))


def test_a_stop_that_a_crash_has_lost_is_made_up_for(tmp_path: Path) -> None:
    """The run died while Ray saved the trial: it neither trains on nor is its result lost."""
    play = Play(tmp_path, 1, brackets=1)
    trial = play.trials[0]
    for epoch in (1, 3):
        play.report(0, epoch, 1.0)
        play.resume()
    result = {"training_iteration": 9, "loss": 0.5}
    assert play.scheduler.on_trial_result(play.controller, trial, dict(result)) == "STOP"
    trial.set_status(Trial.RUNNING)
    trial.run_metadata.last_result = result
    runtime = trial.run_metadata
    controller, trials = _Loop(), [Trial.from_json_state(trial.get_json_state()[0], stub=True)]
    controller.scheduler = HyperBand("training_iteration", "loss", "min", 9, 3, brackets=1)
    trials[0].run_metadata = runtime
    trials[0].set_status(Trial.PENDING)
    controller.add(controller.scheduler, trials[0])
    assert controller.scheduler.choose_trial_to_run(controller) is None
    assert trials[0].status == Trial.TERMINATED
    assert controller.completed["t0"][BUDGET] == 9


def test_a_restarted_trial_does_not_tear_its_peers_apart(tmp_path: Path) -> None:
    """restart_errored: Ray adds a trial that is new here in the middle of the others."""
    play = Play(tmp_path, 9)
    for i in range(9):
        play.report(i, 1, float(i))
    play.resume()
    play.report(1, 3, 0.5)
    found = [Trial.from_json_state(t.get_json_state()[0], stub=True) for t in play.trials]
    controller = _Loop()
    controller.scheduler = HyperBand("training_iteration", "loss", "min", 9, 3)
    storage = StorageContext(str(tmp_path), experiment_dir_name="experiment")
    found.insert(2, fake_trial(storage, {"x": 99}, "new"))
    for trial in found:
        if not trial.is_finished():
            trial.set_status(Trial.PENDING)
        controller.add(controller.scheduler, trial)
    controller.scheduler.choose_trial_to_run(controller)
    inside = controller.scheduler._play
    assert [inside.memory(f"t{i}")["rung"] for i in range(3)] == [1, 1, 1]
    assert not inside.memory("t1")["out"]
    assert inside.is_paused("t1")
    assert inside.memory("new")["bracket"] == 1
    assert inside.order("new") == 9


def test_an_errored_trial_that_is_resumed_starts_anew(tmp_path: Path) -> None:
    play = Play(tmp_path, 9)
    for i in range(8):
        play.report(i, 1, float(i))
    play.trials[8].set_status(Trial.RUNNING)
    play.scheduler.on_trial_error(play.controller, play.trials[8])
    play.trials[8].set_status(Trial.ERROR)
    assert play.resume() == ["t0", "t1", "t2"]
    play.trials[8].set_status(Trial.PENDING)  # resume_errored
    controller, _ = _restored(play.trials)
    assert controller.scheduler.choose_trial_to_run(controller).trial_id in ("t0", "t8")
    memory = controller.scheduler._play.memory("t8")
    assert (memory["bracket"], memory["rung"], memory["out"]) == (1, 0, False)


def test_a_slow_save_holds_up_no_other_promotion(tmp_path: Path) -> None:
    play = Play(tmp_path, 9)
    for i in range(9):
        play.report(i, 1, float(i) if i < 8 else 9.0)
    play.trials[0].set_status(Trial.RUNNING)  # Ray still saves it
    assert play.chosen() == "t1"
    play.trials[1].set_status(Trial.RUNNING)
    assert play.chosen() == "t2"
    play.trials[2].set_status(Trial.RUNNING)
    assert play.chosen() is None
    play.trials[0].set_status(Trial.PAUSED)
    assert play.chosen() == "t0"


def test_a_step_does_not_pass_all_trials_that_wait(tmp_path: Path) -> None:
    """Ray asks at every step: with thousands that wait, passing them all is quadratic."""
    play = Play(tmp_path, 40, asynchronous=True)
    for i in range(39):
        play.report(i, 1, float(i))
    play.trials[39].set_status(Trial.RUNNING)
    play.resume()
    assert len(play.scheduler._play.waiting()) > 10
    assert len(play.scheduler._active) < 30
    assert play.chosen() is None


def test_a_limit_of_rays_own_at_the_last_rung_loses_no_result(tmp_path: Path) -> None:
    """Ray asks no scheduler at such a result; its completion is all that there is."""
    play = Play(tmp_path, 1, brackets=1)
    for epoch in (1, 3):
        play.report(0, epoch, 1.0)
        play.resume()
    trial = play.trials[0]
    trial.run_metadata.last_result = {"training_iteration": 9, "loss": 0.5, "done": True}
    play.scheduler.on_trial_complete(play.controller, trial, dict(trial.run_metadata.last_result))
    assert trial.run_metadata.last_result[BUDGET] == 9
