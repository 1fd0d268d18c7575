"""Methods that model the metric or breed configurations: builders for `methods.METHODS`.

What is shared: ordinals are searched as their numbers, in order; and, as with every other
searcher here, only a finished trial's last value counts. Ray's OptunaSearch does not tell Optuna
of a trial that ends with NaN: to Optuna it looks as if it were running for ever. That is how
Ray's users have it, so it stays.
"""

from __future__ import annotations

import itertools
from typing import Any

from tune_ext.benchmark._method import Search, Setup
from tune_ext.benchmark._spaces import number_ordinals, optuna_distributions, to_numbers
from tune_ext.benchmark.history import plain

__all__ = [
    "REDUCTION_FACTOR",
    "asha_tpe",
    "bohb",
    "cma_es",
    "gp",
    "halving",
    "limited",
    "nsga2",
    "our_bohb",
    "smac",
    "tpe",
]

REDUCTION_FACTOR = 3
"""HyperBand's and BOHB's factor between rungs: Ray's default."""

BOHB_FIRST_POINTS = 3
"""How many of the shared random configurations BOHB starts with."""

RANDOM_TRIALS = 10
"""Random trials before TPE and GP have a model: Optuna's default."""

GENERATIONS = 5
"""NSGA-II's population is so small that a budget has so many generations; 50 at most."""


def halving(setup: Setup) -> dict[str, Any]:
    """What Ray's schedulers that stop the worse trials early are all told."""
    return {
        "time_attr": "training_iteration",
        "metric": setup.task.metric,
        "mode": setup.task.mode,
        "max_t": setup.max_epochs,
    }


def limited(setup: Setup, searcher: Any) -> Any:
    """Ask no sooner than a worker is free: Ray would ask one trial ahead."""
    from ray.tune.search import ConcurrencyLimiter

    return ConcurrencyLimiter(searcher, max_concurrent=setup.workers)


def _optuna(setup: Setup, sampler: Any, first: int) -> Any:
    """Ray's OptunaSearch, which starts with the first shared random configurations.

    Optuna's distributions know no conditions: what is inactive has its default.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    from tune_ext.benchmark.tune_parts import NumberedSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, values = number_ordinals(setup.task.space)
    inactive = {name: plain(setup.task.space[name].default_value) for name in setup.task.space}
    points = ({**inactive, **p} for p in itertools.islice(setup.configurations(), first))
    searcher = OptunaSearch(
        optuna_distributions(space),
        metric=setup.task.metric,
        mode=setup.task.mode,
        points_to_evaluate=[to_numbers(point, values) for point in points],
        sampler=sampler,
    )
    return limited(setup, NumberedSearch(searcher, values) if values else searcher)


def _tpe(setup: Setup) -> Any:
    from optuna.samplers import TPESampler

    sampler = TPESampler(seed=setup.derived_seed("tpe"), n_startup_trials=RANDOM_TRIALS)
    return _optuna(setup, sampler, RANDOM_TRIALS)


def tpe(setup: Setup) -> Search:
    """Optuna's default sampler."""
    return Search(_tpe(setup))


def asha_tpe(setup: Setup) -> Search:
    """ASHA over TPE, which takes the last value of a stopped trial for its result."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return Search(_tpe(setup), AsyncHyperBandScheduler(**halving(setup)), stops_trials=True)


def gp(setup: Setup) -> Search:
    """Optuna's Gaussian process."""
    from optuna.samplers import GPSampler

    sampler = GPSampler(seed=setup.derived_seed("gp"), n_startup_trials=RANDOM_TRIALS)
    return Search(_optuna(setup, sampler, RANDOM_TRIALS))


def cma_es(setup: Setup) -> Search:
    """Optuna's CMA-ES; its first distribution is around the middle of the space."""
    from optuna.samplers import CmaEsSampler

    sampler = CmaEsSampler(seed=setup.derived_seed("cma-es"))
    return Search(_optuna(setup, sampler, 1))


def nsga2(setup: Setup) -> Search:
    """Optuna's NSGA-II, with one objective.

    Its default population of 50 would be random search on most budgets: see `GENERATIONS`.
    """
    from optuna.samplers import NSGAIISampler

    population = min(50, max(4, setup.trainings // GENERATIONS))
    sampler = NSGAIISampler(population_size=population, seed=setup.derived_seed("nsga2"))
    return Search(_optuna(setup, sampler, population))


def smac(setup: Setup) -> Search:
    """SMAC3, which expects as many trials as the budget pays for; its own initial design."""
    from tune_ext.raytune.smac import SMACSearch

    searcher = SMACSearch(
        setup.task.space,
        metric=setup.task.metric,
        mode=setup.task.mode,
        n_trials=setup.trainings,
        seed=setup.derived_seed("smac"),
    )
    return Search(limited(setup, searcher))


def bohb(setup: Setup) -> Search:
    """Ray's BOHB. It is repeatable only if numpy's global generator is seeded before the run."""
    from ray.tune.schedulers import HyperBandForBOHB
    from ray.tune.search.bohb import TuneBOHB

    from tune_ext.benchmark.tune_parts import NumberedSearch

    # TuneBOHB takes points off the list that it is given and seeds the space: own copies.
    space, values = number_ordinals(setup.task.space)
    first = itertools.islice(setup.configurations(), BOHB_FIRST_POINTS)
    searcher = TuneBOHB(
        space=space,
        metric=setup.task.metric,
        mode=setup.task.mode,
        points_to_evaluate=[to_numbers(point, values) for point in first],
        seed=setup.derived_seed("bohb"),
    )
    scheduler = HyperBandForBOHB(**halving(setup), reduction_factor=REDUCTION_FACTOR)
    return Search(NumberedSearch(searcher, values), scheduler, stops_trials=True)


def our_bohb(setup: Setup) -> Search:
    """BOHB's model under Hyperband, both ours; the first points are shared, as for `bohb`."""
    from tune_ext.raytune import BOHBSearch, HyperBand

    first = itertools.islice(setup.configurations(), BOHB_FIRST_POINTS)
    searcher = BOHBSearch(
        setup.task.space,
        metric=setup.task.metric,
        mode=setup.task.mode,
        points_to_evaluate=list(first),
        seed=setup.derived_seed("our-bohb"),
    )
    scheduler = HyperBand(**halving(setup), reduction_factor=REDUCTION_FACTOR)
    return Search(limited(setup, searcher), scheduler, stops_trials=True)
