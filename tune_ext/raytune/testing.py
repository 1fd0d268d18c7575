"""Conformance suites for Ray Tune searchers and schedulers, usable by any author.

Derive a test class, say how to make the thing, and pytest runs every point of Ray's contract
that a searcher or a scheduler can get wrong::

    from tune_ext.raytune.testing import SearcherConformance

    class TestMySearch(SearcherConformance):
        def make(self, **options):
            return MySearch(**options)

No cluster is started: `tune_ext.raytune._play` calls the searcher as Ray's control loop does. A
point that something is known to miss is marked where it is derived, with
``pytest.mark.xfail(strict=True, reason=...)`` on an overriding method that calls the original.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import ConcurrencyLimiter, Searcher, SearchGenerator
from ray.tune.utils import flatten_dict

from tune_ext.raytune._play import (
    INVALID,
    MISSING,
    Played,
    global_random_state,
    play,
    raises,
)
from tune_ext.raytune._scheduler_suite import SchedulerConformance

__all__ = ["SchedulerConformance", "SearcherConformance", "suggestions"]


def suggestions(trials: list[Played], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """What was searched, of a list of played trials."""
    return [{k: flatten_dict(t.config)[k] for k in names} for t in trials]


class SearcherConformance:
    """What Ray, and a user, may expect of a searcher.

    Attributes:
        space: Nested domains that it is given; a constant among them.
        names: The searched values, as paths with slashes.
        points: What `points_to_evaluate` is tested with.
        metric: Under which `objective` is reported.
        trials: How many trials are enough to see it use results.
        workers: How many run at once in most tests.
        finishes: Whether it ends a run by itself, within `end_within` trials.
    """

    space: Mapping[str, Any] = {"lr": tune.loguniform(1e-6, 1.0), "batch": 32}
    names: tuple[str, ...] = ("lr",)
    points: tuple[Mapping[str, Any], ...] = ({"lr": 1e-3},)
    metric: str = "loss"
    trials: int = 12
    workers: int = 1
    finishes: bool = False
    end_within: int = 300

    def make(self, **options: Any) -> Any:
        """Make a searcher from `metric`, `mode`, `seed`, and maybe `points_to_evaluate`."""
        raise NotImplementedError

    def objective(self, config: Mapping[str, Any]) -> float:
        """A deterministic metric; smaller is better."""
        return float(1 / (1 + config["lr"] / 1e-3))

    def other_objective(self, config: Mapping[str, Any]) -> float:
        """Another metric, of which a searcher that listens makes something else."""
        return 1 - self.objective(config)

    def report(self, config: Mapping[str, Any], value: Any, epoch: int) -> Mapping[str, Any]:
        """What a trial reports, flat or nested; for a searcher that reads more than a metric.

        Args:
            config: The trial's configuration.
            value: What `objective` gave for it, or one of `_play.INVALID` but a crash.
            epoch: From 1 to 3; a trial ends with the third.
        """
        return {} if value == MISSING else {self.metric: value}

    def result(self, config: Mapping[str, Any], value: Any, epoch: int) -> dict[str, Any]:
        """The same as Ray hands it on."""
        report = flatten_dict(dict(self.report(config, value, epoch)))
        return {**report, "training_iteration": epoch}

    def ready(self, **options: Any) -> Any:
        """A searcher that has been given the space as Ray gives it."""
        searcher = self.make(**{"metric": self.metric, "mode": "min", "seed": 0, **options})
        taken = searcher.set_search_properties(None, None, dict(self.space), num_samples=10**12)
        assert taken, "set_search_properties refused a space although it had none"
        return searcher

    def run(self, searcher: Any, **options: Any) -> list[Played]:
        """Play `trials` trials, or as many as `options` say."""
        given = {"trials": self.trials, "workers": self.workers, "report": self.report}
        return play(searcher, options.pop("objective", self.objective), **{**given, **options})[0]

    def test_suggestions_are_legal_and_plain(self) -> None:
        """Every value lies in its domain and is a number or a string of Python's own."""
        domains = flatten_dict(dict(self.space))
        for trial in self.run(self.ready()):
            flat = flatten_dict(trial.config)
            for name in self.names:
                assert isinstance(flat[name], bool | int | float | str), (name, flat[name])
                assert domains[name].is_valid(flat[name]), (name, flat[name])

    def test_the_last_result_counts_also_when_it_arrives_at_completion_alone(self) -> None:
        """Ray skips on_trial_result when the scheduler says STOP."""
        seen = self.run(self.ready(), stopped=True)
        assert seen == self.run(self.ready(), stopped=False)
        other = self.run(self.ready(), objective=self.other_objective)
        assert suggestions(seen, self.names) != suggestions(other, self.names), (
            "the searcher suggests the same whatever the results: it never saw them"
        )

    def test_invalid_metrics_neither_raise_nor_stall(self) -> None:
        """NaN, None, infinite and missing metrics and crashes are failures, no more."""
        good = iter([True])  # the first trial is fine: the metric exists

        def sometimes(config: Mapping[str, Any]) -> Any:
            if next(good, False):
                return self.objective(config)
            number = sum(ord(c) for c in f"{config[self.names[0].split('/')[0]]!r}")
            bad = number % (2 * len(INVALID))
            return INVALID[bad] if bad < len(INVALID) else self.objective(config)

        for stopped in (True, False):
            assert self.run(self.ready(), objective=sometimes, stopped=stopped)
            good = iter([True])

    def test_trials_of_others_are_ignored(self) -> None:
        """After a restart Ray may report trials that this searcher never suggested."""
        searcher = self.ready()
        config = self.ready().suggest("another searcher's")
        searcher.on_trial_result("stranger", self.result(config, 0.0, epoch=1))
        searcher.on_trial_complete("stranger", self.result(config, 0.0, epoch=3))
        searcher.on_trial_complete("crashed stranger", None, error=True)
        assert self.run(searcher) == self.run(self.ready())

    def test_a_retried_trial_starts_over_without_a_call(self) -> None:
        """Under max_failures the same trial simply reports its first epoch again."""
        searcher = self.ready()
        config = searcher.suggest("a")
        value = self.objective(config)
        for epoch in (1, 2, 1, 2):
            result = {**self.result(config, value, epoch), "trial_id": "a"}
            searcher.on_trial_result(trial_id="a", result=result)
        last = {**self.result(config, value, 3), "trial_id": "a", "done": True}
        searcher.on_trial_complete(trial_id="a", result=last, error=False)
        assert self.run(searcher, first=1)

    def test_a_trial_may_pause(self) -> None:
        """HyperBandForBOHB calls these two of whatever searcher it finds."""
        searcher = self.ready()
        searcher.suggest("a")
        searcher.on_pause("a")
        searcher.on_unpause("a")

    def test_a_blank_instance_goes_on_from_a_saved_one(self, tmp_path: Path) -> None:
        """Restore must be sufficient: Ray calls nothing else."""
        path = str(tmp_path / "state")
        searcher = self.ready()
        self.run(searcher, trials=self.trials // 2)
        searcher.save(path)
        blank = self.make(metric=self.metric, mode="min")
        blank.restore(path)
        half = self.trials // 2
        assert self.run(searcher, first=half) == self.run(blank, first=half)

    def test_running_trials_survive_a_restore(self, tmp_path: Path) -> None:
        """They come back under their ids and report to the new instance."""
        searcher = self.ready()
        self.run(searcher, trials=self.trials // 2)
        running = {i: searcher.suggest(i) for i in ("running1",)}
        searcher.save(str(tmp_path / "state"))
        blank = self.make(metric=self.metric, mode="min")
        blank.restore(str(tmp_path / "state"))
        for each in (searcher, blank):
            for i, config in running.items():
                result = {**self.result(config, self.objective(config), 3), "trial_id": i}
                each.on_trial_complete(trial_id=i, result=result, error=False)
        assert self.run(searcher, first=50) == self.run(blank, first=50)

    def test_ray_can_save_and_restore_it_inside_a_limiter(self, tmp_path: Path) -> None:
        """Ray walks along `.searcher` and saves wrappers and searcher each in its own way."""
        searcher = self.ready()
        limiter = ConcurrencyLimiter(searcher, max_concurrent=2)
        self.run(limiter, trials=self.trials // 2)
        SearchGenerator(limiter).save_to_dir(str(tmp_path), "2026-01-01_00-00-00")
        blank = ConcurrencyLimiter(self.make(metric=self.metric, mode="min"), max_concurrent=2)
        SearchGenerator(blank).restore_from_dir(str(tmp_path))
        assert self.run(limiter, first=50) == self.run(blank, first=50)

    def test_a_damaged_state_is_an_error_and_left_alone(self, tmp_path: Path) -> None:
        """Whatever the user still has of it must not be overwritten."""
        path = tmp_path / "state"
        searcher = self.ready()
        self.run(searcher, trials=3)
        searcher.save(str(path))
        damaged = path.read_bytes()[:-20]
        path.write_bytes(damaged)
        blank = self.make(metric=self.metric, mode="min")
        assert raises(lambda: blank.restore(str(path))), "a cut file was taken for a state"
        assert path.read_bytes() == damaged

    def test_no_space_is_an_error_at_the_first_suggestion(self) -> None:
        """With an empty param_space, Ray never calls set_search_properties."""
        searcher = self.make(metric=self.metric, mode="min", seed=0)
        assert raises(lambda: searcher.suggest("a"))

    def test_metric_and_mode_may_come_from_the_experiment(self) -> None:
        """The constructor leaves them open; set_search_properties fills them."""
        searcher = self.make(metric=None, mode=None, seed=0)
        assert searcher.set_search_properties(self.metric, "min", dict(self.space))
        assert self.run(searcher) == self.run(self.ready())

    def test_the_run_ends_or_goes_on_but_never_blocks(self) -> None:
        """None is an answer only while something runs; FINISHED is given again and again."""
        for workers in (1, 3):
            searcher = self.ready()
            limit = self.end_within if self.finishes else self.trials
            trials, finished = play(
                searcher, self.objective, trials=limit, workers=workers, report=self.report
            )
            assert finished == self.finishes, f"{len(trials)} trials, finished: {finished}"
            if finished:
                assert searcher.suggest("after the end") == Searcher.FINISHED

    def test_what_the_caller_passes_stays_as_it_is(self) -> None:
        """Neither the points to evaluate nor the space are changed or used up."""
        points = [dict(point) for point in self.points]
        before = copy.deepcopy(points)
        space = dict(self.space)
        searcher = self.make(metric=self.metric, mode="min", seed=0, points_to_evaluate=points)
        searcher.set_search_properties(None, None, space)
        self.run(searcher, trials=len(points) + 3)
        assert points == before
        assert space == dict(self.space)

    def test_the_same_seed_gives_the_same_run(self) -> None:
        """0 is a seed like any other."""
        assert self.run(self.ready(seed=0)) == self.run(self.ready(seed=0))

    def test_another_process_gives_the_same_run(self) -> None:
        """Nothing may depend on the order of sets or the hash of strings."""
        here = suggestions(self.run(self.ready()), self.names)
        assert self.elsewhere(hash_seed="1") == here

    def elsewhere(self, hash_seed: str) -> Any:
        """The suggestions of the same run in a process of its own."""
        home = type(self)
        code = (
            f"import json, {home.__module__} as m\n"
            f"test = m.{home.__qualname__}()\n"
            "from tune_ext.raytune.testing import suggestions\n"
            "print('>>>', json.dumps(suggestions(test.run(test.ready()), test.names)))"
        )
        found = [p for p in sys.path if p]
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(found),
        }
        output = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return json.loads(output.split(">>>")[1])

    def test_the_global_random_state_is_untouched(self) -> None:
        """The caller's own random numbers must not depend on the searcher."""
        before = global_random_state()
        self.run(self.ready())
        assert global_random_state() == before

    def test_max_is_the_mirror_of_min(self) -> None:
        """Maximising the negated metric is the same search."""
        mirrored = self.run(self.ready(mode="max"), objective=lambda c: -self.objective(c))
        same = self.run(self.ready())
        assert suggestions(mirrored, self.names) == suggestions(same, self.names)

    def test_it_pickles_at_the_start_and_in_the_middle(self) -> None:
        """Tuner pickles the searcher before the run; a copy goes on like the original."""
        searcher = self.ready()
        for first in (0, 20):
            twin = cloudpickle.loads(cloudpickle.dumps(searcher))
            half = self.trials // 2
            assert self.run(searcher, trials=half, first=first) == self.run(
                twin, trials=half, first=first
            )
