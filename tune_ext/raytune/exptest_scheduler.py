"""The scheduler of ExpTest: ends rungs, and tunes the learning rate of running trials."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ray.tune import Trainable
from ray.tune.experiment import Trial
from ray.tune.result import SHOULD_CHECKPOINT, TRAINING_ITERATION
from ray.tune.schedulers import FIFOScheduler
from ray.tune.trainable import FunctionTrainable

from tune_ext._checks import as_number as check_number
from tune_ext._checks import check_choice, check_count
from tune_ext._explanation import Explanation
from tune_ext._loss_monitor import REPORT_KEY, rate_in, rate_path, read_statistics
from tune_ext.errors import StateError
from tune_ext.exptest import Correction, Tuner
from tune_ext.raytune._base import RESERVED_KEY, as_number, check_name, role_of
from tune_ext.raytune._driver import Driver
from tune_ext.raytune._records import FinishedTrials, JsonFile, finish
from tune_ext.raytune._rung_watch import RungWatch
from tune_ext.raytune._trial_time import TrialTime
from tune_ext.raytune._tuning import Tuning

__all__ = ["RUNGS_FILE", "TUNING_FOLDER", "ExpTestScheduler"]

RUNGS_FILE = "exptest-rungs.json"
"""Where the rungs that have finished are recorded, in the experiment's directory."""
TUNING_FOLDER = "exptest-tuning"
"""Where the tuners of the trials are recorded, one file a trial."""

_LEAST_WINDOW = 30
"""Steps of the first window, at least, where a trial's first report sets it."""

_QUICK = 0.05
"""Seconds: a storage that takes less to write a file is written to at every result."""

logger = logging.getLogger(__name__)


