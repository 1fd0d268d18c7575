"""The decay test, from the notation of `tune_ext._slope`, by numpy and scipy.stats."""

from __future__ import annotations

import numpy as np
from scipy import stats


def reference_p_value(y: np.ndarray) -> tuple[float, float]:
    """p of "ar1" and ρ, for y of shape `(n,)`, n > 7."""
    n = len(y)
    t = np.arange(n)
    line = stats.linregress(t, y, alternative="less")
    e = y - np.polynomial.Polynomial.fit(t, y, 2)(t)
    s_c = np.sqrt(e @ e / (n - 3) / np.sum((t - t.mean()) ** 2))
    r = e[1:] @ e[:-1] / (e @ e)
    rho = min(max((n * r + 3) / (n - 7), 0.0), 1.0)
    f = (1 + rho) / (1 - rho) if rho < 1 else np.inf
    p_a = 0.5
    if n > 3 * f:
        deflated = line.slope / s_c * np.sqrt((n - 3 * f) / (f * (n - 3)))
        p_a = stats.t.cdf(deflated, (n - 3 * f) / (1 + 2 * f))
    d = np.diff(y)
    deviations = d - d.mean()
    t_d = d.sum() / np.sqrt((n - 1) * (deviations @ deviations) / (n - 2))
    p_d = stats.t.cdf(t_d, n - 2)
    return max(line.pvalue, min(p_a, p_d)), rho
