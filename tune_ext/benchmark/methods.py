"""The methods that are compared: a dictionary from a name to how it is built.

To add one, write a function that takes a `Setup` and returns a `Search`, and enter it in
`METHODS`. Nothing else has to change. Ray is imported inside the functions alone, so that
this module can be listed without it; what needs a Ray class of its own is in `tune_parts`,
`_population` and `_models`.

What they share: random search, one-epoch screening, median stopping, ASHA, HyperBand and the
population of PBT try the same configurations in the same order for a seed
(`Setup.configurations`); BOHB, TPE, GP and NSGA-II start with the first few of them. Every
trial of a cell starts from the same initial weights and data.

What others have made runs with their defaults, except where a default cannot fit a small
budget; each builder says so. A searcher that learns from results waits for those that are
under way before it suggests for a worker that is not free yet.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Iterator

from ConfigSpace import ConfigurationSpace

from tune_ext._loss_monitor import SEARCHED
from tune_ext._random import generator
from tune_ext.benchmark import _growth, _models, _scaled
from tune_ext.benchmark._method import Method, Search, Setup
from tune_ext.benchmark._models import REDUCTION_FACTOR, halving
from tune_ext.benchmark._spaces import grid, not_floats, unordered
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

PROBE_EPOCHS = 5
"""The length of autoHyper's probes, as published."""

PBT_INTERVALS = 5
"""Into how many intervals PBT divides the full length."""


def _random(setup: Setup) -> Search:
    from tune_ext.benchmark.tune_parts import StreamSearch

    return Search(StreamSearch(setup))


def _grid(setup: Setup) -> Search:
    """A grid of as many points as the budget pays for at full length; at most, see `grid`.

    Its points come in an order drawn by the seed, so that a run that is cut off has not seen
    one corner only; the points are the same for every seed.
    """
    from tune_ext.benchmark.tune_parts import StreamSearch

    points = grid(setup.task.space, setup.trainings)
    order = generator(setup.seed, "grid").permutation(len(points))
    return Search(StreamSearch(setup, points=[points[i] for i in order]))


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


def _asha(setup: Setup) -> Search:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    from tune_ext.benchmark.tune_parts import StreamSearch

    scheduler = AsyncHyperBandScheduler(**halving(setup))
    return Search(StreamSearch(setup), scheduler, stops_trials=True)


def _hyperband(setup: Setup) -> Search:
    from ray.tune.schedulers import HyperBandScheduler

    from tune_ext.benchmark.tune_parts import StreamSearch

    scheduler = HyperBandScheduler(**halving(setup), reduction_factor=REDUCTION_FACTOR)
    return Search(StreamSearch(setup), scheduler, stops_trials=True)


def _our_hyperband(setup: Setup) -> Search:
    from tune_ext.benchmark.tune_parts import StreamSearch
    from tune_ext.raytune import HyperBand

    scheduler = HyperBand(**halving(setup), reduction_factor=REDUCTION_FACTOR)
    return Search(StreamSearch(setup), scheduler, stops_trials=True)


