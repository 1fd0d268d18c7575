"""The exceptions that tune_ext raises on purpose.

Every one of them is a `TuneExtError`, and at the same time the built-in exception that
a caller would expect (`ValueError`, `TypeError`, …), so that code which knows nothing
of this package can still catch them.

>>> from tune_ext.errors import InvalidValueError
>>> issubclass(InvalidValueError, ValueError)
True
"""

from __future__ import annotations

__all__ = [
    "DataNotFoundError",
    "InvalidConfigurationError",
    "InvalidTypeError",
    "InvalidValueError",
    "MissingDependencyError",
    "NoLearningRateError",
    "StateError",
    "TuneExtError",
    "UntraceableModelError",
]


LONGEST = 1500
"""Characters of a message, at most: a value that it quotes may be of any size."""


class TuneExtError(Exception):
    """Base class of every exception that this package raises on purpose.

    A message that quotes a value of many pages is shortened in its middle: what is wrong is told
    at its beginning, and what to do at its end.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= LONGEST:
            return text
        return f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 + 3 :]}"


class InvalidValueError(TuneExtError, ValueError):
    """An argument has a value that cannot work; the message names it and the fix."""


class InvalidConfigurationError(InvalidValueError):
    """A configuration of the searched space that cannot be built or trained.

    A comparison counts its trial as failed and goes on; other errors of a trial are crashes.
    """


class UntraceableModelError(InvalidValueError):
    """A module's graph cannot be read; the message says why and what to do."""


class InvalidTypeError(TuneExtError, TypeError):
    """An argument has a type that cannot work; the message names it and the fix."""


class StateError(TuneExtError, ValueError):
    """A saved state is damaged, of an unknown version, or of something else."""


class DataNotFoundError(TuneExtError, FileNotFoundError, ValueError):
    """A data set is not where it was looked for; the message says how to get it."""


class MissingDependencyError(TuneExtError, ImportError):
    """An optional dependency is not installed; the message says what to install."""


class NoLearningRateError(TuneExtError, ArithmeticError):
    """No learning rate trains the model: no rung passed, or it diverged at each.

    Args:
        message: What happened, and what to look at.
        result: What was tried (a `tune_ext.lr_scheduler.LadderResult`), if it was a ladder.
    """

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result
