"""Several nodes: the same answers as on one, and no GPU given twice.

The long part, with every searcher and scheduler, is experiments/cluster/nodes.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune_ext.autohyper import AutoHyper, Parameter

FOLDER = Path(__file__).parents[1] / "experiments" / "cluster"


def serial_answer():
    """What autoHyper finds one probe at a time, without Ray."""
    search = AutoHyper([Parameter.learning_rate(lower=1e-5, upper=1.0)])
    while not search.finished:
        for probe in search.ask():
            search.tell(probe.id, 1 / (1 + probe.values["lr"] / 1e-3))
    return search.best


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_give_the_answers_of_one_and_share_their_gpus():
    """In a process of its own: that of the tests may have another Ray."""
    root = str(FOLDER.parents[1])
    ran = subprocess.run(
        [sys.executable, str(FOLDER / "two_nodes.py")],
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])

    one, two, auto = found["one node"], found["two nodes"], found["autoHyper"]
    assert one["trials on nodes"] == [9]
    assert len(two["trials on nodes"]) == 2
    assert one["sequence"] == two["sequence"]
    assert len(one["sequence"]) == 9
    assert auto["answer"] == serial_answer()
    for run in (one, two, auto):
        assert run["failed"] == 0
        assert 0.5 <= run["most of a device"] <= 1
    assert (one["most on a device"], two["most on a device"]) == (2, 1)
