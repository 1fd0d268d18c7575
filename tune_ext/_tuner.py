"""ExpTest's tuning phase: windows of losses in, keep, decay or restore out.

Source: Chaudhry, Mizuno, "Loss-Curve Hypothesis Testing for Autonomous Learning-Rate
Selection", arXiv 2411.16975. The growth of the window, the floor of the rate, the correction
and the cool-down are our completion.

=======  ==========================  ===========================================
symbol   here                        meaning
=======  ==========================  ===========================================
η        `Tuner.lr`                  learning rate
T        `Tuner.window`              steps of the present window
α        `alpha`                     level of a decision to keep the rate
β        `beta`                      a decay is η ← β·η, T ← T/β
=======  ==========================  ===========================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tune_ext._checks import (
    as_number,
    check_choice,
    check_count,
    check_positive,
    check_state,
)
from tune_ext._decay import DecayResult, DecayTest
from tune_ext._explanation import Explanation
from tune_ext.errors import InvalidValueError, StateError

__all__ = ["Action", "Correction", "Tuner"]

Correction = Literal["spending", "none"]
Kind = Literal["keep", "decay", "restore"]

_VERSION = 1
_COOLDOWN = 0.2  # experiments/exptest/tried.md; 0.3 and 0.5 are as good within 1 %
_SMALLEST, _LONGEST = 1e-300, 2**53  # where hundreds of restores end: neither 0 nor infinite
_LOOKS = 2  # of "spending": after T and, if need be, after 2·T steps


@dataclass(frozen=True)
class Action:
    """What the end of a window leads to.

    Args:
        kind: "keep" goes on, "decay" goes on with a smaller rate, "restore" goes back to the
            last snapshot of the weights with a smaller rate.
        lr: The learning rate from now on.
        window: Steps of the next window.
        result: The test that decided.
    """

    kind: Kind
    lr: float
    window: int
    result: DecayResult


class Tuner:
    """Watches the training loss, and lowers the learning rate when the loss stops decaying.

    >>> tuner = Tuner(0.1, window=20)
    >>> kinds = []
    >>> for step in range(120):
    ...     loss = max(0.9 ** step, 0.01) + 0.001 * (step % 3)
    ...     if (action := tuner.update(loss)) is not None:
    ...         kinds.append(action.kind)
    >>> kinds
    ['keep', 'keep', 'keep', 'decay']

    At the end of a window of T steps the loss is tested for decay. If it decays, the rate is
    kept, and the next window has T steps. If it does not, η ← β·η and T ← T/β: the slope
    shrinks with the rate, and a window that did not grow with it would lose its power.

    Repeated testing has two errors, and they cost differently. "Decaying" on a plateau costs
    one more window. "Not decaying" on a curve that decays lowers the rate for good: it slows
    the training down, and with 1 − (power)^k it happens almost surely once in k windows. The
    correction is for the second and pays with the first's level:

    * "spending": a window that does not decay is no decision yet. It goes on to 2·T steps
      and is tested once more; only if that fails too the rate is lowered. The t-statistic of
      a slope grows as steps^1.5: one that is seen at the first look with probability one
      half is seen almost surely at the second, if it lasts. Each of the two looks has the
      level α/2. On a plateau a decision keeps the rate with probability at most α therefore,
      although it looks twice (union bound: no independence needed), and k decisions in a row
      keep it with at most α^k if windows are independent.
    * "none": one look a window, at the level α, as published.

    Both hold as far as the test is calibrated (see `DecayTest`).

    The rate cannot collapse. k reductions take at least T + T/β + … + T/β^(k−1) steps, hence
    β^−k ≤ 1 + (1/β − 1)·N/T after N steps, and η ≥ η₀ / (1 + (1/β − 1)·N/T) whatever the
    losses are, as long as they are finite (`floor`; with "spending" a reduction takes 2·T
    steps, and N/(2·T) stands for N/T). A divergence multiplies the rate by β at once, and is
    counted apart (`restores`).

    The length of the training may be known: `total_steps`. A second look that would come
    after the end is not waited for; the first look then decides, at the level α/2. With a
    `cooldown`, which a known length brings, the first window that does not decay does not
    multiply the rate: from there it falls linearly to `min_lr` at the end, exactly
    η·(steps left)/(steps of the cool-down) for `min_lr` = 0, and windows are not tested any
    more. If every window decays, the cool-down begins for the last `cooldown` of the steps.
    So a rate that is too large is lowered early, and a good one is used for long: on the four
    tasks where it was tried it was never far from the best of decays by β and of fixed
    cool-downs, and each of these was clearly worse somewhere
    (experiments/exptest/tried.md).

    Args:
        lr: η, the rate to begin with (from a `Ladder`).
        window: T, steps of the first window; one epoch, as published.
        alpha: Level of a decision.
        beta: A decay multiplies η by β and divides T by β.
        min_lr: η never falls below.
        correction: For repeated testing, see above.
        autocorrelation: See `DecayTest`.
        transform: See `DecayTest`.
        total_steps: The known length of the training, None if it is open.
        cooldown: The share of `total_steps` at its end over which the rate falls linearly to
            `min_lr` at the latest; 0 for none. None is 0.2 if `total_steps` is given.

    Raises:
        InvalidValueError: An argument that cannot work; the message names it.
        InvalidTypeError: An argument of the wrong type.
    """

    def __init__(
        self,
        lr: float,
        window: int,
        *,
        alpha: float = 0.05,
        beta: float = 0.33,
        min_lr: float = 0.0,
        correction: Correction = "spending",
        autocorrelation: Literal["ar1", "none"] = "ar1",
        transform: Literal["log", "identity"] = "log",
        total_steps: int | None = None,
        cooldown: float | None = None,
    ) -> None:
        self._first_lr = check_positive("lr", lr, below=math.inf)
        self._first_window = check_count("window", window, 3)
        self.alpha = check_positive("alpha", alpha, below=1.0)
        self.beta = check_positive("beta", beta, below=1.0)
        self.min_lr = as_number("min_lr", min_lr)
        if not 0 <= self.min_lr <= self._first_lr:
            raise InvalidValueError(f"min_lr must lie between 0 and lr ({lr}), got {min_lr}")
        check_choice("correction", correction, get_args(Correction))
        self.correction = correction
        self.total_steps = None if total_steps is None else check_count("total_steps", total_steps)
        if cooldown is None:
            cooldown = 0.0 if total_steps is None else _COOLDOWN
        self.cooldown = as_number("cooldown", cooldown)
        if not 0 <= self.cooldown < 1:
            raise InvalidValueError(f"cooldown must lie in [0, 1), got {cooldown}")
        if self.cooldown and self.total_steps is None:
            raise InvalidValueError("cooldown needs total_steps, the length of the training")
        self._test = DecayTest(self.alpha, autocorrelation=autocorrelation, transform=transform)
        self._options = {"autocorrelation": autocorrelation, "transform": transform}
        self._base_lr = self._first_lr
        self._window = self._first_window  # T
        self._looked = 0  # how often the present window was tested already
        self._step = 0
        self._restores = 0
        self._rows: list[dict[str, Any]] = []
        self._cooling_from = math.inf  # the step after which the rate falls linearly
        if self.cooldown and self.total_steps is not None:
            length = max(round(self.cooldown * self.total_steps), 1)
            self._cooling_from = self.total_steps - length

    @property
    def base_lr(self) -> float:
        """η as the tests have left it, without the cool-down."""
        return self._base_lr

    @property
    def lr(self) -> float:
        """The rate for the next step; read it after every update when there is a cool-down."""
        return self.lr_at(self._step)

    def lr_at(self, step: int) -> float:
        """The rate after so many steps in all, if no window ends before.

        For a loop that hands over many losses at once: during a cool-down each step has a
        rate of its own.
        """
        total = self.total_steps
        if total is None or step <= self._cooling_from:
            return self._base_lr
        left = max(total - step, 0) / (total - self._cooling_from)
        return self.min_lr + (self._base_lr - self.min_lr) * left

    @property
    def cooling(self) -> bool:
        """Whether the rate falls linearly to the end of the training."""
        return self._step >= self._cooling_from

    @property
    def window(self) -> int:
        """Steps of the present window: T, or 2·T if it was tested once without success."""
        return self._window * (1 + self._looked)

    @property
    def step(self) -> int:
        """How many losses were seen, those of windows that were restored included."""
        return self._step

    @property
    def restores(self) -> int:
        """How often a loss was not finite."""
        return self._restores

    def floor(self, steps: int) -> float:
        """What the rate before a cool-down cannot be below after so many steps.

        Args:
            steps: Counted from the beginning.
        """
        check_count("steps", steps, 0)
        first = self._first_window * (_LOOKS if self._always_looks_again else 1)
        grown = 1 + (1 / self.beta - 1) * steps / first
        return max(self.min_lr, self._first_lr / grown * self.beta**self._restores)

    def update(self, loss: float) -> Action | None:
        """Take the loss of one step.

        Args:
            loss: Training loss of the mini-batch.

        Returns:
            What to do, at the end of a window or when the loss is not finite; else None.
        """
        self._test.update(loss)
        self._step += 1
        return self._look()

    def update_many(self, losses: Sequence[float]) -> tuple[int, Action | None]:
        """As `update` with one loss after another, until there is something to do.

        Args:
            losses: Of successive steps, none left out.

        Returns:
            How many of them were taken (the others belong to the next window), and what to do.
        """
        room = len(losses) if self.cooling else max(self.window - self._test.n, 1)
        taken = next((i + 1 for i, x in enumerate(losses[:room]) if not math.isfinite(x)), room)
        stretch = losses[:taken]
        self._test.update_many(stretch)
        self._step += len(stretch)
        return len(stretch), self._look()

    def tell(self, statistics: Mapping[str, Any]) -> Action | None:
        """Take many steps at once.

        Args:
            statistics: `DecayTest.statistics` of the steps since the last call.

        Returns:
            As `update`; the window ends when it has at least `window` steps.
        """
        before = self._test.n
        self._test.merge(statistics)
        self._step += self._test.n - before
        return self._look()

    def _look(self) -> Action | None:
        """Test the window if it is time, and say what follows."""
        if self._test.diverged:
            self._restores += 1
            return self._act("restore", self._test.result())
        if self.cooling or self._test.n < self.window:
            return None
        spending = self.correction == "spending"
        result = self._test.result(self.alpha / _LOOKS if spending else self.alpha)
        if result.verdict == "decaying":
            return self._act("keep", result)
        if spending and not self._looked and self._room_for_another_look():
            self._looked = 1
            self._note("extend", result)
            return None
        return self._act("decay", result)

    @property
    def _always_looks_again(self) -> bool:
        return self.correction == "spending" and (self.total_steps is None or self.cooldown > 0)

    def _room_for_another_look(self) -> bool:
        """Whether twice the window fits; a cool-down lowers the rate soon if it does not."""
        if self._always_looks_again or self.total_steps is None:
            return True
        return self._step + self._window <= self.total_steps

    def _act(self, kind: Kind, result: DecayResult) -> Action:
        if kind == "decay" and self.cooldown:
            self._cooling_from = min(self._step, self._cooling_from)
        elif kind != "keep":
            self._base_lr = max(self._base_lr * self.beta, self.min_lr, _SMALLEST)
            self._window = math.ceil(min(self._window / self.beta, _LONGEST))
        self._looked = 0
        self._note(kind, result)
        self._test.reset()
        return Action(kind, self.lr, self._window, result)

    def _note(self, event: str, result: DecayResult) -> None:
        self._rows.append(
            {
                "event": event,
                "step": self._step,
                "steps": self._test.n,
                "verdict": result.verdict,
                "p_value": result.p_value,
                "slope": result.slope,
                "lr": self._base_lr,
                "window": self.window,
            }
        )

    def explain(self) -> Explanation:
        """Every window that has ended, in order, and what followed from it."""
        return Explanation(tuple(dict(row) for row in self._rows))

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON, also in the middle of a window."""
        return {
            "version": _VERSION,
            "kind": "tuner",
            "arguments": {
                "lr": self._first_lr,
                "window": self._first_window,
                "alpha": self.alpha,
                "beta": self.beta,
                "min_lr": self.min_lr,
                "correction": self.correction,
                **self._options,
                "total_steps": self.total_steps,
                "cooldown": self.cooldown,
            },
            "lr": self._base_lr,
            "window": self._window,
            "looked": self._looked,
            "step": self._step,
            "restores": self._restores,
            "cooling_from": None if math.isinf(self._cooling_from) else self._cooling_from,
            "test": self._test.state_dict(),
            "rows": [dict(row) for row in self._rows],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Tuner:
        """The tuner that `state_dict` described: it goes on as that one would have.

        Raises:
            StateError: The state is damaged, of another version, or not of a `Tuner`.
        """
        check_state(state, "tuner", _VERSION, "a Tuner")
        try:
            tuner = cls(**state["arguments"])
            tuner._base_lr = check_positive("lr", state["lr"], below=math.inf)
            tuner._window = check_count("window", state["window"], 3)
            check_choice("looked", state["looked"], range(_LOOKS))
            tuner._looked = state["looked"]
            tuner._step = check_count("step", state["step"], 0)
            tuner._restores = check_count("restores", state["restores"], 0)
            cooling = state["cooling_from"]
            if cooling is not None:
                tuner._cooling_from = check_count("cooling_from", cooling, 0)
            tuner._test = DecayTest.from_state_dict(state["test"])
            tuner._rows = [dict(row) for row in state["rows"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the state of the Tuner is damaged: {error!r}") from error
        return tuner
