"""The picture of a comparison, with matplotlib: anytime curves and test errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.stats import mean_curve, summarize

__all__ = ["draw"]

# Okabe and Ito's palette and some of Tol's, told apart by people who are colour-blind.
_COLOURS = {
    "default": "#7f7f7f",
    "one-epoch": "#E69F00",
    "random": "#56B4E9",
    "asha": "#009E73",
    "hyperband": "#0072B2",
    "bohb": "#CC79A7",
    "autohyper": "#D55E00",
    "exptest": "#882255",
    "exptest+random": "#AA4499",
}
_OTHERS = ("#000000", "#F0E442", "#44AA99", "#999933")


def _colour(method: str, place: int) -> str:
    return _COLOURS.get(method, _OTHERS[place % len(_OTHERS)])


def draw(records: Sequence[CellRecord], title: str, path: Path) -> list[Path]:
    """Draw one task's records into `path` with the suffixes .png and .svg.

    Needs matplotlib, of the extra `compare`.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "tune-ext", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        figure.suptitle(title)
        _anytime(left, records)
        _tests(right, records)
        written = []
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            written.append(path.with_suffix(suffix))
            figure.savefig(written[-1], dpi=130, metadata=metadata)
    return written


def _anytime(axes: Any, records: Sequence[CellRecord]) -> None:
    budget = max((r.budget for r in records), default=1)
    epochs = np.arange(1, budget + 1)
    lowest = []
    for place, summary in enumerate(summarize(records)):
        mine = [r for r in records if r.method == summary.method]
        colour = _colour(summary.method, place)
        mean, error = mean_curve(mine, budget)
        if np.isnan(mean).all():
            _no_search(axes, mine, summary.method, colour)
            continue
        mean, error = 100 * mean, 100 * error
        lowest.append(np.nanmin(mean))
        axes.plot(epochs, mean, color=colour, label=summary.method, drawstyle="steps-post")
        axes.fill_between(epochs, mean - error, mean + error, color=colour, alpha=0.12, step="post")
        end = int(summary.epochs)
        if end < budget:
            axes.plot(end, mean[end - 1], "o", color=colour, markersize=5)
    axes.set_xlabel("training epochs used, all trials together")
    axes.set_ylabel("best validation error so far, %")
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_title("Search (mean over seeds ± standard error; ● ended by itself)", fontsize=9)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, ncols=2)


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """Numbers at the ticks of a logarithmic axis, at no more of them than have room."""
    axis.set_major_formatter("{x:g}")
    if high <= 12 * low:
        axis.set_minor_formatter("{x:g}")
        return
    from matplotlib.ticker import FuncFormatter

    shown = {"2", "5"}
    axis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in shown else ""))


def _no_search(axes: Any, records: Sequence[CellRecord], method: str, colour: str) -> None:
    """A method without a search has the validation error of its final trainings."""
    errors = [t["validation_error"] for r in records for t in r.tests]
    known = [e for e in errors if e is not None]
    if known:
        axes.axhline(100 * float(np.mean(known)), color=colour, linestyle=":", label=method)


def _tests(axes: Any, records: Sequence[CellRecord]) -> None:
    summaries = summarize(records)
    for place, summary in enumerate(summaries):
        colour = _colour(summary.method, place)
        errors = 100 * np.array(list(summary.test_error.values()), dtype=float)
        axes.plot(errors, np.full(len(errors), place), "o", color=colour, alpha=0.4, markersize=4)
        if len(errors):
            bar = 0.0 if np.isnan(summary.error) else 100 * summary.error
            axes.errorbar(100 * summary.mean, place, xerr=bar, fmt="D", color=colour, capsize=4)
    axes.set_yticks(range(len(summaries)), [s.method for s in summaries])
    axes.invert_yaxis()
    axes.set_xlabel("test error, %")
    means = [100 * s.mean for s in summaries if s.test_error]
    if means and 0 < 8 * min(means) < max(means):  # else one bad method leaves nothing to see
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_title("Recommendation, trained at full length (◆ mean ± standard error)", fontsize=9)
    axes.grid(alpha=0.25, axis="x")
