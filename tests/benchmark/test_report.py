import pytest

from tests.benchmark.examples import make_record, make_study
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.report import build_report, table_rows, write_report
from tune_ext.benchmark.stats import summarize
from tune_ext.errors import StateError


def test_rows_are_sorted_by_test_error_and_those_without_come_last():
    rows = table_rows(
        summarize(
            [
                make_record("broken", test_errors=(), failures=["no"], recommendation={}),
                make_record("worse", seed=0, test_errors=(0.4,)),
                make_record("worse", seed=1, test_errors=(0.6,)),
                make_record(
                    "better", test_errors=(0.1,), recommendation={"config": {"lr": 0.0123}}
                ),
            ]
        )
    )
    assert rows == [
        ("better", "10.00 (one seed)", "10", "2.0", "lr 0.012", "0 of 1"),
        ("worse", "50.00 ± 10.00", "10", "2.0", "lr 0.01", "0 of 2"),
        ("broken", "none", "10", "2.0", "none", "1 of 1"),
    ]


def test_the_page_has_table_verdict_failures_and_conditions(tmp_path):
    store = RecordStore(tmp_path)
    study = make_study(methods=("default", "random", "autohyper"), title="The title")
    store.open(study, {"bohb": "no hpbandster"})
    for seed in (0, 1):
        store.append(make_record("random", seed, (0.3 + 0.01 * seed,)))
        no_search = {"anytime": [], "epochs_used": 0}
        store.append(make_record("default", seed, (0.5,), **no_search))
        store.append(make_record("autohyper", seed, (0.4,), epochs_used=7, failures=["why"]))
    parts, files = write_report(store)
    assert [f.name for f in files] == ["report.md", "comparison.png", "comparison.svg"]
    page = files[0].read_text()
    assert page.startswith("# The title\n")
    assert "| random | 30.50 ± 0.50 |" in page
    assert "Lowest mean test error: random" in page
    assert "autohyper chooses by the response alone" in page
    assert "exptest chooses" not in page
    assert "* autohyper, seed 1: why" in page
    assert "10 training epochs for each search" in page
    assert "(comparison.svg)" in page
    assert "Not run here: bohb: no hpbandster." in page
    assert files[1].read_bytes().startswith(b"\x89PNG")
    svg = files[2].read_text()
    assert svg.lstrip().startswith("<?xml")
    for method in study.methods:
        assert method in svg
    assert parts[0].sentences[1].startswith("autohyper is number 2 of 3")


def test_pictures_are_the_same_when_drawn_again(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    store.append(make_record())
    first = write_report(store)[1][2].read_bytes()
    assert write_report(store)[1][2].read_bytes() == first


def test_two_tasks_have_a_part_and_a_picture_each():
    parts = build_report([make_record(), make_record(task={"name": "m:other", "options": {}})])
    assert [p.task for p in parts] == ["fake", "m:other"]


def test_nothing_finished_is_said(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    with pytest.raises(StateError, match="no finished cell"):
        write_report(store)
