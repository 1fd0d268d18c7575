"""experiments/joint_search: the published search end to end, rank correlations, the report."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.lines import read
from tests.benchmark.examples import make_record
from tune_ext.benchmark.cell_run import NO_RESULT
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.study import Study, TaskSpec
from tune_ext.errors import StateError, TuneExtError

FOLDER = Path(__file__).parents[1] / "experiments" / "joint_search"
MODULES = ("correlation", "rungs", "report", "evaluations", "published")


@pytest.fixture(scope="module")
def joint(one_thread):
    """The study's modules, which import each other by their plain names."""
    sys.path.insert(0, str(FOLDER))
    others = {name: sys.modules.pop(name, None) for name in MODULES}
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update({name: module for name, module in others.items() if module})


# Rank correlations -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_correlations_are_scipys_also_with_equal_errors(joint, pairs):
    a, b = np.array(pairs, dtype=float).T
    rho, tau = joint.rungs.spearman(a[None], b[None])[0], joint.rungs.kendall(a[None], b[None])[0]
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert rho == tau == 0
    else:
        assert rho == pytest.approx(stats.spearmanr(a, b).statistic)
        assert tau == pytest.approx(stats.kendalltau(a, b).statistic)


def test_an_interval_covers_what_is_known_and_narrows(joint):
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    b = a + rng.normal(size=400)  # Spearman's ρ of this is 6/π·asin(1/√8) = .69
    rho, low, high = joint.rungs.with_interval(joint.rungs.spearman, a, b, draws=400)
    assert low < 6 / math.pi * math.asin(math.sqrt(1 / 8)) < high
    assert low < rho < high < low + 0.15
    _, low, high = joint.rungs.with_interval(joint.rungs.spearman, a[:20], b[:20], draws=400)
    assert high - low > 0.15


def test_the_better_half_is_that_of_the_longer_budget(joint):
    early, late = np.array([[3.0, 2.0, 1.0, 4.0, 5.0]]), np.array([[1.0, 2.0, 3.0, 8.0, 9.0]])
    assert joint.rungs.spearman(early, late)[0] == pytest.approx(0.6)
    assert joint.rungs.spearman_among_good(early, late)[0] == pytest.approx(-1)


def test_who_is_kept_and_who_halving_ends_with(joint):
    errors = np.array([[0.3, 0.2, 0.1], [0.1, 0.4, 0.4], [0.2, 0.3, 0.3],
                       [0.5, 0.1, 0.2], [0.6, 0.6, 0.6], [0.7, 0.7, 0.5]])  # fmt: skip
    early, late = errors[:, 0][None], errors[:, -1][None]
    # The best two at the end are the first and the fourth, at the beginning the second and third.
    assert joint.rungs.kept(early, late)[0] == 0
    assert joint.rungs.kept(errors[:, 1][None], late)[0] == 1
    assert joint.rungs.halved(errors) == 2  # of the two that go on it is better in the middle
    best = joint.rungs.analyse({0: dict(enumerate(errors.tolist()))}, [1, 3, 9])["best"]
    assert (best["error"], best["ranks"], best["halving rank"]) == (0.1, [3, 2, 1], 3)


def training(index, seed, *errors):
    return {"kind": "training", "index": index, "seed": seed, "error": errors, "seconds": [0.5]}


def test_what_diverged_is_the_worst_and_seeds_share_configurations(joint):
    rows = [training(i, 0, 0.5, 0.5, 0.05 * i) for i in range(12)]
    rows += [training(12, 0, 0.9, None, None), *(training(i, 1, 0.4, 0.4, 0.3) for i in (9, 12))]
    found = joint.rungs.arrange(rows, [1, 3])
    assert found[0][12] == [0.9, 1.0]
    one, two = joint.rungs.both(found[0], found[1])
    assert one.tolist() == [[0.5, 0.05 * 9], [0.9, 1.0]]
    assert two.tolist() == [[0.4, 0.3]] * 2
    assert "between" not in joint.rungs.analyse(found, [1, 3])  # two are too few
    rows += [training(i, 1, 0.4, 0.4, 0.3) for i in range(8)]
    numbers = joint.rungs.analyse(joint.rungs.arrange(rows, [1, 3]), [1, 3])
    assert (numbers["configurations"], numbers["configurations of two seeds"]) == (13, 10)
    assert (numbers["diverged"], numbers["between"].keys()) == (1, {"1 1", "1 3", "3 3"})


