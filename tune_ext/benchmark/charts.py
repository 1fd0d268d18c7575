"""The charts of a study as Vega-Lite specifications: one definition for the page and pictures.

A specification names its data and its colours ("@ink", "@colours", …) and holds neither: the page
puts in those of its theme, `plots` those of paper. Plain dictionaries, because the page needs
JSON and nothing else; `vl_convert` compiles them, and its compiler is what checks them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tune_ext.benchmark.analysis import Across, Analysis, Curve, TaskAnalysis, is_ours

__all__ = [
    "PAPER",
    "SCREEN_DARK",
    "SCREEN_LIGHT",
    "across_charts",
    "colours",
    "curve_rows",
    "dashes",
    "filled",
    "task_charts",
]

Spec = dict[str, Any]

# (on light, on dark). Ours are warm, everything else is cool or grey; families share a hue.
_COLOURS = {
    "default": ("#8a8f98", "#8b929c"),
    "grid": ("#5f6773", "#b4bac4"),
    "one-epoch": ("#a08a00", "#d6c04a"),
    "random": ("#3d9bd8", "#6fbcf0"),
    "tpe": ("#1b7f4d", "#4cc38a"),
    "gp": ("#66a61e", "#9bd15a"),
    "cma-es": ("#00857c", "#39c5bb"),
    "nsga2": ("#7d8f3a", "#b7c978"),
    "smac": ("#0b5d4f", "#7fd1b9"),
    "median": ("#7a9cc6", "#a9c4e6"),
    "asha": ("#2f5fb3", "#7aa2f7"),
    "asha+tpe": ("#16357f", "#4f7df0"),
    "hyperband": ("#6f58c9", "#a594f9"),
    "bohb": ("#9b4fc0", "#cf93ee"),
    "pbt": ("#4b3b7a", "#8f7fd0"),
    "autohyper": ("#d9480f", "#ff8a4c"),
    "exptest": ("#c2185b", "#ff6fa5"),
    "exptest+random": ("#8c1d40", "#e0587f"),
}
_OTHERS = (("#444b55", "#c3c9d1"), ("#8d6e63", "#bcaaa4"), ("#37858f", "#80cbc4"))
_DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2])

SCREEN_LIGHT = {
    "ink": "#1c2128",
    "muted": "#5b6472",
    "grid": "#e7eaee",
    "paper": "#ffffff",
    "low": "#c4622d",
    "middle": "#f6f6f4",
    "high": "#2f6fb3",
}
SCREEN_DARK = {
    "ink": "#e6e9ee",
    "muted": "#a3acb8",
    "grid": "#2b313a",
    "paper": "#16191e",
    "low": "#c9703f",
    "middle": "#23282f",
    "high": "#4f8fd0",
}
PAPER = SCREEN_LIGHT
_FONT = "Inter, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


def colours(methods: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each method's colour on light and on dark ground; the same in every study."""
    unknown = [m for m in methods if m not in _COLOURS]
    pairs = [_COLOURS.get(m) or _OTHERS[unknown.index(m) % len(_OTHERS)] for m in methods]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def dashes(methods: Sequence[str]) -> list[list[int]]:
    """Line styles: ours are solid, the others take turns, so that hue alone need not tell."""
    styles, place = [], 0
    for method in methods:
        styles.append([1, 0] if is_ours(method) else _DASHES[place % len(_DASHES)])
        place += not is_ours(method)
    return styles


def filled(spec: Spec, methods: Sequence[str], theme: Mapping[str, str], *, dark: bool) -> Spec:
    """The specification with the colours of a theme."""
    text = json.dumps(spec)
    values: dict[str, Any] = {**theme, "colours": colours(methods)[dark]}
    for name, value in values.items():
        text = text.replace(f'"@{name}"', json.dumps(value))
    found: Spec = json.loads(text)
    return found


