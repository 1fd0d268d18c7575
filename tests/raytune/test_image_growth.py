"""ImageGrowthSearch: the conformance suite over several searchers, what they hear, real runs."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    ForbiddenAndConjunction,
    ForbiddenEqualsClause,
    GreaterThanCondition,
    OrConjunction,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from optuna.samplers import TPESampler
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

from tests.raytune.test_restore import Ends, let_ray_end
from tune_ext import BOHBSearch, ImageGrowthSearch
from tune_ext.errors import (
    InvalidTypeError,
    InvalidValueError,
    MissingDependencyError,
    StateError,
)
from tune_ext.image_growth import TransferWarning
from tune_ext.raytune._growth_searchers import FACTORIES
from tune_ext.raytune._play import CRASH, INVALID, play
from tune_ext.raytune.image_growth import GrowthStage
from tune_ext.raytune.smac import SMACSearch
from tune_ext.raytune.testing import SearcherConformance

pytestmark = pytest.mark.filterwarnings("ignore::tune_ext.image_growth.TransferWarning")

SIZES = [(8, 10), (16, 8)]
SPACE = {"lr": tune.loguniform(1e-6, 1.0), "batch": 32}


def grown(factory: Any = "random", sizes: Any = SIZES, **options: Any) -> ImageGrowthSearch:
    given = {"space": SPACE, "metric": "loss", "mode": "min", "seed": 0}
    return ImageGrowthSearch(factory, sizes, **{**given, **options})


def valley(config: dict[str, Any]) -> float:
    return abs(math.log10(config["lr"]) + 2.0)


# --- conformance -----------------------------------------------------------------------------


class TestOverTPE(SearcherConformance):
    finishes = True
    trials = 16
    factory = "tpe"

    def make(self, **options: Any) -> Any:
        return ImageGrowthSearch(self.factory, SIZES, **options)


class TestOverBOHB(TestOverTPE):
    workers = 3
    factory = "bohb"

    def test_another_process_gives_the_same_run(self) -> None:
        pytest.skip("a process takes seconds, and the class above starts one")


class TestOverNSGA2(TestOverBOHB):
    workers = 1
    factory = "nsga2"


# --- every searcher --------------------------------------------------------------------------


def conditional() -> ConfigurationSpace:
    space = ConfigurationSpace()
    kind = CategoricalHyperparameter("opt/kind", ["sgd", "adam"])
    momentum = UniformFloatHyperparameter("opt/momentum", 0.0, 0.99)
    layers = UniformIntegerHyperparameter("layers", 1, 3)
    units = OrdinalHyperparameter("units_2", [8, 16, 32])
    drop = UniformFloatHyperparameter("drop", 0.0, 0.5)
    space.add(UniformFloatHyperparameter("lr", 1e-6, 1.0, log=True), Constant("epochs", 9))
    space.add(kind, momentum, layers, units, drop)
    space.add(EqualsCondition(momentum, kind, "sgd"), GreaterThanCondition(units, layers, 1))
    space.add(OrConjunction(EqualsCondition(drop, kind, "adam"), EqualsCondition(drop, units, 32)))
    space.add(
        ForbiddenAndConjunction(
            ForbiddenEqualsClause(kind, "adam"), ForbiddenEqualsClause(layers, 3)
        )
    )
    return space


def needs(factory: Any) -> None:
    package = FACTORIES[factory][1] if isinstance(factory, str) else None
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")


def conditional_loss(config: dict[str, Any]) -> Any:
    if config["layers"] == 2 and config["lr"] < 1e-5:
        return CRASH
    return valley(config) + config["opt"].get("momentum", 0.5) + config["image_size"] / 100


def own_optuna(stage: GrowthStage) -> Searcher:
    """As users have it: with a sampler and without a space."""
    return OptunaSearch(sampler=TPESampler(seed=stage.seed))


@pytest.mark.parametrize("factory", [*FACTORIES, own_optuna])
def test_conditions_ordinals_and_forbidden_clauses_under_every_searcher(factory: Any) -> None:
    needs(factory)
    sizes = [(8, 4), (16, 8)] if factory in ("gp", "smac") else [(8, 14), (16, 12), (32, 9)]
    search = grown(factory, sizes, space=conditional())
    trials, finished = play(search, conditional_loss, trials=99, epochs=1)
    assert finished
    assert Counter(t.config["image_size"] for t in trials) == dict(sizes)
    for trial in trials:
        config = trial.config
        assert json.loads(json.dumps(config)) == config, "not plain"
        assert config["epochs"] == 9
        assert ("momentum" in config["opt"]) == (config["opt"]["kind"] == "sgd")
        assert ("units_2" in config) == (config["layers"] > 1)
        assert ("drop" in config) == (
            config["opt"]["kind"] == "adam" or config.get("units_2") == 32
        )
        assert (config["opt"]["kind"], config["layers"]) != ("adam", 3)
    values = {
        json.dumps(t.config): t.value for t in trials if t.config["image_size"] == sizes[-1][0]
    }
    best = values[json.dumps(search.best_config)]
    assert best == min(v for v in values.values() if v != CRASH)


@pytest.mark.parametrize("factory", ["random", "tpe", "nsga2", "bohb", "hyperopt"])
@pytest.mark.parametrize("cut", [4, 13, 17])
def test_a_search_that_is_restored_anywhere_goes_on_as_if_it_had_not_been(
    factory: str, cut: int, tmp_path: Path
) -> None:
    """In the first stage, between probes, and in the second stage's own searcher."""
    needs(factory)
    sizes = [(8, 10), (16, 14)]
    search, other = grown(factory, sizes), ImageGrowthSearch(factory, seed=5)
    play(search, valley, trials=cut, workers=2, epochs=1)
    running = search.suggest("running")
    path = str(tmp_path / "state")
    search.save(path)
    other.restore(path)
    rest = []
    for each in (search, other):
        each.on_trial_complete("running", {"loss": valley(running), "training_iteration": 1})
        trials, finished = play(each, valley, trials=99, first=50, epochs=1)
        assert finished
        rest.append([t.config for t in trials])
    assert rest[0] == rest[1]
    assert len(rest[0]) == sum(n for _, n in sizes) - cut - 1
    assert search.explain() == other.explain()
    assert search.best_config == other.best_config


