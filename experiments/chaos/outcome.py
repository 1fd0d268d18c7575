"""What a case of the chaos suite says, and how a case is written down.

A case injects one kind of fault into ours and, where Ray has a counterpart, into Ray's::

    @case("nan", "a trial reports NaN", short=True, here=True)
    def nan(directory: Path, seed: int) -> Iterator[Outcome]:
        yield Outcome("nan", "ours: HyperBand", injected=7, survived=7, ...)

It may return a list, too; what is yielded is kept even if the case hangs afterwards. Cases live in
`cases_*.py` beside this file and are found by `load`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Ended = Literal["finished", "clear error", "hung", "crashed"]
Function = Callable[[Path, int], "Iterable[Outcome]"]


@dataclass(frozen=True)
class Outcome:
    """How one system took one kind of fault.

    Args:
        case: The name of the case.
        system: What was hurt: "ours: HyperBand", "ray: HyperBandScheduler", "tune-ext compare", …;
            what belongs to the other side begins with "ray".
        injected: How many faults were injected.
        survived: After how many of them everything was as the suite expects: the run ended, with
            the answer that it would have had, or with a clear error.
        lost_results: Results that had been reported and were not there afterwards.
        repeated_trials: Trials that were run again although their results were there.
        same_answer: Whether the recommendation was that of the run without the fault, every
            time; None where there is nothing to compare.
        ended: The worst end of all: "finished", "clear error" (of ours or Ray's, that says what to
            do), "hung" (stopped by the suite, or nothing could ever happen again), "crashed".
        seconds: How long it took, on the clock on the wall.
        note: What a reader must know; one or two sentences.
    """

    case: str
    system: str
    injected: int
    survived: int
    lost_results: int = 0
    repeated_trials: int = 0
    same_answer: bool | None = None
    ended: Ended = "finished"
    seconds: float = 0.0
    note: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it says something about this package."""
        return not self.system.startswith("ray")

    @property
    def is_well(self) -> bool:
        """Whether everything was as it should be."""
        kept = not self.lost_results and not self.repeated_trials and self.same_answer is not False
        return self.survived == self.injected and kept and self.ended in ("finished", "clear error")


@dataclass(frozen=True)
class Case:
    """A case as registered.

    Args:
        name: Unique.
        what: What is injected, in a few words.
        function: Takes an empty directory and a seed; gives outcomes.
        short: Whether it belongs to the short part, which the tests run.
        here: Whether it may run in a process that has more to do: it starts no Ray, ends no
            process, hangs never (the clock is simulated), and says what came of ours first.
        seconds: After so long it is stopped and counts as hung.
    """

    name: str
    what: str
    function: Function
    short: bool
    here: bool
    seconds: float


CASES: dict[str, Case] = {}


def case(
    name: str, what: str, *, short: bool = False, here: bool = False, seconds: float = 300.0
) -> Callable[[Function], Function]:
    """Register a function as a case; `Case` says what the arguments are.

    Raises:
        ValueError: Another case has that name.
    """

    def register(function: Function) -> Function:
        known = CASES.get(name)
        if known is not None and _place(known.function) != _place(function):
            raise ValueError(f"two cases are called {name!r}")
        CASES[name] = Case(name, what, function, short, here, seconds)
        return function

    return register


def _place(function: Function) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def load() -> dict[str, Case]:
    """All cases of all files, by name."""
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        importlib.import_module(f"experiments.chaos.{path.stem}")
    return dict(CASES)
