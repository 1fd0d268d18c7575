"""Stages of image sizes: every interleaving ends, what is carried, narrowing, transfer."""

from __future__ import annotations

import json
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    ForbiddenAndConjunction,
    ForbiddenEqualsClause,
    GreaterThanCondition,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tune_ext._growth_stages import KINDS, is_legal, spread
from tune_ext._narrowing import describe, narrow
from tune_ext._transfer import EXPECTED, believed, measure_transfer, translate_losses
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.image_growth import PAPER_SIZES, ImageGrowth, TransferWarning

pytestmark = pytest.mark.filterwarnings("ignore::tune_ext.image_growth.TransferWarning")


def line() -> ConfigurationSpace:
    return ConfigurationSpace({"x": (0.0, 1.0)})


def mixed() -> ConfigurationSpace:
    """Every kind of parameter, conditions and a forbidden clause."""
    space = ConfigurationSpace()
    layers = UniformIntegerHyperparameter("layers", 1, 5)
    units = UniformIntegerHyperparameter("units", 8, 512, log=True)
    kind = CategoricalHyperparameter(
        "kind", ["sgd", "adam", "lamb"], weights=[1, 1, 2], default_value="sgd"
    )
    momentum = UniformFloatHyperparameter("momentum", 0.0, 0.99)
    batch = OrdinalHyperparameter("batch", [16, 32, 64, 128])
    filters = UniformIntegerHyperparameter("filters_4", 4, 64)
    space.add(
        UniformFloatHyperparameter("lr", 1e-5, 1.0, log=True),
        *(layers, units, kind, momentum, batch, filters, Constant("epochs", 5)),
    )
    space.add(EqualsCondition(momentum, kind, "sgd"), GreaterThanCondition(filters, layers, 3))
    space.add(
        ForbiddenAndConjunction(
            ForbiddenEqualsClause(kind, "lamb"), ForbiddenEqualsClause(batch, 16)
        )
    )
    return space


def drawn(space: ConfigurationSpace, count: int, seed: int = 0) -> list[dict[str, Any]]:
    space.seed(seed)
    return [dict(space.sample_configuration()) for _ in range(count)]


def played(growth: ImageGrowth, loss: Any, *, workers: int = 1, first: int = 0) -> list[Any]:
    """Run to the end with so many workers, first in first out; the turns."""
    turns: list[Any] = []
    running: list[tuple[str, int, dict[str, Any]]] = []
    rng = np.random.default_rng(5)
    while True:
        turn = growth.ask(f"t{first + len(turns)}") if len(running) < workers else None
        if turn is None and not running:
            assert growth.issued
            return turns
        if turn is None:
            name, size, config = running.pop(0)
            growth.tell(name, loss(config, size))
            continue
        name = f"t{first + len(turns)}"
        config = turn.config
        if config is None:
            config = {"x": float(rng.random())}
            growth.accept(name, config)
        turns.append(turn)
        running.append((name, turn.size, config))


# --- every interleaving --------------------------------------------------------------------


def run_at_random(growth: ImageGrowth, data: st.DataObject, steps: int) -> None:
    """Trials begin and end, well or not, in any order; the optimiser sometimes has nothing."""
    live: list[str] = []
    asked = 0
    rng = np.random.default_rng(data.draw(st.integers(0, 9), label="seed"))
    for _ in range(steps):
        if growth.issued and not live:
            break
        if data.draw(st.booleans()) or not live:
            name = f"t{asked}"
            turn = growth.ask(name)
            if turn is None:
                assert live or growth.issued, "it waits for nothing"
                continue
            if turn.config is None:
                if live and data.draw(st.integers(0, 9)) == 0:
                    growth.withdraw(name)
                    continue
                growth.accept(name, {"x": float(rng.random())})
            live.append(name)
            asked += 1
        else:
            name = live.pop(data.draw(st.integers(0, len(live) - 1)))
            result = data.draw(st.sampled_from([None, math.nan, math.inf, 0.0, 1.0, 2.0]))
            growth.tell(name, result)
            if result is not None and math.isfinite(result):
                assert growth.tell(name, -5.0) is None, "a second result changes something"
            else:
                assert growth.tell(name, math.nan) is None
            growth.tell("stranger", -9.0)


