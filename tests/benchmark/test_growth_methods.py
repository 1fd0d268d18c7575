"""Methods that grow the image size, on a fake task whose error is known at every size."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from ConfigSpace import ConfigurationSpace, Float

from tests.benchmark.examples import make_study
from tests.benchmark.fake import FakeTask
from tune_ext.benchmark._growth import GROWN, stage_evaluations
from tune_ext.benchmark.cell_run import CellRun
from tune_ext.benchmark.methods import METHODS, Setup, missing, unsuited
from tune_ext.benchmark.simulation import simulate
from tune_ext.benchmark.study import Cell, TaskSpec
from tune_ext.benchmark.tally import Tally
from tune_ext.benchmark.tune_parts import BudgetStopper

TOTAL = 48


class Pixels(FakeTask):
    """The error is the distance from (1/3, 1/3), and the smaller the image the lower: lower
    errors on small images are worth nothing on large ones."""

    name = "pixels"
    image_sizes = (8, 12, 16)

    def __init__(self):
        super().__init__(epochs=2)
        self.space = ConfigurationSpace({n: Float(n, (0.0, 1.0)) for n in "ab"})
        self.default_config = {"a": 0.5, "b": 0.5, "image_size": 16}


class Looked:
    def __init__(self, config):
        self.config, self.epoch = config, 0

    def step(self):
        self.epoch += 1
        error = math.hypot(self.config["a"] - 1 / 3, self.config["b"] - 1 / 3)
        error += self.config.get("image_size", 16) / 32
        done = {"epoch": self.epoch, "done": self.epoch == 2, "seconds": 1.0}
        return {"validation_error": error, **done}

    def state(self):
        return self.epoch

    def load(self, state):
        self.epoch = state


def searched(name, path, most=TOTAL):
    """The tally of a search, and what was built; `most` trials are run."""
    task = Pixels()
    setup = Setup(task, TOTAL * task.max_epochs, 3)
    np.random.seed(3)  # noqa: NPY002 (as whoever runs a cell does)
    search = METHODS[name].build(setup)
    tally = Tally(task, "evaluations", search.answer)
    simulate(
        Looked,
        search_alg=search.search_alg,
        scheduler=search.scheduler,
        stopper=BudgetStopper(setup.budget, 2, lambda i, r: tally.add(i, r, 0.0, 1.0)),
        trials=most,
        storage=path,
    )
    tally.look(0.0)  # the searcher has heard of the last trial by now
    return tally, search, setup


@pytest.fixture(scope="module", params=[n for n in GROWN if not missing(n) and n != "smac"])
def grown(request, tmp_path_factory):
    return request.param, *searched(f"{request.param}+growth", tmp_path_factory.mktemp("grown"))


def test_it_has_the_same_evaluations_in_the_published_proportions(grown):
    _, tally, _, setup = grown
    sizes = [config["image_size"] for config in tally.history.configs]
    assert setup.trainings == TOTAL
    assert sizes == [8] * 24 + [12] * 16 + [16] * 8


def test_it_recommends_the_best_of_the_full_size(grown):
    _, tally, search, _ = grown
    trials = tally.history.trials()
    full = [t for t in trials if t["config"]["image_size"] == 16]
    best = min(full, key=lambda t: t["validation_error"])
    assert search.answer() == best["config"]
    # Errors of small images, which are lower here, are never told as what was reached.
    assert best["validation_error"] > min(t["validation_error"] for t in trials)
    assert tally.incumbents[0][0] > 40
    assert tally.incumbents[-1][2] == best["validation_error"]


def test_it_tells_its_stages(grown):
    _, _, search, _ = grown
    rows = search.details()["stages"]
    assert [row["size"] for row in rows] == [8, 12, 16]
    assert [row["evaluations"] for row in rows] == [24, 16, 8]
    # The ranking here is the same at every size.
    assert [row["correlation"] for row in rows] == [None, 1.0, 1.0]
    assert all(row["narrowed"] for row in rows[1:])


def test_it_begins_with_the_shared_configurations(grown):
    name, tally, _, setup = grown
    count = min(24, GROWN[name](setup))
    shared = list(itertools.islice(setup.configurations(), count))
    begun = [{k: c[k] for k in "ab"} for c in tally.history.configs[:count]]
    assert [c.keys() for c in begun] == [c.keys() for c in shared]
    assert begun[0].values() != begun[1].values()
    for ours, theirs in zip(begun, shared, strict=True):
        assert ours == pytest.approx(theirs)


def test_cut_off_it_recommends_the_full_size_all_the_same(tmp_path):
    tally, search, _ = searched("random+growth", tmp_path, most=10)
    best = min(tally.history.trials(), key=lambda t: t["validation_error"])["config"]
    assert search.answer() == {**best, "image_size": 16}
    assert tally.incumbents == []


@pytest.mark.skipif(missing("smac") is not None, reason="needs smac")
def test_smac_begins_on_small_images_with_a_design_of_its_own():
    search = METHODS["smac+growth"].build(Setup(Pixels(), 2 * TOTAL, 3))
    assert search.search_alg.suggest("a")["image_size"] == 8
    assert search.answer() == Pixels().default_config


def test_a_cell_that_is_cut_off_recommends_the_full_size():
    spec = TaskSpec("tests.benchmark.test_growth_methods:Pixels")
    cell = CellRun(Cell(spec, "random+growth", 0), make_study(tasks=(spec,)))
    config = {"a": 0.1, "b": 0.2, "image_size": 8}
    result = {"epoch": 1, "validation_error": 0.5}
    cell.handle("epoch", {"trial_id": "a", "config": config, "result": result, "seconds": 1.0})
    cell.fail("it hung")
    assert cell.recommendation["config"] == {**config, "image_size": 16}


def test_a_cell_that_is_cut_off_at_the_full_size_compares_no_other_size_with_it():
    spec = TaskSpec("tests.benchmark.test_growth_methods:Pixels")
    cell = CellRun(Cell(spec, "random+growth", 0), make_study(tasks=(spec,)))
    for number, (size, error) in enumerate([(8, 0.1), (16, 0.5), (12, 0.2), (16, 0.6)]):
        config = {"a": number / 8, "b": 0.2, "image_size": size}
        result = {"epoch": 1, "validation_error": error}
        told = {"trial_id": str(number), "config": config, "result": result, "seconds": 1.0}
        cell.handle("epoch", told)
    cell.fail("it hung")
    assert cell.recommendation["config"] == {"a": 1 / 8, "b": 0.2, "image_size": 16}


def test_tasks_without_image_sizes_are_unsuited():
    assert "no image size" in unsuited("random+growth", FakeTask())
    assert unsuited("tpe+growth", Pixels(), "evaluations") is None
    assert METHODS["smac+growth"].needs == METHODS["smac"].needs


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_evaluations_add_up_and_the_full_size_has_some(stages):
    for total in range(1, 60):
        counts = stage_evaluations(total, stages)
        assert (sum(counts), len(counts)) == (total, stages)
        assert counts[-1] >= 1
        assert min(counts) >= 0
