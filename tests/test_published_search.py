"""The published joint search: what it trains, and what it says when something is not there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
from ray import tune

from tune_ext.benchmark.study import TaskSpec
from tune_ext.errors import DataNotFoundError, StateError

FOLDER = Path(__file__).parents[1] / "experiments" / "joint_search"
SMALL = ["--dataset", "digits", "--limits", "small", "--budgets", "1,3", "--iterations", "1"]
SMALL += ["--gpus-per-trial", "0"]


@pytest.fixture(scope="module")
def published(one_thread):
    """The script, which imports what is beside it by its plain name."""
    sys.path.insert(0, str(FOLDER))
    others = {name: sys.modules.pop(name, None) for name in ("published", "evaluations", "lines")}
    try:
        yield importlib.import_module("published")
    finally:
        sys.path.remove(str(FOLDER))
        for name, module in others.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def test_shake_shake_draws_the_weights_of_the_published_code(published):
    for argv, expected in (([], "softmax"), (["--coefficients", "uniform"], "uniform")):
        task = published.specification(published.arguments(argv)).create()
        assert task.options["coefficients"] == expected


@pytest.mark.parametrize("option", ["--iterations=0", "--workers=0", "--seed=-1"])
def test_impossible_options_are_told_before_anything_is_begun(
    published, option, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(published, "start_ray", None)
    assert published.main([*SMALL, option, "--out", str(tmp_path / "out")]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_where_things_are_kept_does_not_depend_on_where_it_is_resumed(published):
    args = published.arguments(["--out", "a", "--storage", "b/"])
    assert published.lines_of(args) == Path.cwd() / "a" / "evaluations.jsonl"
    assert published.where(args) == str(Path.cwd() / "b")
    args = published.arguments(["--storage", "s3://bucket/searches/"])
    assert published.where(args) == "s3://bucket/searches"


def test_a_search_of_the_same_name_is_left_alone(published, monkeypatch, tmp_path):
    argv = [*SMALL, "--storage", str(tmp_path)]
    args = published.arguments(argv)
    monkeypatch.setattr(tune.Tuner, "can_restore", lambda path: path == f"{tmp_path}/joint-search")
    with pytest.raises(StateError, match="joint-search holds another search: give another --name"):
        published.make_tuner(args, published.specification(args))
    args = published.arguments([*argv, "--name", "b", "--resume"])
    with pytest.raises(StateError, match="Ray has no search in"):
        published.make_tuner(args, published.specification(args))


class Ended(list):
    """What Ray's tuner returns."""

    def __init__(self, begun, terminated, errors=()):
        super().__init__(range(begun))
        self.num_terminated, self.num_errors, self.errors = terminated, len(errors), list(errors)

    def fit(self):
        return self


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Ended(3, 2), "interrupted when 2 of 3 had ended: go on with --resume"),
        (Ended(2, 2), "interrupted when 2 of 3"),
        (Ended(3, 0, [ValueError("at\nno memory")] * 3), "finite error; no memory"),
        (Ended(3, 2, [ValueError()]), r"finite error; ValueError\(\)"),
    ],
)
def test_a_search_without_a_result_says_why(published, ended, said, tmp_path, monkeypatch, capsys):
    """Ray comes back from Ctrl-C as from a search that has ended."""
    monkeypatch.setattr(published, "start_ray", lambda args: None)
    monkeypatch.setattr(published, "make_tuner", lambda *args: ended)
    argv = [*SMALL, "--out", str(tmp_path)]
    assert published.main(argv) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "result.json").exists()
    assert published.main(argv) == 2
    assert "go on with it by --resume" in capsys.readouterr().err


def test_a_node_without_the_data_is_named_before_trials_fail_there(published, cluster, tmp_path):
    args = published.arguments(SMALL)
    published.check_nodes(args, published.specification(args))
    nowhere = TaskSpec("fashion-mnist-joint", {"data_dir": str(tmp_path / "none")})
    with pytest.raises(DataNotFoundError, match=r"on node [\d.]+: Fashion-MNIST is not in"):
        published.check_nodes(args, nowhere)
