import math
from dataclasses import replace

import numpy as np
import pytest

from tests.benchmark.examples import make_record
from tests.benchmark.several import METHODS, several_records, several_study
from tune_ext.benchmark.analysis import analyse, median_curve, used
from tune_ext.benchmark.cell_run import NO_RESULT

STUDY = {"title": "t", "settings": {"final_seeds": 1, "budget_unit": "epochs"}}


def study(**changes):
    made = several_study(**changes)
    return {"title": "t", "settings": made.settings(), "seeds": made.seeds}


@pytest.fixture(scope="module")
def several():
    return analyse(list(several_records()), study())


def test_the_median_curve_and_its_order_statistics():
    seeds = [[(1.0, s), (3.0, s / 2)] for s in (1.0, 2.0, 3.0)]
    curve = median_curve([*seeds[:2], seeds[2][1:]], np.array([1.0, 2.0, 3.0]))
    assert curve.value == (2.0, 2.0, 1.0)
    assert curve.low == (1.0, 1.0, 0.5)  # the range of all, with fewer than six
    assert curve.high == (None, None, 1.5)  # a seed without a value yet is infinite
    many = median_curve([[(1.0, float(s))] for s in range(1, 11)], np.array([1.0]))
    assert (many.low, many.high) == ((2.0,), (9.0,))  # Conover's table: 10 values, ranks 2 and 9


def test_a_failed_cell_counts_as_the_worst_and_is_counted():
    records = [make_record("random", 0, (0.1,)), make_record("random", 1, (), failures=["no"])]
    [result] = analyse(records, STUDY).tasks[0].methods
    assert result.scores == {0: 0.1, 1: 1.0}
    assert (result.mean, result.failed) == (0.55, 1)
    assert math.isnan(analyse(records[1:], STUDY).tasks[0].methods[0].mean)


def test_what_a_search_used_is_in_the_studys_unit():
    assert used(make_record(epochs_used=12)) == 12
    assert used(make_record(epochs_used=12, unit="trainings", max_epochs=4)) == 3
    assert used(make_record(unit="seconds", busy_seconds=7.5)) == 7.5


def test_idle_share_time_to_target_and_choices(several):
    results = {m.method: m for m in several.tasks[0].methods}
    assert results["asha"].idle == 0.25
    assert results["autohyper"].to_target <= 30
    assert results["default"].to_target is None
    assert results["asha"].chosen["kind"] == "</script>"


def test_a_busy_machine_leaves_no_worker_idle_and_a_gpu_costs_what_the_clock_says():
    shared = make_record(
        makespan=10.0, busy_seconds=4.0, cpu_seconds=4.0, trials=[{"train_seconds": 9.0}]
    )
    on_gpu = make_record(makespan=10.0, busy_seconds=9.0, cpu_seconds=2.0)
    for record, trained in ((shared, 4.0), (on_gpu, 9.0)):
        trials = [{"trial": 0, "config": {}, "epochs": 1, **t} for t in record.trials]
        group = [replace(record, trials=trials)]
        [result] = analyse(group, STUDY).tasks[0].methods
        assert result.idle == pytest.approx(0.1)
        assert result.trained == trained


def test_tasks_together(several):
    across = several.across
    assert across.methods[:2] == ("exptest", "autohyper")
    assert across.places["task 2"]["exptest"] == len(METHODS)  # its failures are its rank there
    assert across.improvement["exptest"]["default"].value == pytest.approx(6 / 7, abs=0.01)
    back = across.improvement["default"]["exptest"].value
    assert back == pytest.approx(1 / 7, abs=0.01)
    assert across.curves["exptest"].value[-1] < across.curves["random"].value[-1]
    told = " ".join(several.sentences)
    assert "Over 7 tasks and 6 seeds, exptest has the lowest" in told
    assert "Cells with failures: exptest 6" in told
    assert "autohyper is number 2 of 6" in told


