"""ExpTest's search for a learning rate: a ladder of rungs, by ask and tell.

Source: Chaudhry, Mizuno, "Loss-Curve Hypothesis Testing for Autonomous Learning-Rate
Selection", arXiv 2411.16975. The public sources give the theory, α and β; the procedure is
completed here, in `tune_ext._ladder_walk`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tune_ext._checks import (
    as_number,
    check_choice,
    check_count,
    check_positive,
    check_state,
)
from tune_ext._explanation import Explanation
from tune_ext._ladder_walk import BROKEN, Rules, Walk, likely_next, walk
from tune_ext._rung import Rung, RungResult
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["Ladder"]

_VERSION = 1
_ROUNDING = 1e-9  # a bound given as bound·β^−k is reached in spite of rounding
_SMALLEST, _LARGEST = 1e-300, 1e300  # rates beyond cannot be told from 0 and infinity


@dataclass
class _Record:
    rung: Rung
    status: Literal["pending", "done", "failed", "lost"] = "pending"


class Ladder:
    """Rungs lr = bound·β^(−index), asked for and told in any order, and the one to choose.

    As published, the ladder climbs from rung 0 until a rung fails, that is, does not decay; if
    rung 0 fails, or turns out to be the best, it descends until the end loss rises again; the
    choice is the passing rung with the lowest end loss.

    Ours, where that is silent, or a bound without theory behind it (with Adam, say) would lead
    it astray:

    * A rung that diverged has too large a rate. One that stays finite and does not decay may
      have too small a one just as well: it does not end the climb. A rung, passing or not,
      that ends clearly above a smaller rate (by three standard errors) does.
    * Without an effect of the rate one rung in twenty passes by chance. Until a rung has learnt
      something (passes with p < 0.001 and ends below 0.9 of its first loss) the ladder goes in
      both directions in turns. The climb then ends after three rungs in a row that end clearly
      above a smaller rate and above their own first loss, the descent after three that are no
      better than one which got below its first loss.
    * A loss that decays from a peak that the rate itself made, and never gets below its first
      value, does not pass. Rungs that fail before any has passed do not end the descent.

    Measured on 420 ladders of networks with none to four hidden layers
    (experiments/exptest/wrong_bounds.py): 4 rungs from the bound itself, 7 at most; from one
    that is 10⁴ times too small or too large 15 and 12, 24 at most. What is chosen then is 0.3
    rungs away and ends as low; at most, over all wrong bounds, it is 1.7 rungs away and ends
    1.17 times higher, and 2.2 rungs and 1.65 times where each rung sees other batches.

    Which rungs are needed and which is chosen depends on the results alone: not on how many
    rungs were asked for at once, nor on the order of their results.

    >>> ladder = Ladder(0.1)
    >>> while not ladder.finished:
    ...     for rung in ladder.ask():
    ...         fine = rung.lr < 1.0
    ...         result = RungResult("decaying", 0.01, -0.1, abs(rung.lr - 0.3), 60)
    ...         ladder.tell(rung.index, result if fine else None)
    >>> round(ladder.lr, 3)
    0.303

    Args:
        bound: The rate of rung 0, from `learning_rate_bound`; moved to the nearest of
            `lower` and `upper` if it lies outside.
        beta: Each rung down multiplies the rate by this (published: 0.33).
        alpha: Level of the rungs' tests; kept for those that run the rungs.
        steps: Training steps of a rung; kept for those that run the rungs.
        lower: No rung has a smaller rate.
        upper: No rung has a larger rate.
        max_rungs: The ladder ends rather than need more rungs than this. Rungs that were
            measured ahead and not needed do not count. 25 rungs with β = 0.33 cover twelve
            decades.

    Raises:
        InvalidValueError: An argument that cannot work; the message names it.
        InvalidTypeError: An argument of the wrong type.
    """

    def __init__(
        self,
        bound: float,
        *,
        beta: float = 0.33,
        alpha: float = 0.05,
        steps: int = 60,
        lower: float = 0.0,
        upper: float = math.inf,
        max_rungs: int = 25,
    ) -> None:
        self.beta = check_positive("beta", beta, below=1.0)
        self.alpha = check_positive("alpha", alpha, below=1.0)
        self.steps = check_count("steps", steps, 3)
        self.lower, self.upper = as_number("lower", lower), as_number("upper", upper)
        if self.lower < 0:
            raise InvalidValueError(f"lower must not be negative, got {lower}")
        if self.upper <= 0 or self.upper < self.lower:
            raise InvalidValueError(
                f"upper must be positive and not below lower, got lower={lower}, upper={upper}"
            )
        if math.isinf(self.lower):
            raise InvalidValueError(f"lower must be finite, got {lower}")
        self.max_rungs = check_count("max_rungs", max_rungs)
        given = check_positive("bound", bound, below=math.inf)
        self.bound = min(max(given, self.lower, _SMALLEST), self.upper, _LARGEST)
        self._rules = Rules(self._lowest(), self._highest(), self.max_rungs)
        self._results: dict[int, RungResult] = {}
        self._records: dict[int, _Record] = {}
        self._walk = self._advance()

    def _lowest(self) -> int:
        decades = math.log(self.bound) - math.log(max(self.lower, _SMALLEST))
        return -math.floor(max(decades, 0.0) / -math.log(self.beta) + _ROUNDING)

    def _highest(self) -> int:
        decades = math.log(min(self.upper, _LARGEST)) - math.log(self.bound)
        return math.floor(max(decades, 0.0) / -math.log(self.beta) + _ROUNDING)

    def _advance(self) -> Walk:
        return walk(self._rules, self._results.get)

    def rate(self, index: int) -> float:
        """The learning rate of a rung, bound·β^(−index)."""
        if index == 0:
            return self.bound
        return min(max(self.bound * self.beta**-index, self.lower), self.upper)

    def ask(self, n: int | None = None) -> list[Rung]:
        """New rungs to measure, each handed out once.

        First the one that the next decision waits for, then those that will most probably
        be needed after it.

        Args:
            n: How many at most. None: what the next decision waits for, and no more.

        Returns:
            The rungs; none when there is nothing to hand out, now or (`finished`) for good.
        """
        if n is not None:
            check_count("n", n, 0)
        if self.finished:
            return []
        pending = {i for i, r in self._records.items() if r.status == "pending"}
        found = [i for i in sorted(self.needed) if i not in pending]
        count = len(found)
        if n is not None:
            found = found[:n]
            skip = pending | self.needed
            if len(found) < n:
                found += likely_next(self._rules, self._results, skip, n - len(found))
        rungs = [Rung(i, self.rate(i), k >= count) for k, i in enumerate(found)]
        for rung in rungs:
            self._records[rung.index] = _Record(rung)
        return rungs

    def tell(self, index: int, result: RungResult | None) -> None:
        """Report the result of a rung, asked for or not.

        The first report about a rung counts; later ones change nothing.

        Args:
            index: `Rung.index`.
            result: What came out. None, or one without an end loss, is a failed rung: never
                chosen, and taken for a rate that is too large.

        Raises:
            InvalidValueError: There is no rung of this index within the bounds.
        """
        self._check_index(index)
        if result is not None and not isinstance(result, RungResult):
            raise InvalidTypeError(f"result must be a RungResult or None, got {result!r}")
        record = self._records.setdefault(index, _Record(Rung(index, self.rate(index))))
        if index not in self._results:
            self._results[index] = BROKEN if result is None else result
        record.status = "failed" if self._results[index].broken else "done"
        self._walk = self._advance()

    def forget(self, index: int) -> None:
        """Take back a rung that never ran; it may be asked for again.

        Raises:
            InvalidValueError: There is no rung of this index within the bounds.
        """
        self._check_index(index)
        record = self._records.get(index)
        if record is not None and record.status == "pending":
            record.status = "lost"

    def _check_index(self, index: object) -> None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise InvalidTypeError(f"index must be an integer, got {index!r}")
        if not self._rules.lowest <= index <= self._rules.highest:
            raise InvalidValueError(
                f"there is no rung {index}: within the bounds are "
                f"{self._rules.lowest} to {self._rules.highest}"
            )

    @property
    def finished(self) -> bool:
        """Whether the ladder has its answer."""
        return self._walk.needed is None

    @property
    def pending(self) -> tuple[Rung, ...]:
        """The rungs that were asked for and not yet told, in the order of asking."""
        return tuple(r.rung for r in self._records.values() if r.status == "pending")

    @property
    def needed(self) -> frozenset[int]:
        """The indices that the next decision waits for, asked for or not."""
        return frozenset() if self._walk.needed is None else frozenset({self._walk.needed})

    @property
    def best(self) -> Rung | None:
        """The passing rung with the lowest end loss; before the end, so far. None: none."""
        best = self._walk.best
        return None if best is None else Rung(best, self.rate(best))

    @property
    def lr(self) -> float | None:
        """The rate of `best`."""
        return None if self.best is None else self.best.lr

    @property
    def results(self) -> dict[int, RungResult]:
        """Every result so far, by index; a failed rung has verdict "diverged"."""
        return dict(self._results)

    def explain(self) -> Explanation:
        """Every rung so far, in the order of the decisions, each with what followed from it."""
        rows = [self._row(s.index, "rung", s.reason) for s in self._walk.steps]
        if self.finished and self._walk.best is not None:
            rows.append(self._row(self._walk.best, "choice", self._walk.end))
        elif self.finished:
            rows.append({**self._row(0, "end", self._walk.end), **_NO_RUNG})
        reason = "measured ahead, never needed" if self.finished else "measured, not used so far"
        ahead = sorted(i for i in self._results if i not in self._walk.seen)
        return Explanation(tuple(rows + [self._row(i, "ahead", reason) for i in ahead]))

    def _row(self, index: int, event: str, reason: str) -> dict[str, Any]:
        result = self._results[index]
        return {
            "event": event,
            "rung": index,
            "lr": self.rate(index),
            "verdict": "failed" if result is BROKEN else result.verdict,
            "p_value": None if result.broken else result.p_value,
            "end_loss": result.end_loss,
            "steps": result.steps,
            "reason": reason,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything about the ladder as plain JSON."""
        return {
            "version": _VERSION,
            "kind": "ladder",
            "arguments": {
                "bound": self.bound,
                "beta": self.beta,
                "alpha": self.alpha,
                "steps": self.steps,
                "lower": self.lower,
                "upper": None if math.isinf(self.upper) else self.upper,
                "max_rungs": self.max_rungs,
            },
            "rungs": [
                {
                    "index": i,
                    "speculative": r.rung.speculative,
                    "status": r.status,
                    "result": self._saved(i),
                }
                for i, r in self._records.items()
            ],
        }

    def _saved(self, index: int) -> dict[str, Any] | None:
        result = self._results.get(index)
        return None if result is None or result is BROKEN else result.to_dict()

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Ladder:
        """The ladder that `state_dict` described: it goes on as that one would have.

        Raises:
            StateError: The state is damaged, of another version, or not of a `Ladder`.
        """
        check_state(state, "ladder", _VERSION, "a Ladder")
        try:
            arguments = dict(state["arguments"])
            upper = arguments.pop("upper")
            ladder = cls(upper=math.inf if upper is None else upper, **arguments)
            for saved in state["rungs"]:
                ladder._replay(saved)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise StateError(f"the state of the Ladder is damaged: {error!r}") from error
        return ladder

    def _replay(self, saved: Mapping[str, Any]) -> None:
        index, status, result = saved["index"], saved["status"], saved["result"]
        self._check_index(index)
        check_choice("status", status, ("pending", "done", "failed", "lost"))
        if index in self._records:
            raise StateError(f"rung {index} is there twice")
        rung = Rung(index, self.rate(index), bool(saved["speculative"]))
        self._records[index] = _Record(rung)
        if status in ("done", "failed"):
            self.tell(index, None if result is None else RungResult.from_dict(result))
        if self._records[index].status not in (status, "pending"):
            raise StateError(f"rung {index} is {status}, but its result is {result!r}")
        self._records[index] = replace(self._records[index], status=status)


_NO_RUNG = {"rung": None, "lr": None, "verdict": None, "p_value": None, "end_loss": None}
