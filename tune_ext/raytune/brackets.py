"""Hyperband for Ray Tune: a thin adapter over `tune_ext.brackets`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from tune_ext._bracket_table import Rounding, bracket_table
from tune_ext._checks import check_choice, check_count, check_flag
from tune_ext.brackets import Brackets, Decision
from tune_ext.errors import InvalidValueError, StateError
from tune_ext.raytune._base import check_name, loss_of, unchecked
from tune_ext.raytune._driver import Driver
from tune_ext.raytune._trial_time import TrialTime

__all__ = ["BUDGET", "HyperBand"]

logger = logging.getLogger(__name__)

BUDGET = "hyperband_budget"
"""In a result at which a trial was judged: the budget of its rung. `BOHBSearch` reads it."""

_MEMORY = "tune_ext_bracket"  # the attribute of a trial, which Ray saves with it


class HyperBand(FIFOScheduler):
    """Hyperband by pausing and resuming trials, synchronous or not; it always ends.

    New configurations enter the next bracket while others wait, so that no worker is idle while
    there is anything to run. A rung that nobody else will join is decided with those it has. What
    a trial remembers of its bracket is saved by Ray together with the trial, so a run goes on
    after ``Tuner.restore`` where the snapshot was. NaN, None, infinite and missing metrics are
    never promoted (Ray itself ends a run in which a metric of ``TuneConfig`` is missing).

    Trials are resumed from their last checkpoint: report one at least at the rungs' budgets, or
    a resumed trial starts from scratch.

    Source: Li et al., "Hyperband", JMLR 18 (2018); the asynchronous promotion is that of Li et
    al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.

    Args:
        time_attr: The result in which budgets are counted: ``training_iteration``, or seconds as
            in ``time_total_s``.
        metric: What is compared; None takes the experiment's.
        mode: "min" or "max"; None takes the experiment's.
        max_t: R, after which a trial is stopped: at its first result that has reached it, so
            seconds are overshot by one report's time at most.
        reduction_factor: η: one of η trials goes on to the next rung.
        min_t: The least that a trial gets.
        asynchronous: Promote a trial as soon as it is among the best 1/η of its rung so far,
            and wait for nobody.
        brackets: How many brackets at most, from the one that starts most trials; None: all.
            1 is successive halving.
        rounding: How many trials a bracket starts; see `tune_ext.brackets.bracket_table`.

    Raises:
        InvalidTypeError: An argument of the wrong type.
        InvalidValueError: An argument has an impossible value.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        time_attr: str = "training_iteration",
        metric: str | None = None,
        mode: str | None = None,
        max_t: float = 81,
        reduction_factor: float = 3,
        min_t: float = 1,
        asynchronous: bool = False,
        brackets: int | None = None,
        rounding: Rounding = "formula",
    ) -> None:
        super().__init__()
        check_name("time_attr", time_attr)
        if metric is not None:
            check_name("metric", metric)
        check_choice("mode", mode, ("min", "max", None))
        table = bracket_table(
            max_t,
            reduction_factor,
            min_budget=min_t,
            rounding=rounding,
            whole=time_attr == "training_iteration",
        )
        if brackets is not None and not 1 <= check_count("brackets", brackets, 0) <= len(table):
            raise InvalidValueError(f"brackets must be in 1 to {len(table)}, got {brackets!r}")
        self._table, self._eta = table[:brackets], reduction_factor
        self._asynchronous = check_flag("asynchronous", asynchronous)
        self._time_attr, self._mode = time_attr, mode
        self._time = TrialTime(time_attr)
        self._metric = unchecked(metric)
        self._play = Brackets(self._table, self._eta, asynchronous=self._asynchronous)
        self._recalled: dict[str, tuple[Any, Mapping[str, Any]]] = {}
        self._trials: dict[str, Any] = {}
        self._active: dict[str, Any] = {}  # of these, all that run or could, and perhaps more
        self._new: list[Any] = []  # trials to let in, after those that are recalled
        self._over: list[Any] = []  # trials whose stop was decided, and lost in a crash
        self._last_rung: dict[str, float] = {}  # of trials that were told to stop
        self._resumable: dict[str, bool] = {}  # whether Ray was given the trial
        self._turns: dict[str, int] = {}  # in which order trials could last be started
        self._next_turn = 0
        self._interrupted: list[Any] = []  # trials that a restore has to start again, in turn
        self._warned = False
        self._driver = Driver()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the experiment's metric and mode for what the constructor left open."""
        self._metric = self._metric or unchecked(metric)
        self._mode = self._mode or mode
        return self._metric is not None and self._mode is not None

    # --- events

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let a new trial in; put one back that Ray has restored or tries again."""
        self._driver.hold(trial)
        memory = getattr(trial, _MEMORY, None)
        name = trial.trial_id
        self._trials[name] = self._active[name] = trial
        self._time.forget(name)
        if name in self._play:
            if trial.is_finished() or not self._play.memory(name)["out"]:
                return
            if self._play.memory(name)["failed"]:
                self._play.forget(name)
                self._new.append(trial)
            else:
                self._over.append(trial)
        elif memory is not None:
            self._recalled[name] = (trial, memory)
            if memory["waits"] and not trial.is_finished():
                trial.set_status(Trial.PAUSED)
        elif not trial.is_finished():
            self._new.append(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on, waits or has come far enough."""
        self._settle()
        spent = self._time.read(trial.trial_id, result)
        if spent is None:
            self._warn_of_time(result)
            return str(self.CONTINUE)
        if trial.trial_id not in self._play:
            return str(self.STOP)
        due = self._play.budget(trial.trial_id)
        decision = self._play.report(trial.trial_id, spent, self._loss(result))
        if decision is Decision.CONTINUE and self._play.budget(trial.trial_id) == due:
            return str(self.CONTINUE)
        result[BUDGET] = due
        self._remember(trial)
        if decision is Decision.PAUSE:
            _tell_searcher(tune_controller, "on_pause", trial)
            return str(self.PAUSE)
        if decision is Decision.CONTINUE:
            return str(self.CONTINUE)
        self._last_rung[trial.trial_id] = due
        return str(self.STOP)

    def on_trial_complete(
        self, tune_controller: Any, trial: Any, result: Mapping[str, Any]
    ) -> None:
        """A trial has ended, by itself or because it was stopped."""
        self._settle()
        self._time.forget(trial.trial_id)
        due = self._last_rung.pop(trial.trial_id, None)
        if trial.trial_id in self._play and not self._play.memory(trial.trial_id)["out"]:
            due = self._play.budget(trial.trial_id)  # it ended by itself, or at Ray's own limit
        if due is not None and trial.run_metadata.last_result:
            # Ray shows a searcher the result of a STOP only now, and as the trial keeps it.
            trial.run_metadata.last_result[BUDGET] = due
        self._play.end(trial.trial_id, self._loss(result))
        self._remember(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A trial has failed. One that Ray tries again keeps its place.

        Ray tells a searcher of a failure without a result: it is told of the rung here.
        """
        if trial.status == Trial.ERROR:  # Ray adds it again at once
            return
        due = self._drop(trial)
        if due is not None:
            _tell_of_failure(tune_controller, trial, due)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial that waited is taken away."""
        self._drop(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Prefer trials that were promoted to new ones; stop those that never will be."""
        self._driver.step(tune_controller)
        self._settle()
        self._stop_again(tune_controller)
        for name, trial in list(self._active.items()):
            if trial.is_finished() or (trial.status == Trial.PAUSED and self._play.is_paused(name)):
                del self._active[name]
        waiting = [t for t in self._active.values() if t.status == Trial.PENDING]
        nothing_comes = _no_more(tune_controller) or not (waiting or self._others())
        if nothing_comes and not self._play.closed:
            self._play.close()
        self._stop_dismissed(tune_controller)
        chosen = self._put_back() or self._promoted(tune_controller)
        if chosen is None:
            chosen = min(waiting, key=lambda t: self._play.order(t.trial_id), default=None)
        return chosen

    def debug_string(self) -> str:
        """One line for Ray's progress report."""
        how = "asynchronous" if self._asynchronous else "synchronous"
        rungs = ", ".join(f"{rung.budget:g}" for rung in self._table[0])
        waiting = len(self._play.waiting())
        return f"HyperBand ({how}), {len(self._table)} brackets, rungs at {rungs}; {waiting} wait"

    # --- private

    def _warn_of_time(self, result: Mapping[str, Any]) -> None:
        if not self._warned:
            logger.warning(
                "HyperBand(time_attr=%r): a result has no such number, and its trial goes on "
                "without being judged; the result has %s",
                self._time_attr,
                ", ".join(sorted(map(str, result))),
            )
        self._warned = True

    def _loss(self, result: Mapping[str, Any]) -> float | None:
        return loss_of(result, self._metric, self._mode)

    def _settle(self) -> None:
        """Put restored trials back, once all of them are known."""
        recalled, self._recalled = self._recalled, {}
        new, self._new = self._new, []
        if recalled:
            self._recall(recalled)
        for name, (trial, memory) in recalled.items():
            if trial.is_finished():
                if not memory["out"]:
                    self._play.fail(name)
            elif memory["out"] and memory["failed"]:  # Ray was asked to try it again
                self._play.forget(name)
                new.append(trial)
            elif memory["out"]:
                self._over.append(trial)
        started = [t for t, m in recalled.values() if not (m["waits"] or m["out"])]
        self._interrupted += sorted(started, key=lambda trial: self._turns[trial.trial_id])
        for trial in new:
            if not trial.is_finished():
                self._play.add(trial.trial_id)
                self._may_start(trial)

    def _recall(self, recalled: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> None:
        try:
            self._play.recall({name: memory for name, (_, memory) in recalled.items()})
        except StateError as error:
            raise StateError(
                f"{error}; the experiment was run with another HyperBand: restore it with the "
                "same max_t, min_t, reduction_factor, brackets and asynchronous"
            ) from error
        for name, (_, memory) in recalled.items():
            turn = self._turns[name] = int(memory.get("turn", memory["number"]))
            self._next_turn = max(self._next_turn, turn + 1)

    def _may_start(self, trial: Any) -> None:
        self._turns[trial.trial_id] = self._next_turn
        self._next_turn += 1
        self._remember(trial)

    def _remember(self, trial: Any) -> None:
        """Note on the trial what is to be known of it after a restore."""
        name = trial.trial_id
        if name in self._play:
            setattr(trial, _MEMORY, {**self._play.memory(name), "turn": self._turns[name]})
            trial.invalidate_json_state()

    def _drop(self, trial: Any) -> float | None:
        """Take a trial out; the budget at which it would have been judged next, if any."""
        self._settle()
        due = self._play.fail(trial.trial_id)
        self._remember(trial)
        return due

    def _others(self) -> bool:
        """Whether anything runs, or could, without deciding a rung that is not full."""
        if self._resumable:
            return True
        return any(trial.status == Trial.RUNNING for trial in self._active.values())

    def _stop_again(self, tune_controller: Any) -> None:
        """Stop trials that had been told to when the run, or the actor that saved, died."""
        over, self._over = self._over, []
        for trial in over:
            if not trial.is_finished():
                self._last_rung[trial.trial_id] = self._play.budget(trial.trial_id)
                # As if it ran: a searcher is shown the last result of no other trial.
                tune_controller._set_trial_status(trial, Trial.RUNNING)
                tune_controller.stop_trial(trial)

    def _stop_dismissed(self, tune_controller: Any) -> None:
        for name in self._play.dismiss():
            trial = self._trials[name]
            if not trial.is_finished():
                self._remember(trial)
                tune_controller.stop_trial(trial)

    def _put_back(self) -> Any:
        """The next trial that ran, or was to, when the run was interrupted.

        Ray had queued them before any that can be promoted now; it has forgotten that.
        """
        while self._interrupted:
            trial = self._interrupted.pop(0)
            if trial.status == Trial.PENDING:
                return trial
        return None

    def _promoted(self, tune_controller: Any) -> Any:
        """A promoted trial that Ray has paused for good; the question changes nothing."""
        for name, given in list(self._resumable.items()):
            status = self._trials[name].status
            if status != Trial.PAUSED and (given or status != Trial.RUNNING):
                del self._resumable[name]
        while True:
            for name in self._resumable:
                if self._trials[name].status == Trial.PAUSED:
                    self._resumable[name] = True
                    return self._trials[name]
            # Those that Ray still saves hold nobody up.
            promoted = self._play.promote()
            if promoted is None:
                return None
            trial = self._active[promoted] = self._trials[promoted]
            if trial.is_finished():
                self._play.fail(promoted)
                continue
            self._may_start(trial)
            _tell_searcher(tune_controller, "on_unpause", trial)
            if trial.status in (Trial.PAUSED, Trial.RUNNING):
                self._resumable[promoted] = False


def _tell_searcher(tune_controller: Any, what: str, trial: Any) -> None:
    """Tell a searcher that counts the trials that run, if all that it wraps can be told."""
    first = searcher = getattr(tune_controller.search_alg, "searcher", None)
    while searcher is not None:
        if not hasattr(searcher, what):
            return
        searcher = getattr(searcher, "searcher", None)
    if first is not None:
        getattr(first, what)(trial.trial_id)


def _tell_of_failure(tune_controller: Any, trial: Any, budget: float) -> None:
    """Tell the first searcher, within whatever wraps it, that learns of failures at budgets.

    One that knows the trial by another name does not know this one, and leaves it.
    """
    searcher = getattr(tune_controller.search_alg, "searcher", None)
    while searcher is not None and not hasattr(searcher, "on_failure"):
        searcher = getattr(searcher, "searcher", None)
    if searcher is not None:
        searcher.on_failure(trial.trial_id, budget)


def _no_more(tune_controller: Any) -> bool:
    finished = getattr(tune_controller.search_alg, "is_finished", None)
    return bool(finished and finished())
