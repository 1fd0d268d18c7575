"""The short table of docs/reliability.md, from the results of the chaos suite.

    python experiments/chaos/summary.py          # prints it

Cases of one kind are added up, ours and Ray's apart; the short ones that the tests run too are left
out where a longer one of the same name is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outcome import Outcome

RESULTS = Path(__file__).parent / "results" / "chaos.json"
KINDS = {
    "a trial raises, always": ("raises", "raises, more"),
    "a trial raises once, and is tried again": ("raises once", "raises once, more"),
    "NaN, ±inf, None, or no metric": ("not a number", "not a number, more"),
    "results and completions twice": ("results twice", "results, more (twice)"),
    "results late, out of order": ("results late", "results, more (late)"),
    "results of trials that nobody asked for": (
        "results of strangers",
        "results, more (strangers)",
    ),
    "the clock leaps by an hour": ("clock leaps",),
    "a trial hangs": ("hangs", "hangs, Ray's"),
    "a trial is killed: training, saving, reporting": ("killed",),
    "a node dies": ("node dies",),
    "a cell's search hangs, dies, raises, sees only NaN": ("cells",),
    "the driver is killed at random": ("driver killed at random",),
    "the driver is killed between two states of a file": ("driver killed in writing",),
    "the driver is killed while it trains, on a real Ray": (
        "driver killed while it trains",
        "Tuner.restore",
    ),
    "the driver is killed and restored, step by step": ("restored",),
    "the driver is killed while Ray copies its state": ("state cut",),
    "two drivers at once": ("two drivers", "two drivers of an experiment"),
    "the disk is full or read-only": ("storage",),
    "the disk of an experiment is full, trials cannot save": ("storage of an experiment",),
    "placement groups are removed while they are set up": ("groups",),
    "bits flip, files are cut: states": ("files: states of searchers",),
    "bits flip, files are cut: records, settings, arrays": ("files: records and arrays",),
    "bits flip, files are cut: checkpoints": ("files: checkpoints",),
}


def table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the table in Markdown."""
    outcomes = [Outcome(**row) for entry in entries for row in entry["outcomes"]]
    lines = [
        "| fault | ours: injected | survived | results lost | Ray's: injected | survived | "
        "results lost | how Ray's end |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for title, cases in KINDS.items():
        of_kind = [outcome for outcome in outcomes if outcome.case in cases]
        own = [outcome for outcome in of_kind if outcome.is_ours]
        rays = [outcome for outcome in of_kind if not outcome.is_ours]
        if of_kind:
            ends = sorted({o.ended for o in rays if o.survived < o.injected})
            lines.append(f"| {title} | {_sums(own)} | {_sums(rays)} | {', '.join(ends) or '–'} |")
    return lines


def _sums(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "– | – | –"
    sums = zip(*((o.injected, o.survived, o.lost_results) for o in outcomes), strict=True)
    return " | ".join(f"{sum(column):,}" for column in sums)


if __name__ == "__main__":
    sys.stdout.write("\n".join(table(json.loads(RESULTS.read_text(encoding="utf-8")))) + "\n")
