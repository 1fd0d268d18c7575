"""A disk that is full for a while: the study waits and loses nothing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.benchmark.examples import make_record, make_study
from tests.benchmark.test_runner import WORKER, Silent, run
from tune_ext.benchmark import _saving, runner
from tune_ext.benchmark._saving import Saver
from tune_ext.benchmark._storage import Mirror, Storage
from tune_ext.benchmark.processes import WorkerProcess
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.runner import run_study
from tune_ext.errors import StateError


class Full:
    """A disk that takes so many bytes; what is written stops there."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = bytes(data)[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture
def store(tmp_path):
    made = RecordStore(tmp_path / "out")
    made.open(make_study())
    return made


def test_half_a_record_is_taken_back(store):
    store.append(make_record(seed=0))
    whole = store.path.read_bytes()
    for room in (0, 1, 200):
        disk, store._file = store._file, Full(store._file, room)
        with pytest.raises(OSError, match="No space"):
            store.append(make_record(seed=1))
        store._file = disk
        assert store.path.read_bytes() == whole
    store.append(make_record(seed=1))
    assert [r.seed for r in store.load()] == [0, 1]


def test_what_cannot_be_taken_back_is_cut_off_before_the_next_record(store):
    store.append(make_record(seed=0))
    with store.path.open("ab") as file:
        file.write(b'{"half a')
    store.append(make_record(seed=1))
    assert [r.seed for r in store.load()] == [0, 1]


@pytest.fixture
def full(monkeypatch):
    """A switch; while it is on, no record can be written."""
    state, append = {"on": True}, RecordStore.append

    def maybe(self, record):
        if state["on"] and self.directory.name == "out":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, record)

    monkeypatch.setattr(RecordStore, "append", maybe)
    return state


def test_records_are_held_until_there_is_room(store, full):
    now = [0.0]
    saver = Saver(store, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    assert saver.take(make_record(seed=0))
    assert saver.write() == []
    assert saver.is_waiting
    assert saver.take(make_record(seed=1))
    full["on"] = False
    assert saver.write() == []  # not at once again
    saver.wait()
    assert [r.seed for r in saver.write()] == [0, 1]
    assert not saver.is_waiting
    assert [r.seed for r in store.load()] == [0, 1]


def test_in_the_end_it_gives_up_and_says_where_the_records_are(store, full, caplog):
    now = [0.0]
    saver = Saver(
        store, patience=5, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s)
    )
    saver.take(make_record())
    saver.write()
    for _ in range(6):
        saver.wait()
    with pytest.raises(StateError, match="make room, and the same command goes on"):
        saver.wait()
    saver.close()
    rescued = Path(caplog.messages[-1].partition("cat ")[2].partition(" >> ")[0])
    with store.path.open("ab") as file:
        file.write(rescued.read_bytes())
    shutil.rmtree(rescued.parent)
    assert [r.key for r in store.load()] == [make_record().key]


def test_a_cell_that_failed_for_want_of_room_runs_again_but_not_for_ever(store):
    saver = Saver(store)
    failed = make_record(failures=["search, after 0 epochs: [Errno 28] No space left on device"])
    assert [saver.take(failed) for _ in range(4)] == [False] * 3 + [True]
    assert saver.take(make_record(failures=["no progress for 3 s"]))


def test_no_cell_begins_while_nothing_can_be_written(tmp_path, full, monkeypatch):
    """Of four cells two are running when the disk is full; they are held, and all are kept."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "searches.txt"))
    monkeypatch.setenv("FAKE_CHILD", str(tmp_path / "child.txt"))
    waited = []

    def wait(self):
        waited.append(len(self._held))
        full["on"] = len(waited) < 3
        self._next = 0.0

    monkeypatch.setattr(_saving.Saver, "wait", wait)
    records = run(tmp_path, Silent(), jobs=2, methods=("random",), seeds=(0, 1, 2, 3))
    assert waited == [2, 2, 2]
    assert sorted(r.seed for r in records) == [0, 1, 2, 3]
    assert len(RecordStore(tmp_path / "out").load()) == 4


class Files(WorkerProcess):
    """Workers whose files have no room, whenever `full` says so of their number."""

    count = 0

    def __init__(self, *arguments):
        type(self).count += 1
        if self.full(self.count):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().__init__(*arguments)


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Takes when there is no room for a worker, by its number."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "searches.txt"))
    monkeypatch.setattr(_saving, "_EVERY", 0.05)

    def make(full):
        made = type("Some", (Files,), {"full": staticmethod(full)})
        monkeypatch.setattr(runner, "WorkerProcess", made)

    return make


def test_a_cell_runs_again_whose_new_worker_had_no_room(tmp_path, workers):
    """The search fails and takes its worker with it; the evaluation needs another one."""
    workers(lambda number: number == 3)
    (record,) = run(tmp_path, Silent(), methods=("bohb",), seeds=(0,))
    assert record.failures[0] == "search, after 0 epochs: ValueError: no"
    assert record.tests
    assert len((tmp_path / "searches.txt").read_text().splitlines()) == 4


def test_a_study_ends_where_no_worker_can_ever_begin(tmp_path, workers, monkeypatch):
    """Records could be written, so that every second it seems to go on."""
    monkeypatch.setattr(_saving, "PATIENCE", 0.3)
    workers(lambda number: number > 1 if number < 50 else pytest.fail("for ever"))
    with pytest.raises(StateError, match="nothing could be written for"):
        run(tmp_path, Silent(), methods=("bohb",), seeds=(0, 1))


def test_a_study_that_waits_keeps_its_storage(tmp_path, full, workers, monkeypatch):
    workers(lambda number: False)
    renewed = []
    mirror = Mirror(tmp_path / "out", Storage(tmp_path / "bucket"))
    monkeypatch.setattr(mirror, "renew", lambda: renewed.append(full["on"]))

    def wait(self):
        renewed.clear()
        full["on"], self._next = False, 0.0

    monkeypatch.setattr(_saving.Saver, "wait", wait)
    study, store = make_study(methods=("random",), seeds=(0,)), RecordStore(tmp_path / "out")
    assert len(run_study(study, store, Silent(), mirror=mirror, worker=WORKER)) == 1
    assert renewed
