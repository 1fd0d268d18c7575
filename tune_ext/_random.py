"""Seeds and random generators that never touch the global random state."""

from __future__ import annotations

import hashlib

import numpy as np

from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["check_seed", "derive_seed", "generator"]


def check_seed(seed: object, name: str = "seed") -> int | None:
    """Return `seed` as a plain int, or None; 0 is a seed like any other.

    Args:
        seed: None, or a non-negative integer (numpy integers are fine).
        name: What the caller names the argument, for the message.

    Raises:
        InvalidTypeError: `seed` is neither None nor an integer.
        InvalidValueError: `seed` is negative.
    """
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise InvalidTypeError(f"{name} must be None or an integer, got {seed!r}")
    if seed < 0:
        raise InvalidValueError(f"{name} must not be negative, got {seed!r}")
    return int(seed)


def derive_seed(seed: int, *path: int | str) -> int:
    """Derive an independent 63-bit seed for one named purpose.

    The result depends on the arguments alone: not on the process, its hash seed, the
    platform or the order of calls.

    >>> derive_seed(0, "split") == derive_seed(0, "split")
    True
    >>> derive_seed(0, "split") == derive_seed(0, "weights")
    False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(p).__name__}:{p}" for p in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int | None, *path: int | str) -> np.random.Generator:
    """A numpy generator of its own for `seed` and a named purpose.

    Args:
        seed: None takes entropy from the operating system.
        *path: What the numbers are for, as in `derive_seed`.
    """
    return np.random.default_rng(None if seed is None else derive_seed(seed, *path))
