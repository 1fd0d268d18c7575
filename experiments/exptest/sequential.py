"""What do repeated tests do over a whole training? `Tuner` on curves whose truth is known.

    python experiments/exptest/sequential.py [--quick] [--seed N] [--out DIR]

The loss is ln ℓ = ln g(s) + σ·noise, σ = .2. s is the way that the training has gone: a step
with the learning rate η adds η/η₀, so that a reduced rate slows the decay down, as in training.

* Plateau, g = 1: how often is the rate kept though nothing decays, and how far does the rate
  fall, beside the documented floor?
* g that decays throughout, exponential or power law: every reduction is a false "not
  decaying". By window and signal (fall of ln ℓ in the first window / σ): how many runs of ten
  windows see one, and what it costs (ln ℓ at the end over that without any reduction).
* Exponential to a floor of .1: reductions while ln ℓ has more than .1 to fall are early; how
  many windows does the first other one take after that?

Each with the sequential correction of `Tuner` and without. Writes sequential.json and .png.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

import numpy as np
from _noise import NOISE, Array
from calibration import collect, conditions, interval, options, pyplot, write

from tune_ext._random import generator
from tune_ext._tuner import Tuner

HERE = Path(__file__).parent
SIGMA, BETA, FLOOR, EARLY = 0.2, 0.33, 0.1, 0.1
WINDOWS, SIGNALS, CORRECTIONS = (60, 300), (0.5, 1.0, 2.0, 3.0, 4.0), ("none", "spending")
PLATEAU_NOISE = ("Gaussian", "Student t, 3 d.o.f.", "AR(1) ρ=.6", "AR(1) ρ=.9")
CURVE_NOISE = ("Gaussian", "AR(1) ρ=.6")
LONG, SHORT = 40, 10  # windows of a run on a plateau and on a curve

#: ln g(s), by the way s in units of the first window and the slope of ln g at s = 0.
CURVES: dict[str, Callable[[Array, float], Array]] = {
    "exponential": lambda s, slope: -slope * s,
    "power law": lambda s, slope: -0.5 * np.log1p(2 * slope * s),
    "exponential to a floor": lambda s, slope: np.log(
        FLOOR + (1 - FLOOR) * np.exp(-slope / (1 - FLOOR) * s)
    ),
}


def run(tuner: Tuner, noise: Array, curve: Callable[[Array], Array]) -> tuple[list[dict], float]:
    """One training.

    Returns:
        The actions, each with the way that was gone and the step; and the way at the end.
    """
    first_window, way, step = tuner.window, 0.0, 0
    actions = []
    while step < len(noise):
        pace = tuner.lr / first_window
        ahead = way + pace * np.arange(len(noise) - step)
        losses = np.exp(curve(ahead) + SIGMA * noise[step:])
        taken, action = tuner.update_many(losses[: tuner.window])
        step, way = step + taken, way + pace * taken
        if action is not None:
            actions.append({"kind": action.kind, "step": step, "way": way})
    return actions, way


def plateau(seed: int, runs: int) -> Iterator[dict]:
    for window in WINDOWS:
        for name in PLATEAU_NOISE:
            for correction in CORRECTIONS:
                rng = generator(seed, "plateau", name, window)
                noise = NOISE[name](rng, runs, LONG * window)
                yield _plateau_row(noise, window, correction) | {"noise": name}


def _plateau_row(noise: Array, window: int, correction: str) -> dict:
    kinds: list[str] = []
    rates = {k: [] for k in (5, 10, 20, 40)}
    floors = {}
    for y in noise:
        tuner = Tuner(1.0, window, beta=BETA, correction=correction)
        actions, _ = run(tuner, y, np.zeros_like)
        kinds += [a["kind"] for a in actions]
        for k, values in rates.items():
            values.append(
                BETA ** sum(a["kind"] == "decay" and a["step"] <= k * window for a in actions)
            )
            floors[k] = tuner.floor(k * window)
    below = [k for k, values in rates.items() if min(values) < floors[k] * (1 - 1e-9)]
    if below:
        raise RuntimeError(f"the rate fell below the documented floor after {below} windows")
    keeps = kinds.count("keep")
    low, high = interval(keeps, len(kinds))
    return {
        "window": window,
        "correction": correction,
        "runs": len(noise),
        "decisions": len(kinds),
        "keeps": keeps / len(kinds),
        "low": round(low, 4),
        "high": round(high, 4),
        "rate after": {
            k: {"median": median(v), "lowest": min(v), "floor": floors[k]} for k, v in rates.items()
        },
    }


def curves(seed: int, runs: int) -> Iterator[dict]:
    for shape in CURVES:
        for window in WINDOWS:
            for name in CURVE_NOISE:
                for signal in SIGNALS:
                    rng = generator(seed, "curve", name, window)
                    noise = NOISE[name](rng, runs, SHORT * window)
                    for correction in CORRECTIONS:
                        row = _curve_row(noise, window, correction, shape, signal * SIGMA)
                        yield {"noise": name, "signal": signal} | row


def _curve_row(noise: Array, window: int, correction: str, shape: str, slope: float) -> dict:
    def curve(s: Array) -> Array:
        return CURVES[shape](np.asarray(s, dtype=float), slope)

    falls_until = math.inf  # the way beyond which there is less than EARLY to fall
    if shape == "exponential to a floor":
        falls_until = (1 - FLOOR) / slope * math.log((1 - FLOOR) / FLOOR / math.expm1(EARLY))
    reductions, costs, delays = [], [], []
    for y in noise:
        actions, way = run(Tuner(1.0, window, beta=BETA, correction=correction), y, curve)
        decays = [a for a in actions if a["kind"] == "decay"]
        early = [a for a in decays if a["way"] < falls_until]
        reductions.append(len(early))
        costs.append(float(curve(way) - curve(SHORT)))
        if not early and decays:
            delays.append(decays[0]["way"] - falls_until)
    hit = sum(r > 0 for r in reductions)
    low, high = interval(hit, len(noise))
    return {
        "shape": shape,
        "window": window,
        "correction": correction,
        "runs": len(noise),
        "runs with a false reduction": hit / len(noise),
        "low": round(low, 4),
        "high": round(high, 4),
        "false reductions a run": mean(reductions),
        "cost": mean(costs),
        "windows to the first right one": median(delays) if delays else None,
        "runs with a right first one": len(delays),
    }


def show(parts: dict) -> None:
    print("\nplateau: keeps a decision, and the rate after 40 windows: median, lowest, floor")
    for r in parts["plateau"]:
        after = r["rate after"][LONG]
        print(
            f"  {r['noise']:20} T = {r['window']:3} {r['correction']:9} keeps {r['keeps']:.3f} "
            f"[{r['low']:.3f}, {r['high']:.3f}]  {after['median']:.3g}, {after['lowest']:.3g}, "
            f"{after['floor']:.3g}"
        )
    print("\ncurves: runs with a false reduction, false ones a run, cost in ln ℓ, delay")
    for r in parts["curves"]:
        delay = r["windows to the first right one"]
        print(
            f"  {r['shape']:23} {r['noise']:11} T = {r['window']:3} signal {r['signal']:3} "
            f"{r['correction']:9} {r['runs with a false reduction']:.3f} "
            f"[{r['low']:.3f}, {r['high']:.3f}]  {r['false reductions a run']:.2f}  "
            f"{r['cost']:+.2f}  {'-' if delay is None else f'{delay:.1f}'}"
        )


def plot(parts: dict, path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
    styles = {"none": ":", "spending": "-"}
    _plot_rate(axes[0], parts["plateau"], styles)
    for ax, shape in zip(axes[1:], CURVES, strict=True):
        for i, (name, window) in enumerate((n, w) for n in CURVE_NOISE for w in WINDOWS):
            for correction, style in styles.items():
                rows = [
                    r
                    for r in parts["curves"]
                    if (r["shape"], r["noise"], r["window"], r["correction"])
                    == (shape, name, window, correction)
                ]
                y = [r["runs with a false reduction"] for r in rows]
                label = f"{name}, T = {window}" if correction == "spending" else None
                ax.plot(SIGNALS, y, style, marker=".", color=f"C{i}", label=label)
        ax.set(xlabel="fall in the first window / σ", ylim=(-0.03, 1.03))
        ax.set_title(shape, fontsize=10)
    axes[1].set_ylabel("runs with a false reduction")
    axes[1].legend(fontsize=7, title='solid "spending",\ndotted "none"', title_fontsize=7)
    figure.savefig(path, dpi=120)


def _plot_rate(ax, plateau: list[dict], styles: dict[str, str]) -> None:
    """Over all noises: the median of the rate, its lowest, and the floor."""
    widths = {"median": 5.0, "lowest of all runs": 1.5, "documented floor": 1.5}  # they coincide
    for correction, style in styles.items():
        after = [
            r["rate after"]
            for r in plateau
            if (r["correction"], r["window"]) == (correction, WINDOWS[0])
        ]
        x = list(after[0])
        lines = {
            "median": [median(a[k]["median"] for a in after) for k in x],
            "lowest of all runs": [min(a[k]["lowest"] for a in after) for k in x],
            "documented floor": [after[0][k]["floor"] for k in x],
        }
        for (label, y), colour in zip(lines.items(), ("lightblue", "C1", "black"), strict=True):
            shown = label if correction == "spending" else None
            ax.plot(x, y, style, color=colour, label=shown, lw=widths[label], alpha=0.8)
    ax.set(xscale="log", yscale="log", xlabel="steps / T", ylabel="η / η₀")
    ax.set_xticks(x, map(str, x))
    ax.set_yticks([0.01, 0.03, 0.1, 0.3], [".01", ".03", ".1", ".3"])
    ax.minorticks_off()
    ax.set_title(f"plateau, T = {WINDOWS[0]}, every noise", fontsize=10)
    ax.legend(fontsize=7)


def main() -> None:
    arguments = options(__doc__, "a tenth of the runs", "sequential")
    runs = 20 if arguments.quick else 200
    parts = {
        "conditions": conditions(arguments.seed, arguments.quick)
        | {"sigma": SIGMA, "beta": BETA, "floor": FLOOR, "early": EARLY},
        "plateau": collect(plateau(arguments.seed, 2 * runs), "plateau"),
        "curves": collect(curves(arguments.seed, runs), "curves"),
    }
    show(parts)
    write(arguments.out / "sequential.json", parts)
    plot(parts, arguments.out / "sequential.png")


if __name__ == "__main__":
    main()
