import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmark.fake import FakeTask
from tune_ext.benchmark.methods import METHODS, Setup, check_methods, missing, screening_plan
from tune_ext.errors import InvalidValueError


def first(setup, n):
    return list(itertools.islice(setup.configurations(), n))


def test_configurations_are_the_same_for_a_seed_and_differ_between_seeds():
    assert first(Setup(FakeTask(), 10, 3), 20) == first(Setup(FakeTask(), 99, 3), 20)
    assert first(Setup(FakeTask(), 10, 3), 5) != first(Setup(FakeTask(), 10, 4), 5)


def test_configurations_touch_neither_the_global_state_nor_the_task():
    task = FakeTask()
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first(Setup(task, 10, 0), 5)
    ours = task.space.sample_configuration()["lr"]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    untouched = FakeTask()
    untouched.space.seed(0)
    task.space.seed(0)
    assert untouched.space.sample_configuration() == task.space.sample_configuration()
    assert isinstance(ours, float)


def test_configurations_are_log_uniform_and_plain():
    drawn = [c["lr"] for c in first(Setup(FakeTask(), 10, 0), 500)]
    assert all(type(lr) is float for lr in drawn)
    # 500 draws: a third below 1e-4; false-failure rate below 1e-5
    assert 0.23 < np.mean(np.array(drawn) < 1e-4) < 0.44


def test_a_trial_is_never_longer_than_the_budget():
    assert Setup(FakeTask(epochs=12), 5, 0).max_epochs == 5
    assert Setup(FakeTask(epochs=12), 50, 0).max_epochs == 12


@given(st.integers(2, 500), st.integers(2, 60))
def test_screening_spends_the_budget_exactly_when_it_can(budget, max_epochs):
    screened, kept = screening_plan(budget, max_epochs)
    assert kept >= 1
    assert screened >= kept
    if budget >= 2 * max_epochs:
        assert screened + kept * (max_epochs - 1) == budget
        assert screened >= budget // 2
        assert screened < budget // 2 + max_epochs + 1


def test_screening_with_nothing_to_train_on():
    assert screening_plan(7, 1) == (7, 0)
    assert screening_plan(1, 9) == (1, 0)


def test_every_method_is_described_and_default_alone_does_not_search():
    assert [n for n, m in METHODS.items() if m.build is None] == ["default"]
    assert all(m.description for m in METHODS.values())
    assert {"default", "one-epoch", "random", "asha", "hyperband", "bohb", "autohyper"} <= set(
        METHODS
    )


def test_a_missing_module_is_told_with_the_fix(monkeypatch):
    from dataclasses import replace

    lacking = replace(METHODS["random"], needs={"no_such_module": "pip install it"})
    monkeypatch.setitem(METHODS, "random", lacking)
    assert missing("random") == "no_such_module is not installed: pip install it"
    assert missing("default") is None


def test_unknown_methods_are_told_with_the_choices():
    check_methods(("default", "asha"))
    with pytest.raises(InvalidValueError, match=r"'nothing'.*choose from default"):
        check_methods(("default", "nothing"))
