"""The methods: each trains one run of a task, and counts every training step that it spends.

Those of other packages are used as their authors recommend (the links are in README.md):
with their defaults, and without a schedule of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from typing import Any

import torch
from torch import nn
from training import Hooks, Outcome, Prepared, run

from tune_ext import ExpTestLR, find_lr
from tune_ext.errors import NoLearningRateError

GRID = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
SGD_DEFAULT, ADAM_DEFAULT = 1e-3, 1e-3
RUNG_STEPS = 60
SHORTEST_WINDOW = 60  # steps; windows of one epoch are published, but an epoch may be 9 steps

Known = Mapping[str, Mapping[str, Any]]
"""The records of this task and seed so far, by method."""


@dataclass(frozen=True)
class Method:
    """A way to come by a learning rate and to train with it.

    Attributes:
        text: One line.
        train: From the prepared task and the records that it needs to the outcome.
        needs: Methods that must have run before, on the same task and seed.
    """

    text: str
    train: Callable[[Prepared, Known], Outcome]
    needs: tuple[str, ...] = ()


def _constant_name(rate: float) -> str:
    return f"constant-{rate:g}"


CONSTANTS = tuple(_constant_name(rate) for rate in GRID)
COOLED = tuple(f"cooled-{rate:g}" for rate in GRID)
COOLDOWN = 0.2


def better(metric: str, a: float | None, b: float | None) -> bool:
    """Whether `a` is better than `b`; None (diverged) is never better."""
    if a is None or b is None:
        return a is not None
    return a > b if metric == "accuracy" else a < b


def oracle(known: Known, metric: str, grid: tuple[str, ...] = CONSTANTS) -> str:
    """The method of the grid (of constant rates) with the best validation metric."""
    best = grid[0]
    for name in grid[1:]:
        values = (known[n]["metrics"].get("validation") for n in (name, best))
        if better(metric, *values):
            best = name
    return best


def _oracle_rate(prepared: Prepared, known: Known) -> tuple[float, int]:
    """The oracle's rate and what the whole grid cost."""
    record = known[oracle(known, prepared.task.metric)]
    return float(record["lr"]), sum(known[name]["steps"] for name in CONSTANTS)


def _constant(rate: float, make: Any = torch.optim.SGD, **options: Any) -> Any:
    def train(prepared: Prepared, known: Known) -> Outcome:
        network = prepared.network()
        outcome = run(prepared, network, make(network.parameters(), lr=rate, **options))
        outcome.lr = rate
        return outcome

    return train


def _cosine(prepared: Prepared, known: Known) -> Outcome:
    rate, cost = _oracle_rate(prepared, known)
    network = prepared.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, prepared.steps)
    outcome = run(prepared, network, optimizer, Hooks(step=lambda loss: schedule.step()))
    outcome.lr, outcome.search_steps = rate, cost
    return outcome


def _cooled(rate: float) -> Any:
    """A rate of the grid with exptest's cool-down at its latest, but without a test."""

    def train(prepared: Prepared, known: Known) -> Outcome:
        network = prepared.network()
        optimizer = torch.optim.SGD(network.parameters(), lr=rate)
        cooling = COOLDOWN * prepared.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (prepared.steps - step) / cooling)
        )
        outcome = run(prepared, network, optimizer, Hooks(step=lambda loss: schedule.step()))
        outcome.lr = rate
        return outcome

    return train


def _own(make: Callable[[Any], torch.optim.Optimizer]) -> Any:
    """A parameter-free optimiser as it comes."""

    def train(prepared: Prepared, known: Known) -> Outcome:
        network = prepared.network()
        return run(prepared, network, make(network.parameters()))

    return train


def _prodigy(parameters: Any) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(parameters)


def _dadapt_adam(parameters: Any) -> torch.optim.Optimizer:
    from dadaptation import DAdaptAdam

    return DAdaptAdam(parameters)


def _dadapt_sgd(parameters: Any) -> torch.optim.Optimizer:
    from dadaptation import DAdaptSGD

    return DAdaptSGD(parameters)


def _dog(prepared: Prepared, known: Known) -> Outcome:
    """DoG with the averaging of its package, which its authors call crucial."""
    from dog import DoG, PolynomialDecayAverager

    network = prepared.network()
    averager = PolynomialDecayAverager(network)

    @contextmanager
    def evaluated() -> Iterator[nn.Module]:
        yield averager.averaged_model.eval()

    hooks = Hooks(step=lambda loss: averager.step(), evaluated=evaluated)
    return run(prepared, network, DoG(network.parameters()), hooks)


def _schedule_free(name: str) -> Any:
    def train(prepared: Prepared, known: Known) -> Outcome:
        import schedulefree

        network = prepared.network()
        optimizer = getattr(schedulefree, name)(network.parameters())
        optimizer.train()

        @contextmanager
        def evaluated() -> Iterator[nn.Module]:
            optimizer.eval()
            _refresh_statistics(prepared, network)
            network.eval()
            yield network
            network.train()
            optimizer.train()

        return run(prepared, network, optimizer, Hooks(evaluated=evaluated))

    return train


@torch.no_grad()
def _refresh_statistics(prepared: Prepared, network: nn.Module) -> None:
    """BatchNorm's running statistics for the averaged weights, as Schedule-Free's authors ask."""
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        for x, _ in islice(prepared.batches(), 50):
            network(x)


def _range_test(prepared: Prepared) -> tuple[float | None, int]:
    """torch-lr-finder's suggestion (the steepest descent), if it has one, and what it cost.

    As its documentation shows it: from 1e-7 to 10, exponentially, in 100 steps.
    """
    import matplotlib.pyplot as plt
    from torch_lr_finder import LRFinder, TrainDataLoaderIter

    class Endless(TrainDataLoaderIter):  # type: ignore[misc]
        """The batches as the package wants them, without a DataLoader."""

        def __init__(self) -> None:
            self._again = iter(lambda: iter(batches), None)
            self._now = next(self._again)

        def __iter__(self) -> Endless:
            return self

        def __next__(self) -> Any:
            for batch in self._now:
                return batch
            self._now = next(self._again)
            return next(self)

    batches = prepared.batches()
    network = prepared.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-7)
    finder = LRFinder(network, optimizer, prepared.task.loss_fn, device=prepared.task.device)
    figure, axes = plt.subplots()
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it prints as it goes
            finder.range_test(Endless(), end_lr=10, num_iter=100)
            suggested = finder.plot(ax=axes)
    finally:
        plt.close(figure)
    cost = len(finder.history["lr"])
    return (float(suggested[1]) if isinstance(suggested, tuple) else None), cost


def _no_rate(cost: int) -> Outcome:
    return Outcome(search_steps=cost, details={"error": "the range test suggests no rate"})


def _ranged(prepared: Prepared, known: Known) -> Outcome:
    rate, cost = _range_test(prepared)
    outcome = _no_rate(cost) if rate is None else _constant(rate)(prepared, known)
    outcome.search_steps = cost
    return outcome


def _plateau(prepared: Prepared, rate: float, cost: int) -> Outcome:
    """ReduceLROnPlateau as it comes: validation loss, factor .1, patience of 10 epochs."""
    network = prepared.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    outcome = run(prepared, network, optimizer, Hooks(epoch=schedule.step))
    outcome.lr, outcome.search_steps = rate, cost
    return outcome


def _plateau_ranged(prepared: Prepared, known: Known) -> Outcome:
    rate, cost = _range_test(prepared)
    return _no_rate(cost) if rate is None else _plateau(prepared, rate, cost)


# -- ExpTest ------------------------------------------------------------------------------


def _exptest(
    make: Any = torch.optim.SGD, *, search: bool = True, tune: bool = True, horizon: bool = True,
    **options: Any,
) -> Any:  # fmt: skip
    """find_lr and ExpTestLR, or one of the two.

    Args:
        make: The optimiser.
        search: Whether the ladder finds the rate; else the oracle's is taken.
        tune: Whether tests lower the rate; else it is constant.
        horizon: Whether the length of the run is known to the tests.
        **options: Of the optimiser.
    """

    def train(prepared: Prepared, known: Known) -> Outcome:
        network, details = prepared.network(), {}
        if search:
            try:
                found = find_lr(
                    network, prepared.task.loss_fn, prepared.batches(), optimizer=make,
                    optimizer_kwargs=options, steps=RUNG_STEPS,
                )  # fmt: skip
            except NoLearningRateError as error:
                return Outcome(details={"error": str(error)})
            rate, cost = found.lr, found.steps
            details["ladder"] = [_rung(rung) for rung in found.rungs]
        else:
            rate, cost = _oracle_rate(prepared, known)
        optimizer = make(network.parameters(), lr=rate, **options)
        outcome = _tuned(prepared, network, optimizer, horizon) if tune else run(
            prepared, network, optimizer
        )  # fmt: skip
        outcome.lr, outcome.search_steps = rate, cost
        outcome.details |= details
        return outcome

    return train