class ExpTestScheduler(FIFOScheduler):
    """Lower the learning rate of a running trial when its loss has stopped to decay.

    A trial reports the statistics of its training losses (`tune_ext.LossMonitor`), and a
    `tune_ext.Tuner` tests them window by window (arXiv 2411.16975). When a window does not
    decay, the trial is paused with the checkpoint that came with the result, and resumed from it
    with the smaller rate in its config: any trainable will do that takes its rate from
    the config *after* loading a checkpoint. Iterations go on where they were.

    * A function has to report checkpoints. The change waits for the next result that comes with
      one; in between nothing is tested. Without any, the trial keeps its rate and a warning says
      so: paused, it would have to start again. A class needs `save_checkpoint`.
    * A loss that is not finite sends the trial back to its last checkpoint from before the
      window in which that happened, or to its beginning if it was the first window, with a
      smaller rate. Without such a checkpoint, or after `max_restores` times, it is stopped.
    * A pause costs what Ray takes to resume a trial: hundredths of a second where actors are
      reused (``reuse_actors=True``) while other trials wait, else seconds, as a process starts.
      Without reuse, a paused trial also stands in line behind all that Ray has staged.

    It touches no searcher and so goes with each, and needs no metric. With `ExpTestSearch`
    it also ends the rungs of the ladder, and cancels those that were begun ahead once the
    ladder has its answer. Trials that report no statistics run to `max_t` as they are. It
    takes Ray's one place for a scheduler: it cannot be combined with another (ASHA, say).

    What it knows is written beside the experiment, so that a trial goes on with its rate after a
    crash (``max_failures``) and after ``Tuner.restore``, and no step counts twice.

    Args:
        time_attr: The result that counts a trial's time.
        max_t: When trials are stopped, in units of `time_attr`.
        metric: Accepted as by every scheduler, and not used.
        mode: Accepted likewise.
        window: Steps of the first window. None: as many as the trial's first report covers,
            usually one epoch, and 30 at least.
        alpha: Level of the tests.
        beta: A decay multiplies the rate by this, and divides the window by it.
        min_lr: The rate never falls below, except where a trial begins below.
        lr: Where the rate is in the config, nested names separated by slashes, unless the
            searcher says where. What a trial has found for "exptest" there (see
            `tune_ext.LossMonitor.resolve`) is replaced by a decay like any number.
        max_restores: How often a trial may go back.
        correction: For repeated testing, see `tune_ext.Tuner`.
        autocorrelation: See `tune_ext.DecayTest`.
        transform: As that of the trials' `LossMonitor`.

    Raises:
        InvalidValueError: An argument that cannot work; the message says which.
        InvalidTypeError: An argument of the wrong type.

    >>> scheduler = ExpTestScheduler(max_t=50, beta=0.5)
    >>> scheduler.debug_string()
    'ExpTestScheduler: trials end at training_iteration 50; no rate has changed yet'
    """

    _supports_buffered_results = False

    def __init__(
        self,
        time_attr: str = "training_iteration",
        max_t: int = 100,
        *,
        metric: str | None = None,
        mode: str | None = None,
        window: int | None = None,
        alpha: float = 0.05,
        beta: float = 0.33,
        min_lr: float = 0.0,
        lr: str = "lr",
        max_restores: int = 5,
        correction: Correction = "spending",
        autocorrelation: Literal["ar1", "none"] = "ar1",
        transform: Literal["log", "identity"] = "log",
    ) -> None:
        super().__init__()
        check_name("time_attr", time_attr)
        check_name("lr", lr, "the learning rate in the configuration")
        if metric is not None:
            check_name("metric", metric)
        check_choice("mode", mode, ("min", "max", None))
        self.time_attr, self.lr = time_attr, lr
        self._time = TrialTime(time_attr)
        self.max_t = check_count("max_t", max_t)
        self.window = None if window is None else check_count("window", window, 3)
        self.max_restores = check_count("max_restores", max_restores, 0)
        self.min_lr = check_number("min_lr", min_lr)
        self._options: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "correction": correction,
            "autocorrelation": autocorrelation,
            "transform": transform,
        }
        # Whatever cannot work shall say so here, and not when the first trial reports.
        Tuner(max(self.min_lr, 1.0), self.window or 3, min_lr=self.min_lr, **self._options)
        self._rungs = RungWatch()
        self._finished: FinishedTrials | None = None
        self._driver = Driver()
        self._tunings: dict[str, Tuning] = {}
        self._files: dict[str, _Paced] = {}
        self._said: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Leave the experiment's metric alone: what is tested is the training loss."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Answer a rung that is known; give a trial that goes on the rate that it had."""
        self._driver.hold(trial)
        if _is_rung(trial):
            self._add_rung(tune_controller, trial)
        elif trial.status == Trial.PENDING:
            self._resume(trial)

    def _add_rung(self, tune_controller: Any, trial: Any) -> None:
        finished = self._recorded(trial)
        if trial.status == Trial.TERMINATED:
            finished.forget_earlier(trial.trial_id)
            self._rungs.ended(trial, trial.last_result or {})
            return
        self._rungs.add(trial)
        record = finished.take(trial) if trial.status == Trial.PENDING else None
        if record is not None:
            finish(tune_controller, trial, record)
            self._rungs.ended(trial, record["result"])

    def _resume(self, trial: Any) -> None:
        """Put the tuner, and the rate, back to where the trial's checkpoint is."""
        checkpoint = trial.latest_checkpoint_result
        if trial.trial_id not in self._tunings and checkpoint is None:
            return
        tuning = self._tuning(trial)
        tuning.rewind(0 if checkpoint is None else _iteration(checkpoint.metrics))
        self._set_rate(trial, tuning)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on, and with which rate."""
        over = self._is_over(trial, result)
        if _is_rung(trial):
            complete = self._rungs.reported(trial, result)
            if over and not complete:
                ends = f"max_t={self.max_t} ({self.time_attr})"
                self._say_once(trial, f"is a rung that fails, as it needs more time than {ends}")
            return str(self.STOP if over or complete else self.CONTINUE)
        tuning = self._test(trial, result)
        if tuning is None:
            return str(self.STOP if over else self.CONTINUE)
        said = self._decide(tune_controller, trial, result, tuning, over)
        self._file(trial).write(tuning.state_dict(), now=tuning.action is not None)
        return said

    def _is_over(self, trial: Any, result: Mapping[str, Any]) -> bool:
        time = self._time.read(trial.trial_id, result)
        if time is None:
            what = f"reports no {self.time_attr!r} (time_attr)"
            self._say_once(trial, f"{what}; max_t ends no trial at such a result")
        return time is not None and time >= self.max_t

    def _test(self, trial: Any, result: Mapping[str, Any]) -> Tuning | None:
        """Let the trial's tuner see the result; None if it cannot be tuned."""
        statistics = read_statistics(result)
        iteration = as_number(result.get(TRAINING_ITERATION))
        if statistics is None or iteration is None:
            self._say_once(trial, "reports no statistics of its losses (see tune_ext.LossMonitor)")
            return None
        transform, ours = statistics.get("transform"), self._options["transform"]
        if transform not in (None, ours):
            self._say_once(trial, f"tests its losses by transform={transform!r}, not {ours!r}")
            return None
        path = rate_path(trial.config, self.lr)
        rate = rate_in(trial.config, path)
        rate = rate if isinstance(rate, float) else as_number(statistics.get("lr"))
        if rate is None or rate <= 0:
            self._say_once(trial, f"has no learning rate {path!r} in its config")
            return None
        tuning, window = self._tuning(trial), self.window
        try:
            first = max(statistics["steps"], _LEAST_WINDOW) if window is None else window
            tuning.tell(int(iteration), statistics, rate, first)
        except StateError as error:
            self._say_once(trial, f"reports statistics that cannot be read ({error})")
        return None if tuning.lr is None else tuning

    def _decide(
        self,
        tune_controller: Any,
        trial: Any,
        result: dict[str, Any],
        tuning: Tuning,
        over: bool,
    ) -> str:
        result[f"{REPORT_KEY}/lr"], result[f"{REPORT_KEY}/window"] = tuning.lr, tuning.window
        if tuning.action is not None and tuning.action.kind == "restore":
            return self._restore(tune_controller, trial, tuning)
        if over:
            return str(self.STOP)
        if not tuning.waits:
            return str(self.CONTINUE)
        if not _is_saved(trial, result):
            self._say_once(
                trial,
                "should go on with a smaller rate, but has no checkpoint to go on from: "
                "it keeps its rate until it reports one",
            )
            return str(self.CONTINUE)
        self._set_rate(trial, tuning)
        return str(self.PAUSE)

    def _restore(self, tune_controller: Any, trial: Any, tuning: Tuning) -> str:
        """Send a trial whose loss is not finite back, without saving what it is now."""
        found = _good_checkpoint(trial, tuning.window_start, tuning.iteration)
        often = tuning.restores > self.max_restores
        if often or (found is None and tuning.window_start > 0):
            why = "too often" if often else "and it has no checkpoint to go back to"
            logger.warning("%s is stopped: its loss was not finite %s", trial, why)
            return str(self.STOP)
        tuning.go_back(0 if found is None else _iteration(found.metrics))
        self._set_rate(trial, tuning)
        # Ray resumes a paused trial from what it takes for the latest checkpoint.
        trial.run_metadata.checkpoint_manager._latest_checkpoint_result = found
        trial.run_metadata.invalidate_cache()
        tune_controller.pause_trial(trial, should_checkpoint=False)
        return str(self.NOOP)

    def on_trial_complete(
        self, tune_controller: Any, trial: Any, result: Mapping[str, Any]
    ) -> None:
        """Record that a rung has finished."""
        if not _is_rung(trial):
            self._files.pop(trial.trial_id, None)
            if trial.trial_id in self._tunings:
                self._tunings[trial.trial_id].forget()
            return
        self._rungs.ended(trial, result)
        if self._rungs.reported(trial, result):
            self._recorded(trial).add(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note that a rung has crashed."""
        if _is_rung(trial):
            self._rungs.errored(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Cancel the rungs that nobody needs; resume what is paused before anything starts."""
        self._driver.step(tune_controller)
        # Not when the last needed rung reports: the searcher has not seen that result yet.
        for trial in self._rungs.unneeded():
            tune_controller.stop_trial(trial)
        for trial in tune_controller.get_trials():
            if trial.status == Trial.PAUSED:
                return trial
        return super().choose_trial_to_run(tune_controller)

    def explain(self) -> Explanation:
        """Every window of every trial, in the order of the trials: how its rate went down."""
        return Explanation(
            tuple(
                {"trial": trial_id, **row}
                for trial_id, tuning in self._tunings.items()
                for row in tuning.rows()
            )
        )

    def debug_string(self) -> str:
        """One line for Ray's progress report."""
        ends = f"{type(self).__name__}: trials end at {self.time_attr} {self.max_t}; "
        paths = [self._rates(trial_id) for trial_id in self._tunings]
        changed = [path for path in paths if path]
        if not changed:
            return ends + "no rate has changed yet"
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        return ends + "; ".join(changed[-5:]) + more

    def _rates(self, trial_id: str) -> str:
        rows = [
            row for row in self._tunings[trial_id].rows() if row["event"] in ("decay", "restore")
        ]
        steps = [f"{row['lr']:.3g} after {row['iteration']}" for row in rows]
        return f"{trial_id}: {', '.join(steps)}" if steps else ""

    def _recorded(self, trial: Any) -> FinishedTrials:
        if self._finished is None or not self._finished.belongs_to(trial.storage):
            self._finished = FinishedTrials(trial.storage, RUNGS_FILE, "rungs")
        return self._finished

    def _tuning(self, trial: Any) -> Tuning:
        """The tuner of a trial; that of an earlier session, if it is new to this one."""
        if trial.trial_id not in self._tunings:
            tuning = self._tunings[trial.trial_id] = Tuning(
                functools.partial(_make_tuner, self.min_lr, self._options)
            )
            if trial.latest_checkpoint_result is not None:
                self._file(trial).read_into(tuning)
        return self._tunings[trial.trial_id]

    def _file(self, trial: Any) -> _Paced:
        if trial.trial_id not in self._files:
            folder = f"{trial.storage.experiment_fs_path}/{TUNING_FOLDER}"
            file = JsonFile(trial.storage.storage_filesystem, f"{folder}/{trial.trial_id}.json")
            self._files[trial.trial_id] = _Paced(file)
        return self._files[trial.trial_id]

    def _set_rate(self, trial: Any, tuning: Tuning) -> None:
        path, rate = rate_path(trial.config, self.lr), tuning.lr
        if rate is not None and rate_in(trial.config, path) != rate:
            trial.set_config(_with_rate(trial.config, path, rate))

    def _say_once(self, trial: Any, said: str) -> None:
        kind = said.partition("(")[0]
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("%s %s. This is said once, whatever other trials do.", trial, said)


class _Paced:
    """Writes a trial's tuner; where that is slow, only what matters at once, and little else."""

    def __init__(self, file: JsonFile, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._not_before = -math.inf

    def read_into(self, tuning: Tuning) -> None:
        document = self._file.read()
        if document is None:
            return
        try:
            tuning.load_state_dict(document)
        except StateError as error:
            logger.warning("Ignoring %s: %s", self._file.path, error)

    def write(self, document: Any, *, now: bool) -> None:
        start = self._clock()
        if now or start >= self._not_before:
            self._file.write(document)
            end = self._clock()
            self._not_before = end if end - start < _QUICK else end + 20 * (end - start)


def _make_tuner(min_lr: float, options: Mapping[str, Any], lr: float, window: int) -> Tuner:
    return Tuner(lr, window, min_lr=min(min_lr, lr), **options)


def _is_rung(trial: Any) -> bool:
    ours = trial.config.get(RESERVED_KEY)
    return role_of(trial.config) == "rung" and isinstance(ours.get("ladder"), Mapping)


def _is_saved(trial: Any, result: Mapping[str, Any]) -> bool:
    """Whether a trial that is paused at this result can go on from it."""
    trainable = trial.get_trainable_cls()
    if trainable is None or issubclass(trainable, FunctionTrainable):
        return bool(result.get(SHOULD_CHECKPOINT, False))
    return trainable.save_checkpoint is not Trainable.save_checkpoint


def _iteration(metrics: Mapping[str, Any]) -> int:
    return int(as_number(metrics.get(TRAINING_ITERATION)) or 0)


def _good_checkpoint(trial: Any, window_start: int, iteration: int) -> Any:
    """The last checkpoint from before a window, or else the first one inside of it.

    None in the first window: the beginning is the better place to go back to.
    """
    manager = trial.run_metadata.checkpoint_manager
    found = [r for r in (*manager.best_checkpoint_results, manager.latest_checkpoint_result) if r]
    before = [r for r in found if _iteration(r.metrics) <= window_start]
    if before:
        return max(before, key=lambda r: _iteration(r.metrics))
    inside = [r for r in found if window_start < _iteration(r.metrics) < iteration]
    if window_start == 0 or not inside:
        return None
    return min(inside, key=lambda r: _iteration(r.metrics))


def _with_rate(config: Mapping[str, Any], path: str, rate: float) -> dict[str, Any]:
    """A copy of a configuration with another rate."""
    name, _, rest = (path, "", "") if path in config else path.partition("/")
    nested = config.get(name)
    inner = nested if isinstance(nested, Mapping) else {}
    return {**config, name: _with_rate(inner, rest, rate) if rest else rate}
