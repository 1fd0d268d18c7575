"""What a method is: what it is built from, what it builds, and what is listed of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune_ext._random import derive_seed
from tune_ext.benchmark.history import plain
from tune_ext.benchmark.tasks import Task

__all__ = ["Method", "Search", "Setup"]


@dataclass(frozen=True)
class Setup:
    """What a method may know when it is built: the task's space, not its data.

    ExpTest alone takes the mean square of the training inputs, where its ladder starts.

    Args:
        task: The task; methods use its space, metric, mode and full length.
        budget: Training epochs for the whole search.
        seed: The search seed.
        workers: How many trials can train at the same time.
    """

    task: Task
    budget: int
    seed: int
    workers: int = 1

    @property
    def max_epochs(self) -> int:
        """A trial never trains longer than this, nor longer than the budget."""
        return min(self.task.max_epochs, self.budget)

    @property
    def trainings(self) -> int:
        """How many full-length trainings the budget pays for; at least one."""
        return max(1, self.budget // self.max_epochs)

    def derived_seed(self, name: str) -> int:
        """A seed of 31 bits for the part of a method that has this name."""
        return derive_seed(self.seed, name) % 2**31

    def configurations(self) -> Iterator[dict[str, Any]]:
        """The random configurations of this seed, without end: the same for every method."""
        space = copy.deepcopy(self.task.space)
        space.seed(derive_seed(self.seed, "configurations") % 2**32)
        while True:
            drawn = dict(space.sample_configuration())
            yield {k: plain(v) for k, v in drawn.items()}


@dataclass(frozen=True)
class Search:
    """A built method: what `tune.run` is given, and how to ask it for its answer.

    Args:
        search_alg: A Ray searcher.
        scheduler: A Ray scheduler, or None for first in, first out.
        stops_trials: Whether the scheduler ends trials at the full length; where it does
            not, the runner does.
        answer: Returns the method's own recommendation, or None to leave the choice to
            the validation rule (`history.best_trial`).
        details: Returns what the method has to tell afterwards, JSON-able.
        schedule: Where trials change their configuration while they train: returns how the
            recommended one did, (epochs trained before, configuration) pairs in order, the
            first with 0. Whoever evaluates the recommendation goes the same way: it starts
            a new run with each configuration and loads the state of the last.
    """

    search_alg: Any
    scheduler: Any = None
    stops_trials: bool = False
    answer: Callable[[], Mapping[str, Any] | None] = lambda: None
    details: Callable[[], dict[str, Any]] = dict
    schedule: Callable[[], Sequence[tuple[int, dict[str, Any]]]] | None = None


@dataclass(frozen=True)
class Method:
    """An entry of `METHODS`.

    Args:
        description: One line for listings.
        build: Builds the search; None for a method that does not search.
        family: The kind of method, for reports.
        needs: Modules that must be importable, each with what to install for it.
        unsuited: Why the method cannot search a task; None where it can.
        chooses: What it chooses by, if that is not the validation error.
        whole: Whether every trial trains until it ends by itself, and is no probe: then a budget
            may count evaluations.
        ours: Whether it is this package's: reports tell its place, also when it is the last.
        reproducible: Why two runs with one seed and one worker may differ; None where they
            are the same, as a test makes sure.
    """

    description: str
    build: Callable[[Setup], Search] | None
    family: str = "baseline"
    needs: Mapping[str, str] = field(default_factory=dict)
    unsuited: Callable[[Task], str | None] = lambda task: None
    chooses: str | None = None
    whole: bool = False
    ours: bool = False
    reproducible: str | None = None
