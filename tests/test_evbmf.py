"""The factorisation: against the slow reference, and by its invariances."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.evbmf_cases import degenerate, synthetic, trained
from tests.reference.reference_evbmf import reference_evbmf
from tune_ext import _evbmf, _spectra
from tune_ext.errors import InvalidTypeError, InvalidValueError, TuneExtError
from tune_ext.lowrank import evbmf, knowledge_gain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cases():
    """At least 1,000 matrices with what the reference makes of them."""
    matrices = [*synthetic(repeats=8), *degenerate()]
    for name, weight in trained():
        matrices.append((f"{name} output", weight.flatten(1).numpy()))
        matrices.append((f"{name} input", weight.transpose(0, 1).flatten(1).numpy()))
    with np.errstate(under="ignore", over="ignore"):
        return [(name, matrix, *reference_evbmf(matrix)) for name, matrix in matrices]


def test_agrees_with_the_exhaustive_reference(cases):
    assert len(cases) >= 1000
    retained = 0
    for name, matrix, values, variance in cases:
        result = evbmf(matrix)
        assert result.rank == len(values), name
        np.testing.assert_allclose(result.singular_values, values, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(result.noise_variance, variance, rtol=1e-6, err_msg=name)
        retained += result.rank > 0
    # The agreement says something only if both outcomes are well represented.
    assert 300 < retained < len(cases) - 300


def test_the_knowledge_gain_retains_as_many_and_nearly_the_same(cases):
    # Float32 matrices go the fast way, with the product in float32.
    fast = [case for case in cases if case[1].dtype == np.float32]
    assert len(fast) >= 900
    for name, matrix, values, _ in fast:
        gain = knowledge_gain(torch.from_numpy(matrix)[:, :, None]).output
        expected = values.sum() / values[0] / len(matrix) if len(values) else 0.0
        assert gain == pytest.approx(expected, rel=1e-5), name


def test_the_exact_threshold_agrees_with_the_reference(cases):
    for name, matrix, _, _ in cases[::5]:
        with np.errstate(under="ignore", over="ignore"):
            values, variance = reference_evbmf(matrix, "exact")
        result = evbmf(matrix, threshold="exact")
        assert result.rank == len(values), name
        np.testing.assert_allclose(result.singular_values, values, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(result.noise_variance, variance, rtol=1e-6, err_msg=name)


def test_the_exact_threshold_is_stricter_just_above_the_published_one():
    # At the global minimum the choice matters in a very narrow band only.
    squares = np.linalg.svd(np.random.default_rng(20).normal(size=(20, 400)))[1] ** 2
    top, pairs = squares[0], set()
    for factor in np.linspace(1.22, 1.24, 81):
        squares[0] = factor * top
        spectrum = _evbmf.Spectrum(squares, 20, 400)
        pairs.add(
            tuple(
                _evbmf.factorize(spectrum, threshold).factorization.rank
                for threshold in ("published", "exact")
            )
        )
    assert pairs == {(0, 0), (1, 0), (1, 1)}


def test_every_precision_that_is_certain_agrees_with_the_finest(cases):
    used = {torch.float32: 0, torch.float64: 0}
    for name, matrix, values, _ in cases:
        unfolding = _spectra.Unfolding.of(torch.from_numpy(matrix)[None, :, :, None])
        for dtype in used:
            (spectrum,) = _spectra._from_gram([unfolding], dtype)
            if spectrum is None:
                continue
            solution = _evbmf.factorize(spectrum)
            if solution.certain:
                used[dtype] += 1
                assert solution.factorization.rank == len(values), (name, dtype)
    assert used[torch.float32] > 0.6 * len(cases)
    assert used[torch.float64] > 0.8 * len(cases)


def test_a_spectrum_known_too_poorly_is_not_certain():
    # The largest value lies a hair above or below the threshold, for an error of 1e-3.
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 200))
    squares = np.linalg.svd(noise)[1] ** 2
    uncertain = 0
    for factor in np.linspace(1.0, 2.5, 60):
        squares[0] = squares[1] * factor
        exact = _evbmf.factorize(_evbmf.Spectrum(squares, 20, 200))
        poor = _evbmf.factorize(_evbmf.Spectrum(squares, 20, 200, error=0.02 * squares.mean()))
        shifted = [
            _evbmf.factorize(_evbmf.Spectrum(squares + s * 0.02 * squares.mean(), 20, 200))
            for s in (-1, 1)
        ]
        ranks = {s.factorization.rank for s in (exact, *shifted)}
        assert exact.certain
        assert len(ranks) == 1 or not poor.certain
        uncertain += not poor.certain
    assert 0 < uncertain < 60


def test_the_slopes_are_the_derivatives_of_the_free_energy():
    rng = np.random.default_rng(3)
    lam = np.sort(rng.exponential(size=30))[::-1] * 5
    alpha, ranks = 0.3, np.array([6, 6, 6])
    for u in np.log(lam[6] / 6 * np.array([0.5, 0.9])):
        step = 1e-5
        energy, slope = _evbmf._energy(np.exp([u - step, u, u + step]), ranks, lam, alpha)
        assert slope[1] == pytest.approx((energy[2] - energy[0]) / (2 * step), rel=1e-6)
        assert _evbmf._slope(u, lam, 6, alpha) == pytest.approx(slope[1], rel=1e-9)
        bend = (slope[2] - slope[0]) / (2 * step)
        assert _evbmf._bend(u, lam, 6, alpha) == pytest.approx(bend, rel=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.7, 1 / 3, 1 / 9, 1e-3])
def test_the_exact_threshold_is_the_root_that_it_claims_to_be(alpha):
    def phi(z):
        return math.log1p(z) / z - 0.5

    tau = _evbmf.threshold_tau(alpha, "exact")
    assert phi(tau) + phi(tau / alpha) == pytest.approx(0.0, abs=1e-12)
    assert tau >= _evbmf.threshold_tau(alpha) * (1 - 1e-4)  # the published one is never stricter


matrices = st.tuples(
    st.integers(0, 2**32 - 1),  # seed
    st.integers(2, 24),  # rows
    st.integers(2, 60),  # columns
    st.integers(0, 6),  # rank of the signal
    st.sampled_from([0.3, 1.0, 4.0, 50.0]),  # its strength
)


def build(description):
    seed, rows, columns, rank, strength = description
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    return rng, rng.normal(size=(rows, columns)) + strength * signal


def assert_same(result, expected, factor=1.0):
    assert result.rank == expected.rank
    np.testing.assert_allclose(result.singular_values, factor * expected.singular_values, rtol=1e-7)
    np.testing.assert_allclose(
        result.noise_variance, factor**2 * expected.noise_variance, rtol=1e-7
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices, st.sampled_from(["published", "exact"]))
def test_orthogonal_transforms_and_transposition_change_nothing(description, threshold):
    rng, matrix = build(description)
    left = np.linalg.qr(rng.normal(size=(len(matrix),) * 2))[0]
    right = np.linalg.qr(rng.normal(size=(matrix.shape[1],) * 2))[0]
    expected = evbmf(matrix, threshold=threshold)
    assert_same(evbmf(left @ matrix @ right, threshold=threshold), expected)
    assert_same(evbmf(matrix.T, threshold=threshold), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices, st.floats(-60, 60))
def test_scaling_scales_the_values_and_keeps_the_rank(description, exponent):
    _, matrix = build(description)
    factor = 10.0**exponent
    assert_same(evbmf(factor * matrix), evbmf(matrix), factor)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(matrices)
def test_retained_values_are_shrunk_and_descending(description):
    _, matrix = build(description)
    result = evbmf(matrix)
    values = np.linalg.svd(matrix, compute_uv=False)[: result.rank]
    assert (result.singular_values < values).all()
    assert (result.singular_values > 0).all()
    assert (np.diff(result.singular_values) <= 0).all()
    assert 0 < result.noise_variance <= np.mean(matrix**2) * (1 + 1e-12)


def test_noise_alone_is_noise_and_a_strong_signal_is_found():
    # 40 matrices each; that the rank is right is the theorem of the NIPS paper.
    rng = np.random.default_rng(0)
    for _ in range(40):
        noise = rng.normal(size=(64, 192))
        assert evbmf(noise).rank == 0
        signal = rng.normal(size=(64, 5)) @ rng.normal(size=(5, 192))
        result = evbmf(signal + noise)
        assert result.rank == 5
        assert result.noise_variance == pytest.approx(1.0, abs=0.05)


def test_wide_matrices_are_taken_in_pieces():
    # More columns than one piece holds, so that sums over pieces and blocks are at work.
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 5000)) / 2
    matrix = (signal + rng.normal(size=(300, 5000))).astype(np.float32)
    values, variance = reference_evbmf(matrix)
    for given_matrix in (matrix, matrix.T, torch.from_numpy(matrix)[:, ::1]):
        result = evbmf(given_matrix)
        np.testing.assert_allclose(result.singular_values, values, rtol=1e-6)
        assert result.noise_variance == pytest.approx(variance, rel=1e-6)
    unfolding = _spectra.Unfolding.of(torch.from_numpy(matrix)[None, :, :, None])
    exact = _spectra._from_qr(unfolding)
    squares = np.linalg.svd(matrix.astype(float), compute_uv=False) ** 2
    np.testing.assert_allclose(exact.squares * exact.unit**2, squares, rtol=1e-10)


def test_what_it_accepts():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 3)) @ rng.normal(size=(3, 30)) * 9
    expected = evbmf(matrix)
    assert expected.rank == 3
    assert_same(evbmf(matrix.tolist()), expected)
    assert_same(evbmf(torch.tensor(matrix, requires_grad=True)), expected)
    assert evbmf(np.eye(3, dtype=int)).singular_values.dtype == np.float64
    json.dumps(evbmf(matrix).noise_variance)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.zeros(3), "shape (3,)"),
        (np.zeros((0, 3)), "shape (0, 3)"),
        (np.zeros((2, 2, 2)), "shape (2, 2, 2)"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "NaN or infinite"),
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "NaN or infinite"),
        (np.eye(2) * 1j, "complex"),
        ("weights", "real numbers"),
        (None, "real numbers"),
        (np.array([["a"]]), "real numbers"),
    ],
)
def test_what_it_refuses(matrix, words):
    with pytest.raises(TuneExtError) as caught:
        evbmf(matrix)
    assert words in str(caught.value)
    assert isinstance(caught.value, InvalidValueError | InvalidTypeError)


def test_an_unknown_threshold_is_refused():
    with pytest.raises(InvalidValueError, match=r"'published' or 'exact'.*'loose'"):
        evbmf(np.eye(3), threshold="loose")
