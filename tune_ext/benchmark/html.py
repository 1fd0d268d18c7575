"""A study's report as one self-contained page: no request leaves it, also without a network.

The text and the tables are there without JavaScript; charts, sorting, the legend and the records
behind each row are drawn by `templates/report.js` from the data that the page carries. What comes
from records is escaped here, and put in as text there; the page's content security policy forbids
every request.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from tune_ext.benchmark import charts
from tune_ext.benchmark.analysis import (
    Across,
    Analysis,
    CellResult,
    Curve,
    MethodResult,
    TaskAnalysis,
    is_ours,
)
from tune_ext.benchmark.charts import Spec
from tune_ext.benchmark.plots import vl_convert

__all__ = ["page"]

_OPEN_TASKS = 1  # how many of several tasks are open at first
_RECORDS = "records"


def page(analysis: Analysis) -> str:
    """The whole page.

    Needs vl-convert-python, of the extra `compare`, for Vega's own code.
    """
    drawn = _charts(analysis)
    data = _data(analysis, drawn)
    parts = {
        "TITLE": escape(analysis.title),
        "CSS": _template("report.css"),
        "BODY": _body(analysis, {c["id"]: i for i, c in enumerate(drawn)}, drawn),
        "DATA": _json(data),
        "BUNDLE": _bundle(),
        "JS": _template("report.js"),
    }
    return re.sub(r"@@([A-Z]+)@@", lambda m: parts[m.group(1)], _template("report.html"))


def _template(name: str) -> str:
    return (resources.files("tune_ext.benchmark") / "templates" / name).read_text(encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, so that nothing in them ends the script element."""
    text: str = vl_convert().javascript_bundle()
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(data: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# What the page's script reads.


def _charts(analysis: Analysis) -> list[Spec]:
    drawn = charts.across_charts(analysis.across, analysis) if analysis.across else []
    for number, task in enumerate(analysis.tasks):
        drawn += charts.task_charts(task, analysis, number)
    return drawn


def _data(analysis: Analysis, drawn: Sequence[Spec]) -> dict[str, Any]:
    light, dark = charts.colours(analysis.methods)
    place = {m: i for i, m in enumerate(analysis.methods)}
    revisions: dict[str, int] = {}
    tasks = [_task_data(task, revisions) for task in analysis.tasks]
    return {
        "methods": list(analysis.methods),
        "unit": f"{analysis.budget_unit} used",
        "themes": {
            "light": {**charts.SCREEN_LIGHT, "colours": light},
            "dark": {**charts.SCREEN_DARK, "colours": dark},
        },
        "charts": [_chart_data(c, place) for c in drawn],
        "tasks": tasks,
        "revisions": list(revisions),
    }


def _chart_data(chart: Spec, place: Mapping[str, int]) -> dict[str, Any]:
    data = {
        name: [_curve(place[m], c) for m, c in rows.items()] if name == "curves" else rows
        for name, rows in chart["data"].items()
    }
    kept = {k: chart[k] for k in ("id", "least", "spec")}
    return {**kept, "scale": chart.get("scale", 1.0), "data": data}


def _curve(method: int, curve: Curve) -> list[Any]:
    series = [[_short(v) for v in s] for s in (curve.x, curve.value, curve.low, curve.high)]
    return [method, int(curve.flat), *series, _short(curve.end)]


def _short(value: Any) -> Any:
    """Four significant digits: more than a chart shows."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _task_data(task: TaskAnalysis, revisions: dict[str, int]) -> dict[str, Any]:
    names = list(dict.fromkeys(n for m in task.methods for c in m.cells for n in c.config))
    cells = {m.method: [_cell(c, names, revisions) for c in m.cells] for m in task.methods}
    error = f"{task.error_name}{', %' if task.percent else ''}"
    return {"error": error, "scale": task.scale, "parameters": names, "cells": cells}


def _cell(cell: CellResult, names: Sequence[str], revisions: dict[str, int]) -> list[Any]:
    config = [_plain(cell.config.get(n)) for n in names]
    revision = revisions.setdefault(cell.revision, len(revisions))
    failures = list(cell.failures)
    numbers = [_plain(cell.error), _plain(cell.units), _plain(cell.seconds)]
    return [cell.seed, *numbers, config, cell.line, revision, failures]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)


# What the page shows.


def _body(analysis: Analysis, number: Mapping[str, int], drawn: Sequence[Spec]) -> str:
    by_name = {c["id"]: c for c in drawn}
    parts = [_top(analysis), "<main>", _verdict(analysis), _legend(analysis)]
    if analysis.across is not None:
        parts.append(_across(analysis.across, number, by_name))
    several = len(analysis.tasks) > 1
    if several:
        parts.append("<h2>Task by task</h2>")
    for place, task in enumerate(analysis.tasks):
        inner = _task(task, analysis, place, number, by_name)
        if several:
            best = next((m.method for m in task.methods if m.scores), "no result")
            small = f"<small>{escape(f'lowest: {best}')}</small>"
            opened = " open" if place < _OPEN_TASKS else ""
            head = f'<details class="task"{opened}><summary>{escape(task.label)}{small}</summary>'
            said = "".join(f"<li>{escape(s)}</li>" for s in task.sentences)
            inner = f'{head}<ul class="said">{said}</ul>{inner}</details>'
        else:
            inner = f"<h2>{escape(task.label)}</h2>{inner}"
        parts.append(f"<section>{inner}</section>")
    parts += ["</main>", _bottom(analysis)]
    return "\n".join(parts)


def _top(analysis: Analysis) -> str:
    cells = [c for t in analysis.tasks for m in t.methods for c in m.cells]
    facts = [
        (len(analysis.tasks), "task"),
        (len(analysis.methods), "method"),
        (len({s for t in analysis.tasks for s in t.seeds}), "seed"),
        (len(cells), "cell"),
        (sum(bool(c.failures) for c in cells), "cell with failures"),
    ]
    items = "".join(f"<li><b>{n}</b> {_plural(n, what)}</li>" for n, what in facts)
    return (
        f'<header class="top"><div class="heading"><h1>{escape(analysis.title)}</h1>'
        '<button id="theme" aria-label="change between light and dark">Dark</button></div>'
        f'<p class="lead">{escape(_unwrapped(analysis.description))}</p>'
        f'<ul class="facts">{items}</ul></header>'
    )


def _unwrapped(text: str) -> str:
    """Lines joined to paragraphs."""
    return "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))


def _plural(n: int, what: str) -> str:
    return what if n == 1 else what.replace("cell ", "cells ") if " " in what else f"{what}s"


def _verdict(analysis: Analysis) -> str:
    items = "".join(f"<li>{escape(s)}</li>" for s in analysis.sentences)
    return f'<section class="card verdict"><h2>What the data say</h2><ul>{items}</ul></section>'


def _legend(analysis: Analysis) -> str:
    styles = charts.dashes(analysis.methods)
    chips = []
    for method, dash in zip(analysis.methods, styles, strict=True):
        name, ours = escape(method), " ours" if is_ours(method) else ""
        pattern = " ".join(map(str, dash)) if dash != [1, 0] else "none"
        line = (
            f'<svg width="20" height="8" aria-hidden="true"><line data-colour="{name}" x1="0" '
            f'x2="20" y1="4" y2="4" stroke-width="{3 if ours else 2}" '
            f'stroke-dasharray="{pattern}"/></svg>'
        )
        chips.append(
            f'<button class="chip{ours}" data-method="{name}" aria-pressed="true" '
            f'title="show or hide {name} in all charts">{line}{name}</button>'
        )
    ends = '<button class="all" id="all">all</button><button class="all" id="none">none</button>'
    return f'<div class="legend">{"".join(chips)}{ends}</div>'


def _plot(name: str, number: Mapping[str, int], hidden: bool = False) -> str:
    shown = " hidden" if hidden else ""
    return (
        f'<div class="plot" id="plot-{name}" data-chart="{number[name]}"{shown}>'
        '<div class="inner"></div></div>'
    )


def _chart_card(
    names: Sequence[str],
    number: Mapping[str, int],
    by_name: Mapping[str, Spec],
    *,
    wide: bool = False,
    tabs: Sequence[str] = (),
) -> str:
    """A card with one chart, or with several behind tabs."""
    names = [n for n in names if n in number]
    if not names:
        return ""
    first = by_name[names[0]]
    buttons = ""
    if len(names) > 1:
        labels = "".join(
            f'<button data-for="plot-{n}" aria-pressed="{str(not i).lower()}">{label}</button>'
            for i, (n, label) in enumerate(zip(names, tabs, strict=True))
        )
        buttons = f'<div class="tabs">{labels}</div>'
    title = first["title"] if len(names) == 1 else first["title"].partition(",")[0]
    plots = "".join(_plot(n, number, hidden=bool(i)) for i, n in enumerate(names))
    return (
        f'<div class="card chart{" wide" * wide}"><div class="head"><h3>{escape(title)}</h3>'
        f'{buttons}</div><p class="note">{escape(first["note"])}</p>{plots}</div>'
    )


def _across(across: Across, number: Mapping[str, int], by_name: Mapping[str, Spec]) -> str:
    wide = len(across.methods) > 9
    cards = [
        _chart_card([f"across-{n}"], number, by_name, wide=w)
        for n, w in (
            ("budget", False),
            ("regret", "across-budget" not in number),
            ("ranks", True),
            ("places", wide),
            ("improvement", wide),
        )
    ]
    return f'<h2>All tasks</h2><div class="charts">{"".join(cards)}</div>{_pairs(across)}'


def _pairs(across: Across) -> str:
    heads = ("method", "against", "better on", "worse on", "equal on", "p", "p, Holm")
    kinds = ("text", "text", *["number"] * 5)
    rows = [
        _row(
            [
                _text(p.a),
                _text(p.b),
                *(_number(n, str(n)) for n in (p.wins, p.losses, p.ties)),
                _number(p.p, f"{p.p:.2g}"),
                _number(p.p_holm, f"{p.p_holm:.2g}"),
            ]
        )
        for p in sorted(across.pairs, key=lambda p: p.p)
    ]
    return (
        '<details class="more card"><summary>Wilcoxon&#8217;s signed-rank test of every pair, '
        f"with Holm&#8217;s correction ({len(rows)} pairs)</summary>"
        f"{_table(list(zip(heads, kinds, strict=True)), rows)}</details>"
    )


def _task(
    task: TaskAnalysis,
    analysis: Analysis,
    place: int,
    number: Mapping[str, int],
    by_name: Mapping[str, Spec],
) -> str:
    searches = [f"task{place}-budget", f"task{place}-seconds"]
    cards = _chart_card(searches, number, by_name, tabs=(analysis.budget_unit, "time"))
    cards += _chart_card([f"task{place}-errors"], number, by_name)
    return (
        f'<div class="charts">{cards}</div>'
        f'<div class="card">{_methods(task, analysis, place)}</div>'
    )


def _methods(task: TaskAnalysis, analysis: Analysis, place: int) -> str:
    timed = "simulated search, s" if task.simulated else "search, s"
    target = f"reached {task.told(task.target)} after" if task.target is not None else "target"
    columns = [
        ("method", "text"),
        (
            f"test {task.error_name}{', %' if task.percent else ''}: interquartile mean, "
            "95 % interval",
            "number",
        ),
        ("mean ± SE", "number"),
        (f"{analysis.budget_unit} used, median", "number"),
        (f"{timed}, median", "number"),
        ("training in it, s, median", "number"),
        ("workers idle", "number"),
        (f"{target} ({analysis.budget_unit})", "number"),
        ("failures", "number"),
        ("recommended: median, range", ""),
        (_RECORDS, ""),
    ]
    rows = [_method(m, task, place) for m in task.methods]
    return _table(columns, rows)


def _method(m: MethodResult, task: TaskAnalysis, place: int) -> str:
    mean = "none" if math.isnan(m.mean) else _value(task, m.mean)
    if math.isfinite(m.error):
        mean += f" ± {_value(task, m.error)}"
    middle = "none" if m.iqm is None else _value(task, m.iqm.value)
    if m.iqm is not None and math.isfinite(m.iqm.low):
        middle += f" [{_value(task, m.iqm.low)}, {_value(task, m.iqm.high)}]"
    name = escape(m.method)
    failed = f"{m.failed} of {len(m.cells)}"
    reached = "" if m.to_target is None else _reached(m.to_target)
    chosen = "; ".join(f"{k} {v}" for k, v in m.chosen.items()) or "none"
    cells = [
        f'<td class="text name" data-value="{name}"><span class="mark" data-colour="{name}">'
        f"</span>{name}</td>",
        _number(m.middle, middle),
        _number(m.mean, mean),
        _number(m.units, f"{m.units:.4g}"),
        _number(m.seconds, f"{m.seconds:,.1f}"),
        _number(m.trained, "" if m.trained is None else f"{m.trained:,.1f}"),
        _number(m.idle, "" if m.idle is None else f"{100 * m.idle:.0f} %"),
        _number(m.to_target, reached),
        _number(m.failed, failed, "bad" if m.failed else ""),
        f'<td class="text long">{escape(chosen)}</td>',
        f'<td><button class="more" aria-expanded="false" aria-label="records of {name}">'
        f"{len(m.cells)}&#8201;&#9662;</button></td>",
    ]
    ours = ' class="ours"' if m.ours else ""
    return _row(cells, f' data-method="{name}" data-task="{place}"{ours}')


def _value(task: TaskAnalysis, error: float) -> str:
    return f"{100 * error:.2f}" if task.percent else f"{error:.3g}"


def _reached(budget: float) -> str:
    return f"{budget:.4g}" if math.isfinite(budget) else "not reached"


def _text(value: str) -> str:
    return f'<td class="text" data-value="{escape(value)}">{escape(value)}</td>'


def _number(value: float | None, text: str, kind: str = "") -> str:
    """A cell that sorts by `value`; what is infinite sorts last but for what is missing."""
    known = value is not None and not math.isnan(value)
    sorted_by = ("1e308" if math.isinf(value or 0.0) else f"{value:.10g}") if known else ""
    named = f' class="{kind}"' if kind else ""
    return f'<td{named} data-value="{sorted_by}">{escape(text)}</td>'


def _row(cells: Iterable[str], attributes: str = "") -> str:
    return f"<tr{attributes}>{''.join(cells)}</tr>"


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    heads = []
    for name, kind in columns:
        left = ' class="text"' if kind == "text" or name.startswith("recommended") else ""
        sortable = f' data-sort="{kind}"' if kind else ""
        heads.append(f"<th{left}{sortable}>{escape(name)}</th>")
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bottom(analysis: Analysis) -> str:
    parts = ["<footer>"]
    for title, lines in (
        ("Not run", [f"{name}: {why}" for name, why in analysis.not_run]),
        ("Conditions", analysis.conditions),
        ("Versions", analysis.versions),
    ):
        if lines:
            items = "".join(f"<li>{escape(line)}</li>" for line in lines)
            parts.append(f"<h2>{title}</h2><ul>{items}</ul>")
    parts.append(
        "<p>The number in the last column of a table opens the records behind its row; each "
        "names its line in records.jsonl.</p></footer>"
    )
    return "".join(parts)
