"""A scheduler for each group of trials, so that only comparable trials are compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.utils import flatten_dict

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune._base import as_number, check_name, unchecked

__all__ = ["GroupedScheduler"]


class GroupedScheduler(FIFOScheduler):
    """Gives the trials that share a value of their configuration a scheduler of their own.

    Ray's schedulers compare all trials of an experiment. Where they are not comparable, as those of
    `ImageGrowthSearch` at different image sizes, such a scheduler stops the large for being unlike
    the small; this one compares each with its equals alone:

        tune.TuneConfig(
            search_alg=ImageGrowthSearch("tpe", sizes=[(32, 48), (64, 16)]),
            scheduler=GroupedScheduler(lambda: ASHAScheduler(max_t=27, grace_period=3)),
            metric="loss", mode="min", num_samples=-1)

    It is for schedulers that decide at each result whether a trial goes on (`ASHAScheduler`,
    `MedianStoppingRule`). One that pauses trials until others have come as far could wait for
    trials that its group will never have; it is refused at its first pause.

    A result whose metric is missing, None, NaN or infinite is kept from the scheduler, and its
    trial goes on. As with Ray's own schedulers, nothing of it is saved: after a restore it begins
    anew.

    Args:
        factory: Makes the scheduler of a group; without a metric and mode it takes those of the
            experiment.
        key: Where in the configuration the value stands; ``"data/size"`` if nested. Trials
            without it are a group, too.

    Raises:
        InvalidTypeError: The factory is a scheduler or cannot be called, or the key is no name.
        InvalidValueError: The factory makes no scheduler, or one that pauses.

    >>> from ray.tune.schedulers import ASHAScheduler
    >>> GroupedScheduler(lambda: ASHAScheduler(max_t=27), key="image_size").debug_string()
    'GroupedScheduler by image_size: no trials yet'
    """

    def __init__(self, factory: Callable[[], TrialScheduler], key: str = "image_size") -> None:
        super().__init__()
        if isinstance(factory, TrialScheduler) or not callable(factory):
            raise InvalidTypeError(
                "factory must be a function that makes a scheduler, as lambda: ASHAScheduler(), "
                f"got {factory!r}"
            )
        check_name("key", key, "an entry of the configuration")
        self._factory, self._key = factory, key
        self._properties: dict[str, Any] | None = None
        self._groups: dict[Hashable, Any] = {}
        self._group_of: dict[str, Hashable] = {}
        self._metric = unchecked(getattr(self._new(), "_metric", None))  # and its errors here

    def _new(self) -> Any:
        made = self._factory()
        if not isinstance(made, TrialScheduler):
            raise InvalidValueError(f"factory must make a Ray Tune scheduler, it made {made!r}")
        if self._properties is not None:
            made.set_search_properties(**self._properties)
        return made

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the experiment's metric and mode for the schedulers that have none."""
        agreed = bool(self._factory().set_search_properties(metric, mode, **spec))
        if agreed:
            self._properties = {"metric": metric, "mode": mode, **spec}
            self._metric = unchecked(metric) or self._metric
        return agreed

    @property
    def groups(self) -> Mapping[Hashable, TrialScheduler]:
        """The schedulers by value, the first trial's first."""
        return dict(self._groups)

    @property
    def supports_buffered_results(self) -> bool:
        """Whether several results may come at once: as the schedulers do."""
        return all(group.supports_buffered_results for group in self._groups.values())

    def _of(self, trial: Trial) -> Any:
        """A trial's scheduler; made where there is none yet."""
        if trial.trial_id not in self._group_of:
            value = flatten_dict(dict(trial.config)).get(self._key)
            try:
                hash(value)
            except TypeError:  # such as a list, or a tuple that holds one
                value = repr(value)
            self._group_of[trial.trial_id] = value
            if value not in self._groups:
                self._groups[value] = self._new()
        return self._groups[self._group_of[trial.trial_id]]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add it to its group."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tell its group."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """What its group's scheduler decides; CONTINUE without a metric to compare."""
        if not self._comparable(result):
            return str(TrialScheduler.CONTINUE)
        decision = str(self._of(trial).on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.PAUSE:
            name = type(self._of(trial)).__name__
            raise InvalidValueError(
                f"{name} pauses trials and waits for others, which a group may never have: "
                "use ASHAScheduler or MedianStoppingRule in a GroupedScheduler"
            )
        return decision

    def _comparable(self, result: Mapping[str, Any]) -> bool:
        return self._metric is None or as_number(result.get(self._metric)) is not None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Tell its group."""
        if self._comparable(result):
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Tell its group."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """A line a group."""
        head = f"GroupedScheduler by {self._key}"
        if not self._groups:
            return f"{head}: no trials yet"
        return "\n".join(
            [head, *(f"{value}: {group.debug_string()}" for value, group in self._groups.items())]
        )
