"""What the records of study.py say: rank correlations, choices, tables and a plot."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from tune_ext.autohyper import AutoHyper, Parameter

CHANCE = 0.1  # the accuracy that a diverged network counts for
EARLY = "largest early validation accuracy"
Array = NDArray[np.float64]
CRITERIA = {
    "minus_response": "falling response",
    "early_accuracy": "early validation accuracy",
    "learning_rate": "learning rate itself",
}


@dataclass(frozen=True)
class Curves:
    """What was measured for one optimiser: arrays of seeds × learning rates.

    Attributes:
        rates: The learning rates, ascending; all else has a column for each.
        seeds: The seeds for which everything was measured.
        response: Mean over the probe's epochs.
        early: Validation accuracy at the probe's end.
        final: Test accuracy at the full run's end.
    """

    rates: Array
    seeds: list[int]
    response: Array
    early: Array
    final: Array

    def criterion(self, name: str) -> Array:
        """What should be large where the final accuracy is, seeds × rates."""
        return {
            "minus_response": -self.response,
            "early_accuracy": self.early,
            "learning_rate": np.tile(np.log(self.rates), (len(self.seeds), 1)),
        }[name]


def curves(records: list[dict[str, Any]], optimizer: str, rates: list[float]) -> Curves:
    """Arrange the records of `optimizer`; seeds that lack any of `rates` are left out."""
    cells = {(r["seed"], r["lr"], r["kind"]): r for r in records if r["optimizer"] == optimizer}
    every = sorted({seed for seed, _, _ in cells})
    kinds = ("probe", "full")
    seeds = [s for s in every if all((s, lr, k) in cells for lr in rates for k in kinds)]

    def table(kind: str, field: str, if_diverged: float) -> Array:
        rows = [[cells[s, lr, kind] for lr in rates] for s in seeds]
        return np.array([[if_diverged if r["diverged"] else r[field] for r in row] for row in rows])

    return Curves(
        np.array(rates),
        seeds,
        table("probe", "response_mean", 1.0),
        table("probe", "validation_accuracy", CHANCE),
        table("full", "test_accuracy", CHANCE),
    )


def rank(measure: Callable[[Array, Array], Any], x: Array, y: Array) -> float:
    """A rank correlation; 0 where one of both is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(measure(x, y).statistic)


def correlations(c: Curves, columns: slice) -> dict[str, Any]:
    """Correlations with the final accuracy, per seed and of the means over seeds.

    The intervals are the smallest and largest value over every way to draw as many seeds
    with replacement: with so few seeds, all of the bootstrap distribution.
    """
    draws = list(itertools.combinations_with_replacement(range(len(c.seeds)), len(c.seeds)))
    final = c.final[:, columns]
    out: dict[str, Any] = {"rates": int(final.shape[1])}
    for name in CRITERIA:
        x = c.criterion(name)[:, columns]
        for label, measure in (("spearman", spearmanr), ("kendall", kendalltau)):
            drawn = [rank(measure, x[list(d)].mean(0), final[list(d)].mean(0)) for d in draws]
            out.setdefault(name, {})[label] = {
                "per_seed": [rank(measure, a, b) for a, b in zip(x, final, strict=True)],
                "of_means": rank(measure, x.mean(0), final.mean(0)),
                "lowest": min(drawn),
                "highest": max(drawn),
            }
    return out


def autohyper_choice(rates: Array, response: Array) -> tuple[float, int]:
    """Where the published moves end on the response interpolated over log lr, and probes."""
    search = AutoHyper([Parameter.learning_rate(upper=float(rates[-1]))])
    probes = 0
    while not search.finished:
        for probe in search.ask():
            lr = np.log(probe.values["lr"])
            search.tell(probe.id, float(np.interp(lr, np.log(rates), response)))
            probes += not probe.speculative
    assert search.best is not None
    return search.best["lr"], probes


def choices(c: Curves) -> dict[str, Any]:
    """What each criterion would choose, seed by seed, and the final accuracy of that."""
    out: dict[str, Any] = {}

    def choose(name: str, index: Callable[[int], int]) -> None:
        picked = [index(s) for s in range(len(c.seeds))]
        out[name] = {
            "lr": [float(c.rates[i]) for i in picked],
            "final_accuracy": [float(c.final[s, i]) for s, i in enumerate(picked)],
        }

    last = len(c.rates) - 1
    choose("best of the grid by test accuracy (not a method)", lambda s: int(c.final[s].argmax()))
    choose(EARLY, lambda s: int(c.early[s].argmax()))
    choose(
        "half a decade above that (a rule made after seeing the results)",
        lambda s: min(int(c.early[s].argmax()) + 1, last),
    )
    choose("smallest response", lambda s: last - int(c.response[s, ::-1].argmin()))
    moves = [autohyper_choice(c.rates, row) for row in c.response]
    ends = [lr for lr, _ in moves]
    out["autoHyper's moves on the interpolated response"] = {
        "lr": ends,
        "probes": [probes for _, probes in moves],
        "final_accuracy": [
            float(np.interp(np.log(lr), np.log(c.rates), row))
            for lr, row in zip(ends, c.final, strict=True)
        ],
    }
    return out


