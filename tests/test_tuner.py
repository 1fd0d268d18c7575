from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.exptest import DecayTest, Tuner


def feed(tuner: Tuner, losses) -> list:
    return [a for x in losses if (a := tuner.update(float(x))) is not None]


def decaying(n: int, rate: float = 0.02, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=n)
    return np.exp(-rate * np.arange(n) + 0.05 * noise)


def plateau(n: int, seed: int = 0) -> np.ndarray:
    return np.exp(0.1 * np.random.default_rng(seed).normal(size=n))


# ------------------------------------------------------------------ windows


def test_keeps_while_the_loss_decays():
    tuner = Tuner(0.1, 50)
    actions = feed(tuner, decaying(250))
    assert [a.kind for a in actions] == ["keep"] * 5
    assert all((a.lr, a.window, a.result.n) == (0.1, 50, 50) for a in actions)
    assert (tuner.lr, tuner.window, tuner.step) == (0.1, 50, 250)


def test_a_plateau_is_looked_at_twice_before_the_rate_is_lowered():
    tuner = Tuner(0.1, 30)
    actions = feed(tuner, plateau(60))
    assert [a.kind for a in actions] == ["decay"]
    assert actions[0].result.n == 60
    assert tuner.lr == actions[0].lr == 0.1 * 0.33
    assert tuner.window == actions[0].window == math.ceil(30 / 0.33)
    assert [r["event"] for r in tuner.explain().to_rows()] == ["extend", "decay"]
    published = Tuner(0.1, 30, correction="none")
    assert [a.result.n for a in feed(published, plateau(30))] == [30]
    assert published.window == 91


def test_windows_grow_by_one_over_beta():
    tuner = Tuner(1.0, 10, beta=0.5)
    actions = feed(tuner, np.ones(2 * (10 + 20 + 40 + 80)))
    assert [a.kind for a in actions] == ["decay"] * 4
    assert [a.window for a in actions] == [20, 40, 80, 160]
    assert [a.lr for a in actions] == [0.5, 0.25, 0.125, 0.0625]


def test_min_lr():
    tuner = Tuner(1.0, 3, min_lr=0.2)
    assert [a.lr for a in feed(tuner, np.ones(500))] == [0.33, 0.2, 0.2, 0.2]


def test_a_loss_that_is_not_finite_restores_at_once():
    for bad in (math.nan, math.inf, -math.inf):
        tuner = Tuner(0.1, 50)
        feed(tuner, decaying(60))
        action = tuner.update(bad)
        assert (action.kind, action.lr, action.window) == ("restore", 0.1 * 0.33, 152)
        assert action.result.verdict == "diverged"
        assert (tuner.restores, tuner.step) == (1, 61)
        assert [a.kind for a in feed(tuner, decaying(152))] == ["keep"]


def test_any_number_of_divergences():
    tuner = Tuner(0.1, 50)
    feed(tuner, [math.nan] * 1500)
    assert tuner.lr > 0
    assert tuner.floor(1500) <= tuner.lr
    again = Tuner.from_state_dict(json.loads(json.dumps(tuner.state_dict())))
    assert (again.lr, again.window) == (tuner.lr, tuner.window)


def test_numbers_of_numpy_are_numbers():
    tuner = Tuner(np.float32(0.5), np.int64(10), total_steps=np.int32(100))
    assert (
        json.loads(json.dumps(tuner.state_dict())) == Tuner(0.5, 10, total_steps=100).state_dict()
    )


def test_losses_that_have_no_logarithm():
    with pytest.raises(InvalidValueError, match="identity"):
        Tuner(0.1, 10).update(-1.0)
    tuner = Tuner(0.1, 10, transform="identity")
    assert [a.kind for a in feed(tuner, -np.arange(10.0))] == ["keep"]


# ------------------------------------------------------------------ the two errors


