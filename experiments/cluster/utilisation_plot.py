"""Draws what utilisation.py measured, and writes it as a table.

python experiments/cluster/utilisation_plot.py [--out DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
TITLES = {
    "lognormal": "simulated, lognormal epochs",
    "straggler": "simulated, and one 20 times slower",
    "real": "on Ray, sleeping trials",
}
COLOURS = {2: "#4477aa", 4: "#228833", 8: "#cc6677"}
OFFSETS = {2: -0.24, 4: 0.0, 8: 0.24}

Row = dict[str, Any]


def chosen(rows: list[Row], kind: str, system: str, workers: int) -> list[Row]:
    """The runs of a cell that ended."""
    place = (kind, system, workers)
    return [
        r
        for r in rows
        if (r["kind"], r["system"], r["workers"]) == place and not r.get("hung", False)
    ]


def draw(rows: list[Row], path: Path) -> None:
    """Idle shares: medians, and from the least to the most over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "tune-ext", "svg.fonttype": "none"}
    import matplotlib.pyplot as plt

    kinds = [kind for kind in TITLES if any(r["kind"] == kind for r in rows)]
    systems = list(dict.fromkeys(r["system"] for r in rows))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(3.6 * len(kinds) + 1.4, 4.6), sharey=True, layout="constrained"
    )
    for ax, kind in zip(axes, kinds, strict=True):
        for place, system in enumerate(systems):
            for workers, colour in COLOURS.items():
                runs = chosen(rows, kind, system, workers)
                if not runs:
                    continue
                idle, y = [100 * r["idle"] for r in runs], place + OFFSETS[workers]
                ax.plot([min(idle), max(idle)], [y, y], color=colour, linewidth=1.6, alpha=0.6)
                ax.plot(median(idle), y, "o", color=colour, markersize=4.5)
                if "avoidable" in runs[0]:
                    most = 100 * median(r["avoidable"] for r in runs)
                    ax.plot(most, y, "|", color="black", markersize=7)
        ax.set(title=TITLES[kind], xlabel="idle worker time [%]", xlim=(-2, 102))
        ax.title.set_fontsize(10)
        ax.grid(axis="x", alpha=0.3)
        ax.set_yticks(range(len(systems)), systems)
    axes[0].invert_yaxis()
    marks = [
        plt.Line2D([], [], color=c, marker="o", markersize=4.5, label=f"{w} workers")
        for w, c in COLOURS.items()
    ]
    marks.append(
        plt.Line2D([], [], color="black", marker="|", linestyle="", label="of it avoidable")
    )
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
        figure.savefig(path.with_suffix(suffix), dpi=130, metadata=metadata)


def cell(runs: list[Row], key: str) -> str:
    """Median and range in per cent."""
    values = [100 * r[key] for r in runs]
    middle = f"{median(values):.1f}"
    if len(values) < 2 or max(values) < 0.05:
        return middle
    return f"{middle} ({min(values):.1f}–{max(values):.1f})"


def table(report: dict[str, Any]) -> str:
    """All cells as Markdown."""
    rows: list[Row] = report["simulated"]
    seeds = len({r["seed"] for r in rows})
    lines = [
        "# Idle worker time with trials of uneven length",
        "",
        f"Per cent of the time of all workers, median and range over {seeds} seeds, and the "
        "simulated seconds of the median run, from `python experiments/cluster/utilisation.py`, "
        "which says what is run. Avoidable is the idle time in which something could have been "
        "trained. The rest is, of autoHyper and ExpTest, the wait for the result that decides what "
        "comes next; of the others the end, when no configuration is left to begin.",
        "",
    ]
    for kind in ("lognormal", "straggler"):
        lines += [
            f"## {TITLES[kind].capitalize()}",
            "",
            "| system | workers | idle | avoidable | seconds | hung |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for system in dict.fromkeys(r["system"] for r in rows):
            for workers in COLOURS:
                runs = chosen(rows, kind, system, workers)
                place = (kind, system, workers)
                every = [r for r in rows if (r["kind"], r["system"], r["workers"]) == place]
                told = [cell(runs, k) if runs else "–" for k in ("idle", "avoidable")]
                told.append(f"{median(r['seconds'] for r in runs):.0f}" if runs else "–")
                hung = f"{len(every) - len(runs)} of {len(every)}"
                lines.append(f"| {system} | {workers} | {' | '.join(told)} | {hung} |")
        lines.append("")
    if report.get("real"):
        lines += [
            "## On Ray",
            "",
            "One seed, lognormal epochs, trials that sleep; idle contains what Ray takes to start "
            "trials, to save and to restore them.",
            "",
            "| system | workers | idle | simulated | seconds | trials |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for r in report["real"]:
            same = chosen(rows, "lognormal", r["system"], r["workers"])
            clock = [100 * s["idle"] for s in same if s["seed"] == r["seed"]]
            beside = f"{clock[0]:.1f}" if clock else "–"
            lines.append(
                f"| {r['system']} | {r['workers']} | {100 * r['idle']:.1f} | {beside} "
                f"| {r['seconds']:.1f} | {r['trials']} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    path = parser.parse_args().out / "utilisation.json"
    report = json.loads(path.read_text())
    draw(report["simulated"] + report.get("real", []), path)
    path.with_suffix(".md").write_text(table(report), encoding="utf-8")
    print(table(report))


if __name__ == "__main__":
    main()
