"""What the records of correlation.py say: best rates, correlations with intervals, a plot."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _dag_training import Images, Network, as_record, load, plan_of, start
from numpy.typing import NDArray
from scipy.stats import rankdata

from tune_ext._random import generator

Array = NDArray[np.float64]
CHANCE = math.log(10)
DRAWS = 1000
SIDE = 14
POOLED = {"cnn, all": ("cnn-topology", "cnn-kernel", "cnn-depth")}


# The best rate -------------------------------------------------------------------------------


def parabola(exponents: Array, losses: Array) -> Array:
    """Exponents of the smallest losses, between the points of the grid.

    The vertex of the parabola through the smallest (of equals, the one with the larger rate) and
    its two neighbours; the smallest itself where a neighbour is missing.

    Args:
        exponents: (rates,) ascending in steps of 1 (gaps are filled with infinite losses).
        losses: (n, rates).

    Returns:
        (n,) exponents.

    >>> k = np.arange(5.0)
    >>> parabola(k, (k[None] - 2.25) ** 2)
    array([2.25])
    """
    count = losses.shape[1]
    best = count - 1 - np.argmin(losses[:, ::-1], axis=1)
    row = np.arange(len(losses))
    left = np.where(best > 0, losses[row, np.maximum(best - 1, 0)], np.inf)
    right = np.where(best < count - 1, losses[row, np.minimum(best + 1, count - 1)], np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (left - right) / (left - 2 * losses[row, best] + right)
    shift = np.where(np.isfinite(left) & np.isfinite(right) & np.isfinite(shift), shift, 0.0)
    return np.asarray(exponents[best] + np.clip(shift, -0.5, 0.5))


def one_error(exponents: Array, losses: Array) -> float:
    """The largest exponent whose loss is within one standard error of the smallest.

    The error is that of the difference between the two over seeds.

    Args:
        exponents: (rates,) ascending.
        losses: (seeds, rates), finite or infinite.
    """
    usable = np.flatnonzero(np.isfinite(losses).all(axis=0))
    best = usable[int(np.argmin(losses[:, usable].mean(axis=0)))]
    more = losses[:, usable] - losses[:, [best]]
    error = more.std(axis=0, ddof=1) / math.sqrt(len(losses))
    return float(exponents[usable[more.mean(axis=0) <= error].max()])


def edge(exponents: Array, losses: Array, learnt: float = 0.9) -> float:
    """The largest exponent with which every seed has learnt: a loss below 0.9 ln 10."""
    fine = (losses < learnt * CHANCE).all(axis=0)
    return float(exponents[np.flatnonzero(fine).max()]) if fine.any() else math.nan


@dataclass(frozen=True)
class Measured:
    """The losses of one network.

    Attributes:
        network: Its architecture.
        exponents: (rates,).
        running: (seeds, rates) mean losses of the epoch, at most ln 10; infinite where not
            every seed was trained.
        loss: The same after the epoch.
    """

    network: Network
    exponents: Array
    running: Array
    loss: Array

    def best(self, what: str = "running") -> float:
        """The exponent of the best rate, by the mean over seeds."""
        losses = self.running if what == "running" else self.loss
        return float(parabola(self.exponents, losses.mean(axis=0)[None])[0])

    def drawn(self, count: int, seed: int) -> Array:
        """The best exponents (count,) for seeds drawn with replacement."""
        n = len(self.running)
        draws = generator(seed, "seeds", self.network.dag).integers(n, size=(count, n))
        return parabola(self.exponents, self.running[draws].mean(axis=1))


def measured(entry: Mapping[str, Any], seeds: int) -> Measured:
    """Arrange what `correlation.merge` collected about a network."""
    exponents = sorted(entry["running"])
    grid = np.arange(exponents[0], exponents[-1] + 1, dtype=float)

    def losses(what: str) -> Array:
        out = np.full((seeds, len(grid)), np.inf)
        for k in exponents:
            row = entry[what][k]
            if all(seed in row for seed in range(seeds)):
                values = [math.inf if row[s] is None else row[s] for s in range(seeds)]
                out[:, k - exponents[0]] = np.minimum(values, CHANCE)
        return out

    network = Network(**entry["network"])
    return Measured(network, grid, losses("running"), losses("loss"))


# The prediction ------------------------------------------------------------------------------


def predictions(network: Network) -> dict[str, float]:
    """Exponents that different rules predict, each up to a constant that all networks share."""
    third = {a: plan_of(network, aggregate=a).moments for a in ("sum", "mean")}
    m = third["sum"]
    one_more = m.after_layer()
    kernel = -2 * math.log2(network.kernel)

    def exponent(cubes: float) -> float:
        return -math.log2(float(cubes))  # of 2^(k/2): -½·log2 ΣL³, doubled

    edges = sum(character == "2" for character in network.dag)
    return {
        "sum": exponent(m.third) + kernel,
        "mean": exponent(third["mean"].third) + kernel,
        "sum, as the published code counts": exponent(one_more.third) + kernel,
        "sum without the kernel": exponent(m.third),
        "weighted layers alone": -3 * math.log2(edges + 2) + kernel,
        "paths alone": -math.log2(float(m.count)) + kernel,
    }


def feature_growth(network: Network, init: str, images: Images, seeds: int = 3) -> float:
    """Mean square of the features that the graph ends with over that which it starts with.

    Before training, mean over seeds: what the initial weights should keep at 1.
    """
    found = []

    def note(module: object, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        found.append(float((out**2).mean() / (inputs[0] ** 2).mean()))

    for seed in range(seeds):
        model = start(network, init, seed, images)
        graph: torch.nn.Module = model.graph
        graph.register_forward_hook(note)
        with torch.no_grad():
            model(images.inputs)
    return float(np.mean(found))


def readout_share(network: Network, init: str, images: Images, seed: int = 0) -> float:
    """The read-out's share of the squared gradient of the answers, before training.

    A step of one rate for all changes the answers by that gradient's square: where the share is
    near 1, the read-out limits the rate and the depth of what comes before it hardly matters.
    """
    model = start(network, init, seed, images)
    names = [name for name, _ in model.named_parameters()]
    signs = torch.randn(64, 10, generator=torch.Generator().manual_seed(seed))
    total = dict.fromkeys(names, 0.0)
    for x, sign in zip(images.inputs[:64].split(1), signs, strict=True):
        gradients = torch.autograd.grad((model(x)[0] * sign).sum(), list(model.parameters()))
        for name, g in zip(names, gradients, strict=True):
            total[name] += float((g**2).sum())
    last = sum(v for name, v in total.items() if name.startswith("readout"))
    return last / sum(total.values())


# Statistics ----------------------------------------------------------------------------------


def numbers(x: Array, y: Array) -> dict[str, Any]:
    """Agreement of predicted and measured exponents of 2^(k/2).

    Args:
        x: (…, networks) predicted.
        y: (…, networks) measured.

    Returns:
        "pearson" of the exponents and of the rates and "spearman" (NaN where one is constant);
        "slope" of y over x; "error": the
        root mean square of log2(measured/predicted) after the best common factor; "unscaled": the
        same with one rate for all networks.
    """
    dx, dy = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "pearson": _cosine(dx, dy),
            "spearman": _cosine(*(_centred(rankdata(v, axis=-1)) for v in (x, y))),
            "pearson of rates": _cosine(*(_centred(2 ** (v / 2)) for v in (dx, dy))),
            "slope": (dx * dy).sum(axis=-1) / (dx**2).sum(axis=-1),
            "error": (dy - dx).std(axis=-1) / 2,
            "unscaled": dy.std(axis=-1) / 2,
        }


def _centred(x: Array) -> Array:
    return np.asarray(x - x.mean(axis=-1, keepdims=True))


def _cosine(x: Array, y: Array) -> Array:
    return np.asarray((x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1)))


def with_interval(x: Array, y: Array, drawn: Array, seed: int = 0) -> dict[str, Any]:
    """`numbers` with 95% intervals over networks and seeds drawn with replacement.

    Args:
        x: (networks,) predicted.
        y: (networks,) measured.
        drawn: (networks, DRAWS) measured, for seeds drawn.
        seed: Of the draws.
    """
    draws = drawn.shape[1]
    rows = generator(seed, "networks").integers(len(x), size=(draws, len(x)))
    found = numbers(x[rows], drawn[rows, np.arange(draws)[:, None]])
    return {
        name: [float(value), *(float(q) for q in _quantiles(found[name]))]
        for name, value in numbers(x, y).items()
    }


def _quantiles(values: Array) -> Array:
    fine = values[np.isfinite(values)]
    return np.quantile(fine, (0.025, 0.975)) if len(fine) else np.array([np.nan, np.nan])


def reliability(y: Array, drawn: Array, seeds: int) -> float:
    """The share of the variance of measured exponents that is not the seeds' noise.

    The variance over draws of n seeds is (n - 1)/n of that over other seeds.
    """
    noise = float(drawn.var(axis=1).mean()) * seeds / (seeds - 1)
    return max(0.0, 1 - noise / float(y.var(ddof=1))) if y.var() > 0 else math.nan


def analyse(nets: list[Measured], seeds: int, growth: Array, readout: Array) -> dict[str, Any]:
    """Everything about one family.

    Args:
        nets: Its networks.
        seeds: How many seeds each was trained with.
        growth: The `feature_growth` of each.
        readout: The `readout_share` of each.
    """
    y = np.array([n.best() for n in nets])
    drawn = np.array([n.drawn(DRAWS, seed=i) for i, n in enumerate(nets)])
    rules = [predictions(n.network) for n in nets]
    columns = {name: np.array([r[name] for r in rules]) for name in rules[0]}
    columns["1 / growth of features"] = -2 * np.log2(growth)
    share = reliability(y, drawn, seeds)
    definitions: dict[str, Callable[[Measured], float]] = {
        "loss after the epoch": lambda n: n.best("loss"),
        "largest within one standard error": lambda n: one_error(n.exponents, n.running),
        "largest that learns": lambda n: edge(n.exponents, n.running),
    }
    other: dict[str, Any] = {}
    for name, rule in definitions.items():
        values = np.array([rule(n) for n in nets])
        fine = np.isfinite(values)
        other[name] = {
            key: float(value) for key, value in numbers(columns["sum"][fine], values[fine]).items()
        } | {"networks": int(fine.sum())}
    return {
        "networks": [as_record(n.network) for n in nets],
        "seeds": seeds,
        "best_rate": (2 ** (y / 2)).tolist(),
        "deviation over seeds, octaves": float(np.sqrt(drawn.var(axis=1).mean()) / 2),
        "smallest loss": [float(n.running.mean(axis=0).min()) for n in nets],
        "at an end of the grid": int(
            sum(np.argmin(n.running.mean(0)) in (0, len(n.exponents) - 1) for n in nets)
        ),
        "reliability": share,
        "ceiling": math.sqrt(share),
        "rules": {name: with_interval(x, y, drawn) for name, x in columns.items()},
        "predicted": {name: x.tolist() for name, x in columns.items()},
        "other definitions, sum": other,
        "growth of features": growth.tolist(),
        "read-out's share": readout.tolist(),
        "exponents": exponents_of(nets, y, drawn, growth),
    }


def exponents_of(
    nets: list[Measured], y: Array, drawn: Array, growth: Array
) -> dict[str, list[float]]:
    """The powers of ΣL³, q and the growth of features that fit best together, with intervals.

    The rule says -0.5, -1 and that features do not grow.
    """
    cubes = np.array([math.log2(plan_of(n.network, aggregate="sum").moments.third) for n in nets])
    columns = {
        "ΣL³": cubes,
        "q": np.array([math.log2(n.network.kernel) for n in nets]),
        "growth": np.log2(growth),
    }
    columns = {name: c for name, c in columns.items() if np.ptp(c) > 0.1}
    if len(nets) < len(columns) + 3:
        return {}
    design = np.column_stack([np.ones(len(y)), *columns.values()])
    rng = generator(0, "powers")
    draws = []
    for k in range(drawn.shape[1]):
        rows = rng.integers(len(y), size=len(y))
        if np.linalg.matrix_rank(design[rows]) == design.shape[1]:
            draws.append(np.linalg.lstsq(design[rows], drawn[rows, k] / 2, rcond=None)[0])
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    value = np.linalg.lstsq(design, y / 2, rcond=None)[0]
    return {
        name: [float(value[i]), float(low[i]), float(high[i])]
        for i, name in enumerate(columns, start=1)
    }


# Output --------------------------------------------------------------------------------------


def words(value: list[float]) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def table(found: Mapping[str, Any]) -> str:
    """The main table, Markdown."""
    lines = [
        "| networks | n | rule | Pearson of logs | of rates | Spearman | slope "
        "| error, octaves | one rate for all | ceiling |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, family in found.items():
        for rule in ("sum", "mean"):
            r = family["rules"][rule]
            lines.append(
                f"| {name} | {len(family['best_rate'])} | {rule} | {words(r['pearson'])} "
                f"| {r['pearson of rates'][0]:.2f} | {words(r['spearman'])} "
                f"| {words(r['slope'])} | {words(r['error'])} "
                f"| {r['unscaled'][0]:.2f} | {family['ceiling']:.2f} |"
            )
    return "\n".join(lines)


def details(found: Mapping[str, Any]) -> str:
    """Other rules, other definitions and fitted powers, Markdown."""
    rules = [r for r in next(iter(found.values()))["rules"] if r not in ("sum", "mean")]
    lines = [
        "| networks | " + " | ".join(rules) + " |",
        "|---|" + "---:|" * len(rules),
    ]
    for name, family in found.items():
        cells = [f"{family['rules'][r]['pearson'][0]:.2f}" for r in rules]
        growth, readout = (np.array(family[k]) for k in ("growth of features", "read-out's share"))
        cells += [f"{growth.min():.2f} to {growth.max():.2f}", f"{np.median(readout):.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines[0] += " growth | read-out's share |"
    lines[1] += "---:|---:|"
    others = list(next(iter(found.values()))["other definitions, sum"])
    lines += [
        "",
        "| networks | " + " | ".join(others) + " | fitted powers |",
        "|---|" + "---:|" * len(others) + "---|",
    ]
    for name, family in found.items():
        cells = [f"{family['other definitions, sum'][o]['pearson']:.2f}" for o in others]
        powers = "; ".join(f"{k} {words(v)}" for k, v in family["exponents"].items())
        lines.append(f"| {name} | {' | '.join(cells)} | {powers} |")
    return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """The same with null for what is not a number, as JSON has it."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plot(found: Mapping[str, Any], path: Path, rule: str = "sum") -> None:
    """Measured against predicted rate, a panel a family."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in found if n not in POOLED]
    columns = min(3, len(names))
    figure, panels = plt.subplots(
        -(-len(names) // columns), columns, figsize=(3.6 * columns, 3.3 * -(-len(names) // columns))
    )
    axes = np.atleast_1d(panels).ravel()
    for axis, name in zip(axes, names, strict=False):
        family = found[name]
        y = np.array(family["best_rate"])
        x = np.array(family["predicted"][rule])
        x = 2 ** ((x - x.mean()) / 2 + np.log2(y).mean())
        axis.loglog(x, y, "o", base=2, markersize=4)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axis.loglog(ends, ends, color="grey", linewidth=0.8, base=2)
        axis.set_title(f"{name}: r = {family['rules'][rule]['pearson'][0]:.2f}", fontsize=9)
        axis.set_xlabel("predicted (best common factor)", fontsize=8)
        axis.set_ylabel("best of the grid", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[len(names) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(
    merged: Mapping[Any, Mapping[str, Any]],
    families: Mapping[str, Any],
    args: argparse.Namespace,
    versions: dict[str, str],
) -> None:
    """Print the tables; write correlation.json and correlation.png beside the records."""
    images = load(args.data, SIDE, 256, 0, args.data_dir)
    complete: dict[str, tuple[list[Measured], int, Array, Array]] = {}
    for name, family in families.items():
        entries = [merged.get((*as_record(n).values(), family.init)) for n in family.networks]
        nets = [measured(e, family.seeds) for e in entries if e is not None]
        nets = [n for n in nets if np.isfinite(n.running).any()]
        if len(nets) >= 3:
            growth = [feature_growth(n.network, family.init, images) for n in nets]
            readout = [readout_share(n.network, family.init, images) for n in nets]
            complete[name] = (nets, family.seeds, np.array(growth), np.array(readout))
        print(f"{name}: {len(nets)} of {len(family.networks)} networks")
    for name, parts in POOLED.items():
        if all(part in complete for part in parts):
            parts_of = [complete[part] for part in parts]
            pooled = {
                n.network: row
                for p in parts_of
                for row in zip(p[0], p[2], p[3], strict=True)
                for n in row[:1]
            }
            nets, *sizes = (list(column) for column in zip(*pooled.values(), strict=True))
            complete[name] = (nets, parts_of[0][1], *map(np.array, sizes))
    found = {name: analyse(*values) for name, values in complete.items()}
    if not found:
        raise SystemExit("no records yet: run first")
    out = {"versions": versions, "families": found}
    text = json.dumps(without_nan(out), indent=1, allow_nan=False)
    (args.results / "correlation.json").write_text(text + "\n")
    plot(found, args.results / "correlation.png")
    print(table(found), details(found), sep="\n\n")