def test_trainings_go_on_where_they_ended_and_become_a_report(joint, tmp_path, monkeypatch, capsys):
    spec, path = TaskSpec("digits-joint", {"epochs": 3}), tmp_path / "trainings.jsonl"
    with pytest.raises(StateError, match="run first"):
        joint.rungs.report(read(path), tmp_path)
    real, trained = joint.correlation.train, []

    def train(task, config, seed):
        trained.append((seed, config["batch_size"]))
        if len(trained) == 1:
            return real(task, config, seed)
        rng = np.random.default_rng(len(trained))
        return {"parameters": 9, "error": rng.random(3).tolist(), "seconds": [0.1] * 3}

    monkeypatch.setattr(joint.correlation, "train", train)
    joint.correlation.run(spec, path, 4, 1)
    with path.open("a") as file:
        file.write('{"kind": "training", "ind')  # a kill
    joint.correlation.run(spec, path, 4, 2)
    assert [seed for seed, _ in trained] == [0] * 4 + [1] * 4
    assert trained[0][1] == trained[4][1]  # the same configurations
    records = read(path)
    assert len(records) == 9
    assert records[1]["parameters"] > 100
    assert all(0 <= e <= 1 for e in records[1]["error"])
    with pytest.raises(TuneExtError, match="another task"):
        joint.correlation.run(TaskSpec("digits-joint", {"epochs": 9}), path, 4, 1)
    capsys.readouterr()
    monkeypatch.setattr(joint.rungs, "LEAST", 4)
    found = joint.rungs.report(records, tmp_path)
    assert found["within"].keys() == {"1 3"}
    assert found["between"].keys() == {"1 1", "1 3", "3 3"}
    assert "| 1 and 3 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "correlation.json").read_text())["configurations"] == 4
    assert (tmp_path / "correlation.png").stat().st_size > 1000


# The report of the head-to-head --------------------------------------------------------------


def cell(label, method, seed, error, **changes):
    trials = [{"epochs": e, "train_seconds": 1.0} for e in (1, 1, 4)]
    known = {"max_epochs": 4, "makespan": 12.0, "busy_seconds": 6.0, "unit": "seconds"}
    tests = (error, error) if error is not None else ()
    known |= {"trials": trials, "incumbents": [[2.0, 1.0, 0.5], [5.0, 4.0, 0.25]]}
    return make_record(method, seed, tests, label=label, **{**known, **changes})


@pytest.fixture
def records():
    made = []
    for seed in range(4):
        made += [
            cell("joint", "random", seed, 0.30 + 0.01 * seed),
            cell("joint", "our-bohb", seed, 0.20 + 0.02 * seed),
            cell("joint", "our-bohb+scaled", seed, 0.25),
            cell("joint", "default", seed, 0.35, trials=[], incumbents=[]),
            cell("architecture", "our-bohb", seed, 0.40),
            cell("hyper-parameters", "our-bohb", seed, 0.20),
        ]
    hung = "search, after 3 epochs: no progress for 300 s"
    made += [cell("joint", "bohb", s, 0.40) for s in range(2)]
    made += [cell("joint", "bohb", 2, None, failures=[hung, NO_RESULT])]
    return made


