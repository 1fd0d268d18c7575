"""Moments of path depths: against lists of depths, and the laws of composition."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_ext._moments import PathMoments

weights = st.one_of(st.integers(0, 5), st.fractions(min_value=0, max_value=3, max_denominator=12))
families = st.lists(st.tuples(weights, st.integers(0, 9)), max_size=6)


def of(family) -> PathMoments:
    return PathMoments(*(sum(w * depth**k for w, depth in family) for k in range(4)))


def stack(block: PathMoments, times: int) -> PathMoments:
    total = PathMoments.start()
    for _ in range(times):
        total = total.then(block)
    return total


@given(families)
def test_a_layer_makes_every_path_one_longer(family) -> None:
    assert of(family).after_layer() == of([(w, depth + 1) for w, depth in family])


@given(families, families)
def test_a_sum_holds_the_paths_of_both(a, b) -> None:
    assert of(a) + of(b) == of(a + b)


@given(families, families)
def test_in_series_each_path_is_continued_by_each(a, b) -> None:
    every = [(w * v, depth + more) for w, depth in a for v, more in b]
    assert of(a).then(of(b)) == of(every)


@given(families, families, families)
def test_composition_is_associative_and_distributes(a, b, c) -> None:
    a, b, c = of(a), of(b), of(c)
    assert a.then(b).then(c) == a.then(b.then(c))
    assert (a + b).then(c) == a.then(c) + b.then(c)
    assert PathMoments.start().then(a) == a == a.then(PathMoments.start())
    assert PathMoments.none() + a == a
    assert a.then(PathMoments.start().after_layer()) == a.after_layer()


@given(families, weights)
def test_weights_multiply(family, weight) -> None:
    assert of(family).weighted(weight) == of([(w * weight, depth) for w, depth in family])


def test_mean_depth() -> None:
    assert of([(1, 2), (3, 4)]).mean_depth == Fraction(7, 2)
    assert PathMoments.none().mean_depth == 0


def test_whole_numbers_stay_whole_and_exact() -> None:
    block = PathMoments.start() + PathMoments.start().after_layer()
    total = stack(block, 200)  # depths are binomial: C(200, k) paths of k layers
    assert total.count == 2**200
    assert total.third == sum(math.comb(200, k) * k**3 for k in range(201))
    assert all(isinstance(value, int) for value in vars(total).values())


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(Fraction(1), (0.097, 0.011, 2.7e-4)), (Fraction(1, 2), (0.275, 0.122, 0.049))],
)
def test_residual_stacks_beside_one_block(weight: Fraction, expected: tuple[float, ...]) -> None:
    """Identity and a branch of two layers, one more layer on all paths; 4, 8 and 16 blocks.

    Unweighted the rate collapses; with 1/d_in = 1/2 at each addition it does not.
    """
    start = PathMoments.start()
    block = (start + start.after_layer().after_layer()).weighted(weight)
    one = stack(block, 1).after_layer().third
    for times, ratio in zip((4, 8, 16), expected, strict=True):
        rate = math.sqrt(one / stack(block, times).after_layer().third)
        assert rate == pytest.approx(ratio, rel=0.03)
