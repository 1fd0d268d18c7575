"""Pages and pictures of importance, from records written by hand."""

import functools
import math

import numpy as np
import pytest
from ConfigSpace import ConfigurationSpace, Float

from tests.benchmark.examples import FAKE, make_record, make_study
from tests.benchmark.fake import FakeTask
from tune_ext.benchmark import importance_report
from tune_ext.benchmark.importance_report import importance_markdown
from tune_ext.benchmark.records import RecordStore
from tune_ext.errors import InvalidValueError, StateError

OWN = ("tests.benchmark.fake", "tests.benchmark.test_importance_report")
task_importance = functools.partial(importance_report.task_importance, modules=OWN)
write_importance = functools.partial(importance_report.write_importance, modules=OWN)


class WideTask(FakeTask):
    """The space of six parameters, of which `lr` and `b` matter: pairs are many."""

    def __init__(self):
        super().__init__()
        self.space = ConfigurationSpace(
            {"lr": Float("lr", (1e-4, 1.0), log=True), **{n: (0.0, 1.0) for n in "abcde"}}
        )


WIDE = "tests.benchmark.test_importance_report:WideTask"


def trial(config, error, epochs=4):
    return {"trial": 0, "config": config, "epochs": epochs, "validation_error": error}


def rates(count, seed=0):
    return [float(10**p) for p in np.random.default_rng(seed).uniform(-4, -1, size=count)]


def record(trials, name=FAKE, **changes):
    changes = {"method": "random", "max_epochs": 4, **changes}
    return make_record(task={"name": name, "options": {}}, trials=trials, **changes)


def test_only_trials_of_full_length_count_and_those_that_diverged():
    full = [trial({"lr": lr}, abs(math.log10(lr) + 2)) for lr in rates(30)]
    short = [trial({"lr": lr}, 100.0, epochs=2) for lr in rates(50, seed=1)]
    over = [trial({"lr": lr}, 100.0, epochs=9) for lr in rates(9, seed=2)]
    diverged = [trial({"lr": 0.09}, None, epochs=1)]
    found = task_importance("t", [record(full + short + over), record(diverged, method="asha")])
    assert (found.epochs, found.methods) == (4, ("random", "asha"))
    assert (found.found.trials, found.found.failed) == (31, 1)
    assert found.found.main["lr"].mean == pytest.approx(1.0)
    (sentence,) = found.sentences()
    assert "31 trials of random, asha that trained 4 epochs, 1 of which diverged" in sentence


def test_a_cell_that_recommends_a_schedule_has_no_one_configuration():
    trials = [trial({"lr": lr}, lr) for lr in rates(30)]
    pbt = record(trials, method="pbt", recommendation={"schedule": [[0, {"lr": 0.1}]]})
    assert "0 of its trials" in task_importance("t", [pbt]).problem
    assert task_importance("t", [pbt, record(trials)]).methods == ("random",)


def test_errors_that_are_no_fractions_are_taken_as_logarithms_where_there_are_any():
    """log of lr to the third is of one parameter in both cases; one huge value hides it."""
    points = [{"lr": lr, **dict.fromkeys("abcde", 0.5), "b": lr} for lr in rates(40)]
    trials = [trial(c, c["lr"] ** 3) for c in points]
    changes = {"percent": False, "error_name": "MSE"}
    logs = task_importance("t", [record(trials, WIDE, **changes)])
    plain = task_importance("t", [record(trials, WIDE)])
    assert logs.sentences()[0].startswith("The logarithm of the MSE, from 40 trials")
    assert plain.sentences()[0].startswith("The validation error, from 40 trials")
    assert logs.found.r2 > 0.9 > plain.found.r2
    zero = task_importance("t", [record([*trials, trial(points[0], 0.0)], WIDE, **changes)])
    assert zero.objective == "MSE"


def test_version_1_knows_no_full_length():
    trials = [trial({"lr": lr}, lr, epochs=7) for lr in rates(30)]
    assert task_importance("t", [record(trials, max_epochs=0)]).epochs == 7


