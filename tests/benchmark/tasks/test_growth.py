"""Tests of the tasks that train at any image size."""

from __future__ import annotations

import math
import os
import pickle

import numpy as np
import pytest
import torch

from tests.benchmark.tasks import data_files
from tune_ext.benchmark import tasks
from tune_ext.benchmark._trainables import TaskTrainable
from tune_ext.benchmark.methods import METHODS, Setup, missing, unsuited
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.tasks import _growth_data, _shapes
from tune_ext.benchmark.tasks.growth import GROWTH_TASKS
from tune_ext.benchmark.tune_parts import Watch
from tune_ext.errors import DataNotFoundError, InvalidConfigurationError, InvalidValueError

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [task.name for task in GROWTH_TASKS]
SMALL = {"filters_1": 4, "filters_2": 4, "units_1": 8, "conv_layers": 2, "learning_rate": 0.01}
LIMITS = {"conv_layers": (1, 3), "filters": (2, 4), "kernel_radius": (1, 1), "units": (4, 8)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    data_files.write_idx(root / "fashion-mnist-growth" / "fashion-mnist", packed=True)
    data_files.write_stl10(root / "stl10-growth")
    data_files.write_flowers(root / "flowers102-growth")
    data_files.write_tiny_imagenet(root / "image-folder-growth")
    return root


@pytest.fixture(autouse=True)
def no_checksums(monkeypatch):
    """The official files have known sums, which no tiny file can have."""
    for module in ("stl10", "flowers102"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, md5=None: os.path.isfile(path),
        )


@pytest.fixture(scope="module")
def create(files, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def create(name, **options):
        if name == "shapes-growth":
            options = {"train_size": 40, "validation_size": 20, "test_size": 10, **options}
        else:
            options = {"data_dir": str(files / name), **options}
        return tasks.create(name, **{"cache_dir": str(cache), "epochs": 3, **options})

    return create


@pytest.mark.parametrize(
    ("name", "train", "test", "channels", "full"),
    [
        ("fashion-mnist-growth", 300, 50, 1, 28),
        ("shapes-growth", 60, 10, 3, 128),
        ("stl10-growth", 60, 20, 1, 96),
        ("flowers102-growth", 204, 102, 3, 128),
        ("image-folder-growth", 60, 15, 3, 128),
    ],
)
def test_every_data_set_is_had_at_every_size(create, name, train, test, channels, full):
    task = create(name)
    assert task.default_config["image_size"] == full
    large, small = task._split(1), task._parts(1, 16)
    assert large.train.images.shape == (train, channels, full, full)
    assert small.train.images.shape == (train, channels, 16, 16)
    for one, other in ((large.train, small.train), (large.validation, small.validation)):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.labels, other.labels)
    both = np.concatenate([small.train.rows, small.validation.rows])
    assert sorted(both) == list(range(train))
    assert small.test.images.shape == (test, channels, 16, 16)
    assert len(small.test.labels) == test
    inputs = small.train.inputs(slice(None))
    np.testing.assert_allclose(inputs.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    assert not np.array_equal(task._parts(2, 16).train.rows, small.train.rows)
    again = tasks.create(name, **task.options)
    assert (again.options, again.space) == (task.options, task.space)
    if name != "shapes-growth":
        grown = create(name, grey=True)._parts(1, 16)
        assert grown.train.images.shape[1] == 1


def test_pictures_stand_upright_beside_their_labels(create):
    """Each class is bright in rows of its own."""
    for name, classes in (("stl10-growth", 10), ("image-folder-growth", 3)):
        split = create(name)._parts(0, 48)
        for part in (split.train, split.test):
            for row, label in zip(part.rows, part.labels, strict=True):
                profile = part.images[row].astype(float).mean(axis=(0, 2))
                expected = (label * (1 / classes) + 0.05) * 44
                assert abs(profile.argmax() - expected) < 5


def test_what_is_in_the_cache_is_not_read_again(create, monkeypatch):
    """Another process of the machine, as it were."""
    task = create("image-folder-growth", train_size=20, validation_size=10)
    task._parts(0, 16).test.images.sum()
    _growth_data.split.cache_clear()
    _growth_data.from_data_set.cache_clear()
    monkeypatch.setattr("tune_ext.benchmark.tasks._datasets.decode", None)
    task._parts(0, 16).test.images.sum()
    with pytest.raises(TypeError, match="not callable"):
        create("image-folder-growth", size=64)._parts(0, 16)


def test_runs_repeat_to_the_bit_and_go_on_exactly_where_they_were_saved(create):
    task = create("fashion-mnist-growth", patience=2)
    config = {**SMALL, "image_size": 14, "l1": 1e-5, "l2": 1e-3}
    before = torch.get_rng_state()
    run = task.start(config, seed=1)
    first = run.train_epoch()
    saved = pickle.loads(pickle.dumps(run.state_dict()))
    expected = [run.train_epoch(), run.test()]
    assert torch.equal(torch.get_rng_state(), before)
    again = task.start(config, seed=1)
    assert again.train_epoch() == first
    assert again.train_epoch() == expected[0]
    again.load_state_dict(saved)
    assert [again.train_epoch(), again.test()] == expected
    for other in ({"image_size": 16}, {"l1": 1e-3}, {"l2": 1e-2}):
        run = task.start({**config, **other}, seed=1)
        assert [run.train_epoch(), run.train_epoch()] != [first, expected[0]]
    assert first.keys() == {
        "train_loss",
        "validation_loss",
        "validation_error",
        "diverged",
        "ended",
    }


def test_images_may_be_larger_than_they_are(create):
    task = create("fashion-mnist-growth", train_size=50, validation_size=20)
    run = task.start({**SMALL, "image_size": 42}, seed=0)
    assert run._network.fc_1.in_features == 4 * 10 * 10
    assert math.isfinite(run.train_epoch()["validation_loss"])


def test_a_run_ends_when_nothing_is_gained(create):
    task = create("fashion-mnist-growth", patience=2, epochs=9)
    run = task.start({**SMALL, "image_size": 8, "learning_rate": 0.0}, seed=0)
    assert [run.train_epoch()["ended"] for _ in range(3)] == [False, False, True]
    continued = task.start({**SMALL, "image_size": 8, "learning_rate": 0.0}, seed=0)
    continued.train_epoch()
    continued.load_state_dict(pickle.loads(pickle.dumps(continued.state_dict())))
    assert [continued.train_epoch()["ended"] for _ in range(2)] == [False, True]
    patient = create("fashion-mnist-growth", patience=None)
    assert "ended" not in patient.start({**SMALL, "image_size": 8}, seed=0).train_epoch()


def test_the_penalties_are_those_of_the_loss(create):
    """One step of plain gradient descent beside one on the penalised loss, by autograd."""
    options = {"train_size": 20, "validation_size": 10, "optimizer": "sgd"}
    task = create("fashion-mnist-growth", **options)
    config = {**SMALL, "batch_size": 20, "image_size": 8, "l1": 0.02, "l2": 0.3}
    network = task.start(config, seed=0)._network
    run = task.start(config, seed=0)
    inputs, targets = run._source(run._split.train)(slice(None))
    loss = torch.nn.functional.cross_entropy(network(inputs), targets)
    for name, weight in network.named_parameters():
        if name.endswith("weight"):
            loss = loss + 0.02 * weight.abs().sum() + 0.3 * weight.square().sum()
    loss.backward()
    run.train_epoch()
    for (name, weight), after in zip(
        network.named_parameters(), run._network.parameters(), strict=True
    ):
        torch.testing.assert_close(after, weight - 0.01 * weight.grad, msg=name)


def test_what_cannot_be_built_is_a_failed_trial_with_its_reason(create):
    task = create("fashion-mnist-growth", train_size=50, validation_size=20)
    config = {**SMALL, "conv_layers": 4, "image_size": 14}
    with pytest.raises(InvalidConfigurationError, match="at most 3 for images of 14×14"):
        task.start(config, seed=0)
    run = tasks.start(task, config, seed=0)
    metrics = run.train_epoch()
    assert metrics["diverged"]
    assert math.isnan(metrics["validation_error"])
    assert "at most 3" in metrics["invalid"]
    assert math.isnan(run.test()["test_error"])

    class Trial(TaskTrainable):
        def setup(self, config):
            super().setup(config, task=TaskSpec(task.name, task.options), seed=0)

    trial = Trial(config=config)
    result = trial.train()
    assert result["done"]
    assert "at most 3" in result["invalid"]
    assert trial.reset({**config, "conv_layers": 1})  # the next trial, in the same process
    assert not trial.train()["diverged"]
    trial.stop()
    watch = Watch(tolerance=1)
    watch.on_trial_result(0, [], None, result)
    assert watch.errors == [result["invalid"]]
    assert not watch.hopeless
    small = create("fashion-mnist-growth", most_weights=1_000)
    with pytest.raises(InvalidConfigurationError, match=r"weights, and .* allows 1,000"):
        small.start({**SMALL, "units_1": 64}, seed=0)


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2", "smac"])
def test_methods_suggest_what_can_be_trained(create, name):
    """Conditions or not: values of layers that are not there are ignored."""
    task = create("fashion-mnist-growth", limits=LIMITS)
    if missing(name):
        pytest.skip(missing(name))
    assert unsuited(name, task) is None
    search = METHODS[name].build(Setup(task, budget=30, seed=0)).search_alg
    for number in range(3):
        config = search.suggest(f"t{number}")
        task._check_weights(lambda config=config: task.build(config))
        search.on_trial_complete(f"t{number}", {"validation_error": 0.5, "training_iteration": 3})
        assert task._values(config)["conv_layers"] == config["conv_layers"] <= 3


def test_a_flat_space_has_no_conditions(create):
    assert not create("fashion-mnist-growth", flat=True).space.conditions
    assert create("fashion-mnist-growth").space.conditions


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": 0.1}, "'lr'"),
        ({"l1": -1}, "l1.*-1"),
        ({"learning_rate": math.inf}, "learning_rate.*inf"),
        ({"image_size": 0}, "image_size.*0"),
        ({"batch_size": 0}, "batch_size.*0"),
    ],
)
def test_impossible_values_are_refused(create, config, message):
    with pytest.raises(InvalidValueError, match=message):
        create("shapes-growth").start(config, seed=0)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "shapes-growth"])
