"""Tests of the tasks: data, splits, repetition to the bit, divergence, response."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.benchmark.tasks.data_files import idx_bytes, write_idx
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks._data import find_files, read_idx, resize, stratified
from tune_ext.benchmark.tasks._networks import ResNet, build
from tune_ext.benchmark.tasks._training import RunSettings, TrainingRun
from tune_ext.errors import (
    DataNotFoundError,
    InvalidTypeError,
    InvalidValueError,
    StateError,
)

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

TRAINED = [
    name
    for name in tasks.names()
    if {"optimizer", "parameters"} <= tasks.create(name).options.keys()
]
RATES = [name for name in TRAINED if not tasks.create(name).searches_architecture]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small():
    """Digits, short: one epoch is the whole schedule but for what a test asks."""
    return tasks.create("digits-cnn", epochs=4)


# The catalogue ---------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_a_task_is_rebuilt_from_its_json_options(name):
    task = tasks.create(name, optimizer="sgd", epochs=3, parameters=["weight_decay"])
    again = tasks.create(name, **json.loads(json.dumps(task.options)))
    assert isinstance(again, tasks.Task)
    assert again.options == task.options
    assert again.space == task.space
    assert again.max_epochs == 3
    assert (again.metric, again.mode) == ("validation_error", "min")
    assert again.name == name


@pytest.mark.parametrize("name", RATES)
def test_the_space_holds_the_defaults_and_the_published_ranges(name):
    space = tasks.create(name).space
    assert list(space) == ["lr", "weight_decay"]
    assert (space["lr"].lower, space["lr"].upper, space["lr"].log) == (1e-6, 1.0, True)
    assert (space["weight_decay"].lower, space["weight_decay"].upper) == (1e-7, 1e-1)
    assert space["weight_decay"].log
    assert space["lr"].default_value == pytest.approx(1e-3)
    assert list(tasks.create(name, parameters=("lr",)).space) == ["lr"]


def test_unknown_names_and_options_list_the_choices():
    with pytest.raises(InvalidValueError, match=r"'svhn'.*digits-cnn.*fashion-mnist-resnet"):
        tasks.create("svhn")
    with pytest.raises(InvalidValueError, match=r"'learning_rate'.*optimizer.*epochs"):
        tasks.create("digits-cnn", learning_rate=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, r"optimizer.*adam.*'lion'"),
        ({"schedule": "step"}, r"schedule.*'step'"),
        ({"parameters": ["momentum"]}, r"parameters.*'momentum'"),
        ({"parameters": []}, r"parameters.*none"),
        ({"epochs": 0}, r"epochs.*0"),
        ({"epochs": 2.5}, r"epochs.*2\.5"),
        ({"batch_size": 1}, r"batch_size.*1"),
        ({"subset": "last"}, r"subset.*'last'"),
        ({"train_size": 59_000, "validation_size": 2_000}, r"60000.*61000"),
        ({"image_size": 2}, r"image_size.*2"),
        ({"blocks": []}, r"blocks"),
    ],
)
def test_bad_options_are_refused_with_the_value(options, message):
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        tasks.create("fashion-mnist-resnet", **options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"lr": math.nan}, "nan"),
        ({"lr": -1.0}, r"-1\.0"),
        ({"lr": "1e-3"}, "1e-3"),
        ({"lr": None}, "None"),
        ({"lr": True}, "True"),
        ({"weight_decay": math.inf}, "inf"),
    ],
)
def test_bad_configurations_are_refused_with_the_value(small, config, message):
    with pytest.raises(InvalidValueError, match=message):
        small.start(config, seed=0)


@pytest.mark.parametrize("seed", [None, -1, 0.5])
def test_bad_seeds_are_refused(small, seed):
    with pytest.raises((InvalidTypeError, InvalidValueError), match="seed"):
        small.start({}, seed=seed)


def test_listing_the_tasks_loads_neither_torch_nor_ray_nor_sklearn():
    code = (
        "import sys; from tune_ext.benchmark import tasks\n"
        "[tasks.create(name).missing() for name in tasks.names()]\n"
        "print([m for m in ('torch', 'ray', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Data ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_split_into_disjoint_parts_with_equal_shares(seed):
    split = tasks.create("digits-cnn")._split(seed)
    parts = (split.train, split.validation, split.test)
    assert sum(len(part) for part in parts) == 1797
    for part in parts:
        shares = np.bincount(part.labels, minlength=10) / len(part)
        assert np.all(np.abs(shares - 0.1) < 0.01)
        assert part.images.shape[1:] == (1, 8, 8)
    assert split.train.images.mean() == pytest.approx(0, abs=1e-5)
    assert split.train.images.std() == pytest.approx(1, abs=1e-5)


def test_stratified_gives_each_index_once_and_depends_on_the_generator_alone():
    labels = np.repeat(np.arange(3), [50, 31, 7])
    first = stratified(labels, (0.6, 0.2), np.random.default_rng(3))
    again = stratified(labels, (0.6, 0.2), np.random.default_rng(3))
    other = stratified(labels, (0.6, 0.2), np.random.default_rng(4))
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), np.arange(88))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_split_pairs_over_optimisers_and_only_the_test_images_are_for_all_seeds():
    first = tasks.create("digits-cnn")._split(0)
    paired = tasks.create("digits-cnn", optimizer="sgd", batch_size=32)._split(0)
    other = tasks.create("digits-cnn")._split(1)
    np.testing.assert_array_equal(first.validation.images, paired.validation.images)
    assert not np.array_equal(first.validation.labels, other.validation.labels)
    np.testing.assert_array_equal(first.test.labels, other.test.labels)
    np.testing.assert_allclose(first.test.images, other.test.images, atol=0.05)  # but for scale


def test_resize_by_a_divisor_is_the_mean_of_blocks():
    images = np.arange(2 * 28 * 28, dtype=np.int64).reshape(2, 28, 28).astype(np.uint8)
    small = resize(images, 14)
    assert small.shape == (2, 1, 14, 14)
    for i, j in itertools.product((0, 5, 13), repeat=2):
        block = images[1, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert small[1, 0, i, j] == pytest.approx(block.mean() / 255, rel=1e-6)
    assert resize(images, 28)[1, 0, 3, 4] == pytest.approx(images[1, 3, 4] / 255)


def test_resize_to_any_size_keeps_a_flat_image_flat():
    flat = resize(np.full((1, 28, 28), 51, np.uint8), 20)
    assert flat.shape == (1, 1, 20, 20)
    np.testing.assert_allclose(flat, 0.2, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_plain_and_packed(tmp_path, packed):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path, 3), array)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a", idx_bytes(np.zeros((2, 2, 2)))[:-1], r"damaged.*8 values and has 7"),
        ("a", idx_bytes(np.zeros((2, 2, 2))) + b"x", r"damaged"),
        ("a", idx_bytes(np.zeros(4)), r"not an idx file .* 3 dimensions"),
        ("a", b"<html>", r"not an idx file"),
        ("a", b"", r"not an idx file"),
        ("a", bytes([0, 0, 8, 3, 0]), r"not an idx file"),
        ("a.gz", b"<html>", r"cannot be read"),
        ("a.gz", gzip.compress(idx_bytes(np.zeros((9, 9, 9))), mtime=0)[:-9], r"cannot be read"),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataNotFoundError, match=f"{name}.*{message}"):
        read_idx(tmp_path / name, 3)


def test_files_are_found_plain_before_packed_and_only_all_together(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for path in ("one/x", "two/x", "two/x.gz", "two/y.gz"):
        (tmp_path / path).touch()
    found = find_files(("x", "y"), (tmp_path / "one", tmp_path / "two"))
    assert found == {"x": tmp_path / "two/x", "y": tmp_path / "two/y.gz"}
    assert find_files(("x", "z"), (tmp_path / "one", tmp_path / "two")) is None


@pytest.mark.parametrize("below", [".", "raw", "FashionMNIST/raw", "fashion-mnist"])
def test_fashion_mnist_is_found_where_it_usually_lies(tmp_path, monkeypatch, below):
    write_idx(tmp_path / below, packed=below == "raw")
    task = tasks.create("fashion-mnist-resnet", data_dir=str(tmp_path))
    assert task.missing() is None
    monkeypatch.setenv("TUNE_EXT_DATA", str(tmp_path))
    by_environment = tasks.create("fashion-mnist-resnet")
    assert set(by_environment._files().values()) == set(task._files().values())


def test_missing_data_is_one_sentence_with_the_way_to_get_it(tmp_path):
    task = tasks.create("fashion-mnist-resnet", data_dir=str(tmp_path))
    sentence = task.missing()
    assert str(tmp_path) in sentence
    assert "download=True" in sentence
    assert "apt install dataset-fashion-mnist" in sentence
    assert "\n" not in sentence
    with pytest.raises(DataNotFoundError, match="download=True"):
        task.start({}, seed=0)


def test_a_damaged_data_set_is_an_error_at_the_start(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / FILES[0]
    path.write_bytes(path.read_bytes()[:-100])
    task = tasks.create("fashion-mnist-resnet", data_dir=str(tmp_path), train_size=100)
    with pytest.raises(DataNotFoundError, match="damaged"):
        task.start({}, seed=0)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        (FILES[1], np.zeros(299)),
        (FILES[1], np.full(300, 10)),
        (FILES[2], np.zeros((50, 32, 32))),
        (FILES[3], np.zeros(0)),
    ],
)
def test_files_of_another_data_set_are_an_error_at_the_start(tmp_path, name, array):
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(idx_bytes(array))
    task = tasks.create(
        "fashion-mnist-resnet", data_dir=str(tmp_path), train_size=100, validation_size=9
    )
    with pytest.raises(DataNotFoundError, match="not Fashion-MNIST"):
        task.start({}, seed=0)


def test_more_images_than_the_files_hold_is_an_error(tmp_path):
    write_idx(tmp_path)
    task = tasks.create("fashion-mnist-resnet", data_dir=str(tmp_path), train_size=1000)
    with pytest.raises(InvalidValueError, match="at most 300"):
        task.start({}, seed=0)


def test_first_images_in_order_and_random_images_disjoint(tmp_path):
    write_idx(tmp_path)
    labels = read_idx(tmp_path / FILES[1], 1)
    options = {"data_dir": str(tmp_path), "train_size": 200, "validation_size": 100}
    first = tasks.create("fashion-mnist-resnet", subset="first", **options)._split(0)
    np.testing.assert_array_equal(first.train.labels, labels[:200])
    np.testing.assert_array_equal(first.validation.labels, labels[200:])
    assert len(first.test) == 50
    random = tasks.create("fashion-mnist-resnet", **options)._split(0)
    images = np.concatenate([random.train.images, random.validation.images])
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300  # each image taken once
    other = tasks.create("fashion-mnist-resnet", **options)._split(1)
    assert not np.array_equal(random.train.labels, other.train.labels)
    np.testing.assert_array_equal(random.test.labels, other.test.labels)


# Networks --------------------------------------------------------------------------


def test_the_resnet_has_nine_convolutions():
    network = ResNet(1, 10, 16, (1, 1, 1))
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 9
    assert sum(m.kernel_size == (1, 1) for m in convolutions) == 2
    assert network(torch.zeros(2, 1, 14, 14)).shape == (2, 10)
    wide = ResNet(3, 7, 8, (2, 1))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in wide.modules()) == 8
    assert wide.head.in_features == 16


def test_initial_weights_come_from_the_seed_alone_and_have_torchs_deviation():
    make = lambda: ResNet(1, 10, 16, (1, 1, 1))  # noqa: E731
    state = torch.get_rng_state()
    one, two, other = (build(make, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b, c in zip(
        one.state_dict().items(),
        two.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b), name
        if a.dim() > 1:
            assert not torch.equal(a, c), name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = dict(make().named_parameters())
    for name, weight in one.named_parameters():
        if weight.std() == 0:  # the constants of batch normalisation
            assert torch.equal(weight, reference[name]), name
            continue
        # Five standard errors of a difference of means: with both seeds fixed it cannot flicker.
        error = weight.std().item() * (2 / weight.numel()) ** 0.5
        assert abs(weight.mean().item() - reference[name].mean().item()) < 5 * error, name
        if weight.numel() > 1000:
            torch.testing.assert_close(weight.std(), reference[name].std(), atol=0, rtol=0.1)


def test_a_module_without_initial_weights_is_refused_rather_than_left_undefined():
    with pytest.raises(NotImplementedError, match="Embedding"):
        build(lambda: torch.nn.Embedding(3, 3), seed=0)


# Runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_digits_are_learned(optimizer):
    task = tasks.create("digits-cnn", optimizer=optimizer, epochs=3)
    run = task.start({"lr": {"adam": 3e-3, "sgd": 3e-2}[optimizer]}, seed=0)
    history = [run.train_epoch() for _ in range(task.max_epochs)]
    assert run.epoch == 3
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["validation_error"] < 0.1
    test = run.test()
    assert test.keys() == {"test_loss", "test_error"}
    assert test["test_error"] < 0.1


def test_an_epoch_reports_what_the_methods_need(small):
    metrics = small.start({}, seed=0).train_epoch()
    assert metrics.keys() == {
        "train_loss",
        "validation_loss",
        "validation_error",
        "response",
        "response_mean",
        "knowledge_gain",
        "diverged",
    }
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 <= metrics["response"] <= 1
    assert metrics["diverged"] is False
    quiet = tasks.create("digits-cnn", measure_response=False).start({}, seed=0).train_epoch()
    assert "response" not in quiet
    assert quiet["train_loss"] == metrics["train_loss"]


def test_the_losses_of_an_epochs_steps_are_kept(small):
    run = small.start({}, seed=0)
    assert run.step_losses == []
    for _ in range(2):
        metrics = run.train_epoch()
        assert len(run.step_losses) == len(small.training_inputs(0)) == 16
        assert np.mean(run.step_losses) == pytest.approx(metrics["train_loss"], rel=1e-12)
    assert {batch.shape for batch in small.training_inputs(0)} == {(64, 1, 8, 8)}


def test_a_run_finds_its_own_rate_and_is_then_the_run_with_that_rate():
    small = tasks.create("digits-cnn", epochs=4, measure_response=False)
    run = tasks.start(small, {"lr": "exptest", "weight_decay": 1e-3}, seed=0)
    plan = tasks.plan_rungs(small, 0)
    assert (plan.epochs, plan.steps, plan.lower, plan.upper) == (2, 32, 1e-6, 1.0)
    # inputs of unit variance: 64 pixels and the bias, and cross-entropy doubles the bound
    assert plan.bound == pytest.approx(4 / 65, rel=0.01)
    seen, saved = [], None
    while run.epoch < 4:
        seen.append(run.train_epoch())
        if len(seen) == 5:  # in the middle of a rung
            saved = pickle.loads(pickle.dumps(run.state_dict()))
    plain = small.start({"lr": run.lr, "weight_decay": 1e-3}, seed=0)
    expected = [plain.train_epoch() for _ in range(4)]
    assert seen[-2:] == expected[-2:]
    assert run.test() == plain.test()
    rungs = [r for r in run.explain().to_rows() if r["event"] == "rung"]
    assert len(seen) <= 2 * len(rungs) + 2
    again = tasks.start(small, {"lr": "exptest", "weight_decay": 1e-3}, seed=0)
    again.load_state_dict(saved)
    rest = [again.train_epoch() for _ in seen[5:]]
    assert [repr(r) for r in rest] == [repr(r) for r in seen[5:]]
    with pytest.raises(StateError, match="finds its own rate"):
        again.load_state_dict(plain.state_dict())


def test_a_run_for_which_no_rate_works_has_diverged(small):
    class Hopeless(tasks.DigitsCNN):
        def start(self, config, *, seed):
            return super().start({**config, "lr": 1e30}, seed=seed)

    run = tasks.start(
        Hopeless(optimizer="sgd", epochs=4, measure_response=False), {"lr": "exptest"}, seed=0
    )
    results = [run.train_epoch()]
    while not results[-1]["diverged"]:
        results.append(run.train_epoch())
        assert math.isnan(results[-1]["validation_error"])
    assert 5 <= len(results) <= 25
    assert run.epoch == 0
    assert run.train_epoch()["diverged"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(small):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - to show that it does not matter
    one = small.start({"lr": 1e-2}, seed=3)
    first = [one.train_epoch(), one.train_epoch(), one.test()]
    torch.manual_seed(2)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    two = small.start({"lr": 1e-2}, seed=3)
    assert [two.train_epoch(), two.train_epoch(), two.test()] == first
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert small.start({"lr": 1e-2}, seed=4).train_epoch() != first[0]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_saved_run_goes_on_exactly(optimizer):
    task = tasks.create("digits-cnn", optimizer=optimizer, epochs=4)
    config = {"lr": 2e-3, "weight_decay": 1e-3}
    whole = task.start(config, seed=1)
    whole.train_epoch()
    saved = whole.state_dict()
    packed = pickle.dumps(saved)
    expected = [whole.train_epoch(), whole.train_epoch(), whole.test()]
    for state in (saved, pickle.loads(packed)):  # training on must not have changed `saved`
        resumed = task.start(config, seed=1)
        resumed.load_state_dict(state)
        assert resumed.epoch == 1
        assert [resumed.train_epoch(), resumed.train_epoch(), resumed.test()] == expected
    again = task.start(config, seed=1)
    again.load_state_dict(saved)  # `resumed` must not share tensors with it either
    assert again.train_epoch() == expected[0]


def test_a_saved_run_goes_on_with_the_configuration_of_the_new_run(small):
    run = small.start({"lr": 1e-3}, seed=0)
    run.train_epoch()
    still = small.start({"lr": 0.0, "weight_decay": 0.0}, seed=0)
    still.load_state_dict(run.state_dict())
    before = [p.clone() for p in still._network.parameters()]
    still.train_epoch()
    assert all(torch.equal(a, b) for a, b in zip(before, still._network.parameters(), strict=True))


def test_states_that_do_not_belong_are_refused(small):
    state = small.start({}, seed=0).state_dict()
    with pytest.raises(StateError, match="version"):
        small.start({}, seed=0).load_state_dict({**state, "version": 99})
    with pytest.raises(StateError, match=r"seed 1, got 0"):
        small.start({}, seed=1).load_state_dict(state)
    with pytest.raises(StateError, match="optimizer"):
        tasks.create("digits-cnn", optimizer="sgd").start({}, seed=0).load_state_dict(state)
    lacking = {k: v for k, v in state.items() if k not in ("epoch", "network")}
    with pytest.raises(StateError, match="lacks epoch, network"):
        small.start({}, seed=0).load_state_dict(lacking)
    other = dict(state, network=build(lambda: ResNet(1, 10, 4, (1,)), seed=0).state_dict())
    with pytest.raises(StateError, match="another network"):
        small.start({}, seed=0).load_state_dict(other)


def test_the_cosine_schedule_falls_from_the_rate_to_zero():
    settings = RunSettings(0.2, 0.0, "sgd", "cosine", 4, 8, False, "cpu")
    rates = [settings.rate(epoch) for epoch in range(6)]
    expected = [0.2 * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)]
    assert rates[:4] == pytest.approx(expected)
    assert rates[4:] == pytest.approx([0.0, 0.0])
    constant = RunSettings(0.2, 0.0, "sgd", "constant", 4, 8, False, "cpu")
    assert [constant.rate(epoch) for epoch in (0, 3, 9)] == [0.2] * 3


def check_diverged(metrics):
    assert metrics.pop("diverged") is True
    assert metrics
    assert all(math.isnan(value) for value in metrics.values())


def test_divergence_is_a_result_and_ends_the_work():
    run = tasks.create("digits-cnn", optimizer="sgd").start({"lr": 1e30}, seed=0)
    check_diverged(run.train_epoch())
    calls = []
    run._network.register_forward_hook(lambda *args: calls.append(args))
    check_diverged(run.train_epoch())
    assert run.epoch == 2
    assert len(run.step_losses) == 1
    assert math.isnan(run.step_losses[0])
    assert all(math.isnan(value) for value in run.test().values())
    assert not calls
    resumed = tasks.create("digits-cnn", optimizer="sgd").start({"lr": 1e-3}, seed=0)
    resumed.load_state_dict(run.state_dict())
    check_diverged(resumed.train_epoch())


def test_weights_that_are_not_finite_after_the_epoch_count_as_diverged(small):
    run = small.start({}, seed=0)
    run.train_epoch()
    with torch.no_grad():
        run._network[0][0].weight[0, 0, 0, 0] = math.inf
    run._fit = lambda: 0.5  # the epoch's own losses were all finite
    metrics = run.train_epoch()
    assert metrics["diverged"] is True
    assert math.isnan(metrics["validation_error"])
    assert math.isnan(metrics["response_mean"])
    assert math.isnan(run.step_losses[-1])


def test_training_and_validation_never_touch_test_images(small):
    split = small._split(0)
    poisoned = type(split)(split.train, split.validation, None)
    settings = RunSettings(1e-3, 0.0, "adam", "cosine", 4, 64, True, "cpu")
    run = TrainingRun(build(small._network, seed=0), poisoned, settings, seed=0)
    assert run.train_epoch()["validation_error"] < 1
    with pytest.raises((AttributeError, TypeError)):
        run.test()


def test_fewer_images_than_a_batch_are_one_batch(tmp_path):
    write_idx(tmp_path)
    task = tasks.create(
        "fashion-mnist-resnet",
        data_dir=str(tmp_path),
        train_size=90,
        validation_size=200,
        image_size=14,
        width=4,
        epochs=30,
    )
    run = task.start({"lr": 1e-2}, seed=0)
    history = [run.train_epoch() for _ in range(30)]
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert run.test()["test_error"] < 0.5


# The response on real images -------------------------------------------------------

real_fashion = pytest.mark.skipif(
    tasks.create("fashion-mnist-resnet").missing() is not None,
    reason=str(tasks.create("fashion-mnist-resnet").missing()),
)


@real_fashion
def test_the_official_files_hold_the_official_images():
    task = tasks.create("fashion-mnist-resnet", train_size=6400, image_size=14)
    split = task._split(0)
    assert (len(split.train), len(split.validation), len(split.test)) == (6400, 2000, 10_000)
    np.testing.assert_array_equal(np.bincount(split.test.labels), np.full(10, 1000))


@real_fashion
@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "lr", "known"),
    [("adam", 1.1e-3, 0.71), ("adam", 4.6e-2, 0.08), ("sgd", 0.18, 0.21)],
)
def test_the_response_after_five_epochs_matches_the_known_curve(optimizer, lr, known):
    """One point each of the curve's three parts; `study.py check` measures all of it."""
    task = tasks.create(
        "fashion-mnist-resnet",
        train_size=6400,
        validation_size=100,
        subset="first",
        image_size=14,
        optimizer=optimizer,
        schedule="constant",
    )
    decay = {"adam": 0.0, "sgd": 5e-4}[optimizer]
    run = task.start({"lr": lr, "weight_decay": decay}, seed=0)
    history = [run.train_epoch() for _ in range(5)]
    responses = [metrics["response"] for metrics in history]
    assert history[-1]["response_mean"] == pytest.approx(np.mean(responses))
    assert history[-1]["response_mean"] == pytest.approx(known, abs=0.05)


def test_the_response_of_the_digits_falls_gradually_with_the_rate():
    task = tasks.create("digits-cnn", schedule="constant", epochs=5)
    curve = []
    for lr in (1e-5, 1e-3, 3e-3, 3e-2):
        run = task.start({"lr": lr}, seed=0)
        curve.append([run.train_epoch() for _ in range(5)][-1]["response_mean"])
    assert curve[0] == 1
    assert 0.7 < curve[1] < 0.97
    assert 0.25 < curve[2] < 0.7
    assert curve[3] < 0.25
