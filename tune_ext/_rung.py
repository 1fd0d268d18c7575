"""One rung of the ladder: where it stands, how it is tested, what came out.

Source: Chaudhry, Mizuno, arXiv 2411.16975; `end_error`, `rose` and `first_loss` of a result are
our completion.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tune_ext._checks import (
    as_number,
    check_choice,
    check_count,
    check_positive,
    check_state,
)
from tune_ext._decay import DecayTest, Verdict
from tune_ext.errors import InvalidTypeError, StateError

__all__ = ["LAST", "Rung", "RungResult", "RungTest"]

_VERDICTS = ("decaying", "not decaying", "diverged")
_VERSION = 1
LAST = 5
"""The end loss is the mean of the last fifth of the losses."""


@dataclass(frozen=True)
class Rung:
    """A learning rate to try, from the same initial weights and batches as the others.

    Args:
        index: Its place: 0 is the bound, positive climbs to larger rates, negative descends.
        lr: bound·β^(−index).
        speculative: Asked for because it will probably be needed, not because the next
            decision waits for it.
    """

    index: int
    lr: float
    speculative: bool = False


@dataclass(frozen=True)
class RungResult:
    """What a rung showed.

    A number that is not finite counts as missing.

    Args:
        verdict: Of the test for exponential decay.
        p_value: Of that test.
        slope: Change of the log of the loss per step.
        end_loss: Mean of the last fifth of the losses; None if there is none (diverged).
        steps: How many losses were seen.
        end_error: Standard error of `end_loss`; 0 where it is not known, and end losses are
            then compared as if they were exact.
        rose: Whether no later loss was below the first one. The loss then decayed, if it
            did, from a peak that the rate itself had made. Without any change of the loss
            this is so with probability 1/`steps` only.
        first_loss: The loss of the first step; None if it is not known.
    """

    verdict: Verdict
    p_value: float
    slope: float
    end_loss: float | None
    steps: int
    end_error: float = 0.0
    rose: bool = False
    first_loss: float | None = None

    def __post_init__(self) -> None:
        check_choice("verdict", self.verdict, _VERDICTS)
        object.__setattr__(self, "steps", check_count("steps", self.steps, 0))
        object.__setattr__(self, "end_loss", _finite(self.end_loss))
        object.__setattr__(self, "first_loss", _finite(self.first_loss))
        for name, missing in (("p_value", 1.0), ("slope", 0.0), ("end_error", 0.0)):
            value = _finite(getattr(self, name))
            object.__setattr__(self, name, missing if value is None else value)

    @property
    def broken(self) -> bool:
        """Whether it diverged or has no end loss."""
        return self.verdict == "diverged" or self.end_loss is None

    @property
    def passes(self) -> bool:
        """Whether the loss decayed, stayed finite, and got below where it began."""
        return self.verdict == "decaying" and self.end_loss is not None and not self.rose

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RungResult:
        """What `to_dict` returned; other entries are ignored.

        Raises:
            StateError: Something is missing or of the wrong kind.
        """
        try:
            names = {f.name for f in fields(cls)}
            return cls(**{k: v for k, v in values.items() if k in names})
        except (TypeError, ValueError, AttributeError) as error:
            raise StateError(f"this is not the result of a rung: {error}") from error


def _finite(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        try:
            value = float(value)  # type: ignore[arg-type]  # numpy's numbers
        except (TypeError, ValueError):
            raise InvalidTypeError(f"a rung's result must hold numbers, got {value!r}") from None
    return float(value) if math.isfinite(value) else None


class RungTest:
    """Watches the losses of one rung.

    >>> test = RungTest(steps=20)
    >>> while not test.done:
    ...     complete = test.update(0.9 ** test.n + 0.01 * (test.n % 2))
    >>> test.result().verdict
    'decaying'

    Args:
        steps: How many training steps a rung has (ALGORITHMS: 60; 30 is enough where the
            signal is strong).
        alpha: Level of the test.
        autocorrelation: See `DecayTest`. The default is the plain test, which sees a loss that
            falls in a few noisy steps and then is flat (ln ℓ = 2e^(−t) with noise of 0.1, 30
            steps: in 99.9 % of the cases, "ar1" in 2 %). Such a rung is the one to find, and one
            that passes by chance has no low end loss.
        transform: See `DecayTest`.
    """

    def __init__(
        self,
        steps: int = 60,
        alpha: float = 0.05,
        *,
        autocorrelation: Literal["ar1", "none"] = "none",
        transform: Literal["log", "identity"] = "log",
    ) -> None:
        self.steps = check_count("steps", steps, 3)
        self.alpha = check_positive("alpha", alpha, below=1.0)
        self._options = {"autocorrelation": autocorrelation, "transform": transform}
        self._test = DecayTest(self.alpha, autocorrelation=autocorrelation, transform=transform)
        self._last: deque[float] = deque(maxlen=max(1, self.steps // LAST))
        self._first: float | None = None
        self._fell = False

    @property
    def n(self) -> int:
        """How many losses were seen."""
        return self._test.n

    @property
    def done(self) -> bool:
        """Whether all steps were seen, or the loss has diverged."""
        return self._test.diverged or self._test.n >= self.steps

    def update(self, loss: float) -> bool:
        """Take the loss of the next step.

        Losses after the end are ignored.

        Args:
            loss: The mini-batch loss of this step, from before its update of the weights.

        Returns:
            `done`.
        """
        if self.done:
            return True
        loss = float(loss)
        self._test.update(loss)
        self._last.append(loss)
        if self._first is None:
            self._first = loss
        elif loss < self._first:
            self._fell = True
        return self.done

    def result(self) -> RungResult:
        """What the losses so far say; the rung's result once it is `done`."""
        found = self._test.result()
        end, error = None, 0.0
        if not self._test.diverged and self._last:
            end, error = _mean(list(self._last))
        return RungResult(
            found.verdict,
            found.p_value,
            found.slope,
            end,
            self._test.n,
            end_error=error,
            rose=self._test.n > 1 and not self._fell,
            first_loss=self._first,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        finite = [x if math.isfinite(x) else None for x in self._last]
        return {
            "version": _VERSION,
            "kind": "rung test",
            "steps": self.steps,
            "alpha": self.alpha,
            "options": dict(self._options),
            "test": self._test.state_dict(),
            "last": finite,
            "first": None if self._first is None else _finite(self._first),
            "fell": self._fell,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RungTest:
        """The test that `state_dict` described.

        Raises:
            StateError: The state is damaged, of another version, or of something else.
        """
        check_state(state, "rung test", _VERSION, "a RungTest")
        try:
            test = cls(state["steps"], state["alpha"], **state["options"])
            test._test = DecayTest.from_state_dict(state["test"])
            test._last.extend(_loss(x) for x in state["last"])
            if len(state["last"]) != min(test._test.n, test._last.maxlen or 0):
                raise StateError("the last losses do not fit to the number of steps")
            test._first = _loss(state["first"]) if test._test.n else None
            test._fell = bool(state["fell"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the state of the RungTest is damaged: {error!r}") from error
        return test


def _loss(value: object) -> float:
    return math.nan if value is None else as_number("a loss", value)


def _mean(losses: list[float]) -> tuple[float, float]:
    """Mean and its standard error, without overflow of sums or squares."""
    scale = max(map(abs, losses)) or 1.0
    scaled = [x / scale for x in losses]
    n = len(scaled)
    mean = math.fsum(scaled) / n
    if n < 2:
        return mean * scale, 0.0
    variance = math.fsum((x - mean) ** 2 for x in scaled) / (n - 1)
    return mean * scale, math.sqrt(variance / n) * scale
