"""Methods that search on small images first: `random+growth`, `tpe+growth` and their like.

Each is a searcher of the comparison inside `ImageGrowthSearch`: the evaluations of the budget in
the published proportions of 750, 500 and 250 (arXiv 1807.07362) over the task's image sizes, the
smallest first. It has as many as the same method without growing sizes, and recommends from the
full size only. It needs a budget that pays for some of them at every size; count it in
"evaluations", as trials on small images that end early leave epochs over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tune_ext.benchmark import _models
from tune_ext.benchmark._method import Method, Search, Setup
from tune_ext.benchmark.tasks import Task

__all__ = ["GROWN", "growth_method", "no_sizes", "stage_evaluations"]

GROWN: Mapping[str, Callable[[Setup], int]] = {
    "random": lambda setup: setup.trainings,
    "tpe": lambda setup: _models.RANDOM_TRIALS,
    "nsga2": lambda setup: min(50, max(4, setup.trainings // _models.GENERATIONS)),
    "smac": lambda setup: 0,
}
"""How many of the shared random configurations each begins with: as many as without growth."""

_KEY = "image_size"


def stage_evaluations(total: int, stages: int) -> list[int]:
    """How many evaluations each image size has, the smallest first.

    Args:
        total: Of all sizes.
        stages: How many sizes there are; with two 2:1, with three 3:2:1, and so on.

    >>> stage_evaluations(1500, 3), stage_evaluations(48, 3), stage_evaluations(10, 2)
    ([750, 500, 250], [24, 16, 8], [7, 3])
    >>> stage_evaluations(2, 3)  # the full size has one at least
    [1, 0, 1]
    """
    shares = list(range(stages, 0, -1))
    last = max(1, round(total / sum(shares)))
    rest = shares[:-1]
    ends = [round((total - last) * sum(rest[:n]) / max(1, sum(rest))) for n in range(stages)]
    return [*(end - start for start, end in itertools.pairwise(ends)), last]


def no_sizes(task: Task) -> str | None:
    """None if the task's configurations may say an image size, else why it is unsuited."""
    if len(task.image_sizes) > 1:
        return None
    return f"{task.name} has no image size in its configurations that could grow"


def growth_method(name: str, method: Method) -> Method:
    """The same method, on small images first.

    Args:
        name: Of the method; one of `GROWN`.
        method: As it is without growing sizes.
    """
    return Method(
        f"{name}, on small images first",
        lambda setup: _build(name, setup),
        "ours",
        needs=method.needs,
        unsuited=lambda task: no_sizes(task) or method.unsuited(task),
        whole=True,
        ours=True,
    )


def _build(name: str, setup: Setup) -> Search:
    from tune_ext.raytune.image_growth import ImageGrowthSearch

    task = setup.task
    counts = stage_evaluations(setup.trainings, len(task.image_sizes))
    sizes = [(size, n) for size, n in zip(task.image_sizes, counts, strict=True) if n]
    searcher = ImageGrowthSearch(
        name,
        sizes,
        space=task.space,
        metric=task.metric,
        mode=task.mode,
        points_to_evaluate=list(_first(setup, min(GROWN[name](setup), sizes[0][1]))),
        size_key=_KEY,
        seed=setup.derived_seed("growth"),
    )
    return Search(
        _models.limited(setup, searcher),
        answer=lambda: _answer(searcher, task),
        details=lambda: {"stages": searcher.explain().to_rows()},
    )


def _first(setup: Setup, count: int) -> Sequence[dict[str, Any]]:
    return list(itertools.islice(setup.configurations(), count))


def _answer(searcher: Any, task: Task) -> dict[str, Any] | None:
    """The best at the full size; before there is any, the best so far, untried at that size.

    Nothing that was only seen on small images is ever told as reached: before any result, it is
    the default. None is an end without any result.
    """
    best = searcher.best_config
    if best is None:
        rows = searcher.explain().to_rows()
        if all(row["ended"] >= row["evaluations"] for row in rows):
            return None
        best = task.default_config
    return {**best, _KEY: task.image_sizes[-1]}
