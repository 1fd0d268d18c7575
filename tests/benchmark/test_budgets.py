"""Every method gets the same budget, in the study's unit, to the epoch."""

import threading
import time
from typing import Any

import pytest

from tests.benchmark.test_simulation import Listed, Lookup, Seen
from tune_ext.benchmark._permits import Permits
from tune_ext.benchmark.simulation import simulate
from tune_ext.benchmark.tune_parts import BudgetStopper


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_seconds_are_used_to_the_last_and_what_is_cut_off_is_paid_for(tmp_path, workers):
    # Epochs of 3 s on every worker: 20 s are over in the middle of somebody's epoch.
    seen = Seen()
    configs = [{"level": k / 9, "seconds": 3.0, "length": 4} for k in range(9)]
    run = simulate(
        Lookup,
        search_alg=Listed(configs),
        callbacks=[seen],
        workers=workers,
        seconds=20.0,
        storage=tmp_path,
    )
    assert run.busy == pytest.approx(20.0)
    assert run.clock == pytest.approx(20.0 / workers)
    assert run.steps == len(seen.rows) == workers * int(20 // (3 * workers))


def test_seconds_that_are_used_exactly_leave_nothing_to_cut_off(tmp_path):
    run = simulate(Lookup, search_alg=Listed([{"length": 9}]), seconds=4.0, storage=tmp_path)
    assert (run.clock, run.busy, run.steps) == (4.0, 4.0, 4)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_an_epoch_is_paid_for_when_it_begins(tmp_path, workers):
    configs = [{"level": k / 40, "seconds": 1.0 + k % 3, "length": 3} for k in range(40)]
    run = simulate(Lookup, search_alg=Listed(configs), workers=workers, steps=17, storage=tmp_path)
    # None is trained for nothing: the seconds are those of the steps that were reported.
    assert run.steps == run.begun == 17
    assert run.busy == pytest.approx(round(run.busy))
    assert run.busy < 17 * 3


def test_steps_that_crash_are_not_counted(tmp_path):
    configs: list[dict[str, Any]] = [{"broken": True}, {"length": 3}, {"broken": True}]
    run = simulate(Lookup, search_alg=Listed(configs), steps=3, storage=tmp_path)
    assert (run.steps, run.begun) == (3, 3)


def test_permits_are_as_many_as_there_are_epochs(tmp_path):
    one, other = (Permits(tmp_path / "permits", 3) for _ in range(2))
    one.reset()
    assert [p.take() for p in (one, other, one, other)] == [True, True, True, False]
    one.give_back()
    assert other.take()
    assert not one.take()
    one.reset()
    assert other.take()


def test_who_has_no_permit_waits_until_one_is_back_or_the_search_is_over(tmp_path):
    permits, journal = Permits(tmp_path / "permits", 1, poll=0.001), tmp_path / "journal"
    permits.reset()
    assert permits.wait(journal)
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(permits.wait(journal))) for _ in range(2)]
    for thread in threads:
        thread.start()
    permits.give_back()  # an epoch crashed: one of the two trains it
    while not got:
        time.sleep(0.001)
    assert got == [True]
    permits.close()
    for thread in threads:
        thread.join()
    assert got == [True, False]


def test_nobody_waits_for_a_result_that_was_never_asked_for(tmp_path):
    permits, journal = Permits(tmp_path / "p", 1, poll=0.001, grace=0.01), tmp_path / "journal"
    permits.reset()
    assert permits.take()
    journal.write_text("a 1\n")  # trained, while a scheduler stopped its trial
    assert not permits.wait(journal)


def test_the_stopper_tells_the_end_and_whether_a_result_had_no_room():
    def stopper(told: list[bool]) -> BudgetStopper:
        return BudgetStopper(
            5.0, None, lambda t, r: None, cost=lambda r: r["seconds"], on_end=told.append
        )

    exact: list[bool] = []
    stop = stopper(exact)
    assert [stop("a", {"seconds": s}) for s in (2.0, 3.0, 1.0)] == [False, True, True]
    assert exact == [False]
    over: list[bool] = []
    stop = stopper(over)
    assert [stop("a", {"seconds": s}) for s in (2.0, 4.0, 1.0)] == [False, True, True]
    assert over == [True]
    nothing = BudgetStopper(5.0, None, lambda t, r: None)
    assert nothing("a", {"over": True})
    assert nothing.stop_all()
