"""What trainings through all rungs say: rank correlations of budgets, and who would be kept.

A training that diverged counts as the worst. Intervals are 95 % percentiles over configurations
drawn with replacement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tune_ext._random import generator
from tune_ext.errors import StateError

Array = NDArray[np.float64]
DRAWS, FACTOR, WORST, LEAST = 2000, 3, 1.0, 10


def ladder(epochs: int, factor: int = FACTOR) -> list[int]:
    """The budgets of the rungs below and with the full length.

    >>> ladder(27)
    [1, 3, 9, 27]
    """
    rungs = [epochs]
    while rungs[0] // factor >= 1:
        rungs.insert(0, rungs[0] // factor)
    return rungs


def arrange(
    records: Sequence[Mapping[str, Any]], rungs: Sequence[int]
) -> dict[int, dict[int, list[float]]]:
    """Seed → configuration → errors at the rungs."""
    found: dict[int, dict[int, list[float]]] = {}
    for record in sorted(records, key=lambda r: (r.get("seed", -1), r.get("index", -1))):
        if record["kind"] == "training":
            errors = [record["error"][b - 1] for b in rungs]
            row = [WORST if e is None else float(e) for e in errors]
            found.setdefault(record["seed"], {})[record["index"]] = row
    return found


def both(one: Mapping[int, list[float]], two: Mapping[int, list[float]]) -> tuple[Array, Array]:
    """The errors (configurations, rungs) of two seeds, of the configurations that both have."""
    common = [index for index in one if index in two]
    return np.array([one[i] for i in common]), np.array([two[i] for i in common])


def spearman(a: Array, b: Array) -> Array:
    """Spearman's ρ of each row of a with that of b, (draws,); 0 where a row has one value."""
    x, y = rankdata(a, axis=1), rankdata(b, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)


