"""A study's charts as pictures: SVG and PNG from the specifications that the page uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_ext._text import file_name
from tune_ext.benchmark import charts
from tune_ext.benchmark.analysis import Analysis
from tune_ext.benchmark.charts import Spec
from tune_ext.errors import MissingDependencyError

__all__ = ["draw", "picture_name", "pictures", "vl_convert"]


def vl_convert() -> Any:
    """The compiler of Vega-Lite.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import vl_convert as module
    except ImportError:
        raise MissingDependencyError(
            "vl_convert not installed: pip install 'tune-ext[compare]'"
        ) from None
    return module


def picture_name(analysis: Analysis, number: int) -> str:
    """The file name, without suffix, of a task's picture."""
    if len(analysis.tasks) == 1:
        return "comparison"
    label = analysis.tasks[number].label
    return f"comparison-{file_name(label)}"


def pictures(analysis: Analysis) -> dict[str, Spec]:
    """File name without suffix → the whole specification of a picture, on paper."""
    found = {}
    for number, task in enumerate(analysis.tasks):
        drawn = {c["id"]: c for c in charts.task_charts(task, analysis, number)}
        both = [drawn[f"task{number}-{n}"] for n in ("budget", "errors") if _has(drawn, number, n)]
        title = f"{analysis.title}: {task.label}"
        found[picture_name(analysis, number)] = _beside(both, analysis, title)
    if analysis.across is not None:
        known = {c["id"]: c for c in charts.across_charts(analysis.across, analysis)}
        head = [known[n] for n in ("across-budget", "across-regret") if n in known]
        found["comparison"] = _beside(head, analysis, analysis.title)
        for name in ("ranks", "places", "improvement"):
            if f"across-{name}" in known:
                found[f"comparison-{name}"] = _beside([known[f"across-{name}"]], analysis, "")
    return found


def _has(drawn: Mapping[str, Spec], number: int, name: str) -> bool:
    return f"task{number}-{name}" in drawn


def _beside(drawn: Sequence[Spec], analysis: Analysis, title: str) -> Spec:
    """Charts side by side, with their data and the colours of paper."""
    parts = []
    for chart in drawn:
        part = {k: v for k, v in chart["spec"].items() if k in _OF_A_PART}
        lines = "curves" in chart["data"]
        part["width"] = max(520 if lines else 380, chart["least"])
        part["title"] = {"text": chart["title"], "subtitle": chart["note"]}
        if lines and len(drawn) == 1:
            part["encoding"]["color"]["legend"] = {"title": None, "orient": "right"}
        rows = {name: _rows(chart, name) for name in chart["data"]}
        parts.append(_with_data(_still(part), rows))
    whole = {k: v for k, v in drawn[0]["spec"].items() if k in ("$schema", "config", "params")}
    whole["config"] = {**whole["config"], "background": "@paper"}
    if title:
        whole["title"] = {"text": title, "fontSize": 16, "offset": 14}
    whole |= {"padding": 16, "spacing": 40, "hconcat": parts}
    return charts.filled(whole, analysis.methods, charts.PAPER, dark=False)


_OF_A_PART = ("data", "transform", "height", "encoding", "layer")


def _still(part: Spec) -> Spec:
    """Without what follows a pointer, which paper has not."""
    layers = [layer for layer in part["layer"] if "params" not in layer]
    return {**part, "layer": layers}


def _rows(chart: Spec, name: str) -> list[dict[str, Any]]:
    data = chart["data"][name]
    if name == "curves":
        return charts.curve_rows(data, chart["scale"])
    rows: list[dict[str, Any]] = data
    return rows


def _with_data(value: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    """`value` with every {"name": …} of a data source replaced by its rows."""
    if isinstance(value, list):
        return [_with_data(v, rows) for v in value]
    if not isinstance(value, dict):
        return value
    named = value.get("data")
    inner = {k: _with_data(v, rows) for k, v in value.items()}
    if isinstance(named, dict) and named.get("name") in rows:
        inner["data"] = {"values": rows[named["name"]]}
    return inner


def draw(analysis: Analysis, directory: Path) -> list[Path]:
    """Write every picture as .png and .svg.

    Needs vl-convert-python, of the extra `compare`.

    Args:
        analysis: Of a study.
        directory: Where to.
    """
    converter = vl_convert()
    written = []
    for name, spec in pictures(analysis).items():
        png, svg = directory / f"{name}.png", directory / f"{name}.svg"
        png.write_bytes(converter.vegalite_to_png(spec, scale=1.5))
        svg.write_text(converter.vegalite_to_svg(spec), encoding="utf-8")
        written += [png, svg]
    return written
