"""Kernel densities: against statsmodels, against numerical integration, at the edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tune_ext._kde import Density, Variable

NUMBER = Variable("number")


def _mixed(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    columns = [random.random(count), random.random(count) ** 3]
    columns += [random.integers(0, 3, count), random.integers(0, 4, count)]
    return np.column_stack(columns).astype(float)


VARIABLES = [NUMBER, NUMBER, Variable("category", 3), Variable("level", 4)]


def test_the_same_density_as_statsmodels():
    statsmodels = pytest.importorskip("statsmodels.api")
    data, points = _mixed(60, 0), _mixed(20, 1)
    ours = Density(data, VARIABLES)
    theirs = statsmodels.nonparametric.KDEMultivariate(
        data=data, var_type="ccuo", bw="normal_reference"
    )
    np.testing.assert_allclose(ours.bandwidth, theirs.bw, rtol=1e-12)
    np.testing.assert_allclose(np.exp(ours.log_pdf(points)), theirs.pdf(points), rtol=1e-9)


def test_the_density_by_the_definition():
    data, points = _mixed(7, 2), _mixed(3, 3)
    density = Density(data, VARIABLES)
    h = density.bandwidth
    for point, found in zip(points, density.log_pdf(points), strict=True):
        total = 0.0
        for datum in data:
            product = 1.0
            for j in (0, 1):
                z = (point[j] - datum[j]) / h[j]
                product *= math.exp(-z * z / 2) / (h[j] * math.sqrt(2 * math.pi))
            product *= 1 - h[2] if point[2] == datum[2] else h[2] / 2
            apart = abs(point[3] - datum[3])
            product *= 1 - h[3] if not apart else 0.5 * (1 - h[3]) * h[3] ** apart
            total += product / len(data)
        assert found == pytest.approx(math.log(total), rel=1e-10)


def test_bandwidths_have_limits():
    data = np.column_stack([np.full(9, 0.5), np.arange(9) % 2]).astype(float)
    density = Density(data, [NUMBER, Variable("category", 2)], min_bandwidth=0.01)
    assert density.bandwidth[0] == 0.01
    assert density.bandwidth[1] <= 0.5  # above that the kernel would prefer the other category


def test_a_category_alone_sums_to_one():
    data = np.array([[0.0], [0.0], [2.0]])
    density = Density(data, [Variable("category", 4)])
    assert np.exp(density.log_pdf(np.arange(4.0)[:, None])).sum() == pytest.approx(1)


def test_a_category_of_one():
    density = Density(np.zeros((5, 1)), [Variable("category", 1)])
    assert density.log_pdf(np.zeros((1, 1)))[0] == pytest.approx(0)
    assert (density.sample(10, 3, np.random.default_rng(0)) == 0).all()


def test_far_from_all_data_it_is_small_but_a_number():
    density = Density(np.full((5, 1), 0.1), [NUMBER])
    far = density.log_pdf(np.array([[1.0]]))
    assert np.isfinite(far).all()
    assert far[0] < -1e4


def test_samples_are_distributed_as_the_widened_kernels():
    """False failures: below 1e-6 (five standard errors of a mean and of a share)."""
    data = np.array([[0.2, 0.0], [0.2, 0.0], [0.2, 2.0], [0.2, 0.0]])
    density = Density(data, [NUMBER, Variable("category", 3)], min_bandwidth=0.02)
    drawn = density.sample(20_000, 3, np.random.default_rng(0))
    assert abs(drawn[:, 0].mean() - 0.2) < 5 * 0.06 / math.sqrt(20_000)
    assert drawn[:, 0].std() == pytest.approx(0.06, rel=0.05)
    h = density.bandwidth[1]
    share = 0.75 * (1 - h) + 0.25 * h / 2
    deviation = math.sqrt(share * (1 - share) / 20_000)
    assert abs((drawn[:, 1] == 0).mean() - share) < 5 * deviation


def test_samples_stay_in_range():
    data = np.array([[0.0, 0.0], [1.0, 3.0], [0.001, 1.0]])
    density = Density(data, [NUMBER, Variable("level", 4)])
    drawn = density.sample(5_000, 10, np.random.default_rng(0))
    assert drawn[:, 0].min() >= 0
    assert drawn[:, 0].max() <= 1
    assert set(drawn[:, 1]) == {0.0, 1.0, 2.0, 3.0}


def test_pairs_of_kinds_do_not_mix():
    """The product over variables: a density over both is no sum of those over each."""
    data = np.array([[0.1, 0.0], [0.9, 1.0]])
    density = Density(data, [NUMBER, Variable("category", 2)], min_bandwidth=0.05)
    grid = np.array(list(itertools.product([0.1, 0.9], [0.0, 1.0])))
    values = density.log_pdf(grid)
    assert values[0] == pytest.approx(values[3])
    assert values[1] == pytest.approx(values[2])
