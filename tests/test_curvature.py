"""The bound of the learning rate: against eigenvalues, in numpy and in torch."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_ext._curvature import learning_rate_bound
from tune_ext.errors import InvalidTypeError, InvalidValueError


def inputs(n: int = 300, features: int = 7, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, features)) * np.geomspace(3, 0.1, features) + rng.normal(
        size=features
    )


def second_moments(x: np.ndarray, bias: bool = True) -> np.ndarray:
    x = x.reshape(len(x), -1).astype(float)
    x = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    return x.T @ x / len(x)


def in_batches(x, sizes=(100, 150)):
    return np.split(x, np.cumsum(sizes)) if isinstance(x, np.ndarray) else list(x.split(100))


@pytest.mark.parametrize("bias", [True, False])
def test_the_trace_bound_is_two_over_the_trace(bias):
    x = inputs()
    bound = learning_rate_bound(in_batches(x), bias=bias)
    assert bound == pytest.approx(2 / np.trace(second_moments(x, bias)), rel=1e-13)


@pytest.mark.parametrize("bias", [True, False])
def test_the_power_bound_is_two_over_the_largest_eigenvalue(bias):
    x = inputs()
    largest = np.linalg.eigvalsh(second_moments(x, bias))[-1]
    bound = learning_rate_bound(in_batches(x), method="power", bias=bias, tolerance=1e-12)
    assert bound == pytest.approx(2 / largest, rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32), st.booleans(), st.floats(-9, 9)
)
def test_the_bounds_are_in_order(n, features, seed, bias, magnitude):
    x = inputs(n, features, seed) * 10**magnitude
    largest = np.linalg.eigvalsh(second_moments(x, bias))[-1]
    trace = learning_rate_bound([x], bias=bias)
    power = learning_rate_bound([x], method="power", bias=bias, iterations=10_000)
    assert trace <= 2 / largest * (1 + 1e-9)
    # A lower estimate of λ_max: never below the true bound, and never below the trace's.
    assert power >= 2 / largest * (1 - 1e-9)
    assert power >= trace * (1 - 1e-9)


def test_batches_of_any_sizes_and_any_order_give_the_same():
    x = inputs()
    whole = learning_rate_bound([x])
    assert learning_rate_bound(in_batches(x)[::-1]) == pytest.approx(whole, rel=1e-13)
    assert learning_rate_bound([x[:0], x[:1], x[1:], x[:0]]) == pytest.approx(whole, rel=1e-13)
    assert learning_rate_bound(part for part in in_batches(x)) == pytest.approx(whole, rel=1e-13)


@pytest.mark.parametrize("method", ["trace", "power"])
def test_cross_entropy_doubles(method):
    x = [inputs()]
    single = learning_rate_bound(x, method=method)
    assert learning_rate_bound(x, method=method, loss="cross_entropy") == 2 * single


@pytest.mark.parametrize("method", ["trace", "power"])
def test_tensors_images_and_loaders_are_read_as_they_are(method):
    x = inputs(240, 12)
    y = np.zeros(240)
    expected = learning_rate_bound([x], method=method)
    images = torch.tensor(x).reshape(240, 3, 2, 2)
    data = torch.utils.data.TensorDataset(images, torch.tensor(y))
    loader = torch.utils.data.DataLoader(data, batch_size=50)  # gives lists [x, y]
    for batches in (loader, [images], [(images, y)], [(x, y)], [[x, y, y]], [x.tolist()]):
        assert learning_rate_bound(batches, method=method) == pytest.approx(expected, rel=1e-12)


def test_single_precision_is_summed_in_double():
    # In float32 the mean square of so many values near 1,000 is off by 1e-6 and more.
    x = (1000 + np.random.default_rng(0).random((4096, 64))).astype(np.float32)
    expected = 2 / np.trace(second_moments(x))
    for batch in (x, torch.from_numpy(x), torch.from_numpy(x).requires_grad_()):
        assert learning_rate_bound([batch]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.uint8, torch.bool])
def test_other_kinds_of_numbers(kind):
    x = torch.ones(4, 3).to(kind)
    assert learning_rate_bound([x]) == 0.5
    assert learning_rate_bound([np.ones((4, 3), bool)]) == 0.5
    assert learning_rate_bound([x * 2 if kind != torch.bool else x.int() * 2]) == 2 / 13


def test_the_seed_decides_and_the_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = learning_rate_bound([inputs()], method="power")
    assert first == learning_rate_bound([inputs()], method="power", seed=0)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


def test_a_power_iteration_that_is_cut_short_says_so():
    x = np.eye(40) * np.sqrt(np.linspace(1, 1.1, 40))
    with pytest.warns(RuntimeWarning, match="after 2 iterations"):
        bound = learning_rate_bound([x], method="power", iterations=2, tolerance=1e-9)
    assert bound > learning_rate_bound([x], method="power", iterations=10_000, tolerance=1e-9)


@pytest.mark.parametrize("method", ["trace", "power"])
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one sample"),
        ([np.ones((0, 3))], "at least one sample"),
        ([np.ones((2, 3)), np.ones((2, 4))], "batch 1 has 4 features.*3"),
        ([np.ones((2, 3)), np.full((2, 3), math.nan)], "batch 1 .*not finite"),
        ([np.full((2, 3), math.inf)], "batch 0 .*not finite"),
        ([np.full((2, 3), 1e200)], "batch 0 .*not finite"),
        ([torch.full((2, 3), math.inf)], "batch 0 .*not finite"),
        ([3.0], "batch 0 .*shape"),
    ],
)
def test_inputs_that_cannot_work_are_named(method, batches, message):
    with pytest.raises(InvalidValueError, match=message):
        learning_rate_bound(batches, method=method)


@pytest.mark.parametrize("method", ["trace", "power"])
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (np.ones((3, 2)), "in a list"),
        (torch.ones(3, 2), "in a list"),
        (7, "iterable"),
        ([["a", "b"]], "batch 0"),
        ([{"x": np.ones(3)}], "batch 0"),
        ([[[1.0, 2.0], [3.0]]], "batch 0"),
        ([np.ones((2, 2), complex)], "complex"),
        ([torch.ones(2, 2, dtype=torch.complex64)], "complex"),
    ],
)
def test_what_is_not_batches_of_numbers_is_refused(method, batches, message):
    with pytest.raises(InvalidTypeError, match=message):
        learning_rate_bound(batches, method=method)


def test_an_iterator_is_refused_where_it_would_run_dry():
    with pytest.raises(InvalidTypeError, match="read once"):
        learning_rate_bound((b for b in [inputs()]), method="power")


def test_nothing_but_zeros_has_a_bound_with_a_bias_only():
    assert learning_rate_bound([np.zeros((5, 2))]) == 2.0
    for method in ("trace", "power"):
        with pytest.raises(InvalidValueError, match="every input is 0"):
            learning_rate_bound([np.zeros((5, 2))], method=method, bias=False)


@pytest.mark.parametrize(
    "options",
    [{"loss": "hinge"}, {"method": "exact"}, {"iterations": 0}, {"tolerance": 0}, {"seed": -1}],
)
def test_arguments_that_cannot_work_are_named(options):
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        learning_rate_bound([inputs()], **options)


def test_torch_is_not_imported():
    code = (
        "import sys, numpy; from tune_ext._curvature import learning_rate_bound as bound;"
        "bound([numpy.ones((2, 2))]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
