"""Studies and records made by hand, for tests."""

import time
from pathlib import Path

from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.study import Study, TaskSpec

FAKE = "tests.benchmark.fake:FakeTask"


def make_study(**changes):
    values = {
        "title": "a study",
        "tasks": (TaskSpec(FAKE, {"epochs": 4}),),
        "methods": ("default", "random"),
        "seeds": (0, 1),
        "budget": 10,
        "final_seeds": 2,
    }
    return Study(**{**values, **changes})


def make_record(method="random", seed=0, test_errors=(0.1, 0.3), **changes):
    values = {
        "task": {"name": "fake", "options": {"epochs": 4}},
        "method": method,
        "seed": seed,
        "budget": 10,
        "epochs_used": 10,
        "recommendation": {"config": {"lr": 0.01}, "source": "validation"},
        "tests": [
            {"seed": s, "test_error": e, "validation_error": e} for s, e in enumerate(test_errors)
        ],
        "failures": [],
        "trials": [],
        "history": {},
        "anytime": [(2, 0.5), (5, 0.25)],
        "search_seconds": 2.0,
        "evaluation_seconds": 1.0,
    }
    return CellRecord(**{**values, **changes})


def is_gone(pid, patience=200.0):
    """Whether a process ends (or is but a zombie) within so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
