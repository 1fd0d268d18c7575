"""Two drivers in one experiment's directory: the second is told so."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from tune_ext.errors import StateError
from tune_ext.raytune import _driver
from tune_ext.raytune._driver import FILE_NAME, DriverMark


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    """Of a trial."""
    return SimpleNamespace(
        experiment_fs_path=str(tmp_path), storage_filesystem=LocalFileSystem(), _timestamp="t"
    )


def change(storage: Any, **entries: Any) -> None:
    """As if another process had written it."""
    path = Path(storage.experiment_fs_path, FILE_NAME)
    told = json.loads(path.read_text())
    told.pop("check", None)
    told["process"].update(entries.pop("process", {}))
    path.write_text(json.dumps({**told, **entries}))


def test_a_second_driver_is_told_before_it_trains(storage: Any) -> None:
    DriverMark().hold(SimpleNamespace(storage=storage))
    change(storage, process={"host": "elsewhere", "pid": 7})
    waits = iter(range(9))
    second = DriverMark(sleep=lambda s: change(storage, count=1 + next(waits)))
    with pytest.raises(StateError, match=r"process 7 on elsewhere.*Tuner\.restore goes on"):
        second.hold(SimpleNamespace(storage=storage))


def never(seconds: float) -> None:
    raise AssertionError("it waits")


class Clock:
    """Time passes only in sleep."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_driver_that_is_gone_or_has_ended_holds_nothing(storage: Any) -> None:
    trial = SimpleNamespace(storage=storage)
    first = DriverMark(sleep=never)
    first.hold(trial)
    first.hold(trial)
    DriverMark(sleep=never).hold(trial)  # of this process: one experiment after the other
    change(storage, process={"started": -1})
    DriverMark(sleep=never).hold(trial)
    change(storage, process={"host": "elsewhere"}, time=time.time() - 100_000)
    DriverMark(sleep=never).hold(trial)
    change(storage, process={"host": "elsewhere"}, time="yesterday")
    DriverMark(sleep=never).hold(trial)
    change(storage, process={"host": "elsewhere"})
    clock = Clock()
    DriverMark(clock=clock, sleep=clock.sleep).hold(trial)  # it does not renew it
    assert clock.now == 15


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_wrong_clock_elsewhere_lets_no_second_driver_in(storage: Any, hours: int) -> None:
    """What the other machine writes as the time says nothing; that the file changes does."""
    DriverMark().hold(SimpleNamespace(storage=storage))
    said = {"process": {"host": "elsewhere"}, "time": time.time() + 3600 * hours}
    change(storage, **said)
    waits = iter(range(9))
    second = DriverMark(sleep=lambda s: change(storage, **said, count=1 + next(waits)))
    with pytest.raises(StateError, match="on elsewhere"):
        second.hold(SimpleNamespace(storage=storage))


@pytest.mark.parametrize(("seconds", "waited"), [(50, 15), (100, 0)])
def test_a_process_here_that_has_ended_its_experiment_is_not_waited_for(
    storage: Any, monkeypatch: pytest.MonkeyPatch, seconds: float, waited: float
) -> None:
    DriverMark().hold(SimpleNamespace(storage=storage))
    change(storage, process={"pid": 1}, time=time.time() - seconds)
    monkeypatch.setattr(_driver, "is_alive", lambda process: True)
    clock = Clock()
    DriverMark(clock=clock, sleep=clock.sleep).hold(SimpleNamespace(storage=storage))
    assert clock.now == waited


def test_a_machine_that_gets_another_name_is_the_same(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    mark = DriverMark(clock=clock)
    mark.hold(SimpleNamespace(storage=storage))
    clock.now = 6
    monkeypatch.setattr(socket, "gethostname", lambda: "in-another-network")
    mark.renew()


def test_a_driver_that_was_taken_over_ends(storage: Any) -> None:
    clock = Clock()
    first = DriverMark(clock=clock)
    first.renew()  # it drives nothing yet
    first.hold(SimpleNamespace(storage=storage))
    change(storage, process={"pid": 1, "started": 1})
    first.renew()  # not yet
    clock.now = 6
    with pytest.raises(StateError, match="another driver"):
        first.renew()


def test_what_ray_copies_back_at_a_saving_is_not_the_mark_of_the_driver_before(
    storage: Any, tmp_path: Path
) -> None:
    """Ray restores the JSON files of an experiment into a directory of its own first."""
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / FILE_NAME).write_text("of the driver before")
    (staging / "experiment_state.json").write_text("Ray's")
    storage.experiment_driver_staging_path = str(staging)
    DriverMark().hold(SimpleNamespace(storage=storage))
    assert [path.name for path in staging.iterdir()] == ["experiment_state.json"]
