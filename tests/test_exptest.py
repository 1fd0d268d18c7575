"""The public module of ExpTest: its parts together, and what it does without."""

from __future__ import annotations

import numpy as np
import pytest

from tests.processes import printed_by
from tune_ext import exptest
from tune_ext.exptest import Ladder, RungTest, Tuner, learning_rate_bound

SCRIPT = """
import sys
for name in ("ray", "torch"):
    sys.modules[name] = None
import random, numpy
before = random.getstate(), numpy.random.get_state()[1].tolist()
from tune_ext.exptest import *
rng = numpy.random.default_rng(0)
ladder = Ladder(learning_rate_bound([rng.normal(size=(50, 3))]), steps=30)
while not ladder.finished:
    for rung in ladder.ask(4):
        test, w = RungTest(ladder.steps), 1.0
        while not test.done:
            test.update(w * w + 0.1 * (test.n % 3))
            w -= rung.lr * w
        ladder.tell(rung.index, test.result())
tuner = Tuner(ladder.lr, 20)
for t in range(200):
    tuner.update(0.9 ** t + 0.01 * (t % 3))
assert before == (random.getstate(), numpy.random.get_state()[1].tolist())
print(ladder.explain(), tuner.explain())
"""


def test_every_name_is_there():
    for name in exptest.__all__:
        assert getattr(exptest, name) is not None


def test_same_in_every_process_without_ray_or_torch():
    printed = printed_by(SCRIPT)
    assert len(printed) == 1
    assert "choice" in printed.pop()


@pytest.mark.parametrize("features", [5, 40])
def test_bound_ladder_and_tuner_train_a_linear_model(features):
    """Least squares by SGD, nothing given but the data, down to the noise floor; fixed seeds."""
    rng = np.random.default_rng(features)
    x = rng.normal(size=(2000, features)) * np.geomspace(1, 0.2, features)
    w_true = rng.normal(size=features)
    y = x @ w_true + 0.2 * rng.normal(size=2000)
    bound = learning_rate_bound([x[i : i + 100] for i in range(0, 2000, 100)])
    # the bound includes a bias coordinate: 1 on top of the mean square of the inputs
    assert bound == pytest.approx(2 / ((x**2).sum(axis=1).mean() + 1))

    def losses(lr, seed):
        """Yields mini-batch losses; `lr` may be a function."""
        order, w = np.random.default_rng(seed), np.zeros(features)
        while True:
            batch = order.integers(0, 2000, 20)
            error = x[batch] @ w - y[batch]
            yield float(error @ error) / 20
            w -= (lr() if callable(lr) else lr) * 2 * x[batch].T @ error / 20

    ladder = Ladder(bound)
    with np.errstate(all="ignore"):
        while not ladder.finished:
            for rung in ladder.ask(2):
                test = RungTest(ladder.steps, ladder.alpha)
                stream = losses(rung.lr, 0)
                while not test.update(next(stream)):
                    pass
                ladder.tell(rung.index, test.result())
    results = ladder.results
    assert len(results) <= 9
    best = results[ladder.best.index]
    assert best.end_loss == min(r.end_loss for r in results.values() if r.passes)

    tuner = Tuner(ladder.lr, window=100)
    stream = losses(lambda: tuner.lr, 1)
    seen = []
    for _ in range(4000):
        seen.append(next(stream))
        tuner.update(seen[-1])
    assert np.mean(seen[-500:]) < 0.2**2 * 1.2
    assert tuner.floor(tuner.step) <= tuner.lr < ladder.lr
