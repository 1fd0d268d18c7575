import numpy as np
import pytest

from tests.benchmark.examples import FAKE, make_study
from tune_ext.benchmark.runner import split_available
from tune_ext.benchmark.study import TaskSpec, parse_seeds
from tune_ext.benchmark.study_file import find_study, load_study, parse_study
from tune_ext.benchmark.tally import epochs_allowed
from tune_ext.errors import DataNotFoundError, InvalidValueError

TEXT = """\
title = "Digits"

[[tasks]]
name = "digits-cnn"
options = { epochs = 7 }

[compare]
methods = ["default", "random"]
seeds = [4, 2]
budget = 30
final_seeds = 2

[limits]
stall_seconds = 5
"""


def test_a_study_is_read_from_toml():
    study = parse_study(TEXT)
    assert study.title == "Digits"
    assert study.tasks == (TaskSpec("digits-cnn", {"epochs": 7}),)
    assert study.methods == ("default", "random")
    assert (study.seeds, study.budget, study.final_seeds) == ((4, 2), 30, 2)
    assert (study.stall_seconds, study.cell_seconds) == (5, 3600.0)
    assert [c.key for c in study.cells()] == [
        ("digits-cnn", "default", 4),
        ("digits-cnn", "random", 4),
        ("digits-cnn", "default", 2),
        ("digits-cnn", "random", 2),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("budget = 30", "budget = 0", 10, "positive"),
        ("budget = 30", "budget = 2.5", 10, "whole number"),
        ("budget = 30", "budjet = 30", 10, "not known"),
        ("budget = 30", 'budget = 30\ntitle = "x"', 11, "at the top of the file"),
        ("seeds = [4, 2]", "seeds = [4, -2]", 9, "non-negative"),
        ("seeds = [4, 2]", "seeds = [4, 4]", 9, "repeated"),
        ("seeds = [4, 2]", "seeds = 0", 9, "positive count"),
        ('methods = ["default", "random"]', 'methods = "random"', 8, "list of names"),
        ('methods = ["default", "random"]', "methods = []", 8, "must not be empty"),
        ("stall_seconds = 5", "stall_seconds = -5", 14, "positive"),
        ('name = "digits-cnn"', 'name = ""', 4, "needs a name"),
        ('name = "digits-cnn"', 'name = "digits-cn"', 4, "did you mean digits-cnn"),
        ('name = "digits-cnn"', 'name = "digits-cnn"\nlabel = 3', 5, "label must be text"),
        ('name = "digits-cnn"', 'name = "digits-cnn"\nlabl = "x"', 5, "did you mean label"),
        ("{ epochs = 7 }", "{ epoch = 7 }", 5, "no option 'epoch'"),
        ("{ epochs = 7 }", "{ epochs = 7 }\nbudget = 0", 6, "positive"),
        ('"random"]', '"randon"]', 8, "did you mean random"),
        ("budget = 30", 'budget = 30\nunit = "epoch"', 11, "did you mean epochs"),
        ("budget = 30", "budget = 30\nworkers = 0", 11, "positive"),
        ("{ epochs = 7 }", '{ epochs = 7 }\nmethods = ["asha"]', 6, "some of .*default, random"),
        ("{ epochs = 7 }", "{ epochs = 7 }\nmethods = []", 6, "some of"),
        ("{ epochs = 7 }", '{ epochs = 7 }\nmethods = ["random", "random"]', 6, "repeated"),
    ],
)
def test_mistakes_are_told_with_their_line(old, new, line, words):
    with pytest.raises(InvalidValueError, match=words) as caught:
        parse_study(TEXT.replace(old, new), where="here.toml")
    assert str(caught.value).startswith(f"here.toml, line {line}:")


def test_the_line_is_that_of_the_entry_at_fault():
    second = '[[tasks]]\nname = "digits-cnn"\nlabel = "b"\n[tasks.options]\nepoch = 3\n\n[compare]'
    with pytest.raises(InvalidValueError, match="no option 'epoch'") as caught:
        parse_study(TEXT.replace("[compare]", second), where="x")
    assert str(caught.value).startswith("x, line 10:")


