"""What of a study could not run, told briefly: a line a method and reason, not one a pair."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["grouped", "pair"]

_NAMED = 3
"""Up to how many tasks are named; more are counted."""


def pair(method: str, label: str) -> str:
    """What `grouped` finds again: a method that cannot search one of the tasks."""
    return f"{method} on {label}"


def grouped(unavailable: Mapping[str, str]) -> list[tuple[str, str]]:
    """The same with the tasks of one method and reason together.

    Args:
        unavailable: Name → reason, where a name is a method, a task, or a `pair`.

    >>> grouped({"pbt on a": "a is looked up", "pbt on b": "b is looked up"})
    [('pbt on a, b', 'the task is looked up')]
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name, why in unavailable.items():
        method, _, label = name.partition(" on ")
        found.setdefault((method, _general(why, label) if label else why), []).append(label)
    return [(_name(method, labels), why) for (method, why), labels in found.items()]


def _general(why: str, label: str) -> str:
    """The reason without what differs from task to task: its name and its parameters."""
    if why.startswith(f"{label} "):
        why = f"the task{why[len(label) :]}"
    return re.sub(r" among \[[^\]]*\]$", "", why)


def _name(method: str, labels: list[str]) -> str:
    if labels == [""]:
        return method
    return pair(method, ", ".join(labels) if len(labels) <= _NAMED else f"{len(labels)} tasks")
