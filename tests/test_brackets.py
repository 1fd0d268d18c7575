"""Hyperband's brackets: the published table, and every way in which trials may come and go."""

from __future__ import annotations

import json
import math
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_ext.brackets import Brackets, Decision, Rung, bracket_table
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError


def _pairs(bracket: tuple[Rung, ...]) -> list[tuple[int, float]]:
    return [(rung.size, rung.budget) for rung in bracket]


def test_the_published_table():
    table = bracket_table(81, 3, rounding="published")
    assert [_pairs(bracket) for bracket in table] == [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(27, 3), (9, 9), (3, 27), (1, 81)],
        [(9, 9), (3, 27), (1, 81)],
        [(6, 27), (2, 81)],
        [(5, 81)],
    ]


def test_the_formula_starts_more():
    assert [bracket[0].size for bracket in bracket_table(81, 3)] == [81, 34, 15, 8, 5]
    assert _pairs(bracket_table(81, 3)[1]) == [(34, 3), (11, 9), (3, 27), (1, 81)]


def test_budgets_need_not_be_powers():
    table = bracket_table(100, 3)
    assert [rung.budget for rung in table[0]] == pytest.approx(
        [100 / 81, 100 / 27, 100 / 9, 100 / 3, 100]
    )
    whole = bracket_table(100, 3, whole=True)
    assert [rung.budget for rung in whole[0]] == [1, 3, 11, 33, 100]


def test_seconds():
    table = bracket_table(10800, 3, min_budget=400)
    assert [rung.budget for rung in table[0]] == pytest.approx([400, 1200, 3600, 10800])
    assert len(table) == 4


