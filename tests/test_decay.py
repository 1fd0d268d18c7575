"""The decay test: against scipy and a readable reference, exact, calibrated, well defined."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.reference.reference_decay import reference_p_value
from tune_ext._decay import DecayResult, DecayTest
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

UNDECIDED = DecayResult("not decaying", 1.0, 0.0, 0)


def run(losses, **options) -> DecayTest:
    test = DecayTest(**options)
    test.update_many(losses)
    return test


def one_by_one(losses, **options) -> DecayTest:
    test = DecayTest(**options)
    for loss in losses:
        test.update(float(loss))
    return test


def merged(parts, **options) -> DecayTest:
    test = DecayTest(**options)
    for part in parts:
        test.merge(json.loads(json.dumps(run(part, **options).statistics())))
    return test


def agrees_with_scipy(result: DecayResult, y: np.ndarray) -> None:
    expected = stats.linregress(np.arange(len(y)), y, alternative="less")
    assert result.p_value == pytest.approx(expected.pvalue, abs=1e-10, rel=0)
    scale = max(abs(expected.slope), expected.stderr)
    assert result.slope == pytest.approx(expected.slope, abs=1e-10 * scale, rel=0)
    assert result.n == len(y)


@st.composite
def logarithms(draw, least: int = 4) -> np.ndarray:
    """ln of losses: a level, a noise level and a trend, each over many orders of magnitude."""
    n = draw(st.integers(least, 90))
    noise = 10 ** draw(st.floats(-6, 1))
    trend = draw(st.floats(-8, 8)) * noise / n
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return draw(st.floats(-500, 500)) + noise * rng.normal(size=n) + trend * np.arange(n)


# -- agreement ------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(logarithms())
def test_the_plain_test_is_scipys(y):
    losses = np.exp(y)
    agrees_with_scipy(run(losses, autocorrelation="none").result(), np.log(losses))


def test_the_plain_test_is_scipys_from_the_smallest_to_the_largest_losses():
    rng = np.random.default_rng(0)
    losses = 10 ** rng.uniform(-300, 300, size=3000)
    losses[:2] = 1e-300, 1e300
    agrees_with_scipy(run(losses, autocorrelation="none").result(), np.log(losses))


def test_the_plain_test_is_scipys_at_ten_million_steps():
    losses = 1e-200 * np.random.default_rng(1).random(10**7)
    parts = merged([losses[: 3 * 10**6], losses[3 * 10**6 :]], autocorrelation="none")
    agrees_with_scipy(parts.result(), np.log(losses))


@settings(max_examples=100, deadline=None)
@given(logarithms(least=8))
def test_the_correction_is_that_of_the_reference(y):
    losses = np.exp(y)
    result = run(losses).result()
    p, rho = reference_p_value(np.log(losses))
    assert result.p_value == pytest.approx(p, abs=1e-6)
    assert result.autocorrelation == pytest.approx(rho, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(logarithms(least=3))
def test_the_correction_is_never_more_liberal(y):
    losses = np.exp(y)
    plain = run(losses, autocorrelation="none").result()
    assert run(losses).result().p_value >= plain.p_value
    assert run(losses).result().slope == plain.slope


# -- exact sums -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(logarithms(), st.floats(-600, 600))
def test_the_scale_of_the_loss_does_not_matter(y, shift):
    shift = min(max(shift, -600 - y.min()), 600 - y.max())
    a, b = run(np.exp(y)).result(), run(np.exp(y) * math.exp(shift)).result()
    assert b.p_value == pytest.approx(a.p_value, abs=1e-6)
    # Rounding of ln ℓ, up to 1e-13 beyond e^500, is all that is left.
    assert b.slope == pytest.approx(a.slope, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("transform", ["log", "identity"])
def test_one_by_one_and_many_at_once_are_the_same_to_the_last_bit(transform):
    rng = np.random.default_rng(2)
    losses = 10 ** rng.uniform(-30, 30, size=20_001 if transform == "log" else 2001)
    whole, single = run(losses, transform=transform), one_by_one(losses, transform=transform)
    parts = DecayTest(transform=transform)
    for part in np.array_split(losses, 7):
        parts.update_many(part)
        parts.update_many([])
    assert whole.result() == single.result() == parts.result()
    assert whole.state_dict() == single.state_dict() == parts.state_dict()


def test_many_at_once_are_the_same_one_by_one_over_a_long_stream():
    losses = np.random.default_rng(3).lognormal(size=300_000)
    assert one_by_one(losses).state_dict() == run(losses).state_dict()


@settings(max_examples=60, deadline=None)
@given(logarithms(), st.data())
def test_merging_is_appending_whatever_the_grouping(y, data):
    losses = np.exp(y)
    i, j = sorted(data.draw(st.tuples(*[st.integers(0, len(y))] * 2)))
    a, b, c = losses[:i], losses[i:j], losses[j:]
    right = run(b)
    right.merge(run(c).statistics())
    late = run(a)
    late.merge(right.statistics())
    whole = run(losses).result()
    for result in (merged([a, b, c]).result(), late.result()):
        assert result.n == whole.n
        assert result.p_value == pytest.approx(whole.p_value, abs=1e-9)
        # Each merge starts from floats: an error of 1e-16 of the largest sum.
        assert result.slope == pytest.approx(whole.slope, rel=1e-9, abs=1e-13)


def test_noise_beneath_a_huge_first_loss_is_not_lost():
    rng = np.random.default_rng(4)
    y = np.concatenate([[690.0], 1e-6 * rng.normal(size=99_999)])
    agrees_with_scipy(run(np.exp(y), autocorrelation="none").result(), np.log(np.exp(y)))


# -- calibration and power ------------------------------------------------------------------


def ar1(rho: float, curves: int, n: int, seed: int) -> np.ndarray:
    """Stationary AR(1) noise of variance 1."""
    rng = np.random.default_rng(seed)
    y = np.empty((curves, n))
    y[:, 0] = rng.normal(size=curves)
    for t in range(1, n):
        y[:, t] = rho * y[:, t - 1] + math.sqrt(1 - rho**2) * rng.normal(size=curves)
    return y


def rejections(y: np.ndarray, alpha: float = 0.05, **options) -> int:
    verdicts = [run(np.exp(0.2 * row), **options).result(alpha).verdict for row in y]
    return verdicts.count("decaying")


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_pure_noise_is_called_decaying_no_more_often_than_alpha(rho, alpha):
    # A test that holds α fails here with a probability below 1e-4, in the worst case that its
    # rate is α itself. At ρ = .9 and α = .01 it is .013 (experiments/exptest/calibration.md).
    curves = 1000
    y = ar1(rho, curves, 60, seed=5)
    allowed = 0.013 if (rho, alpha) == (0.9, 0.01) else alpha
    assert rejections(y, alpha) <= stats.binom.ppf(1 - 1e-4, curves, allowed)


def test_the_plain_test_does_not_hold_alpha_where_losses_are_autocorrelated():
    # Its rate is .20; 1,000 curves show fewer than 130 with a probability below 1e-8.
    y = ar1(0.6, 1000, 60, seed=6)
    assert rejections(y, autocorrelation="none") > 130


def test_a_trend_of_four_standard_deviations_of_the_noise_is_found():
    # The power is .99; fewer than 180 of 200 has a probability below 1e-5.
    y = ar1(0.0, 200, 60, seed=7) - 4 * np.linspace(0, 1, 60)
    assert rejections(y) >= 180


T = np.arange(60)


@pytest.mark.parametrize(
    "losses",
    [
        np.exp(-T / 500),
        0.1 + 0.9 * np.exp(-T / 10),
        0.1 + 0.9 * np.exp(-T / 3),
        1 / (1 + T),
        (1 + T) ** -0.1,
        0.5 * 0.9**T + 0.5 * 0.99**T,
    ],
)
def test_smooth_decay_is_not_taken_for_autocorrelated_noise(losses):
    assert run(losses).result().verdict == "decaying"
    noise = np.exp(0.02 * np.random.default_rng(8).normal(size=60))
    assert run(losses * noise).result().verdict == "decaying"


@pytest.mark.parametrize("losses", [2 + np.cos(T / 7), 1 + T, np.exp(T / 100), 1 - 0.9**T + 0.1])
def test_smooth_curves_that_do_not_fall_are_not_decaying(losses):
    assert run(losses).result().verdict == "not decaying"


# -- what is degenerate ---------------------------------------------------------------------


@pytest.mark.parametrize("autocorrelation", ["ar1", "none"])
def test_short_and_constant_windows_say_nothing(autocorrelation):
    assert DecayTest().result() == UNDECIDED
    assert run([2.0]).result().p_value == 1.0
    two = run([math.e, 1.0], autocorrelation=autocorrelation).result()
    assert (two.verdict, two.p_value, two.slope) == ("not decaying", 1.0, -1.0)
    same = run([0.1] * 50, autocorrelation=autocorrelation).result()
    assert same == DecayResult("not decaying", 1.0, 0.0, 50)
    assert merged([[0.1] * 3, [0.1] * 4]).result() == DecayResult("not decaying", 1.0, 0.0, 7)


@pytest.mark.parametrize("autocorrelation", ["ar1", "none"])
def test_losses_on_a_line_are_certain(autocorrelation):
    options = {"autocorrelation": autocorrelation, "transform": "identity"}
    falling, rising = run([9, 7, 5, 3], **options), run([1.0, 2, 3], **options)
    assert falling.result() == DecayResult("decaying", 0.0, -2.0, 4)
    assert rising.result() == DecayResult("not decaying", 1.0, 1.0, 3)


@pytest.mark.parametrize("autocorrelation", ["ar1", "none"])
@pytest.mark.parametrize("pieces", [2, 7, 30])
def test_losses_on_a_line_stay_certain_when_merges_round_them(autocorrelation, pieces):
    falling = np.array_split(np.exp(-0.1 * T - 300), pieces)
    rising = np.array_split(np.exp(0.1 * T + 300), pieces)
    assert merged(falling, autocorrelation=autocorrelation).result().p_value < 1e-9
    assert merged(rising, autocorrelation=autocorrelation).result().p_value > 1 - 1e-9


@pytest.mark.parametrize("n", range(3, 12))
def test_the_shortest_windows_have_a_p_value(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        result = run(np.exp(rng.normal(size=n))).result()
        assert 0 <= result.p_value <= 1
        assert 0 <= result.autocorrelation <= 1


def test_a_parabola_without_noise_has_a_p_value():
    result = run((np.arange(20.0) - 30) ** 2, transform="identity").result()
    assert result.verdict == "decaying"
    assert result.autocorrelation == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("inf")])
def test_a_loss_that_is_not_finite_is_divergence_until_the_reset(bad):
    losses = [*np.linspace(2, 1, 10), bad, *np.linspace(1, 0.5, 10)]
    later = run(losses[:5])
    later.merge(run(losses[5:]).statistics())
    earlier = run(losses[:15])
    earlier.merge(run(losses[15:]).statistics())
    for test in (run(losses), one_by_one(losses), later, earlier):
        assert test.diverged
        assert test.n == 21
        assert test.result() == DecayResult("diverged", 1.0, 0.0, 21)
    test.reset()
    assert (test.n, test.diverged) == (0, False)


def test_after_a_divergence_no_loss_is_looked_at():
    one, many = DecayTest(), DecayTest()
    for loss in (math.nan, -1.0):
        one.update(loss)
        many.update_many([loss])
    assert one.state_dict() == many.state_dict()


def test_a_loss_of_zero_is_the_smallest_positive_double():
    losses = [1.0, 0.5, 0.0, 0.25]
    assert run(losses).result() == run([1.0, 0.5, math.ulp(0.0), 0.25]).result()
    assert one_by_one(losses).result() == run(losses).result()


def test_a_negative_loss_is_refused_and_not_taken():
    for take in (run, one_by_one):
        with pytest.raises(InvalidValueError, match=r"-0\.5.*transform='identity'"):
            take([1.0, -0.5])
    test = run([1.0, 2.0])
    with pytest.raises(InvalidValueError):
        test.update_many([1.0, -1.0])
    with pytest.raises(InvalidValueError):
        test.update(-1.0)
    assert test.n == 2
    assert run([3.0, -1.0, -4.0, -9.0], transform="identity").result().slope < 0
    assert run([1.0, math.nan, -1.0]).diverged


@pytest.mark.parametrize("bad", [None, "a", [1.0, 2.0], np.ones(2)])
def test_what_is_not_a_number_is_refused(bad):
    with pytest.raises(InvalidTypeError, match="loss"):
        DecayTest().update(bad)


def test_losses_of_another_shape_are_refused():
    with pytest.raises(InvalidValueError, match=r"\(2, 2\)"):
        DecayTest().update_many(np.ones((2, 2)))
    with pytest.raises(InvalidTypeError, match="losses"):
        DecayTest().update_many(["x"])


def test_losses_may_be_anything_that_is_a_float():
    torch = pytest.importorskip("torch")
    test = DecayTest()
    test.update(torch.tensor(1.5))
    test.update(np.float32(0.5))
    test.update(1)
    test.update_many(torch.tensor([2.0, 3.0]))
    assert test.result() == run([1.5, 0.5, 1, 2, 3]).result()


# -- identity -------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(logarithms(least=8), st.integers(-900, 900))
def test_the_identity_does_not_depend_on_scale_nor_level(y, power):
    a = run(y, transform="identity").result()
    b = run(np.ldexp(y, power), transform="identity").result()
    assert (b.p_value, b.autocorrelation) == (a.p_value, a.autocorrelation)
    assert b.slope == math.ldexp(a.slope, power)


def test_sums_beyond_the_largest_float_are_reported_as_divergence():
    test = run([1e200, -1e200, 1e200], transform="identity")
    assert test.result().verdict == "not decaying"
    assert merged([[1e200, -1e200, 1e200]], transform="identity").result().verdict == "diverged"


# -- arguments and state --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0},
        {"alpha": 1.0},
        {"alpha": math.nan},
        {"autocorrelation": "ar2"},
        {"transform": "sqrt"},
    ],
)
def test_arguments_that_cannot_work_are_named(options):
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        DecayTest(**options)


def test_alpha_may_be_given_with_the_question():
    losses = np.exp(-0.004 * T + 0.1 * np.random.default_rng(0).normal(size=60))
    test = run(losses)
    p = test.result().p_value
    assert test.result(min(p * 1.01, 0.99)).verdict == "decaying"
    assert test.result(p * 0.99).verdict == "not decaying"
    with pytest.raises(InvalidValueError, match="alpha"):
        test.result(0.0)


@pytest.mark.parametrize("steps", [0, 1, 5, 1500])
def test_a_saved_test_goes_on_as_if_nothing_had_happened(steps):
    losses = np.random.default_rng(9).lognormal(size=2000)
    test = one_by_one(losses[:steps], alpha=0.1)
    again = DecayTest.from_state_dict(json.loads(json.dumps(test.state_dict())))
    assert again.alpha == 0.1
    for t in (test, again):
        for loss in losses[steps:]:
            t.update(loss)
    assert again.state_dict() == test.state_dict()
    assert again.result() == test.result()


def test_divergence_is_saved():
    state = json.loads(json.dumps(run([1.0, math.nan]).state_dict()))
    assert DecayTest.from_state_dict(state).result().verdict == "diverged"


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"kind": "tuner"},
        {"sums": {}},
        {"sums": {"n": "many"}},
        {"sums": None},
        {"sums": {"x": 1}},
        {"alpha": 7},
        {"diverged_at": "soon"},
    ],
)
def test_a_damaged_state_is_a_clear_error(damage):
    state = {**run([1.0, 2.0, 3.0]).state_dict(), **damage}
    with pytest.raises(StateError, match="DecayTest"):
        DecayTest.from_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [{"n": -1}, {"n": "x"}, {"sty": math.nan}, {"syy": None}, {"first": math.inf}],
)
def test_damaged_statistics_are_refused_and_not_taken(damage):
    test = run([1.0, 2.0])
    with pytest.raises(StateError, match="statistics"):
        test.merge({**run([1.0, 2.0, 3.0]).statistics(), **damage})
    with pytest.raises(StateError, match="statistics"):
        test.merge({"n": 3})
    assert test.n == 2


def test_scipy_stats_is_not_imported():
    code = "import sys, tune_ext._decay; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
