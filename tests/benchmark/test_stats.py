import math

import pytest
from scipy import stats as scipy_stats

from tune_ext.benchmark.stats import (
    paired_difference,
    standard_error,
)


def test_standard_error_by_hand():
    assert standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3) / 2)
    assert math.isnan(standard_error([1.0]))


def test_paired_difference_agrees_with_scipy():
    a, b = {0: 0.5, 1: 0.4, 2: 0.7, 9: 0.1}, {0: 0.3, 1: 0.35, 2: 0.4, 8: 0.9}
    difference = paired_difference(a, b)
    expected = scipy_stats.ttest_rel([0.5, 0.4, 0.7], [0.3, 0.35, 0.4]).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.seeds == 3
    assert not difference.exceeds_noise
    assert paired_difference(b, a).mean == pytest.approx(-difference.mean)


def test_paired_difference_with_too_few_seeds():
    assert paired_difference({0: 0.5}, {1: 0.5}).seeds == 0
    one = paired_difference({0: 0.5}, {0: 0.25})
    assert (one.mean, one.seeds, one.exceeds_noise) == (0.25, 1, False)
