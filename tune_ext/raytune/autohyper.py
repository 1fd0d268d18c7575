"""autoHyper for Ray Tune: a searcher and a scheduler over `tune_ext.autohyper`.

The searcher asks the core what to probe and tells it what the probes reported; the scheduler
ends probes and carries the winner's weights on into the final trial. Neither decides anything
else. They share nothing but the key ``tune_ext`` of every suggested configuration::

    {"role": "probe" or "final", "probe": 7, "continue_from": a trial's id or None}
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray
from ConfigSpace import ConfigurationSpace
from ray.tune.search import Searcher

from tune_ext._checks import check_count
from tune_ext._random import check_seed
from tune_ext.autohyper import AutoHyper, Explanation, Probe
from tune_ext.errors import InvalidValueError
from tune_ext.raytune._autohyper_start import (
    check_constants,
    check_mapping,
    core_parameters,
    initial_points,
)
from tune_ext.raytune._base import (
    RESERVED_KEY,
    PendingLimit,
    Polls,
    StatefulSearcher,
    as_number,
    check_name,
    is_diverged,
)
from tune_ext.raytune._space import NumericParameter, to_parameters, unflatten
from tune_ext.raytune.autohyper_scheduler import SLOTS_KEY, AutoHyperScheduler

__all__ = ["AutoHyperScheduler", "AutoHyperSearch"]

logger = logging.getLogger(__name__)

_UNLIMITED = 1_000_000  # Ray expresses num_samples=-1 as a very large number
_MAX_PENDING = 64  # more than any region has points


@dataclass
class _Trial:
    """What the searcher knows of one of its trials."""

    role: Literal["probe", "final"]
    probe: int | None = None
    live: bool = True
    told: bool = False
    reported: bool = False
    restored: bool = False


class AutoHyperSearch(StatefulSearcher):
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
        super().__init__(metric, mode)
        check_seed(seed)
        check_name("time_attr", time_attr)
        self.probe_epochs = check_count("probe_epochs", probe_epochs, 1)
        self.final_trials = check_count("final_trials", final_trials, 0)
        if max_concurrent is not None:
            check_count("max_concurrent", max_concurrent, 1)
        self.max_concurrent = max_concurrent
        self.time_attr = time_attr
        self._start = check_mapping("start", start)
        self._scale = check_mapping("scale", scale)
        self._points = [dict(point) for point in points_to_evaluate or ()]
        self._options = {"region": region, "max_probes": max_probes, **check_constants(constants)}
        self._paths: dict[str, tuple[str, ...]] = {}
        self._core: AutoHyper | None = None
        self._queue: list[Probe] = []
        self._trials: dict[str, _Trial] = {}
        self._polls = Polls()
        self._num_samples: int | None = None
        self._slots: int | None = None
        self._outer_limit: int | None = None
        self._seen = False
        self._unread = 0
        self._problem: str | None = None
        self._own_space = space is not None
        if space is not None:
            self._build(to_parameters(space))

    @property
    def searcher(self) -> PendingLimit:
        """The end of the chain along which Ray looks for a limit of pending trials."""
        return PendingLimit(self, self.max_concurrent or _MAX_PENDING)

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

    def explain(self) -> Explanation:
        """Every probe and move in order, each with its reason; `str()` is a table."""
        return Explanation(()) if self._core is None else self._core.explain()

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Learn of an outer ConcurrencyLimiter, which goes on doing the limiting itself."""
        self._outer_limit = max_concurrent
        return False

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Take the space of the experiment, unless the constructor was given one."""
        self._fill_metric_and_mode(metric, mode)
        self._set_num_samples(spec.get("num_samples"))
        if self._own_space:
            return False
        space = to_parameters(config)
        if self._core is not None:
            return [p.path for p in space] == list(self._paths.values())
        self._build(space)
        return True

    def _set_num_samples(self, num_samples: Any) -> None:
        finite = isinstance(num_samples, int) and 0 < num_samples < _UNLIMITED
        self._num_samples = num_samples if finite else None
        if self._num_samples is not None and self._num_samples < 3:
            warnings.warn(
                f"num_samples={self._num_samples} leaves AutoHyperSearch no room for a search; "
                "use num_samples=-1, the search ends the run by itself",
                stacklevel=2,
            )

    def _build(self, space: Sequence[NumericParameter]) -> None:
        parameters = core_parameters(space, self._start, self._scale)
        points = initial_points(self._points, space)
        self._core = AutoHyper(parameters, initial_points=points, **self._options)
        self._paths = {item.name: item.path for item in space}

    def _nested(self, values: Mapping[str, float]) -> dict[str, Any]:
        return unflatten({self._paths[name]: value for name, value in values.items()})

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next configuration, None for "nothing now", or `Searcher.FINISHED`."""
        core = self._ready()
        probe = self._next_probe(core)
        if probe is not None:
            self._trials[trial_id] = _Trial("probe", probe.id)
            return self._configuration(probe.values, "probe", probe.id, None)
        awaited = [trial for trial in self._trials.values() if self._awaited(trial)]
        if core.finished or not awaited:
            return self._next_final(core, trial_id)
        if self._polls.blocked() and all(trial.restored for trial in awaited):
            self._take_back(core, awaited)
        return None

    def _take_back(self, core: AutoHyper, lost: Sequence[_Trial]) -> None:
        """Probe again what Ray did not restore: it skips, or has lost, the trials."""
        logger.info("%d restored probes are not running; they are asked for again.", len(lost))
        for trial in lost:
            trial.live, trial.told = False, True
            if trial.probe is not None:
                core.forget(trial.probe)

    def _awaited(self, trial: _Trial) -> bool:
        """Whether the search goes on, or may, when this trial reports or ends."""
        cut = self._probes() >= self._probe_limit()
        return trial.role == "probe" and trial.live and not (trial.told and cut)

    def _probes(self) -> int:
        return sum(trial.role == "probe" for trial in self._trials.values())

    def _ready(self) -> AutoHyper:
        if self._problem is not None and self._unread > 1 and not self._seen:
            raise InvalidValueError(self._problem)
        if self._core is None:
            raise InvalidValueError(
                "AutoHyperSearch has no search space: pass param_space (config in tune.run) with "
                "at least one range, or AutoHyperSearch(space=...)"
            )
        if self._metric is None or self._mode is None:
            raise InvalidValueError(
                f"AutoHyperSearch needs metric and mode, got {self._metric!r} and {self._mode!r}"
            )
        return self._core

    def _next_probe(self, core: AutoHyper) -> Probe | None:
        if core.finished or self._probes() >= self._probe_limit():
            return None
        live = [t for t in self._trials.values() if t.live and t.role == "probe"]
        if self.max_concurrent is not None and len(live) >= self.max_concurrent:
            return None
        self._queue += core.ask()
        if not self._queue and self._may_speculate(live):
            self._queue += core.ask(1)
        return self._queue.pop(0) if self._queue else None

    def _probe_limit(self) -> int:
        if self._num_samples is None:
            return _UNLIMITED
        return max(self._num_samples - self.final_trials, 1)

    def _may_speculate(self, live: Sequence[_Trial]) -> bool:
        """Whether a worker would otherwise stand idle, as far as one can tell from here."""
        if self._outer_limit is not None and len(live) >= self._outer_limit:
            return False
        if self.max_concurrent is not None:
            return True
        if self._slots is not None:
            return len(live) < self._slots
        # Without word from the scheduler: one CPU a trial, and none of ours is still queueing.
        cpus = ray.cluster_resources().get("CPU", 1) if ray.is_initialized() else 1
        return len(live) < cpus and all(trial.reported for trial in live)

    def _next_final(self, core: AutoHyper, trial_id: str) -> dict[str, Any] | str:
        best = core.best
        finals = sum(trial.role == "final" for trial in self._trials.values())
        if best is None and not finals and self._trials:
            logger.warning("Every probe failed: there is no configuration to recommend.")
        if best is None or finals >= self.final_trials:
            return str(Searcher.FINISHED)
        self._trials[trial_id] = _Trial("final")
        return self._configuration(best, "final", None, self._winner(core))

    def _winner(self, core: AutoHyper) -> str | None:
        probe = core.best_probe
        if probe is None:
            return None
        ids = (i for i, trial in self._trials.items() if trial.probe == probe.id)
        return next(ids, None)

    def _configuration(
        self, values: Mapping[str, float], role: str, probe: int | None, winner: str | None
    ) -> dict[str, Any]:
        ours = {"role": role, "probe": probe, "continue_from": winner}
        return {**self._nested(values), RESERVED_KEY: ours}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Read the response as soon as the probe is `probe_epochs` old, or has diverged."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        trial.reported, trial.restored = True, False
        slots = as_number(result.get(SLOTS_KEY))
        self._slots = self._slots if slots is None else int(slots)
        epoch = as_number(result.get(self.time_attr))
        if is_diverged(result, self._metric) or (epoch or 0) >= self.probe_epochs:
            self._tell(trial, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Read the last result, unless an earlier one was the probe's; a crash is a failure."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        trial.live = False
        self._tell(trial, None if error else result)

    def on_pause(self, trial_id: str) -> None:
        """Do nothing: a paused probe is still one that will report."""

    def on_unpause(self, trial_id: str) -> None:
        """Do nothing: see `on_pause`."""

    def _tell(self, trial: _Trial, result: Mapping[str, Any] | None) -> None:
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

    def _state(self) -> dict[str, Any]:
        return {
            "metric": self._metric,
            "mode": self._mode,
            "time_attr": self.time_attr,
            "probe_epochs": self.probe_epochs,
            "final_trials": self.final_trials,
            "max_concurrent": self.max_concurrent,
            "own_space": self._own_space,
            "num_samples": self._num_samples,
            "seen": self._seen,
            "unread": self._unread,
            "problem": self._problem,
            "paths": [list(path) for path in self._paths.values()],
            "core": None if self._core is None else self._core.state_dict(),
            "trials": {trial_id: asdict(trial) for trial_id, trial in self._trials.items()},
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        core = None if state["core"] is None else AutoHyper.from_state_dict(state["core"])
        trials = {str(i): _Trial(**trial) for i, trial in state["trials"].items()}
        for trial in trials.values():
            trial.restored = trial.live
        paths = [tuple(path) for path in state["paths"]]
        plain = (state["probe_epochs"], state["final_trials"], state["max_concurrent"])
        metric, mode, time_attr = state["metric"], state["mode"], state["time_attr"]
        own, num_samples = bool(state["own_space"]), state["num_samples"]
        seen, unread, problem = bool(state["seen"]), int(state["unread"]), state["problem"]
        # Nothing above has changed the searcher: a damaged state leaves it as it was.
        self._core, self._trials, self._queue = core, trials, []
        if core is not None:
            running = {trial.probe for trial in trials.values() if trial.live}
            for probe in core.pending:
                if probe.id not in running:
                    core.forget(probe.id)
        self._paths = {"/".join(path): path for path in paths}
        self.probe_epochs, self.final_trials, self.max_concurrent = plain
        self._set_metric(metric)
        self._mode, self.time_attr = mode, time_attr
        self._own_space, self._num_samples = own, num_samples
        self._seen, self._unread, self._problem = seen, unread, problem


def _explain_metric(metric: str, result: Mapping[str, Any]) -> str:
    """What to tell the user whose first probes reported no response."""
    if metric not in result:
        names = sorted(k for k in result if not k.startswith("config/"))
        fault = f"is not among the reported results ({', '.join(names)})"
    else:
        fault = f"is {result[metric]!r}, which is no response: those lie in [0, 1]"
    return (
        f"metric {str(metric)!r} {fault}. Report ResponseMeter(model).measure() after every "
        "epoch: make one meter = ResponseMeter(model) before training, then "
        "tune.report({**meter.measure(), ...}); or name the metric that holds your response"
    )
