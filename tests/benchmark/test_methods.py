import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from hypothesis import given
from hypothesis import strategies as st
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint

from tests.benchmark.fake import FakeTask
from tune_ext.benchmark._spaces import grid, number_ordinals, optuna_distributions
from tune_ext.benchmark.methods import (
    METHODS,
    Setup,
    check_methods,
    missing,
    screening_plan,
    unsuited,
)
from tune_ext.benchmark.simulation import simulate
from tune_ext.benchmark.tasks import create
from tune_ext.benchmark.tune_parts import BudgetStopper, NumberedSearch
from tune_ext.errors import InvalidValueError
from tune_ext.raytune._play import FakeController, fake_trial
from tune_ext.spaces import joint_space


def first(setup, n):
    return list(itertools.islice(setup.configurations(), n))


def test_configurations_are_the_same_for_a_seed_and_differ_between_seeds():
    assert first(Setup(FakeTask(), 10, 3), 20) == first(Setup(FakeTask(), 99, 3), 20)
    assert first(Setup(FakeTask(), 10, 3), 5) != first(Setup(FakeTask(), 10, 4), 5)


def test_configurations_touch_neither_the_global_state_nor_the_task():
    task = FakeTask()
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first(Setup(task, 10, 0), 5)
    ours = task.space.sample_configuration()["lr"]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    untouched = FakeTask()
    untouched.space.seed(0)
    task.space.seed(0)
    assert untouched.space.sample_configuration() == task.space.sample_configuration()
    assert isinstance(ours, float)


def test_configurations_are_log_uniform_and_plain():
    drawn = [c["lr"] for c in first(Setup(FakeTask(), 10, 0), 500)]
    assert all(type(lr) is float for lr in drawn)
    # 500 draws: a third below 1e-4; false-failure rate below 1e-5
    assert 0.23 < np.mean(np.array(drawn) < 1e-4) < 0.44


def test_a_trial_is_never_longer_than_the_budget():
    assert Setup(FakeTask(epochs=12), 5, 0).max_epochs == 5
    assert Setup(FakeTask(epochs=12), 50, 0).max_epochs == 12


@given(st.integers(2, 500), st.integers(2, 60))
def test_screening_spends_the_budget_exactly_when_it_can(budget, max_epochs):
    screened, kept = screening_plan(budget, max_epochs)
    assert kept >= 1
    assert screened >= kept
    if budget >= 2 * max_epochs:
        assert screened + kept * (max_epochs - 1) == budget
        assert screened >= budget // 2
        assert screened < budget // 2 + max_epochs + 1


def test_screening_with_nothing_to_train_on():
    assert screening_plan(7, 1) == (7, 0)
    assert screening_plan(1, 9) == (1, 0)


def test_every_method_is_described_and_default_alone_does_not_search():
    assert [n for n, m in METHODS.items() if m.build is None] == ["default"]
    assert all(m.description for m in METHODS.values())
    assert {"default", "one-epoch", "random", "asha", "hyperband", "bohb", "autohyper"} <= set(
        METHODS
    )


def test_a_missing_module_is_told_with_the_fix(monkeypatch):
    from dataclasses import replace

    lacking = replace(METHODS["random"], needs={"no_such_module": "pip install it"})
    monkeypatch.setitem(METHODS, "random", lacking)
    assert missing("random") == "no_such_module is not installed: pip install it"
    assert missing("default") is None


def test_unknown_methods_are_told_with_the_choices():
    check_methods(("default", "asha"))
    with pytest.raises(InvalidValueError, match=r"'nothing'.*choose from default"):
        check_methods(("default", "nothing"))


def mixed():
    space = ConfigurationSpace()
    space.add(
        UniformFloatHyperparameter("lr", 1e-4, 1.0, log=True),
        UniformIntegerHyperparameter("width", 4, 64, log=True),
        CategoricalHyperparameter("act", ["relu", "tanh"]),
        OrdinalHyperparameter("batch", [8, 16, 64]),
        Constant("momentum", 0.9),
    )
    return space


@given(st.integers(1, 200))
def test_a_grid_has_no_point_twice_and_no_more_than_it_may(most):
    points = grid(mixed(), most)
    assert 1 <= len(points) <= most
    assert len({tuple(p.items()) for p in points}) == len(points)
    assert len(points) > most / 2 or most > 30  # one more level would be too much