def curve_rows(curves: Mapping[str, Curve], scale: float) -> list[dict[str, Any]]:
    """One row a point, as the charts of curves want them; the page makes the same."""
    rows = []
    for method, curve in curves.items():
        points = zip(curve.x, curve.value, curve.low, curve.high, strict=True)
        for x, value, low, high in points:
            if value is not None:
                row = {"m": method, "x": x, "v": scale * value, "flat": curve.flat}
                row["lo"] = None if low is None else scale * low
                row["hi"] = None if high is None else scale * high
                rows.append(row)
        if curve.end is not None:
            before = [v for x, v in zip(curve.x, curve.value, strict=True) if x <= curve.end]
            if before and before[-1] is not None:
                end = {"m": method, "x": curve.end, "v": scale * before[-1], "end": True}
                rows.append(end)
    return rows


def _config() -> Spec:
    axis = {
        "labelColor": "@muted",
        "titleColor": "@muted",
        "gridColor": "@grid",
        "domain": False,
        "ticks": False,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelPadding": 5,
        "titlePadding": 8,
    }
    return {
        "background": "transparent",
        "font": _FONT,
        "view": {"stroke": None},
        "axis": axis,
        "title": {"color": "@ink", "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "legend": {"labelColor": "@ink", "titleColor": "@muted", "labelFontSize": 11},
        "text": {"color": "@ink", "fontSize": 11},
    }


def _chart(name: str, spec: Spec, *, title: str, note: str, least: int = 0, **data: Any) -> Spec:
    """A chart: its specification, what stands around it, and the data that it names."""
    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", **spec}
    whole["config"] = _config()
    whole["params"] = [{"name": "hidden", "value": []}, {"name": "focus", "value": ""}]
    return {
        "id": name,
        "title": title,
        "note": note,
        "least": least,
        "spec": whole,
        "data": data,
    }


_SHOWN = {"filter": "indexof(hidden, datum.m) < 0"}
_IN_FOCUS = "focus == '' || datum.m == focus"


def _colour(methods: Sequence[str], *, legend: bool = False) -> Spec:
    scale = {"domain": list(methods), "range": "@colours"}
    shown = {"title": None, "symbolType": "stroke", "symbolStrokeWidth": 2.5} if legend else None
    return {"field": "m", "type": "nominal", "scale": scale, "legend": shown}


def _dash(methods: Sequence[str]) -> Spec:
    scale = {"domain": list(methods), "range": dashes(methods)}
    return {"field": "m", "type": "nominal", "scale": scale, "legend": None}


def _focus(high: float, low: float) -> Spec:
    return {"condition": {"test": _IN_FOCUS, "value": high}, "value": low}


def _scale(values: Sequence[float], lows: Sequence[float] = ()) -> Spec:
    """Logarithmic where the values are positive and far apart.

    An interval of theirs may still reach down to zero: `lows` are the lower ends, and what is
    not positive is drawn where the axis ends.
    """
    known = [v for v in values if math.isfinite(v)]
    if known and min(known) > 0 and max(known) > 4 * min(known):
        least = min(v for v in [*known, *lows] if v > 0)
        return {"type": "log", "nice": False, "domainMin": least, "clamp": True}
    return {"zero": False, "nice": True}


def _numbers(scale: Spec, values: Sequence[float]) -> Spec:
    """Plain numbers at the ticks: 1, 2 and 5 times powers of ten on a logarithmic axis."""
    if scale.get("type") != "log":
        return {"tickCount": 6}
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low < 4 else (1,)
    ticks = [float(f"{s}e{power}") for power in range(low - 1, high + 1) for s in steps]
    # An axis that clamps would write the numbers beyond its ends at its ends.
    ticks = [tick for tick in ticks if scale["domainMin"] <= tick <= max(values)]
    return {"values": ticks, "format": "~r" if low > -5 else "~e"}


def _ours(methods: Sequence[str]) -> str:
    return json.dumps([m for m in methods if is_ours(m)])


def _curves(
    methods: Sequence[str],
    data: str,
    values: Sequence[float],
    lows: Sequence[float],
    x: str,
    y: str,
    x_format: str,
    end: float,
) -> Spec:
    scale = _scale(values, lows)
    x_axis = {
        "field": "x",
        "type": "quantitative",
        "title": x,
        "scale": {"domain": [0, end], "nice": False},
        "axis": {"grid": False, "format": x_format, "tickCount": 6},
    }
    y_axis = {
        "field": "v",
        "type": "quantitative",
        "title": y,
        "scale": scale,
        "axis": _numbers(scale, values),
    }
    colour = _colour(methods)
    ours = f"indexof({_ours(methods)}, datum.m) >= 0"
    lines = {"filter": "!datum.end"}
    tooltip = [
        {"field": "m", "title": "method"},
        {"field": "x", "title": x, "format": ".4~g"},
        {"field": "v", "title": "median", "format": ".4~g"},
        {"field": "lo", "title": "95 % from", "format": ".4~g"},
        {"field": "hi", "title": "to", "format": ".4~g"},
    ]
    nearest = {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}
    return {
        "data": {"name": data},
        "transform": [_SHOWN],
        "height": 320,
        "encoding": {"x": x_axis, "y": y_axis, "color": colour},
        "layer": [
            {
                "transform": [lines, {"filter": "!datum.flat"}],
                "mark": {"type": "area", "interpolate": "step-after", "tooltip": None},
                "encoding": {
                    "y": {**y_axis, "field": "lo"},
                    "y2": {"field": "hi"},
                    "opacity": {
                        "condition": {
                            "test": f"datum.m == focus || (focus == '' && {ours})",
                            "value": 0.13,
                        },
                        "value": 0.03,
                    },
                },
            },
            {
                "transform": [lines],
                "mark": {"type": "line", "interpolate": "step-after", "strokeJoin": "round"},
                "encoding": {
                    "strokeDash": _dash(methods),
                    "opacity": _focus(1, 0.12),
                    "strokeWidth": {"condition": {"test": ours, "value": 2.8}, "value": 1.5},
                },
            },
            {
                "transform": [{"filter": "datum.end"}],
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {"opacity": _focus(1, 0.12)},
            },
            {
                "transform": [lines],
                "params": [{"name": "near", "select": nearest}],
                "mark": {"type": "point", "filled": True, "size": 50},
                "encoding": {
                    "tooltip": tooltip,
                    "opacity": {
                        "condition": {"param": "near", "empty": False, "value": 1},
                        "value": 0,
                    },
                },
            },
        ],
    }


def _lows(curves: Mapping[str, Curve]) -> list[float]:
    """The lower ends of the intervals of all curves."""
    return [v for c in curves.values() for v in c.low if v is not None]


def task_charts(task: TaskAnalysis, analysis: Analysis, number: int) -> list[Spec]:
    """The anytime curves and the test errors of one task.

    Args:
        task: Of `analysis`.
        analysis: Its methods decide the colours.
        number: Of the task, for the names.
    """
    charts = []
    error = f"{task.error_name}{', %' if task.percent else ''}"
    best = f"{'true' if task.simulated else 'validation'} {error} of the best so far"
    clock = "simulated wall-clock" if task.simulated else "wall-clock"
    workers = f"{task.workers} worker{'s' * (task.workers > 1)}"
    for name, curves, x, form in (
        ("budget", task.by_budget, f"{analysis.budget_unit} used, all trials together", ",~r"),
        ("seconds", task.by_seconds, f"{clock} seconds, {workers}", "~s"),
    ):
        values = [task.scale * v for c in curves.values() for v in c.value if v is not None]
        if values:
            end = max(v for c in curves.values() for v in c.x)
            lows = [task.scale * v for v in _lows(curves)]
            spec = _curves(analysis.methods, "curves", values, lows, x, best, form, end)
            note = "Median over seeds with its 95 % interval. A dot: the search ended by itself."
            chart = _chart(
                f"task{number}-{name}", spec, title=f"Search, by {name}", note=note, curves=curves
            )
            charts.append({**chart, "scale": task.scale})
    charts.append(_errors(task, analysis, number, f"test {error}"))
    return charts


def _errors(task: TaskAnalysis, analysis: Analysis, number: int, title: str) -> Spec:
    cells: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for method in task.methods:
        for seed, value in method.scores.items():
            cells.append({"m": method.method, "seed": seed, "v": _short(task.scale * value)})
        if method.iqm is not None:
            row = {"m": method.method, "v": _short(task.scale * method.iqm.value)}
            row["lo"] = _short(task.scale * method.iqm.low)
            row["hi"] = _short(task.scale * method.iqm.high)
            means.append(row)
    order = [m.method for m in task.methods]
    spec = _intervals(analysis.methods, order, title, [r["v"] for r in cells])
    spec["layer"].insert(0, _dots())
    return _chart(
        f"task{number}-errors",
        spec,
        title="Recommendation, trained at full length",
        note="Dots: seeds. Diamonds: interquartile mean with its 95 % bootstrap interval.",
        cells=cells,
        means=means,
    )


def _dots() -> Spec:
    return {
        "data": {"name": "cells"},
        "transform": [_SHOWN],
        "mark": {"type": "circle", "size": 30},
        "encoding": {
            "opacity": _focus(0.4, 0.06),
            "tooltip": [
                {"field": "m", "title": "method"},
                {"field": "seed"},
                {"field": "v", "title": "test error", "format": ".4~g"},
            ],
        },
    }


def _intervals(
    methods: Sequence[str], order: Sequence[str], title: str, values: Sequence[float]
) -> Spec:
    """An interval a method, best first; the rows of hidden methods go."""
    scale = _scale(values)
    tooltip = [
        {"field": "m", "title": "method"},
        {"field": "v", "title": "interquartile mean", "format": ".4~g"},
        {"field": "lo", "title": "95 % from", "format": ".4~g"},
        {"field": "hi", "title": "to", "format": ".4~g"},
    ]
    name = {
        "domain": False,
        "grid": True,
        "labelFontSize": 12,
        "labelLimit": 140,
        "labelColor": "@ink",
        "labelFontWeight": {
            "condition": {"test": f"indexof({_ours(methods)}, datum.value) >= 0", "value": 700},
            "value": 400,
        },
    }
    x = {"field": "v", "type": "quantitative", "title": title, "scale": scale}
    shared = {"data": {"name": "means"}, "transform": [_SHOWN]}
    return {
        "height": 26 * len(order),
        "encoding": {
            "y": {
                "field": "m",
                "type": "nominal",
                "sort": list(order),
                "title": None,
                "axis": name,
            },
            "x": {**x, "axis": _numbers(scale, values)},
            "color": _colour(methods),
        },
        "layer": [
            {
                **shared,
                "mark": {"type": "rule", "strokeWidth": 2.5},
                "encoding": {
                    "x": {**x, "field": "lo", "axis": _numbers(scale, values)},
                    "x2": {"field": "hi"},
                    "opacity": _focus(1, 0.12),
                    "tooltip": tooltip,
                },
            },
            {
                **shared,
                "mark": {
                    "type": "point",
                    "shape": "diamond",
                    "filled": True,
                    "size": 110,
                    "stroke": "@paper",
                    "strokeWidth": 1,
                },
                "encoding": {"opacity": _focus(1, 0.12), "tooltip": tooltip},
            },
        ],
    }


def across_charts(across: Across, analysis: Analysis) -> list[Spec]:
    """Regret, ranks, tasks and pairs of a study with several tasks."""
    from tune_ext.benchmark import charts_across

    means: list[dict[str, Any]] = [
        {"m": m, "v": _short(i.value), "lo": _short(i.low), "hi": _short(i.high)}
        for m, i in across.regret.items()
    ]
    known = [r["v"] for r in means if r["v"] is not None]
    known += [r["lo"] for r in means if r["lo"] is not None and r["lo"] > 0]
    title = "normalised regret (0: best, 1: median configuration)"
    title = title if across.known else "normalised test error (0: lowest cell, 1: median cell)"
    regret = _chart(
        "across-regret",
        _intervals(analysis.methods, across.methods, title, known),
        title="All tasks together",
        note="Interquartile mean over all seeds of all tasks, with its stratified bootstrap "
        "interval (95 %).",
        means=means,
    )
    charts = [regret]
    if across.curves:
        values = [v for c in across.curves.values() for v in c.value if v is not None]
        lows = _lows(across.curves)
        share = "share of the budget"
        spec = _curves(analysis.methods, "curves", values, lows, share, title, ".0%", 1.0)
        note = "Interquartile mean over all seeds of all tasks, with its bootstrap interval."
        curves = _chart(
            "across-budget", spec, title="Regret against budget", note=note, curves=across.curves
        )
        charts.insert(0, {**curves, "scale": 1.0})
    return charts + charts_across.matrices(across, analysis)


def _short(value: float) -> float | None:
    """Five significant digits; None for what is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
