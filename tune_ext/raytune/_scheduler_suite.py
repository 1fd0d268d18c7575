"""The conformance suite for schedulers; see `tune_ext.raytune.testing`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from tune_ext.raytune._play import (
    CRASH,
    INVALID,
    MISSING,
    FakeController,
    fake_trial,
    global_random_state,
)

__all__ = ["SchedulerConformance"]


class SchedulerConformance:
    """What Ray, and a user, may expect of a scheduler.

    Attributes:
        metric: What it watches.
        epochs: A trial that reports this many epochs has been stopped by then; None if the
            scheduler stops nothing.
    """

    metric: str = "loss"
    epochs: int | None = 4

    def make(self, **options: Any) -> Any:
        """Make a scheduler from `metric` and `mode`."""
        raise NotImplementedError

    def config(self, number: int) -> dict[str, Any]:
        """The configuration of one of several trials."""
        return {"lr": 10.0**-number}

    def ready(self, **options: Any) -> Any:
        """A scheduler as Ray hands it to the control loop."""
        return self.make(**{"metric": self.metric, "mode": "min", **options})

    def population(self, scheduler: Any, tmp_path: Path, count: int = 3) -> tuple[Any, list[Any]]:
        """A controller with some pending trials."""
        controller = FakeController()
        storage = StorageContext(str(tmp_path), experiment_dir_name="experiment")
        trials = [fake_trial(storage, self.config(i), f"trial{i}") for i in range(count)]
        for trial in trials:
            controller.add(scheduler, trial)
        return controller, trials

    def result(self, epoch: int, value: Any) -> dict[str, Any]:
        """A result of one epoch; `MISSING` leaves the metric out."""
        result = {"training_iteration": epoch, "time_total_s": float(epoch), "done": False}
        return result if value == MISSING else {**result, self.metric: value}

    def decisions(self, scheduler: Any, tmp_path: Path, values: Callable[[int, int], Any]) -> Any:
        """Run three trials in turn; `values(trial, epoch)` is what each reports."""
        controller, trials = self.population(scheduler, tmp_path)
        made: dict[str, list[str]] = {trial.trial_id: [] for trial in trials}
        for _ in range(3 * (self.epochs or 4)):
            for number, trial in enumerate(trials):
                if trial.status in (Trial.PENDING, Trial.RUNNING):
                    epoch = len(made[trial.trial_id]) + 1
                    result = self.result(epoch, values(number, epoch))
                    made[trial.trial_id].append(controller.report(scheduler, trial, result))
            chosen = scheduler.choose_trial_to_run(controller)
            if chosen is not None and chosen.status == Trial.PAUSED:
                chosen.set_status(Trial.PENDING)
        return made

    def test_decisions_are_legal_and_trials_end(self, tmp_path: Path) -> None:
        """CONTINUE, PAUSE, STOP or NOOP; and in time."""
        scheduler = self.ready()
        made = self.decisions(scheduler, tmp_path, lambda trial, epoch: 0.1 * trial)
        legal = {scheduler.CONTINUE, scheduler.PAUSE, scheduler.STOP, scheduler.NOOP}
        assert all(set(list_) <= legal for list_ in made.values())
        if self.epochs is not None:
            assert all(scheduler.STOP in list_ for list_ in made.values()), made

    def test_invalid_metrics_do_not_raise(self, tmp_path: Path) -> None:
        """NaN, None, infinite or missing: one trial's trouble."""
        for index, bad in enumerate(v for v in INVALID if v != CRASH):

            def values(trial: int, epoch: int, bad: Any = bad) -> Any:
                return bad if trial == 1 else 0.1 * epoch

            self.decisions(self.ready(), tmp_path / str(index), values)

    def test_results_reach_the_searcher_whole(self, tmp_path: Path) -> None:
        """The dictionary goes on to the searcher: a scheduler may add to it, not take."""
        scheduler = self.ready()
        controller, trials = self.population(scheduler, tmp_path)
        result = {"trial_id": trials[0].trial_id, **self.result(1, 0.5), "other": 7}
        before = dict(result)
        trials[0].set_status(Trial.RUNNING)
        scheduler.on_trial_result(controller, trials[0], result)
        assert before.items() <= result.items()

    def test_a_trial_may_be_added_again(self, tmp_path: Path) -> None:
        """Ray does so on each retry, after on_trial_error."""
        scheduler = self.ready()
        controller, trials = self.population(scheduler, tmp_path)
        controller.report(scheduler, trials[0], self.result(1, 0.5))
        scheduler.on_trial_error(controller, trials[0])
        trials[0].set_status(Trial.PENDING)
        scheduler.on_trial_add(controller, trials[0])
        for epoch in (1, 2):
            assert controller.report(scheduler, trials[0], self.result(epoch, 0.5))

    def test_finished_trials_come_back_after_a_restore(self, tmp_path: Path) -> None:
        """A blank scheduler is told of every trial, those included, and runs none of them."""
        scheduler = self.ready()
        controller, _ = self.population(scheduler, tmp_path, count=0)
        storage = StorageContext(str(tmp_path), experiment_dir_name="experiment")
        ended, waiting = (fake_trial(storage, self.config(i), f"trial{i}") for i in (0, 1))
        ended.run_metadata.last_result = self.result(3, 0.5)
        ended.set_status(Trial.TERMINATED)
        controller.add(scheduler, ended)
        controller.add(scheduler, waiting)
        assert ended.status == Trial.TERMINATED
        assert scheduler.choose_trial_to_run(controller) is not ended
        assert controller.report(scheduler, waiting, self.result(1, 0.5))

    def test_a_blank_scheduler_goes_on_as_the_lost_one_would_have(self, tmp_path: Path) -> None:
        """Ray never saves a scheduler: after a restore it knows the trials' last results."""
        scheduler = self.ready()
        controller, trials = self.population(scheduler, tmp_path)
        for number, trial in enumerate(trials):
            controller.report(scheduler, trial, self.result(1, 0.1 * number))
        blank, restored = self.ready(), FakeController()
        for trial in trials:
            trial.set_status(Trial.PENDING if not trial.is_finished() else trial.status)
            restored.add(blank, trial)
        for number, trial in enumerate(trials):
            if not trial.is_finished():
                flat = {"trial_id": trial.trial_id, **self.result(2, 0.1 * number)}
                trial.set_status(Trial.RUNNING)
                expected = scheduler.on_trial_result(controller, trial, dict(flat))
                assert blank.on_trial_result(restored, trial, dict(flat)) == expected

    def test_the_trial_to_run_is_one_that_waits(self, tmp_path: Path) -> None:
        """And the question changes nothing."""
        scheduler = self.ready()
        controller, _ = self.population(scheduler, tmp_path)
        chosen = scheduler.choose_trial_to_run(controller)
        assert chosen is scheduler.choose_trial_to_run(controller)
        assert chosen is None or chosen.status in (Trial.PENDING, Trial.PAUSED)

    def test_a_pending_trial_may_be_removed(self, tmp_path: Path) -> None:
        """The user stops a trial that has not started."""
        scheduler = self.ready()
        controller, trials = self.population(scheduler, tmp_path)
        trials[0].set_status(Trial.TERMINATED)
        scheduler.on_trial_remove(controller, trials[0])
        assert scheduler.choose_trial_to_run(controller) is not trials[0]

    def test_the_global_random_state_is_untouched(self, tmp_path: Path) -> None:
        """The caller's own random numbers must not depend on the scheduler."""
        before = global_random_state()
        self.decisions(self.ready(), tmp_path, lambda trial, epoch: 0.1 * trial)
        assert global_random_state() == before

    def test_max_is_the_mirror_of_min(self, tmp_path: Path) -> None:
        """Maximising the negated metric gives the same decisions."""
        least = self.decisions(self.ready(), tmp_path / "min", lambda trial, epoch: 0.1 * trial)
        most = self.decisions(
            self.ready(mode="max"), tmp_path / "max", lambda trial, epoch: -0.1 * trial
        )
        assert least == most

    def test_metric_and_mode_may_come_from_the_experiment(self, tmp_path: Path) -> None:
        """The constructor leaves them open; set_search_properties fills them."""
        scheduler = self.make()
        assert scheduler.set_search_properties(self.metric, "min")
        own = self.decisions(self.ready(), tmp_path / "own", lambda trial, epoch: 0.1 * trial)
        given = self.decisions(scheduler, tmp_path / "given", lambda trial, epoch: 0.1 * trial)
        assert own == given

    def test_it_pickles_and_says_something(self) -> None:
        """Tuner pickles the scheduler before the run; Ray prints a line of it."""
        twin = cloudpickle.loads(cloudpickle.dumps(self.ready()))
        assert isinstance(twin.debug_string(), str)
