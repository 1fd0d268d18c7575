"""The response of a network: how much of its layers is still noise (autoHyper).

Tuli, Hosseini and Plataniotis (arXiv 2111.14056) read off the training weights alone
whether a learning rate makes a network learn. Every convolution is unfolded into two
matrices; empirical variational Bayes matrix factorisation (`evbmf`) splits each into a
low-rank part and noise; the *response* is the fraction of all unfoldings in which there is
nothing but noise. It is 1 for a fresh network or a learning rate far too small, and falls
towards 0 as the learning rate grows.

Unfoldings, for `in` and `out` channels, g groups and a kernel of q entries:

=======================  ===================  ===================
weight                   input unfolding      output unfolding
=======================  ===================  ===================
convolution              in × (out·q/g)       out × (in·q/g)
transposed convolution   in × (out·q/g)       out × (in·q/g)
linear (by option)       in × out             out × in
=======================  ===================  ===================

A row holds everything that one channel is multiplied with: in a grouped or depthwise
convolution a channel meets its own group only, and the rows of all groups stand below one
another. (The published code takes a weight as it is stored, which for one group is the
same; for g groups its input unfolding has in/g rows, and for a depthwise convolution one
row, which can never hold more than noise.) Where an unfolding does have a single row, as
in the first layer of a network for grey images, it counts as noise, as published.

Tall unfoldings are transposed, which changes no singular value. (The published code does
not: its bounds on the noise variance hold for wide matrices only, and where a 1 × 1
convolution has more rows than columns it computes something else, or fails and repeats
the epoch before.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tune_ext._checks import check_count, check_flag
from tune_ext._evbmf import Factorization, Threshold, check_threshold
from tune_ext._layers import current_weight, find_layers, is_transposed
from tune_ext._spectra import Unfolding, factorize_all, ladder, unfold
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["Factorization", "KnowledgeGain", "ResponseMeter", "evbmf", "knowledge_gain"]

#: The largest relative error of a retained square: in a knowledge gain, and in `evbmf`.
_FAST, _FINE = 1e-5, 1e-8
_VERSION = 1


class KnowledgeGain(NamedTuple):
    """The knowledge gain of both unfoldings of a weight, each in [0, 1].

    It is the stable rank of the low-rank part over the number of rows, Σ_h d_h / (d_1 ·
    rows), where d are the retained singular values; 0 where none is retained; NaN where
    the weight holds NaN or infinite values.
    """

    input: float
    output: float


def evbmf(matrix: Any, *, threshold: Threshold = "published") -> Factorization:
    """Separate a matrix into a low-rank part and noise, without any rank to be chosen.

    Empirical variational Bayes matrix factorisation in its analytic form (Nakajima,
    Sugiyama, Babacan, Tomioka: "Global analytic solution of fully-observed variational
    Bayesian matrix factorization", JMLR 14, 2013; "Perfect dimensionality recovery by
    variational Bayesian PCA", NIPS 2012): the noise variance is where the free energy is
    least, the singular values above a threshold are retained, and shrunk by what the noise
    has added to them. The formulas are in `tune_ext._evbmf`.

    The free energy has several local minima in about one matrix out of ten; this finds
    the global one for certain. Values agree with a float64 SVD to about 1e-8.

    Args:
        matrix: Shape `(rows, columns)`, a tensor or anything that numpy takes for an array
            of real numbers. Tall matrices are transposed.
        threshold: "published" puts τ̄ at 2.5129·√α, α the shorter side over the longer, as
            the published code of autoHyper does; "exact" at the root of
            Φ(τ) + Φ(τ/α) = 0, Φ(z) = ln(z + 1)/z − 1/2, which that approximates. They agree
            for square matrices; at α = 1/9 the factor is 2.5925. The published one makes the
            free energy jump where a value is retained; at the global minimum the two
            retain the same, but for matrices in a very narrow band.

    Returns:
        The retained singular values, shrunk and in descending order, and the noise
        variance of an entry. If the matrix is of low rank exactly, the noise variance is
        about 0 and the values are as they were; for a matrix of zeros, none is retained.

    Raises:
        InvalidValueError: `matrix` is not two-dimensional, is empty, or holds NaN or
            infinite values; `threshold` is neither of the two.
        InvalidTypeError: The entries are not real numbers.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> signal = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 200))
    >>> result = evbmf(signal + 0.5 * rng.normal(size=(40, 200)))
    >>> result.rank, round(result.noise_variance, 2)
    (3, 0.25)
    >>> evbmf(rng.normal(size=(200, 40))).rank
    0
    """
    check_threshold(threshold)
    tensor = _real_tensor(matrix, "matrix")
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise InvalidValueError(
            f"matrix must have two dimensions and entries, got shape {tuple(tensor.shape)}"
        )
    unfolding = Unfolding.of(tensor[None, :, :, None])
    (result,) = _without_autocast([unfolding], threshold, (torch.float64,), _FINE)
    if result is None:
        raise InvalidValueError("matrix holds NaN or infinite values: there is no factorisation")
    return result


def knowledge_gain(
    weight: Any,
    *,
    groups: int = 1,
    transposed: bool = False,
    threshold: Threshold = "published",
) -> KnowledgeGain:
    """The knowledge gain of one layer: how much structure its weight holds.

    Args:
        weight: Shape `(out, in / groups, …)`, as `torch.nn.Conv2d` and its relatives and
            `Linear` keep it, or `(in, out / groups, …)` if `transposed`.
        groups: The `groups` of the convolution.
        transposed: Whether the weight is that of a `ConvTranspose` layer.
        threshold: See `evbmf`.

    Returns:
        The pair (input, output). Retained values are good to 1e-5; which of them are
        retained is as in float64. See the module's docstring for the unfoldings.

    Raises:
        InvalidValueError: `weight` has fewer than two dimensions or no entries, or
            `groups` does not divide its first one.
        InvalidTypeError: The entries are not real numbers.

    >>> import torch
    >>> knowledge_gain(torch.ones(4, 3, 3, 3))
    KnowledgeGain(input=0.333..., output=0.25)
    """
    check_threshold(threshold)
    tensor = _real_tensor(weight, "weight")
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise InvalidValueError(
            f"weight must have two dimensions or more and entries, got shape {tuple(tensor.shape)}"
        )
    check_flag("transposed", transposed)
    groups = check_count("groups", groups, -1)
    if groups < 1 or tensor.shape[0] % groups:
        raise InvalidValueError(
            f"groups must divide the first dimension of weight, {tensor.shape[0]}, got {groups!r}"
        )
    gains = []
    unfoldings = unfold(tensor, groups, transposed)
    results = _without_autocast(unfoldings, threshold, ladder(tensor), _FAST)
    for unfolding, result in zip(unfoldings, results, strict=True):
        if result is None:
            gains.append(math.nan)
        elif result.rank == 0:
            gains.append(0.0)
        else:
            d = result.singular_values
            gains.append(float(d.sum() / d[0]) / unfolding.rows)
    return KnowledgeGain(*gains)


def _real_tensor(values: Any, name: str) -> Tensor:
    """`values` as a tensor of real numbers, outside of any gradient."""
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"{name} must be an array of real numbers: {error}") from error
    if tensor.is_complex():
        raise InvalidTypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    tensor = tensor.detach()
    if tensor.device.type == "mps":  # no float64 there
        tensor = tensor.cpu()
    return tensor if tensor.is_floating_point() else tensor.double()


def _without_autocast(
    unfoldings: Sequence[Unfolding],
    threshold: Threshold,
    dtypes: Sequence[torch.dtype],
    resolution: float,
) -> list[Factorization | None]:
    """`factorize_all`, also where the caller has mixed precision switched on."""
    with torch.no_grad(), torch.autocast(unfoldings[0].view.device.type, enabled=False):
        return factorize_all(unfoldings, threshold, dtypes, resolution)


class ResponseMeter:
    """Measures the response of a model, once an epoch, from its weights alone.

    All convolutions of the model are measured (Conv1d to Conv3d, grouped and depthwise,
    and their transposed forms), wherever it is: on a CPU or an accelerator, under DataParallel,
    DistributedDataParallel or torch.compile, in float64, float32, float16 or bfloat16
    (computed in float32 at least). A weight shared between layers counts once; one with a
    parametrisation (weight norm, spectral norm, …) counts as the layer uses it. Measuring
    changes neither the model nor any random state.

    Args:
        model: What is trained. The layers are found at construction.
        linear: Whether to measure `torch.nn.Linear` layers too.
        count: "unfoldings" (as the published code): the response is the fraction of all
            unfoldings, two for each layer, without knowledge gain. "layers" (as the
            published text): the fraction of layers where both are without.
        threshold: See `evbmf`.

    Raises:
        InvalidTypeError: `model` is not a `torch.nn.Module`, or its weights are not real.
        InvalidValueError: The model has nothing to measure, or layers without weights yet.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(16, 16, 3))
    >>> meter = ResponseMeter(model)
    >>> result = meter.measure()
    >>> result["response"], result["diverged"], result["epochs_measured"]
    (1.0, False, 1)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        linear: bool = False,
        count: Literal["unfoldings", "layers"] = "unfoldings",
        threshold: Threshold = "published",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(count, str) or count not in ("unfoldings", "layers"):
            raise InvalidValueError(f"count must be 'unfoldings' or 'layers', got {count!r}")
        check_threshold(threshold)
        self._layers = find_layers(model, linear)
        self._count = count
        self._threshold: Threshold = threshold
        self._epochs = 0
        self._sum = 0.0

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of the layers that are measured, as in `model.named_modules()`."""
        return tuple(self._layers)

    def reset(self) -> None:
        """Forget the epochs measured so far: for a new run with the same model."""
        self._epochs, self._sum = 0, 0.0

    def measure(self, per_layer: bool = False) -> dict[str, Any]:
        """Measure the weights as they are now and count it as one more epoch.

        Args:
            per_layer: Whether to add the knowledge gains of each layer.

        Returns:
            A flat dictionary, ready to be reported:

            * "response": of these weights, in [0, 1];
            * "response_mean": over the epochs measured since construction or `reset`;
            * "knowledge_gain": mean over all unfoldings;
            * "diverged": whether some weight is NaN or infinite. The response is NaN then,
              and so is its mean from then on;
            * "epochs_measured": how many epochs the mean is taken over;
            * "layers", if `per_layer`: name → {"input": gain, "output": gain}.
        """
        gains = {name: self._gain(layer) for name, layer in self._layers.items()}
        values = np.array(list(gains.values()))
        diverged = not bool(np.isfinite(values).all())
        empty = values == 0.0
        share = float(np.mean(empty if self._count == "unfoldings" else empty.all(axis=1)))
        response = math.nan if diverged else share
        self._epochs += 1
        self._sum += response
        result: dict[str, Any] = {
            "response": response,
            "response_mean": self._sum / self._epochs,
            "knowledge_gain": math.nan if diverged else float(values.mean()),
            "diverged": diverged,
            "epochs_measured": self._epochs,
        }
        if per_layer:
            result["layers"] = {name: gain._asdict() for name, gain in gains.items()}
        return result

    def _gain(self, layer: nn.Module) -> KnowledgeGain:
        return knowledge_gain(
            current_weight(layer),
            groups=int(getattr(layer, "groups", 1)),
            transposed=is_transposed(layer),
            threshold=self._threshold,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that the mean goes on: plain values, fit for JSON."""
        return {
            "version": _VERSION,
            "count": self._count,
            "threshold": self._threshold,
            "epochs_measured": self._epochs,
            "response_sum": None if math.isnan(self._sum) else self._sum,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a meter with the same settings.

        Raises:
            StateError: `state` is of another version, damaged, or of a meter that counts
                something else. The meter is as it was then.
        """
        if not isinstance(state, Mapping) or state.get("version") != _VERSION:
            raise StateError(
                f"not the state of a ResponseMeter, version {_VERSION}: {state!r:.200}"
            )
        for key, own in (("count", self._count), ("threshold", self._threshold)):
            if state.get(key) != own:
                raise StateError(f"the state has {key}={state.get(key)!r}, this meter {own!r}")
        epochs, total = state.get("epochs_measured"), state.get("response_sum")
        if not (
            isinstance(epochs, int)
            and epochs >= 0
            and (total is None or (isinstance(total, int | float) and 0.0 <= total <= epochs))
        ):
            raise StateError(f"damaged state: epochs_measured={epochs!r}, response_sum={total!r}")
        self._epochs = epochs
        self._sum = math.nan if total is None else float(total)