def test_it_carries_to_where_the_valley_is() -> None:
    """Over TPE: the mean distance of a last stage's trials, against one from nothing."""
    carried, fresh = [], []
    for seed in range(3):
        trials, _ = play(grown("tpe", [(8, 25), (16, 15)], seed=seed), valley, trials=99, epochs=1)
        carried += [t.value for t in trials[25:]]
        trials, _ = play(grown("tpe", [(16, 15)], seed=seed), valley, trials=99, epochs=1)
        fresh += [t.value for t in trials]
    assert sum(carried) < 0.6 * sum(fresh)


# --- what a searcher hears -------------------------------------------------------------------


class Spy(Searcher):
    """Suggests what it is given and notes every call."""

    def __init__(self, stage: GrowthStage, say: Any = None) -> None:
        super().__init__()
        self.stage, self.say, self.calls, self.asked = stage, say, [], 0

    def set_search_properties(self, metric: str, mode: str, config: Any, **spec: Any) -> bool:
        self._metric, self._mode, self.space = metric, mode, config
        return True

    def suggest(self, trial_id: str) -> Any:
        self.asked += 1
        if self.say is not None:
            said = self.say(self)
            if said != "go on":
                return said
        self.calls.append(("suggest", trial_id))
        return {"lr": 10.0 ** -(self.asked % 6)}

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        self.calls.append(("result", trial_id, result))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.calls.append(("complete", trial_id, result, error))

    def add_evaluated_point(self, parameters: Any, value: float, *rest: Any) -> None:
        self.calls.append(("point", dict(parameters), value))


class Spies:
    """A factory that keeps what it made."""

    def __init__(self, say: Any = None) -> None:
        self.say, self.made = say, []

    def __call__(self, stage: GrowthStage) -> Searcher:
        self.made.append(Spy(stage, self.say))
        return self.made[-1]


def heard(spy: Spy, what: str) -> list[Any]:
    return [call[1:] for call in spy.calls if call[0] == what]