def test_a_study_has_a_unit_workers_labels_and_budgets_of_its_tasks():
    more = '[[tasks]]\nname = "digits-cnn"\nlabel = "long"\nbudget = 90\n\n[compare]'
    text = TEXT.replace("[compare]", more).replace(
        "budget = 30", 'budget = 30\nunit = "trainings"\nworkers = 4'
    )
    study = parse_study(text)
    assert (study.unit, study.workers) == ("trainings", 4)
    assert [t.label for t in study.tasks] == ["digits-cnn", "long"]
    assert [study.budget_of(t) for t in study.tasks] == [30, 90]
    assert study.cells()[2].key == ("long", "default", 4)
    assert TaskSpec(**study.tasks[1].to_json()) == study.tasks[1]
    with pytest.raises(InvalidValueError, match="give one of them a label"):
        parse_study(text.replace('label = "long"\n', ""))
    shorter = study.with_overrides(budget=7, workers=1)
    assert [shorter.budget_of(t) for t in shorter.tasks] == [7, 7]
    assert shorter.workers == 1


def test_a_task_may_be_searched_by_some_of_the_methods_only():
    more = '[[tasks]]\nname = "digits-cnn"\nlabel = "b"\nmethods = ["random"]\n\n[compare]'
    study = parse_study(TEXT.replace("[compare]", more))
    keys = [c.key for c in study.cells() if c.seed == 4]
    assert keys == [("digits-cnn", "default", 4), ("digits-cnn", "random", 4), ("b", "random", 4)]
    _, left_out = split_available(study)
    assert left_out == {"default on b": "the study does not ask for it"}
    # Its cells depend on nothing else, so that a method can be added later.
    assert "methods" not in study.tasks[1].to_json()


def test_what_is_missing_or_not_toml_is_told():
    with pytest.raises(InvalidValueError, match=r"\[compare\] needs budget"):
        parse_study(TEXT.replace("budget = 30\n", ""))
    with pytest.raises(InvalidValueError, match="not valid TOML"):
        parse_study("title = ")
    with pytest.raises(InvalidValueError, match="tasks must not be empty"):
        parse_study('[compare]\nmethods = ["random"]\nseeds = 1\nbudget = 3\n')


@pytest.mark.parametrize("bad", ["", "a", "1,x", 0, -1, True, [], [1.5], None, "1,-2"])
def test_bad_seeds(bad):
    with pytest.raises(InvalidValueError, match="seeds"):
        parse_seeds(bad)


def test_seeds_are_any_whole_numbers_in_order():
    for seeds in ([3, 4], range(3, 5), np.arange(3, 5)):
        study = make_study(seeds=seeds)
        assert study.seeds == (3, 4)
        assert {type(seed) for seed in study.seeds} == {int}


def test_overrides_are_checked_like_the_file():
    study = parse_study(TEXT).with_overrides(methods=["asha"], seeds=(0,), budget=5)
    assert (study.methods, study.seeds, study.budget) == (("asha",), (0,), 5)
    with pytest.raises(InvalidValueError, match="positive"):
        study.with_overrides(budget=-1)


def test_evaluation_seeds_pair_methods_and_differ_from_search_seeds():
    study = make_study(final_seeds=3)
    assert study.evaluation_seeds(0) == make_study(final_seeds=3).evaluation_seeds(0)
    everything = [s for seed in range(5) for s in study.evaluation_seeds(seed)]
    assert len(set(everything)) == 15
    assert not set(everything) & set(range(5))


def test_studies_are_found_by_file_directory_and_name(tmp_path, monkeypatch):
    home = tmp_path / "experiments" / "mine"
    home.mkdir(parents=True)
    (home / "study.toml").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "experiments/mine", "experiments/mine/study.toml"):
        assert load_study(find_study(name)).title == "Digits"
    with pytest.raises(DataNotFoundError, match="mine"):
        find_study("other")


def test_a_task_of_ones_own_is_named_by_module():
    task = TaskSpec(FAKE, {"epochs": 6}).create()
    assert task.max_epochs == 6
    assert TaskSpec(FAKE, {"epochs": 6}).create() is task
    with pytest.raises(InvalidValueError, match="cannot import"):
        TaskSpec("tests.benchmark.fake:Nothing").create()
    with pytest.raises(InvalidValueError, match="digits-cnn"):
        TaskSpec("nothing").create()


def test_the_shipped_studies_are_sound():
    from pathlib import Path

    from tune_ext.benchmark.methods import METHODS, unsuited

    files = list((Path(__file__).parents[2] / "experiments").glob("*/study.toml"))
    assert {f.parent.name for f in files} >= {"digits", "fashion_mnist"}
    for file in files:
        study = load_study(file)
        tasks = [spec.create() for spec in study.tasks]
        assert set(study.methods) <= set(METHODS)
        assert all(any(unsuited(m, task) is None for m in study.methods) for task in tasks)
        for spec, task in zip(study.tasks, tasks, strict=True):
            allowed = epochs_allowed(study.budget_of(spec), study.unit, task.max_epochs)
            assert allowed is None or allowed >= task.max_epochs