def test_a_grid_is_spaced_on_each_parameters_own_scale():
    lrs = sorted({p["lr"] for p in grid(FakeTask().space, 3)})
    assert np.log10(lrs) == pytest.approx([-5, -3, -1])
    levels = {k: {p[k] for p in grid(mixed(), 48)} for k in mixed()}
    assert (levels["act"], levels["momentum"]) == ({"relu", "tanh"}, {0.9})
    assert levels["batch"] <= {8, 16, 64}
    assert all(type(w) is int for w in levels["width"])


def test_ordinals_become_numbers_in_order_and_come_back():
    space, values = number_ordinals(mixed())
    assert (space["batch"].lower, space["batch"].upper) == (0, 2)

    class Numbers:
        metric, mode = "loss", "min"

        def suggest(self, trial_id):
            return {"batch": np.int64(2), "act": np.str_("relu")}

    config = NumberedSearch(Numbers(), values).suggest("a")
    assert config == {"batch": 64, "act": "relu"}
    assert (type(config["batch"]), type(config["act"])) == (int, str)


def test_a_space_keeps_its_conditions_where_nothing_is_numbered():
    """Ray's BOHB refuses a configuration in which what is not active has no value, otherwise."""
    space = mixed()
    space.add(EqualsCondition(space["momentum"], space["act"], "relu"))
    with pytest.raises(InvalidValueError, match="the ordinals batch"):
        number_ordinals(space)
    joint = joint_space()
    numbered, values = number_ordinals(joint)
    assert (numbered, values) == (joint, {})
    assert numbered is not joint


@pytest.mark.skipif(missing("tpe") is not None, reason="needs optuna")
def test_every_kind_of_parameter_is_one_of_optunas():
    made = optuna_distributions(mixed())
    assert (made["lr"].low, made["lr"].high, made["lr"].log) == (1e-4, 1.0, True)
    assert (made["width"].low, made["width"].high, made["width"].log) == (4, 64, True)
    assert [made[n].choices for n in ("act", "batch", "momentum")] == [
        ("relu", "tanh"),
        (8, 16, 64),
        (0.9,),
    ]


class Looked:
    """A fake task's run, as the simulation wants it."""

    def __init__(self, task, config):
        self.run = task.start(config, seed=0)

    def step(self):
        result = {**self.run.train_epoch(), "epoch": self.run.epoch, "seconds": self.run.lr + 1}
        return {**result, "done": result["diverged"]}

    def state(self):
        return self.run.state_dict()

    def load(self, state):
        self.run.load_state_dict(state)


def trained(name, path, epochs=4, workers=1):
    """Every epoch that a method trains."""
    task = FakeTask(epochs=epochs, parameters=["lr", "other"], nan_above=0.5)
    setup = Setup(task, 12 * epochs, 3, workers)
    np.random.seed(3)  # noqa: NPY002 (as whoever runs a cell does)
    search = METHODS[name].build(setup)
    rows = []
    full = None if search.stops_trials else epochs
    simulate(
        lambda config: Looked(task, config),
        search_alg=search.search_alg,
        scheduler=search.scheduler,
        stopper=BudgetStopper(
            setup.budget, full, lambda _, r: rows.append((r["config"]["lr"], r["epoch"]))
        ),
        workers=workers,
        storage=path,
    )
    return rows, search


# PBT hands on checkpoints, which the simulated clock does not know: it has tests of its own.
OTHERS = ("default", "pbt", "autohyper", "exptest", "exptest+random")
SEARCHES = [
    n for n in METHODS if n not in OTHERS and not n.endswith(("+scaled", "+init", "+growth"))
]


