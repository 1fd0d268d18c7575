"""Evaluations of a search whose budgets are seconds: written as they come, and what they say."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ray.tune import Callback

from tune_ext.benchmark.history import finite, plain
from tune_ext.errors import StateError

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from experiments.lines import append, read  # noqa: E402

TIME, METRIC = "train_seconds", "validation_error"


@dataclass
class Evaluations(Callback):
    """Writes a line whenever a trial has reached a budget, and tells it.

    Args:
        path: Of the lines; what it has already is not written again.
        budgets: In seconds.
        trials: How many there will be.
    """

    path: str
    budgets: tuple[float, ...]
    trials: int
    _reached: dict[str, float] | None = field(default=None, repr=False)
    _best: dict[float, float] = field(default_factory=dict, repr=False)
    _begun: float = field(default_factory=time.time)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One budget more, perhaps."""
        reached = self._known()
        spent = finite(result.get(TIME)) or 0.0
        due = [
            b for b in self.budgets if reached.get(trial.trial_id, 0.0) < b <= spent * (1 + 1e-9)
        ]
        if not due and result.get("diverged"):  # it never will be
            due = [b for b in self.budgets if b > reached.get(trial.trial_id, 0.0)][:1]
        if not due:
            return
        reached[trial.trial_id] = due[-1]
        told = {
            TIME: spent,
            "validation_error": finite(result.get(METRIC)),
            "validation_loss": finite(result.get("validation_loss")),
            "epoch": result.get("epoch"),
            "parameters": result.get("parameters"),
            "config": {k: plain(v) for k, v in trial.config.items()},
            "time": round(time.time(), 1),
        }
        for budget in due:  # several, where a single batch takes longer than a budget
            record = {"trial": trial.trial_id, "budget": budget, **told}
            append(Path(self.path), record)
            self._tell(record, trials)

    def _known(self) -> dict[str, float]:
        """Trial → the largest budget that is written."""
        if self._reached is None:
            self._reached = {}
            for record in read(Path(self.path)):
                self._note(record)
                budget = max(record["budget"], self._reached.get(record["trial"], 0.0))
                self._reached[record["trial"]] = budget
        return self._reached

    def _note(self, record: Mapping[str, Any]) -> None:
        if (error := record["validation_error"]) is not None:
            best = self._best.get(record["budget"], math.inf)
            self._best[record["budget"]] = min(best, error)

    def _tell(self, record: Mapping[str, Any], trials: Sequence[Any]) -> None:
        self._note(record)
        error = record["validation_error"]
        best = ", ".join(f"{b:g} s {100 * e:.2f} %" for b, e in sorted(self._best.items()))
        running = sum(t.status == "RUNNING" for t in trials)
        print(
            f"[{(time.time() - self._begun) / 3600:6.2f} h] {record['trial']} after "
            f"{record['budget']:g} s: {'diverged' if error is None else f'{100 * error:.2f} %'}"
            f" | {len(trials)} of {self.trials} begun, {running} run | best: {best or 'none'}",
            flush=True,
        )


def best_evaluation(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The lowest error at the largest budget that has any.

    Raises:
        StateError: No evaluation has a finite error.
    """
    finished = [r for r in records if r["validation_error"] is not None]
    if not finished:
        raise StateError("no trial has reached a budget with a finite error")
    return min(finished, key=lambda r: (-r["budget"], r["validation_error"]))


def table(records: Sequence[Mapping[str, Any]], test_error: float | None) -> str:
    """Evaluations by budget, and the best five at the largest one."""
    lines = ["budget, s   evaluations   diverged   best error, %   median"]
    for budget in sorted({r["budget"] for r in records}):
        here = [r["validation_error"] for r in records if r["budget"] == budget]
        known = [e for e in here if e is not None]
        told = f"{100 * min(known):13.2f}   {100 * median(known):6.2f}" if known else ""
        lines.append(f"{budget:9g}   {len(here):11d}   {len(here) - len(known):8d}   {told}")
    best = best_evaluation(records)
    largest = [r for r in records if r["budget"] == best["budget"]]
    known = [r for r in largest if r["validation_error"] is not None]
    lines.append(f"\nThe best after {best['budget']:g} s, validation error:")
    for record in sorted(known, key=lambda r: r["validation_error"])[:5]:
        config = ", ".join(f"{k} {_short(v)}" for k, v in record["config"].items())
        lines.append(f"{100 * record['validation_error']:6.2f} %  {config}")
    if test_error is not None:
        lines.append(f"Test error of the first: {100 * test_error:.2f} %")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
