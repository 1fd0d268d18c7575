"""experiments/exptest: a tiny cell of each kind, resuming, and what the report makes of it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "exptest"
MODULES = ("tasks", "training", "baselines", "study", "pictures", "report")
PACKAGES = {
    "prodigy": "prodigyopt",
    "dadapt-adam": "dadaptation",
    "dadapt-sgd": "dadaptation",
    "dog": "dog",
    "schedule-free-sgd": "schedulefree",
    "schedule-free-adamw": "schedulefree",
    "range-test": "torch_lr_finder",
    "plateau-range-test": "torch_lr_finder",
}
OWN = (
    *("constant-0.01", "cooled-0.01", "adam-default", "plateau-default", "cosine-oracle"),
    *("exptest", "exptest-open", "ladder", "tuner-oracle", "exptest-momentum", "exptest-adam"),
)


@pytest.fixture(scope="module")
def exptest(one_thread):
    """The study's modules, which import each other by their plain names."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


def table(exptest, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(160, 10))
    return exptest.tasks._table(x, x[:, 0] - x[:, 1] + 0.1 * rng.normal(size=160), "tiny", seed)


@pytest.fixture(scope="module")
def tiny(exptest):
    """96 training examples in batches of 16, two epochs."""
    return replace(
        exptest.tasks.tasks()["diabetes"],
        name="tiny",
        load=lambda seed: table(exptest, seed),
        batch_size=16,
        epochs=2,
        early_stopping=False,
    )


@pytest.fixture(scope="module")
def prepared(exptest, tiny):
    return exptest.training.Prepared.of(tiny, 0)


@pytest.fixture(scope="module")
def known(exptest, prepared):
    """The records of the grid."""
    every = exptest.baselines.methods()
    names = exptest.baselines.CONSTANTS
    return {n: exptest.study.train(prepared, n, every[n], {}) for n in names}


@pytest.mark.parametrize("name", [*OWN, *PACKAGES])
def test_every_method_trains_the_same_run_and_counts_its_steps(exptest, prepared, known, name):
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip("the extra baselines is not installed")
    method = exptest.baselines.methods()[name]
    record = json.loads(json.dumps(exptest.study.train(prepared, name, method, known)))
    assert record["steps"] == record["run_steps"] == 12
    assert record["loss_curve"][0] == pytest.approx(known["constant-0.01"]["loss_curve"][0], 1e-4)
    assert math.isfinite(record["metrics"]["test"])
    assert len(record["rate_curve"]) == 12
    grid = sum(known[n]["steps"] for n in exptest.baselines.CONSTANTS)
    if method.needs:
        assert record["search_steps"] == grid
    elif "ladder" in record:
        assert record["search_steps"] >= len(record["ladder"]) * 3
        assert record["lr"] in [rung["lr"] for rung in record["ladder"]]
    elif "range" in name:
        assert 0 < record["search_steps"] <= 100
    else:
        assert record["search_steps"] == 0


def test_the_test_data_is_read_once_at_the_end(exptest, tiny, monkeypatch):
    reads = []
    evaluate = exptest.training.evaluate

    def spy(task, network, data):
        reads.append(data is prepared.data.test)
        return evaluate(task, network, data)

    monkeypatch.setattr(exptest.training, "evaluate", spy)
    prepared = exptest.training.Prepared.of(replace(tiny, early_stopping=True), 0)
    for name in ("plateau-default", "exptest"):
        reads.clear()
        exptest.study.train(prepared, name, exptest.baselines.methods()[name], {})
        assert reads.count(True) == 1
        assert reads[-1]


def test_early_stopping_measures_the_weights_of_the_best_validation_epoch(exptest, tiny):
    prepared = exptest.training.Prepared.of(replace(tiny, early_stopping=True, epochs=6), 1)
    seen = []
    network = prepared.network()
    optimizer = exptest.baselines.torch.optim.SGD(network.parameters(), lr=0.35)
    hooks = exptest.training.Hooks(epoch=seen.append)
    outcome = exptest.training.run(prepared, network, optimizer, hooks)
    assert outcome.metrics["validation"] == min(seen)
    assert seen[-1] > min(seen)


def test_a_diverged_run_has_no_metrics_and_is_plain_json(exptest, prepared):
    method = exptest.baselines.Method("", exptest.baselines._constant(1e6))
    record = exptest.study.train(prepared, "constant", method, {})
    assert record["diverged"]
    assert record["metrics"] == {}
    assert record["steps"] < record["run_steps"]
    json.dumps(record, allow_nan=False)


def test_a_study_goes_on_where_it_was_killed(exptest, tiny, tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    every = exptest.baselines.methods()
    names = ["exptest", "cosine-oracle"]
    exptest.study.run([tiny], every, names, range(2), path)
    whole = exptest.study.read(path)
    assert [r["method"] for r in whole].count("cosine-oracle") == 2
    assert len(whole) == 2 * (1 + 8 + 1)  # the grid came along, before what needs it
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:50])
    exptest.study.run([tiny], every, names, range(2), path)
    again = exptest.study.read(path)
    values = [(r["task"], r["method"], r["seed"], r["metrics"]) for r in whole]
    assert [(r["task"], r["method"], r["seed"], r["metrics"]) for r in again] == values
    assert capsys.readouterr().out.count("tiny") == 20 + 2


