"""The largest learning rate that the inputs allow: 2 / λ_max of their second moments.

Source: Chaudhry and Mizuno, arXiv 2411.16975 (ExpTest). A network that is linear in its
features, under squared loss ½(wᵀx − y)² and gradient descent, has error modes
(1 − ηλ_i)^t, λ_i the eigenvalues of Σ = E[x xᵀ], x with a bias coordinate 1 and not centred.
All of them decay iff η < 2/λ_max(Σ). tr(Σ) = mean ‖x‖² + 1 is never below λ_max, so that
2/tr(Σ) is never above 2/λ_max, and costs one pass and no memory. The Hessian of the softmax
cross-entropy is at most ½Σ for each class, which doubles the bound.

Tensors of torch stay on their device; torch is not imported unless there is one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_choice, check_count, check_flag, check_positive
from tune_ext._random import check_seed, generator
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["learning_rate_bound"]

Array = NDArray[np.float64]


def learning_rate_bound(
    batches: Iterable[Any],
    *,
    loss: Literal["mse", "cross_entropy"] = "mse",
    method: Literal["trace", "power"] = "trace",
    bias: bool = True,
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int | None = 0,
) -> float:
    """The learning rate below which gradient descent on a linear model of the inputs is stable.

    Args:
        batches: Batches of inputs, arrays or torch tensors of shape `(n, …)`, flattened to
            `(n, features)`; from a batch `(x, y, …)`, as a DataLoader gives, x is taken. They
            are read one at a time: beside one batch in float64, memory is O(features).
        loss: "mse" for ½(prediction − y)², or "cross_entropy" after a softmax, for which the
            bound is twice as large.
        method: "trace" is 2/tr(Σ): one pass, and never above the true bound. "power" is
            2/λ_max(Σ) by power iteration: one pass an iteration over `batches`, which must
            therefore be something that can be read again. Its λ approaches λ_max from below, so
            that its bound is an estimate from above; it is never below that of the trace.
        bias: Whether the model has a bias, a coordinate that is always 1.
        iterations: At most so many ("power").
        tolerance: "power" ends when λ grows by less than this, relative, in an iteration, and
            warns where it did not get there. It says nothing about eigenvalues closer than that.
        seed: Of the vector that "power" starts from; None takes entropy from the system.

    Returns:
        The bound, a positive finite number.

    Raises:
        InvalidValueError: No samples, a value that is not finite, shapes that do not fit, or
            inputs that are all 0 without a bias.
        InvalidTypeError: Not batches of numbers, or an iterator ("power").

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(1000, 3)) * [3.0, 1.0, 0.1]
        >>> f"{learning_rate_bound([x[:500], x[500:]], bias=False):.3f}"
        '0.203'
        >>> f"{learning_rate_bound([x[:500], x[500:]], bias=False, method='power'):.3f}"
        '0.224'
    """
    check_choice("loss", loss, ("mse", "cross_entropy"))
    check_choice("method", method, ("trace", "power"))
    check_count("iterations", iterations)
    check_positive("tolerance", tolerance, below=1.0)
    check_seed(seed)
    bias = check_flag("bias", bias)
    if hasattr(batches, "shape"):
        raise InvalidTypeError("batches must be an iterable of batches; put one alone in a list")
    if not isinstance(batches, Iterable):
        raise InvalidTypeError(f"batches must be an iterable of batches, got {batches!r:.100}")
    if method == "trace":
        curvature = _trace(batches, bias)
    else:
        if isinstance(batches, Iterator):
            raise InvalidTypeError(
                "method='power' reads the batches many times, and an iterator can be read once; "
                "give a list or a DataLoader, or use method='trace'"
            )
        curvature = _power(batches, bias, iterations, tolerance, generator(seed, "power"))
    if curvature == 0:
        raise InvalidValueError("every input is 0 and there is no bias: any rate is stable")
    return (4.0 if loss == "cross_entropy" else 2.0) / curvature


def _trace(batches: Iterable[Any], bias: bool) -> float:
    """tr(Σ)."""
    total, n = 0.0, 0
    for i, x in enumerate(_matrices(batches)):
        with np.errstate(over="ignore"):
            squares = float((x * x).sum())
        if not math.isfinite(squares):
            raise _not_finite(i)
        total, n = total + squares, n + len(x)
    return total / _some(n) + bias


def _power(
    batches: Iterable[Any],
    bias: bool,
    iterations: int,
    tolerance: float,
    rng: np.random.Generator,
) -> float:
    """‖Σv‖ of the iterated unit vector v: it grows from pass to pass, and never above λ_max."""
    v, known = np.empty(0), 0.0
    for _ in range(iterations):
        product, n = np.empty(0), 0
        for i, x in enumerate(_matrices(batches)):
            if not n:
                if not len(v):
                    v = rng.normal(size=x.shape[1] + bias)
                    v /= np.linalg.norm(v)
                if len(v) != x.shape[1] + bias:
                    raise _unlike(i, x.shape[1], len(v) - bias)
                product = np.zeros(len(v))
            with np.errstate(over="ignore", invalid="ignore"):
                product += _times(x, v, bias)
            if not np.isfinite(product).all():
                raise _not_finite(i)
            n += len(x)
        product /= _some(n)
        estimate = float(np.linalg.norm(product))
        if estimate == 0 or estimate - known <= tolerance * estimate:
            return max(estimate, known)
        v, known = product / estimate, estimate
    warnings.warn(
        f"power iteration had not settled to {tolerance:g} after {iterations} iterations; λ_max "
        "may be larger and the bound smaller: allow more iterations, or use method='trace'",
        RuntimeWarning,
        stacklevel=3,
    )
    return known


def _times(x: Any, v: Array, bias: bool) -> Array:
    """Σ_rows x (xᵀv), x with its bias coordinate, of one batch; only vectors leave its device."""
    weights = v[: x.shape[1]]
    if _is_tensor(x):
        weights = x.new_tensor(weights)
    along = x @ weights
    if bias:
        along = along + float(v[-1])
    inputs = x.T @ along
    result = np.asarray(inputs.cpu() if _is_tensor(x) else inputs)
    return np.append(result, float(along.sum())) if bias else result


def _matrices(batches: Iterable[Any]) -> Iterator[Any]:
    """Each batch as an `(n, features)` matrix in float64, an array or a tensor; none empty."""
    features = None
    for i, batch in enumerate(batches):
        x = _inputs(batch, i)
        if len(x) == 0:
            continue
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        if features is not None and x.shape[1] != features:
            raise _unlike(i, x.shape[1], features)
        features = x.shape[1]
        yield x


def _inputs(batch: Any, i: int) -> Any:
    """The inputs of a batch, in float64."""
    if isinstance(batch, list | tuple) and batch and getattr(batch[0], "shape", None):
        batch = batch[0]
    if _is_tensor(batch):
        x = batch.detach()
        if x.device.type == "mps":  # has no float64
            x = x.cpu()
        complex_valued = x.is_complex()
        x = x if complex_valued else x.double()
    else:
        try:
            x = np.asarray(batch)
            complex_valued = np.iscomplexobj(x)
            x = x if complex_valued else x.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(f"batch {i} is not an array of numbers: {error}") from error
    if complex_valued:
        raise InvalidTypeError(f"batch {i} is complex; the inputs must be real")
    if x.ndim == 0:
        raise InvalidValueError(f"batch {i} must have the shape (n, …), got a single number")
    return x


def _is_tensor(x: Any) -> bool:
    """Whether x is a torch tensor, without importing torch."""
    return hasattr(x, "detach") and hasattr(x, "device")


def _some(n: int) -> int:
    if n == 0:
        raise InvalidValueError("batches must hold at least one sample; a pass found none")
    return n


def _not_finite(i: int) -> InvalidValueError:
    return InvalidValueError(
        f"batch {i} holds a value that is not finite, or so large that its square is not"
    )


def _unlike(i: int, features: int, known: int) -> InvalidValueError:
    return InvalidValueError(
        f"batch {i} has {features} features a sample, those before it {known}; "
        "all batches must have the same"
    )
