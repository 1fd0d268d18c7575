"""How often does the decay test call pure noise decaying, and what decay does it find?

    python experiments/exptest/calibration.py [--quick] [--seed N] [--out DIR]

Two tests, the textbook's ("none") and the corrected one ("ar1"), at α = .05 and .01:

* false "decaying" on noise without a trend, by kind of noise and length of the window, with
  Clopper-Pearson intervals;
* the same on losses of mini-batches of a real model that has converged (logistic regression on
  digits, weights fixed or moving under SGD);
* power: how often a fall is found, by its size in standard deviations of the noise, for a
  straight fall of ln ℓ and for one that is fast at first.

The curves are computed side by side with numpy; some of each kind also go through `DecayTest`,
and the p-values must agree. Writes calibration.json, calibration.png, power.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy
import sklearn
from _noise import EPOCH, NOISE, SETTINGS, Array, Digits
from scipy.special import stdtr
from scipy.stats import beta

from tune_ext._decay import DecayTest
from tune_ext._random import generator
from tune_ext._slope import Statistics, corrected_p_value

HERE = Path(__file__).parent
TESTS, ALPHAS = ("none", "ar1"), (0.05, 0.01)
CURVES = {30: 10_000, 60: 10_000, 120: 10_000, 300: 4000, 1000: 4000, 10_000: 2000}
POWER_NOISE = ("Gaussian", "AR(1) ρ=.3", "AR(1) ρ=.6", "AR(1) ρ=.9", "epochs, shuffled")
POWER_N, POWER_CURVES = (30, 60, 300), 1000
FALLS = np.arange(0, 8.5, 0.5)
SHAPES: dict[str, Callable[[Array], Array]] = {
    "straight": lambda s: -s,
    "fast at first": lambda s: -(1 - np.exp(-8 * s)) / (1 - np.exp(-8)),
}
_BLOCK = 2_000_000  # numbers at a time
_SURE = 0.999  # one-sided confidence at which a rate is said to exceed α


def statistics(y: Array) -> Statistics:
    """What `DecayTest` computes for one window, for every row of y, shape (curves, n)."""
    n = y.shape[1]
    u = np.arange(n) - (n - 1) / 2
    q = u**2 - (n**2 - 1) / 12
    y = y - y.mean(1, keepdims=True)
    b, c = y @ u / (u @ u), y @ q / (q @ q)
    explained, squares = b**2 * (u @ u), np.einsum("ij,ij->i", y, y)
    d = np.diff(y, axis=1)
    rise, spread = y[:, -1] - y[:, 0], d.var(1) * (n - 1)
    e = y - b[:, None] * u - c[:, None] * q
    left = np.einsum("ij,ij->i", e, e)
    return Statistics(
        n,
        np.sign(b) * np.sqrt((n - 2) * explained / (squares - explained)),
        np.sign(b) * np.sqrt((n - 3) * explained / left),
        rise * np.sqrt((n - 2) / ((n - 1) * spread)),
        np.einsum("ij,ij->i", e[:, 1:], e[:, :-1]) / left,
    )


def p_values(y: Array) -> dict[str, Array]:
    s = statistics(y)
    return {"none": stdtr(s.n - 2.0, s.t_line), "ar1": corrected_p_value(s)[0]}


def check(y: Array, p: dict[str, Array]) -> None:
    """The first curves, through the real test."""
    for name in TESTS:
        for row, expected in zip(y[:3], p[name], strict=False):
            test = DecayTest(autocorrelation=name, transform="identity")
            test.update_many(row)
            if abs(test.result().p_value - expected) > 1e-8:
                raise RuntimeError(f"{name}: {test.result()} but {expected} side by side")


def interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson."""
    tail = (1 - level) / 2
    low = beta.ppf(tail, hits, n - hits + 1) if hits else 0.0
    return float(low), float(beta.ppf(1 - tail, hits + 1, n - hits) if hits < n else 1.0)


def rows_of(name: str, n: int, hits: dict[tuple[str, float], int], curves: int) -> list[dict]:
    rows = []
    for (test, alpha), count in hits.items():
        low, high = interval(count, curves)
        surely = interval(count, curves, 2 * _SURE - 1)[0]
        rows.append(
            {
                "noise": name,
                "n": n,
                "test": test,
                "alpha": alpha,
                "curves": curves,
                "rate": count / curves,
                "low": round(low, 5),
                "high": round(high, 5),
                "exceeds": surely > alpha,
            }
        )
    return rows


def count(blocks: Iterator[Array]) -> tuple[dict[tuple[str, float], int], int]:
    hits = {(test, alpha): 0 for test in TESTS for alpha in ALPHAS}
    curves = 0
    for i, y in enumerate(blocks):
        p = p_values(y)
        if i == 0 and y.shape[1] <= 1000:
            check(y, p)
        curves += len(y)
        for test, alpha in hits:
            hits[test, alpha] += int((p[test] < alpha).sum())
    return hits, curves