def test_a_searcher_hears_of_its_own_trials_and_is_told_of_the_others() -> None:
    spies = Spies()
    search = grown(spies, mode="max", points_to_evaluate=[{"lr": 0.5, "batch": 32}])
    trials, finished = play(
        search, lambda c: -valley(c) + c["image_size"] / 100, trials=99, stopped=False
    )
    assert finished
    first, second = spies.made
    assert (first.metric, first.mode) == ("loss", "max")
    assert trials[0].config["lr"] == 0.5
    assert heard(first, "point") == [({"lr": 0.5}, trials[0].value)]
    assert [i for i, *_ in heard(first, "suggest")] == [t.trial_id for t in trials[1:10]]
    assert len(heard(first, "result")) == 9 * 3
    _, result, error = heard(first, "complete")[0]
    assert (result["loss"], result["trial_id"], error) == (trials[1].value, "trial001", False)
    assert not [key for key in result if key.startswith("config")]
    own = [i for i, *_ in heard(second, "suggest")]
    assert own == [t.trial_id for t in trials[14:]]  # four probes before: half of the stage
    told = heard(second, "point")
    probes = [({"lr": t.config["lr"]}, t.value) for t in trials[10:14]]
    space = second.stage.space["lr"]
    known = [p for p in probes if space.lower <= p[0]["lr"] <= space.upper]
    assert told[-len(known) :] == known
    assert 2 <= len(known) < len(probes), "the worst lies outside"
    assert {i for i, *_ in heard(second, "complete")} == set(own)
    assert second.stage.evaluations == 4 == len(own)
    assert (second.stage.size, second.stage.number) == (16, 1)
    assert second.space["lr"].upper <= 1.0
    assert first.stage.seed != second.stage.seed


@pytest.mark.parametrize("bad", INVALID)
def test_a_failure_is_told_as_one_and_a_result_without_a_number_not_at_all(bad: Any) -> None:
    spies = Spies()
    search = grown(spies)
    play(search, lambda c: bad if c["lr"] > 0.05 else valley(c), trials=10, stopped=False)
    (spy,) = spies.made
    assert all(math.isfinite(result["loss"]) for _, result in heard(spy, "result"))
    ended = heard(spy, "complete")
    assert [error for _, _, error in ended].count(True) == 3
    assert all((result is None) == error for _, result, error in ended)
    assert search.explain().rows[0]["failed"] == 3


def test_a_searcher_that_ends_early_ends_its_stage() -> None:
    spies = Spies(lambda spy: Searcher.FINISHED if spy.asked > 7 else "go on")
    trials, finished = play(grown(spies), valley, trials=99)
    assert finished
    assert Counter(t.config["image_size"] for t in trials) == {8: 7, 16: 8}


def test_a_searcher_that_waits_for_nothing_is_not_waited_for() -> None:
    """Ray would block: a random configuration instead; with trials under way it waits."""
    spies = Spies(lambda spy: None)
    trials, finished = play(grown(spies), valley, trials=99)
    assert finished
    assert len(trials) == 18
    assert len({t.config["lr"] for t in trials}) > 10
    search = grown(Spies(lambda spy: None if spy.asked > 1 else "go on"))
    assert search.suggest("a") is not None
    assert search.suggest("b") is None


def test_a_forbidden_suggestion_is_told_as_failed_and_asked_again() -> None:
    def say(spy: Spy) -> Any:
        spy.calls.append(("suggest", "?"))
        return {"x": "a", "y": (spy.asked + 1) % 3}

    space = ConfigurationSpace({"x": ["a", "b"], "y": (0, 2)})
    space.add(
        ForbiddenAndConjunction(
            ForbiddenEqualsClause(space["x"], "a"), ForbiddenEqualsClause(space["y"], 2)
        )
    )
    spies = Spies(say)
    search = grown(spies, space=space)
    assert search.suggest("t")["y"] == 0
    assert heard(spies.made[0], "complete") == [("t", None, True)]
    search.on_trial_complete("t", {"loss": 1.0})
    assert heard(spies.made[0], "complete")[1][0] == "t-1"


def test_a_searcher_without_a_state_in_json_is_asked_and_told_the_same_again(
    tmp_path: Path,
) -> None:
    before, after = Spies(), Spies()
    search, other = grown(before), grown(after, space=None)
    play(search, valley, trials=5)
    running = search.suggest("running")
    search.on_pause("running")
    search.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    old, new = before.made[-1], after.made[-1]
    assert json.loads(json.dumps(old.calls)) == json.loads(json.dumps(new.calls))
    assert old.asked == new.asked == 6
    other.on_trial_complete("running", {"loss": valley(running)})
    assert heard(new, "complete")[-1][0] == "running"


def test_a_searcher_that_answers_otherwise_is_made_again_and_told_again(tmp_path: Path) -> None:
    before, after = Spies(), Spies(lambda spy: {"lr": 0.5 / spy.asked, "batch": 32})
    search, other = grown(before), grown(after, space=None)
    play(search, valley, trials=5)
    search.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    assert other.suggest("next") is not None
    told = heard(after.made[-1], "point")
    assert len(told) == 5
    assert other.explain().rows[0]["ended"] == 5


