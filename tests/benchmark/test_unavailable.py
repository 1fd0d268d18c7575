from tune_ext import cli
from tune_ext.benchmark._unavailable import grouped, pair
from tune_ext.benchmark.report import COLUMNS


def test_tasks_with_one_reason_have_one_line():
    unavailable = {"smac": "not installed"}
    for label, space in (("a", "['x']"), ("b", "['y', 'z']"), ("c", "[]"), ("d", "['x']")):
        unavailable[pair("exptest", label)] = (
            f"{label} has no learning rate to search among {space}"
        )
    unavailable[pair("exptest", "e")] = "e does not report its losses"
    assert grouped(unavailable) == [
        ("smac", "not installed"),
        ("exptest on 4 tasks", "the task has no learning rate to search"),
        ("exptest on e", "the task does not report its losses"),
    ]


def test_few_tasks_are_named_and_methods_stay_apart():
    reasons = {pair(m, t): f"{t} is looked up" for m in ("p", "q") for t in ("a", "b on c")}
    told = "the task is looked up"
    assert grouped(reasons) == [("p on a, b on c", told), ("q on a, b on c", told)]


def test_a_terminal_shows_few_parameters_only():
    row = list(map(str, range(len(COLUMNS))))
    assert cli._shortened(row, 3) == row
    place = COLUMNS.index("chosen (median, range)")
    assert cli._shortened(row, 9)[place] == "9 parameters: see report.html"
    assert cli._shortened(row, 9)[place + 1 :] == row[place + 1 :]
    row[place] = "none"
    assert cli._shortened(row, 9) == row
