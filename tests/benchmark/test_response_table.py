"""Tests of the recorded trainings: exact on the grid, sane between, equal seeds equal answers."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks import _recorded
from tune_ext.benchmark.tasks._recorded import CURVES, Recorded, load, seed_weights
from tune_ext.benchmark.tasks.response_table import ResponseTable
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

NAMES = ("response-digits-cnn", "response-fashion-cnn", "response-fashion-resnet")
DATA = Path(_recorded.__file__).parent / "data"


def file_of(task: ResponseTable) -> Path:
    return DATA / f"{task.table}.npz"


@pytest.fixture(params=NAMES)
def task(request):
    return tasks.create(request.param)


@pytest.fixture
def digits():
    return tasks.create("response-digits-cnn")


def run_to_the_end(task, config, seed):
    run = task.start(config, seed=seed)
    return [(run.train_epoch(), list(run.step_losses)) for _ in range(task.max_epochs)], run.test()


def assert_same(a, b):
    assert json.dumps(a) == json.dumps(b)  # which writes NaN alike


# What is recorded --------------------------------------------------------------------


def test_a_recorded_training_is_answered_as_recorded(task):
    with np.load(file_of(task)) as raw:
        lrs, decays = raw["lr"], raw["weight_decay"]
        for k, i, j in itertools.product(range(2), range(0, len(lrs), 4), range(len(decays))):
            config = {"lr": lrs[i], "weight_decay": decays[j]}
            epochs, test = run_to_the_end(task, config, seed=k)
            for name in CURVES:
                got = [metrics[name] for metrics, _ in epochs]
                np.testing.assert_allclose(got, raw[name][k, i, j], rtol=1e-4, atol=1e-6)
            losses = [losses for _, losses in epochs]
            np.testing.assert_allclose(losses, raw["step_losses"][k, i, j], rtol=1e-4, atol=1e-6)
            for name, value in test.items():
                assert value == pytest.approx(raw[name][k, i, j], rel=1e-4, abs=1e-6)


def test_the_files_are_small_and_say_what_they_hold():
    assert sum(path.stat().st_size for path in DATA.glob("*.npz")) < 5_000_000
    for name in NAMES:
        about = load(file_of(tasks.create(name))).about
        assert about["seeds"] == list(range(len(about["seeds"]))), name
        assert {"options", "versions", "revisions", "processor", "task"} <= about.keys()


def test_what_was_recorded_is_what_the_network_does(one_thread, digits):
    """One real epoch, on another machine: alike, not equal to the bit."""
    about = load(file_of(digits)).about
    real = tasks.create("digits-cnn", **about["options"])
    config = {"lr": 0.01, "weight_decay": 1e-3}
    truth = real.start(config, seed=1)
    found = digits.start(config, seed=1)
    expected, got = truth.train_epoch(), found.train_epoch()
    for name in ("train_loss", "validation_loss", "validation_error", "response"):
        assert got[name] == pytest.approx(expected[name], rel=0.02, abs=0.01), name
    np.testing.assert_allclose(found.step_losses, truth.step_losses, rtol=0.02)


# Between the recorded points ---------------------------------------------------------


def test_between_two_rates_lies_between_their_answers(task):
    lrs = load(file_of(task)).lrs
    for low, high in itertools.pairwise(lrs):
        middle = math.sqrt(low * high)
        a, b, c = (
            run_to_the_end(task, {"lr": lr, "weight_decay": 1e-3}, seed=0)[0][-1][0]
            for lr in (low, high, middle)
        )
        for name in CURVES:
            between = sorted((a[name], b[name]))
            assert between[0] - 1e-9 <= c[name] <= between[1] + 1e-9, name


def test_outside_is_the_edge(digits):
    lrs = load(file_of(digits)).lrs
    edges = [
        ({"lr": 1e-9}, {"lr": lrs[0]}),
        ({"lr": 50.0}, {"lr": lrs[-1]}),
        ({"weight_decay": 0.0}, {"weight_decay": 1e-7}),
    ]
    for outside, edge in edges:
        assert_same(run_to_the_end(digits, outside, 0), run_to_the_end(digits, edge, 0))


def test_errors_and_responses_are_fractions_for_any_seed(task):
    rng = np.random.default_rng(0)
    for seed in range(60):
        config = {"lr": 10 ** rng.uniform(-6, 0), "weight_decay": 10 ** rng.uniform(-7, -1)}
        epochs, test = run_to_the_end(task, config, seed)
        for metrics, losses in epochs:
            for name in ("validation_error", "response", "response_mean"):
                assert 0 <= metrics[name] <= 1
            assert metrics["validation_loss"] >= 0
            assert metrics["seconds"] > 0
            assert min(losses) >= 0
        assert 0 <= test["test_error"] <= 1


def test_the_true_error_is_the_mean_test_error_over_seeds(task):
    with np.load(file_of(task)) as raw:
        mean = raw["test_error"].mean(0)
        for i, j in itertools.product(range(0, len(raw["lr"]), 3), range(3)):
            config = {"lr": raw["lr"][i], "weight_decay": raw["weight_decay"][j]}
            assert task.true_error(config) == pytest.approx(mean[i, j], rel=1e-5, abs=1e-7)
        best, median = task.regret_range
        assert best == pytest.approx(mean.min(), rel=1e-5)
        assert best < median < 1


def test_the_regret_range_is_that_of_the_searched_parameters():
    both = tasks.create("response-fashion-cnn").regret_range
    rate = tasks.create("response-fashion-cnn", parameters=["lr"]).regret_range
    assert both[0] <= rate[0] < rate[1]


# Seeds -------------------------------------------------------------------------------


def test_equal_seeds_are_equal_and_others_differ(task):
    config = {"lr": 0.013, "weight_decay": 1e-5}
    errors = set()
    for seed in (0, 1, 2, 17, 18, 10**18):
        first, again = (run_to_the_end(task, config, seed) for _ in range(2))
        assert_same(first, again)
        errors.add(first[0][-1][0]["validation_loss"])
    assert len(errors) == 6


def test_many_seeds_have_the_mean_and_the_spread_of_the_recorded():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 400))  # three seeds, 400 independent quantities
    mixed = np.array([seed_weights(seed, 3) @ values for seed in range(3, 403)])
    assert mixed.mean() == pytest.approx(values.mean(), abs=0.03)
    assert mixed.var(0, ddof=1).mean() == pytest.approx(values.var(0, ddof=1).mean(), rel=0.1)


def test_noise_scales_how_far_seeds_are_from_their_mean():
    config = {"lr": 0.01, "weight_decay": 1e-3}
    spread = {}
    for noise in (0.0, 1.0, 2.0):
        task = tasks.create("response-fashion-cnn", noise=noise)
        ends = [run_to_the_end(task, config, seed)[0][-1][0] for seed in range(20)]
        spread[noise] = np.std([np.log(end["validation_loss"]) for end in ends])
    assert spread[0.0] == pytest.approx(0, abs=1e-9)
    assert spread[2.0] == pytest.approx(2 * spread[1.0], rel=1e-3)


# Divergence --------------------------------------------------------------------------


@pytest.fixture
def broken():
    """Two seeds, three rates, two decays, four epochs; at the highest rate NaN from epoch 3."""
    values = {name: np.full((2, 3, 2, 4), 0.5) for name in CURVES}
    values["step_losses"] = np.full((2, 3, 2, 4, 5), 0.5)
    for name in (*CURVES, "step_losses"):
        if name != "seconds":
            values[name][:, 2, :, 2:] = np.nan
    for name in ("test_loss", "test_error"):
        values[name] = np.full((2, 3, 2), 0.5)
        values[name][:, 2] = np.nan
    return Recorded({}, np.array([0.01, 0.1, 1.0]), np.array([1e-3, 1e-1]), values)


def test_nearer_to_a_diverged_training_diverges_with_it(broken):
    near = broken.answer(0.5, 1e-3, 0)
    assert near.epochs == 2
    assert np.isfinite(near.curves["train_loss"]).tolist() == [True, True, False, False]
    assert math.isnan(near.test["test_error"])
    far = broken.answer(0.2, 1e-3, 0)
    assert far.epochs == 4
    assert np.allclose(far.curves["validation_error"], 0.5)
    assert far.test["test_error"] == pytest.approx(0.5)
    assert broken.true_error(1.0, 1e-3) == pytest.approx(1.0)


def test_a_diverged_run_says_so(broken, digits, monkeypatch):
    monkeypatch.setattr(digits, "_recorded", broken)
    run = digits.start({"lr": 1.0}, seed=7)
    told = [(run.train_epoch(), run.step_losses) for _ in range(3)]
    assert [metrics["diverged"] for metrics, _ in told] == [False, False, True]
    assert math.isnan(told[2][0]["validation_error"])
    assert len(told[2][1]) == 1
    assert math.isnan(told[2][1][0])


# The contract ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_options_rebuild_the_task(name):
    task = tasks.create(name, parameters=["lr"], noise=2)
    again = tasks.create(name, **json.loads(json.dumps(task.options)))
    assert again.options == task.options
    assert again.space == task.space
    assert (again.simulated, again.measures_response, again.loss) == (True, True, "cross_entropy")
    assert again.missing() is None
    config = {"lr": 0.02}
    assert_same(run_to_the_end(again, config, 9), run_to_the_end(task, config, 9))


def test_a_state_goes_on_exactly(task):
    config = {"lr": 0.02, "weight_decay": 1e-4}
    run = task.start(config, seed=11)
    for _ in range(3):
        run.train_epoch()
    state = pickle.loads(pickle.dumps(run.state_dict()))
    other = task.start(config, seed=11)
    other.load_state_dict(state)
    assert other.epoch == 3
    assert other.step_losses == run.step_losses
    assert_same(other.train_epoch(), run.train_epoch())


def test_a_state_of_something_else_is_refused(digits):
    run = digits.start({}, seed=0)
    state = run.state_dict()
    for change in ({"version": 9}, {"kind": "lookup"}, {"seed": 1}, {"epoch": -1}, {"epoch": "2"}):
        with pytest.raises(StateError):
            run.load_state_dict({**state, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1}, "noise.*-1"),
        ({"noise": math.inf}, "noise.*inf"),
        ({"noise": "much"}, "noise.*much"),
        ({"parameters": []}, "parameters"),
        ({"parameters": ["momentum"]}, "momentum"),
        ({"epochs": 3}, "no option 'epochs'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        tasks.create("response-digits-cnn", **options)


def test_bad_configurations_and_seeds_are_refused(digits):
    with pytest.raises(InvalidValueError, match="momentum"):
        digits.start({"momentum": 0.9}, seed=0)
    with pytest.raises(InvalidValueError, match="-1"):
        digits.start({"lr": -1.0}, seed=0)
    with pytest.raises(InvalidTypeError, match="None"):
        digits.start({}, seed=None)


def test_exptest_finds_a_rate(task):
    run = tasks.start(task, {"lr": "exptest"}, seed=5)
    plan = tasks.plan_rungs(task, 5)
    assert plan.steps >= 30
    trained = 0
    while run.epoch < task.max_epochs:
        metrics = run.train_epoch()
        trained += 1
        assert trained < 100
    assert plan.lower <= run.lr <= plan.upper
    assert metrics["validation_error"] < 0.3


def test_its_bound_is_that_of_the_real_images(one_thread, digits):
    real = tasks.create("digits-cnn", **load(file_of(digits)).about["options"])
    assert tasks.plan_rungs(digits, 0).bound == pytest.approx(
        tasks.plan_rungs(real, 0).bound, rel=0.01
    )


def test_torch_is_not_loaded():
    code = (
        "import sys\n"
        "from tune_ext.benchmark import tasks\n"
        "tasks.create('response-digits-cnn').start({}, seed=0).train_epoch()\n"
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Files -------------------------------------------------------------------------------


def rewrite(path: Path, to: Path, **changes) -> Path:
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    about = json.loads(str(data["about"]))
    if "format" in changes:
        about["format"] = changes.pop("format")
        data["about"] = np.array(json.dumps(about))
    data |= changes
    np.savez_compressed(to, **{name: value for name, value in data.items() if value is not None})
    return to


def test_damaged_and_foreign_files_are_refused_with_their_path(digits, tmp_path):
    good = file_of(digits)
    data = good.read_bytes()
    cut, flipped = tmp_path / "cut.npz", tmp_path / "flipped.npz"
    cut.write_bytes(data[: len(data) // 2])
    middle = len(data) // 2
    flipped.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    text = tmp_path / "text.npz"
    text.write_text("no table")
    bad = [cut, flipped, text, tmp_path / "nothing.npz"]
    bad += [
        rewrite(good, tmp_path / "version.npz", format=2),
        rewrite(good, tmp_path / "less.npz", response=None),
        rewrite(good, tmp_path / "shape.npz", response=np.zeros((1, 2, 3, 4))),
        rewrite(good, tmp_path / "order.npz", lr=np.linspace(1, 0, 15)),
        rewrite(good, tmp_path / "about.npz", about=None),
    ]
    for path in bad:
        with pytest.raises(StateError, match=path.name):
            load(path)
