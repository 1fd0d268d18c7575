"""A study's findings in words: who is best, what cannot be told apart, where ours lose.

The best of a task has the lowest interquartile mean, and so it is ranked among tasks: with fewer
than four seeds that is the mean, with more one diverged evaluation cannot decide it. A method is
told apart from the best of a task when Student's 95 % interval of their mean difference on paired
seeds leaves out zero; over tasks, when Wilcoxon's test of the tasks' interquartile means with
Holm's correction does at 5 %. Losses of this package's methods are told as plainly as wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tune_ext.benchmark.analysis import Across, Analysis, MethodResult, TaskAnalysis, is_ours
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.stats import PairedDifference, PairTest, paired_difference

__all__ = ["tell"]

_FEW_SEEDS = 5
_FEW_TASKS = 6  # with fewer no p-value of Wilcoxon's test is below 5 %
_ALPHA = 0.05


def tell(analysis: Analysis, records: Sequence[CellRecord], study: Mapping[str, Any]) -> Analysis:
    """The analysis with its sentences and conditions.

    Args:
        analysis: Without them.
        records: Those that it is of.
        study: What study.json holds.
    """
    tasks = tuple(replace(t, sentences=tuple(_task(t, analysis))) for t in analysis.tasks)
    across = analysis.across
    top = _across(across, tasks) if across else [s for t in tasks for s in t.sentences]
    unfinished = _unfinished(analysis, study)
    return replace(
        analysis,
        tasks=tasks,
        sentences=tuple([*top, *unfinished]),
        conditions=tuple(_conditions(analysis, records, study)),
        versions=tuple(_versions(records)),
    )


def _join(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# One task.


def _task(task: TaskAnalysis, analysis: Analysis) -> list[str]:
    ranked = [m for m in task.methods if m.scores]
    if not ranked:
        return ["No method has a test result."]
    best = ranked[0]
    if len(ranked) == 1:
        return [f"Only {best.method} has test results: {task.told(best.middle)} {_judged(task)}."]
    differences = {m.method: paired_difference(m.scores, best.scores) for m in ranked[1:]}
    said = [
        f"Lowest interquartile mean of the {_judged(task)}: {best.method}, "
        f"{task.told(best.middle)}; next is {ranked[1].method} with "
        f"{task.told(ranked[1].middle)}."
    ]
    said += _apart(task, best, differences)
    for place, own in enumerate(ranked):
        if own.ours and place:
            said.append(_own(task, own, place, ranked, differences[own.method], analysis))
    said += _failures(task)
    return said


def _judged(task: TaskAnalysis) -> str:
    """What methods are judged by: a table has no test images."""
    return "true error" if task.simulated else "test error"


def _apart(
    task: TaskAnalysis, best: MethodResult, differences: Mapping[str, PairedDifference]
) -> list[str]:
    seeds = len(task.seeds)
    if seeds < 2:
        return ["With one seed nothing can be said about noise: no method is told apart."]
    same = [m for m, d in differences.items() if not d.exceeds_noise]
    worse = [m for m, d in differences.items() if d.low > 0]
    said = []
    if same:
        said.append(f"These {seeds} seeds do not tell {_join(same)} apart from {best.method}.")
    if worse:
        said.append(f"Worse than {best.method} beyond the noise: {_join(worse)}.")
    better = [m for m, d in differences.items() if d.high < 0]
    if better:
        said.append(
            f"Beyond the noise {_join(better)} has the lower mean, though not the lower "
            "interquartile mean: look at the seeds."
        )
    if seeds < _FEW_SEEDS:
        said.append(f"{_count(seeds, 'seed')} are too few to tell close methods apart.")
    return said


def _own(
    task: TaskAnalysis,
    own: MethodResult,
    place: int,
    ranked: Sequence[MethodResult],
    difference: PairedDifference,
    analysis: Analysis,
) -> str:
    best = ranked[0]
    told = f"{own.method} is number {place + 1} of {len(ranked)}, {task.told(own.middle)}"
    points = " points" if task.percent else ""
    gap = f"{task.scale * (own.middle - best.middle):.3g}{points} behind {best.method}"
    if difference.seeds > 1:
        low, high = task.scale * difference.low, task.scale * difference.high
        noise = "beyond" if difference.exceeds_noise else "within"
        what = "mean difference, 95 % interval"
        gap += f" ({what} {low:+.2g} to {high:+.2g}, {noise} the noise)"
    spent = f"; it used {own.units:.3g} of the {task.budget:g} {analysis.budget_unit}"
    return f"{told}, {gap}{spent if own.units < 0.95 * task.budget else ''}."


def _failures(task: TaskAnalysis) -> list[str]:
    failed = [f"{m.method} in {m.failed} of {len(m.cells)}" for m in task.methods if m.failed]
    said = [f"Cells with failures: {', '.join(failed)}."] if failed else []
    fell = [f"{m.method} in {m.fell_back}" for m in task.methods if m.fell_back]
    if fell:
        said.append(
            f"Searches without any finite result, judged by the default's error: {', '.join(fell)}."
        )
    return said


# Several tasks.


def _across(across: Across, tasks: Sequence[TaskAnalysis]) -> list[str]:
    first, second = across.methods[:2]
    seeds = len({s for t in tasks for s in t.seeds})
    said = [
        f"Over {len(across.tasks)} tasks and {_count(seeds, 'seed')}, {first} has the lowest "
        f"interquartile mean of normalised regret, {_interval(across, first)}; next is {second}, "
        f"{_interval(across, second)}. A run of {first} is better than one of {second} with "
        f"probability {across.improvement[first][second].value:.2f}.",
        *_told_apart(across, first),
    ]
    said += [_own_across(across, name) for name in across.methods[1:] if is_ours(name)]
    failed: dict[str, list[int]] = {}
    for result in (m for t in tasks for m in t.methods):
        if result.failed:
            failed.setdefault(result.method, []).append(result.failed)
    if failed:
        counts = [f"{m} {sum(n)}" for m, n in failed.items()]
        said.append(f"Cells with failures: {', '.join(counts)}.")
    if across.left_out:
        left = [f"{m} ({why})" for m, why in across.left_out.items()]
        said.append(f"Not compared across tasks: {'; '.join(left)}.")
    return said


def _interval(across: Across, name: str) -> str:
    found = across.regret[name]
    if not math.isfinite(found.low):
        return f"{found.value:.3g}"
    return f"{found.value:.3g} (95 % interval {found.low:.3g} to {found.high:.3g})"


def _told_apart(across: Across, first: str) -> list[str]:
    if len(across.tasks) < _FEW_TASKS:
        return [
            f"{len(across.tasks)} tasks are too few for a test across tasks: no difference "
            "between methods can be significant at 5 %."
        ]
    said = []
    if across.ranks is not None:
        differ = "differ" if across.ranks.differ else "cannot be told apart"
        said.append(f"Friedman's test: the methods {differ} (p = {across.ranks.friedman_p:.2g}).")
    same = [n for n in across.methods[1:] if _pair(across, first, n).p_holm >= _ALPHA]
    rest = [n for n in across.methods[1:] if n not in same]
    if same:
        said.append(
            f"Across tasks {_join(same)} cannot be told apart from {first} (Wilcoxon, Holm, 5 %)."
        )
    if rest:
        said.append(f"Told apart from {first} across tasks: {_join(rest)}.")
    return said


def _pair(across: Across, a: str, b: str) -> PairTest:
    [pair] = [p for p in across.pairs if {p.a, p.b} == {a, b}]
    return pair


def _own_across(across: Across, name: str) -> str:
    best = across.methods[0]
    pair = _pair(across, name, best)
    wins, losses = (pair.wins, pair.losses) if pair.a == name else (pair.losses, pair.wins)
    last = [t for t in across.tasks if across.places[t][name] == max(across.places[t].values())]
    first = [t for t in across.tasks if across.places[t][name] == 1]
    told = (
        f"{name} is number {across.methods.index(name) + 1} of {len(across.methods)}, "
        f"{_interval(across, name)}: it beats {best} on {wins} and loses to it on {losses} of "
        f"{_count(len(across.tasks), 'task')} (p = {pair.p_holm:.2g})"
    )
    told += f"; best of all on {_join(first)}" if first else ""
    return told + (f"; last on {_join(last)}." if last else ".")


# What else must be known.


def _unfinished(analysis: Analysis, study: Mapping[str, Any]) -> list[str]:
    seeds, not_run = set(study.get("seeds", ())), set(study.get("unavailable", ()))
    tasks = {t.label: t for t in analysis.tasks}
    settings = study["settings"].get("tasks", ())
    labels = dict.fromkeys([*(t.get("label", t["name"]) for t in settings), *tasks])
    methods = dict.fromkeys([*study.get("methods", ()), *analysis.methods])
    lacking = 0
    for label in labels:
        known = tasks[label].methods if label in tasks else ()
        done = {m.method: {c.seed for c in m.cells} for m in known}
        for method in methods:
            if not {label, method, f"{method} on {label}"} & not_run:
                lacking += len(seeds - done.get(method, set()))
    if not lacking:
        return []
    return [
        f"The study is not finished: {_count(lacking, 'cell')} to go. Methods of one task may have "
        "different seeds so far: their own numbers are over the seeds that each has; differences, "
        "ranks and tests are over those that they have in common."
    ]


def _conditions(
    analysis: Analysis, records: Sequence[CellRecord], study: Mapping[str, Any]
) -> list[str]:
    said = []
    finals = study["settings"].get("final_seeds", 1)
    for task in analysis.tasks:
        options = ", ".join(f"{k} = {v}" for k, v in task.options.items()) or "the defaults"
        clock = "simulated clock" if task.simulated else "wall-clock"
        said.append(
            f"{task.label}: {task.budget:g} {analysis.budget_unit} for each search, over all its "
            f"trials; seeds {_seeds(task.seeds)}; {_count(task.workers, 'worker')}, {clock}. "
            f"Task {task.name}, options: {options}."
        )
    said.append(
        f"Each recommendation is trained at full length with {_count(finals, 'other seed')} and "
        "tested once each, outside the budget. A search without any finite result recommends the "
        "default, is judged by its error and counted as a failure; a cell whose final training "
        "has no result counts as the worst error that its task knows. Methods are ordered by the "
        "interquartile mean over seeds, which a diverged evaluation does not decide (below four "
        "seeds it is the mean), and that number of each task is what is ranked and what "
        "Wilcoxon's test compares. Intervals of single comparisons are Student's, of mean "
        "differences on paired seeds, and are not corrected for their number; tests across tasks "
        "are (Holm)."
    )
    if any(task.simulated for task in analysis.tasks):
        said.append(
            "On the simulated clock nothing is trained. The true error of a recommendation is "
            "looked up: the mean over the recorded trainings of its configuration. On published "
            "tables these are the trainings that the searches saw, one by one: whoever sees all "
            "of a configuration knows its true error, and whoever stops early chooses by a part."
        )
    choices = [
        f"{name} chooses by {METHODS[name].chooses} alone and sees no validation data"
        for name in analysis.methods
        if name in METHODS and METHODS[name].chooses is not None
    ]
    said.append(
        "; ".join([*choices, "the other searches"])
        + " recommend the trial with the lowest validation error at its last epoch."
    )
    return said


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _versions(records: Sequence[CellRecord]) -> list[str]:
    """Software, hardware and revisions: each combination once, how many cells it made."""
    found: dict[str, list[str]] = {}
    for record in records:
        known = record.provenance
        versions = ", ".join(f"{k} {v}" for k, v in known.get("versions", {}).items() if v)
        hardware = known.get("hardware", {})
        where = f"{hardware.get('processor')}, {hardware.get('cores')} cores"
        found.setdefault(f"{versions}; {where}", []).append(str(known.get("git")))
    return [
        f"{what}; {_count(len(gits), 'cell')}, revision {', '.join(sorted(set(gits)))}"
        for what, gits in found.items()
    ]
