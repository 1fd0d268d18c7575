"""Tests of the image data sets by name, over tiny files in their true formats."""

from __future__ import annotations

import math
import os
import pickle

import numpy as np
import pytest
import torch

from tests.benchmark.tasks import data_files
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks._architectures import make
from tune_ext.benchmark.tasks._augment import Augmentation
from tune_ext.benchmark.tasks._data import Part, channel_scale, stratified_order
from tune_ext.benchmark.tasks._networks import build
from tune_ext.benchmark.tasks.images import IMAGE_TASKS, check_network
from tune_ext.errors import DataNotFoundError, InvalidValueError

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [task.name for task in IMAGE_TASKS]
TITLES = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
    "flowers102": "Flowers102",
}
TINY = {"width": 2, "epochs": 2, "batch_size": 32, "image_size": 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """All data sets, below one directory each."""
    root = tmp_path_factory.mktemp("data")
    data_files.write_idx(root / "mnist" / "MNIST" / "raw")
    data_files.write_idx(root / "fashion-mnist" / "fashion-mnist", packed=True)
    data_files.write_cifar10(root / "cifar10")
    data_files.write_cifar100(root / "cifar100")
    data_files.write_stl10(root / "stl10")
    data_files.write_flowers(root / "flowers102")
    data_files.write_tiny_imagenet(root / "image-folder")
    return root


@pytest.fixture
def no_checksums(monkeypatch):
    """The official files have known sums, which no tiny file can have."""
    for module in ("cifar", "stl10", "flowers102"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, md5=None: os.path.isfile(path),
        )


@pytest.fixture
def create(files, no_checksums):
    def create(name, **options):
        return tasks.create(name, **{"data_dir": str(files / name), **TINY, **options})

    return create


def pixels(part: Part, index: int):
    return part.images[part.rows[index]]


# Data ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist", 300, 50, (1, 28, 28)),
        ("fashion-mnist", 300, 50, (1, 28, 28)),
        ("cifar10", 100, 20, (3, 32, 32)),
        ("cifar100", 200, 100, (3, 32, 32)),
        ("stl10", 60, 20, (3, 96, 96)),
        ("flowers102", 204, 102, (3, 64, 64)),
        ("image-folder", 60, 15, (3, 64, 64)),
    ],
)
def test_every_data_set_is_read_from_its_own_format(create, name, train, test, shape):
    task = create(name, image_size=None)
    split = task._split(0)
    share = {"flowers102": 0.5}.get(name, 0.1)
    assert len(split.validation) == round(share * train)
    assert len(split.train) == train - round(share * train)
    assert len(split.test) == test
    assert split.train.images.shape == (train, *shape)
    assert split.train.images.dtype == np.uint8
    assert split.train.images is split.validation.images  # bytes, once
    together = np.concatenate([split.train.rows, split.validation.rows])
    assert sorted(together) == list(range(train))
    other = task._split(1)
    assert not np.array_equal(other.validation.rows, split.validation.rows)
    assert other.train.images is split.train.images
    inputs = split.train.inputs(slice(None))
    np.testing.assert_allclose(inputs.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(inputs.std(axis=(0, 2, 3)), 1, atol=1e-4)
    assert len(np.unique(split.train.labels)) <= task._classes()
    assert task.missing() is None


@pytest.mark.parametrize("name", ["cifar10", "stl10", "image-folder"])
def test_images_stand_upright_beside_their_labels(create, name):
    """Each class is bright in rows of its own, of a colour of its own."""
    task = create(name, image_size={"cifar10": 32, "stl10": 96}.get(name, 24), augment=False)
    split = task._split(0)
    for part in (split.train, split.test):
        for index, label in enumerate(part.labels):
            size, classes = part.images.shape[-1], task._classes()
            row = label * (size - 4) // classes
            assert pixels(part, index)[label % 3, row + 1 : row + 3].mean() > 150


def test_a_subset_holds_only_what_was_asked_for_and_all_classes(create):
    split = create("flowers102", train_size=102, validation_size=51)._split(0)
    assert split.train.images.shape == (153, 3, 16, 16)
    assert (len(split.train), len(split.validation)) == (102, 51)
    assert len(np.unique(split.validation.labels)) > 40
    with pytest.raises(InvalidValueError, match=r"at most 204, got 200 \+ 50"):
        create("flowers102", train_size=200, validation_size=50).start({}, seed=0)


def test_pictures_in_one_folder_are_divided_with_one_test_for_all_seeds(tmp_path):
    data_files.write_classes(tmp_path, 60, 0)
    (tmp_path / ".hidden").mkdir()
    task = tasks.create("image-folder", data_dir=str(tmp_path), **TINY)
    first, second = task._split(0), task._split(1)
    assert (len(first.train), len(first.validation), len(first.test)) == (43, 5, 12)
    assert first.test.images is second.test.images
    np.testing.assert_array_equal(np.bincount(first.test.labels), [4, 4, 4])
    everything = np.concatenate([first.train.images, first.test.images])
    assert len(np.unique(everything.reshape(60, -1), axis=0)) == 60
    assert task._classes() == 3


@pytest.mark.parametrize("name", ["val", "test"])
def test_pictures_of_imagenets_layout_are_tested_apart(tmp_path, monkeypatch, name):
    data_files.write_classes(tmp_path / "imagenet" / "train", 30, 0)
    data_files.write_classes(tmp_path / "imagenet" / name, 9, 1)
    monkeypatch.setenv("TUNE_EXT_DATA", str(tmp_path))
    split = tasks.create("image-folder", **TINY)._split(0)
    assert (len(split.train), len(split.validation), len(split.test)) == (27, 3, 9)


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_is_one_sentence_with_the_way_to_get_it(tmp_path, name):
    task = tasks.create(name, data_dir=str(tmp_path))
    sentence = task.missing()
    assert str(tmp_path) in sentence
    assert "\n" not in sentence
    if name in TITLES:
        assert f"torchvision.datasets.{TITLES[name]}('data', download=True)" in sentence
    else:
        assert "train/CLASS" in sentence
    for call in (lambda: task.start({}, seed=0), lambda: task.training_inputs(0)):
        with pytest.raises(DataNotFoundError, match=r"data_dir|download=True"):
            call()


def test_the_folder_of_the_files_themselves_may_be_named_too(files):
    here = str(files / "cifar10" / "cifar-10-batches-py")
    assert tasks.create("cifar10", data_dir=here).missing() is None
    raw = str(files / "mnist" / "MNIST" / "raw")
    assert tasks.create("mnist", data_dir=raw).missing() is None


def test_mnist_is_not_taken_for_fashion_mnist_where_both_could_lie(tmp_path, monkeypatch):
    data_files.write_idx(tmp_path)
    monkeypatch.setenv("TUNE_EXT_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.chdir(tmp_path)
    assert tasks.create("mnist").missing() is not None


@pytest.mark.parametrize("name", ["cifar10", "stl10", "flowers102"])
def test_files_that_are_not_the_official_ones_are_an_error_at_the_start(files, name):
    task = tasks.create(name, data_dir=str(files / name))
    with pytest.raises(DataNotFoundError, match=r"corrupted.*download=True"):
        task.start({}, seed=0)


def test_a_damaged_picture_is_named(tmp_path):
    data_files.write_classes(tmp_path, 30, 0)
    (tmp_path / "n00" / "0.png").write_bytes(b"<html>")
    task = tasks.create("image-folder", data_dir=str(tmp_path), **TINY)
    split = task._split  # it is a training image, or else a test image

    def read() -> None:
        split(0).test  # noqa: B018

    with pytest.raises(DataNotFoundError, match=r"n00/0\.png cannot be read"):
        read()


def test_folders_without_pictures_and_unknown_classes_are_errors(tmp_path):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "b").mkdir()
    with pytest.raises(DataNotFoundError, match="holds no images"):
        tasks.create("image-folder", data_dir=str(tmp_path / "empty")).start({}, seed=0)
    data_files.write_tiny_imagenet(tmp_path / "tiny")
    with open(tmp_path / "tiny" / "val" / "val_annotations.txt", "a") as file:
        file.write("val_0.JPEG\tn99\t0\t0\t62\t62\n")
    split = tasks.create("image-folder", data_dir=str(tmp_path / "tiny"), **TINY)._split(0)
    with pytest.raises(DataNotFoundError, match="'n99'"):
        split.test  # noqa: B018


def test_every_piece_of_a_stratified_order_keeps_the_shares():
    labels = np.repeat(np.arange(4), [100, 50, 40, 10])
    order = stratified_order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(200))
    for start in range(0, 200, 20):
        counts = np.bincount(labels[order[start : start + 20]], minlength=4)
        assert np.all(np.abs(counts - [10, 5, 4, 1]) <= 2)
    assert not np.array_equal(order, stratified_order(labels, np.random.default_rng(1)))


