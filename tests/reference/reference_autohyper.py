"""The trust region as slowly and as plainly as it can be written, and responses to walk on.

`walk` evaluates whole regions, remembers nothing but the region it stands in, counts with
plain floats, and knows no bounds but a minimum for the start. It repeats the published moves
(arXiv 2111.14056 and its code) for any number of parameters; `carry` chooses between the
published memory (a response stays with a position of the region, also after a scale has
shrunk) and measuring whatever is not the same point.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

Response = Callable[..., float]


def walk(
    response: Response,
    start: list[float],
    scale: list[float],
    minimum: list[float],
    *,
    carry: bool,
    max_rounds: int = 400,
) -> dict:
    """Centre and scales of every round, and the point at the end (None: it never ended)."""
    d = len(start)
    current, scale, stopped = list(start), list(scale), [False] * d
    offsets = list(itertools.product((-1, 0, 1), repeat=d))
    buffer: dict[tuple, float] = {}
    history, establishing, rounds = [], True, []
    for _ in range(max_rounds):
        rounds.append([*current, *scale])
        if not carry:
            buffer = {}
        for o in offsets:
            if o not in buffer:
                buffer[o] = response(*_at(current, scale, o))
        values = [buffer[o] for o in offsets]
        above = all(c >= m for c, m in zip(current, minimum, strict=True))
        if establishing and max(values) < 0.85 and above:
            move = offsets[values.index(max(values))]
            move = (-1,) * d if move == (0,) * d else move
        else:
            establishing = False
            smallest = min(values)
            move = offsets[max(i for i, v in enumerate(values) if v == smallest)]
            history.append(smallest)
            move = (1,) * d if move == (0,) * d else move
        buffer = {
            o: buffer[tuple(a + b for a, b in zip(o, move, strict=True))]
            for o in offsets
            if all(abs(a + b) <= 1 for a, b in zip(o, move, strict=True))
        }
        current = _at(current, scale, move)
        if establishing:
            continue
        if math.prod(history) ** 0.8 < 5e-3:
            stopped = [s or abs(x - 1) <= 5e-3 + 1e-5 for s, x in zip(stopped, scale, strict=True)]
            scale = [(x - 1) * math.exp(-2.5) + 1 for x in scale]
        if all(stopped):
            return {"rounds": rounds, "final": current}
    return {"rounds": rounds, "final": None}


def _at(current: list[float], scale: list[float], offset: tuple) -> list[float]:
    return [
        1e-7 if c == 0 and o == 1 else c * s**o
        for c, s, o in zip(current, scale, offset, strict=True)
    ]


def _log(value: float) -> float:
    return math.log10(max(value, 1e-9))


def _noise(*values: float, salt: str = "") -> float:
    """The same number in [0, 1) for the same point, whatever its last bits are."""
    text = salt + ",".join(f"{_log(v):.5f}" for v in values)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _sigmoid(lr: float, knee: float = -2.7, width: float = 0.45) -> float:
    return 1 / (1 + math.exp(min((_log(lr) - knee) / width, 700.0)))


def _rounded(f: Response) -> Response:
    return lambda *x: round(min(max(f(*x), 0.0), 1.0), 9)


RESPONSES: dict[str, Response] = {
    name: _rounded(f)
    for name, f in {
        "falling": lambda lr, wd=0.0: _sigmoid(lr),
        "falling, weight decay lowers": lambda lr, wd=0.0: (
            _sigmoid(lr) * (1 - 0.04 * (_log(wd) + 9))
        ),
        "falling, weight decay raises": lambda lr, wd=0.0: _sigmoid(lr) + 0.01 * (_log(wd) + 9),
        "best weight decay 1e-4": lambda lr, wd=0.0: _sigmoid(lr) + 0.02 * abs(_log(wd) + 4),
        "valley": lambda lr, wd=0.0: 0.1 + 0.4 * abs(_log(lr) + 2.2) + 0.01 * abs(_log(wd) + 6),
        "diverges above .05": lambda lr, wd=0.0: 1.0 if lr > 0.05 else _sigmoid(lr),
        "noisy a": lambda lr, wd=0.0: _sigmoid(lr) + 0.1 * _noise(lr, wd, salt="a"),
        "noisy b": lambda lr, wd=0.0: _sigmoid(lr) + 0.3 * (_noise(lr, wd, salt="b") - 0.5),
        "noise alone": lambda lr, wd=0.0: 0.2 + 0.8 * _noise(lr, wd, salt="c"),
        "noise below .8": lambda lr, wd=0.0: 0.8 * _noise(lr, wd, salt="d"),
        "eighteenths": lambda lr, wd=0.0: math.floor(18 * _sigmoid(lr) + 0.5) / 18,
        "stairs": lambda lr, wd=0.0: 0.95 if lr < 1e-3 else 0.6 if lr < 1e-2 else 0.2,
        "high everywhere": lambda lr, wd=0.0: 0.8 + 0.1 * (lr < 1e-2),
        "start too high": lambda lr, wd=0.0: _sigmoid(lr, knee=-4.6, width=0.2),
        "low everywhere": lambda lr, wd=0.0: 0.5 * _sigmoid(lr, knee=-3),
        "zero": lambda lr, wd=0.0: 0.0,
        "half": lambda lr, wd=0.0: 0.5,
        "one": lambda lr, wd=0.0: 1.0,
        "local maximum below .85": lambda lr, wd=0.0: 0.7 - 0.2 * abs(_log(lr) + 4.5),
    }.items()
}
