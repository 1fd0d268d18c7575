"""Pictures analogous to the paper's Fig. 1 to 5, from the records of study.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from baselines import CONSTANTS, GRID
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from tasks import DEPTHS, WIDTHS

Cells = Mapping[tuple[str, str, int], Mapping[str, Any]]

EXPTEST_COLOUR, ORACLE_COLOUR = "#d62728", "black"
SHADES = plt.get_cmap("viridis")(np.linspace(0.0, 0.92, len(GRID)))


def draw(cells: Cells, out: Path) -> list[Path]:
    """Draw every picture that there are records for; returns their paths."""
    makers: dict[str, Callable[[Cells], Figure | None]] = {
        "fig1_logistic": lambda c: training(c, _batches("logistic")),
        "fig2_mlp": lambda c: training(c, _batches("mlp")),
        "fig3_regression": lambda c: training(c, ["diabetes", "friedman1", "california"]),
        "fig4_vgg": lambda c: training(c, ["vgg-small", "vgg16-cifar10"]),
        "fig5_lattice": lattice,
        "gaps": gaps,
    }
    paths = []
    for name, make in makers.items():
        figure = make(cells)
        if figure is None:
            continue
        paths.append(out / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def _batches(model: str) -> list[str]:
    return [f"{model}-{size}" for size in (128, 256, 512)]


def _curves(cells: Cells, task: str, method: str, name: str) -> np.ndarray:
    """Seeds × points of a curve; diverged runs are left out."""
    records = [r for (t, m, _), r in sorted(cells.items()) if (t, m) == (task, method)]
    curves = [r[name] for r in records if not r["diverged"]]
    return np.array(curves, dtype=float) if curves else np.empty((0, 0))


def _band(axes: Axes, curves: np.ndarray, epochs: float, **style: Any) -> None:
    if not curves.size:
        return
    x = (np.arange(curves.shape[1]) + 0.5) * epochs / curves.shape[1]
    mean = curves.mean(axis=0)
    axes.plot(x, mean, **style)
    if len(curves) > 1:
        error = curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
        axes.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.25, lw=0)


def training(cells: Cells, wanted: Sequence[str]) -> Figure | None:
    """Loss curves above, learning rates below: exptest among the constant rates."""
    names = [t for t in wanted if any(k[:2] == (t, "exptest") for k in cells)]
    if not names:
        return None
    figure, grid = plt.subplots(
        2, len(names), figsize=(1.6 + 3.9 * len(names), 5.8), sharex="col", squeeze=False,
        height_ratios=(3, 2), layout="constrained",
    )  # fmt: skip
    for column, task in enumerate(names):
        _losses(grid[0, column], cells, task)
        _rates(grid[1, column], cells, task)
    grid[0, 0].set_ylabel("training loss (mini-batches)")
    grid[1, 0].set_ylabel("learning rate")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return figure


def _losses(axes: Axes, cells: Cells, task: str) -> None:
    first = next(r for k, r in cells.items() if k[:2] == (task, "exptest"))
    seeds = len({k[2] for k in cells if k[:2] == (task, "exptest")})
    epochs = first["epochs"]
    for name, rate, shade in zip(CONSTANTS, GRID, SHADES, strict=True):
        curves = _curves(cells, task, name, "loss_curve")
        _band(axes, curves, epochs, color=shade, lw=1, label=f"constant {rate:g}")
    style = {"color": EXPTEST_COLOUR, "lw": 2.2, "label": "exptest"}
    _band(axes, _curves(cells, task, "exptest", "loss_curve"), epochs, **style)
    _log_axis(axes)
    axes.set_ylim(*_range(cells, task))
    axes.set_title(f"{task} ({seeds} seeds)", fontsize=10)


def _log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _range(cells: Cells, task: str) -> tuple[float, float]:
    """All of exptest's curve, and what else is not above twice its start."""
    curves = [_curves(cells, task, n, "loss_curve") for n in ("exptest", *CONSTANTS)]
    means = [c.mean(axis=0) for c in curves if c.size]
    top = means[0].max() * 2
    return 0.85 * min(m.min() for m in means), top


