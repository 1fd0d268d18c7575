"""Ours and Ray's on the simulated clock, with trials that do what they should not.

A `System` is a searcher with its scheduler and something to train. A `Fault` says what becomes of
a step of a trial. `play` runs the one under the other, in Ray's own control loop, and says how it
went; a run that would hang ends in `SimulationStuck`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandForBOHB, HyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.optuna import OptunaSearch

from experiments.chaos.outcome import Ended, Outcome
from tests.raytune.exptest_trainables import losses
from tests.raytune.interrupted import Run
from tests.raytune.trainables import response
from tune_ext import LossMonitor
from tune_ext.benchmark.simulation import SimulationStuck
from tune_ext.errors import TuneExtError
from tune_ext.raytune import (
    AutoHyperScheduler,
    AutoHyperSearch,
    BOHBSearch,
    ExpTestScheduler,
    ExpTestSearch,
    HyperBand,
    ImageGrowthSearch,
)
from tune_ext.raytune.smac import SMACSearch

R = 9
MINIMUM: dict[str, Any] = {"metric": "loss", "mode": "min"}
SPACE = {"x": tune.uniform(0.0, 1.0)}
ILL_ABOVE = 0.75  # of x; the best is at 0.3, and what is ill would never have been chosen
MISSING = "missing"
KINDS: dict[str, Any] = {
    "NaN": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "None": None,
    "no metric": MISSING,
}


class PlannedError(RuntimeError):
    """What a trial dies of."""


@dataclass
class Fault:
    """What becomes of a step: nothing special.

    Args:
        lives: How often each trial was begun; a resumed trial is begun again.
        hurt: How often each trial was hurt.
        steps: How often each step of each trial was trained.
    """

    hurt: Counter[str] = field(default_factory=Counter)
    steps: Counter[tuple[str, int]] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)

    def value(self, trial: str, position: float, epoch: int, value: Any) -> Any:
        """What is reported instead of a value; may raise `PlannedError`.

        Args:
            trial: What tells the trial from others: its configuration.
            position: Where its configuration is, 0 to 1; what is above `ILL_ABOVE` is bad.
            epoch: Of the trial.
            value: What it would report.
        """
        return value


@dataclass
class Always(Fault):
    """Trials of a region report something else, or die where `instead` is "raise"."""

    instead: Any = "raise"
    epoch: int = 1

    def value(self, trial: str, position: float, epoch: int, value: Any) -> Any:
        """See `Fault.value`."""
        if position <= ILL_ABOVE or epoch < self.epoch:
            return value
        self.hurt[trial] = 1
        if self.instead == "raise":
            raise PlannedError("as planned")
        return self.instead


@dataclass
class Once(Fault):
    """Every third trial dies at its first, second or third epoch, the first time."""

    seed: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def value(self, trial: str, position: float, epoch: int, value: Any) -> Any:
        """See `Fault.value`."""
        number = self.numbers.setdefault(trial, len(self.numbers) + self.seed)
        if number % 3 == 1 and not self.hurt[trial] and epoch == 1 + number // 3 % 3:
            self.hurt[trial] += 1
            raise PlannedError("as planned")
        return value


class _Trained:
    """What all trainables here share: epochs, and the fault."""

    metric = "loss"

    def __init__(self, config: dict[str, Any], fault: Fault) -> None:
        self.config, self.fault, self.epoch = config, fault, 0

    def step(self) -> dict[str, Any]:
        """Train an epoch; or what the fault makes of it."""
        name, epoch = self.name(), self.epoch + 1
        value = self.fault.value(name, self.position(), epoch, self.compute(epoch))
        self.fault.steps[name, epoch] += 1
        self.epoch = epoch
        shown = {} if isinstance(value, str) else {self.metric: value}
        return {**shown, "other": 1.0, "seconds": self.seconds(), "done": self.is_done(epoch)}

    def state(self) -> int:
        """What a checkpoint holds."""
        return self.epoch

    def load(self, state: int) -> None:
        """Go on from a checkpoint."""
        self.epoch = state

    def name(self) -> str:
        """What tells its trial from others."""
        return repr({k: v for k, v in sorted(self.config.items()) if k != "tune_ext"})

    def position(self) -> float:
        """Where its configuration is; see `Fault.value`."""
        return float(self.config["x"])

    def compute(self, epoch: int) -> Any:
        """What an epoch would report."""
        return abs(self.position() - 0.3) + 0.1 / epoch

    def seconds(self) -> float:
        """How long an epoch takes."""
        return 1.0 + int(1000 * self.position()) % 3

    def is_done(self, epoch: int) -> bool:
        """Whether it ends by itself."""
        return epoch >= R


class Short(_Trained):
    """Three epochs; for searchers without a scheduler."""

    def is_done(self, epoch: int) -> bool:
        """Whether it ends by itself."""
        return epoch >= 3


class Response(_Trained):
    """A response that falls with the learning rate; probes above 2e-3 are ill."""

    metric = "response_mean"

    def name(self) -> str:
        """What tells its trial from others."""
        return f"{self.config['lr']} {self.config['tune_ext']['role']}"

    def position(self) -> float:
        """Where its configuration is; see `Fault.value`."""
        return 0.5 if self.config["lr"] <= 2e-3 else 1.0

    def compute(self, epoch: int) -> Any:
        """What an epoch would report."""
        return response(self.config["lr"])

    def seconds(self) -> float:
        """How long an epoch takes."""
        return 1.0 + int(1e6 * self.config["lr"]) % 3

    def is_done(self, epoch: int) -> bool:
        """Whether it ends by itself."""
        return False


class Rung(_Trained):
    """Losses of a linear regression, 20 steps an epoch; rates above 0.2 are ill."""

    def __init__(self, config: dict[str, Any], fault: Fault) -> None:
        super().__init__(config, fault)
        self.load(0)

    def load(self, state: int) -> None:
        """Go on from a checkpoint."""
        self.epoch, self.ended = 0, False
        self.monitor, self.losses = LossMonitor(self.config), losses(self.config["lr"])
        for _ in range(state):
            self.compute(self.epoch + 1)
            self.epoch += 1

    def name(self) -> str:
        """What tells its trial from others."""
        return f"{self.config['lr']} {self.config['tune_ext']['role']}"

    def position(self) -> float:
        """Where its configuration is; see `Fault.value`."""
        return 0.5 if self.config["lr"] <= 0.2 else 1.0

    def seconds(self) -> float:
        """How long an epoch takes."""
        return 1.0 + int(1e6 * self.config["lr"]) % 3

    def compute(self, epoch: int) -> Any:
        """What an epoch would report."""
        for loss in itertools.islice(self.losses, 20):
            self.ended = self.monitor.step(loss) or self.ended
            if self.ended:
                break
        return loss

    def step(self) -> dict[str, Any]:
        """Report of an epoch."""
        result = super().step()
        shown = result.get("loss", MISSING)
        report = self.monitor.report()
        if shown is MISSING:
            return result
        if shown is None or not math.isfinite(shown):
            entries = dict.fromkeys(report["exptest"], shown)
            report = {"exptest": {**entries, "version": report["exptest"].get("version")}}
        return {**result, **report}

    def is_done(self, epoch: int) -> bool:
        """Whether it ends by itself."""
        return self.ended


@dataclass(frozen=True)
class System:
    """A searcher, its scheduler, and what they train.

    Args:
        name: "ours: …" or "ray: …".
        make: A seed → a searcher and a scheduler; the searcher ends by itself.
        trainable: What is trained.
        answer: Searcher and trials → the configuration to recommend, or None.
        models: It suggests what its model of all values says, so that trials which fail for good
            lead it elsewhere.
        slow: A run takes seconds.
    """

    name: str
    make: Callable[[int], tuple[Any, Any]]
    trainable: Callable[[dict[str, Any], Fault], _Trained] = _Trained
    answer: Callable[[Any, list[Any]], Any] = lambda search, trials: best(trials)
    models: bool = False
    slow: bool = False


def best(trials: list[Any]) -> Any:
    """The least loss of those that were trained longest, NaN and infinities aside."""
    known = [t for t in trials if is_number((t.last_result or {}).get("loss"))]
    chosen = min(
        known,
        key=lambda t: (-t.last_result["training_iteration"], t.last_result["loss"]),
        default=None,
    )
    return None if chosen is None else chosen.config["x"]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def limited(search: Any, count: int = 24) -> Any:
    """A searcher that ends after so many suggestions."""
    suggest, left = search.suggest, iter(range(count))

    def next_one(trial_id: str) -> Any:
        return suggest(trial_id) if next(left, None) is not None else Searcher.FINISHED

    search.suggest = next_one
    for name in ("on_pause", "on_unpause"):
        if not hasattr(search, name):  # HyperBandForBOHB would crash
            setattr(search, name, lambda trial_id: None)
    return search


class Random(Searcher):
    """Configurations at random, as Ray's default searcher draws them."""

    def __init__(self, seed: int) -> None:
        super().__init__(**MINIMUM)
        self.random = np.random.default_rng(seed)

    def suggest(self, trial_id: str) -> Any:
        """Draw one."""
        return {"x": self.random.random()}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learned."""


def _chosen(search: Any, trials: list[Any]) -> Any:
    """What the searcher says, once its final trial was trained, too."""
    found = search.best_config
    final = [t for t in trials if (t.config.get("tune_ext") or {}).get("role") == "final"]
    return found if final and all(t.status == "TERMINATED" for t in final) else None


def _tune_bohb(seed: int) -> Any:
    np.random.seed(seed)  # noqa: NPY002 (hpbandster draws from it)
    return TuneBOHB(TuneBOHB.convert_search_space(SPACE), **MINIMUM, seed=seed)


def _optuna(seed: int) -> Any:
    return limited(OptunaSearch(SPACE, **MINIMUM, seed=seed))


def _autohyper(seed: int) -> tuple[Any, Any]:
    space = {"lr": tune.loguniform(1e-6, 1.0)}
    search = AutoHyperSearch(space, probe_epochs=3, max_concurrent=3)
    return search, AutoHyperScheduler(probe_epochs=3, max_t=8)


def _exptest(seed: int) -> tuple[Any, Any]:
    space = {"lr": tune.loguniform(1e-5, 10.0)}
    search = ExpTestSearch(space, bound=0.01, max_concurrent=3)
    return search, ExpTestScheduler(max_t=6)


def _growth(seed: int) -> tuple[Any, Any]:
    sizes = [(8, 12), (16, 8), (32, 6)]
    return ImageGrowthSearch("random", sizes, space=SPACE, seed=seed, **MINIMUM), FIFOScheduler()


def _ours(asynchronous: bool) -> Callable[[int], tuple[Any, Any]]:
    def make(seed: int) -> tuple[Any, Any]:
        search = limited(BOHBSearch(SPACE, seed=seed, **MINIMUM))
        return search, HyperBand(max_t=R, asynchronous=asynchronous, **MINIMUM)

    return make


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("ours: autoHyper", _autohyper, Response, _chosen),
        System("ours: ExpTest", _exptest, Rung, _chosen),
        System("ours: HyperBand + BOHBSearch", _ours(False), models=True),
        System("ours: HyperBand, asynchronous, + BOHBSearch", _ours(True), models=True),
        System(
            "ours: ImageGrowthSearch", _growth, Short, lambda search, trials: search.best_config
        ),
        System(
            "ours: SMACSearch",
            lambda seed: (limited(SMACSearch(SPACE, seed=seed, **MINIMUM), 16), FIFOScheduler()),
            Short,
            models=True,
            slow=True,
        ),
        System(
            "ray: HyperBandScheduler + random",
            lambda seed: (limited(Random(seed)), HyperBandScheduler(max_t=R, **MINIMUM)),
        ),
        System(
            "ray: HyperBandForBOHB + TuneBOHB",
            lambda seed: (limited(_tune_bohb(seed)), HyperBandForBOHB(max_t=R, **MINIMUM)),
            models=True,
            slow=True,
        ),
        System(
            "ray: ASHA + Optuna",
            lambda seed: (_optuna(seed), ASHAScheduler(max_t=R, **MINIMUM)),
            models=True,
        ),
        System(
            "ray: ASHA + random",
            lambda seed: (limited(Random(seed)), ASHAScheduler(max_t=R, **MINIMUM)),
        ),
        System("ray: Optuna", lambda seed: (_optuna(seed), FIFOScheduler()), Short, models=True),
    )
}


@dataclass(frozen=True)
class Played:
    """How a run went.

    Args:
        ended: As in an `Outcome`.
        answer: What is recommended.
        hurt: How many faults were injected.
        lost: Trials whose last result is not known at the end.
        repeated: Trials that trained a step again although nothing had ended them.
        error: What ended the run.
        ill: Whether the answer is of the region in which all are hurt for good.
    """

    ended: Ended
    answer: Any
    hurt: int
    lost: int
    repeated: int
    error: str = ""
    ill: bool = False


def play(
    system: System,
    fault: Fault,
    directory: Path,
    *,
    seed: int = 0,
    workers: int = 1,
    retries: int = 0,
    meddle: Callable[[Any, Any], None] = lambda search, scheduler: None,
) -> Played:
    """Run a system under a fault, to its end or to where it hangs or crashes.

    Args:
        system: What runs.
        fault: What becomes of its trials.
        directory: For whatever Ray insists on writing.
        seed: Of the system.
        workers: How many trials run at once.
        retries: How often Ray tries a trial again.
        meddle: Called with the searcher and the scheduler before the run; may replace methods.
    """
    search, scheduler = system.make(seed)
    meddle(search, scheduler)
    home = directory / f"run{len(list(directory.glob('run*')))}"
    home.mkdir(parents=True)
    run = Run(
        lambda config: system.trainable(config, fault),
        search,
        scheduler,
        storage=home,
        workers=workers,
        retries=retries,
    )
    ended: Ended = "finished"
    error = ""
    try:
        run.step()
    except SimulationStuck as stuck:
        ended, error = "hung", str(stuck)
    except Exception as crash:  # whatever a system under test raises is its result
        ended, error = _end_of(crash)
    trials = run.trials()
    answer = None if ended == "crashed" else system.answer(search, trials)
    hurt = sum(fault.hurt.values())
    ill = isinstance(fault, Always) and is_number(answer) and answer > ILL_ABOVE
    return Played(ended, answer, hurt, _lost(fault, trials), _repeated(fault), error, ill)


def _end_of(crash: Exception) -> tuple[Ended, str]:
    """Whether an error says what to do; and its last line."""
    said = str(crash).strip().splitlines() or [""]
    clear = isinstance(crash, TuneExtError) or "did not include the specified metric" in str(crash)
    return "clear error" if clear else "crashed", f"{type(crash).__name__}: {said[-1][:100]}"


def _lost(fault: Fault, trials: list[Any]) -> int:
    reached = Counter[str]()
    for name, epoch in fault.steps:
        reached[name] = max(reached[name], epoch)
    known = sum((t.last_result or {}).get("training_iteration", 0) > 0 for t in trials)
    return max(0, len(reached) - known)


def _repeated(fault: Fault) -> int:
    """Trials of which a step was trained more often than they were ended, and once."""
    most = Counter[str]()
    for (name, _), times in fault.steps.items():
        most[name] = max(most[name], times)
    return sum(times > 1 + fault.hurt[name] for name, times in most.items())


def tally(
    case: str,
    system: System,
    runs: Sequence[tuple[Played, Any]],
    note: Callable[[Played, Any], str] = lambda played, expected: "",
) -> Outcome:
    """What some runs of a system say.

    Args:
        case: Its name.
        system: What was hurt.
        runs: Each with the answer that it should have given; None where none is expected, and
            any that is not ill is right.
        note: What is told of a run that did not go well.
    """
    compared = [(played, expected) for played, expected in runs if expected is not None]
    well = [p for p, expected in runs if _is_well(p, expected)]
    ends = Counter(p.ended for p, _ in runs)
    notes = [note(p, e) or _what(p, e) for p, e in runs if not _is_well(p, e)]
    told = Counter(notes).most_common(2)
    return Outcome(
        case,
        system.name,
        injected=sum(max(p.hurt, 1) for p, _ in runs),
        survived=sum(max(p.hurt, 1) for p in well),
        lost_results=sum(p.lost for p, _ in runs),
        repeated_trials=sum(p.repeated for p, _ in runs),
        same_answer=all(p.answer == e for p, e in compared) if compared else None,
        ended=next((end for end in _ENDS if ends[end]), "finished"),
        note="; ".join(f"{count} of {len(runs)} runs: {what}" for what, count in told),
    )


_ENDS: tuple[Ended, ...] = ("hung", "crashed", "clear error", "finished")


def _is_well(played: Played, expected: Any) -> bool:
    known = played.answer is not None and not played.ill
    right = known if expected is None else played.answer == expected
    return played.ended == "finished" and right and not (played.lost or played.repeated)


def _what(played: Played, expected: Any) -> str:
    if played.ended == "hung":
        return f"hangs: {played.error}"
    if played.ended != "finished":
        return f"ends for all trials: {played.error}"
    if played.lost or played.repeated:
        return f"{played.lost} results lost, {played.repeated} trials repeated"
    return "another answer" if played.answer is not None else "no answer"