def test_whole_budgets_that_coincide_are_one_rung():
    table = bracket_table(3, 1.5, whole=True)
    for bracket in table:
        budgets = [rung.budget for rung in bracket]
        assert budgets == sorted(set(budgets))
        assert budgets[-1] == 3


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), InvalidValueError, "max_budget"),
        ((math.inf,), InvalidValueError, "max_budget"),
        (("9",), InvalidTypeError, "max_budget"),
        ((9, 1), InvalidValueError, "reduction_factor"),
        ((9, math.nan), InvalidValueError, "reduction_factor"),
    ],
)
def test_impossible_tables(arguments: tuple[Any, ...], error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        bracket_table(*arguments)


def test_a_least_budget_above_the_most():
    with pytest.raises(InvalidValueError, match="min_budget 10 is above max_budget 9"):
        bracket_table(9, 3, min_budget=10)


def test_a_table_must_have_rungs():
    with pytest.raises(InvalidValueError, match="table"):
        Brackets(())
    with pytest.raises(InvalidTypeError, match="bracket_table"):
        Brackets((((9, 1),),))  # type: ignore[arg-type]


def _run_bracket(losses: dict[str, float | None], eta: int = 3) -> dict[str, float]:
    """Serve one bracket of nine trials; what each got."""
    play = Brackets(bracket_table(9, eta))
    got: dict[str, float] = {}

    def train(trial: str) -> None:
        decision = Decision.CONTINUE
        while decision is Decision.CONTINUE:
            got[trial] = play.budget(trial)
            decision = play.report(trial, got[trial], losses[trial])

    for trial in losses:
        play.add(trial)
        train(trial)
    while (waiting := play.promote()) is not None:
        train(waiting)
    assert play.waiting() == play.dismiss()
    return got


def test_the_best_third_goes_on():
    got = _run_bracket({str(i): float(i) for i in range(9)})
    assert got == {"0": 9, "1": 3, "2": 3} | {str(i): 1 for i in range(3, 9)}


def test_ties_go_to_the_trial_that_came_first():
    got = _run_bracket(dict.fromkeys("abcdefghi", 1.0))
    assert [trial for trial, budget in got.items() if budget > 1] == ["a", "b", "c"]


def test_what_is_not_finite_is_never_promoted():
    bad = [math.nan, math.inf, None, -math.inf]
    got = _run_bracket({str(i): (bad[i] if i < 4 else float(i)) for i in range(9)})
    assert [t for t, b in got.items() if b > 1] == ["4", "5", "6"]
    assert _run_bracket(dict.fromkeys("abcdefghi", math.nan)) == dict.fromkeys("abcdefghi", 1.0)


def test_the_last_to_report_goes_on_without_a_pause_if_it_won():
    play = Brackets(bracket_table(9, 3))
    for trial in "abcdefghi":
        play.add(trial)
    for trial in "abcdefgh":
        assert play.report(trial, 1, 1.0) is Decision.PAUSE
    assert play.report("i", 1, 0.0) is Decision.CONTINUE
    assert play.budget("i") == 3
    assert [play.promote(), play.promote(), play.promote()] == ["a", "b", None]


def test_the_last_runner_fails_while_its_peers_are_paused():
    play = Brackets(bracket_table(9, 3))
    for trial in "abcdefghi":
        play.add(trial)
    for trial in "abcdefgh":
        play.report(trial, 1, float(ord(trial)))
    assert play.promote() is None
    play.fail("i")
    assert [play.promote() for _ in range(4)] == ["a", "b", "c", None]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failure_is_one_at_the_rung_that_the_trial_trained_for(asynchronous: bool):
    """Nobody else has been there: what results there are says nothing of it."""
    play = Brackets(bracket_table(9, 3), 3, asynchronous=asynchronous)
    first = [play.add(str(i)) for i in range(17)]
    assert [play.fail(str(i)) for i in (0, 9, 14)] == [1, 3, 9]
    assert [first[i] for i in (0, 9, 14)] == [1, 3, 9]
    for i in range(1, 9):
        play.report(str(i), 1, float(i))
    promoted = play.promote() or "1"  # or it has gone on at once
    assert play.budget(promoted) == 3
    assert play.report(promoted, 2, math.nan) is Decision.CONTINUE
    assert play.fail(promoted) == 3
    assert play.fail("8") == 3  # it waited, and its result is known
    assert play.fail(promoted) is None
    assert play.report("10", 3, math.nan) is Decision.STOP
    assert play.fail("10") is None
    assert play.fail("a stranger") is None


def test_a_full_bracket_opens_the_next_one():
    play = Brackets(bracket_table(9, 3))
    first = [play.add(str(i)) for i in range(9)]
    assert first == [1.0] * 9
    assert play.add("9") == 3.0  # the next bracket starts higher
    assert [play.add(str(i)) for i in range(10, 18)] == [3.0] * 4 + [9.0] * 3 + [1.0]


def test_a_trial_that_was_told_to_stop_stays_out():
    play = Brackets(bracket_table(9, 3))
    for i in range(9):
        play.add(str(i))
        play.report(str(i), 1, float(i))
    assert play.dismiss() == [str(i) for i in range(3, 9)]
    assert play.report("8", 2, 0.0) is Decision.STOP
    assert play.dismiss() == []


def test_a_trial_is_in_once():
    play = Brackets(bracket_table(9, 3))
    play.add("a")
    with pytest.raises(InvalidValueError, match="'a'"):
        play.add("a")
    play.forget("a")
    assert play.add("a") == 1.0


def test_asynchronous_promotion_waits_for_nobody():
    play = Brackets(bracket_table(9, 3), 3, asynchronous=True)
    for trial in "abcd":
        play.add(trial)
    assert play.report("a", 1, 3.0) is Decision.PAUSE
    assert play.report("b", 1, 2.0) is Decision.PAUSE
    assert play.report("c", 1, 1.0) is Decision.CONTINUE  # best of three
    assert play.promote() is None
    assert play.report("d", 1, 0.5) is Decision.CONTINUE  # best of four
    assert play.report("c", 3, 1.0) is Decision.PAUSE
    assert play.dismiss() == []  # results may still come


def test_all_that_were_promoted_together_go_on_after_a_restore():
    """Only one of the three has been resumed, and only its memory is from after that."""
    play = Brackets(bracket_table(9, 3))
    memories = {}
    for i in range(9):
        play.add(str(i))
    for i in range(9):
        play.report(str(i), 1, float(i) if i < 8 else 9.0)
        memories[str(i)] = play.memory(str(i))
    assert play.promote() == "0"
    memories["0"] = play.memory("0")
    again = Brackets(bracket_table(9, 3))
    again.recall(memories)
    assert [again.promote() for _ in range(3)] == ["1", "2", None]
    assert again.dismiss() == [str(i) for i in range(3, 9)]


def test_a_trial_that_is_tried_again_in_the_same_bracket_holds_nobody_up():
    play = Brackets(bracket_table(9, 3))
    for trial in "abcdefgh":
        play.add(trial)
    play.fail("a")
    play.forget("a")
    assert [play.add("a"), play.add("i")] == [1.0, 1.0]  # nine, as the rung takes
    for trial in "abcdefgh":
        assert play.report(trial, 1, float(ord(trial))) is Decision.PAUSE
    assert play.report("i", 1, 999.0) is Decision.PAUSE
    assert [play.promote() for _ in range(4)] == ["b", "c", "a", None]


def test_a_retry_in_a_higher_rung_leaves_the_failed_one_counted():
    play = Brackets(bracket_table(9, 3))
    for i in range(9):
        play.add(str(i))
    for i in range(9):
        play.report(str(i), 1, float(i))
    assert [play.promote() for _ in range(3)] == ["0", "1", "2"]
    play.fail("0")
    play.forget("0")
    assert play.add("0") == 3.0  # in the next bracket
    play.report("1", 3, 1.0)
    assert play.report("2", 3, 2.0) is Decision.PAUSE
    assert [play.promote(), play.promote()] == ["1", None]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ten_thousand_trials(asynchronous: bool):
    """Seconds; sorting all results at every step took a minute for a fifth of them."""
    play = Brackets(bracket_table(81, 3), asynchronous=asynchronous)
    draw, start = random.Random(0), time.process_time()
    for number in range(10_000):
        trial = str(number)
        play.add(trial)
        while play.report(trial, play.budget(trial), draw.random()) is Decision.CONTINUE:
            pass
        while (resumed := play.promote()) is not None:
            while play.report(resumed, play.budget(resumed), 0.5) is Decision.CONTINUE:
                pass
        play.dismiss()
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"kind": "brackets", "version": 2},
        {"kind": "brackets", "version": 1},
        {"kind": "brackets", "version": 1, "table": 3},
    ],
)
def test_a_state_that_is_none(state: dict[str, Any]):
    with pytest.raises(StateError):
        Brackets.from_json(state)


