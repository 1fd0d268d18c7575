"""Tests of the test functions: their optimum, their curves, their costs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.benchmark.tasks.lookups import errors, sample
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks.functions import FUNCTIONS
from tune_ext.errors import InvalidTypeError, InvalidValueError

MINIMA = [(name, point) for name, f in FUNCTIONS.items() for point in f.minima]


def config_of(point):
    return {f"x{place + 1}": value for place, value in enumerate(point)}


@pytest.mark.parametrize(("name", "point"), MINIMA)
def test_the_optimum_is_where_it_is_known_to_be_and_is_stationary(name, point):
    function, task = FUNCTIONS[name], tasks.create(name)
    # Branin's minima are known in closed form to six digits of the place.
    assert task.true_error(config_of(point)) == pytest.approx(function.best, abs=1e-9)
    assert task.regret_range[0] == function.best
    point, step = np.array(point), 1e-5
    for axis, (lower, upper) in enumerate(function.bounds):
        shift = step * np.eye(len(point))[axis]
        if lower < point[axis] < upper:
            slope = function.value(point + shift) - function.value(point - shift)
            assert slope / (2 * step) == pytest.approx(0, abs=1e-6)
        else:  # on an edge it may not fall inwards
            assert function.value(point + shift) >= function.value(point)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_search_finds_less_than_the_optimum_nor_more_than_the_worst(name):
    function = FUNCTIONS[name]
    lower, upper = np.array(function.bounds).T
    points = lower + (upper - lower) * np.random.default_rng(0).random((2000, len(lower)))
    values = function.value(points)
    assert function.best <= values.min()
    assert values.max() <= function.worst

    def search(sign, starts):
        return sign * min(
            minimize(lambda x: sign * float(function.value(x)), start, bounds=function.bounds).fun
            for start in starts
        )

    order = values.argsort()
    assert search(1, points[order[:5]]) == pytest.approx(function.best, abs=1e-5)
    corners = np.array(list(itertools.product(*function.bounds)))
    largest = search(-1, [*points[order[-5:]], *corners])
    # Hartmann's comes close to 0 without reaching it; the others' worst are corners.
    assert largest == pytest.approx(function.worst, abs=1e-3)
    assert largest <= function.worst + 1e-9


def test_values_that_are_known_by_hand():
    branin, currin = FUNCTIONS["function-branin"].value, FUNCTIONS["function-currin"].value
    # At the origin: 36 + 10 (1 − 1/8π) + 10; at (0, 1) of Currin's: (1 − 1/√e) · 60 / 20.
    assert branin(np.zeros(2)) == pytest.approx(56 - 10 / (8 * math.pi))
    assert currin(np.array([0.0, 1.0])) == pytest.approx(-3 * (1 - math.exp(-0.5)))
    # Of the cheap version, the terms of Branin's at the origin that know the fidelity: t alone.
    assert branin(np.zeros(2), 0.0) - branin(np.zeros(2)) == pytest.approx(-0.05)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_curves_end_in_the_value_and_begin_one_spread_above_the_cheap_one(name):
    function, task = FUNCTIONS[name], tasks.create(name, epochs=9)
    best, median = task.regret_range
    for config in sample(task, 20):
        curve = errors(task.start(config, seed=0), 9)
        assert curve[-1] == pytest.approx(task.true_error(config), rel=1e-12)
        cheap = function.value(np.array(list(config.values())), 1 / 9)
        assert curve[0] == pytest.approx(float(cheap) + median - best)
        assert curve == errors(task.start(config, seed=7), 9)  # the seed is for noise alone


@pytest.mark.parametrize("name", FUNCTIONS)
def test_curves_cross(name):
    task = tasks.create(name)
    curves = [errors(task.start(config, seed=0), task.max_epochs) for config in sample(task, 60)]
    early, late = (np.argsort(np.argsort(column)) for column in (np.array(curves)[:, [2, -1]]).T)
    correlation = np.corrcoef(early, late)[0, 1]
    assert 0.3 < correlation < 1  # an early look is worth something, and not everything


def test_noise_has_the_deviation_that_it_says():
    """27 × 40 values: the standard error of the deviation is 2.2 %, the bounds are 5 of them."""
    noisy, quiet = (tasks.create("function-hartmann6", noise=n) for n in (0.2, 0.0))
    base = np.array(errors(quiet.start({}, seed=0), 27))
    rest = np.array([errors(noisy.start({}, seed=s), 27) for s in range(40)]) - base
    best, median = quiet.regret_range
    assert rest.std() == pytest.approx(0.2 * (median - best), rel=0.11)


def test_costs_are_equal_or_follow_the_first_variable():
    assert tasks.create("function-branin").start({}, seed=0).train_epoch()["seconds"] == 1
    unequal = tasks.create("function-branin", cost="unequal")
    for x1, seconds in ((-5, 0.5), (2.5, 1.0), (10, 2.0)):
        run = unequal.start({"x1": x1}, seed=0)
        assert [run.train_epoch()["seconds"] for _ in range(3)] == [seconds] * 3


def test_counting_ones_counts_ones():
    task = tasks.create("function-counting-ones", binary=2, continuous=2)
    assert list(task.space) == ["b1", "b2", "p1", "p2"]
    assert task.true_error({"b1": 1, "b2": 0, "p1": 0.5, "p2": 0.25}) == pytest.approx(0.5625)
    ones = {"b1": 1, "b2": 1, "p1": 1.0, "p2": 1.0}
    assert task.true_error(ones) == task.regret_range[0] == 0
    assert errors(task.start(ones, seed=0), 3) == [0, 0, 0]


def test_counting_ones_closes_in_on_the_truth_and_never_knows_it():
    """The mean of n draws of p = 1/2 has the standard deviation 1 / (2 √n); 200 seeds: ± 5 %."""
    task = tasks.create("function-counting-ones", binary=0, continuous=1, draws=10, epochs=16)
    curves = np.array([errors(task.start({"p1": 0.5}, seed=s), 16) for s in range(200)])
    for epoch in (1, 4, 16):
        expected = 1 / (2 * math.sqrt(10 * epoch))
        assert curves[:, epoch - 1].std() == pytest.approx(expected, rel=0.25)
    assert curves.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("function-branin", {"epochs": 1}, r"epochs.*1"),
        ("function-branin", {"epochs": 2.5}, r"epochs.*2\.5"),
        ("function-branin", {"cost": "free"}, r"cost.*equal.*'free'"),
        ("function-counting-ones", {"continuous": 0}, r"continuous.*0"),
        ("function-counting-ones", {"binary": -1}, r"binary.*-1"),
        ("function-counting-ones", {"draws": 0}, r"draws.*0"),
    ],
)
def test_bad_options_are_refused_with_the_value(name, options, message):
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        tasks.create(name, **options)
