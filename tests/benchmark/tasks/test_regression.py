"""Tests of the tasks without convolutions: regressions, and digits with an MLP."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from tests.benchmark.tasks import data_files
from tune_ext.benchmark import tasks
from tune_ext.errors import DataNotFoundError, InvalidTypeError, InvalidValueError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def housing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data_files.write_housing(folder)
    return str(folder)


@pytest.fixture(params=["diabetes", "california-housing", "digits-mlp"])
def task(request, housing):
    options = {"data_dir": housing} if request.param == "california-housing" else {}
    return tasks.create(request.param, epochs=3, hidden=(16,), **options)


def test_runs_repeat_to_the_bit_and_go_on_exactly_where_they_were_saved(task):
    run = task.start({"lr": 1e-2, "weight_decay": 1e-4}, seed=1)
    first = run.train_epoch()
    saved = pickle.loads(pickle.dumps(run.state_dict()))
    expected = [run.train_epoch(), run.test()]
    again = task.start({"lr": 1e-2, "weight_decay": 1e-4}, seed=1)
    assert again.train_epoch() == first
    resumed = task.start({"lr": 1e-2, "weight_decay": 1e-4}, seed=1)
    resumed.load_state_dict(saved)
    assert [resumed.train_epoch(), resumed.test()] == expected
    assert task.start({}, seed=2).train_epoch() != first
    assert not task.measures_response
    assert first.keys() == {"train_loss", "validation_loss", "validation_error", "diverged"}


def test_a_rebuilt_task_is_equal(task):
    again = tasks.create(task.name, **task.options)
    assert again.options == task.options
    assert again.options["hidden"] == [16]


@pytest.mark.parametrize("name", ["diabetes", "california-housing"])
def test_errors_are_in_units_of_the_variance(name, housing):
    options = {"data_dir": housing} if name == "california-housing" else {}
    task = tasks.create(name, **options)
    assert (task.percent, task.loss, task.worst_error) == (False, "mse", 1.0)
    split = task._split(0)
    known = np.concatenate([split.train.labels, split.validation.labels])
    assert known.std() == pytest.approx(1, abs=1e-5)
    assert split.train.labels.mean() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(split.train.images.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(split.train.images.std(axis=0), 1, atol=1e-5)
    total = sum(len(part) for part in (split.train, split.validation, split.test))
    assert total == {"diabetes": 442, "california-housing": 400}[name]
    run = task.start({"lr": 0.0}, seed=0)
    for layer in run._network[1::2]:  # a network that answers the mean
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    metrics = run.train_epoch()
    assert metrics["validation_error"] == metrics["validation_loss"]
    expected = np.mean(split.validation.labels.astype(float) ** 2)
    assert metrics["validation_error"] == pytest.approx(expected, rel=1e-5)
    assert run.test()["test_error"] == pytest.approx(np.mean(split.test.labels**2), rel=1e-5)


def test_the_test_examples_are_the_same_for_every_seed_and_the_others_are_drawn():
    first, second = (tasks.create("diabetes")._split(seed) for seed in (0, 1))
    assert len(first.train) == 266
    np.testing.assert_allclose(
        first.test.labels - first.test.labels.mean(),
        second.test.labels - second.test.labels.mean(),
        atol=1e-5,
    )
    assert not np.array_equal(first.validation.labels, second.validation.labels)


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "bound"),
    [
        ("diabetes", 3e-3, 10, 0.7),
        ("california-housing", 1e-2, 10, 0.3),
        ("digits-mlp", 3e-3, 5, 0.1),
    ],
)
def test_they_are_learned(name, lr, epochs, bound, housing):
    options = {"data_dir": housing, "batch_size": 16} if name == "california-housing" else {}
    task = tasks.create(name, epochs=epochs, **options)
    run = task.start({"lr": lr}, seed=0)
    history = [run.train_epoch() for _ in range(epochs)]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["validation_error"] < bound
    assert run.test()["test_error"] < bound


def test_divergence_is_a_result():
    run = tasks.create("diabetes", optimizer="sgd").start({"lr": 1e20}, seed=0)
    metrics = run.train_epoch()
    assert metrics["diverged"] is True
    assert math.isnan(metrics["validation_error"])
    assert math.isnan(run.test()["test_error"])


def test_a_run_finds_its_own_rate():
    task = tasks.create("diabetes", epochs=4)
    plan = tasks.plan_rungs(task, 0)
    assert plan.bound == pytest.approx(2 / 11, rel=0.05)  # ten features of unit variance, bias
    assert plan.epochs == 2
    run = tasks.start(task, {"lr": "exptest"}, seed=0)
    for _ in range(200):
        if run.epoch == 4:
            break
        run.train_epoch()
    assert run.epoch == 4
    assert run.test()["test_error"] < 1


def test_the_digits_have_the_splits_of_the_cnn():
    assert tasks.create("digits-mlp")._split(3) is tasks.create("digits-cnn")._split(3)


@pytest.mark.parametrize("hidden", [[], "64", 64, [0], [1.5]])
def test_bad_widths_are_refused(hidden):
    with pytest.raises((InvalidTypeError, InvalidValueError), match="hidden"):
        tasks.create("diabetes", hidden=hidden)


def test_absent_and_damaged_housing_says_what_to_do(tmp_path, monkeypatch, housing):
    task = tasks.create("california-housing", data_dir=str(tmp_path))
    sentence = task.missing()
    assert f"fetch_california_housing(data_home={str(tmp_path)!r})" in sentence
    assert "\n" not in sentence
    with pytest.raises(DataNotFoundError, match="fetch_california_housing"):
        task.start({}, seed=0)
    (tmp_path / "cal_housing_py3.pkz").write_bytes(b"<html>")
    with pytest.raises(DataNotFoundError, match=r"cal_housing_py3\.pkz cannot be read"):
        task.start({}, seed=0)
    for variable in ("TUNE_EXT_DATA", "SCIKIT_LEARN_DATA"):
        with monkeypatch.context() as context:
            context.setenv(variable, housing)
            assert tasks.create("california-housing").missing() is None
