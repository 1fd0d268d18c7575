"""Directed acyclic graphs written as strings, read and checked (pure Python).

Two notations of the field, each with one node a group and one entry for every earlier node:

* "2_02_002" (arXiv 2402.17440): the character k of group j is the edge from node k to node
  j + 1; 0 is no edge, 1 the identity, 2 a weighted layer;
* "|nor_conv_3x3~0|+|none~0|skip_connect~1|+…" (NAS-Bench-201, arXiv 2001.00326): operations by
  name, with the node that each one reads.

An edge is dead when no path from the first node to the last one runs through it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tune_ext._checks import check_choice
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["CELL_OPERATIONS", "NOTHING", "alive", "parse_cell", "parse_dag"]

CELL_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operations of a NAS-Bench-201 cell, in their published order."""

NOTHING = ("0", "none")
"""What stands for an edge that is not there, in either notation."""


def parse_dag(dag: object) -> tuple[str, ...]:
    """The groups of a string such as "2_02_002"; an error that says what is wrong with it.

    >>> parse_dag("2_02_002")
    ('2', '02', '002')
    """
    if not isinstance(dag, str):
        raise InvalidTypeError(f'dag must be a string such as "2_02_002", got {dag!r}')
    groups = tuple(dag.split("_"))
    for j, group in enumerate(groups, start=1):
        if len(group) != j or not set(group) <= set("012"):
            raise InvalidValueError(
                f"dag {dag!r}: group {j} must have {j} of the characters 0 (no edge), "
                f"1 (identity) and 2 (weighted layer), got {group!r}"
            )
    _check_connected("dag", dag, groups)
    return groups


def parse_cell(cell: object) -> tuple[tuple[str, ...], ...]:
    """The operations into each node of a NAS-Bench-201 cell, by the node that they read.

    >>> parse_cell("|nor_conv_3x3~0|+|none~0|skip_connect~1|")
    (('nor_conv_3x3',), ('none', 'skip_connect'))
    """
    if not isinstance(cell, str):
        raise InvalidTypeError(
            'cell must be a string such as "|nor_conv_3x3~0|+|none~0|skip_connect~1|", '
            f"got {cell!r}"
        )
    nodes = tuple(_parse_node(cell, j, text) for j, text in enumerate(cell.split("+"), start=1))
    _check_connected("cell", cell, nodes)
    return nodes


def _parse_node(cell: str, j: int, text: str) -> tuple[str, ...]:
    """One node of a cell, "|operation~source|…"."""
    entries = re.findall(r"([^|~]+)~(\d+)", text)
    if text != "|" + "".join(f"{name}~{source}|" for name, source in entries):
        raise InvalidValueError(
            f"cell {cell!r}: node {j} must read like '|nor_conv_3x3~0|skip_connect~1|', "
            f"got {text!r}"
        )
    for name, _ in entries:
        check_choice(f"cell {cell!r}: an operation", name, CELL_OPERATIONS)
    if [int(source) for _, source in entries] != list(range(j)):
        raise InvalidValueError(
            f"cell {cell!r}: node {j} must name an operation for each of the nodes 0 to {j - 1} "
            f"in this order ('none' where there is no edge), got {text!r}"
        )
    return tuple(name for name, _ in entries)


def _check_connected(what: str, text: str, groups: Sequence[Sequence[str]]) -> None:
    if not any(any(group) for group in alive(groups)):
        raise InvalidValueError(
            f"{what} {text!r}: no path leads from its first node to its last one, so that its "
            "output does not depend on its input"
        )


def alive(groups: Sequence[Sequence[str]]) -> tuple[tuple[bool, ...], ...]:
    """Which edges lie on a path from the first node to the last one.

    >>> alive(["2", "00", "202"])
    ((False,), (False, False), (True, False, False))
    """
    count = len(groups) + 1
    reached = [True] + [False] * len(groups)
    for j, group in enumerate(groups, start=1):
        reached[j] = any(reached[k] and edge not in NOTHING for k, edge in enumerate(group))
    needed = [False] * len(groups) + [True]
    for j in range(count - 1, 0, -1):
        for k, edge in enumerate(groups[j - 1]):
            needed[k] |= needed[j] and edge not in NOTHING
    return tuple(
        tuple(reached[k] and needed[j] and edge not in NOTHING for k, edge in enumerate(group))
        for j, group in enumerate(groups, start=1)
    )
