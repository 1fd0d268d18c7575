"""The scheduler of autoHyper: ends probes, runs final trials on from the winner's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from tune_ext._checks import check_choice, check_count
from tune_ext.errors import InvalidValueError
from tune_ext.raytune._base import (
    RESERVED_KEY,
    check_name,
    is_diverged,
    role_of,
)
from tune_ext.raytune._driver import Driver
from tune_ext.raytune._records import FinishedTrials, checkpoint_of, finish
from tune_ext.raytune._trial_time import TrialTime

__all__ = ["FILE_NAME", "AutoHyperScheduler"]

FILE_NAME = "autohyper-probes.json"
"""Where the probes that have finished are recorded, in the experiment's directory."""


class AutoHyperScheduler(FIFOScheduler):
    """End probes at `probe_epochs` and run final trials to `max_t`.

    A probe that has diverged (its metric is no finite number, or it reported
    ``diverged=True``) is stopped at once. A final trial goes on from the last checkpoint of the
    probe that won, where it left one, and starts from scratch otherwise. What has finished is
    recorded beside the experiment as soon as it has, so that ``Tuner.restore`` trains no
    finished probe again, whenever the driver was killed.

    A trial whose configuration does not say that it is a probe is treated as a final one.

    Args:
        time_attr: The result that counts epochs.
        probe_epochs: Epochs of a probe; the same as the searcher's.
        max_t: Epochs of a final trial, those of its probe included.
        metric: The response, watched for divergence; None is ``response_mean``.
        mode: Accepted as by every scheduler; divergence has no direction.

    Raises:
        InvalidValueError: `probe_epochs` is below 1, or `max_t` below `probe_epochs`.
        InvalidTypeError: An argument of the wrong type.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        time_attr: str = "training_iteration",
        probe_epochs: int = 5,
        max_t: int = 100,
        metric: str | None = None,
        mode: str | None = None,
    ) -> None:
        super().__init__()
        check_name("time_attr", time_attr)
        if metric is not None:
            check_name("metric", metric)
        check_choice("mode", mode, ("min", "max", None))
        self.time_attr = time_attr
        self._time = TrialTime(time_attr)
        self.probe_epochs = check_count("probe_epochs", probe_epochs, 1)
        self.max_t = check_count("max_t", max_t, 1)
        if max_t < probe_epochs:
            raise InvalidValueError(
                f"max_t must be at least probe_epochs = {probe_epochs}, got {max_t}"
            )
        self._watched = metric or "response_mean"
        self._records: FinishedTrials | None = None
        self._driver = Driver()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Leave the experiment's metric alone: what is watched is the response."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Answer a probe that had finished before a restart; give a final trial its weights."""
        self._driver.hold(trial)
        records = self._recorded(trial)
        if trial.status != Trial.PENDING:
            records.forget_earlier(trial.trial_id)
        elif role_of(trial.config) == "probe":
            record = records.take(trial)
            if record is not None:
                finish(tune_controller, trial, record)
        else:
            self._continue(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        epoch = self._time.read(trial.trial_id, result) or 0
        if role_of(trial.config) != "probe":
            return str(self.STOP if epoch >= self.max_t else self.CONTINUE)
        if epoch >= self.probe_epochs or is_diverged(result, self._watched):
            return str(self.STOP)
        return str(self.CONTINUE)

    def on_trial_complete(
        self, tune_controller: Any, trial: Any, result: Mapping[str, Any]
    ) -> None:
        """Record that a probe has finished."""
        self._time.forget(trial.trial_id)
        if role_of(trial.config) == "probe":
            self._recorded(trial).add(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """First in, first out."""
        self._driver.step(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """One line for Ray's progress report."""
        return (
            f"AutoHyperScheduler: probes end at {self.probe_epochs}, final trials at {self.max_t}"
        )

    def _recorded(self, trial: Any) -> FinishedTrials:
        if self._records is None or not self._records.belongs_to(trial.storage):
            self._records = FinishedTrials(trial.storage, FILE_NAME, "probes")
        return self._records

    def _continue(self, tune_controller: Any, trial: Any) -> None:
        """Let a final trial start from the winner's last checkpoint.

        Only the trial's idea of its latest checkpoint is set: the winner's checkpoint never
        enters the list of those that Ray counts, and deletes, as this trial's own.
        """
        source_id = (trial.config.get(RESERVED_KEY) or {}).get("continue_from")
        manager = trial.run_metadata.checkpoint_manager
        if source_id is None or manager.best_checkpoint_results:
            return
        trials = tune_controller.get_trials()
        source = next((t for t in trials if t.trial_id == source_id), None)
        found = source.latest_checkpoint_result if source else None
        if found is None:
            found = self._recorded_checkpoint(trial, source_id)
        if found is not None:
            manager._latest_checkpoint_result = _TrainingResult(
                checkpoint=copy.copy(found.checkpoint), metrics=dict(found.metrics)
            )

    def _recorded_checkpoint(self, trial: Any, source_id: str) -> Any:
        record = self._recorded(trial).known(source_id)
        return None if record is None else checkpoint_of(trial, record)
