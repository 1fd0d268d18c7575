"""Trainings that are counted in seconds, under Ray; here every batch takes one."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import pytest
from ray import tune

from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.timed import TimedTrainable, load_run
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune import HyperBand

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGETS = (6, 18)
TASK = TaskSpec(
    "digits-joint", {"unit": "seconds", "budgets": list(BUDGETS), "epochs": 9, "first_cycle": 2}
)
TINY = {
    **{f"nr_residual_blocks_{group}": 1 for group in (1, 2, 3)},
    **{f"widen_factor_{group}": 1.0 for group in (1, 2, 3)},
    "initial_filters": 4,
    "batch_size": 128,
}


class Counted(TimedTrainable):
    """Batches that take a second each, as far as it knows."""

    def _begin(self, config):
        super()._begin(config)
        now = itertools.count()
        self._run._clock = lambda: float(next(now))


def make(config, task=TASK, **given):
    """As Ray makes it with `tune.with_parameters`, without Ray."""

    class Direct(Counted):
        def setup(self, config):
            super().setup(config, task, 0, **given)

    return Direct(config)


def results(trainable):
    while True:
        yield (result := trainable.train())
        if result["done"]:
            return


def test_it_reports_where_cycles_end(tmp_path):
    trainable = make(TINY)
    found = list(results(trainable))
    # The first budget has cycles of 2 and 4 seconds, the second of 4 and 8.
    assert [r["train_seconds"] for r in found] == [2, 6, 10, 18]
    assert all(r["restart"] for r in found)
    assert all(r["should_checkpoint"] for r in found)
    assert [r["epoch"] for r in found] == [0, 0, 1, 2]  # of eight batches
    assert found[0]["parameters"] > 1000
    trainable.save(str(tmp_path))
    again = make(TINY)
    again.restore(str(tmp_path))
    assert again._run.train_seconds == 18
    assert again._run.test() == trainable._run.test()
    with pytest.raises(StateError, match="no run"):
        load_run(tmp_path / "nowhere")


def test_it_reports_more_often_where_asked_and_saves_where_cycles_end():
    found = list(results(make(TINY, report_seconds=5)))
    assert [r["train_seconds"] for r in found] == [2, 6, 10, 15, 18]
    assert [r["should_checkpoint"] for r in found] == [True, True, True, False, True]


def test_a_step_after_the_last_one_says_the_same_again():
    """As of a trial that is restored from its last checkpoint: Ray wants its metric."""
    trainable = make(TINY)
    *_, last = results(trainable)
    again = trainable.train()
    assert again["done"]
    assert not again["should_checkpoint"]
    assert again["validation_error"] == last["validation_error"]
    assert again["train_seconds"] == 18


def test_a_network_is_gone_before_the_next_one_is_built(monkeypatch):
    trainable = make(TINY)
    trainable.train()  # to the middle of an epoch
    network, there = weakref.ref(trainable._run._network), []
    begin = trainable._begin
    monkeypatch.setattr(
        trainable, "_begin", lambda config: (there.append(network()), begin(config))
    )
    gc.collect()
    gc.disable()  # which may be long in coming, and knows nothing of a GPU's memory
    try:
        assert trainable.reset_config(TINY)
    finally:
        gc.enable()
    assert there == [None]


def test_a_run_that_diverges_ends():
    trainable = make({**TINY, "learning_rate": 1e30})
    *_, last = results(trainable)
    assert last["diverged"]
    assert math.isnan(last["validation_error"])
    assert trainable.reset_config(TINY)
    assert math.isfinite(trainable.train()["validation_error"])


def test_what_cannot_be_trained_so_is_named():
    with pytest.raises(InvalidTypeError, match=r"joint search.*digits-cnn"):
        make(TINY, TaskSpec("digits-cnn"))
    with pytest.raises(InvalidValueError, match="report_seconds"):
        make(TINY, report_seconds=0)


def test_promoted_trials_continue_from_the_rung_they_were_judged_at(cluster, tmp_path):
    rates = [0.1, 0.01, 0.002]
    analysis = tune.run(
        tune.with_parameters(Counted, task=TASK, seed=0),
        config={**TINY, "learning_rate": tune.grid_search(rates)},
        metric="validation_error",
        mode="min",
        scheduler=HyperBand("train_seconds", max_t=18, min_t=6, brackets=1),
        reuse_actors=True,
        storage_path=str(tmp_path),
        verbose=0,
    )
    whole = list(results(make(analysis.best_config)))
    seconds = sorted(r["train_seconds"] for r in analysis.results.values())
    assert seconds == [6, 6, 18]
    best = analysis.best_trial.last_result
    assert best["train_seconds"] == 18
    # Batches are the same for a clock that counts, so the trainings are, too.
    assert best["train_loss"] == pytest.approx(whole[-1]["train_loss"], rel=1e-5)
    assert best["validation_error"] == whole[-1]["validation_error"]