def test_noise_is_called_noise():
    noise = np.random.default_rng(0).normal(size=40)
    trials = [trial({"lr": lr}, float(e)) for lr, e in zip(rates(40), noise, strict=True)]
    (sentence,) = task_importance("t", [record(trials)]).sentences()
    assert "too little for the effects to say much" in sentence


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        ([], "0 of its trials"),
        ([trial({"lr": 0.01}, 0.5)] * 19, "19 of its trials trained 4 epochs, 20 are needed"),
        ([trial({"lr": -1.0}, 0.5)] * 20, "configuration 0 has lr = -1.0"),
    ],
)
def test_why_there_is_no_answer(trials, why):
    found = task_importance("t", [record(trials)])
    assert found.found is None
    assert why in found.problem
    assert why in importance_markdown("s", [found])


def test_the_page_and_the_pictures_of_two_tasks(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    rng = np.random.default_rng(0)
    wide = [{"lr": lr, **dict(zip("abcde", rng.random(5), strict=True))} for lr in rates(60)]
    store.append(record([trial(c, c["b"] * math.log10(c["lr"])) for c in wide], WIDE, label="w/1"))
    store.append(record([trial({"lr": lr}, lr) for lr in rates(30)], label="narrow"))
    store.append(record([], label="empty"))
    written = write_importance(store)
    names = ["importance.md"]
    names += [f"importance-{n}.{s}" for n in ("w-1", "narrow") for s in ("png", "svg")]
    assert [p.name for p in written] == names
    page = written[0].read_text(encoding="utf-8")
    assert page.startswith("# What mattered: a study\n")
    assert "![Importance of the parameters](importance-w-1.svg)" in page
    assert "No importance of empty: 0 of its trials" in page
    assert "5 pairs with less not shown." in page  # of 15
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[2].startswith(("| b |", "| lr |"))
    assert len(rows) == 2 + 6 + 10 + 2 + 1
    assert written[1].read_bytes().startswith(b"\x89PNG")
    svg = written[2].read_text(encoding="utf-8")
    assert "Importance of the parameters: w/1" in svg
    assert "beyond both" in svg
    assert "beyond both" not in written[4].read_text(encoding="utf-8")


def test_a_task_of_a_module_that_nobody_named_is_not_made(tmp_path):
    with pytest.raises(InvalidValueError, match="give --task-module "):
        importance_report.task_importance("t", [record([trial({"lr": 0.1}, 0.5)])])


def test_without_records_there_is_no_page(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    with pytest.raises(StateError, match="no finished cell"):
        write_importance(store)


class SizedTask(WideTask):
    """As `WideTask`, at sizes 1 and 2."""

    image_sizes = (1, 2)

    def __init__(self):
        super().__init__()
        self.default_config = {"lr": 1e-3, "image_size": 2}


SIZED = "tests.benchmark.test_importance_report:SizedTask"


@pytest.fixture(scope="module")
def sized():
    """`a` matters at size 1 and `b` at 2, which some trials do not say; some ended early."""
    rng = np.random.default_rng(0)
    configs = [
        {"lr": 0.1, **dict(zip("abcde", map(float, rng.random(5)), strict=True))} for _ in range(60)
    ]
    small = [{**trial({**c, "image_size": 1}, c["a"], epochs=2), "ended": True} for c in configs]
    return record(small + [trial(c, 2 + c["b"]) for c in configs], SIZED, label="s")


def test_importances_by_image_size(sized, tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    store.append(sized)
    written = write_importance(store, by="image_size", resamples=8)
    names = [f"importance-by-image_size.{s}" for s in ("md", "png", "svg")]
    assert [p.name for p in written] == names
    page = written[0].read_text(encoding="utf-8")
    assert "* image_size = 1: 60 trials of random that trained 4 epochs or ended before" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert rows[0] == ["| share, %", "image_size 1", "image_size 2 |"]
    shares = {row[0][2:]: [float(cell.split()[0]) for cell in row[1:]] for row in rows[2:]}
    assert shares["a"][0] > 90 > 5 > shares["a"][1]
    assert shares["b"][1] > 90 > 5 > shares["b"][0]
    assert "that differ, in points: a (-9" in page
    assert "Importance by image_size: s" in written[2].read_text(encoding="utf-8")


def test_of_a_task_with_image_sizes_the_full_one_counts(sized):
    found = task_importance("s", [sized])
    assert found.found.trials == 60
    assert next(iter(found.found.main)) == "b"


def test_a_key_that_no_trial_says_is_named(sized):
    assert "no 'pixels'" in task_importance("s", [sized], by="pixels").problem