def analyse(c: Curves) -> dict[str, Any]:
    """Everything about one optimiser, JSON-able."""
    best = int(c.final.mean(0).argmax())
    return {
        "rates": c.rates.tolist(),
        "seeds": c.seeds,
        "response": c.response.tolist(),
        "early_accuracy": c.early.tolist(),
        "final_accuracy": c.final.tolist(),
        "correlations": correlations(c, slice(None)),
        "correlations_up_to_the_best": correlations(c, slice(0, best + 1)),
        "correlations_from_the_best": correlations(c, slice(best, None)),
        "choices": choices(c),
    }


def spread(values: Any, sign: str = "") -> str:
    """Mean ± standard error over seeds."""
    x = np.asarray(values, dtype=float)
    error = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else float("nan")
    return f"{x.mean():{sign}.3f} ± {error:.3f}"


def tables(optimizer: str, c: Curves, found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"### {optimizer}, seeds {', '.join(map(str, c.seeds))}",
        "",
        "| learning rate | response, 5 epochs | validation accuracy, 5 epochs "
        "| test accuracy, 25 epochs |",
        "|---:|---:|---:|---:|",
    ]
    for i, lr in enumerate(c.rates):
        cells = (spread(x[:, i]) for x in (c.response, c.early, c.final))
        lines.append(f"| {lr:.3g} | {' | '.join(cells)} |")
    for title, key in (
        ("all rates", "correlations"),
        ("rates up to the best", "correlations_up_to_the_best"),
        ("rates from the best on", "correlations_from_the_best"),
    ):
        part = found[key]
        lines += [
            "",
            f"| {title} ({part['rates']}) | Spearman of means [range] | per seed "
            "| Kendall of means [range] | per seed |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, words in CRITERIA.items():
            row = []
            for label in ("spearman", "kendall"):
                v = part[name][label]
                row.append(f"{v['of_means']:+.2f} [{v['lowest']:+.2f}, {v['highest']:+.2f}]")
                row.append(", ".join(f"{x:+.2f}" for x in v["per_seed"]))
            lines.append(f"| {words} | {' | '.join(row)} |")
    lines += [
        "",
        "| choice by | learning rates | test accuracy, 25 epochs | less early accuracy's |",
        "|---|---:|---:|---:|",
    ]
    early = np.array(found["choices"][EARLY]["final_accuracy"])
    for name, choice in found["choices"].items():
        rates = ", ".join(f"{lr:.3g}" for lr in choice["lr"])
        final = np.array(choice["final_accuracy"])
        paired = "" if name == EARLY else spread(final - early, sign="+")
        lines.append(f"| {name} | {rates} | {spread(final)} | {paired} |")
    return "\n".join(lines) + "\n"


def plot(measured: dict[str, Curves], path: Path) -> None:
    """Response, early and final accuracy over the learning rate, a panel an optimiser."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(measured), figsize=(11, 4.2), sharey=True, squeeze=False)
    series = (
        ("response", "tab:blue", "o", "response, mean of 5 epochs"),
        ("early", "tab:orange", "s", "validation accuracy after 5 epochs"),
        ("final", "tab:green", "^", "test accuracy after 25 epochs"),
    )
    for axis, (optimizer, c) in zip(panels[0], measured.items(), strict=True):
        for field, color, marker, label in series:
            values = getattr(c, field)
            axis.plot(c.rates, values.mean(0), color=color, marker=marker, label=label)
            axis.fill_between(c.rates, values.min(0), values.max(0), color=color, alpha=0.2)
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_title({"adam": "Adam", "sgd": "SGD, momentum 0.9"}[optimizer])
        axis.grid(alpha=0.3)
    panels[0, 0].set_ylabel("mean over seeds; shaded: lowest to highest")
    panels[0, 0].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def report(
    records: list[dict[str, Any]],
    rates: dict[str, list[float]],
    out: Path,
    versions: dict[str, str],
) -> None:
    """Print the tables; write report.json and response.png into `out`."""
    measured = {name: curves(records, name, rates[name]) for name in rates}
    measured = {name: c for name, c in measured.items() if c.seeds}
    if not measured:
        raise SystemExit("no seed is complete yet")
    found = {name: analyse(c) for name, c in measured.items()}
    for name, c in measured.items():
        print(tables(name, c, found[name]))
    summary = {"version": 1, "versions": versions, "optimizers": found}
    (out / "report.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(measured, out / "response.png")
    hours = sum(r["seconds"] for r in records) / 3600
    print(f"{len(records)} networks, {hours:.1f} hours; report.json and response.png are in {out}")