def _rung(rung: Any) -> dict[str, Any]:
    end = rung.result.end_loss
    return {
        "lr": rung.lr,
        "verdict": rung.result.verdict,
        "end_loss": end if end is not None and math.isfinite(end) else None,
    }


def _tuned(
    prepared: Prepared, network: nn.Module, optimizer: torch.optim.Optimizer, horizon: bool
) -> Outcome:
    schedule = ExpTestLR(
        optimizer,
        window=max(prepared.epoch, SHORTEST_WINDOW),
        model=network,
        total_steps=prepared.steps if horizon else None,
    )
    try:
        outcome = run(prepared, network, optimizer, Hooks(step=schedule.step, keeps_going=True))
    except NoLearningRateError as error:
        return Outcome(details={"error": str(error)})
    keep = ("event", "step", "p_value", "lr", "window")
    outcome.details["windows"] = [{k: row[k] for k in keep} for row in schedule.explain().rows]
    return outcome


def methods() -> dict[str, Method]:
    """Every method by its name, in the order in which they run."""
    found = {name: Method(f"SGD, constant rate {rate:g}", _constant(rate))
             for name, rate in zip(CONSTANTS, GRID, strict=True)}  # fmt: skip
    found["exptest"] = Method("find_lr + ExpTestLR, plain SGD", _exptest())
    found["adam-default"] = Method(
        "Adam, torch's default rate 1e-3", _constant(ADAM_DEFAULT, torch.optim.Adam)
    )
    found["prodigy"] = Method("Prodigy", _own(_prodigy))
    found["dadapt-adam"] = Method("D-Adaptation, Adam", _own(_dadapt_adam))
    found["dadapt-sgd"] = Method("D-Adaptation, SGD", _own(_dadapt_sgd))
    found["dog"] = Method("DoG with its averaging", _dog)
    found["schedule-free-sgd"] = Method("Schedule-Free SGD", _schedule_free("SGDScheduleFree"))
    found["schedule-free-adamw"] = Method(
        "Schedule-Free AdamW", _schedule_free("AdamWScheduleFree")
    )
    found["range-test"] = Method("LR range test, then constant", _ranged)
    found["plateau-default"] = Method(
        "ReduceLROnPlateau from SGD's default 1e-3",
        lambda prepared, known: _plateau(prepared, SGD_DEFAULT, 0),
    )
    found["plateau-range-test"] = Method(
        "ReduceLROnPlateau from the range test's rate", _plateau_ranged
    )
    found["cosine-oracle"] = Method("cosine from the oracle's rate", _cosine, CONSTANTS)
    found["exptest-open"] = Method(
        "exptest, length of the run unknown to it", _exptest(horizon=False)
    )
    found["ladder"] = Method("find_lr, then constant", _exptest(tune=False))
    found["tuner-oracle"] = Method(
        "ExpTestLR from the oracle's rate", _exptest(search=False), CONSTANTS
    )
    found["exptest-momentum"] = Method("exptest, SGD with momentum .9", _exptest(momentum=0.9))
    found["exptest-adam"] = Method("exptest, Adam", _exptest(torch.optim.Adam))
    for name, rate in zip(COOLED, GRID, strict=True):
        text = f"SGD, rate {rate:g}, linear cool-down over the last fifth"
        found[name] = Method(text, _cooled(rate))
    return found


LATTICE_GRID = tuple(10 ** (k / 2) for k in range(-8, 1))


def lattice_methods() -> dict[str, Method]:
    """Rates half a decade apart, and ExpTest, for the lattice."""
    found = {
        f"rate-{rate:.3g}": Method(f"SGD, constant rate {rate:.3g}", _constant(rate))
        for rate in LATTICE_GRID
    }
    found["exptest"] = Method("find_lr + ExpTestLR", _exptest())
    return found
