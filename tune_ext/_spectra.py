"""From the weights of a layer to the squared singular values of its unfoldings (torch).

Only singular values are needed, so only the eigenvalues of the smaller Gram matrix are.
Most of the work is the product, so it is tried in float32 first where the weights allow
it, with the eigenvalues always in float64. Where the estimated error of the product might
change which components are retained, or the retained values noticeably, the unfolding is
done again in float64, and where that is not enough either, from a QR decomposition, which
squares nothing. No unfolding is ever copied as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tune_ext._evbmf import Factorization, Spectrum, Threshold, factorize

__all__ = ["Unfolding", "factorize_all", "ladder", "unfold"]

#: Side of the blocks of a Gram matrix; only those on and above the diagonal are computed.
_BLOCK = 128
#: At most about this many columns of an unfolding are copied or converted at a time.
_COLUMNS = 2304
#: The error of a Gram matrix's eigenvalues, in units of rounding: that of the product
#: relative to their mean, that of the eigenvalue solver relative to the largest.
_PRODUCT_ERROR, _SOLVER_ERROR = 12.0, 16.0
#: What counts as 0 beside the largest singular value, in float64 roundings for each column.
_ZERO = 8.0


class Unfolding(NamedTuple):
    """An unfolding as a 4-D view of its weight: rows are axes 0 and 1, columns 2 and 3.

    Attributes:
        view: The wide matrix (at least as many columns as rows).
        rows: How many rows the unfolding had before a tall one was transposed.
    """

    view: Tensor
    rows: int

    @classmethod
    def of(cls, view: Tensor) -> Unfolding:
        """The unfolding that `view` shows, transposed if it is tall."""
        a, b, c, d = view.shape
        return cls(view if a * b <= c * d else view.permute(2, 3, 0, 1), a * b)

    @property
    def shape(self) -> tuple[int, int]:
        """L and M, the shorter and the longer side."""
        a, b, c, d = self.view.shape
        return a * b, c * d

    def panels(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The wide matrix whole where that takes no copy, else in pieces of some columns.

        Two pieces, which is as many as there are at a time, hold no more bytes than the
        matrix in float32.
        """
        rows, columns = self.shape
        whole = self._whole() if self.view.dtype == dtype else None
        if whole is not None:
            yield whole
            return
        width = min(_COLUMNS, -(-2 * columns // dtype.itemsize))
        for outer in torch.split(self.view, max(1, width // self.view.shape[3]), dim=2):
            for piece in torch.split(outer, width, dim=3):
                converted = torch.empty(piece.shape, dtype=dtype, device=piece.device)
                yield converted.copy_(piece).view(rows, -1)

    def _whole(self) -> Tensor | None:
        """The matrix as a 2-D view, or None if the strides do not allow one."""
        try:
            return self.view.view(self.shape)
        except RuntimeError:
            return None


def unfold(weight: Tensor, groups: int = 1, transposed: bool = False) -> list[Unfolding]:
    """The input and the output unfolding of a weight as torch stores it.

    Args:
        weight: Shape `(out, in / groups, …)`, or `(in, out / groups, …)` if `transposed`.
        groups: In how many groups the channels are.
        transposed: Whether the layer is a transposed convolution.
    """
    first, second = weight.shape[:2]
    by_first = weight.reshape(1, first, second, -1)
    by_second = weight.reshape(groups, first // groups, second, -1).transpose(1, 2)
    pair = (by_first, by_second) if transposed else (by_second, by_first)
    return [Unfolding.of(view) for view in pair]


def ladder(weight: Tensor) -> tuple[torch.dtype, ...]:
    """The precisions to try for the products of `weight`'s unfoldings, cheapest first.

    Not float32 on an accelerator, nor where the user lets torch round the factors of a
    float32 product to fewer bits: the estimate of the error would not hold.
    """
    true_float32 = weight.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    if true_float32 and weight.dtype != torch.float64:
        return (torch.float32, torch.float64)
    return (torch.float64,)


def _gram(unfolding: Unfolding, dtype: torch.dtype) -> Tensor:
    """The Gram matrix (L × L, upper blocks): products in `dtype`, their sum in float64."""
    n = unfolding.shape[0]
    gram = torch.zeros((n, n), dtype=torch.float64, device=unfolding.view.device)
    for panel in unfolding.panels(dtype):
        for start in range(0, n, _BLOCK):
            gram[start : start + _BLOCK, start:] += panel[start : start + _BLOCK] @ panel[start:].T
    return gram


def _from_gram(unfoldings: Sequence[Unfolding], dtype: torch.dtype) -> list[Spectrum | None]:
    """Spectra by way of Gram matrices; None where numbers left the range of `dtype`."""
    parts = []
    for unfolding in unfoldings:
        gram = _gram(unfolding, dtype)
        parts.append(gram.trace()[None])
        parts.append(torch.linalg.eigvalsh(gram.nan_to_num_(0.0, 0.0, 0.0), UPLO="U"))
    flat = torch.cat(parts).cpu().numpy()  # all that ever leaves the device
    info = torch.finfo(dtype)
    spectra: list[Spectrum | None] = []
    start = 0
    for rows, columns in (unfolding.shape for unfolding in unfoldings):
        mean = float(flat[start]) / rows
        squares = flat[start + 1 : start + 1 + rows]
        start += 1 + rows
        if not info.tiny / info.eps * columns < mean < math.inf:
            spectra.append(None)
            continue
        error = _PRODUCT_ERROR * info.eps / 2 * mean
        error += _SOLVER_ERROR * float(np.finfo(np.float64).eps) / 2 * float(squares.max())
        spectra.append(Spectrum(squares, rows, columns, error))
    return spectra


def _from_qr(unfolding: Unfolding) -> Spectrum | None:
    """The spectrum by way of a QR decomposition in float64; None if not all is finite."""
    rows, columns = unfolding.shape
    low, high = torch.aminmax(unfolding.view)
    unit = max(-float(low), float(high)) or 1.0
    if not math.isfinite(unit):
        return None
    upper = torch.zeros((0, rows), dtype=torch.float64, device=unfolding.view.device)
    for panel in unfolding.panels(torch.float64):
        upper = torch.linalg.qr(torch.cat((upper, panel.T / unit)), mode="r").R
    values = torch.linalg.svdvals(upper).cpu().numpy()
    values[values <= _ZERO * columns * np.finfo(np.float64).eps * values[0]] = 0.0
    squares = np.zeros(rows)
    squares[: len(values)] = values**2
    return Spectrum(squares, rows, columns, unit=unit)


def factorize_all(
    unfoldings: Sequence[Unfolding],
    threshold: Threshold,
    dtypes: Sequence[torch.dtype],
    resolution: float,
) -> list[Factorization | None]:
    """Factorise each unfolding at the first precision that is certain of the outcome.

    Args:
        unfoldings: What to factorise, all on one device.
        threshold: See `tune_ext._evbmf.threshold_tau`.
        dtypes: The precisions to try, cheapest first; after them comes QR.
        resolution: The largest relative error of a retained square that is put up with.

    Returns:
        A factorisation for each unfolding; None for one with NaN or infinite entries.
    """
    results: dict[int, Factorization | None] = {}
    for dtype in dtypes:
        pending = [i for i in range(len(unfoldings)) if i not in results]
        if not pending:
            break
        spectra = _from_gram([unfoldings[i] for i in pending], dtype)
        for i, spectrum in zip(pending, spectra, strict=True):
            if spectrum is None:
                continue
            solution = factorize(spectrum, threshold)
            if solution.certain and solution.resolution <= resolution:
                results[i] = solution.factorization
    for i, unfolding in enumerate(unfoldings):
        if i not in results:
            exact = _from_qr(unfolding)
            results[i] = None if exact is None else factorize(exact, threshold).factorization
    return [results[i] for i in range(len(unfoldings))]