def test_a_plateau_is_kept_with_probability_alpha_at_most():
    """2,000 decisions, each in one look or two; a fixed seed.

    A test at its level fails this with probability 1e-3 (binomial), over all seeds.
    """
    losses = np.exp(0.1 * np.random.default_rng(0).normal(size=(2000, 60)))
    for correction in ("spending", "none"):
        kept = 0
        for curve in losses:
            tuner, action = Tuner(0.1, 30, correction=correction), None
            for start in (0, 30):
                action = action or tuner.update_many(curve[start : start + 30])[1]
            kept += action.kind == "keep"
        assert kept <= 0.05 * 2000 + 3.09 * math.sqrt(2000 * 0.05 * 0.95)
        assert kept >= 10  # it is a test at a level, and not one that never keeps


def test_the_second_look_saves_rates_that_still_learn():
    """Slow decay, 40 windows of weak power each; seeds are fixed."""
    cuts = {"spending": 0, "none": 0}
    for correction in cuts:
        for seed in range(20):
            tuner = Tuner(0.1, 40, correction=correction)
            noise = np.random.default_rng(seed).normal(size=1600)
            actions = feed(tuner, np.exp(-0.004 * np.arange(1600) + 0.1 * noise))
            cuts[correction] += any(a.kind == "decay" for a in actions)
    assert cuts["none"] >= 15
    assert cuts["spending"] <= 5


# ------------------------------------------------------------------ the floor

any_loss = st.floats(0, 1e308) | st.sampled_from([0.0, 1.0, 5e-324, 1e-3])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(any_loss, max_size=60),
    st.integers(3, 9),
    st.sampled_from([0.1, 0.33, 0.5, 0.9]),
    st.sampled_from(["spending", "none"]),
    st.sampled_from([None, 40, 200]),
)
def test_no_finite_losses_get_below_the_floor(losses, window, beta, correction, total):
    tuner = Tuner(0.5, window, beta=beta, correction=correction, total_steps=total, cooldown=0.0)
    assert tuner.floor(0) == 0.5
    for loss in losses * 4:
        tuner.update(loss)
        bound = 0.5 / (1 + (1 / beta - 1) * tuner.step / window)
        assert tuner.lr >= tuner.floor(tuner.step) * (1 - 1e-12)
        assert tuner.floor(tuner.step) >= bound * (1 - 1e-12)
    assert tuner.restores == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.0, math.nan]), max_size=80))
def test_divergences_are_counted_and_lower_the_floor(losses):
    tuner = Tuner(1.0, 3, min_lr=1e-9)
    feed(tuner, losses)
    assert tuner.restores == sum(map(math.isnan, losses))
    assert tuner.lr >= tuner.floor(tuner.step) * (1 - 1e-12)


def test_the_floor_is_reached_by_a_constant_loss():
    tuner = Tuner(1.0, 100, correction="none")
    feed(tuner, np.ones(100 * (1 + 3 + 10 + 28) + 50))
    assert tuner.lr == pytest.approx(0.33**4)
    assert tuner.floor(tuner.step) > 0.33**4 * 0.8


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 1e-2)])
@pytest.mark.parametrize("correction", ["spending", "none"])
def test_momentum_and_weight_decay_do_not_break_it(momentum, weight_decay, correction):
    """Noisy least squares: the excess loss falls a hundred times; fixed seeds."""
    root = np.sqrt(np.geomspace(1.0, 0.05, 10))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        target = rng.normal(size=10)
        w, v = np.zeros(10), np.zeros(10)
        tuner = Tuner(0.1 * (1 - momentum), 100, correction=correction)
        start = float(np.sum((root * (w - target)) ** 2))
        for _ in range(5000):
            x = rng.normal(size=(16, 10)) * root
            error = x @ (w - target) + 0.3 * rng.normal(size=16)
            tuner.update(float(error @ error) / 32)
            v = momentum * v + x.T @ error / 16 + weight_decay * w
            w = w - tuner.lr * v
            assert tuner.lr >= tuner.floor(tuner.step)
        optimum = target * root**2 / (root**2 + weight_decay)  # what weight decay leads to
        excess = float(np.sum((root * (w - optimum)) ** 2))
        assert excess < start / 100, (seed, excess, start)
        assert tuner.lr < 0.1 * (1 - momentum)  # there is a plateau, and it was found


