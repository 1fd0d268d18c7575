"""The joint search's tasks: what is searched, the recipe, runs that repeat and continue exactly."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from tests.benchmark.tasks.data_files import write_idx
from tune_ext.benchmark import tasks
from tune_ext.benchmark._method import Setup
from tune_ext.benchmark.methods import METHODS, unsuited
from tune_ext.benchmark.tasks._augment import Cutout, Mixup
from tune_ext.benchmark.tasks.joint import JOINT_TASKS, small_limits
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.models import ShakeShake

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    **{f"nr_residual_blocks_{group}": 1 for group in (1, 2, 3)},
    **{f"widen_factor_{group}": 1.0 for group in (1, 2, 3)},
    "initial_filters": 4,
}
SHAKEN = {**TINY, "res_branches_1": 2, "death_rate": 0.5, "alpha": 0.4, "length": 3}


@pytest.fixture(scope="module")
def digits():
    return tasks.create("digits-joint", epochs=3)


# What is searched ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [task.name for task in JOINT_TASKS])
def test_a_task_is_rebuilt_from_its_json_options(name):
    task = tasks.create(name, epochs=27, limits={"initial_filters": (4, 6)}, budgets=[1, 5])
    again = tasks.create(name, **json.loads(json.dumps(task.options)))
    assert (again.options, again.space) == (task.options, task.space)
    assert (again.default_config, again.budgets) == (task.default_config, (1.0, 5.0))


def test_parts_of_the_space_and_their_defaults():
    whole, architecture, training = (
        tasks.create(f"cifar10-joint{part}") for part in ("", "-architecture", "-hyperparameters")
    )
    assert len(whole.space) == 17
    assert {*architecture.space} | {*training.space} == {*whole.space}
    assert not {*architecture.space} & {*training.space}
    assert "learning_rate" in training.space
    assert architecture.default_config == training.default_config == whole.default_config
    assert architecture.searches_architecture
    assert not training.searches_architecture
    assert whole.budgets == (1, 3, 9, 27, 81)


def test_shake_shake_draws_the_weights_asked_for():
    config = {**TINY, "res_branches_1": 2}
    for options in ({}, {"coefficients": "uniform"}, {"coefficients": "softmax"}):
        task = tasks.create("digits-joint", **options)
        expected = options.get("coefficients", "uniform")
        assert task.options["coefficients"] == expected
        found = {m.coefficients for m in task.build(config).modules() if isinstance(m, ShakeShake)}
        assert found == {expected}


def test_small_limits_are_within_the_published_ones_but_for_the_channels(digits):
    published = tasks.create("digits-joint", limits="published").space
    for name, (lower, upper) in small_limits(8).items():
        assert published[name].upper >= upper >= lower
        assert (digits.space[name].lower, digits.space[name].upper) == (lower, upper)
        assert lower <= digits.default_config[name] <= upper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": "tiny"}, "limits.*'tiny'"),
        ({"limits": 3}, "limits.*got 3"),
        ({"unit": "steps"}, "unit.*'steps'"),
        ({"coefficients": "even"}, "coefficients.*'even'"),
        ({"unit": "seconds"}, "budgets in seconds must be given"),
        ({"budgets": [3, 1]}, "budgets must increase"),
        ({"first_cycle": 0}, "first_cycle.*0"),
    ],
)
def test_bad_options_are_refused_with_the_value(options, message):
    with pytest.raises((InvalidTypeError, InvalidValueError), match=message):
        tasks.create("digits-joint", **options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"momentum": 1.0}, r"momentum.*1\.0"),
        ({"batch_size": 2.5}, r"batch_size.*2\.5"),
        ({"length": -1}, "length.*-1"),
        ({"alpha": math.nan}, "alpha.*nan"),
        ({"res_branches_1": 0}, "res_branches_1.*0|branches.*0"),
        ({"death_rate": 1.5}, r"death_rate.*1\.5"),
        ({"initialization": "he"}, "initialization.*'he'"),
        ({"lr": 0.1}, "'lr'"),
    ],
)
def test_impossible_configurations_are_refused_with_the_value(digits, config, message):
    with pytest.raises((InvalidTypeError, InvalidValueError), match=message):
        digits.start(config, seed=0)


def test_what_is_built_depends_on_the_architecture_alone(digits):
    read = set()

    class Watched(dict):
        def get(self, name, default=None):
            read.add(name)
            return super().get(name, default)

        __iter__ = items = keys = None

    digits.build(Watched(TINY, learning_rate=3.0))
    architecture = tasks.create("digits-joint-architecture", limits="published").space
    assert read == set(architecture)
    assert digits.build(TINY)(digits.example_input).shape == (1, 10)


# Runs ----------------------------------------------------------------------------------


def run_of(task, config, seed=0):
    return task.start({**config, "batch_size": 128}, seed=seed)


def test_runs_repeat_to_the_bit_and_continue_exactly_across_restarts(digits):
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    run = run_of(digits, SHAKEN)
    first = run.train_epoch()
    saved = pickle.loads(pickle.dumps(run.state_dict()))
    expected = [run.train_epoch(), run.train_epoch(), run.test()]
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    again = run_of(digits, SHAKEN)
    assert again.train_epoch() == first
    again.load_state_dict(saved)
    assert [again.train_epoch(), again.train_epoch(), again.test()] == expected
    assert run_of(digits, SHAKEN, seed=1).train_epoch() != first
    assert first.keys() == {"train_loss", "validation_loss", "validation_error", "diverged"}


def test_a_run_that_stops_in_an_epoch_ends_like_one_that_does_not(digits):
    run = run_of(digits, SHAKEN)
    expected = [run.train_epoch(), run.train_epoch()][-1]
    parts = run_of(digits, SHAKEN)
    parts.train_to(0.3)
    assert 0.3 <= parts.position < 0.3 + 1 / 8
    saved = parts.state_dict()
    parts = run_of(digits, SHAKEN)
    parts.load_state_dict(saved)
    parts.train_to(1.5, across=True)
    assert parts.epoch == 1
    parts.train_epoch()
    weights = (r._network.state_dict().values() for r in (run, parts))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert parts.test() == run.test()
    assert expected["diverged"] is False


def test_the_rate_falls_to_each_budget_and_starts_over(digits):
    run = run_of(digits, {**TINY, "learning_rate": 0.2})
    rates = []
    step = run._step

    def watched(inputs, targets, rate):
        rates.append(rate)
        return step(inputs, targets, rate)

    run._step = watched
    while run.epoch < 3:
        run.train_epoch()
    batches = run._batches
    assert rates[0] == rates[batches] == 0.2  # budgets are 1 and 3 epochs
    assert rates[batches - 1] < 0.03
    assert rates[2 * batches] == pytest.approx(0.1)
    for cycle in (rates[:batches], rates[batches:]):
        assert cycle == sorted(cycle, reverse=True)


def test_seconds_are_those_of_training_alone():
    task = tasks.create("digits-joint", unit="seconds", budgets=[4, 12])
    run = run_of(task, TINY)
    now = itertools.count()
    run._clock = lambda: float(next(now))
    for position in (4, 12):
        run.train_to(position, across=True)
        assert run.position == run.train_seconds == position  # a second a batch
    assert run._optimizer.param_groups[0]["lr"] < 0.02
    saved = run.state_dict()
    again = run_of(task, TINY)
    again.load_state_dict(saved)
    assert again.position == 12
    run.train_to(math.inf, across=True, seconds=2)
    assert run.position == 14


def test_momentum_is_nesterovs_and_the_configurations_own(digits):
    run = run_of(digits, {**TINY, "momentum": 0.7})
    run.train_epoch()
    other = run_of(digits, {**TINY, "momentum": 0.0, "weight_decay": 1e-5})
    other.load_state_dict(run.state_dict())
    (group,) = other._optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.0, False, 1e-5)
    assert run._optimizer.param_groups[0]["nesterov"] is True


def test_a_state_that_does_not_fit_is_refused(digits):
    saved = run_of(digits, TINY).state_dict()
    run = run_of(digits, TINY)
    with pytest.raises(StateError, match="lacks batches"):
        run.load_state_dict({k: v for k, v in saved.items() if k != "batches"})
    with pytest.raises(StateError, match="fewer batches"):
        run.load_state_dict({**saved, "batches": 10**6})


def test_divergence_is_a_result_and_ends_the_work(digits):
    run = run_of(digits, {**TINY, "learning_rate": 1e30})
    metrics = [run.train_epoch() for _ in range(3)]
    assert all(m["diverged"] for m in metrics)
    assert math.isnan(metrics[0]["validation_error"])
    assert run.epoch == 3


def test_scaled_weights_are_those_of_the_plan(digits):
    plain, scaled = (
        run_of(digits, {**TINY, "initialization": how})._network for how in ("default", "scaled")
    )
    weights = dict(scaled.named_parameters())
    assert any(not torch.equal(w, weights[n]) for n, w in plain.named_parameters())
    metrics = run_of(digits, {**TINY, "initialization": "scaled"}).train_epoch()
    assert metrics["diverged"] is False


def test_fashion_mnist_is_split_ten_to_one_and_its_validation_is_not_varied(tmp_path):
    write_idx(tmp_path, train=300)
    task = tasks.create("fashion-mnist-joint", data_dir=str(tmp_path), train_size=180, epochs=1)
    assert task.options["validation_size"] == 20
    assert tasks.create("fashion-mnist-joint", **task.options).options == task.options
    run = run_of(task, {**TINY, "length": 9, "alpha": 1.0})
    run.train_epoch()
    assert run._evaluate(run._split.validation, "v") == run._evaluate(run._split.validation, "v")
    assert task.example_input.shape == (1, 1, 14, 14)
    nowhere = tasks.create("fashion-mnist-joint", data_dir=str(tmp_path / "none"))
    assert "download=True" in nowhere.missing()


# Mixup and Cutout ----------------------------------------------------------------------


def test_cutout_zeroes_one_square_around_any_pixel():
    images = torch.ones(1000, 2, 7, 9)
    for length in (1, 4, 5):
        cut = Cutout(length)(images, np.random.default_rng(0))
        assert torch.equal(cut[:, 0], cut[:, 1])
        holes = cut[:, 0] == 0
        sides = torch.stack([holes.any(2).sum(1), holes.any(1).sum(1)])
        assert torch.equal(holes.sum((1, 2)), sides.prod(0))  # a rectangle
        assert sides.max() == length
        assert (sides.min() < length) == (length > 1)  # some at the edge
        assert holes.any(0).all()
    assert Cutout(0)(images, np.random.default_rng(0)) is images


def test_mixup_is_one_weight_a_batch_and_a_weighted_loss():
    torch.manual_seed(0)
    images, targets = torch.rand(16, 1, 4, 4), torch.arange(16) % 4
    mixed, shares = Mixup(0.7, 4)(images, targets, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    weight, other = rng.beta(0.7, 0.7), torch.from_numpy(rng.permutation(16))
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * images[other])
    loss = torch.nn.functional.cross_entropy
    logits = torch.rand(16, 4)
    both = weight * loss(logits, targets) + (1 - weight) * loss(logits, targets[other])
    torch.testing.assert_close(loss(logits, shares), both.float())
    assert Mixup(0.0, 4)(images, targets, rng)[1] is targets


# Under the methods ---------------------------------------------------------------------


def test_methods_say_whether_they_are_suited():
    joint, training = tasks.create("digits-joint"), tasks.create("digits-joint-hyperparameters")
    for name in ("grid", "random", "asha", "bohb", "our-bohb", "our-bohb+scaled", "tpe", "smac"):
        assert unsuited(name, joint) is None, name
    assert "one network" in unsuited("our-bohb+scaled", training)
    assert "no learning rate" in unsuited("exptest", joint)
    assert "response" in unsuited("autohyper", joint)
    assert "architecture" in unsuited("pbt", joint)
    assert unsuited("pbt", training) is None


@pytest.mark.parametrize("name", ["grid", "tpe", "bohb", "our-bohb", "smac"])
def test_what_methods_suggest_can_be_trained(name):
    """Inactive parameters are missing, or there without an effect; numbers may be numpy's."""
    task = tasks.create("digits-joint", epochs=3)
    np.random.seed(0)  # noqa: NPY002 (as whoever runs a cell does)
    search = METHODS[name].build(Setup(task, 27, 0)).search_alg
    search.set_search_properties("validation_error", "min", {})
    run = task.start({**search.suggest("a"), "batch_size": 128}, seed=0)
    assert math.isfinite(run.train_to(0.01)["validation_error"])


def test_rates_are_scaled_from_that_of_the_default_configuration():
    from tune_ext.raytune.scaling import ArchitectureScaledSearch

    task = tasks.create("digits-joint")
    search = METHODS["our-bohb+scaled"].build(Setup(task, 27, 0)).search_alg
    assert isinstance(search, ArchitectureScaledSearch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same, deeper = (
            search.scale({**task.default_config, "nr_residual_blocks_1": n}) for n in (2, 3)
        )
    assert same["learning_rate"] == pytest.approx(0.1)
    assert 0 < deeper["learning_rate"] < 0.1
    assert task.start({k: v for k, v in deeper.items() if k != "tune_ext"}, seed=0).epoch == 0
