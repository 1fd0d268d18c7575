"""ExpTest's tuning phase: windows of losses in, keep, decay or restore out.

Source: Chaudhry, Mizuno, "Loss-Curve Hypothesis Testing for Autonomous Learning-Rate
Selection", arXiv 2411.16975. The growth of the window, the floor of the rate, the correction
and the cool-down are our completion.

=======  ==========================  ===========================================
symbol   here                        meaning
=======  ==========================  ===========================================
η        `Tuner.lr`                  learning rate
T        `Tuner.window`              steps of the present window
α        `alpha`                     level of each window's test
β        `beta`                      a decay is η ← β·η, T ← T/β
=======  ==========================  ===========================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tune_ext._checks import as_number, check_choice, check_count, check_positive
from tune_ext._decay_test import DecayResult, DecayTest
from tune_ext._explanation import Explanation
from tune_ext.errors import InvalidValueError, StateError

__all__ = ["Action", "Correction", "Tuner"]

Correction = Literal["none"]
Kind = Literal["keep", "decay", "restore"]

_VERSION = 1


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

    Args:
        lr: η, the rate to begin with (from a `Ladder`).
        window: T, steps of the first window; one epoch, as published.
        alpha: Level of each window's test.
        beta: A decay multiplies η by β and divides T by β.
        min_lr: η never falls below.
        correction: For repeated testing.
        autocorrelation: See `DecayTest`.
        transform: See `DecayTest`.
        total_steps: The known length of the training, None if it is open.
        cooldown: The share of `total_steps` at its end over which the rate falls linearly to
            `min_lr`.

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
        correction: Correction = "none",
        autocorrelation: Literal["ar1", "none"] = "ar1",
        transform: Literal["log", "identity"] = "log",
        total_steps: int | None = None,
        cooldown: float = 0.0,
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
        self.cooldown = as_number("cooldown", cooldown)
        if not 0 <= self.cooldown < 1:
            raise InvalidValueError(f"cooldown must lie in [0, 1), got {cooldown}")
        if self.cooldown and self.total_steps is None:
            raise InvalidValueError("cooldown needs total_steps, the length of the training")
        self._test = DecayTest(self.alpha, autocorrelation=autocorrelation, transform=transform)
        self._options = {"autocorrelation": autocorrelation, "transform": transform}
        self._base_lr = self._first_lr
        self._window = self._first_window
        self._step = 0
        self._restores = 0
        self._rows: list[dict[str, Any]] = []

    @property
    def base_lr(self) -> float:
        """η as the tests have left it, without the cool-down."""
        return self._base_lr

    @property
    def lr(self) -> float:
        """The rate for the next step; read it after every update when there is a cool-down."""
        total = self.total_steps
        if not self.cooldown or total is None or self._step <= self._cooling_from:
            return self._base_lr
        left = max(total - self._step, 0) / (total - self._cooling_from)
        return self.min_lr + (self._base_lr - self.min_lr) * left

    @property
    def _cooling_from(self) -> int:
        """The step from which the rate falls linearly; beyond the end if it never does."""
        if self.total_steps is None:
            raise InvalidValueError("an open training has no cool-down")
        return self.total_steps - round(self.cooldown * self.total_steps)

    @property
    def _cooling(self) -> bool:
        return bool(self.cooldown) and self._step > self._cooling_from

    @property
    def window(self) -> int:
        """T, steps of the present window."""
        return self._window

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
        grown = 1 + (1 / self.beta - 1) * steps / self._first_window
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
        if self._test.diverged:
            self._restores += 1
            return self._act("restore")
        if self._cooling or self._test.n < self._window:
            return None
        decaying = self._test.result().verdict == "decaying"
        return self._act("keep" if decaying else "decay")

    def _act(self, kind: Kind) -> Action:
        result = self._test.result()
        steps = self._test.n
        if kind != "keep":
            self._base_lr = max(self._base_lr * self.beta, self.min_lr)
            self._window = math.ceil(self._window / self.beta)
        self._test.reset()
        action = Action(kind, self.lr, self._window, result)
        self._rows.append(
            {
                "event": kind,
                "step": self._step,
                "steps": steps,
                "verdict": result.verdict,
                "p_value": result.p_value,
                "slope": result.slope,
                "lr": self._base_lr,
                "window": self._window,
            }
        )
        return action

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
            "step": self._step,
            "restores": self._restores,
            "test": self._test.state_dict(),
            "rows": [dict(row) for row in self._rows],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Tuner:
        """The tuner that `state_dict` described: it goes on as that one would have.

        Raises:
            StateError: The state is damaged, of another version, or not of a `Tuner`.
        """
        if not isinstance(state, Mapping) or state.get("kind") != "tuner":
            raise StateError("this is not the state of a Tuner")
        if state.get("version") != _VERSION:
            raise StateError(
                f"the state has version {state.get('version')!r}; this package reads {_VERSION}"
            )
        try:
            tuner = cls(**state["arguments"])
            tuner._base_lr = check_positive("lr", state["lr"], below=math.inf)
            tuner._window = check_count("window", state["window"], 3)
            tuner._step = check_count("step", state["step"], 0)
            tuner._restores = check_count("restores", state["restores"], 0)
            tuner._test = DecayTest.from_state_dict(state["test"])
            tuner._rows = [dict(row) for row in state["rows"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the state of the Tuner is damaged: {error!r}") from error
        return tuner
