"""One run at a time on a storage."""

from __future__ import annotations

import json

import pytest

from tune_ext._process import is_alive, this_process
from tune_ext.benchmark._lease import Lease
from tune_ext.benchmark._storage import Mirror, Storage
from tune_ext.errors import StateError


class Clock:
    """Time passes only in sleep."""

    def __init__(self):
        self.now, self.asleep = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for act in self.asleep:
            act()


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "bucket")


@pytest.fixture
def clock():
    return Clock()


def lease(storage, clock):
    return Lease(storage, clock=clock, sleep=clock.sleep)


def elsewhere(storage, **process):
    """As if the one who holds it were another process."""
    told = json.loads(storage.read("running.json"))
    told["process"] = {**told["process"], **process}
    storage.write("running.json", json.dumps(told).encode())


def test_one_at_a_time(storage, clock):
    first, second = lease(storage, clock), lease(storage, clock)
    first.take()
    with pytest.raises(StateError, match=r"another run \(process \d+ on .*\) keeps"):
        second.take()
    second.release()  # it does not hold it
    first.renew()
    first.release()
    assert storage.names() == []
    second.take()


def test_a_process_that_is_gone_holds_nothing(storage, clock):
    lease(storage, clock).take()
    elsewhere(storage, started=-1)  # another process has its number now
    lease(storage, clock).take()
    assert clock.now == 0


@pytest.mark.parametrize("renews", [True, False])
def test_a_run_on_another_machine_is_watched(storage, clock, renews):
    lease(storage, clock).take()
    elsewhere(storage, host="elsewhere")
    if renews:
        clock.asleep.append(lambda: clock.now > 9 and elsewhere(storage, count=int(clock.now)))
        with pytest.raises(StateError, match="on elsewhere"):
            lease(storage, clock).take()
        assert clock.now == 10
    else:
        lease(storage, clock).take()
        assert clock.now == 45


def test_a_run_on_another_machine_that_ends_is_not_waited_for_any_longer(storage, clock):
    lease(storage, clock).take()
    elsewhere(storage, host="elsewhere")
    clock.asleep.append(lambda: storage.remove("running.json"))
    lease(storage, clock).take()
    assert clock.now == 2  # a file that is missing once may be being replaced


def test_a_file_that_is_missing_for_a_moment_is_still_held(storage, clock):
    lease(storage, clock).take()
    elsewhere(storage, host="elsewhere")
    told = storage.read("running.json")

    def replace():
        if clock.now == 1:
            storage.remove("running.json")
        else:
            storage.write("running.json", told.replace(b'"count": 1', b'"count": 2'))

    clock.asleep.append(replace)
    with pytest.raises(StateError, match="on elsewhere"):
        lease(storage, clock).take()


def test_who_is_taken_over_is_told(storage, clock):
    first, second = lease(storage, clock), lease(storage, clock)
    first.take()
    storage.remove("running.json")
    second.take()
    first.renew()  # not yet
    clock.now = 11
    with pytest.raises(StateError, match="What this one has recorded is whole"):
        first.renew()
    first.release()
    second.renew()


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"by": "me", "process": 3}'])
def test_a_damaged_file_stops_nobody(storage, clock, text):
    storage.write("running.json", text)
    storage.write("records.jsonl", b"")
    lease(storage, clock).take()


def test_a_mirror_is_held_by_one_run(tmp_path, storage):
    one, two = (Mirror(tmp_path / name, storage) for name in ("one", "two"))
    with one.held(), one.held():  # the command line and the study
        with pytest.raises(StateError, match="another run"), two.held():
            pass
        one.renew()
    with two.held():
        assert storage.names() == ["running.json"]
    assert storage.names() == []


def test_who_was_taken_over_sends_nothing_any_more(tmp_path, storage):
    """Records of a machine that had slept would be strange to the run that took over."""
    one, two = (Mirror(tmp_path / name, storage) for name in ("one", "two"))
    with one.held():
        one.fetch()
        (tmp_path / "one" / "records.jsonl").write_bytes(b"{}\n")
        storage.remove("running.json")
        with two.held():
            one._lease._mark._next = 0.0
            with pytest.raises(StateError, match="another run"):
                one.renew()
            one.put(now=True)
            assert storage.names() == ["running.json"]


def test_processes_are_known_by_more_than_their_number():
    own = this_process()
    assert is_alive(own)
    assert is_alive({**own, "host": "elsewhere"}) is None
    assert is_alive({**own, "started": 1}) is False
    assert is_alive({**own, "pid": 2**22 + 1}) is False
    assert is_alive({}) is None
