"""The response of a network: how much of its convolutions is still noise (autoHyper)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tune_ext._evbmf import THRESHOLDS, Factorization, Spectrum, Threshold, factorize_spectrum
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["Factorization", "KnowledgeGain", "ResponseMeter", "evbmf", "knowledge_gain"]


class KnowledgeGain(NamedTuple):
    """Stable rank of the low-rank part over the number of rows, for both unfoldings."""

    input: float
    output: float


def evbmf(matrix: Any, *, threshold: Threshold = "published") -> Factorization:
    """Factorise one matrix; see `tune_ext._evbmf`."""
    tensor = torch.as_tensor(matrix).detach()
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise InvalidValueError(
            f"matrix must be 2-D and not empty, got shape {tuple(tensor.shape)}"
        )
    spectrum = _spectrum(tensor)
    if spectrum is None:
        raise InvalidValueError("matrix holds NaN or infinite values; nothing to factorise")
    return factorize_spectrum(spectrum, threshold)


def knowledge_gain(
    weight: Tensor,
    *,
    groups: int = 1,
    transposed: bool = False,
    threshold: Threshold = "published",
) -> KnowledgeGain:
    """Knowledge gain of both unfoldings of a layer's weight."""
    values = [_gain(u, threshold) for u in _unfoldings(weight.detach(), groups, transposed)]
    return KnowledgeGain(*values)


def _unfoldings(weight: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    first = weight.flatten(1) if weight.ndim > 1 else weight[:, None]
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    second = grouped.transpose(1, 2).reshape(groups * weight.shape[1], -1)
    return (first, second) if transposed else (second, first)


def _spectrum(matrix: Tensor) -> Spectrum | None:
    m = matrix.to(torch.float64)
    if m.shape[0] > m.shape[1]:
        m = m.T
    gram = m @ m.T
    if not bool(torch.isfinite(gram).all()):
        return None
    squares = torch.linalg.eigvalsh(gram).cpu().numpy()
    return Spectrum(squares, m.shape[0], m.shape[1])


def _gain(unfolding: Tensor, threshold: Threshold) -> float:
    spectrum = _spectrum(unfolding)
    if spectrum is None:
        return math.nan
    kept = factorize_spectrum(spectrum, threshold).singular_values
    return float(kept.sum() / kept[0] / unfolding.shape[0]) if len(kept) else 0.0


def _layers(model: nn.Module, linear: bool) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, (_ConvNd, nn.Linear) if linear else _ConvNd):
            continue
        weight = module.weight
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        yield ".".join(p for p in name.split(".") if p not in ("module", "_orig_mod")), module


class ResponseMeter:
    """Measures the response of a model, epoch by epoch."""

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
        if count not in ("unfoldings", "layers"):
            raise InvalidValueError(f"count must be 'unfoldings' or 'layers', got {count!r}")
        if threshold not in THRESHOLDS:
            raise InvalidValueError(f"threshold must be one of {THRESHOLDS}, got {threshold!r}")
        self._layers = list(_layers(model, linear))
        if not self._layers:
            raise InvalidValueError("model has no convolutions; linear=True includes Linear layers")
        self._count = count
        self._threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Forget the epochs measured so far."""
        self._epochs = 0
        self._total = 0.0

    @torch.no_grad()
    def measure(self, per_layer: bool = False) -> dict[str, Any]:
        """Measure the weights as they are now, as one more epoch."""
        gains = {}
        for name, module in self._layers:
            weight = module.weight
            assert isinstance(weight, Tensor)
            gains[name] = knowledge_gain(
                weight,
                groups=int(getattr(module, "groups", 1)),
                transposed=isinstance(module, _ConvTransposeNd),
                threshold=self._threshold,
            )
        array = np.array(list(gains.values()))
        diverged = not bool(np.isfinite(array).all())
        zero = array == 0.0
        share = zero.mean() if self._count == "unfoldings" else zero.all(axis=1).mean()
        response = math.nan if diverged else float(share)
        self._epochs += 1
        self._total += response
        result: dict[str, Any] = {
            "response": response,
            "response_mean": self._total / self._epochs,
            "knowledge_gain": math.nan if diverged else float(array.mean()),
            "diverged": diverged,
            "epochs_measured": self._epochs,
        }
        if per_layer:
            result["layers"] = {n: g._asdict() for n, g in gains.items()}
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: plain numbers."""
        total = None if math.isnan(self._total) else self._total
        return {"version": 1, "epochs_measured": self._epochs, "response_sum": total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        if state.get("version") != 1:
            raise StateError(f"unknown version of a ResponseMeter state: {state.get('version')!r}")
        total = state["response_sum"]
        self._epochs = int(state["epochs_measured"])
        self._total = math.nan if total is None else float(total)