def test_the_scale_is_that_of_the_chosen_rows_alone():
    images = np.random.default_rng(0).integers(0, 256, (50, 2, 5, 5)).astype(np.uint8)
    images[:, 1] = 7
    rows = np.arange(3, 40)
    mean, deviation = channel_scale(images, rows)
    np.testing.assert_allclose(mean, images[rows].mean(axis=(0, 2, 3)), rtol=1e-6)
    assert deviation[0] == pytest.approx(images[rows, 0].std(), rel=1e-6)
    assert deviation[1] == 1


# Networks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("wrn-16-4", 2_748_890),
        ("wrn-28-10", 36_479_194),
    ],
)
def test_networks_for_cifar_have_the_known_numbers_of_weights(name, weights):
    with torch.device("meta"):
        network = make(name, channels=3, classes=10, size=32, width=16)
        assert sum(p.numel() for p in network.parameters()) == weights
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vgg16_has_its_thirteen_convolutions_and_one_linear_layer():
    with torch.device("meta"):
        network = make("vgg16", channels=3, classes=10, size=32, width=16)
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == 14
    assert not any(isinstance(m, torch.nn.Dropout) for m in network.modules())
    assert sum(p.numel() for p in network.parameters()) == 14_728_266


@pytest.mark.parametrize("name", ["small-resnet", "resnet18", "vgg16", "wrn-10-1"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 96)])
def test_every_network_takes_images_of_any_size(name, channels, size):
    with torch.device("meta"):
        network = make(name, channels=channels, classes=7, size=size, width=4)
        assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_he_weights_have_their_deviation_and_come_from_the_seed_alone():
    def wide():
        return make("wrn-10-2", channels=3, classes=10, size=32, width=1)

    state = torch.get_rng_state()
    one, two, other = (build(wide, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weight = one.groups[1][0].branches[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    assert torch.equal(weight, two.groups[1][0].branches[0].conv2.weight)
    assert not torch.equal(weight, other.groups[1][0].branches[0].conv2.weight)


@pytest.mark.parametrize("name", ["resnet50", "wrn", "wrn-17-4", "wrn-4-4", "wrn-16-0", 18])
def test_networks_that_do_not_exist_are_refused(name):
    with pytest.raises(InvalidValueError, match=r"resnet18.*wrn-16-4.*got"):
        check_network(name)


# Augmentation ----------------------------------------------------------------------


def test_a_varied_image_is_a_shifted_and_perhaps_mirrored_one():
    images = torch.arange(1, 65 * 4 * 3 + 1)[: 64 * 12].reshape(64, 1, 4, 3)
    vary = Augmentation(padding=1, flip=True).draw(64, seed=0)
    varied = vary(images, which=torch.arange(64))
    padded = torch.nn.functional.pad(images, [1] * 4)
    seen = set()
    for index in range(64):
        found = [
            (down, right, flip)
            for down in range(3)
            for right in range(3)
            for flip in (False, True)
            if torch.equal(
                varied[index],
                (lambda x, f: x.flip(2) if f else x)(
                    padded[index, :, down : down + 4, right : right + 3], flip
                ),
            )
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 12
    again = Augmentation(padding=1, flip=True).draw(64, seed=0)
    some = torch.tensor([5, 60, 2])
    assert torch.equal(again(images[some], which=some), varied[some])


def test_without_flips_digits_keep_their_side():
    images = torch.tensor([[[[1, 2]]]]).repeat(50, 1, 1, 1)
    varied = Augmentation(padding=0, flip=False).draw(50, seed=1)(images, which=torch.arange(50))
    assert torch.equal(varied, images)


# Runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_runs_repeat_to_the_bit_and_go_on_exactly_where_they_were_saved(create, name):
    task = create(name)
    run = task.start({"lr": 1e-2}, seed=1)
    before = torch.get_rng_state()
    first = run.train_epoch()
    saved = pickle.loads(pickle.dumps(run.state_dict()))
    expected = [run.train_epoch(), run.test()]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(math.isfinite(value) for value in {**first, **expected[0], **expected[1]}.values())
    again = task.start({"lr": 1e-2}, seed=1)
    assert again.train_epoch() == first
    resumed = task.start({"lr": 1e-2}, seed=1)
    resumed.load_state_dict(saved)
    assert [resumed.train_epoch(), resumed.test()] == expected
    batches = task.training_inputs(1)
    assert len(batches) == len(run.step_losses)
    assert batches[0].dtype == np.float32
    assert len(batches[:2]) == min(2, len(batches))


def test_augmented_training_differs_and_evaluation_is_the_same_twice(create):
    plain, varied = (create("cifar10", augment=a) for a in (False, True))
    runs = [task.start({"lr": 0.0}, seed=0) for task in (plain, varied)]
    one, two = (run.train_epoch() for run in runs)
    assert one["train_loss"] != two["train_loss"]
    epochs = [runs[1].train_epoch()["train_loss"] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert runs[1].test() == runs[1].test()


def test_bright_rows_are_learned(create):
    task = create("cifar10", epochs=12, width=8, batch_size=16, measure_response=False)
    run = task.start({"lr": 1e-2}, seed=0)
    history = [run.train_epoch() for _ in range(12)]
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert run.test()["test_error"] < 0.5


def test_bytes_are_trained_on_as_the_same_numbers_would_be(create):
    task = create("mnist", augment=False)
    run, same = (task.start({"lr": 1e-2}, seed=0) for _ in range(2))
    drawn = task._split(0)
    train, validation = (
        Part(part.inputs(slice(None)), part.labels) for part in (drawn.train, drawn.validation)
    )
    same._split = type("Parts", (), {"train": train, "validation": validation})()
    assert run.train_epoch() == pytest.approx(same.train_epoch(), rel=1e-5)


@pytest.mark.parametrize("network", ["resnet18", "vgg16", "wrn-10-1"])
def test_the_networks_of_the_field_train(create, network):
    task = create("cifar10", network=network, train_size=32, validation_size=10)
    metrics = task.start({"lr": 1e-4}, seed=0).train_epoch()
    assert math.isfinite(metrics["validation_loss"])
    assert 0 <= metrics["response"] <= 1
