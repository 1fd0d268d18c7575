"""autoHyper for Ray Tune: a searcher and a scheduler over `tune_ext.autohyper`.

The searcher asks the core what to probe and tells it what the probes reported; the scheduler
ends probes and carries the winner's weights on into the final trial. Neither decides anything
else. They share nothing but the key ``tune_ext`` of every suggested configuration::

    {"role": "probe" or "final", "probe": 7, "continue_from": a trial's id or None}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ConfigSpace import ConfigurationSpace

from tune_ext._checks import check_count
from tune_ext.autohyper import AutoHyper, Probe
from tune_ext.errors import InvalidValueError
from tune_ext.raytune._autohyper_start import (
    check_constants,
    check_mapping,
    core_parameters,
    initial_points,
)
from tune_ext.raytune._base import RESERVED_KEY, as_number, is_diverged, reported_names
from tune_ext.raytune._config_space import check_points
from tune_ext.raytune._probing import Core, Ledger, ProbingSearch
from tune_ext.raytune._space import NumericParameter, to_parameters, unflatten
from tune_ext.raytune.autohyper_scheduler import AutoHyperScheduler

__all__ = ["AutoHyperScheduler", "AutoHyperSearch"]


class AutoHyperSearch(ProbingSearch):
    """Find a learning rate (and more) from training weights alone, with no validation data.

    Probes train for a few epochs and report their response (`tune_ext.ResponseMeter`); a trust
    region moves on from there (`tune_ext.AutoHyper`, arXiv 2111.14056). Every probe that the
    next move waits for is suggested at once, idle workers get those that will probably be needed
    next, and the answer depends on neither. The search ends the run by itself; give
    ``num_samples=-1``. With a finite number its last trials are the final ones.

    Use it with `AutoHyperScheduler`, which ends the probes. Without it, a probe has to end by
    itself; one that goes on is judged by its result at `probe_epochs` all the same.

    Args:
        space: Nested dictionary of Tune domains, or a ConfigSpace. None: the ``param_space`` of
            the experiment. Only ``tune.uniform`` and ``tune.loguniform`` are searched; what is
            not a domain is a constant.
        metric: The reported response, in [0, 1].
        mode: "min"; "max" reads the negated metric.
        start: Parameter → first value. A learning rate starts at 1e-4 and a weight decay at 0,
            moved into their bounds; others in the middle of theirs.
        scale: Parameter → factor of one step: 1.45, and 2 for a weight decay.
        probe_epochs: Epochs of a probe, in units of `time_attr`.
        max_concurrent: Most probes at a time; workers that the next move leaves idle probe
            ahead, up to this number. None: all that the next move needs, and ahead of it
            only what the cluster has room for.
        final_trials: How many trials train the chosen configuration to the end; 0 for none.
        seed: Accepted as everywhere; the search draws no random numbers.
        points_to_evaluate: Configurations to probe first besides the start.
        time_attr: The result that counts epochs.
        region: "full" (3^d points), "star" (2d + 1) or "auto".
        max_probes: End the search when it would need more.
        constants: Other arguments of `tune_ext.AutoHyper` that shall differ from the published
            ones: establish_below, plateau, power, shrink, scale_tolerance, reuse.

    Raises:
        InvalidValueError: An argument, or the space, cannot work; the message says which.
        InvalidTypeError: An argument of the wrong type.

    >>> from ray import tune
    >>> search = AutoHyperSearch({"lr": tune.loguniform(1e-6, 1.0)}, probe_epochs=3)
    >>> sorted(search.suggest("first"))
    ['lr', 'tune_ext']
    """

    STATE_VERSION = 2
    ROLE = "probe"
    WHAT = "probes"

    def __init__(
        self,
        space: Mapping[str, Any] | ConfigurationSpace | Sequence[NumericParameter] | None = None,
        metric: str | None = "response_mean",
        mode: str | None = "min",
        *,
        start: Mapping[str, float] | None = None,
        scale: Mapping[str, float] | None = None,
        probe_epochs: int = 5,
        max_concurrent: int | None = None,
        final_trials: int = 1,
        seed: int | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        time_attr: str = "training_iteration",
        region: Literal["auto", "full", "star"] = "auto",
        max_probes: int | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            metric,
            mode,
            max_concurrent=max_concurrent,
            final_trials=final_trials,
            seed=seed,
            time_attr=time_attr,
        )
        self.probe_epochs = check_count("probe_epochs", probe_epochs, 1)
        self._start = check_mapping("start", start)
        self._scale = check_mapping("scale", scale)
        self._points = check_points(points_to_evaluate)
        self._options = {"region": region, "max_probes": max_probes, **check_constants(constants)}
        self._paths: dict[str, tuple[str, ...]] = {}
        self._core: AutoHyper | None = None
        self._own_space = space is not None
        if space is not None:
            self._build(to_parameters(space))

    @staticmethod
    def convert_search_space(spec: Mapping[str, Any]) -> list[NumericParameter]:
        """List what is searched in a dictionary of Tune domains; usable as `space`."""
        return to_parameters(spec)

    @property
    def best_config(self) -> dict[str, Any] | None:
        """The chosen values, nested as in the space; before the end, where the search stands.

        None before anything worked.
        """
        best = None if self._core is None else self._core.best
        return None if best is None else self._nested(best)

    def _take_space(self, space: Mapping[str, Any]) -> bool:
        parameters = to_parameters(space)
        if self._core is not None:
            return [p.path for p in parameters] == list(self._paths.values())
        self._build(parameters)
        return True

    def _build(self, space: Sequence[NumericParameter]) -> None:
        parameters = core_parameters(space, self._start, self._scale)
        points = initial_points(self._points, space)
        self._core = AutoHyper(parameters, initial_points=points, **self._options)
        self._paths = {item.name: item.path for item in space}

    def _nested(self, values: Mapping[str, float]) -> dict[str, Any]:
        return unflatten({self._paths[name]: value for name, value in values.items()})

    def _ready(self) -> Core:
        core = super()._ready()
        if self._metric is None or self._mode is None:
            raise InvalidValueError(
                f"AutoHyperSearch needs metric and mode, got {self._metric!r} and {self._mode!r}"
            )
        return core

    def _short(self, item: Probe) -> tuple[int, dict[str, Any]]:
        return item.id, self._configuration(item.values, "probe", item.id, None)

    def _long(self) -> dict[str, Any] | None:
        best = None if self._core is None else self._core.best
        return None if best is None else self._configuration(best, "final", None, self._winner())

    def _winner(self) -> str | None:
        """The trial that measured the answer."""
        probe = None if self._core is None else self._core.best_probe
        if probe is None:
            return None
        ids = (i for i, trial in self._trials.items() if trial.probe == probe.id)
        return next(ids, None)

    def _configuration(
        self, values: Mapping[str, float], role: str, probe: int | None, winner: str | None
    ) -> dict[str, Any]:
        ours = {"role": role, "probe": probe, "continue_from": winner}
        return {**self._nested(values), RESERVED_KEY: ours}

    def _observe(self, trial: Ledger, result: Mapping[str, Any]) -> None:
        """Read the response as soon as the probe is `probe_epochs` old, or has diverged."""
        epoch = as_number(result.get(self.time_attr))
        if is_diverged(result, self._metric) or (epoch or 0) >= self.probe_epochs:
            self._tell(trial, result)

    def _conclude(self, trial: Ledger, result: Mapping[str, Any] | None, error: bool) -> None:
        self._tell(trial, None if error else result)

    def _tell(self, trial: Ledger, result: Mapping[str, Any] | None) -> None:
        if self._core is None or self._metric is None or trial.probe is None or trial.told:
            return
        trial.told = True
        if not result or is_diverged(result, self._metric):
            self._core.tell(trial.probe, None, failed=True)
            return
        response = as_number(result.get(self._metric))
        if response is not None and self._mode == "max":
            response = -response
        if response is not None and 0 <= response <= 1:
            self._seen = True
        elif response is not None or self._metric not in result:
            # One such probe is that trial's trouble; two and no other, the user's mistake.
            self._unread += 1
            self._problem = _explain_metric(self._metric, result)
        self._core.tell(trial.probe, response)

    def _pending(self) -> list[int]:
        return [] if self._core is None else [probe.id for probe in self._core.pending]

    def _load_core(self, state: Mapping[str, Any]) -> Core:
        return AutoHyper.from_state_dict(state)

    def _state(self) -> dict[str, Any]:
        paths = [list(path) for path in self._paths.values()]
        return {**super()._state(), "probe_epochs": self.probe_epochs, "paths": paths}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        paths, epochs = [tuple(path) for path in state["paths"]], state["probe_epochs"]
        super()._load_state(state)
        self._paths = {"/".join(path): path for path in paths}
        self.probe_epochs = epochs


def _explain_metric(metric: str, result: Mapping[str, Any]) -> str:
    """What to tell the user whose first probes reported no response."""
    if metric not in result:
        fault = f"is not among the reported results ({', '.join(reported_names(result))})"
    else:
        fault = f"is {result[metric]!r}, which is no response: those lie in [0, 1]"
    return (
        f"metric {str(metric)!r} {fault}. Report ResponseMeter(model).measure() after every "
        "epoch: make one meter = ResponseMeter(model) before training, then "
        "tune.report({**meter.measure(), ...}); or name the metric that holds your response"
    )