# ------------------------------------------------------------------ many steps at once


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 100) | st.just(math.nan), min_size=1, max_size=80),
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.sampled_from([None, 30, 60]),
)
def test_update_many_is_update(losses, sizes, total):
    one = Tuner(1.0, 5, total_steps=total)
    many = Tuner(1.0, 5, total_steps=total)
    expected, got, position = [], [], 0
    for loss in losses:
        if (action := one.update(loss)) is not None:
            expected.append((one.step, action))
    while position < len(losses):
        chunk = losses[position : position + sizes[position % len(sizes)]]
        taken, action = many.update_many(chunk)
        assert 1 <= taken <= len(chunk)
        position += taken
        if action is not None:
            got.append((many.step, action))
    assert got == expected
    assert many.state_dict() == one.state_dict()


def test_tell_takes_stretches_of_statistics():
    losses = plateau(400)
    one, many = Tuner(1.0, 25), Tuner(1.0, 25)
    expected = feed(one, losses)
    got = []
    for start in range(0, 400, 25):
        test = DecayTest()
        test.update_many(losses[start : start + 25])
        action = many.tell(json.loads(json.dumps(test.statistics())))
        got += [action] if action is not None else []
    # stretches end at multiples of 25 only: later windows (76 steps) end where one does
    assert got[0].kind == expected[0].kind == "decay"
    assert got[0].result.p_value == pytest.approx(expected[0].result.p_value, rel=1e-9)
    assert many.step == 400
    assert got[1].result.n == 2 * 76 + 23  # the first multiple of 25 after twice 76


def test_tell_a_divergence_and_nonsense():
    tuner, test = Tuner(1.0, 25), DecayTest()
    test.update_many([1.0, math.inf, 2.0])
    assert tuner.tell(test.statistics()).kind == "restore"
    assert (tuner.step, tuner.restores) == (3, 1)
    with pytest.raises(StateError):
        tuner.tell({"n": 3})
    assert tuner.step == 3


# ------------------------------------------------------------------ known length


def test_the_cool_down_is_linear_and_exact():
    tuner = Tuner(0.8, 50, total_steps=1000, cooldown=0.25, min_lr=0.0)
    rates = []
    for loss in decaying(1000, 0.05):
        rates.append(tuner.lr)
        tuner.update(float(loss))
    assert rates[:751] == [0.8] * 751
    exact = [0.8 * (1000 - s) / 250 for s in range(751, 1000)]
    assert rates[751:] == pytest.approx(exact, rel=1e-14)
    assert tuner.lr == 0.0
    assert tuner.cooling
    tuner.update(1.0)  # beyond the end
    assert tuner.lr == 0.0
    assert len(tuner.explain().to_rows()) == 14  # no window is tested any more


def test_the_cool_down_begins_with_the_first_window_that_does_not_decay():
    tuner = Tuner(0.8, 50, total_steps=1000, min_lr=0.1)
    assert tuner.cooldown == 0.2
    action = feed(tuner, plateau(100))[-1]
    assert (action.kind, action.lr, tuner.step) == ("decay", 0.8, 100)
    assert tuner.cooling
    assert [tuner.lr_at(s) for s in (100, 550, 1000)] == [0.8, pytest.approx(0.45), 0.1]
    assert feed(tuner, plateau(899)) == []
    assert tuner.lr == pytest.approx(0.1 + 0.7 / 900)
    assert tuner.update(math.nan).kind == "restore"
    assert tuner.lr == 0.1


def test_without_a_cool_down_the_last_windows_do_not_wait_for_a_look_after_the_end():
    open_end = Tuner(1.0, 50)
    known = Tuner(1.0, 50, total_steps=99, cooldown=0.0)
    assert feed(open_end, plateau(50)) == []
    assert [a.kind for a in feed(known, plateau(50))] == ["decay"]
    enough = Tuner(1.0, 50, total_steps=100, cooldown=0.0)
    assert feed(enough, plateau(50)) == []


