"""What the fuzz tests share: how many examples, odd values, and what counts as a clear answer.

Few examples, always the same, in the test suite. `TUNE_EXT_FUZZ=100 pytest tests/fuzz` (or
`make fuzz`) tries a hundred times as many, others every time.
"""

import datetime
import decimal
import fractions
import math
import os
import resource
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tune_ext.errors import TuneExtError

MANY = int(os.environ.get("TUNE_EXT_FUZZ", "1"))
"""How many times as many examples as in the test suite."""

if MANY > 1:  # whatever wants all the memory there is shall say so, and not take the machine's
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, resource.RLIM_INFINITY))

COUNTS: Counter[str] = Counter()
"""Examples that were accepted and refused, for the line that a long run prints."""

LONGEST = 1600
"""Characters of an error that somebody reads."""


def fuzz(examples: int) -> settings:
    """The settings of a test with so many examples."""
    return settings(
        max_examples=examples * MANY,
        derandomize=MANY == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def clear(call: Callable[[], Any]) -> Any:
    """What `call` returns, or our error; any other exception goes on and fails the test."""
    try:
        value = call()
    except TuneExtError as error:
        COUNTS["refused"] += 1
        check_message(str(error))
        return error
    COUNTS["accepted"] += 1
    return value


def check_message(text: str) -> None:
    """A message that can be read, in a terminal too."""
    assert text.strip(), "an error without a word"
    assert len(text) <= LONGEST, f"an error of {len(text)} characters: {text[:200]} …"


class Anything:
    """An object that nothing expects."""

    def __repr__(self) -> str:
        return "<anything>"


huge = st.sampled_from(
    [2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**31), -(2**63) - 1, -(10**400)]
)
numbers = st.one_of(
    st.integers(-3, 5),
    st.integers(),
    huge,
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308, -1e308, 0.1, 1.5]),
)
numpy_numbers = st.one_of(
    st.integers(-3, 5).map(np.int64),
    st.integers(0, 5).map(np.uint8),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.booleans().map(np.bool_),
    st.sampled_from([np.array(3), np.array([1.0, 2.0]), np.array([]), np.float16("nan")]),
    st.sampled_from([np.array("x"), np.datetime64("NaT"), np.complex128(1j), np.str_("lr")]),
)
texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "lr", "min", "max", "Min", "auto", "nan", "1e-3", "a/b", "/", "\0"]),
    st.sampled_from(["\x1b[31mred", "line\nline", "\ud800", "𝔘" * 3, "../..", "x" * 5000]),
)
others = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([b"", b"lr", 1j, Anything(), Anything, object, len, ..., NotImplemented]),
    st.sampled_from([decimal.Decimal("NaN"), decimal.Decimal(3), fractions.Fraction(1, 3)]),
    st.sampled_from([datetime.date(2020, 1, 1), datetime.timedelta(1), range(3), range(0)]),
    st.builds(lambda: iter([1, 2])),
    st.sampled_from([lambda: 1, lambda *a: None]),
)
scalars = st.one_of(numbers, numpy_numbers, texts, others)
values = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.one_of(texts, st.integers(0, 3), st.none()), inner, max_size=3),
        ),
        max_leaves=5,
    ),
    st.sampled_from([set(), {1}, frozenset({"a"}), [[[[[]]]]], {"": {"": {}}}]),
)