def test_missing_data_is_one_sentence_with_the_way_to_get_it(tmp_path, name):
    task = tasks.create(name, data_dir=str(tmp_path))
    assert str(tmp_path) in task.missing()
    with pytest.raises(DataNotFoundError):
        task.start({}, seed=0)


def test_too_many_images_and_an_unwritable_cache_are_clear_errors(create, tmp_path):
    with pytest.raises(InvalidValueError, match=r"at most 300, got 290 \+ 20"):
        create("fashion-mnist-growth", train_size=290, validation_size=20)._split(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidValueError, match="cache_dir"):
        create("shapes-growth", cache_dir=str(tmp_path / "file" / "x"))._split(0)


# The generated pictures ----------------------------------------------------------------


def test_a_picture_depends_on_its_seed_part_and_number_alone():
    first = _shapes.pictures(12, seed=0)
    np.testing.assert_array_equal(_shapes.pictures(7, seed=0), first[:7])
    assert len(np.unique(first.reshape(12, -1), axis=0)) == 12
    for other in (_shapes.pictures(7, seed=1), _shapes.pictures(7, seed=0, part="test")):
        assert (other != first[:7]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(np.bincount(_shapes.labels_of(30)), [3] * 10)


@pytest.mark.parametrize("shape", range(5))
def test_a_shape_is_where_its_distance_says(shape):
    """All fill about the same share of their square, so that area alone does not tell them."""
    y, x = np.mgrid[-1.5:1.5:300j, -1.5:1.5:300j].astype(np.float32)
    inside = list(_shapes._DISTANCES.values())[shape](x, y) < 0
    assert 0.08 < inside.mean() < 0.36
    assert not inside[[0, -1]].any()
    assert not inside[:, [0, -1]].any()
    assert bool(inside[150, 150]) == (shape != 4)  # the ring has a hole