# ------------------------------------------------------------------ account and state


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 1e6) | st.just(math.nan), max_size=80),
    st.integers(0, 80),
    st.sampled_from(["spending", "none"]),
    st.sampled_from([None, 50]),
)
def test_goes_on_from_its_state_in_the_middle_of_a_window(losses, cut, correction, total):
    arguments = {"correction": correction, "total_steps": total, "min_lr": 1e-6}
    whole, part = Tuner(1.0, 7, **arguments), Tuner(1.0, 7, **arguments)
    for k, loss in enumerate(losses):
        if k == cut:
            state = json.loads(json.dumps(part.state_dict(), allow_nan=False))
            part = Tuner.from_state_dict(state)
            assert part.state_dict() == state
        assert whole.update(loss) == part.update(loss)
        assert whole.lr == part.lr
    assert whole.state_dict() == part.state_dict()
    assert whole.explain() == part.explain()


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.clear(),
        lambda s: s.update(version=2),
        lambda s: s.update(kind="ladder"),
        lambda s: s.pop("arguments"),
        lambda s: s.pop("looked"),
        lambda s: s.pop("cooling_from"),
        lambda s: s["arguments"].update(odd=1),
        lambda s: s["arguments"].update(window=1),
        lambda s: s.update(lr=math.nan),
        lambda s: s.update(lr=-1.0),
        lambda s: s.update(window="7"),
        lambda s: s.update(step=-1),
        lambda s: s.update(looked=2),
        lambda s: s.update(restores=None),
        lambda s: s.update(cooling_from="x"),
        lambda s: s.update(rows=3),
        lambda s: s.update(rows=[3]),
        lambda s: s["test"].update(version=9),
    ],
)
def test_damaged_states_are_refused(damage):
    tuner = Tuner(1.0, 7, total_steps=50)
    feed(tuner, plateau(10))
    state = json.loads(json.dumps(tuner.state_dict()))
    damage(state)
    with pytest.raises(StateError):
        Tuner.from_state_dict(state)


@pytest.mark.parametrize("other", [None, [], "x", 3])
def test_states_of_another_type_are_refused(other):
    with pytest.raises(StateError):
        Tuner.from_state_dict(other)


def test_explanation():
    tuner = Tuner(1.0, 20)
    assert tuner.explain().to_rows() == []
    feed(tuner, [*decaying(20, 0.1), *plateau(40), math.nan])
    rows = tuner.explain().to_rows()
    assert [r["event"] for r in rows] == ["keep", "extend", "decay", "restore"]
    assert [r["step"] for r in rows] == [20, 40, 60, 61]
    assert [r["steps"] for r in rows] == [20, 20, 40, 1]
    assert [r["window"] for r in rows] == [20, 40, 61, 185]
    assert len(str(tuner.explain()).splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"lr": 0.0}, InvalidValueError, "lr"),
        ({"lr": math.inf}, InvalidValueError, "lr"),
        ({"lr": "0.1"}, InvalidTypeError, "lr"),
        ({"window": 2}, InvalidValueError, "window"),
        ({"window": 10.0}, InvalidTypeError, "window"),
        ({"alpha": 1.0}, InvalidValueError, "alpha"),
        ({"beta": 0.0}, InvalidValueError, "beta"),
        ({"min_lr": -1.0}, InvalidValueError, "min_lr"),
        ({"min_lr": 2.0}, InvalidValueError, "min_lr"),
        ({"correction": "odd"}, InvalidValueError, "correction"),
        ({"autocorrelation": "odd"}, InvalidValueError, "autocorrelation"),
        ({"transform": "odd"}, InvalidValueError, "transform"),
        ({"total_steps": 0}, InvalidValueError, "total_steps"),
        ({"total_steps": 10, "cooldown": 1.0}, InvalidValueError, "cooldown"),
        ({"total_steps": 10, "cooldown": -0.1}, InvalidValueError, "cooldown"),
        ({"cooldown": 0.2}, InvalidValueError, "total_steps"),
    ],
)
def test_bad_arguments(arguments, error, word):
    with pytest.raises(error, match=word):
        Tuner(**{"lr": 1.0, "window": 10, **arguments})


def test_bad_calls():
    tuner = Tuner(1.0, 10)
    with pytest.raises(InvalidTypeError):
        tuner.update("x")
    with pytest.raises(InvalidValueError):
        tuner.floor(-1)
    assert tuner.step == 0
