"""Charts over several tasks: critical differences, ranks by task, probabilities of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tune_ext.benchmark.analysis import Across, Analysis, is_ours
from tune_ext.benchmark.charts import Spec, _chart, _colour, _focus, _short
from tune_ext.benchmark.stats import CriticalDifference

__all__ = ["matrices"]

_ROW = 22


def matrices(across: Across, analysis: Analysis) -> list[Spec]:
    """What there is besides regret."""
    charts = []
    if across.ranks is not None:
        charts.append(_ranks(across.ranks, analysis.methods))
    return [*charts, _places(across), _improvement(across)]


def _ranks(found: CriticalDifference, methods: Sequence[str]) -> Spec:
    """Demšar's diagram: average ranks, and bars over what cannot be told apart."""
    names = list(found.ranks)
    k = len(names)
    bars = _bars(found)
    below = 0.9 + 0.45 * (max((b["y"] for b in bars), default=0.0) / 0.45)
    lines, labels = [], []
    side, half = 0.28 * max(k - 1, 1), (k + 1) // 2
    for place, name in enumerate(names):
        rank, left = found.ranks[name], place < half
        row = place if left else k - 1 - place
        down, edge = below + row, 1 - 0.4 * side if left else k + 0.4 * side
        for order, (px, py) in enumerate([(rank, 0.0), (rank, down), (edge, down)]):
            lines.append({"m": name, "x": _short(px), "y": _short(py), "o": order})
        labels.append(
            {
                "m": name,
                "x": edge,
                "y": down,
                "left": left,
                "rank": _short(rank),
                "ours": is_ours(name),
            }
        )
    depth = below + half + 0.6
    x = {
        "field": "x",
        "type": "quantitative",
        "scale": {"domain": [1 - side, k + side], "nice": False, "zero": False},
        "axis": {
            "orient": "top",
            "values": list(range(1, k + 1)),
            "grid": False,
            "ticks": True,
            "tickColor": "@muted",
            "title": "average rank (1 is best)",
            "format": "d",
        },
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "scale": {"domain": [0, depth], "reverse": True, "nice": False},
        "axis": None,
    }
    scale = [{"x": 1, "x2": 1 + found.cd, "y": depth - 0.35, "t": f"CD {found.cd:.2f}"}]
    layers: list[Any] = [
        {
            "data": {"values": [{"x": 1, "x2": k, "y": 0}]},
            "mark": {"type": "rule", "color": "@muted"},
            "encoding": {"x": x, "x2": {"field": "x2"}, "y": y},
        },
        {
            "data": {"name": "lines"},
            "mark": {"type": "line", "strokeWidth": 1.3, "interpolate": "linear"},
            "encoding": {
                "x": x,
                "y": y,
                "order": {"field": "o"},
                "color": _colour(methods),
                "opacity": _focus(1, 0.15),
            },
        },
        {
            "data": {"name": "bars"},
            "mark": {"type": "rule", "strokeWidth": 4, "color": "@ink", "strokeCap": "round"},
            "encoding": {"x": x, "x2": {"field": "x2"}, "y": y},
        },
    ]
    if 1 + found.cd <= k:
        layers.append(
            {
                "data": {"values": scale},
                "mark": {"type": "rule", "strokeWidth": 2, "color": "@muted"},
                "encoding": {"x": x, "x2": {"field": "x2"}, "y": y},
            }
        )
        layers.append(
            {
                "data": {"values": scale},
                "mark": {"type": "text", "align": "left", "dy": -8, "color": "@muted"},
                "encoding": {"x": x, "y": y, "text": {"field": "t"}},
            }
        )
    layers += [_label(x, y, left) for left in (True, False)]
    note = (
        f"Methods under one bar are not told apart (Nemenyi, 5 %). Friedman p = "
        f"{found.friedman_p:.2g}."
    )
    spec = {"height": round(_ROW * depth), "layer": layers}
    return _chart(
        "across-ranks",
        spec,
        title="Average ranks, critical difference",
        note=note,
        least=520,
        lines=lines,
        labels=labels,
        bars=bars,
    )


def _bars(found: CriticalDifference) -> list[dict[str, Any]]:
    return [
        {
            "x": _short(found.ranks[g[0]] - 0.06),
            "x2": _short(found.ranks[g[-1]] + 0.06),
            "y": _short(0.45 * (i + 1)),
        }
        for i, g in enumerate(found.groups)
    ]


