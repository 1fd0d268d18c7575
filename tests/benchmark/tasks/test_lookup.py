"""What holds for every task that is looked up: tables and functions alike."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from tests.benchmark.tasks.lookups import sample
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks import CountingOnesTask, FunctionTask, TableTask
from tune_ext.benchmark.tasks._lookup import LookupTask
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

# One table of each family: reading all fifteen takes seconds.
NAMES = [
    *("fcnet-protein", "hpobench-car", "nasbench201-cifar10"),
    *(name for name in tasks.names() if name.startswith("function-")),
]


@pytest.fixture(params=NAMES)
def task(request):
    return tasks.create(request.param)


def history(run, epochs):
    return [run.train_epoch() for _ in range(epochs)]


@pytest.mark.parametrize("kind", [TableTask, FunctionTask, CountingOnesTask])
def test_every_kind_is_in_the_registry(kind):
    assert any(isinstance(tasks.create(name), kind) for name in tasks.names())


@pytest.mark.parametrize(
    "name", [n for n in tasks.names() if isinstance(tasks.create(n), LookupTask)]
)
def test_a_task_is_rebuilt_from_its_json_options(name):
    task = tasks.create(name, noise=0.25)
    again = tasks.create(name, **json.loads(json.dumps(task.options)))
    assert again.options == task.options
    assert again.options["noise"] == 0.25
    assert (again.name, again.space, again.max_epochs) == (name, task.space, task.max_epochs)
    assert dict(task.space.get_default_configuration()) == task.default_config
    assert (task.simulated, task.measures_response, task.loss) == (True, False, None)
    assert task.description
    with pytest.raises(InvalidValueError, match=r"has no option 'size'; it has .*noise"):
        tasks.create(name, size=3)


@pytest.mark.parametrize(
    ("noise", "message"), [(-0.1, r"-0\.1"), (np.inf, "inf"), (np.nan, "nan"), ("1", "'1'")]
)
def test_bad_noise_is_refused_with_the_value(noise, message):
    with pytest.raises((InvalidValueError, InvalidTypeError), match=rf"noise.*{message}"):
        tasks.create("function-branin", noise=noise)


def test_runs_begin_at_once_cost_something_and_repeat(task):
    for config in sample(task, 5):
        run = task.start(config, seed=3)
        assert (run.epoch, list(run.step_losses)) == (0, [])
        seen = history(run, task.max_epochs)
        assert run.epoch == task.max_epochs
        assert all(np.isfinite(metrics["validation_error"]) for metrics in seen)
        assert all(metrics["seconds"] > 0 and metrics["diverged"] is False for metrics in seen)
        assert history(tasks.create(task.name).start(config, seed=3), task.max_epochs) == seen
        assert run.test() == {"test_error": task.true_error(config)}
        # Beyond the full length nothing new is seen, and it is paid for all the same.
        beyond = run.train_epoch()
        assert beyond["validation_error"] == seen[-1]["validation_error"]
        assert beyond["seconds"] > 0


def test_noise_is_seeded_and_leaves_the_truth_alone(task):
    noisy = tasks.create(task.name, **{**task.options, "noise": 0.3})
    (config,) = sample(task, 1, seed=1)
    assert noisy.true_error(config) == task.true_error(config)
    assert noisy.regret_range == task.regret_range
    one, two, other = (history(noisy.start(config, seed=s), noisy.max_epochs) for s in (0, 0, 1))
    assert one == two != other
    quiet = history(task.start(config, seed=0), task.max_epochs)
    assert quiet != one
    assert [m["seconds"] for m in quiet] == [m["seconds"] for m in one]


def test_nothing_is_better_than_the_best_and_half_is_better_than_the_median(task):
    best, median = task.regret_range
    errors = [task.true_error(config) for config in sample(task, 400)]
    assert min(errors) >= best
    # The number below the median is binomial: outside these bounds with probability 5e-7.
    assert 150 <= sum(error < median for error in errors) <= 250
    assert task.worst_error >= max(errors)


def test_a_saved_run_goes_on_exactly_and_only_as_itself(task):
    one, two = sample(task, 2)
    run = task.start(one, seed=0)
    run.train_epoch()
    state = pickle.loads(pickle.dumps(run.state_dict()))
    assert json.loads(json.dumps(state)) == state
    rest = history(run, 3)
    again = tasks.create(task.name).start(one, seed=0)
    again.load_state_dict(state)
    assert again.epoch == 1
    assert history(again, 3) == rest
    with pytest.raises(StateError, match="config"):
        task.start(two, seed=0).load_state_dict(state)
    with pytest.raises(StateError, match="seed"):
        task.start(one, seed=1).load_state_dict(state)
    with pytest.raises(StateError, match="options"):
        tasks.create(task.name, noise=1).start(one, seed=0).load_state_dict(state)
    with pytest.raises(StateError, match="version"):
        again.load_state_dict({**state, "version": 99})
    with pytest.raises(StateError, match="epochs"):
        again.load_state_dict({**state, "epoch": -1})
    with pytest.raises(StateError, match="not the state"):
        again.load_state_dict({})


def test_bad_configurations_and_seeds_are_refused_with_the_value(task):
    name = next(iter(task.space))
    for value in (None, "sideways", -5.5, np.nan, 99, 1.5e9):
        with pytest.raises(InvalidValueError, match=rf"{name}.*{value!r}"):
            task.start({name: value}, seed=0)
    with pytest.raises(InvalidValueError, match="'momentum'"):
        task.start({"momentum": 0.9}, seed=0)
    for seed in (None, -1, 0.5):
        with pytest.raises((InvalidTypeError, InvalidValueError), match="seed"):
            task.start({}, seed=seed)


def test_numbers_of_other_libraries_mean_the_same():
    task = tasks.create("hpobench-car")
    plain = {"alpha": 3, "batch_size": 1, "depth": 2, "learning_rate_init": 5, "width": 9}
    for kind in (np.int64, np.float32, float):
        config = {name: kind(value) for name, value in plain.items()}
        assert task.true_error(config) == task.true_error(plain)
        state = task.start(config, seed=np.int64(0)).state_dict()
        task.start(plain, seed=0).load_state_dict(state)


def test_what_is_left_out_has_its_default(task):
    assert task.true_error({}) == task.true_error(task.default_config)
    assert list(task.describe({})) == list(task.space)