class _World:
    """Random workers, trials that fail, end early and vanish; the rules checked throughout."""

    def __init__(self, seed: int, asynchronous: bool, workers: int, trials: int) -> None:
        self.random = random.Random(seed)
        self.eta = self.random.choice([2, 3, 4])
        self.table = bracket_table(
            self.random.choice([4, 9, 16, 27]),
            self.eta,
            rounding=self.random.choice(["formula", "published"]),
        )
        self.most = self.table[0][-1].budget
        self.play = Brackets(self.table, self.eta, asynchronous=asynchronous)
        self.workers, self.left, self.asynchronous = workers, trials, asynchronous
        self.running: dict[str, float] = {}
        self.got: dict[str, float] = {}
        self.noted: dict[str, dict[str, Any]] = {}

    def note(self, trial: str) -> None:
        """What Ray saves: what was known of a trial when something last happened to itself."""
        self.noted[trial] = json.loads(json.dumps(self.play.memory(trial)))

    def step(self, restore: str) -> bool:
        """One event; False at the end."""
        if restore == "state":
            self.play = Brackets.from_json(json.loads(json.dumps(self.play.to_json())))
        elif restore in ("memories", "old memories") and self.left:
            memories = {t: self.play.memory(t) for t in self.got}
            if restore == "old memories":
                memories = dict(self.noted)
            self.play = Brackets(self.table, self.eta, asynchronous=self.asynchronous)
            shuffled = sorted(memories, key=lambda t: hash((t, len(memories))))
            self.play.recall(json.loads(json.dumps({t: memories[t] for t in shuffled})))
        while len(self.running) < self.workers:
            trial = self.play.promote()
            if trial is None and self.left:
                self.left -= 1
                trial = f"t{self.left}"
                self.play.add(trial)
                self.got[trial] = 0.0
                self.note(trial)
                if not self.left:
                    self.play.close()
            if trial is None:
                break
            self.running[trial] = self.play.budget(trial)
            self.note(trial)
        for out in self.play.dismiss():
            assert out not in self.running
            self.note(out)
        if not self.running:
            return False
        trial = self.random.choice(sorted(self.running))
        self.event(trial)
        self.note(trial)
        return True

    def event(self, trial: str) -> None:
        what = self.random.random()
        if what < 0.05:
            del self.running[trial]
            self.play.fail(trial)
        elif what < 0.1:
            del self.running[trial]
            self.play.end(trial, self.random.random())
        elif what < 0.12 and self.play.waiting():
            removed = self.random.choice(self.play.waiting())
            self.play.fail(removed)
            self.note(removed)
        else:
            self.got[trial] = min(self.running[trial], self.got[trial] + self.random.random() * 9)
            loss = self.random.choice([self.random.random(), self.random.random(), math.nan, 0.5])
            decision = self.play.report(trial, self.got[trial], loss)
            if decision is Decision.CONTINUE:
                self.running[trial] = self.play.budget(trial)
            else:
                del self.running[trial]
                assert (decision is Decision.PAUSE) == self.play.is_paused(trial)
        assert self.got[trial] <= self.most


def _history(world: _World, restore_every: int, how: str) -> list[tuple[str, float]]:
    for count in range(10_000):
        if not world.step(how if restore_every and count % restore_every == 0 else ""):
            assert world.left == 0
            assert world.play.waiting() == []
            return sorted(world.got.items())
    raise AssertionError("it does not end")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    asynchronous=st.booleans(),
    workers=st.integers(1, 7),
    trials=st.integers(1, 60),
    restore_every=st.integers(1, 5),
    how=st.sampled_from(["state", "memories", "old memories"]),
)
def test_every_interleaving_ends_and_a_restored_state_goes_on_the_same(
    seed: int, asynchronous: bool, workers: int, trials: int, restore_every: int, how: str
):
    plain = _history(_World(seed, asynchronous, workers, trials), 0, "")
    assert plain == _history(_World(seed, asynchronous, workers, trials), restore_every, how)


@settings(max_examples=100, deadline=None)
@given(
    losses=st.lists(
        st.one_of(st.floats(0, 1), st.just(math.nan), st.none()), min_size=9, max_size=9
    )
)
def test_promotions_are_the_best_of_the_finite(losses: list[float | None]):
    got = _run_bracket({str(i): loss for i, loss in enumerate(losses)})
    finite = [i for i, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    best = sorted(finite, key=lambda i: (losses[i], i))
    assert [i for i in range(9) if got[str(i)] > 1] == sorted(best[:3])
    assert [i for i in range(9) if got[str(i)] > 3] == best[:1]
