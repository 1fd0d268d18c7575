import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tests.benchmark.examples import make_record
from tune_ext.benchmark.stats import (
    mean_curve,
    paired_difference,
    standard_error,
    step_curve,
    summarize,
    verdict,
)


def records(method, errors, **changes):
    return [
        make_record(method=method, seed=s, test_errors=(e,), **changes)
        for s, e in enumerate(errors)
    ]


def test_standard_error_by_hand():
    assert standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3) / 2)
    assert math.isnan(standard_error([1.0]))


def test_summary_by_hand():
    group = [
        make_record(seed=1, test_errors=(0.2, 0.4), epochs_used=8, search_seconds=3.0),
        make_record(seed=0, test_errors=(0.1,), epochs_used=10, failures=["x", "y"]),
        make_record(seed=2, test_errors=(), epochs_used=9, failures=["z"]),
    ]
    (summary,) = summarize(group)
    assert summary.test_error == pytest.approx({0: 0.1, 1: 0.3})
    assert summary.mean == pytest.approx(0.2)
    assert summary.error == pytest.approx(0.1)
    assert (summary.epochs, summary.seconds, summary.cells) == (9, 2.0, 3)
    assert summary.failures == ("seed 0: x", "seed 0: y", "seed 2: z")
    assert summary.failed_cells == 2
    assert summary.chosen == {"lr": [0.01, 0.01, 0.01]}


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


def test_the_verdict_tells_a_loss_as_plainly_as_a_win():
    ours, theirs = records("autohyper", [0.30, 0.31, 0.32]), records("random", [0.10, 0.11, 0.121])
    lost = verdict(summarize(ours + theirs), ours=("autohyper",))
    assert lost[0].startswith("Lowest mean test error: random, 11.03 %; next is autohyper")
    assert "exceeds the noise" in lost[0]
    assert lost[1].startswith("autohyper is number 2 of 2, 31.00 %, behind random.")
    assert len(verdict(summarize(ours + theirs))) == 1
    best = summarize(records("autohyper", [0.1, 0.1]) + records("random", [0.1, 0.3]))
    won = verdict(best, ours=("autohyper", "random"))
    assert len(won) == 2
    assert won[1].startswith("random is number 2 of 2")
    assert "autohyper, 10.00 %" in won[0]
    assert "does not exceed the noise" in won[0]


def test_the_verdict_without_much_to_say():
    assert verdict([]) == ["No method has a test result."]
    assert "one seed" in verdict(summarize(records("a", [0.1]) + records("b", [0.2])))[0]
    assert verdict(summarize(records("a", [0.1])))[0].startswith("Only a has")
    assert verdict(summarize([*records("a", []), make_record("b", test_errors=())])) == [
        "No method has a test result."
    ]


def test_a_curve_holds_its_value_and_starts_where_it_starts():
    curve = step_curve([(2, 0.5), (4, 0.25)], 6)
    assert np.isnan(curve[0])
    assert curve[1:].tolist() == [0.5, 0.5, 0.25, 0.25, 0.25]
    assert np.isnan(step_curve([], 3)).all()


def test_mean_curve_by_hand():
    group = [make_record(seed=0, anytime=[(1, 0.4)]), make_record(seed=1, anytime=[(2, 0.2)])]
    mean, error = mean_curve(group, 3)
    assert np.isnan(mean[0])
    assert mean[1:] == pytest.approx([0.3, 0.3])
    assert error[1:] == pytest.approx([0.1, 0.1])
    assert mean_curve(group[:1], 3)[1].tolist() == [0.0, 0.0, 0.0]