def _median(setup: Setup) -> Search:
    """The median stopping rule over random search, from a quarter of the full length on.

    Ray's rule would pause every trial until three others are as long, and with a searcher that
    never ends there are always new ones to start instead; here none is paused for that: the
    first three train in full.
    """
    from ray.tune.schedulers import MedianStoppingRule

    from tune_ext.benchmark.tune_parts import StreamSearch

    rule = MedianStoppingRule(
        time_attr="training_iteration",
        metric=setup.task.metric,
        mode=setup.task.mode,
        grace_period=max(1, setup.max_epochs // 4),
        min_time_slice=math.inf,
    )
    return Search(StreamSearch(setup), rule)


def _pbt(setup: Setup) -> Search:
    """Ray's PBT: as many members as the budget trains in full, two at least.

    No member is added later: it would be trained before those that are nearly at the end. So
    epochs are left over where members diverge, or go on from where a better one is. What is
    recommended is a schedule; it is replayed from scratch with the evaluation's seeds.
    """
    from ray.tune.search import ConcurrencyLimiter

    from tune_ext.benchmark._population import Population
    from tune_ext.benchmark.tune_parts import StreamSearch

    size = max(2, setup.trainings)
    members = ConcurrencyLimiter(StreamSearch(setup, limit=size), max_concurrent=size)
    scheduler = Population(setup, interval=max(1, setup.max_epochs // PBT_INTERVALS))
    return Search(
        members,
        scheduler,
        answer=scheduler.answer,
        details=scheduler.details,
        schedule=scheduler.schedule,
    )


def _autohyper(setup: Setup) -> Search:
    """Probes alone (`final_trials=0`).

    Its answer needs no full-length training inside the search: it selects by the response
    of the probes and looks at no validation data. The full-length trainings that judge the
    recommendation are the same for every method, outside the budget.
    """
    from tune_ext.raytune.autohyper import AutoHyperScheduler, AutoHyperSearch

    probe = min(PROBE_EPOCHS, setup.max_epochs)
    # No more trials at a time than workers: speculative probes cost budget.
    search = AutoHyperSearch(
        space=copy.deepcopy(setup.task.space),
        probe_epochs=probe,
        final_trials=0,
        max_concurrent=setup.workers,
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
    """Rungs alone (`final_trials=0`), one a worker, each as many epochs as it needs.

    Like autoHyper's, its answer needs no full-length training inside the search and no
    validation data. It searches the learning rate; other parameters have their default.
    """
    from tune_ext.raytune import ExpTestScheduler, ExpTestSearch

    plan = plan_rungs(setup.task, setup.seed)
    space = ConfigurationSpace(space={"lr": copy.deepcopy(setup.task.space["lr"])})
    search = ExpTestSearch(
        space=space,
        bound=plan.bound,
        steps=plan.steps,
        final_trials=0,
        max_concurrent=setup.workers,
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


def _at_least(epochs: int, why: str) -> Callable[[Task], str | None]:
    """Unsuited where the full length is less than so many epochs."""

    def check(task: Task) -> str | None:
        if task.max_epochs >= epochs:
            return None
        length = "one epoch" if task.max_epochs == 1 else f"{task.max_epochs} epochs"
        return f"{task.name} trains for {length}: {why}"

    return check


_NOTHING_TO_STOP = _at_least(2, "there is no earlier result to stop a trial by")
_NO_BRACKET = _at_least(3, "HyperBand, which trains a third as long, has nothing to halve")


def _no_weights(task: Task) -> str | None:
    if task.simulated:
        return f"{task.name} is looked up: it has no weights that one trial could hand to another"
    if task.searches_architecture:
        return f"{task.name} searches the architecture: weights fit no other one"
    return _at_least(2, "there is no time between the start and the end to change anything")(task)


def _no_evolution_strategy(task: Task) -> str | None:
    """Where Optuna's CMA-ES would draw at random without a word."""
    if names := unordered(task.space):
        return f"the choices of {', '.join(names)} have no order: CMA-ES would draw them at random"
    if len(task.space) < 2:
        return f"{task.name} searches one parameter here: Optuna's CMA-ES would draw it at random"
    return None


def _no_response(task: Task) -> str | None:
    if not task.measures_response:
        return f"{task.name} does not measure the response of the network"
    if names := not_floats(task.space):
        return f"autoHyper moves real numbers, and {', '.join(names)} are not"
    return None


_HPBANDSTER = {"hpbandster": "pip install hpbandster (it needs a C compiler)"}
_OPTUNA = {"optuna": "pip install optuna"}
_CMA = {**_OPTUNA, "cmaes": "pip install cmaes"}
_SMAC = {"smac": "pip install smac"}

METHODS: dict[str, Method] = {
    "default": Method("the optimiser's default rate; no search", None, whole=True),
    "grid": Method("a grid, every point at full length", _grid, whole=True),
    "one-epoch": Method(
        "screen many at random for one epoch, train the best few",
        _one_epoch,
        "early stopping",
        unsuited=_at_least(2, "one epoch is the full length; use random"),
    ),
    "random": Method("random search, every trial at full length", _random, whole=True),
    "tpe": Method(
        "Optuna's tree-structured Parzen estimator", _models.tpe, "model", _OPTUNA, whole=True
    ),
    "gp": Method("Optuna's Gaussian process", _models.gp, "model", _OPTUNA, whole=True),
    "cma-es": Method(
        "Optuna's CMA-ES",
        _models.cma_es,
        "evolution",
        _CMA,
        unsuited=_no_evolution_strategy,
        whole=True,
    ),
    "nsga2": Method(
        "Optuna's NSGA-II, a genetic algorithm", _models.nsga2, "evolution", _OPTUNA, whole=True
    ),
    "smac": Method(
        "SMAC3: expected improvement by a random forest", _models.smac, "model", _SMAC, whole=True
    ),
    "median": Method(
        "Ray's median stopping rule over random configurations",
        _median,
        "early stopping",
        unsuited=_NOTHING_TO_STOP,
    ),
    "asha": Method(
        "Ray's ASHA over random configurations",
        _asha,
        "early stopping",
        unsuited=_NOTHING_TO_STOP,
    ),
    "asha+tpe": Method(
        "Ray's ASHA over Optuna's TPE",
        _models.asha_tpe,
        "model + early stopping",
        _OPTUNA,
        unsuited=_NOTHING_TO_STOP,
    ),
    "hyperband": Method(
        "Ray's HyperBandScheduler over random configurations",
        _hyperband,
        "early stopping",
        unsuited=_NO_BRACKET,
    ),
    "bohb": Method(
        "Ray's TuneBOHB with HyperBandForBOHB",
        _models.bohb,
        "model + early stopping",
        _HPBANDSTER,
        unsuited=_NO_BRACKET,
    ),
    "our-hyperband": Method(
        "our HyperBand, synchronous, over random configurations",
        _our_hyperband,
        "ours",
        unsuited=_NOTHING_TO_STOP,
        ours=True,
    ),
    "our-bohb": Method(
        "our BOHBSearch with our HyperBand, synchronous",
        _models.our_bohb,
        "ours",
        unsuited=_NOTHING_TO_STOP,
        ours=True,
    ),
    "pbt": Method(
        "Ray's PopulationBasedTraining; its answer is a schedule",
        _pbt,
        "population",
        unsuited=_no_weights,
    ),
    "autohyper": Method(
        "autoHyper: a trust region on the response of the network",
        _autohyper,
        "ours",
        unsuited=_no_response,
        chooses="the response",
        ours=True,
    ),
    "exptest": Method(
        "ExpTest: a ladder of learning rates, tested for decay of the training loss",
        _exptest,
        "ours",
        unsuited=no_ladder,
        chooses="the training loss of short runs",
        ours=True,
    ),
    "exptest+random": Method(
        "random search of the other parameters; each trial finds its rate by ExpTest",
        _exptest_random,
        "ours",
        unsuited=_nothing_left,
        ours=True,
    ),
    "random+init": Method(
        "random, with architecture-aware initial weights (beside random+scaled)",
        _scaled.random_initialized,
        unsuited=_scaled.one_network,
        whole=True,
    ),
}
METHODS |= {
    f"{name}+scaled": _scaled.scaled_method(name, METHODS[name])
    for name in ("random", "tpe", "asha", "bohb", "our-bohb")
}
METHODS |= {f"{name}+growth": _growth.growth_method(name, METHODS[name]) for name in _growth.GROWN}


def missing(name: str) -> str | None:
    """None if the method can run here, else what to install."""
    for module, fix in METHODS[name].needs.items():
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: {fix}"
    return None


def unsuited(name: str, task: Task, unit: str = "epochs") -> str | None:
    """None if the method can search the task, else the reason why not.

    Args:
        name: Of the method.
        task: What is searched.
        unit: Of the budget: one in evaluations is for methods that train every trial to its end.
    """
    if not task.counts_epochs:
        return (
            "its trainings are counted in seconds, and a comparison trains in epochs: give its "
            'options unit = "epochs", or search it with tune_ext.benchmark.timed'
        )
    if unit == "evaluations" and not METHODS[name].whole:
        return "the budget counts evaluations, and not all of its trials train to their end"
    return METHODS[name].unsuited(task)


def check_methods(names: Iterator[str] | tuple[str, ...]) -> None:
    """Raise InvalidValueError for names that are not in `METHODS`."""
    for name in names:
        if not isinstance(name, str) or name not in METHODS:
            raise InvalidValueError(
                f"there is no method {name!r} for methods; choose from {', '.join(METHODS)}"
            )
