"""Methods that give each architecture its own learning rate and initial weights.

Each is a method of the comparison with its searcher inside `ArchitectureScaledSearch`: it searches
the rate of the base network, and a trial gets the rate of its architecture, and the initial weights
of the theory (arXiv 2402.17440). The trials' configurations are what was trained, and so is the
recommendation: the scaled rate, "initialization" and the architecture. Where the rate is not
searched, the task's default rate is the base's.
"""

from __future__ import annotations

from dataclasses import replace

from tune_ext.benchmark._method import Method, Search, Setup
from tune_ext.benchmark.tasks import Task
from tune_ext.errors import InvalidValueError

__all__ = ["one_network", "random_initialized", "scaled_method"]

_WEIGHTS = {"initialization": "scaled"}


def one_network(task: Task) -> str | None:
    """None if the task searches an architecture, else why there is nothing to scale."""
    return None if task.searches_architecture else f"{task.name} trains one network only"


def scaled_method(name: str, method: Method) -> Method:
    """The same method with scaled rates and initial weights.

    Args:
        name: Of the method.
        method: One whose trials are recommended by their validation error.
    """

    def build(setup: Setup) -> Search:
        if method.build is None:
            raise InvalidValueError(f"method {name!r} has no search to scale")
        return _scaled(method.build(setup), setup.task)

    return replace(
        method,
        description=f"{name}; each architecture has its own rate and initial weights",
        build=build,
        family="ours",
        unsuited=lambda task: one_network(task) or method.unsuited(task),
        ours=True,
    )


def _scaled(search: Search, task: Task) -> Search:
    from tune_ext.benchmark._constants_search import ConstantsSearch
    from tune_ext.raytune.scaling import ArchitectureScaledSearch

    name = task.rate_name
    rate = {} if name in task.space else {name: task.default_config[name]}
    searcher = ArchitectureScaledSearch(
        ConstantsSearch(search.search_alg, {**rate, **_WEIGHTS}),
        task.build,
        task.example_input,
        base=task.default_config if task.rate_is_of_default else None,
        lr=name,
        on_error="raise",
    )
    return replace(search, search_alg=searcher)


def random_initialized(setup: Setup) -> Search:
    """Random search with the initial weights alone, to tell what they do from what rates do."""
    from tune_ext.benchmark.tune_parts import StreamSearch

    return Search(StreamSearch(setup, fixed=_WEIGHTS))
