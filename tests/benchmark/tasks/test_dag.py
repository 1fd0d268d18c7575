"""Tests of the tasks whose architecture is searched."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch

from tests.benchmark.tasks.data_files import write_idx
from tune_ext.benchmark import tasks
from tune_ext.benchmark.methods import METHODS, unsuited
from tune_ext.benchmark.tasks.dag import dag_string
from tune_ext.errors import InvalidTypeError, InvalidValueError

pytestmark = pytest.mark.usefixtures("one_thread")

DENSE = {"depth": 4, "width": 16, "density": 1.0, "skip": "identity"}


@pytest.fixture(scope="module")
def digits():
    return tasks.create("digits-dag", epochs=2)


def test_denser_graphs_keep_the_edges_of_sparser_ones():
    for depth, skip in itertools.product(range(1, 7), ("identity", "layer")):
        graphs = [dag_string(depth, share / 20, skip) for share in range(21)]
        counts = [sum(c != "0" for c in g if c != "_") for g in graphs]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (depth, depth * (depth + 1) // 2)
        for sparse, dense in itertools.pairwise(graphs):
            assert all(a in ("0", b) for a, b in zip(sparse, dense, strict=True))
        for groups in (graph.split("_") for graph in graphs):
            assert [len(g) for g in groups] == list(range(1, depth + 1))
            assert all(g.endswith("2") for g in groups)


def test_short_edges_come_first():
    assert dag_string(4, 0.5, "identity") == "2_12_012_0012"  # 0 to 2, 1 to 3, 2 to 4
    assert dag_string(4, 0.6, "layer") == "2_22_222_0022"  # and 0 to 3


def test_what_is_built_is_what_the_configuration_says(digits):
    network = digits.build(DENSE)
    assert network.dag == "2_12_112_1112"
    assert network.readout.in_features == 16
    assert network(digits.example_input).shape == (1, 10)
    convolutions = tasks.create("digits-dag", network="cnn")
    assert convolutions.build({})(convolutions.example_input).shape == (1, 10)
    assert convolutions.space["width"].upper == 32


@pytest.mark.parametrize("initialization", ["default", "scaled"])
def test_runs_repeat_to_the_bit_and_go_on_exactly_where_they_were_saved(digits, initialization):
    config = {**DENSE, "lr": 0.02, "initialization": initialization}
    before = torch.get_rng_state()
    run = digits.start(config, seed=1)
    first = run.train_epoch()
    saved = pickle.loads(pickle.dumps(run.state_dict()))
    expected = [run.train_epoch(), run.test()]
    assert torch.equal(torch.get_rng_state(), before)
    again = digits.start(config, seed=1)
    assert again.train_epoch() == first
    again.load_state_dict(saved)
    assert [again.train_epoch(), again.test()] == expected
    assert digits.start(config, seed=2).train_epoch() != first
    assert expected[0]["train_loss"] < first["train_loss"]
    assert first.keys() == {"train_loss", "validation_loss", "validation_error", "diverged"}


def test_scaled_weights_have_the_deviation_of_the_theory_and_biases_are_zero(digits):
    """At most four standard errors of a deviation: with the seed fixed it cannot flicker."""
    wide = {**DENSE, "width": 128}
    network = digits.start({**wide, "initialization": "scaled"}, seed=0)._network
    plain = digits.start(wide, seed=0)._network
    weights, default = dict(network.named_parameters()), dict(plain.named_parameters())
    assert weights.keys() == default.keys()
    assert all(not w.any() for name, w in weights.items() if name.endswith("bias"))
    assert any(w.any() for name, w in default.items() if name.endswith("bias"))
    for k in (1, 2, 3, 4):  # node k has in-degree k: every earlier node leads to it
        weight = weights[f"graph.edges.{k - 1}_to_{k}.layer.weight"]
        expected = math.sqrt(2 / k / 128)
        assert weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * 128 * 128))


def test_the_space_is_what_is_asked_for():
    task = tasks.create("digits-dag", parameters=["depth", "skip"], lr=0.05)
    assert list(task.space) == ["depth", "skip"]
    assert task.default_config["lr"] == 0.05
    again = tasks.create(task.name, **task.options)
    assert (again.space, again.default_config) == (task.space, task.default_config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 0}, "depth.*0"),
        ({"depth": 2.5}, r"depth.*2\.5"),
        ({"width": -3}, "width.*-3"),
        ({"density": 1.5}, r"density.*1\.5"),
        ({"density": math.nan}, "density.*nan"),
        ({"skip": "none"}, "skip.*identity.*'none'"),
        ({"initialization": "he"}, "initialization.*scaled.*'he'"),
        ({"lr": -1}, "lr.*-1"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_impossible_architectures_are_refused_with_the_value(digits, config, message):
    with pytest.raises((InvalidTypeError, InvalidValueError), match=message):
        digits.start(config, seed=0)


def test_what_is_built_depends_on_the_architecture_alone(digits):
    """So that a plan serves every configuration of one architecture."""
    read = set()

    class Watched(dict):
        def get(self, name, default=None):
            read.add(name)
            return super().get(name, default)

        __iter__ = items = keys = None

    with pytest.raises(InvalidValueError, match="density"):
        digits.build(Watched(density=-1.0))
    digits.build(Watched(DENSE, lr=3.0))
    assert read == {"depth", "width", "density", "skip"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "rnn"}, "network.*'rnn'"),
        ({"lr": 0.0}, "lr.*0"),
        ({"parameters": []}, "parameters.*none"),
        ({"parameters": ["kernel"]}, "parameters.*'kernel'"),
    ],
)
def test_bad_options_are_refused_with_the_value(options, message):
    with pytest.raises(InvalidValueError, match=message):
        tasks.create("digits-dag", **options)


def test_fashion_mnist_is_that_of_the_resnet(tmp_path):
    write_idx(tmp_path)
    options = {"data_dir": str(tmp_path), "train_size": 200, "validation_size": 50}
    task = tasks.create("fashion-mnist-dag", epochs=2, **options)
    resnet = tasks.create("fashion-mnist-resnet", image_size=14, **options)
    assert (task._split(3).train.images == resnet._split(3).train.images).all()
    assert tasks.create(task.name, **task.options).options == task.options
    assert task.build({})(task.example_input).shape == (1, 10)
    run = task.start({"lr": 0.05}, seed=0)
    assert run.train_epoch()["train_loss"] > run.train_epoch()["train_loss"]


def test_a_task_without_data_says_so(tmp_path):
    assert "download=True" in tasks.create("fashion-mnist-dag", data_dir=str(tmp_path)).missing()


def test_one_network_is_no_architecture_to_search():
    plain = tasks.create("digits-mlp")
    assert not plain.searches_architecture
    for ask in (lambda: plain.build({}), lambda: plain.example_input):
        with pytest.raises(NotImplementedError, match="digits-mlp"):
            ask()


def test_methods_that_scale_want_an_architecture(digits):
    scaling = [name for name in METHODS if name.endswith(("+scaled", "+init"))]
    assert {"random+scaled", "tpe+scaled", "asha+scaled", "bohb+scaled"} < set(scaling)
    for name in scaling:
        assert "one network" in unsuited(name, tasks.create("digits-mlp"))
    assert unsuited("tpe+scaled", digits) is unsuited("random+init", digits) is None
    assert "no earlier result" in unsuited("asha+scaled", tasks.create("digits-dag", epochs=1))