@pytest.mark.parametrize("name", [n for n in SEARCHES if not missing(n) and n != "smac"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_seed_is_a_run_and_no_trial_is_too_long(name, workers, tmp_path):
    if METHODS[name].reproducible is not None:
        pytest.skip(METHODS[name].reproducible)
    random.seed(1)
    rows, _ = trained(name, tmp_path, workers=workers)
    random.seed(2)
    assert trained(name, tmp_path, workers=workers)[0] == rows
    assert max(epoch for _, epoch in rows) <= 4
    assert len(rows) <= 48
    if name != "grid":
        assert len(rows) == 48, "the budget was not used"


class Handing(FakeController):
    """Ray's controller, as far as PBT needs it: a save is there at once."""

    def _schedule_trial_save(self, trial, result=None):
        return Checkpoint("/nowhere/weights")


def population(path, epochs=6):
    """A population of five on a fake task, one epoch each in turn; what was trained with."""
    setup = Setup(FakeTask(epochs=epochs), 5 * epochs, 3)
    scheduler = METHODS["pbt"].build(setup).scheduler
    controller = Handing()
    storage = StorageContext(str(path), "pbt")
    trials = [fake_trial(storage, c, f"t{i}") for i, c in enumerate(first(setup, 5))]
    for trial in trials:
        controller.add(scheduler, trial)
    ways = {trial: [] for trial in trials}
    for epoch in range(1, epochs + 1):
        for trial in trials:
            ways[trial].append(trial.config["lr"])
            error = abs(math.log10(trial.config["lr"]) + 2) / epoch
            result = {"validation_error": error, "training_iteration": epoch}
            controller.report(scheduler, trial, result)
    return scheduler, trials, ways


def test_pbt_is_repeatable_stays_in_bounds_and_leaves_the_global_generators_alone(tmp_path):
    random.seed(4)
    outside = random.getstate()
    scheduler, _, ways = population(tmp_path / "a")
    assert random.getstate() == outside
    random.seed(5)
    again, _, others = population(tmp_path / "b")
    assert list(ways.values()) == list(others.values())
    assert scheduler.schedule() == again.schedule()
    assert scheduler.details()["perturbations"] > 0
    assert all(1e-6 <= lr <= 1.0 for way in ways.values() for lr in way)


def test_the_schedule_of_pbt_is_the_way_of_its_best_trials_weights(tmp_path):
    scheduler, trials, ways = population(tmp_path)
    for trial in trials:
        steps = scheduler._lineages[trial]
        assert steps[0][0] == 0
        assert [e for e, _ in steps] == sorted({e for e, _ in steps})
        for start, config in steps[:-1]:
            assert any(way[start] == config["lr"] for way in ways.values())
    assert any(len(scheduler._lineages[trial]) > 1 for trial in trials)
    assert scheduler.answer() == scheduler.schedule()[-1][1]
    nothing = METHODS["pbt"].build(Setup(FakeTask(), 9, 0))
    assert nothing.schedule() == []
    assert nothing.answer() is None


@pytest.mark.parametrize(
    ("name", "epochs", "said"),
    [
        ("one-epoch", 1, "use random"),
        ("median", 1, "no earlier result"),
        ("asha", 1, "no earlier result"),
        ("asha+tpe", 1, "no earlier result"),
        ("hyperband", 2, "trains for 2 epochs"),
        ("bohb", 1, "trains for one epoch"),
        ("pbt", 1, "no time between"),
    ],
)
def test_what_makes_no_sense_on_short_trainings_is_told(name, epochs, said):
    assert said in unsuited(name, FakeTask(epochs=epochs))
    assert unsuited(name, FakeTask(epochs=4)) is None


def test_what_a_task_lacks_is_told():
    task = FakeTask(parameters=["lr", "other"])
    assert unsuited("cma-es", task) is unsuited("autohyper", task) is None
    assert "one parameter" in unsuited("cma-es", FakeTask())
    task.space = mixed()
    assert "act have no order" in unsuited("cma-es", task)
    assert "act, batch, momentum, width are not" in unsuited("autohyper", task)
    task.measures_response = False
    assert "does not measure the response" in unsuited("autohyper", task)
    task.simulated = True
    assert "no weights" in unsuited("pbt", task)


def test_a_training_counted_in_seconds_is_not_compared_in_epochs():
    task = create("digits-joint", unit="seconds", budgets=[1, 3])
    assert "counted in seconds" in unsuited("random", task)
    assert unsuited("random", create("digits-joint")) is None


def test_listing_the_methods_imports_nothing_heavy():
    code = (
        "import sys, tune_ext.benchmark.methods; "
        "print(sorted({'ray', 'torch', 'optuna', 'smac'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_setup_counts_full_trainings():
    assert Setup(FakeTask(epochs=12), 30, 0).trainings == 2
    assert Setup(FakeTask(epochs=12), 5, 0).trainings == 1
    assert math.isfinite(Setup(FakeTask(), 5, 0).derived_seed("x"))