def test_few_tasks_are_too_few_for_a_test_and_it_is_said():
    found = analyse(list(several_records(tasks=2, seeds=2)), study(tasks=2, seeds=2))
    assert any("2 tasks are too few for a test across tasks" in s for s in found.sentences)


def test_a_method_without_records_for_a_task_is_left_out_with_the_reason():
    records = [r for r in several_records() if r.key[:2] != ("task 1", "bohb")]
    found = analyse(records, study())
    assert found.across.left_out == {"bohb": "no records for task 1"}
    assert "Not compared across tasks: bohb (no records for task 1)." in found.sentences


def test_what_has_no_record_at_all_is_still_to_go():
    given = {**study(), "unavailable": {"bohb on task 6": "why"}}
    records = [r for r in several_records() if r.key[0] != "task 6" and r.seed < 5]
    said = analyse(records, given).sentences
    lacking = 6 * 6 * 1 + 5 * 6  # one seed of six tasks, and all of the last but bohb's
    assert said[-1].startswith(f"The study is not finished: {lacking} cells to go. ")
    assert "different seeds so far" in said[-1]
    assert not any("not finished" in s for s in analyse(list(several_records()), study()).sentences)


def test_an_unfinished_study_is_compared_on_the_seeds_that_all_have():
    # The last seed of asha is not there yet, and is the one that was bad for everybody.
    records = [
        make_record(m, s, (e + 5.0 * (s == 3),), label=task, regret_range=(0.0, 1.0))
        for task in ("a", "b")
        for m, e in (("random", 0.1), ("asha", 0.2))
        for s in range(4)
        if (m, s) != ("asha", 3)
    ]
    across = analyse(records, study()).across
    assert across.means["a"] == pytest.approx({"random": 0.1, "asha": 0.2})
    assert across.methods == ("random", "asha")


def diverged_once(method, seeds=8):
    """Everywhere the best, but for one evaluation that diverged beyond all measure."""
    for task in ("a", "b"):
        for seed in range(seeds):
            lost = method == "tpe" and seed == 5
            error = 4e7 if lost else {"tpe": 0.1, "random": 0.2}[method] + 0.001 * seed
            yield make_record(
                method, seed, (error,), label=task, worst_error=4e7, regret_range=(0.0, 1.0)
            )


def test_one_diverged_evaluation_does_not_decide_a_task():
    found = analyse([*diverged_once("random"), *diverged_once("tpe")], study())
    for task in found.tasks:
        assert [m.method for m in task.methods] == ["tpe", "random"]
        assert task.methods[0].mean > 1e6, "the mean is shown, and decides nothing"
    assert found.across.places["a"] == {"tpe": 1, "random": 2}
    assert found.across.means["a"]["tpe"] < 0.2
    assert not any("e+0" in s for t in found.tasks for s in t.sentences)


def test_a_search_without_a_result_is_told_to_be_judged_by_the_default():
    lost = make_record("autohyper", 0, (0.4,), failures=[NO_RESULT])
    [task] = analyse([lost, make_record("random", 0, (0.1,))], STUDY).tasks
    told = "Searches without any finite result, judged by the default's error: autohyper in 1."
    assert told in task.sentences
    [conditions] = [c for c in analyse([lost], STUDY).conditions if "without any finite" in c]
    assert "counted as a failure" in conditions


def test_losses_are_told():
    records = [
        make_record(m, s, (e + 0.001 * s,))
        for s in range(5)
        for m, e in (("random", 0.1), ("autohyper", 0.3))
    ]
    said = analyse(records, STUDY).sentences
    assert "Worse than random beyond the noise: autohyper." in said
    assert any(s.startswith("autohyper is number 2 of 2, 30.20 %") for s in said)


def test_one_seed_says_nothing_about_noise():
    said = analyse([make_record("random"), make_record("asha")], STUDY).sentences
    assert any("With one seed nothing can be said" in s for s in said)


def test_the_analysis_is_plain_data(several):
    import json

    assert json.loads(json.dumps(several.to_json(), allow_nan=False))["title"] == "t"