def synthetic(seed: int, divide: int) -> Iterator[dict]:
    for name, noise in NOISE.items():
        for n, curves in CURVES.items():
            rng = generator(seed, "calibration", name, n)
            most = max(1, _BLOCK // n)
            curves = max(curves // divide, 20)
            sizes = [min(most, curves - done) for done in range(0, curves, most)]
            hits, total = count(noise(rng, size, n) for size in sizes)
            yield from rows_of(name, n, hits, total)


def real(seed: int, quick: bool) -> Iterator[dict]:
    digits = Digits()
    runs, steps = (20, 600) if quick else (100, 6000)
    for setting in SETTINGS:
        y = digits.losses(setting, runs, steps, generator(seed, "digits", setting.name))
        c = y - y.mean(1, keepdims=True)
        lags = {k: float((c[:, k:] * c[:, :-k]).mean() / c.var()) for k in (1, 2, 5, 10, 50)}
        for n in (30, 60, 300):
            windows = y[:, : steps // n * n].reshape(-1, n)
            for row in rows_of(setting.name, n, *count(iter([windows]))):
                yield row | {"sd": float(c.std()), "autocorrelation": lags}


def power(seed: int, divide: int) -> Iterator[dict]:
    for shape, fall in SHAPES.items():
        for n in POWER_N:
            for name in POWER_NOISE:
                noise = NOISE[name](generator(seed, "power", name, n), POWER_CURVES // divide, n)
                for size in FALLS:
                    p = p_values(noise + size * fall(np.linspace(0, 1, n)))
                    yield {
                        "shape": shape,
                        "n": n,
                        "noise": name,
                        "fall": float(size),
                        **{test: float((p[test] < 0.05).mean()) for test in TESTS},
                    }


def plot_rates(rows: list[dict], path: Path) -> None:
    """A line for each noise: rates at α = .05 over the length of the window."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for ax, test in zip(axes, TESTS, strict=True):
        for i, name in enumerate(NOISE):
            line = [r for r in rows if (r["noise"], r["test"], r["alpha"]) == (name, test, 0.05)]
            rate = np.array([r["rate"] for r in line])
            low, high = (np.array([r[k] for r in line]) for k in ("low", "high"))
            n = [r["n"] * 1.02 ** (i - len(NOISE) / 2) for r in line]
            colour, style = f"C{i % 10}", ".-" if i < 10 else ".--"
            ax.errorbar(n, rate, [rate - low, high - rate], fmt=style, lw=1, color=colour)
            ax.plot([], [], style, color=colour, label=name)
        ax.axhline(0.05, color="black", ls=":")
        ax.set(xscale="log", xlabel="steps of the window", title=f'"{test}"')
        ax.set_yscale("symlog", linthresh=0.01)
        ax.set_yticks([0, 0.01, 0.05, 0.1, 0.2, 0.5], ["0", ".01", ".05", ".1", ".2", ".5"])
        ax.set_ylim(-0.0005, 0.6)
    axes[0].set_ylabel('false "decaying" at α = .05')
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3.5)
    figure.savefig(path, dpi=120)


def plot_power(rows: list[dict], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, sharey=True)
    for line, shape in zip(axes, SHAPES, strict=True):
        for ax, n in zip(line, POWER_N, strict=True):
            for i, name in enumerate(POWER_NOISE):
                part = [r for r in rows if (r["shape"], r["n"], r["noise"]) == (shape, n, name)]
                for test, style in (("ar1", "-"), ("none", ":")):
                    values = [r[test] for r in part]
                    label = f'{name}, "{test}"' if test == "ar1" else None
                    ax.plot(FALLS, values, style, color=f"C{i}", lw=1.6, label=label)
            ax.axhline(0.05, color="black", lw=0.6)
            ax.set_title(f"{shape}, n = {n}", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("fall over the window / sd of the noise")
    for ax in axes[:, 0]:
        ax.set_ylabel('called "decaying" (α = .05)')
    axes[0, 0].legend(fontsize=7)
    axes[0, 1].text(4.1, 0.08, 'dotted: "none"', fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def collect(rows: Iterator[dict], what: str) -> list[dict]:
    out, since = [], time.perf_counter()
    for row in rows:
        out.append(row)
        if row.get("alpha", 0.05) == 0.05 and row.get("test", "ar1") == "ar1" and "rate" in row:
            print(
                f"{row['noise']:56} n = {row['n']:6}  ar1 {row['rate']:.4f} "
                f"[{row['low']:.4f}, {row['high']:.4f}]{'  exceeds α' * row['exceeds']}",
                flush=True,
            )
    print(f"{what}: {len(out)} rows in {time.perf_counter() - since:.0f} s", flush=True)
    return out


def conditions(seed: int, quick: bool) -> dict:
    return {
        "seed": seed,
        "quick": quick,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "machine": platform.machine(),
        "steps of an epoch": EPOCH,
        "digits": f"batch {Digits.batch}, L2 {Digits.l2:g}, all 1,797 images",
        "exceeds": f"the one-sided {_SURE:.1%} lower bound of the rate is above alpha",
    }


def write(path: Path, parts: dict) -> None:
    text = {
        k: "[\n  " + ",\n  ".join(json.dumps(r, ensure_ascii=False) for r in v) + "\n ]"
        if isinstance(v, list)
        else json.dumps(v, ensure_ascii=False)
        for k, v in parts.items()
    }
    path.write_text("{\n " + ",\n ".join(f'"{k}": {v}' for k, v in text.items()) + "\n}\n")


def options(doc: str, quick: str, folder: str) -> argparse.Namespace:
    """The command line of this and the other studies of the test; makes the folder."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / folder)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> None:
    arguments = options(__doc__, "a hundredth of the curves", "calibration")
    seed, quick = arguments.seed, arguments.quick
    divide = 100 if quick else 1
    parts = {
        "conditions": conditions(seed, quick),
        "synthetic": collect(synthetic(seed, divide), "synthetic"),
        "digits": collect(real(seed, quick), "digits"),
        "power": collect(power(seed, min(divide, 10)), "power"),
    }
    write(arguments.out / "calibration.json", parts)
    plot_rates(parts["synthetic"], arguments.out / "calibration.png")
    plot_power(parts["power"], arguments.out / "power.png")


if __name__ == "__main__":
    main()
