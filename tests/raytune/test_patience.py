"""Tests of the early stop of trials that gain nothing more."""

from __future__ import annotations

import json
import math
import pickle

import pytest
from ray import tune
from ray.tune.callback import CallbackList

from tune_ext._patience import NoGain
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune import NoGainStopper

CURVES = {
    "falls": [1 / i for i in range(1, 13)],
    "stands": [0.5, 0.4, *[0.4] * 10],
    "rises": [0.2, *[0.3] * 11],
    "nan": [math.nan] * 12,
    "late": [0.5, math.nan, 0.4, 0.6, 0.6, 0.3, *[0.9] * 6],
}
ENDS = {"falls": 12, "stands": 5, "rises": 4, "nan": 3, "late": 9}


def end(decide, curve):
    """At which iteration a curve ends."""
    for iteration, value in enumerate(curve, 1):
        if decide(iteration, value):
            return iteration
    return len(curve)


@pytest.mark.parametrize("name", CURVES)
def test_a_trial_ends_after_so_many_iterations_without_gain(name):
    for mode, sign in (("min", 1), ("max", -1)):
        stopper = NoGainStopper("error", mode, patience=3)
        curve = [sign * value for value in CURVES[name]]
        assert ENDS[name] == end(
            lambda i, v, stopper=stopper: stopper("t", {"error": v, "training_iteration": i}),
            curve,
        )
        assert not stopper.stop_all()


def test_trials_are_watched_each_by_itself():
    stopper = NoGainStopper("error", patience=3)
    for iteration in range(1, 13):
        for name, curve in CURVES.items():
            ended = stopper(name, {"error": curve[iteration - 1], "training_iteration": iteration})
            assert ended == (iteration >= ENDS[name] < 12), (name, iteration)


def test_a_small_gain_is_none_and_nothing_ends_in_the_grace_period():
    curve = [0.5, 0.499, 0.498, 0.497, 0.3, 0.3, 0.3, 0.3]
    assert end(NoGain(3).add, curve) == 8
    assert end(NoGain(3, min_gain=0.01).add, curve) == 4
    assert end(NoGain(3, grace_period=6, min_gain=0.01).add, curve) == 8
    assert end(NoGain(1, grace_period=6).add, [0.1] * 8) == 6


def test_what_came_after_a_checkpoint_is_forgotten():
    rule = NoGain(3)
    for epoch, value in enumerate([0.5, 0.6, 0.1, 0.2], 1):
        assert not rule.add(epoch, value)
    assert [rule.add(e, v) for e, v in ((3, 0.7), (4, 0.8))] == [False, True]  # from 2 on again
    assert (rule.best_epoch, rule.best) == (1, 0.5)
    assert rule.add(4, 0.8)  # told twice, as Ray does at the end of a function


def test_results_without_the_metric_end_nothing():
    stopper = NoGainStopper("valid/error", patience=2)
    told = [{"valid": {"error": 0.5}}, {}, {"valid": {}}, {"valid": 3}, {"valid/error": None}]
    ended = [stopper("t", {**r, "training_iteration": i}) for i, r in enumerate(told, 1)]
    assert ended == [False, False, False, False, True]
    assert not stopper("t", {"valid/error": 0.9})


def test_the_state_survives_ray_s_own_files(tmp_path):
    def begun():
        stopper = NoGainStopper("error", patience=3)
        for name in CURVES:
            for iteration in (1, 2):
                value = CURVES[name][iteration - 1]
                stopper(name, {"error": value, "training_iteration": iteration})
        return stopper

    first = begun()
    json.dumps(first.get_state())
    CallbackList([first]).save_to_dir(str(tmp_path))
    restored = NoGainStopper("error", patience=3)
    CallbackList([restored]).restore_from_dir(str(tmp_path))
    for stopper in (restored, pickle.loads(pickle.dumps(begun()))):
        for name, curve in CURVES.items():
            ends = [
                stopper(name, {"error": curve[i - 1], "training_iteration": i})
                for i in range(3, ENDS[name] + 1)
            ]
            assert ends.index(True) + 3 == ENDS[name] if name != "falls" else not any(ends)
    with pytest.raises(StateError, match="version 1"):
        restored.set_state({"kind": "NoGainStopper", "version": 2, "trials": {}})
    with pytest.raises(StateError, match="damaged"):
        restored.set_state({**first.get_state(), "trials": {"a": {"first": 1}}})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": ""}, InvalidTypeError, "metric"),
        ({"mode": "best"}, InvalidValueError, "mode.*'best'"),
        ({"patience": 0}, InvalidValueError, "patience.*0"),
        ({"patience": 2.5}, InvalidTypeError, r"patience.*2\.5"),
        ({"min_gain": -1}, InvalidValueError, "min_gain.*-1"),
        ({"grace_period": -1}, InvalidValueError, "grace_period.*-1"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        NoGainStopper(**{"metric": "error", **options})


class Curve(tune.Trainable):
    def setup(self, config):
        self.curve = CURVES[config["name"]]

    def step(self):
        return {"error": self.curve[self.iteration], "done": self.iteration == 11}

    def reset_config(self, new_config):
        self.setup(new_config)
        return True


def test_in_ray(cluster, tmp_path):
    stopper = NoGainStopper("error", patience=3)
    done = tune.run(
        Curve,
        config={"name": tune.grid_search(list(CURVES))},
        stop=stopper,
        callbacks=[stopper],
        reuse_actors=True,
        storage_path=str(tmp_path),
        verbose=0,
    )
    found = {t.config["name"]: t.last_result["training_iteration"] for t in done.trials}
    assert found == ENDS
    assert stopper.get_state()["trials"] == {}
