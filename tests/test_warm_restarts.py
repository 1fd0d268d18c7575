"""Cosine restarts: the published cycles, whole cycles at every budget, and their shape."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_ext._warm_restarts import CosineRestarts, check_budgets, whole_cycles
from tune_ext.errors import InvalidTypeError, InvalidValueError

# What the published code is given as T_e (400 s, doubled), and what its paper says of the first
# cycle at larger budgets (arXiv 1807.06906).
PUBLISHED = {400: (400, 1), 1200: (400, 2), 3600: (514.2857, 3), 10800: (720, 4)}

lengths = st.floats(1e-3, 1e5)
multipliers = st.floats(1, 4)


@st.composite
def ladders(draw: st.DrawFn) -> list[float]:
    """Budgets each at least twice the one before, as rungs are."""
    budgets = [draw(st.floats(0.1, 1000))]
    for _ in range(draw(st.integers(0, 4))):
        budgets.append(budgets[-1] * draw(st.floats(2, 5)))
    return budgets


@pytest.mark.parametrize("budget", PUBLISHED)
def test_published_first_cycle(budget: int) -> None:
    first, count = PUBLISHED[budget]
    cycles = whole_cycles(budget, 400)
    assert cycles[0] == pytest.approx(first, rel=1e-6)
    assert len(cycles) == count
    assert CosineRestarts.from_scratch(budget, 400).cycles == cycles


def test_promotion_through_the_published_budgets() -> None:
    schedule = CosineRestarts.through([400, 1200, 3600, 10800])
    assert schedule.boundaries == (400, 1200, 2000, 3600, 6000, 10800)


@given(lengths, lengths, multipliers)
def test_cycles_fill_the_length_and_grow(length: float, first: float, m: float) -> None:
    if length / first > 100 and m < 1.05:  # thousands of cycles say nothing more
        m = 1.05
    cycles = whole_cycles(length, first, m)
    assert math.fsum(cycles) == pytest.approx(length)
    for before, after in pairwise(cycles):
        assert after == pytest.approx(m * before)
    if length >= first:
        assert cycles[0] >= first * (1 - 1e-6)
        # One more would not fit.
        more = first * math.fsum(m**k for k in range(len(cycles) + 1))
        assert more > length * (1 - 1e-6)
    else:
        assert len(cycles) == 1


@given(ladders(), st.floats(1, 4), st.one_of(st.none(), st.floats(0.05, 1)))
def test_every_budget_ends_a_cycle(budgets: list[float], m: float, share: float | None) -> None:
    first = None if share is None else share * budgets[0]
    schedule = CosineRestarts.through(budgets, first, m)
    for budget in budgets:
        end = min(schedule.boundaries, key=lambda b: abs(b - budget))
        assert end == pytest.approx(budget)
        assert schedule.rate_factor(budget * (1 - 1e-6)) < 0.01
    assert schedule.boundaries[-1] == pytest.approx(budgets[-1])
    for before, after in pairwise(schedule.cycles):
        assert after >= before * (1 - 1e-6)


@given(ladders(), st.floats(0, 1.2))
def test_factor_is_continuous_but_at_restarts(budgets: list[float], share: float) -> None:
    schedule = CosineRestarts.through(budgets)
    position = share * budgets[-1]
    factor = schedule.rate_factor(position)
    assert 0 <= factor <= 1
    end = schedule.next_boundary(position)
    if end == math.inf:
        assert factor == 0
        return
    step = min(1e-3 * budgets[0], (end - position) / 2)
    after = schedule.rate_factor(position + step)
    # A cosine over half a turn falls by less than (pi / 2) times its argument.
    assert 0 <= factor - after + 1e-6 <= math.pi / 2 * step / min(schedule.cycles) + 2e-6


def test_restart_begins_the_next_cycle_also_when_a_sum_is_rounded() -> None:
    schedule = CosineRestarts.through([0.1, 0.3, 0.7])
    assert schedule.rate_factor(0.1) == pytest.approx(1)
    assert schedule.rate_factor(0.3) == pytest.approx(1)
    assert schedule.rate_factor(0.7) == 0
    assert schedule.next_boundary(0.3) == pytest.approx(0.7)


def test_equal_cycles() -> None:
    assert whole_cycles(10, 3, 1) == (10 / 3,) * 3


def test_wrong_values_are_named() -> None:
    with pytest.raises(InvalidValueError, match="multiplier must be at least 1"):
        whole_cycles(10, 1, 0.5)
    with pytest.raises(InvalidValueError, match="length must be positive"):
        whole_cycles(0, 1)
    with pytest.raises(InvalidTypeError, match="budgets must be a sequence"):
        check_budgets([])
    with pytest.raises(InvalidValueError, match="must increase"):
        check_budgets([3, 1])
    with pytest.raises(InvalidTypeError, match="at least one length"):
        CosineRestarts(())
    with pytest.raises(InvalidValueError, match="must not be negative"):
        CosineRestarts((1,)).rate_factor(-1)