def test_pauses_are_passed_on_and_do_not_count_under_a_limit() -> None:
    limited = ConcurrencyLimiter(grown("bohb"), max_concurrent=2)
    assert [limited.suggest(f"t{i}") is None for i in range(3)] == [False, False, True]
    limited.on_pause("t0")
    assert limited.suggest("t3") is not None
    limited.on_unpause("t0")
    limited.on_trial_complete("t1", {"loss": 1.0})
    assert limited.suggest("t4") is None


def test_lost_trials_are_given_up_when_ray_has_nothing_else(monkeypatch: Any) -> None:
    search = grown()
    for i in range(10):
        search.suggest(f"t{i}")
    assert search.suggest("x") is None
    monkeypatch.setattr(search._polls, "blocked", lambda: 99)
    with pytest.warns(TransferWarning):
        config = search.suggest("x")
    assert config["image_size"] == 16
    assert search.explain().rows[0]["failed"] == 10
    search.on_trial_complete("t0", {"loss": 0.5})  # it was only slow
    assert search.explain().rows[0]["failed"] == 9


def test_lost_trials_do_not_fill_a_limit_for_ever(monkeypatch: Any) -> None:
    search = grown()
    assert search.set_max_concurrency(2)
    assert [search.suggest(f"t{i}") is None for i in range(3)] == [False, False, True]
    monkeypatch.setattr(search._polls, "blocked", lambda: 99)
    assert search.suggest("x")["image_size"] == 8
    assert search.explain().rows[0]["failed"] == 2


# --- spaces and arguments --------------------------------------------------------------------


def test_every_kind_of_domain_and_a_nested_size() -> None:
    space = {
        "net": {"width": tune.qlograndint(8, 64, 8), "act": tune.choice(["relu", None, ("a", 1)])},
        "drop": tune.quniform(0, 0.5, 0.1),
        "data": {"size": 99},
    }
    search = ImageGrowthSearch("tpe", SIZES, size_key="data/size", seed=1)
    assert search.set_search_properties("accuracy", "max", space)
    trials, finished = play(
        search, lambda c: c["drop"] + c["net"]["width"], trials=99, metric="accuracy"
    )
    assert finished
    assert [t.config["data"]["size"] for t in trials] == [8] * 10 + [16] * 8
    for trial in trials:
        net = trial.config["net"]
        assert net["width"] % 8 == 0
        assert 8 <= net["width"] <= 64
        assert net["act"] in ("relu", None, ("a", 1))
        assert trial.config["drop"] in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert search.best_config["data"] == {"size": 16}
    rows = search.explain().to_rows()
    assert rows[1]["best"] == max(t.value for t in trials[10:])
    assert rows[1]["correlation"] == 1.0
    assert "net/width" in rows[1]["narrowed"]
    assert "correlation" in str(search.explain())


def test_before_anything_has_happened() -> None:
    assert ImageGrowthSearch().best_config is None
    assert str(ImageGrowthSearch().explain()) == "nothing has been probed yet"
    assert grown().best_config is None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"factory": "annealing"}, InvalidValueError, "must be one of random, tpe, gp"),
        ({"factory": 3}, InvalidTypeError, "must be a function from a GrowthStage"),
        ({"sizes": [(8, 3), (8, 3)]}, InvalidValueError, "must increase"),
        ({"size_key": ""}, InvalidTypeError, "size_key must be the name"),
        ({"size_key": "lr"}, InvalidValueError, "is in the search space"),
        ({"space": {"lr": 3}}, InvalidValueError, "the search space is empty"),
        ({"points_to_evaluate": [{"lr": 7.0}]}, InvalidValueError, "not in the space"),
        ({"enough": 0}, InvalidValueError, "enough must be in"),
        ({"mode": "least"}, InvalidValueError, "mode must be one of"),
        ({"seed": -1}, InvalidValueError, "seed must not be negative"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        grown(**options)


def test_a_missing_package_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install hyperopt"):
        grown("hyperopt")


def test_a_factory_must_make_a_searcher() -> None:
    with pytest.raises(InvalidTypeError, match="must return a Ray searcher"):
        grown(lambda stage: 3).suggest("a")


@pytest.mark.parametrize("key", ["growth", "inner", "space", "seed"])
def test_a_state_that_is_damaged_anywhere_changes_nothing(key: str, tmp_path: Path) -> None:
    search, fresh = grown("tpe"), grown("tpe")
    play(search, valley, trials=5)
    state = json.loads(json.dumps(search.get_state()))
    state[key] = {"stage": 0}
    (tmp_path / "state").write_text(json.dumps(state))
    with pytest.raises(StateError):
        fresh.restore(str(tmp_path / "state"))
    assert fresh.suggest("a") == grown("tpe").suggest("a")


# --- evaluated points in our own searchers ---------------------------------------------------


def test_bohb_learns_from_evaluated_points() -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="max", seed=0)
    for i in range(40):
        search.add_evaluated_point({"x": i / 40}, -abs(i / 40 - 0.7))
    search.add_evaluated_point({"x": 0.1}, 9.0, error=True)
    search.add_evaluated_point({"x": 0.1}, 9.0, pruned=True)
    assert search._model is not None
    assert search._model.counts() == {1.0: 41}
    drawn = [search.suggest(f"t{i}")["x"] for i in range(30)]
    assert sum(abs(x - 0.7) < 0.15 for x in drawn) > 15
    with pytest.raises(InvalidValueError, match="not in the space"):
        search.add_evaluated_point({"x": 7.0}, 1.0)


