"""Interquartile means, intervals, probability of improvement, times: by SciPy or by hand."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tune_ext.benchmark.stats import (
    bootstrap_iqm,
    idle_share,
    interquartile_mean,
    normalised_regret,
    probability_of_improvement,
    time_to_target,
)
from tune_ext.errors import InvalidTypeError, InvalidValueError

NAN = math.nan


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 21])
def test_interquartile_mean_agrees_with_scipy(count):
    values = np.random.default_rng(count).normal(size=count)
    assert interquartile_mean(values) == pytest.approx(scipy_stats.trim_mean(values, 0.25))


def test_interquartile_mean_with_failures():
    assert interquartile_mean([1, 2, 3, NAN]) == 2.5
    assert interquartile_mean([1.0, 2.0, None, None]) == math.inf
    assert math.isnan(interquartile_mean([]))


def test_the_bootstrap_never_mixes_tasks():
    """With no spread inside the tasks there is none in the resamples."""
    assert bootstrap_iqm([[1.0] * 4, [5.0] * 4]) == (3.0, 3.0, 3.0)


def test_the_interval_agrees_with_scipys_bootstrap():
    """Of one task, where stratified is ordinary. The ends' sampling errors are below 0.02."""
    values = np.random.default_rng(1).normal(size=40)
    found = bootstrap_iqm([values], resamples=20_000, seed=1)
    expected = scipy_stats.bootstrap(
        (values,),
        lambda x, axis: scipy_stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    narrow = bootstrap_iqm([values], level=0.5)
    assert found.low < narrow.low < narrow.value < narrow.high < found.high


def test_the_interval_covers_the_truth():
    """Nominal 95 %, asked for 88 % of 300 studies of 4 tasks × 20 seeds; the truth is 1.5.

    At the true coverage of a percentile bootstrap here, about 94 %, 264 or fewer of 300 have
    probability 2e-4; the seed is fixed.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for study in range(300):
        groups = rng.uniform(size=(4, 20)) + np.arange(4)[:, None] - 0.5
        found = bootstrap_iqm(list(groups), resamples=400, seed=study)
        covered += found.low <= 1.5 <= found.high
    assert covered > 264, covered


def test_failures_in_the_bootstrap_are_infinite_and_not_nan():
    found = bootstrap_iqm([[1.0, 2.0, 3.0, NAN], [1.0, 2.0, 3.0, None]])
    assert (found.value, found.high) == (2.5, math.inf)  # of 2, 2, 3, 3
    assert 1 <= found.low < 2.5


def test_too_few_runs_have_no_interval():
    one = bootstrap_iqm([[1.0], [2.0]])
    assert one.value == 1.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(bootstrap_iqm([]).value)
    assert bootstrap_iqm([[], [1.0, 1.0]]) == (1.0, 1.0, 1.0)
    assert math.isnan(probability_of_improvement([[1.0]], [[2.0]]).low)
    assert math.isnan(probability_of_improvement([[]], [[2.0]]).value)


def test_probability_of_improvement_is_mann_and_whitneys_u():
    rng = np.random.default_rng(5)
    a = [rng.integers(0, 6, size=n) for n in (5, 20, 9)]
    b = [rng.integers(1, 7, size=n) for n in (8, 20, 3)]
    us = [
        scipy_stats.mannwhitneyu(y, x).statistic / (len(x) * len(y))
        for x, y in zip(a, b, strict=True)
    ]
    found = probability_of_improvement(a, b)
    assert found.value == pytest.approx(np.mean(us))
    assert found.low < found.value < found.high
    reverse = probability_of_improvement(b, a)
    assert reverse.value == pytest.approx(1 - found.value)


def test_probability_of_improvement_by_hand():
    """4 pairs each: 3 wins and a tie (7/8); a failure against two numbers (0) and two ties."""
    a = [[1.0, 2.0], [NAN, NAN]]
    b = [[2.0, 3.0], [5.0, NAN]]
    assert probability_of_improvement(a, b).value == pytest.approx((7 / 8 + 1 / 4) / 2)


def test_the_interval_of_the_probability_is_that_of_direct_resampling():
    """Against drawing runs one resample at a time; ends of 4000 resamples differ by < 0.02."""
    rng = np.random.default_rng(6)
    a, b = rng.normal(0, 1, size=(2, 12)), rng.normal(0.5, 1, size=(2, 9))
    found = probability_of_improvement(list(a), list(b), resamples=4000)
    drawn = []
    for _ in range(4000):
        shares = []
        for x, y in zip(a, b, strict=True):
            u, v = rng.choice(x, len(x)), rng.choice(y, len(y))
            shares.append(np.mean(u[:, None] < v))
        drawn.append(np.mean(shares))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.025)


def test_intervals_are_deterministic_and_leave_the_global_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    groups = [np.random.default_rng(0).normal(size=9)]
    assert bootstrap_iqm(groups, seed=0) == bootstrap_iqm(groups, seed=0)
    assert bootstrap_iqm(groups, seed=0) != bootstrap_iqm(groups, seed=1)
    pair = (groups, [np.array([0.0, 0.1])])
    assert probability_of_improvement(*pair) == probability_of_improvement(*pair)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_regret():
    assert normalised_regret(np.float64(0.3), 0.2, 0.4) == pytest.approx(0.5)
    assert isinstance(normalised_regret(0.3, 0.2, 0.4), float)
    found = normalised_regret([0.0, 1.0, NAN, math.inf], best=0.0, reference=2.0)
    assert found[:2].tolist() == [0.0, 0.5]
    assert math.isnan(found[2])
    assert found[3] == math.inf
    for best, reference in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (NAN, 1.0)):
        with pytest.raises(InvalidValueError):
            normalised_regret(0.5, best, reference)


def test_time_to_target():
    points = [(1, 10.0, 0.9), (4, 31.5, None), (5, 40.0, NAN), (7, 55.0, 0.2), (9, 60.0, 0.4)]
    assert time_to_target(points, 0.9) == 1.0
    assert time_to_target(points, 0.3) == 7.0
    assert time_to_target([p[1:] for p in points], 0.2) == 55.0
    assert time_to_target(points, 0.1) == math.inf
    assert time_to_target([], 0.1) == math.inf


def test_idle_share():
    assert idle_share(30.0, 10.0, 4) == 0.25
    assert idle_share(10.1, 10.0, 1) == 0.0
    assert idle_share(np.float64(0), np.float64(2), np.int64(3)) == 1.0
    assert math.isnan(idle_share(0.0, 0.0, 1))
    for wrong in ((-1.0, 1.0, 1), (1.0, -1.0, 1), (1.0, 1.0, 0)):
        with pytest.raises(InvalidValueError):
            idle_share(*wrong)


def test_mistakes_in_the_bootstrap_are_named():
    with pytest.raises(InvalidValueError, match="level"):
        bootstrap_iqm([[1.0]], level=95)
    with pytest.raises(InvalidTypeError, match="resamples"):
        bootstrap_iqm([[1.0]], resamples=2.5)
    with pytest.raises(InvalidValueError, match="must be a list"):
        bootstrap_iqm([[[1.0]]])
    with pytest.raises(InvalidValueError, match="same tasks"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
