"""Faults of the cells of a comparison: a search that hangs, dies, raises, or sees only NaN."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

from experiments.chaos.outcome import Outcome, case
from tests.benchmark.examples import make_study
from tune_ext.benchmark.cell_run import NO_RESULT
from tune_ext.benchmark.methods import missing
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.runner import run_study

STALL = 5.0
EXPECTED: dict[str, tuple[str, float]] = {
    "random": ("", 0.2),  # nothing happens to it
    "asha": (f"no progress for {STALL:g} s", 0.1),  # hangs after an epoch
    "hyperband": ("ended with code 3", 0.1),  # its process dies after an epoch
    "bohb": (NO_RESULT, 1e-3),  # raises
    "one-epoch": (NO_RESULT, 1e-3),  # only NaN
}
"""What a worker that misbehaves by the method's name does (`tests/benchmark/fake_worker.py`): the
failure in the record, and the learning rate that is recommended: of the best epoch before, or the
default where there is none."""


class Silent:
    """An observer that says nothing."""

    def begin(self, *told: Any) -> None:
        """Nothing."""

    unavailable = tick = finish_cell = begin


@case(
    "cells",
    "searches hang, die, raise and see only NaN, beside one in which all is well",
    short=True,
)
def cells(directory: Path, seed: int) -> list[Outcome]:
    """Each cell has its record, its reason and an evaluation; a second start runs none again."""
    os.environ["FAKE_LOG"] = str(directory / "searches.txt")
    os.environ["FAKE_CHILD"] = str(directory / "child.txt")
    methods = tuple(method for method in EXPECTED if not missing(method))
    study = make_study(methods=methods, seeds=(seed,), stall_seconds=STALL)
    runs = {"jobs": 2, "worker": "tests.benchmark.fake_worker"}
    records: list[CellRecord] = []
    for _ in range(2):
        with closing(RecordStore(directory / "out")) as store:
            records = run_study(study, store, Silent(), **runs)
    begun = (directory / "searches.txt").read_text().splitlines()
    by_method = {record.method: record for record in records}
    well = [method for method in methods if _is_well(method, by_method.get(method))]
    random = by_method.get("random")
    return [
        Outcome(
            "cells",
            "tune-ext compare",
            injected=len(methods) - 1,
            survived=sum(method != "random" for method in well),
            lost_results=sum(method not in by_method for method in methods),
            # One that fails before its first epoch is tried once more.
            repeated_trials=sum(begun.count(f"{m} {seed}") > 1 + (m == "bohb") for m in methods),
            same_answer=random is not None and "random" in well,
            note="what failed is recorded with its reason, and its best epoch evaluated",
        )
    ]


def _is_well(method: str, record: CellRecord | None) -> bool:
    if record is None or record.test_error is None:
        return False
    failure, rate = EXPECTED[method]
    said = " ".join(record.failures)
    right = abs(record.recommendation["config"]["lr"] - rate) < 1e-12
    return right and (failure in said if failure else not said)