@pytest.mark.skipif(importlib.util.find_spec("smac") is None, reason="needs smac")
def test_smac_knows_evaluated_points_after_a_restore_too(tmp_path: Path) -> None:
    space = {"net": {"x": tune.randint(0, 6)}}
    one, other = SMACSearch(space, "loss", "min", seed=0, n_trials=8), SMACSearch()
    for x in (0, 1, 2):
        one.add_evaluated_point({"net/x": x}, float(x))
    one.add_evaluated_point({"net": {"x": 3}}, math.nan)
    one.add_evaluated_point({"net/x": 4}, 0.0, pruned=True)
    one.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    trials, finished = play(other, lambda c: c["net"]["x"], trials=9, epochs=1)
    assert finished
    assert sorted(t.config["net"]["x"] for t in trials) == [4, 5]


# --- real runs -------------------------------------------------------------------------------


def trained(config: dict[str, Any]) -> None:
    with Path(config["home"], "notes").open("a") as file:
        file.write(json.dumps([config["image_size"], config["lr"]]) + "\n")
    for epoch in range(2):
        tune.report({"loss": valley(config) + 1 / (epoch + config["image_size"])})


def test_a_run_of_rays(run: Any, tmp_path: Path) -> None:
    search = ImageGrowthSearch("tpe", SIZES, metric="loss", mode="min", seed=0)
    analysis = run(trained, search_alg=search)
    assert Counter(t.config["image_size"] for t in analysis.trials) == dict(SIZES)
    assert {t.status for t in analysis.trials} == {"TERMINATED"}
    assert search.best_config is not None
    assert search.best_config["image_size"] == 16
    large = [t.last_result["loss"] for t in analysis.trials if t.config["image_size"] == 16]
    assert valley(search.best_config) + 1 / 17 == pytest.approx(min(large))
    assert search.explain().rows[1]["pairs"] == 4


def test_a_restored_run_has_the_same_number_of_evaluations(cluster: str, tmp_path: Path) -> None:
    def start() -> Any:
        search = ImageGrowthSearch("tpe", SIZES, metric="loss", mode="min", seed=0)
        tuner = tune.Tuner(
            trained,
            param_space={"lr": tune.loguniform(1e-6, 1.0), "home": str(tmp_path)},
            tune_config=tune.TuneConfig(search_alg=search, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="experiment",
                storage_path=str(tmp_path),
                verbose=0,
                callbacks=[Ends(tmp_path, 27)],
            ),
        )
        if (tmp_path / "ended").exists():
            tuner = tune.Tuner.restore(str(tmp_path / "experiment"), trainable=trained)
        return tuner.fit()

    with pytest.raises(Exception, match="the driver ends here"):
        start()
    let_ray_end(tmp_path / "experiment")
    results = start()
    configs = [r.config for r in results if r.config]
    assert Counter(c["image_size"] for c in configs) == dict(SIZES)
    noted = [tuple(json.loads(line)) for line in (tmp_path / "notes").read_text().splitlines()]
    assert {(c["image_size"], c["lr"]) for c in configs} <= set(noted)