def _label(x: Spec, y: Spec, left: bool) -> Spec:
    return {
        "data": {"name": "labels"},
        "transform": [{"filter": f"datum.left == {str(left).lower()}"}],
        "mark": {
            "type": "text",
            "align": "right" if left else "left",
            "dx": -5 if left else 5,
            "fontSize": 12,
        },
        "encoding": {
            "x": x,
            "y": y,
            "text": {"field": "m"},
            "opacity": _focus(1, 0.25),
            "tooltip": [
                {"field": "m", "title": "method"},
                {"field": "rank", "title": "average rank"},
            ],
        },
    }


def _places(across: Across) -> Spec:
    rows = [
        {"t": task, "m": m, "p": place, "v": _short(across.means[task][m])}
        for task, places in across.places.items()
        for m, place in places.items()
    ]
    k = len(across.methods)
    spec = _heat(
        rows_title="task",
        sort_y=across.tasks,
        sort_x=across.methods,
        y="t",
        x="m",
        colour={
            "field": "p",
            "type": "quantitative",
            "legend": None,
            "scale": {
                "domain": [1, (k + 1) / 2, k],
                "range": ["@high", "@middle", "@low"],
                "interpolate": "rgb",
            },
        },
        text={"field": "p", "format": "~g"},
        tooltip=[
            {"field": "t", "title": "task"},
            {"field": "m", "title": "method"},
            {"field": "p", "title": "rank"},
            {"field": "v", "title": "normalised regret, interquartile mean", "format": ".4~g"},
        ],
    )
    return _chart(
        "across-places",
        spec,
        title="Rank on each task",
        note="By the interquartile mean of normalised regret over seeds; 1 is best.",
        least=90 + 30 * k,
        heat=rows,
    )


def _improvement(across: Across) -> Spec:
    rows = [
        {"a": a, "m": b, "v": _short(p.value), "lo": _short(p.low), "hi": _short(p.high)}
        for a, others in across.improvement.items()
        for b, p in others.items()
    ]
    spec = _heat(
        rows_title="",
        sort_y=across.methods,
        sort_x=across.methods,
        y="a",
        x="m",
        colour={
            "field": "v",
            "type": "quantitative",
            "legend": None,
            "scale": {
                "domain": [0, 0.5, 1],
                "range": ["@low", "@middle", "@high"],
                "interpolate": "rgb",
            },
        },
        text={"field": "v", "format": ".2f"},
        tooltip=[
            {"field": "a", "title": "method"},
            {"field": "m", "title": "against"},
            {"field": "v", "title": "probability", "format": ".3f"},
            {"field": "lo", "title": "95 % from", "format": ".3f"},
            {"field": "hi", "title": "to", "format": ".3f"},
        ],
    )
    return _chart(
        "across-improvement",
        spec,
        title="Probability of improvement",
        note="How probably a run of the row's method is better than one of the column's.",
        least=110 + 34 * len(across.methods),
        heat=rows,
    )


def _heat(
    *,
    rows_title: str,
    sort_y: Sequence[str],
    sort_x: Sequence[str],
    y: str,
    x: str,
    colour: Spec,
    text: Spec,
    tooltip: list[Spec],
) -> Spec:
    far = {
        "test": f"abs(datum.{colour['field']} - {colour['scale']['domain'][1]}) > "
        f"{0.33 * (colour['scale']['domain'][2] - colour['scale']['domain'][0])}",
        "value": "#ffffff",
    }
    axis = {"labelColor": "@ink", "labelLimit": 170}
    return {
        "data": {"name": "heat"},
        "height": 24 * len(sort_y),
        "encoding": {
            "y": {
                "field": y,
                "type": "nominal",
                "sort": list(sort_y),
                "title": rows_title or None,
                "axis": axis,
            },
            "x": {
                "field": x,
                "type": "nominal",
                "sort": list(sort_x),
                "title": None,
                "axis": {**axis, "orient": "top", "labelAngle": -40},
            },
        },
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "@paper", "strokeWidth": 2, "cornerRadius": 3},
                "encoding": {"color": colour, "tooltip": tooltip},
            },
            {
                "mark": {"type": "text", "fontSize": 10},
                "encoding": {
                    "text": {**text, "type": "quantitative"},
                    "color": {"condition": far, "value": "@ink"},
                },
            },
        ],
    }
