"""Which hyper-parameters mattered in a study: a page and a picture a task, from its records.

For the whole task, or for each value of a key of its configurations, such as the image size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tune_ext._text import file_name, markdown
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.study import recorded_task
from tune_ext.errors import MissingDependencyError, StateError, TuneExtError
from tune_ext.importance import Importance, importance
from tune_ext.importance_groups import Estimate, GroupedImportance, importance_by

__all__ = [
    "TaskImportance",
    "draw_groups",
    "groups_markdown",
    "importance_markdown",
    "task_importance",
    "write_importance",
]

_LEAST_TRIALS = 20
_MOST_PAIRS = 10
"""In the table; the picture has all of them."""

_STYLE = {
    "svg.hashsalt": "tune-ext",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may have dollars in it
}


@dataclass(frozen=True)
class TaskImportance:
    """What a study's trials say about one task's parameters.

    Args:
        label: What the study calls the task.
        epochs: The length of the trials that were looked at.
        methods: The methods that they come from.
        problem: Why there is no answer, in words; empty where there is one.
        found: The answer.
        objective: What is explained: the error, or its logarithm.
        groups: The answer where it is by group.
        ended: Whether some trials ended by themselves before that length.
    """

    label: str
    epochs: int
    methods: tuple[str, ...]
    problem: str = ""
    found: Importance | None = None
    objective: str = "validation error"
    groups: GroupedImportance | None = None
    ended: bool = False

    def sentences(self) -> list[str]:
        """What it is computed from, and how far it can be trusted."""
        if self.groups is not None:
            told = (
                f"{self.groups.key} = {group}: {self._told(found)}"
                for group, found in self.groups.groups.items()
            )
            return [f"The {self.objective}, for each {self.groups.key}.", *told]
        if self.found is None:
            return [f"No importance of {self.label}: {self.problem}."]
        return [f"The {self.objective}, from {self._told(self.found)}"]

    def _told(self, found: Importance) -> str:
        epochs = f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        told = f"{found.trials} trials of {', '.join(self.methods)} that trained {epochs}"
        told += " or ended before by themselves" * self.ended
        if found.failed:
            told += f", {found.failed} of which diverged and count as the worst of the others"
        r2 = f"R² {found.r2:.2f} on trials that its trees have not seen"
        if not found.r2 >= 0.5:
            r2 += ": too little for the effects to say much"
        return f"{told}. The forest reaches {r2}."


def task_importance(
    label: str,
    records: Sequence[CellRecord],
    *,
    n_trees: int = 64,
    seed: int = 0,
    by: str | None = None,
    resamples: int = 100,
    modules: Collection[str] = (),
) -> TaskImportance:
    """Importance of a task's parameters for the validation error at full length.

    Trials of all methods and seeds count alike. Of these only those count that trained as
    long as the longest of the task (at most its full length), so that lengths are not taken
    for configurations, and those that diverged before or ended by themselves. Of a task with
    image sizes, only those of the full size count, unless it is by them. Trials that changed their
    configuration in mid-training (their cell recommends a schedule) have no one
    configuration and are left out.

    Errors that are no fractions, such as mean squared errors, are taken as logarithms if all
    are positive: a few trials that went wrong would have all of the variance otherwise. (On
    1000 random configurations of each of the four FCNet tables that raises the forest's R² on
    unseen trials from between -0.08 and 0.23 to between 0.73 and 0.84.)

    Args:
        label: What the study calls the task.
        records: Of this task alone; one or more.
        n_trees: Of the forest.
        seed: Of the forest.
        by: A key of the configurations, such as "image_size": importances for each of its values.
            Trials that do not say it have the task's default.
        resamples: Of the trials of each group, for intervals; see `importance_by`.
        modules: Your own, from which a recorded task may come; see `study.check_module`.
    """
    usable = [r for r in records if "schedule" not in r.recommendation]
    trials = [(r.method, t) for r in usable for t in r.trials]
    full = max((r.max_epochs for r in usable), default=0) or math.inf  # version 1 knows none
    longest = max((t["epochs"] for _, t in trials if t["epochs"] <= full), default=0)
    first = records[0]
    task = recorded_task(first.task, modules)
    kept = [
        (m, t)
        for m, t in trials
        if (t["epochs"] == longest or t.get("validation_error") is None or t.get("ended"))
        and (by is not None or _at_full_size(t["config"], task.image_sizes))
    ]
    methods = tuple(dict.fromkeys(m for m, _ in kept))
    known = sum(t.get("validation_error") is not None for _, t in kept)
    if known < _LEAST_TRIALS:
        why = f"{known} of its trials trained {longest} epochs, {_LEAST_TRIALS} are needed"
        return TaskImportance(label, longest, methods, why)
    values, objective = _objective([t.get("validation_error") for _, t in kept], first)
    configs = [t["config"] for _, t in kept]
    found: Importance | None = None
    groups: GroupedImportance | None = None
    settings: dict[str, Any] = {"n_trees": n_trees, "seed": seed}
    try:
        if by is None:
            found = importance(task.space, configs, values, **settings)
        else:
            usual = {by: task.default_config[by]} if by in task.default_config else {}
            told = [{**usual, **config} for config in configs]
            settings |= {"resamples": resamples, "pairs": False}
            groups = importance_by(task.space, told, values, group_by=by, **settings)
    except MissingDependencyError:
        raise
    except TuneExtError as error:  # one task's oddity keeps nobody from the others
        return TaskImportance(label, longest, methods, str(error))
    ended = any(t.get("ended") for _, t in kept)
    return TaskImportance(label, longest, methods, "", found, objective, groups, ended)


def _at_full_size(config: Mapping[str, Any], sizes: Sequence[int]) -> bool:
    return not sizes or config.get("image_size", sizes[-1]) == sizes[-1]


def _objective(
    errors: Sequence[float | None], record: CellRecord
) -> tuple[list[float | None], str]:
    """What to explain, and what it is called."""
    called = "validation error" if record.error_name == "error" else record.error_name
    if record.percent or any(e is not None and e <= 0 for e in errors):
        return list(errors), called
    return [None if e is None else math.log(e) for e in errors], f"logarithm of the {called}"


def importance_markdown(title: str, parts: Sequence[TaskImportance], pictures: bool = True) -> str:
    """The page in Markdown.

    Args:
        title: Of the study.
        parts: One a task.
        pictures: Whether to show the pictures that `write_importance` puts beside it.
    """
    lines = [
        f"# What mattered: {markdown(title)}",
        "",
        "Shares of the variance of the error over the whole search space, by "
        "functional ANOVA of a random forest (Hutter, Hoos and Leyton-Brown 2014): what a "
        "parameter explains alone, and what a pair (a × b) explains beyond both. ± is the "
        "standard deviation over the trees. Much of the space may be of no use to anyone: a "
        "parameter that decides whether training diverges is important here, even if each "
        "sensible value of it is as good as another.",
        "",
    ]
    for part in parts:
        lines += [f"## {markdown(part.label)}", "", *_list(part.sentences()), ""]
        picture = ["", f"![Importance of the parameters]({_name(part, parts)}.svg)", ""]
        if part.groups is not None:
            lines += [*groups_markdown(part.groups), *(picture if pictures else [""])]
        if part.found is None:
            continue
        lines += ["| effect | share, % |", "| --- | --- |"]
        lines += [
            f"| {markdown(what, cell=True)} | {100 * mean:.1f} ± {100 * sd:.1f} |"
            for what, mean, sd in _rows(part.found)
        ]
        hidden = len(part.found.pairs) - _MOST_PAIRS
        if hidden > 0:
            lines += ["", f"{hidden} pair{'s' * (hidden > 1)} with less not shown."]
        lines += picture if pictures else [""]
    return "\n".join(lines).rstrip() + "\n"


def _list(sentences: Sequence[str]) -> list[str]:
    told = [markdown(sentence) for sentence in sentences]
    return told if len(told) < 2 else [f"* {sentence}" for sentence in told]


def groups_markdown(found: GroupedImportance) -> list[str]:
    """A table of main effects by group, and what is the same in them, as lines of Markdown.

    Args:
        found: Of one task.
    """
    keys = list(found.groups)
    heads = [markdown(f"{found.key} {key}", cell=True) for key in keys]
    lines = [f"| share, % | {' | '.join(heads)} |"]
    lines += ["| --- |" + " --- |" * len(keys)]
    for name, _ in found.to_rows():
        cells = [_told(found.share(key, name), 100, 1) for key in keys]
        lines.append(f"| {markdown(name, cell=True)} | {' | '.join(cells)} |")
    lines.append("")
    for a, b in itertools.combinations(keys, 2):
        rank = _told(found.rank_correlation(a, b), 1, 2)
        apart = [n for n in found.names if found.difference(n, a, b).excludes_zero]
        told = ", ".join(f"{n} ({_told(found.difference(n, a, b), 100, 1)})" for n in apart)
        lines.append(
            f"* {markdown(f'{found.key} {a} and {b}')}: rank correlation of the shares {rank}; "
            f"that differ, in points: {markdown(told) or 'none'}."
        )
    return lines


def _told(found: Estimate, scale: float, digits: int) -> str:
    value, low, high = (f"{scale * part:.{digits}f}" for part in found)
    return value if math.isnan(found.low) else f"{value} [{low}, {high}]"


def _rows(found: Importance) -> list[tuple[str, float, float]]:
    """All parameters and the largest pairs, the largest effect first."""
    shown = {f"{a} × {b}" for a, b in list(found.pairs)[:_MOST_PAIRS]} | set(found.main)
    return [row for row in found.to_rows() if row[0] in shown]


def _name(part: TaskImportance, parts: Sequence[TaskImportance]) -> str:
    stem = _stem(None if part.groups is None else part.groups.key)
    return stem if len(parts) == 1 else f"{stem}-{file_name(part.label)}"


def _stem(by: str | None) -> str:
    return "importance" if by is None else f"importance-by-{file_name(by)}"


def write_importance(
    store: RecordStore,
    by: str | None = None,
    *,
    resamples: int = 100,
    modules: Collection[str] = (),
) -> list[Path]:
    """Write importance.md, and importance*.png and .svg for each task, beside the records.

    Args:
        store: The study's directory.
        by: See `task_importance`; the files are then named after it.
        resamples: See `task_importance`.
        modules: See `task_importance`.

    Returns:
        The files that were written, the page first.

    Raises:
        StateError: There are no records, or they are damaged.
        MissingDependencyError: scikit-learn is not installed.
    """
    study = store.load_settings()
    groups: dict[str, list[CellRecord]] = {}
    for record in store.load():
        groups.setdefault(record.label, []).append(record)
    if not groups:
        raise StateError(f"{store.path} holds no finished cell yet")
    parts = [
        task_importance(label, group, by=by, resamples=resamples, modules=modules)
        for label, group in groups.items()
    ]
    page = store.directory / f"{_stem(by)}.md"
    page.write_text(importance_markdown(str(study["title"]), parts), encoding="utf-8")
    written = [page]
    for part in parts:
        if part.found is not None:
            written += _draw(part.label, part.found, store.directory / _name(part, parts))
        if part.groups is not None:
            written += draw_groups(part.label, part.groups, store.directory / _name(part, parts))
    return written


def _draw(label: str, found: Importance, path: Path) -> list[Path]:
    """The bars and the heat map; needs matplotlib, of the extra `compare`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(found.main)
    size = max(2.4, 0.42 * len(names) + 1.4)
    width = size + 1 if found.pairs else 0
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5 + width, size), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"Importance of the parameters: {label}")
        if found.pairs:
            left, right = figure.subplots(1, 2, width_ratios=(5, width))
            _heat_map(figure, right, found, names)
        else:
            left = figure.subplots()
        _bars(left, found, names)
        return _save(figure, path)