def test_differences_are_paired_and_a_cell_without_a_result_is_the_worst(joint, records):
    found = {(c.question, c.first, c.second): c for c in joint.report.compare(
        joint.report.gather(records))}  # fmt: skip
    ours = ("joint", "our-bohb")
    parts = found["parts", ours, ("architecture", "our-bohb")]
    assert parts.difference.mean == pytest.approx(-0.17)
    assert (parts.wins, parts.losses) == (4, 0)
    equal = found["parts", ours, ("hyper-parameters", "our-bohb")]
    assert (equal.wins, equal.losses) == (0, 3)
    built_in = found["built-in", ours, ("joint", "bohb")]
    assert built_in.difference.seeds == 3
    assert built_in.difference.mean == pytest.approx(((0.2 + 0.22 + 0.24) - (0.4 + 0.4 + 1)) / 3)
    assert found["scaling", ("joint", "our-bohb+scaled"), ours].difference.mean == pytest.approx(
        0.02
    )
    # Wilcoxon's smallest p with four seeds is 1/8; Holm's correction doubles that of two.
    assert parts.p == pytest.approx(0.25)
    beside = found["default", ("architecture", "our-bohb"), ("joint", "default")]
    assert beside.difference.mean == pytest.approx(0.05)
    names = {"parts", "built-in", "scaling", "random", "default"}
    assert {question for question, _, _ in found} == names


def test_what_a_search_did_is_counted(joint, records, monkeypatch):
    monkeypatch.setattr(joint.report, "_parameters", lambda records: None)
    cells = joint.report.gather(records)
    how = joint.report.ran(cells["joint", "bohb"])
    assert (how["cells"], how["failed"], how["hung"], how["without a result"]) == (3, 1, 1, 1)
    assert (how["trials"], how["full"]) == (3, 1)
    assert how["idle"] == pytest.approx(1 - 3 / 12)  # on the clock; not in seconds of the processor


def test_the_report_has_tables_pictures_and_numbers(joint, records, tmp_path, monkeypatch):
    monkeypatch.setattr(joint.report, "_parameters", lambda records: 1234.0)
    methods = ("default", "random", "bohb", "our-bohb", "our-bohb+scaled")
    tasks = [
        TaskSpec("digits-joint", {}, label)
        for label in ("joint", "architecture", "hyper-parameters")
    ]
    study = Study("Joint", tuple(tasks), methods, (0, 1, 2, 3), 10, unit="seconds")
    store = RecordStore(tmp_path)
    store.open(study)
    with pytest.raises(StateError, match="no finished cell"):
        joint.report.report(tmp_path)
    for record in records:
        store.append(record)
    store.close()
    joint.report.report(tmp_path)
    text = (tmp_path / "joint.md").read_text()
    lines = text.splitlines()
    assert "| method | joint | architecture | hyper-parameters |" in lines
    rows = [line for line in lines if line.startswith("| our-bohb, joint | our-bohb, architecture")]
    assert rows == [
        "| our-bohb, joint | our-bohb, architecture | -17.00 [-21.11, -12.89] | 4, 0 | 0.25 |"
    ]
    assert "no progress for 300 s" in text
    assert "| bohb, joint | 3 | 1 | 1 | 3.0 | 1.0 | 10 | 75 | 1,234 |" in text
    for name in ("anytime.png", "errors.png"):
        assert (tmp_path / name).stat().st_size > 1000
    kept = json.loads((tmp_path / "joint.json").read_text())
    assert kept["errors"]["bohb, joint"] == {"0": 0.4, "1": 0.4, "2": 1.0}


def test_the_weights_of_what_was_recommended(joint):
    spec = TaskSpec("digits-joint", {"epochs": 3})
    default = spec.create().default_config
    given = {"task": spec.to_json(), "recommendation": {"config": default}}
    records = [cell("joint", "random", seed, 0.3, **given) for seed in range(2)]
    network = spec.create().build(default)
    assert joint.report._parameters(records) == sum(p.numel() for p in network.parameters())
    plain = cell("joint", "random", 0, 0.3, task={"name": "digits-mlp", "options": {}})
    assert joint.report._parameters([plain]) is None


# The published search -------------------------------------------------------------------------


def test_the_published_search_starts_as_many_configurations_as_hpbandster(joint):
    published = joint.published
    assert published.trials(published.BUDGETS, 32) == 8 * (27 + 9 + 6 + 4)
    assert published.trials(published.BUDGETS, 2) == 36
    args = published.arguments([])
    assert (args.budgets, args.iterations, args.workers) == ((400, 1200, 3600, 10800), 32, 10)
    assert args.device == "cuda"
    spec = published.specification(args)
    assert spec.create().restarts.boundaries == (400, 1200, 2000, 3600, 6000, 10800)
    assert len(spec.create().space) == 17
    assert spec.create().space["nr_residual_blocks_1"].upper == 16


