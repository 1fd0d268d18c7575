"""Draws what `scale.py` and `ours.py` measured, and says how each cost grows.

    python experiments/cluster/scale_plot.py

A cost for each trial is fitted as a·n^q by least squares on the logarithms, over the trials after
the first tenth; the total then grows as n^(1 + q). Intervals are 95 %, Student's t.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scale import METHODS
from scipy import stats

HERE = Path(__file__).parent / "results"
MIB = 1024**2
Points = list[dict[str, Any]]


def grows(trials: np.ndarray, total: np.ndarray) -> tuple[float, float, float]:
    """The exponent of a total cost, and its interval's ends."""
    keep = trials >= trials[-1] / 10
    n, cost = trials[keep], total[keep]
    each, middle = np.diff(cost) / np.diff(n), np.sqrt(n[1:] * n[:-1])
    known = each > 0
    if known.sum() < 3:
        return math.nan, math.nan, math.nan
    fit = stats.linregress(np.log(middle[known]), np.log(each[known]))
    wide = stats.t.ppf(0.975, known.sum() - 2) * fit.stderr
    return 1 + fit.slope, 1 + fit.slope - wide, 1 + fit.slope + wide


def column(points: Points, key: str) -> np.ndarray:
    """One number of every line."""
    return np.array([float(p[key]) for p in points])


def part(points: Points, *of: str) -> np.ndarray:
    """Seconds in calls of these objects."""
    calls = [{k: v for k, v in p.get("seconds", p).items() if "." in k} for p in points]
    names = tuple(f"{name}." for name in of)
    saved = "save_to_dir"
    return np.array(
        [sum(v for k, v in c.items() if k.startswith(names) and saved not in k) for c in calls]
    )


def read(path: Path) -> Points:
    """The lines of a run, but for that of its end."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if not line["done"]]  # at its end Ray saves once more


def row(name: str, trials: np.ndarray, total: np.ndarray) -> str:
    """A line of the table."""
    p, low, high = grows(trials, total)
    tenth = trials >= trials[-1] / 10
    first = total[tenth][0] / trials[tenth][0]
    last = total[-1] / trials[-1]
    half, three, whole = np.interp(trials[-1] * np.array([0.5, 0.75, 1.0]), trials, total)
    quarters = [4000 * spent / trials[-1] for spent in (three - half, whole - three)]
    return (
        f"| {name} | {trials[-1]:,.0f} | {1000 * first:.2f} | {1000 * last:.2f} "
        f"| {quarters[0]:.2f}, {quarters[1]:.2f} | {p:.2f} ({low:.2f} … {high:.2f}) |"
    )


def main() -> None:
    paths = {name: HERE / f"scale-{name.replace(' ', '-').lower()}.jsonl" for name in METHODS}
    runs = {name: read(path) for name, path in paths.items() if path.exists()}
    simulated = json.loads((HERE / "ours.json").read_text(encoding="utf-8"))
    heads = (
        "| what | trials | ms a trial, to a tenth | to the end "
        "| one more in the third, the last quarter | total grows as n^ |"
    )
    lines = [heads, "|---|---|---|---|---|---|"]
    for name, points in runs.items():
        trials = column(points, "trials")
        lines.append(row(f"Ray, {name}: driver", trials, column(points, "driver")))
        lines.append(
            row("… of it searcher and scheduler", trials, part(points, "searcher", "scheduler"))
        )
    for name, points in simulated.items():
        trials = column(points, "trials")
        lines.append(row(f"simulated, {name}: driver", trials, column(points, "total")))
        lines.append(row("… of it searcher", trials, part(points, "searcher")))
        if part(points, "scheduler")[-1] > 0:
            lines.append(row("… of it scheduler", trials, part(points, "scheduler")))
    lines += ["", *memory(runs), "", *states(simulated)]
    text = "\n".join(lines) + "\n"
    (HERE / "scale.md").write_text(text, encoding="utf-8")
    print(text)
    draw(runs, simulated)


def memory(runs: dict[str, Points]) -> list[str]:
    """Driver memory and what was saved, in Markdown."""
    heads = (
        "run on Ray",
        "trials",
        "driver, MiB at first",
        "at the end",
        "KiB a trial",
        "savings",
        "last saving: Ray's KiB a trial",
        "searcher's KiB a trial",
        "all bytes saved, MiB: Ray's",
        "searcher's",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, points in runs.items():
        n, rss = column(points, "trials"), column(points, "rss")
        slope = np.polyfit(n, rss, 1)[0] / 1024
        written = [p["written"] for p in points]
        ours, rays = (
            [w.get(f"{who} bytes", 0) for w in written] for who in ("searcher's", "Ray's")
        )
        count = [w.get("savings", 0) for w in written]
        at = max(i for i in range(len(count)) if i == 0 or count[i] > count[i - 1])
        before = max(at - 1, 0)
        times = max(1, count[at] - count[before])
        each = [(b[at] - b[before]) / times / n[at] / 1024 for b in (rays, ours)]
        cells = [f"{n[-1]:,.0f}", f"{rss[0] / MIB:.0f}", f"{rss[-1] / MIB:.0f}", f"{slope:.1f}"]
        cells += [str(count[-1]), f"{each[0]:.2f}", f"{each[1]:.2f}"]
        cells += [f"{rays[-1] / MIB:.1f}", f"{ours[-1] / MIB:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def states(simulated: dict[str, Points]) -> list[str]:
    """Size of a searcher's state, in Markdown."""
    lines = ["| state of | bytes a trial, to a tenth | to the end |", "|---|---|---|"]
    for name, points in simulated.items():
        each = column(points, "state bytes") / column(points, "trials")
        lines.append(f"| {name} | {each[len(each) // 10]:.0f} | {each[-1]:.0f} |")
    return lines


def draw(runs: dict[str, Points], simulated: dict[str, Points]) -> None:
    """Cost of a trial against the number of trials, and memory."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, points in runs.items():
        n = column(points, "trials")
        axes[0].plot(*each(n, column(points, "driver")), label=name)
        axes[2].plot(n, column(points, "rss") / MIB, label=name)
    for name, points in simulated.items():
        n = column(points, "trials")
        axes[1].plot(*each(n, part(points, "searcher", "scheduler")), label=name)
    titles = (
        "Ray on four nodes: the driver's processor time",
        "Our searcher and scheduler alone (simulated clock)",
        "Ray on four nodes: the driver's memory",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="trials", title=title)
        axis.title.set_fontsize(10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("ms for one more trial")
    axes[1].set_ylabel("ms for one more trial")
    axes[1].set(yscale="log", ylim=(0.1, None))
    axes[2].set_ylabel("MiB")
    for kind in ("svg", "png"):
        figure.savefig(
            HERE / f"scale.{kind}", dpi=120, metadata={"Date": None} if kind == "svg" else None
        )


def each(n: np.ndarray, total: np.ndarray, parts: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of one more trial, over a few stretches of the run."""
    chosen = np.unique(np.linspace(0, len(n) - 1, min(parts, len(n))).astype(int))
    x, y = n[chosen], total[chosen]
    return (x[1:] + x[:-1]) / 2, 1000 * np.diff(y) / np.diff(x)


if __name__ == "__main__":
    main()
