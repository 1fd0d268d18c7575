import json
import re

import pytest

from tests.benchmark.examples import make_record
from tests.benchmark.several import METHODS, several_records, several_study
from tune_ext.benchmark import charts, plots
from tune_ext.benchmark.analysis import analyse
from tune_ext.benchmark.html import page


@pytest.fixture(scope="module")
def analysis():
    study = several_study()
    settings = {
        "title": study.title,
        "settings": study.settings(),
        "methods": study.methods,
        "seeds": study.seeds,
        "unavailable": {"pbt on <i>": "a table & no state"},
    }
    records = list(several_records())
    return analyse(records, settings, {r.key: 10 + i for i, r in enumerate(records)})


@pytest.fixture(scope="module")
def text(analysis):
    return page(analysis)


def test_what_comes_from_records_is_escaped(text):
    body = text.partition("<body>")[2].partition('<script id="data"')[0]
    assert "A study &lt;b&gt;of&lt;/b&gt; several tasks" in body
    assert "pbt on &lt;i&gt;: a table &amp; no state" in body
    assert "<b>of" not in text
    assert "<script>alert" not in text
    assert text.count("</script>") == 3  # data, Vega and ours: nothing else ends one


def test_the_data_hold_every_record_and_its_line(text, analysis):
    data = json.loads(re.search(r'application/json">(.*?)</script>', text, re.S).group(1))
    cells = data["tasks"][1]["cells"]["random"]
    assert [c[0] for c in cells] == list(range(6))
    assert cells[0][5] == 10 + 6 * len(METHODS) + 6
    assert data["revisions"] == ["abc<i>"]
    assert [c["id"] for c in data["charts"][:3]] == [
        "across-budget",
        "across-regret",
        "across-ranks",
    ]
    assert len(text) < 3_000_000


def test_a_study_of_one_cell_has_a_page():
    study = {"title": "one", "settings": {"final_seeds": 1, "budget_unit": "epochs"}}
    assert "Only random has test results" in page(analyse([make_record()], study))
    nothing = make_record(test_errors=(), incumbents=[], failures=["crashed"])
    assert "No method has a test result" in page(analyse([nothing], study))


def test_colours_are_each_methods_own_and_the_same_in_every_study():
    light, dark = charts.colours(["autohyper", "mine", "random"])
    assert (light[0], dark[2]) == (charts.colours(["autohyper"])[0][0], "#6fbcf0")
    everyone = [m for m in charts._COLOURS]
    assert len(set(charts.colours(everyone)[0])) == len(everyone)


def test_pictures_leave_no_colour_and_no_data_open(analysis):
    drawn = plots.pictures(analysis)
    assert {"comparison", "comparison-ranks", "comparison-task-3"} <= drawn.keys()
    whole = json.dumps(drawn)
    assert '"@' not in whole
    assert '"data": {"name"' not in whole


def test_an_interval_down_to_zero_leaves_the_logarithmic_axis_whole():
    # As on a small test set: the median is .008, and the best seed makes no mistake at all.
    records = [
        make_record(m, s, (0.01,), incumbents=[[1, 1.0, 0.9], [5, 5.0, 0.004 * s * scale]])
        for m, scale in (("random", 1.0), ("tpe", 2.0))
        for s in range(5)
    ]
    study = {"title": "t", "settings": {"final_seeds": 1, "budget_unit": "epochs"}}
    analysis = analyse(records, study)
    assert min(analysis.tasks[0].by_budget["random"].low) == 0.0
    chart = next(c for c in charts.task_charts(analysis.tasks[0], analysis, 0))
    scale = chart["spec"]["encoding"]["y"]["scale"]
    assert scale["type"] == "log"
    assert scale["clamp"]
    assert scale["domainMin"] > 0
    ticks = chart["spec"]["encoding"]["y"]["axis"]["values"]
    assert ticks
    assert scale["domainMin"] <= min(ticks) <= max(ticks) <= 90, "a number at the wrong place"