@pytest.mark.parametrize("budgets", ["400", "400,1200,1200", "1,2,6", "0,0", "-1,-3"])
def test_budgets_that_do_not_grow_by_one_factor_are_told(joint, budgets, capsys, tmp_path):
    out = str(tmp_path / "out")
    assert joint.published.main([f"--budgets={budgets}", "--out", out]) == 2
    assert "--budgets must" in capsys.readouterr().err
    assert not Path(out).exists()


def result(spent, error=0.5, **more):
    return {"train_seconds": spent, "validation_error": error, "epoch": 1, **more}


def test_every_budget_that_is_reached_is_written_once(joint, tmp_path, capsys):
    path = tmp_path / "evaluations.jsonl"
    trial = SimpleNamespace(trial_id="a", config={"x": np.int64(3)}, status="RUNNING")

    def watch():
        return joint.evaluations.Evaluations(str(path), (1.0, 3.0, 9.0), 5)

    first = watch()
    for spent, error in ((1.01, 0.5), (2.0, 0.45), (3.0 - 1e-12, 0.4)):
        first.on_trial_result(0, [trial], trial, result(spent, error))
    with path.open("a") as file:
        file.write('{"trial": ')  # a kill
        file.write("\n")
    resumed = watch()
    resumed.on_trial_result(0, [trial], trial, result(3.1, 0.3))
    resumed.on_trial_result(0, [trial], trial, result(4.0, math.nan, diverged=True))
    other = SimpleNamespace(trial_id="b", config={"x": 4}, status="RUNNING")
    resumed.on_trial_result(0, [trial, other], other, result(3.2, 0.2))
    records = read(path)
    assert [(r["trial"], r["budget"], r["validation_error"]) for r in records] == [
        ("a", 1.0, 0.5),
        ("a", 3.0, 0.4),
        ("a", 9.0, None),
        ("b", 1.0, 0.2),
        ("b", 3.0, 0.2),
    ]
    assert type(records[0]["config"]["x"]) is int
    told = capsys.readouterr().out.splitlines()
    assert told[-1].endswith("best: 1 s 20.00 %, 3 s 20.00 %")
    best = joint.evaluations.best_evaluation(records)
    assert (best["trial"], best["budget"]) == ("b", 3.0)
    lines = joint.evaluations.table(records, 0.41).splitlines()
    assert lines[3].split() == ["9", "1", "1"]
    assert "Test error of the first: 41.00 %" in lines


def test_a_small_published_search_end_to_end(joint, cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    out, storage = tmp_path / "out", tmp_path / "storage"
    argv = ["--dataset", "digits", "--limits", "small", "--budgets", "0.05,0.15"]
    argv += ["--iterations", "1", "--workers", "1", "--gpus-per-trial", "0"]
    argv += ["--storage", str(storage), "--out", str(out)]
    assert joint.published.main([*argv, "--resume"]) == 2
    assert "no search that could be resumed" in capsys.readouterr().err
    assert joint.published.main(argv) == 0
    found = json.loads((out / "result.json").read_text())
    trials = {
        b: {r["trial"] for r in found["evaluations"] if r["budget"] == b} for b in (0.05, 0.15)
    }
    assert len(trials[0.05]) == 3
    assert 1 <= len(trials[0.15]) <= 3  # one, unless a batch takes longer than a budget
    best = found["best"]
    assert best["trial"] in trials[0.15]
    assert best["train_seconds"] >= 0.15
    assert 0 <= best["test_error"] <= 1
    assert "Test error of the first" in capsys.readouterr().out
    assert joint.published.main(argv) == 2
    assert "go on with it by --resume" in capsys.readouterr().err
    assert joint.published.main([*argv, "--seed", "1", "--resume"]) == 2
    assert "other settings" in capsys.readouterr().err
    monkeypatch.setattr(joint.published, "tested", lambda *args: best["test_error"])
    assert joint.published.main([*argv, "--resume"]) == 0  # nothing is left to train
    assert json.loads((out / "result.json").read_text())["best"] == best