def test_seeds_change_data_weights_and_order_and_repeat(exptest, tiny):
    first, same, other = (exptest.training.Prepared.of(tiny, seed) for seed in (0, 0, 1))

    def start(prepared):
        x, y = next(iter(prepared.batches()))
        return float(tiny.loss_fn(prepared.network()(x), y).detach())

    assert start(first) == start(same) != start(other)


def test_tasks_say_what_is_missing_and_networks_fit_their_data(exptest, tmp_path):
    every = exptest.tasks.tasks(exptest.tasks.Options(str(tmp_path)))
    for name in ("logistic-128", "vgg-small", "vgg16-cifar10", "california"):
        assert str(tmp_path) in every[name].missing() or "data_home=" in every[name].missing()
    torch = exptest.baselines.torch
    for name, shape in (("vgg-small", (2, 1, 14, 14)), ("mlp-256", (2, 1, 28, 28))):
        assert every[name].network(0)(torch.zeros(shape)).shape == (2, 10)
    deep = every["lattice-32-8"].network(0)
    weights = [p for p in deep.parameters() if p.ndim == 2]
    assert len(weights) == 9
    assert float(weights[4].detach().var()) == pytest.approx(2 / 32, rel=0.2)  # He's


def fake(task, method, seed, validation, test, **more):
    metrics = {"train_loss": 1.0, "validation": validation, "test": test}
    record = {"task": task, "method": method, "seed": seed, "metric": "accuracy", "lr": 0.1}
    record |= {"metrics": metrics, "diverged": False, "search_steps": 0, "steps": 100}
    record |= {"run_steps": 100, "epochs": 2, "loss_curve": [2.0, 1.0], "rate_curve": [0.1, 0.1]}
    return record | more


def some_records(exptest, exptest_test):
    names = [n for n in exptest.report.compared() if n not in ("oracle", "sgd-default")]
    names += ["exptest-momentum", "exptest-adam"]
    for seed in range(3):
        for i, name in enumerate(exptest.baselines.CONSTANTS):
            # The best on validation data is not the best on test data.
            yield fake("t", name, seed, 0.5 + 0.01 * i, 0.9 - 0.01 * i)
        for name in names:
            found = exptest_test if name == "exptest" else 0.6
            yield fake("t", name, seed, 0.5, found, search_steps=80)


def test_the_oracle_is_chosen_by_validation_and_costs_the_grid(exptest):
    cells = exptest.report.gather(some_records(exptest, 0.7))
    best = cells["t", "oracle", 0]
    assert best["metrics"]["test"] == pytest.approx(0.83)  # that of the largest rate
    assert exptest.report.cost(best) == 800
    row = exptest.report.row(cells, "t", "exptest")
    assert row.share == pytest.approx(180 / 800)
    assert row.gap[0] == pytest.approx((0.83 - 0.7) / 0.83)


@pytest.mark.parametrize(("value", "met"), [(0.825, True), (0.81, False)])
def test_targets_are_judged_by_the_numbers(exptest, value, met):
    cells = exptest.report.gather(some_records(exptest, value))
    judged = {target: ok for target, _, ok in exptest.report.targets(cells)}
    assert judged["t: test metric within 1 % of the oracle's"] is met
    assert judged["t: ≤ 1/4 of the grid's steps"]
    # SGD's default is the grid's second rate here, and has .89.
    assert not judged["average rank ahead of every baseline but the oracle, plain SGD"]


def test_a_diverged_run_ranks_last_and_ties_share(exptest):
    lost = fake("t", "a", 0, 0.0, 0.0, diverged=True, metrics={})
    cells = exptest.report.gather([lost, fake("t", "b", 0, 0.5, 0.5), fake("t", "c", 0, 0.5, 0.5)])
    assert exptest.report.ranks(cells, ["a", "b", "c"]) == {"t": {"a": 3.0, "b": 1.5, "c": 1.5}}


def test_report_and_pictures_from_records(exptest, tmp_path):
    lattice = [
        fake("lattice-32-2", name, 0, 0.5, 0.5, lr=rate, metric="mse")
        for name, rate in (("rate-0.01", 0.01), ("rate-0.1", 0.1), ("exptest", 0.05))
    ]
    renamed = [r | {"task": "mlp-128"} for r in some_records(exptest, 0.87)]
    cells = exptest.report.gather([*renamed, *lattice])
    text = exptest.report.markdown(cells)
    assert "| exptest | 0.8700 ± 0.0000 | +4.82 % ± 0.00 |" in text
    assert "| 32-2 | 1 | 0.01 | 0.500 | 0.05 | 0.500 |" in text
    json.dumps(exptest.report.summary(cells), allow_nan=False)
    drawn = exptest.pictures.draw(cells, tmp_path)
    assert {path.stem for path in drawn} == {"fig2_mlp", "fig5_lattice", "gaps"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