def _rates(axes: Axes, cells: Cells, task: str) -> None:
    found = [r for k, r in sorted(cells.items()) if k[:2] == (task, "exptest")]
    for record in found:
        values = np.array(record["rate_curve"], dtype=float)
        x = (np.arange(len(values)) + 0.5) * record["epochs"] / max(len(values), 1)
        axes.plot(x, values, color=EXPTEST_COLOUR, lw=1, alpha=0.7)
    chosen = [r["lr"] for k, r in cells.items() if k[:2] == (task, "oracle")]
    if chosen:
        axes.axhline(
            float(np.exp(np.mean(np.log(chosen)))), color=ORACLE_COLOUR, lw=1, ls="--"
        )  # fmt: skip
        axes.annotate(
            "best constant", (0.02, float(np.exp(np.mean(np.log(chosen))))),
            xycoords=("axes fraction", "data"), fontsize=7, va="bottom",
        )  # fmt: skip
    _log_axis(axes)
    axes.set_xlabel("epoch")


def lattice(cells: Cells) -> Figure | None:
    """Test error over constant rates for each width and depth, exptest's choice marked."""
    if not any(t.startswith("lattice") for t, _, _ in cells):
        return None
    figure, grid = plt.subplots(
        len(DEPTHS), len(WIDTHS), figsize=(9.6, 7.4), sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for row, depth in enumerate(DEPTHS):
        for column, width in enumerate(WIDTHS):
            _lattice_panel(grid[row, column], cells, f"lattice-{width}-{depth}")
            grid[row, column].set_title(f"width {width}, depth {depth}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    for axes in grid[:, 0]:
        axes.set_ylabel("test mean squared error")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(
        once.values(), once.keys(), loc="outside upper center", ncols=3, fontsize=9, frameon=False
    )
    return figure


def _lattice_panel(axes: Axes, cells: Cells, task: str) -> None:
    here = {k: r for k, r in cells.items() if k[0] == task}
    rates = sorted({r["lr"] for k, r in here.items() if k[1].startswith("rate-")})
    x, mean, error, lost = [], [], [], []
    for rate in rates:
        at = [r for k, r in here.items() if k[1].startswith("rate-") and r["lr"] == rate]
        good = [r["metrics"]["test"] for r in at if not r["diverged"]]
        if len(good) == len(at):
            x.append(rate)
            mean.append(np.mean(good))
            error.append(np.std(good, ddof=1) / math.sqrt(len(good)) if len(good) > 1 else 0.0)
        else:
            lost.append(rate)
    axes.errorbar(
        x, mean, error, color="#1f77b4", marker="o", ms=3.5, lw=1.2, label="constant rate"
    )
    top = 2.0
    axes.plot(lost, [top] * len(lost), "x", color="#1f77b4", ms=6, label="diverged")
    for (_, method, _), record in here.items():
        if method == "exptest" and not record["diverged"]:
            y = min(record["metrics"]["test"], top)
            axes.plot(
                record["lr"], y, "*", color=EXPTEST_COLOUR, ms=11, mec="white", label="exptest"
            )  # fmt: skip
    axes.set_xscale("log")
    _log_axis(axes)
    axes.set_ylim(0.15, 2.6)
    axes.grid(alpha=0.25)


def gaps(cells: Cells) -> Figure | None:
    """How far each method's test metric is from the oracle's, task by task."""
    from report import ORACLE, compared, row, tasks_of

    tasks = [t for t in tasks_of(cells) if row(cells, t, ORACLE) is not None]
    names = [n for n in compared() if n != ORACLE]
    names += ["oracle-cooled", "exptest-open", "exptest-momentum", "exptest-adam"]
    if not tasks:
        return None
    figure, axes = plt.subplots(
        figsize=(2.6 + 1.15 * len(tasks), 1.6 + 0.34 * len(names)), layout="constrained"
    )
    values = np.full((len(names), len(tasks)), np.nan)
    for i, name in enumerate(names):
        for j, task in enumerate(tasks):
            found = row(cells, task, name)
            if found is not None and found.gap is not None and not found.diverged:
                values[i, j] = -100 * found.gap[0]
    image = axes.imshow(np.clip(values, -10, 10), cmap="RdBu", vmin=-10, vmax=10, aspect="auto")
    for i in range(len(names)):
        for j in range(len(tasks)):
            text = "–" if math.isnan(values[i, j]) else f"{values[i, j]:+.1f}"
            dark = abs(values[i, j]) > 6.5
            axes.text(
                j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("test metric against the oracle's, % (blue: better)", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure
