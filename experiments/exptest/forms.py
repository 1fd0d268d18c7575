"""Why the decay test has the form that it has: the alternatives, on noise and on curves.

    python experiments/exptest/forms.py [--quick] [--seed N] [--out DIR]

All correct the t-test of the slope for AR(1) residuals; they differ in what the residuals are
taken from (a line, a parabola, a cubic), in the degrees of freedom, and in whether the mean of
the differences is looked at too ("drift"). "ar1" is the one in use. Writes forms.json.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from _noise import NOISE, Array
from calibration import collect, conditions, options, p_values, statistics, write
from scipy.special import stdtr

from tune_ext._random import generator

FORMS = {"line": 1, "parabola": 2, "cubic": 3}
NOISES = ("Gaussian", "AR(1) ρ=.3", "AR(1) ρ=.6", "AR(1) ρ=.9")
#: (way to the floor in steps, floor, sd of the noise on ln ℓ)
CURVES = [
    (tau, floor, sd) for tau in (3, 10, 20) for floor in (0.1, 0.5) for sd in (0.02, 0.1, 0.3)
]


def stationary(y: Array, degree: int, *, effective: bool = False) -> Array:
    """The p-value of the slope if the noise is AR(1), with residuals of a polynomial.

    Args:
        y: Curves, shape (curves, n).
        degree: Of the polynomial. The bias of the lag-1 autocorrelation is about
            −(degree + 1 + (2 degree + 3) ρ)/n.
        effective: n/f − degree − 1 degrees of freedom, as usual, and not Satterthwaite's.
    """
    n, k = y.shape[1], degree + 1
    basis = np.linalg.qr(np.vander(np.linspace(-1, 1, n), k, increasing=True))[0]
    basis *= np.sign(basis[-1])
    c = y @ basis
    e = y - c @ basis.T
    left = (e**2).sum(1)
    r = (e[:, 1:] * e[:, :-1]).sum(1) / left
    rho = np.clip((n * r + k) / (n - 2 * degree - 3), 0, 1 - 1e-9)
    f = (1 + rho) / (1 - rho)
    free = np.maximum(n - k * f, 1e-9)
    t = c[:, 1] * np.sqrt(free / (left * f))
    return np.where(n > k * f, stdtr(free / (f if effective else 1 + 2 * f), t), 0.5)


def every_form(y: Array) -> dict[str, Array]:
    s = statistics(y)
    drift = stdtr(s.n - 2.0, s.t_drift)
    forms = {**p_values(y), "drift": drift}
    for name, degree in FORMS.items():
        p = stationary(y, degree)
        forms[name] = np.maximum(p, forms["none"])
        forms[f"{name} or drift"] = np.maximum(np.minimum(p, drift), forms["none"])
    p = np.minimum(stationary(y, 2, effective=True), drift)
    forms["ar1, n/f − 3 d.o.f."] = np.maximum(p, forms["none"])
    if np.abs(forms["parabola or drift"] - forms["ar1"]).max() > 1e-6:
        raise RuntimeError("the form in use is not the one that it is said to be")
    return forms


def measure(seed: int, curves: int) -> Iterator[dict]:
    for n in (30, 60, 120):
        for name in NOISES:
            forms = every_form(NOISE[name](generator(seed, "forms", name, n), curves, n))
            for alpha in (0.05, 0.01):
                found = {k: float((p < alpha).mean()) for k, p in forms.items()}
                yield {"what": name, "n": n, "alpha": alpha} | found
    t = np.arange(60)
    for tau, floor, sd in CURVES:
        noise = sd * generator(seed, "forms", "curve").normal(size=(max(curves // 10, 10), 60))
        forms = every_form(np.log(floor + (1 - floor) * np.exp(-t / tau)) + noise)
        what = f"{floor:g} + {1 - floor:g} e^(−t/{tau}), sd {sd:g}"
        yield {"what": what, "n": 60, "alpha": 0.05} | {
            k: float((p < 0.05).mean()) for k, p in forms.items()
        }


def main() -> None:
    arguments = options(__doc__, "a hundredth of the curves", "calibration")
    curves = 100 if arguments.quick else 10_000
    rows = collect(measure(arguments.seed, curves), "forms")
    for row in rows:
        rates = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
        print(f"{row['what']:36} n = {row['n']:3}  {rates}")
    write(
        arguments.out / "forms.json",
        {
            "conditions": conditions(arguments.seed, arguments.quick) | {"curves": curves},
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
