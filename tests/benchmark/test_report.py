import pytest

from tests.benchmark.examples import make_record, make_study
from tune_ext.benchmark.analysis import analyse
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.report import markdown, record_lines, table_rows, write_report
from tune_ext.errors import StateError

STUDY = {"title": "t", "settings": {"final_seeds": 1, "budget_unit": "epochs"}}


def test_rows_are_sorted_by_test_error_and_those_without_come_last():
    records = [
        make_record("broken", test_errors=(), failures=["no"], recommendation={}),
        make_record("worse", seed=0, test_errors=(0.4,), busy_seconds=3.0, cpu_seconds=2.0),
        make_record("worse", seed=1, test_errors=(0.6,)),
        make_record(
            "better",
            test_errors=(0.1,),
            recommendation={"config": {"lr": 0.0123}},
            busy_seconds=9.0,
        ),
    ]
    assert table_rows(analyse(records, STUDY).tasks[0]) == [
        ("better", "10.00 %", "10.00 (one seed) %", "10", "2.0", "9.0", "lr 0.012", "0 of 1"),
        (
            "worse",
            "50.00 % [40.00, 60.00]",
            "50.00 ± 10.00 %",
            "10",
            "2.0",
            "3.0",
            "lr 0.01",
            "0 of 2",
        ),
        ("broken", "none", "none", "10", "2.0", "", "none", "1 of 1"),
    ]


@pytest.fixture
def store(tmp_path):
    store = RecordStore(tmp_path)
    methods = ("default", "random", "autohyper", "bohb")
    study = make_study(methods=methods, title="The title")
    store.open(study, {"bohb": "no hpbandster"})
    for seed in (0, 1):
        store.append(make_record("random", seed, (0.3 + 0.01 * seed,)))
        no_search = {"anytime": [], "epochs_used": 0}
        store.append(make_record("default", seed, (0.5,), **no_search))
        store.append(make_record("autohyper", seed, (0.4,), epochs_used=7, failures=["why"]))
    return store


def test_the_page_has_table_verdict_failures_and_conditions(store):
    parts, files = write_report(store)
    names = ["report.html", "report.md", "comparison.png", "comparison.svg"]
    assert [f.name for f in files] == names
    page = files[1].read_text()
    assert page.startswith("# The title\n")
    assert "| random | 30.50 % [30.00, 31.00] | 30.50 ± 0.50 % |" in page
    assert "Lowest interquartile mean of the test error: random, 30.50 %" in page
    assert "autohyper chooses by the response alone" in page
    assert "exptest chooses" not in page
    assert "* autohyper, seeds 0, 1: why" in page
    assert "10 epochs for each search" in page
    assert "(comparison.svg)" in page
    assert "* bohb: no hpbandster" in page
    assert files[2].read_bytes().startswith(b"\x89PNG")
    svg = files[3].read_text()
    assert svg.lstrip().startswith("<svg")
    for method in ("default", "random", "autohyper"):
        assert method in svg
    assert any(s.startswith("autohyper is number 2 of 3") for s in parts[0].sentences)


def test_reports_are_the_same_when_written_again(store):
    files = write_report(store)[1]
    before = [f.read_bytes() for f in files]
    assert [f.read_bytes() for f in write_report(store)[1]] == before


def test_lines_are_those_of_the_last_record_of_a_cell(store):
    store.append(make_record("random", 0, (0.2,), label="\u05e8\u200f"))
    store.append(make_record("random", 0, (0.2,)))
    store.close()
    lines = record_lines(store.path)
    assert lines.keys() == {record.key for record in store.load()}
    with store.path.open("a") as file:
        file.write('{"half')
    assert record_lines(store.path) == lines
    text = store.path.read_text().splitlines()
    assert lines["fake", "random", 0] == len(text) - 1
    assert '"method":"autohyper"' in text[lines["fake", "autohyper", 1] - 1]


def test_a_bar_in_a_value_does_not_break_the_table():
    record = make_record(recommendation={"config": {"kind": "a|b\nc"}})
    assert "| kind a\\|b c |" in markdown(analyse([record], STUDY))


def test_nothing_finished_is_said(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    with pytest.raises(StateError, match="no finished cell"):
        write_report(store)
