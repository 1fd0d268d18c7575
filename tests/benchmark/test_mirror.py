"""A study's records on a storage: what is sent, and what is found there at any moment."""

from __future__ import annotations

import math

import pytest

from tune_ext.benchmark._storage import Mirror, Storage
from tune_ext.errors import StateError

LINE = b'{"record": %03d}\n'


class Counted(Storage):
    """Counts what is written of the records."""

    sent = 0

    def write(self, name, data):
        super().write(name, data)
        self.sent += len(data)


@pytest.fixture
def storage(tmp_path):
    return Counted(tmp_path / "bucket")


def mirror(tmp_path, storage, name="here"):
    made = Mirror(tmp_path / name, storage)
    made.fetch()
    return made


def add(tmp_path, number, name="here"):
    with (tmp_path / name / "records.jsonl").open("ab") as file:
        file.write(LINE % number)


def test_what_is_sent_does_not_grow_with_the_square_of_the_records(tmp_path, storage):
    kept, number = mirror(tmp_path, storage), 200
    for i in range(number):
        add(tmp_path, i)
        kept.put(now=True)
        most = math.floor(math.log2(i + 1)) + 1
        assert len(storage.names()) <= most
    size = (tmp_path / "here" / "records.jsonl").stat().st_size
    assert storage.sent <= size * (math.log2(number) + 1)  # all of them each time: 100 × size
    kept.finish()
    assert storage.names() == ["records.jsonl"]
    assert storage.read("records.jsonl") == (tmp_path / "here" / "records.jsonl").read_bytes()


@pytest.mark.parametrize("fails", [False, True], ids=["as it should", "parts stay"])
def test_at_any_moment_another_machine_finds_everything(tmp_path, storage, monkeypatch, fails):
    def refuse(self, name=""):
        raise OSError("not allowed")

    if fails:
        monkeypatch.setattr(Storage, "remove", refuse)
    kept = mirror(tmp_path, storage)
    for i in range(21):
        add(tmp_path, i)
        kept.put(now=True)
        mirror(tmp_path, storage, f"there{i}")
        there = tmp_path / f"there{i}" / "records.jsonl"
        assert there.read_bytes() == (tmp_path / "here" / "records.jsonl").read_bytes()
    # and goes on from there
    kept = mirror(tmp_path, storage, "there20")
    for i in range(21, 30):
        add(tmp_path, i, "there20")
        kept.put(now=True)
    mirror(tmp_path, storage, "last")
    assert (tmp_path / "last" / "records.jsonl").read_bytes().count(b"\n") == 30


def test_a_sending_that_fails_or_seems_to_is_made_up_for(tmp_path, storage, monkeypatch):
    kept, write = mirror(tmp_path, storage), Counted.write

    def failing(self, name, data):
        if i % 3 == 1:
            write(self, name, data)
        raise OSError("timed out")

    for i in range(24):
        add(tmp_path, i)
        with monkeypatch.context() as patch:
            if i % 3:
                patch.setattr(Counted, "write", failing)
            kept.put(now=True)
    mirror(tmp_path, storage, "there")
    add(tmp_path, 24)
    kept.put(now=True)
    mirror(tmp_path, storage, "later")
    assert (tmp_path / "later" / "records.jsonl").read_bytes().count(b"\n") == 25


def test_half_a_line_is_not_sent_and_what_was_repaired_is_sent_anew(tmp_path, storage):
    kept, path = mirror(tmp_path, storage), tmp_path / "here" / "records.jsonl"
    for i in range(5):
        add(tmp_path, i)
        kept.put(now=True)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"rec')
    kept.put(now=True)
    mirror(tmp_path, storage, "there")
    assert (tmp_path / "there" / "records.jsonl").read_bytes() == whole
    repaired = whole.replace(b"004", b"444") + LINE % 5
    path.write_bytes(repaired)
    kept.put(now=True)
    mirror(tmp_path, storage, "later")
    assert (tmp_path / "later" / "records.jsonl").read_bytes() == repaired


def test_another_runs_parts_are_not_ours(tmp_path, storage):
    one = mirror(tmp_path, storage)
    for i in range(2):
        add(tmp_path, i)
        one.put(now=True)
    two = mirror(tmp_path, storage, "two")
    add(tmp_path, 7, "two")
    two.put(now=True)
    add(tmp_path, 2)
    one.put(now=True)
    with pytest.raises(StateError, match="another run"):
        one.finish()
    (tmp_path / "bucket" / "records.jsonl.from-000000000034.0a1b").write_bytes(b"of a write")
    mirror(tmp_path, storage, "there")
    assert (tmp_path / "there" / "records.jsonl").read_bytes().endswith(LINE % 7)
    storage.write("records.jsonl.from-000000009999", LINE % 8)
    with pytest.raises(StateError, match="different ways"):
        mirror(tmp_path, storage, "more")