@settings(max_examples=35)
@given(data=st.data())
def test_whatever_the_order_of_results_it_ends_with_the_exact_number_of_evaluations(
    data: st.DataObject,
) -> None:
    counts = data.draw(st.lists(st.integers(1, 11), min_size=1, max_size=3), label="counts")
    sizes = [(8 * 2**i, n) for i, n in enumerate(counts)]
    given_points = data.draw(st.integers(0, 3), label="points")
    growth = ImageGrowth(
        line(),
        sizes,
        points=[{"x": i / 4} for i in range(given_points)],
        enough=data.draw(st.sampled_from([0.5, 0.9, 1.0]), label="enough"),
        seed=1,
    )
    run_at_random(growth, data, steps=40 * sum(counts))
    assert growth.issued
    assert not growth.live
    for number, (size, count) in enumerate(sizes):
        trials = growth.trials(number)
        assert len(trials) == count
        assert growth.rows()[number]["size"] == size
        assert all(t.loss is None or math.isfinite(t.loss) for t in trials)
        if number:
            seen = [t.config for t in growth.trials(number - 1) if t.loss is not None]
            again = [t for t in trials if t.kind in ("probe", "best")]
            assert all(t.config in seen for t in again), "a failure was carried"
            assert len(again) <= max(1, count // 2)
            if growth.rows()[number]["weight"] is None:
                continue  # a stage of re-evaluations alone
            for config, loss in growth.carried(number).points:
                assert config in seen
                assert math.isfinite(loss)
                assert is_legal(growth.carried(number).space, config)


@settings(max_examples=25)
@given(cut=st.integers(0, 32), workers=st.integers(1, 4))
def test_a_state_in_the_middle_goes_on_as_if_nothing_had_happened(cut: int, workers: int) -> None:
    def loss(config: dict[str, Any], size: int) -> float | None:
        return None if config["x"] > 0.9 else abs(config["x"] - 0.3) + size / 1000

    def run(stop: int) -> tuple[list[Any], list[dict[str, Any]]]:
        growth = ImageGrowth(line(), [(8, 15), (16, 10), (32, 7)], seed=3)
        rng, running, turns = np.random.default_rng(0), [], []
        while not (growth.issued and not running):
            if len(turns) == stop:
                growth = ImageGrowth.from_json(json.loads(json.dumps(growth.to_json())))
                stop = -1
            turn = growth.ask(f"t{len(turns)}") if len(running) < workers else None
            if turn is None:
                name, config, size = running.pop(0)
                growth.tell(name, loss(config, size))
                continue
            config = turn.config
            if config is None:
                space = growth.carried(turn.stage).space["x"]
                config = {"x": float(rng.uniform(space.lower, space.upper))}
                growth.accept(f"t{len(turns)}", config)
            running.append((f"t{len(turns)}", config, turn.size))
            turns.append((turn.stage, turn.kind, config))
        return turns, growth.rows()

    assert run(cut) == run(-1)


# --- stages --------------------------------------------------------------------------------


def test_the_kinds_of_a_later_stage_in_their_order() -> None:
    growth = ImageGrowth(line(), [(8, 40), (16, 40)], seed=0)
    turns = played(growth, lambda config, size: config["x"])
    later = [turn.kind for turn in turns[40:]]
    assert later == ["probe"] * 7 + ["best"] * 2 + ["own"] * 31
    losses = sorted(t.loss for t in growth.trials(0))
    again = [turn.config["x"] for turn in turns[40:49]]
    places = [losses.index(x) for x in again]
    assert places[:7] == spread(40, 7, power=2)  # the best, the worst, and more of the good
    assert places[7:] == [p for p in range(40) if p not in places[:7]][:2]


def test_the_paper_has_1500_evaluations() -> None:
    assert sum(count for _, count in PAPER_SIZES) == 1500
    assert ImageGrowth(line()).sizes == [32, 64, 128]


class Counted(list[Any]):
    """A list that knows how often all of it was looked at."""

    walks = 0

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()


def test_a_trial_costs_the_same_however_many_there_were() -> None:
    growth = ImageGrowth(line(), [(8, 300), (16, 300)], transfer=1.0, seed=0)
    lists = []
    for stage in growth._stages:
        stage.trials = Counted()
        lists += [stage.trials]
        for kind in KINDS:
            stage._kinds[kind] = Counted()
            lists += [stage._kinds[kind]]
    played(growth, lambda config, size: config["x"], workers=4)
    assert sum(map(len, lists)) == 2 * 600
    assert sum(counted.walks for counted in lists) < 40  # at the change of size, not at a trial


def test_a_straggler_holds_nobody_and_still_counts_until_it_is_decided() -> None:
    def run(late_before_the_decision: bool) -> ImageGrowth:
        growth = ImageGrowth(line(), [(8, 20), (16, 12)], seed=0)
        for i in range(20):
            growth.ask(f"a{i}")
            growth.accept(f"a{i}", {"x": i / 20})
        for i in range(1, 20):  # the best one is late
            growth.tell(f"a{i}", i / 20)
        turn = growth.ask("b0")
        assert turn is not None
        assert (turn.stage, turn.kind) == (1, "probe")
        if late_before_the_decision:
            growth.tell("a0", 0.0)
        for i in range(1, 5):
            growth.ask(f"b{i}")
        for trial in growth.trials(1):
            growth.tell(trial.name, trial.config["x"])
        assert growth.ask("c") is not None  # decides
        growth.tell("a0", 0.0)
        return growth

    early, late = run(True), run(False)
    assert early.carried(1).space["x"].lower == 0.0
    assert late.carried(1).space["x"].lower == 0.0  # the mean gap: 1/20 below 1/20
    assert early.carried(1).space["x"].upper < late.carried(1).space["x"].upper
    assert [t.late for t in late.trials(0)] == [True] + [False] * 19
    assert late.rows()[0]["best"] == 0.0, "a late result is not recorded"


def test_free_workers_get_bridges_until_half_of_the_stage_is_under_way() -> None:
    growth = ImageGrowth(line(), [(8, 10), (16, 20)], seed=0)
    for i in range(10):
        growth.ask(f"a{i}")
        growth.accept(f"a{i}", {"x": i / 10})
        growth.tell(f"a{i}", i / 10)
    kinds = []
    while (turn := growth.ask(f"b{len(kinds)}")) is not None:
        kinds.append(turn.kind)
        assert turn.config is not None
        if turn.kind == "bridge":
            assert 0 <= turn.config["x"] <= 0.7  # half-way to [0, .4]
    assert kinds == ["probe"] * 5 + ["best"] + ["bridge"] * 4
    for i in range(5):
        growth.tell(f"b{i}", 1.0 * i)
    after = growth.ask("c")
    assert after is not None
    assert after.kind == "own"


def test_nothing_good_in_a_stage_carries_nothing_and_says_so() -> None:
    growth = ImageGrowth(line(), [(8, 6), (16, 6)], seed=0)
    with pytest.warns(TransferWarning, match="of 0 configurations is not known: only 0%"):
        played(growth, lambda config, size: None if size == 8 else config["x"])
    assert growth.rows()[1]["narrowed"] == {}
    assert [t.kind for t in growth.trials(1)] == ["own"] * 6
    assert growth.best is not None
    assert growth.best[0] == 16


@pytest.mark.parametrize(
    ("evaluations", "probes", "said"),
    [
        (4, None, "from 8 to 16 pixels, 2 configurations.*60%.*Give 16 pixels 8 evaluations"),
        (20, 2, "2 configurations.*60%.*Give probes=4 or more"),
        (20, 0, None),  # nobody asked
        (8, None, None),
    ],
)
def test_pairs_that_say_nothing_are_told(evaluations: int, probes: Any, said: str | None) -> None:
    growth = ImageGrowth(line(), [(8, 12), (16, evaluations)], probes=probes, seed=0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        played(growth, lambda config, size: config["x"])
    messages = [str(w.message) for w in found if w.category is TransferWarning]
    assert len(messages) == (said is not None)
    assert said is None or re.search(said, messages[0])


def test_a_trial_that_is_run_again_after_a_failure_counts() -> None:
    growth = ImageGrowth(line(), [(8, 3)], seed=0)
    growth.ask("a")
    growth.accept("a", {"x": 0.5})
    growth.tell("a", None)
    assert growth.rows()[0]["failed"] == 1
    assert growth.tell("a", 2.0) == (0, {"x": 0.5})
    assert growth.tell("a", 1.0) is None
    assert growth.best == (8, {"x": 0.5}, 2.0)


def test_sizes_are_not_compared() -> None:
    growth = ImageGrowth(line(), [(8, 10), (16, 6)], seed=0)
    assert growth.best is None
    played(growth, lambda config, size: config["x"] + size)
    assert growth.best is not None
    size, config, loss = growth.best
    assert (size, loss) == (16, config["x"] + 16)
    only_small = ImageGrowth(line(), [(8, 10), (16, 6)], seed=0)
    played(only_small, lambda config, size: config["x"] if size == 8 else None)
    assert only_small.best is not None
    assert only_small.best[0] == 8


def test_an_optimiser_that_has_nothing_more_ends_its_stage() -> None:
    growth = ImageGrowth(line(), [(8, 10), (16, 6)], seed=0)
    growth.ask("a")
    growth.accept("a", {"x": 0.5})
    growth.ask("b")
    growth.withdraw("b")
    growth.end_stage(0)
    growth.tell("a", 1.0)
    turn = growth.ask("b")
    assert turn is not None
    assert (turn.stage, turn.kind, turn.config) == (1, "probe", {"x": 0.5})


def test_the_number_of_workers_changes_nothing_where_the_order_of_results_does_not() -> None:
    def run(workers: int) -> list[Any]:
        growth = ImageGrowth(line(), [(8, 20), (16, 12)], seed=0, transfer=1.0)
        played(growth, lambda config, size: config["x"], workers=workers)
        return [(t.kind, t.config) for t in growth.trials(0)]

    assert run(1) == run(4)


# --- transfer ------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_agreement_narrows_and_disagreement_does_not(sign: float) -> None:
    growth = ImageGrowth(line(), [(8, 40), (16, 20)], seed=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        played(growth, lambda config, size: config["x"] * (1.0 if size == 8 else sign))
    carried = growth.carried(1)
    weight = carried.transfer.weight
    assert weight == (believed(5, 1.0) if sign > 0 else 0.0)
    assert [w.category for w in said] == ([] if weight else [TransferWarning])
    x = carried.space["x"]
    if weight:
        best = sorted(t.config["x"] for t in growth.trials(0))[:8]
        gap = (best[-1] - best[0]) / 7
        high = 1 - weight * (1 - max(best[-1] + gap, 0.2))
        assert (x.lower, x.upper) == pytest.approx((0.0, high), abs=0.02)
        assert len(carried.points) > 3
    else:
        assert (x.lower, x.upper) == (0.0, 1.0)
        assert carried.points == ()
        assert "rank correlation of 5 configurations is -1.00: only 0%" in str(said[0].message)
        assert [t.kind for t in growth.trials(1)].count("best") == 0


@given(st.lists(st.tuples(st.floats(-9, 9), st.none() | st.floats(-9, 9)), min_size=4, max_size=12))
def test_the_correlation_is_spearmans_with_failures_last(pairs: Any) -> None:
    transfer = measure_transfer(pairs)
    small = [pair[0] for pair in pairs]
    large = [1e9 if pair[1] is None else pair[1] for pair in pairs]
    if len(set(small)) == 1 or len(set(large)) == 1:
        assert transfer.correlation is None
        assert transfer.weight == (0 if set(large) == {1e9} else EXPECTED)
        return
    rho = spearmanr(small, large).statistic
    assert transfer.correlation == pytest.approx(rho)
    low, high = sorted((EXPECTED, max(0.0, rho)))
    assert low - 1e-9 <= transfer.weight <= high + 1e-9, "between what is expected and seen"


def test_what_is_believed_goes_from_what_is_expected_to_what_is_seen() -> None:
    for rho in (-1.0, -0.4, 0.0, 0.3, 0.9, 1.0):
        weights = [believed(n, rho) for n in (4, 6, 12, 40, 400)]
        assert weights == sorted(weights, reverse=rho < EXPECTED)
        assert weights[-1] == pytest.approx(max(0.0, rho), abs=0.02)
    assert [round(believed(4, rho), 2) for rho in (-1.0, 0.0, 1.0)] == [0.06, 0.51, 0.79]
    assert believed(4, 0.9, expected=0.9) == pytest.approx(0.9)
    assert measure_transfer([], expected=0.3).weight == 0.3
    few = [(0, 0), (1, 1), (2, 2)], [(0, 0), (1, 2), (2, 1)], []
    assert {measure_transfer(pairs).weight for pairs in few} == {EXPECTED}
    assert measure_transfer([(0, None), (1, None)]).weight == 0, "none works at the larger size"


def test_chance_alone_seldom_carries_much_once_there_are_some_pairs() -> None:
    """Of random orders of sixteen, one in twenty is believed to agree by .5 or more."""
    rng = np.random.default_rng(0)
    orders = (list(enumerate(rng.permutation(16))) for _ in range(400))
    often = np.mean([measure_transfer(order).weight >= 0.5 for order in orders])
    assert 0.02 < often < 0.09


def test_translated_losses_keep_the_order_and_stay_within_what_was_seen() -> None:
    pairs = [(1.0, 30.0), (2.0, 20.0), (3.0, 50.0), (4.0, None)]
    assert translate_losses([0.0, 1.0, 2.5, 9.0], pairs, 1.0) == [25.0, 25.0, 37.5, 50.0]
    assert translate_losses([0.0, 9.0], pairs, 0.0) == [30.0, 30.0]
    assert translate_losses([0.0], pairs[:1], 1.0) == []


# --- narrowing -----------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 12),
    weight=st.floats(0, 1),
    floor=st.floats(0.01, 1),
)
def test_a_narrowed_space_has_the_best_and_lies_in_the_original(
    seed: int, count: int, weight: float, floor: float
) -> None:
    space = mixed()
    best = drawn(space, count, seed)
    made = narrow(space, best, weight, floor=floor)
    assert list(made) == list(space)
    assert made.conditions == space.conditions or len(made.conditions) == len(space.conditions)
    assert all(is_legal(made, config) for config in best), "a best point is not in it"
    for config in drawn(made, 12, seed):
        assert is_legal(space, config), "it reaches beyond the original"
    for name in ("lr", "units", "momentum"):
        new, old = made[name], space[name]
        scale = math.log if old.log else float
        kept = (scale(new.upper) - scale(new.lower)) / (scale(old.upper) - scale(old.lower))
        least = weight * floor + 1 - weight if any(name in c for c in best) else 1.0
        assert kept >= least - 0.02
    old_shares, new_shares = space["kind"].probabilities, made["kind"].probabilities
    assert (new_shares > 0.99 * floor * old_shares / (1 + floor)).all()
    assert len(made["batch"].sequence) >= 2


def test_narrowing_counts_on_the_parameters_own_scale() -> None:
    space = mixed()
    best = [{"lr": 10**e, "units": u} for e, u in [(-3.0, 32), (-2.5, 40), (-2.0, 64)]]
    made = narrow(space, best, 1.0)
    assert (made["lr"].lower, made["lr"].upper) == pytest.approx((10**-3.5, 10**-1.5))
    assert (made["units"].lower, made["units"].upper) == (22, 91)  # sqrt(2) beyond, outwards
    half = narrow(space, best, 0.5)
    assert (half["lr"].lower, half["lr"].upper) == pytest.approx((10**-4.25, 10**-0.75))
    assert describe(made, space).keys() == {"lr", "units"}
    assert made["lr"].default_value == best[0]["lr"]


def test_narrowing_keeps_what_conditions_name() -> None:
    space = mixed()
    made = narrow(space, [{"layers": 1, "kind": "adam", "batch": 64}] * 4, 1.0)
    assert (made["layers"].lower, made["layers"].upper) == (1, 3)  # filters_4 | layers > 3
    assert 16 in made["batch"].sequence  # forbidden with lamb
    assert list(made["kind"].choices) == ["sgd", "adam", "lamb"]
    # 4 of adam beside 3 pseudo-counts at the weights 1, 1, 2
    assert made["kind"].probabilities == pytest.approx([0.75 / 7, 4.75 / 7, 1.5 / 7])


def test_a_parameter_that_does_not_matter_keeps_its_range() -> None:
    space = ConfigurationSpace({"a": (0.0, 1.0), "b": (0.0, 1.0)})
    best = [{"a": 0.5 + i / 100, "b": i / 9} for i in range(10)]
    made = narrow(space, best, 1.0)
    assert made["a"].upper - made["a"].lower == pytest.approx(0.2)  # the floor
    assert (made["b"].lower, made["b"].upper) == (0.0, 1.0)


# --- what cannot work ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"space": 3}, InvalidTypeError, "must be a ConfigurationSpace"),
        ({"sizes": []}, InvalidTypeError, "must be a list of"),
        ({"sizes": [8, 16]}, InvalidTypeError, "must hold"),
        ({"sizes": [(8, 0)]}, InvalidValueError, "evaluations must be at least 1"),
        ({"sizes": [(16, 3), (8, 3)]}, InvalidValueError, "must increase"),
        ({"probes": -1}, InvalidValueError, "probes must be at least 0"),
        ({"best": 1.5}, InvalidTypeError, "best must be a whole number"),
        ({"top": 0}, InvalidValueError, r"top must be in \(0, 1\], got 0"),
        ({"floor": 2}, InvalidValueError, "floor must be in"),
        ({"enough": "x"}, InvalidTypeError, "enough must be a number"),
        ({"transfer": -0.5}, InvalidValueError, r"transfer must be in \[0, 1\]"),
        ({"seed": -1}, InvalidValueError, "seed must not be negative"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    given_options = {"space": line(), "sizes": [(8, 2)], **options}
    with pytest.raises(error, match=said):
        ImageGrowth(given_options.pop("space"), **given_options)


def test_a_name_is_asked_for_once_and_accepted_when_asked() -> None:
    growth = ImageGrowth(line(), [(8, 3)], seed=0)
    growth.ask("a")
    with pytest.raises(InvalidValueError, match="asked for before"):
        growth.ask("a")
    with pytest.raises(InvalidValueError, match="waits for no configuration"):
        growth.accept("b", {"x": 0.5})
    with pytest.raises(InvalidValueError, match="not decided yet"):
        ImageGrowth(line(), [(8, 3), (16, 3)]).carried(1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.update(version=99),
        lambda s: s.update(kind="bohb"),
        lambda s: s["stages"].clear(),
        lambda s: s["stages"][0]["trials"].append(["a", "own", {}, None, False, False]),
        lambda s: s["stages"][0]["trials"].append(["z", "magic", {}, None, False, False]),
        lambda s: s["stages"][0].pop("size"),
        lambda s: s.update(space={}),
        lambda s: s["options"].update(top=7),
    ],
)
def test_a_damaged_state_is_an_error(damage: Any) -> None:
    growth = ImageGrowth(line(), [(8, 3)], seed=0)
    growth.ask("a")
    growth.accept("a", {"x": 0.5})
    state = json.loads(json.dumps(growth.to_json()))
    assert ImageGrowth.from_json(state).to_json() == growth.to_json()
    damage(state)
    with pytest.raises(StateError):
        ImageGrowth.from_json(state)
