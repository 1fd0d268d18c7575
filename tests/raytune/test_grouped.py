"""GroupedScheduler: each trial is compared with its equals alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.train._internal.storage import StorageContext
from ray.tune.result import DEFAULT_METRIC
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from tune_ext import GroupedScheduler, ImageGrowthSearch
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune._play import FakeController, fake_trial


def halving() -> ASHAScheduler:
    return ASHAScheduler("t", "loss", "min", max_t=9, grace_period=1, reduction_factor=2)


@pytest.fixture
def storage(tmp_path: Path) -> StorageContext:
    return StorageContext(str(tmp_path), experiment_dir_name="e")


def played(scheduler: Any, storage: Any, losses: list[tuple[int, Any]]) -> list[str]:
    """One result of each trial, (image size, loss), in turn: the decisions."""
    controller, decisions = FakeController(), []
    for number, (size, loss) in enumerate(losses):
        trial = fake_trial(storage, {"image_size": size}, f"t{number}")
        controller.add(scheduler, trial)
        decisions.append(controller.report(scheduler, trial, {"t": 1, "loss": loss}))
    return decisions


MIXED: list[tuple[int, Any]] = [(32, 0.1), (64, 0.8), (32, 0.12), (64, 0.7)]


def test_large_images_are_not_stopped_for_being_unlike_small_ones(storage: Any) -> None:
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert played(halving(), storage, MIXED) == [go, stop, go, stop], "Ray's alone"
    grouped = GroupedScheduler(halving)
    assert played(grouped, storage, MIXED) == [go, go, stop, go]
    assert list(grouped.groups) == [32, 64]
    assert "64: Using AsyncHyperBand" in grouped.debug_string()


def test_each_group_decides_as_its_scheduler_would_alone(storage: Any) -> None:
    drawn = [(size, (7 * n * n) % 11 / 11) for n in range(1, 15) for size in (8, 16)]
    decisions = played(GroupedScheduler(halving), storage, drawn)
    for place, size in enumerate((8, 16)):
        alone = played(halving(), storage, [pair for pair in drawn if pair[0] == size])
        assert decisions[place::2] == alone
    assert TrialScheduler.STOP in decisions


@pytest.mark.parametrize("invalid", [None, math.nan, math.inf, "much"])
def test_what_is_no_number_stops_nothing(storage: Any, invalid: Any) -> None:
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    losses = [(8, 0.1), (8, invalid), (8, 0.2), (8, 0.05)]
    assert played(GroupedScheduler(halving), storage, losses) == [go, go, stop, go]


def test_ray_ends_no_experiment_for_want_of_the_metric() -> None:
    grouped = GroupedScheduler(ASHAScheduler)
    grouped.set_search_properties("loss", "min")
    for scheduler in (GroupedScheduler(halving), grouped):
        assert scheduler.metric == "loss"
        checked = scheduler.metric != DEFAULT_METRIC  # as Ray asks
        assert not checked


def test_metric_and_mode_of_the_experiment(storage: Any) -> None:
    grouped = GroupedScheduler(
        lambda: MedianStoppingRule("t", grace_period=0, min_samples_required=1)
    )
    assert grouped.set_search_properties("loss", "min")
    assert played(grouped, storage, MIXED)[0] == TrialScheduler.CONTINUE
    assert not GroupedScheduler(halving).set_search_properties("other", "min"), "it has its own"


def test_one_that_waits_for_other_trials_is_refused(storage: Any) -> None:
    class Waits(FIFOScheduler):  # type: ignore[misc]
        def on_trial_result(self, *given: Any) -> str:
            return TrialScheduler.PAUSE

    with pytest.raises(InvalidValueError, match="Waits pauses trials and waits"):
        played(GroupedScheduler(Waits), storage, [(8, 0.1)])


def test_arguments(storage: Any) -> None:
    with pytest.raises(InvalidTypeError, match="a function that makes a scheduler"):
        GroupedScheduler(ASHAScheduler())  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="it made 'asha'"):
        GroupedScheduler(lambda: "asha")
    with pytest.raises(InvalidTypeError, match="key"):
        GroupedScheduler(FIFOScheduler, key="")


def test_unusual_values_are_groups_too(storage: Any) -> None:
    grouped, controller = GroupedScheduler(halving, "data/size"), FakeController()
    sizes: list[dict[str, Any]] = [{"size": [8, 8]}, {"size": (8, [8])}, {"size": 8}, {}]
    for number, size in enumerate(sizes):
        controller.add(grouped, fake_trial(storage, {"data": size}, f"t{number}"))
    assert list(grouped.groups) == ["[8, 8]", "(8, [8])", 8, None]


def _train(config: dict[str, Any]) -> None:
    for epoch in range(1, 10):
        tune.report({"loss": config["image_size"] / 8 + config["x"] / epoch, "t": epoch})


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::tune_ext.image_growth.TransferWarning")
def test_halving_within_every_image_size(tmp_path: Path) -> None:
    search = ImageGrowthSearch("random", [(8, 6), (16, 5)], seed=0)
    grouped = GroupedScheduler(
        lambda: ASHAScheduler("t", max_t=9, grace_period=1, reduction_factor=3)
    )
    results = tune.Tuner(
        _train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            search_alg=search,
            scheduler=grouped,
            num_samples=-1,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    epochs = {
        size: [r.metrics["t"] for r in results if r.config["image_size"] == size]
        for size in (8, 16)
    }
    assert {size: len(ends) for size, ends in epochs.items()} == {8: 6, 16: 5}
    assert all(max(ends) == 9 and min(ends) < 9 for ends in epochs.values())
