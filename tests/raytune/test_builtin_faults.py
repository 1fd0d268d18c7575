"""Ray's HyperBand beside ours under the same injections.

Each test first shows what Ray's does, so that it says so when Ray has repaired it. The clock is
simulated (`tests.raytune.interrupted`); a run that would hang ends in `SimulationStuck`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.tune.error import TuneError

from tests.raytune.interrupted import Curve, Listed, R, Reached, Run, ours, rays, rays_for_bohb
from tune_ext.benchmark.simulation import SimulationStuck


def reached(scheduler: Any, values: list[Any], home: Path) -> dict[Any, int]:
    """The epochs of each configuration when all start at once."""
    seen = Reached()
    Run(Curve, Listed(values), scheduler, storage=home, workers=9, callbacks=[seen]).step()
    return seen.epochs


FINITE = [6, 7, 8, 0.5, 0.6, 0.7, 0.8]  # Ray's first bracket is the first three


def test_the_last_runner_fails_while_its_peer_waits(tmp_path: Path) -> None:
    values = [*FINITE[:4], "fails", *FINITE[4:]]
    with pytest.raises(SimulationStuck, match="1 PAUSED"):
        reached(rays(), values, tmp_path)
    assert reached(rays(), [0.1 if v == "fails" else v for v in values], tmp_path)[0.1] == R
    epochs = reached(ours(brackets=1), values, tmp_path)
    assert epochs["fails"] == 8
    assert sorted(epochs.values()) == [1] * 6 + [3, 8]


def test_nan_is_promoted_over_finite_losses(tmp_path: Path) -> None:
    values = [*FINITE, "nan"]
    epochs = reached(rays(), values, tmp_path)
    assert (epochs["nan"], epochs[0.6]) == (R, 3)
    assert reached(rays_for_bohb(), values, tmp_path)["nan"] == R
    epochs = reached(ours(), values, tmp_path)
    assert (epochs["nan"], epochs[0.5], epochs[0.6]) == (1, R, 3)


@pytest.mark.parametrize("scheduler", [rays, rays_for_bohb])
def test_none_ends_the_run(tmp_path: Path, scheduler: Callable[[], Any]) -> None:
    values = [*FINITE[:4], "none", *FINITE[4:]]
    with pytest.raises((TuneError, TypeError), match="NoneType"):
        reached(scheduler(), values, tmp_path)
    epochs = reached(ours(), values, tmp_path)
    assert (epochs["none"], epochs[0.5], epochs[0.6]) == (1, R, 3)


def interrupted(
    scheduler: Callable[[], Any], steps: int, home: Path, values: list[Any]
) -> dict[Any, int]:
    """The epochs of each configuration when the run is restored after so many steps."""
    seen = Reached()
    first = Run(Curve, Listed(values), scheduler(), storage=home, workers=3, callbacks=[seen])
    snapshot = first.step(steps)
    if snapshot is not None:
        options: dict[str, Any] = {"storage": home, "workers": 3, "callbacks": [seen]}
        Run(Curve, Listed([]), scheduler(), after=snapshot, **options).step()
    return seen.epochs


MANY = [float(7 * i % 20) for i in range(20)]


def test_a_restored_run_hangs(tmp_path: Path) -> None:
    """Trials that have ended come back as live ones in a new bracket (ray #39900)."""
    for steps in (60, 90):
        with pytest.raises(SimulationStuck, match="PAUSED"):
            interrupted(rays_for_bohb, steps, tmp_path, MANY)
        with pytest.raises(SimulationStuck, match="PAUSED"):
            interrupted(rays, steps, tmp_path, MANY)
    whole = interrupted(ours, 10**6, tmp_path, MANY)
    assert whole[0.0] == R
    assert interrupted(ours, 60, tmp_path, MANY) == whole
    assert interrupted(ours, 90, tmp_path, MANY) == whole


def test_a_restored_trial_passes_max_t(tmp_path: Path) -> None:
    most = {steps: 0 for steps in range(4, 40, 2)}
    for steps in most:
        most[steps] = max(interrupted(rays, steps, tmp_path, MANY[:3]).values())
        assert max(interrupted(ours, steps, tmp_path, MANY[:3]).values()) <= R
    assert max(most.values()) == R + 1