_COLOURS = ("#56B4E9", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")


def draw_groups(label: str, found: GroupedImportance, path: Path) -> list[Path]:
    """Main effects by group, side by side, as a .png and a .svg; needs matplotlib.

    Args:
        label: What the title says.
        found: What is drawn.
        path: Where to, without suffix.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name, _ in found.to_rows()]
    keys = list(found.groups)
    width = 0.8 / len(keys)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(max(5.0, 0.75 * len(names) + 1.5), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for place, key in enumerate(keys):
            shares = [found.share(key, name) for name in names]
            value = 100 * np.array([s.value for s in shares])
            ends = 100 * np.array([[s.low, s.high] for s in shares]).T
            # The interval is of the resamples: it need not hold the value.
            error = np.nan_to_num(np.maximum([value - ends[0], ends[1] - value], 0))
            at = np.arange(len(names)) + (place - (len(keys) - 1) / 2) * width
            colour = _COLOURS[place % len(_COLOURS)]
            axes.bar(at, value, width, yerr=error, color=colour, capsize=2, label=str(key))
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of the variance, %")
        axes.set_title(f"Importance by {found.key}: {label} (95 % intervals)", fontsize=10)
        axes.legend(title=found.key)
        axes.grid(alpha=0.25, axis="y")
        return _save(figure, path)


def _save(figure: Any, path: Path) -> list[Path]:
    written = []
    for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
        written.append(path.with_suffix(suffix))
        figure.savefig(written[-1], dpi=130, metadata=metadata)
    return written


def _bars(axes: Any, found: Importance, names: Sequence[str]) -> None:
    mean = np.array([100 * found.main[n].mean for n in names])
    sd = np.array([100 * found.main[n].sd for n in names])
    # No share is negative, so no whisker is.
    axes.barh(names, mean, xerr=[np.minimum(sd, mean), sd], color="#0072B2", capsize=3)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the variance, %")
    axes.set_title("Alone (bar ± standard deviation over the trees)", fontsize=9)
    axes.grid(alpha=0.25, axis="x")


def _heat_map(figure: Any, axes: Any, found: Importance, names: Sequence[str]) -> None:
    table = np.full((len(names), len(names)), np.nan)
    for (a, b), effect in found.pairs.items():
        # Both in the order of the bars; the lower triangle says it all.
        j, i = sorted((names.index(a), names.index(b)))
        table[i, j] = 100 * effect.mean
    table = table[1:, :-1]
    most = max(float(np.nanmax(table)), 1.0)
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=most)
    axes.set_xticks(range(len(names) - 1), names[:-1], rotation=90)
    axes.set_yticks(range(len(names) - 1), names[1:])
    axes.set_title("Pairs: beyond both alone", fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the variance, %")
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if value < 0.6 * most else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=7)
