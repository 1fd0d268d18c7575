"""The methods that are compared: a dictionary from a name to how it is built.

To add one, write a function that takes a `Setup` and returns a `Search`, and enter it in
`METHODS`. Nothing else has to change. Ray is imported inside the functions alone, so that
this module can be listed without it.

What they share: random search, one-epoch screening, ASHA and HyperBand try the same
configurations in the same order for a seed (`Setup.configurations`), and BOHB starts with
the first few of them. Every trial of a cell starts from the same initial weights and data.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ConfigSpace import ConfigurationSpace

from tune_ext._loss_monitor import SEARCHED
from tune_ext._random import derive_seed
from tune_ext.benchmark.tasks import Task, no_ladder, plan_rungs
from tune_ext.errors import InvalidValueError

__all__ = [
    "METHODS",
    "Method",
    "Search",
    "Setup",
    "check_methods",
    "missing",
    "screening_plan",
    "unsuited",
]

REDUCTION_FACTOR = 3
"""HyperBand's and BOHB's factor between rungs: Ray's default."""

BOHB_FIRST_POINTS = 3
"""How many of the shared random configurations BOHB starts with."""

PROBE_EPOCHS = 5
"""The length of autoHyper's probes, as published."""


@dataclass(frozen=True)
class Setup:
    """What a method may know when it is built: the task's space, not its data.

    ExpTest alone takes the mean square of the training inputs, where its ladder starts.

    Args:
        task: The task; methods use its space, metric, mode and full length.
        budget: Training epochs for the whole search.
        seed: The search seed.
    """

    task: Task
    budget: int
    seed: int

    @property
    def max_epochs(self) -> int:
        """A trial never trains longer than this, nor longer than the budget."""
        return min(self.task.max_epochs, self.budget)

    def configurations(self) -> Iterator[dict[str, Any]]:
        """The random configurations of this seed, without end: the same for every method."""
        space = copy.deepcopy(self.task.space)
        space.seed(derive_seed(self.seed, "configurations") % 2**32)
        while True:
            drawn = dict(space.sample_configuration())
            yield {k: v.item() if hasattr(v, "item") else v for k, v in drawn.items()}


@dataclass(frozen=True)
class Search:
    """A built method: what `tune.run` is given, and how to ask it for its answer.

    Args:
        search_alg: A Ray searcher.
        scheduler: A Ray scheduler, or None for first in, first out.
        stops_trials: Whether the scheduler ends trials at the full length; where it does
            not, the runner does.
        answer: Returns the method's own recommendation, or None to leave the choice to
            the validation rule (`records.best_trial`).
        details: Returns what the method has to tell afterwards, JSON-able.
    """

    search_alg: Any
    scheduler: Any = None
    stops_trials: bool = False
    answer: Callable[[], Mapping[str, Any] | None] = lambda: None
    details: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Method:
    """An entry of `METHODS`.

    Args:
        description: One line for listings.
        build: Builds the search; None for a method that does not search.
        needs: Modules that must be importable, each with what to install for it.
        unsuited: Why the method cannot search a task; None where it can.
        chooses: What it chooses by, if that is not the validation error.
        ours: Whether it is this package's: reports tell its place, also when it is the last.
    """

    description: str
    build: Callable[[Setup], Search] | None
    needs: Mapping[str, str] = field(default_factory=dict)
    unsuited: Callable[[Task], str | None] = lambda task: None
    chooses: str | None = None
    ours: bool = False


def _random(setup: Setup) -> Search:
    from tune_ext.benchmark.tune_parts import StreamSearch

    return Search(StreamSearch(setup))


