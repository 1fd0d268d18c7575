"""The page in a real browser: what it draws, what its buttons do, that it asks for nothing."""

import json

import pytest

from tests.benchmark.browser import browser, find
from tests.benchmark.several import several_records, several_study
from tune_ext.benchmark.analysis import analyse
from tune_ext.benchmark.html import page

pytestmark = pytest.mark.skipif(find() is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A page of a study of several tasks after it has tested itself, and what that found."""
    study = several_study(tasks=3, seeds=3)
    settings = {
        "title": study.title,
        "settings": study.settings(),
        "methods": study.methods,
        "seeds": study.seeds,
    }
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(analyse(list(several_records(tasks=3, seeds=3)), settings)))
    with browser() as chromium:
        chromium.open(f"{path.as_uri()}#selftest")
        told = "document.getElementById('selftest')?.textContent"
        chromium.wait(f"({told} ?? 'running') != 'running'")
        yield chromium, json.loads(chromium.value(told)), path


def test_it_asks_for_nothing_and_complains_of_nothing(opened):
    chromium, seen, path = opened
    assert {r.partition("#")[0] for r in chromium.requests()} == {path.as_uri()}
    assert chromium.complaints() == []
    assert (seen["errors"], seen["requests"]) == ([], [])


def test_every_chart_is_drawn(opened):
    _, seen, _ = opened
    assert seen["charts"] == 5 + 2 * 3  # over tasks; and two cards a task
    assert seen["empty"] == []


@pytest.mark.parametrize("what", ["hides", "shows", "tabs", "sorts", "closes", "theme", "back"])
def test_its_buttons_do_what_they_say(what, opened):
    assert opened[1][what] is True


def test_a_row_opens_its_records(opened):
    assert opened[1]["records"] == 3


def test_nothing_from_the_records_is_markup(opened):
    chromium, _, _ = opened
    assert chromium.value("document.querySelector('h1').children.length") == 0
    assert chromium.value("document.querySelector('h1').textContent").startswith("A study <b>")


def test_it_fits_a_phone_and_follows_a_dark_system(opened):
    chromium, _, path = opened
    chromium.open(path.as_uri(), width=390, height=800, dark=True)
    chromium.wait("document.querySelectorAll('svg.marks').length > 1")
    assert chromium.value("document.documentElement.scrollWidth") <= 390
    assert chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(15, 17, 21)"