def kendall(a: Array, b: Array) -> Array:
    """Kendall's τ_b of each row of a with that of b, (draws,); 0 where a row has one value."""
    i, j = np.triu_indices(a.shape[1], 1)
    x, y = np.sign(a[:, i] - a[:, j]), np.sign(b[:, i] - b[:, j])
    scale = np.sqrt(np.abs(x).sum(axis=1) * np.abs(y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)


def spearman_among_good(early: Array, late: Array) -> Array:
    """Spearman's ρ of the half that is better at `late`, (draws,)."""
    good = np.argsort(late, axis=1, kind="stable")[:, : (late.shape[1] + 1) // 2]
    return spearman(np.take_along_axis(early, good, 1), np.take_along_axis(late, good, 1))


def with_interval(
    measure: Callable[[Array, Array], Array], a: Array, b: Array, draws: int = DRAWS
) -> list[float]:
    """A measure of two columns of errors, with its interval.

    Args:
        measure: Takes (draws, configurations) twice.
        a: (configurations,).
        b: (configurations,), of the same.
        draws: Of the bootstrap.
    """
    rows = generator(0, "configurations").integers(len(a), size=(draws, len(a)))
    drawn = np.concatenate([measure(a[part], b[part]) for part in np.array_split(rows, 20)])
    return [float(measure(a[None], b[None])[0]), *np.quantile(drawn, (0.025, 0.975)).tolist()]


def kept(early: Array, late: Array, share: float = 1 / FACTOR) -> Array:
    """How many of the best at `late` are among the best at `early`, as a share, (draws,).

    Equal errors are ordered by their place: what a promotion does with them is chance.
    """
    count = max(1, int(early.shape[1] * share + 1e-9))
    best = np.argsort(late, axis=1, kind="stable")[:, :count]
    going_on = np.argsort(early, axis=1, kind="stable")[:, :count]
    same = (best[:, :, None] == going_on[:, None, :]).any(axis=2)
    return np.asarray(same.mean(axis=1))


def halved(errors: Array, factor: int = FACTOR) -> int:
    """The row that successive halving ends with: 1 of `factor` goes on from every rung.

    >>> halved(np.array([[0.2, 0.1], [0.1, 0.2], [0.3, 0.0]]))
    1
    """
    rows = np.arange(len(errors))
    for rung in range(errors.shape[1] - 1):
        count = max(1, len(rows) // factor)
        rows = rows[np.argsort(errors[rows, rung], kind="stable")[:count]]
    return int(rows[np.argmin(errors[rows, -1])])


def analyse(found: Mapping[int, dict[int, list[float]]], rungs: Sequence[int]) -> dict[str, Any]:
    """All numbers: of each pair of budgets in one training, and between two seeds.

    Args:
        found: See `arrange`. Two seeds are compared where they have ten configurations in common.
        rungs: The budgets.
    """
    seeds = sorted(found)
    first = np.array(list(found[seeds[0]].values()))
    pairs = [(i, j) for i in range(len(rungs)) for j in range(i + 1, len(rungs))]
    out: dict[str, Any] = {
        "configurations": len(first),
        "rungs": list(rungs),
        "diverged": int((first[:, -1] >= WORST).sum()),
        "within": {f"{rungs[i]} {rungs[j]}": _pair(first[:, i], first[:, j]) for i, j in pairs},
        "best": _best(first),
    }
    one, two = both(found[seeds[0]], found[seeds[1]]) if len(seeds) > 1 else (first[:0], first[:0])
    if len(one) >= LEAST:
        every = [(i, j) for i in range(len(rungs)) for j in range(i, len(rungs))]
        out["configurations of two seeds"] = len(one)
        out["between"] = {f"{rungs[i]} {rungs[j]}": _pair(one[:, i], two[:, j]) for i, j in every}
    return out


def _pair(early: Array, late: Array) -> dict[str, list[float]]:
    return {
        "spearman": with_interval(spearman, early, late),
        "kendall": with_interval(kendall, early, late),
        "among good": with_interval(spearman_among_good, early, late),
        "kept": with_interval(kept, early, late),
    }


def _best(errors: Array) -> dict[str, Any]:
    """The best configuration at the end, and the one that successive halving ends with."""
    best, chosen = int(np.argmin(errors[:, -1])), halved(errors)
    return {
        "error": float(errors[best, -1]),
        "ranks": [
            int((errors[:, rung] < errors[best, rung]).sum()) + 1 for rung in range(errors.shape[1])
        ],
        "halving": float(errors[chosen, -1]),
        "halving rank": int((errors[:, -1] < errors[chosen, -1]).sum()) + 1,
        "median": float(np.median(errors[:, -1])),
    }


def words(value: Sequence[float], digits: int = 2) -> str:
    """A number with its interval."""
    return f"{value[0]:.{digits}f} [{value[1]:.{digits}f}, {value[2]:.{digits}f}]"


def tables(found: Mapping[str, Any], unit: str = "epochs") -> str:
    """Markdown: a row for each pair of budgets."""
    lines = [
        f"| {unit} | Spearman's ρ | ρ of the better half | Kendall's τ | best third kept "
        "| ρ, other seed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    between = found.get("between", {})
    for pair, value in found["within"].items():
        other = words(between[pair]["spearman"]) if pair in between else ""
        lines.append(
            f"| {pair.replace(' ', ' and ')} | {words(value['spearman'])} "
            f"| {words(value['among good'])} | {words(value['kendall'])} "
            f"| {words(value['kept'])} | {other} |"
        )
    for pair, value in between.items():
        early, late = pair.split()
        if early == late:
            row = (
                f"| {early}, two seeds | {words(value['spearman'])} | {words(value['among good'])} "
            )
            lines.append(f"{row}| {words(value['kendall'])} | {words(value['kept'])} | |")
    best = found["best"]
    ranks = ", ".join(f"{r} at {b}" for b, r in zip(found["rungs"], best["ranks"], strict=True))
    lines += [
        "",
        f"{found['configurations']} configurations, of which {found['diverged']} have diverged at "
        f"the end, {found.get('configurations of two seeds', 0)} of them with a second seed. The "
        f"best one ({100 * best['error']:.2f} %) has the ranks {ranks}. Successive halving of them "
        f"all ends with number {best['halving rank']} ({100 * best['halving']:.2f} %); the median "
        f"is {100 * best['median']:.2f} %.",
    ]
    return "\n".join(lines)


def plot(errors: Array, found: Mapping[str, Any], path: Path) -> None:
    """Ranks at the full length against those at each shorter budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rungs = found["rungs"]
    ranks = rankdata(errors, axis=0)
    third = len(errors) / FACTOR
    figure, panels = plt.subplots(
        1, len(rungs) - 1, figsize=(3.6 * (len(rungs) - 1), 3.8), sharey=True, squeeze=False
    )
    for rung, axis in enumerate(panels[0]):
        axis.axvspan(0, third + 0.5, color="tab:blue", alpha=0.12, lw=0)
        axis.plot(ranks[:, rung], ranks[:, -1], "o", markersize=4, color="tab:blue")
        rho = found["within"][f"{rungs[rung]} {rungs[-1]}"]["spearman"]
        axis.set_title(f"ρ = {words(rho)}", fontsize=10)
        axis.set_xlabel(f"rank after {rungs[rung]} epoch{'s' * (rungs[rung] > 1)}")
    panels[0, 0].set_ylabel(f"rank after {rungs[-1]} epochs")
    figure.suptitle("Rank 1 is best; shaded: the third that goes on", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(records: Sequence[Mapping[str, Any]], results: Path) -> dict[str, Any]:
    """Print the tables; write correlation.json and correlation.png beside the records.

    Raises:
        StateError: Fewer than three configurations are on record.
    """
    heads = [r for r in records if r["kind"] == "settings"]
    rungs = ladder(int(heads[-1]["epochs"])) if heads else []
    arranged = arrange(records, rungs)
    first = np.array(list(arranged[min(arranged)].values())) if arranged else np.empty((0, 0))
    if len(first) < 3:
        raise StateError(f"{results} has no three configurations yet: run first")
    found = analyse(arranged, rungs)
    seconds = [math.fsum(r["seconds"]) for r in records if r["kind"] == "training"]
    out = {"versions": heads[-1]["versions"], "task": heads[-1]["task"], **found}
    out["seconds"] = {"all": sum(seconds), "median": float(np.median(seconds))}
    (results / "correlation.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    plot(first, found, results / "correlation.png")
    print(tables(found))
    return out