def screening_plan(budget: int, max_epochs: int) -> tuple[int, int]:
    """How one-epoch screening spends its budget: (configurations screened, kept).

    About half of the budget goes to the screening; the kept ones train on from their
    first epoch to the full length; what is left over goes to the screening too.

    >>> screening_plan(100, 11)   # 50 epochs pay for 5 more trainings of 10 epochs
    (50, 5)
    >>> screening_plan(100, 13)   # 48 epochs for 4 more trainings of 12
    (52, 4)
    """
    if max_epochs <= 1 or budget < 2:
        return budget, 0
    more = max_epochs - 1
    kept = max(1, (budget // 2) // more)
    screened = budget - kept * more
    if screened < kept:
        screened = max(1, budget // 2)
    return screened, kept


def _one_epoch(setup: Setup) -> Search:
    from tune_ext.benchmark.tune_parts import ScreeningScheduler, StreamSearch

    screened, _ = screening_plan(setup.budget, setup.max_epochs)
    return Search(
        StreamSearch(setup, limit=screened),
        ScreeningScheduler(screened, metric=setup.task.metric, mode=setup.task.mode),
    )


def _halving(setup: Setup) -> dict[str, Any]:
    """What Ray's schedulers that stop the worse trials early are all told."""
    return {
        "time_attr": "training_iteration",
        "metric": setup.task.metric,
        "mode": setup.task.mode,
        "max_t": setup.max_epochs,
    }


def _asha(setup: Setup) -> Search:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    from tune_ext.benchmark.tune_parts import StreamSearch

    scheduler = AsyncHyperBandScheduler(**_halving(setup))
    return Search(StreamSearch(setup), scheduler, stops_trials=True)


def _hyperband(setup: Setup) -> Search:
    from ray.tune.schedulers import HyperBandScheduler

    from tune_ext.benchmark.tune_parts import StreamSearch

    scheduler = HyperBandScheduler(**_halving(setup), reduction_factor=REDUCTION_FACTOR)
    return Search(StreamSearch(setup), scheduler, stops_trials=True)


def _bohb(setup: Setup) -> Search:
    from ray.tune.schedulers import HyperBandForBOHB
    from ray.tune.search.bohb import TuneBOHB

    # TuneBOHB takes points off the list that it is given and seeds the space: own copies.
    first = list(itertools.islice(setup.configurations(), BOHB_FIRST_POINTS))
    search = TuneBOHB(
        space=copy.deepcopy(setup.task.space),
        metric=setup.task.metric,
        mode=setup.task.mode,
        points_to_evaluate=first,
        seed=derive_seed(setup.seed, "bohb") % 2**32,
    )
    scheduler = HyperBandForBOHB(**_halving(setup), reduction_factor=REDUCTION_FACTOR)
    return Search(search, scheduler, stops_trials=True)


def _autohyper(setup: Setup) -> Search:
    """Probes alone (`final_trials=0`).

    Its answer needs no full-length training inside the search: it selects by the response
    of the probes and looks at no validation data. The full-length trainings that judge the
    recommendation are the same for every method, outside the budget.
    """
    from tune_ext.raytune.autohyper import AutoHyperScheduler, AutoHyperSearch

    probe = min(PROBE_EPOCHS, setup.max_epochs)
    # One trial at a time: speculative probes would cost budget and save no time.
    search = AutoHyperSearch(
        space=copy.deepcopy(setup.task.space),
        probe_epochs=probe,
        final_trials=0,
        max_concurrent=1,
    )
    scheduler = AutoHyperScheduler(probe_epochs=probe, max_t=setup.max_epochs)
    return Search(
        search,
        scheduler,
        stops_trials=True,
        answer=lambda: search.best_config,
        details=lambda: {"moves": search.explain().to_rows()},
    )


def _exptest(setup: Setup) -> Search:
    """Rungs alone (`final_trials=0`), one at a time, each as many epochs as it needs.

    Like autoHyper's, its answer needs no full-length training inside the search and no
    validation data. It searches the learning rate; other parameters have their default.
    """
    from tune_ext.raytune import ExpTestScheduler, ExpTestSearch

    plan = plan_rungs(setup.task, setup.seed)
    space = ConfigurationSpace(space={"lr": copy.deepcopy(setup.task.space["lr"])})
    search = ExpTestSearch(
        space=space, bound=plan.bound, steps=plan.steps, final_trials=0, max_concurrent=1
    )
    return Search(
        search,
        ExpTestScheduler(max_t=plan.epochs),
        stops_trials=True,
        answer=lambda: search.best_config,
        details=lambda: {"moves": search.explain().to_rows()},
    )


def _exptest_random(setup: Setup) -> Search:
    """Random search over the rest: each trial finds its own rate, then trains in full.

    The epochs of its ladder count like all others.
    """
    from tune_ext.benchmark.tune_parts import StreamSearch

    return Search(StreamSearch(setup, fixed={"lr": SEARCHED}))


def _nothing_left(task: Task) -> str | None:
    """Why there is nothing for a random search beside the learning rate."""
    reason = no_ladder(task)
    if reason is None and len(task.space) < 2:
        return f"{task.name} searches nothing but the learning rate here; use exptest"
    return reason


_HPBANDSTER = {"hpbandster": "pip install hpbandster (it needs a C compiler)"}

METHODS: dict[str, Method] = {
    "default": Method("the optimiser's default rate; no search", None),
    "one-epoch": Method("screen many at random for one epoch, train the best few", _one_epoch),
    "random": Method("random search, every trial at full length", _random),
    "asha": Method("Ray's ASHA over random configurations", _asha),
    "hyperband": Method("Ray's HyperBandScheduler over random configurations", _hyperband),
    "bohb": Method("Ray's TuneBOHB with HyperBandForBOHB", _bohb, _HPBANDSTER),
    "autohyper": Method(
        "autoHyper: a trust region on the response of the network",
        _autohyper,
        chooses="the response",
        ours=True,
    ),
    "exptest": Method(
        "ExpTest: a ladder of learning rates, tested for decay of the training loss",
        _exptest,
        unsuited=no_ladder,
        chooses="the training loss of short runs",
        ours=True,
    ),
    "exptest+random": Method(
        "random search of the other parameters; each trial finds its rate by ExpTest",
        _exptest_random,
        unsuited=_nothing_left,
        ours=True,
    ),
}


def missing(name: str) -> str | None:
    """None if the method can run here, else what to install."""
    for module, fix in METHODS[name].needs.items():
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: {fix}"
    return None


def unsuited(name: str, task: Task) -> str | None:
    """None if the method can search the task, else the reason why not."""
    return METHODS[name].unsuited(task)


def check_methods(names: Iterator[str] | tuple[str, ...]) -> None:
    """Raise InvalidValueError for names that are not in `METHODS`."""
    for name in names:
        if name not in METHODS:
            raise InvalidValueError(
                f"there is no method {name!r} for methods; choose from {', '.join(METHODS)}"
            )
