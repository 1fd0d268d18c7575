"""Architecture-aware initialisation and learning rates, for any torch module.

A learning rate that was found on one small network is turned into that of another architecture,
and weights are drawn so that features keep their size in a chain, and grow less where branches are
added up. Both follow from the graph of the network alone: no training, no data.

>>> from tune_ext import scaling
>>> small, large = scaling.plan_of_dag("2"), scaling.plan_of_dag("2_02_002")
>>> large.learning_rate(0.3, base=small)  # 3 and 5 layers: 0.3·(3/5)^1.5
0.139...

Source: Chen, Wu, Wang, Hanin, "Principled architecture-aware scaling of hyperparameters" (ICLR
2024, arXiv 2402.17440), equations 4, 8, 9 and 12. What is ours: any module instead of two families
of networks; moments of depths without listing paths; the aggregate "mean"; kernels of several
sizes. See docs/decisions/014-how-an-architecture-is-read.md for the choices.

The theory assumes ReLU, SGD, early training, hidden layers of one width, and no normalisation.
A network that is different gets a `ScalingWarning` that says what is then known.
"""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any, Literal

from tune_ext._assumptions import ScalingWarning
from tune_ext._graph import Aggregate, Convention, Layer, NetworkGraph, Node, from_dag
from tune_ext._moments import PathMoments
from tune_ext._plan import DEFAULT_AGGREGATE, LayerPlan, Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tune_ext._coordinate_check import coordinate_check
    from tune_ext._coordinate_result import CoordinateCheck

__all__ = [
    "DEFAULT_AGGREGATE",
    "CoordinateCheck",
    "Layer",
    "LayerPlan",
    "NetworkGraph",
    "Node",
    "PathMoments",
    "Plan",
    "ScalingWarning",
    "coordinate_check",
    "plan",
    "plan_of_dag",
    "plan_of_graph",
]


def plan(
    model: nn.Module,
    example_input: Tensor | tuple[Any, ...] | dict[str, Any],
    *,
    aggregate: Aggregate = DEFAULT_AGGREGATE,
    in_degree: Convention = "target",
    fan: Literal["in", "out"] = "in",
) -> Plan:
    """Read a module's graph and plan its initialisation and learning rate.

    The module is traced by torch.export on the meta device: no data is computed, no weight
    copied, and the module (its mode, buffers and random state too) stays as it is. It may
    be on the meta device itself.

    Args:
        model: The network.
        example_input: What it is called with: a tensor (batch first), a tuple of arguments or a
            dictionary of keyword arguments. Shapes and types matter, values do not.
        aggregate: How the depths of paths are added up. "sum": every path counts 1, as
            published. "mean": each is weighted by 1/d_in along it. "gain": by the part of the
            second moment that it passes on at initialisation.
        in_degree: The d_in of a layer is that of the addition that it enters ("target", as
            in the paper's proof) or leaves ("source", as in its code; for comparison).
            "stream": of all additions that follow one another, so that features grow less in
            residual blocks without normalisation (ours).
        fan: Weights have a variance of C/fan_in ("in") or C/fan_out ("out", for comparison).

    Raises:
        UntraceableModelError: torch cannot trace the module. `plan_of_graph` takes a graph
            written by hand.
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: An option is not known.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> print(plan(model, torch.zeros(1, 8)))
    layer     kind    kernel  fan  d_in  std      paths  with
    0.weight  linear  -       8    1     0.5      1      relu
    2.weight  linear  -       32   1     0.04419  1      read-out
    <BLANKLINE>
    paths        1
    depth        2 layers on average
    sum of L^3   8
    kernel size  1
    factor       1.837 of the rate of one path of three layers
    """
    from tune_ext._trace import trace

    graph = trace(model, example_input)
    return _with_warnings(Plan(graph, aggregate, in_degree, fan, weakref.ref(model)))


def plan_of_graph(
    graph: NetworkGraph,
    *,
    aggregate: Aggregate = DEFAULT_AGGREGATE,
    in_degree: Convention = "target",
    fan: Literal["in", "out"] = "in",
) -> Plan:
    """Plan a network whose graph is written by hand, for what cannot be traced.

    Args:
        graph: The network.
        aggregate: As in `plan`.
        in_degree: As in `plan`.
        fan: As in `plan`.

    >>> stem = Layer.of("stem.weight", (32, 8), bias="stem.bias", activation="relu")
    >>> branch = Layer.of("branch.weight", (32, 32), activation="relu")
    >>> readout = Layer.of("readout.weight", (4, 32))
    >>> nodes = (
    ...     Node("input"),
    ...     Node("layer", (0,), stem),
    ...     Node("layer", (1,), branch),
    ...     Node("add", (1, 2)),
    ...     Node("layer", (3,), readout),
    ... )
    >>> [one.in_degree for one in plan_of_graph(NetworkGraph(nodes, output=4)).layers]
    [1, 2, 1]
    """
    return _with_warnings(Plan(graph, aggregate, in_degree, fan))


def _with_warnings(made: Plan) -> Plan:
    for said in made.warnings:
        warnings.warn(said, ScalingWarning, stacklevel=3)
    return made


def plan_of_dag(
    dag: str,
    *,
    inputs: int = 1,
    width: int = 64,
    classes: int = 10,
    kernel_size: int | None = None,
    activation: str = "relu",
    norm: bool = False,
    bias: bool = True,
    aggregate: Aggregate = DEFAULT_AGGREGATE,
    in_degree: Convention = "target",
    fan: Literal["in", "out"] = "in",
) -> Plan:
    """Plan a `tune_ext.models.DagMLP` or `DagCNN` from its string, without building it.

    Learning rates depend on the string, the kernel size and nothing else; initialisation on
    the widths as well.

    Args:
        dag: "2_02_002", as for `tune_ext.models.DagMLP`.
        inputs: Values of an example, or channels of an image.
        width: Units or channels of the hidden layers.
        classes: Values of an answer.
        kernel_size: Side of the kernels of a `DagCNN`; None: a `DagMLP`.
        activation: What follows the hidden layers.
        norm: Whether they are normalised.
        bias: Whether layers have biases.
        aggregate: As in `plan`.
        in_degree: As in `plan`.
        fan: As in `plan`.

    Raises:
        InvalidValueError: The string is no such graph, or no path leads through it.

    >>> plan_of_dag("2_12_002", aggregate="sum").moments
    PathMoments(count=2, first=8, second=34, third=152)
    """
    graph = from_dag(
        dag,
        inputs=inputs,
        width=width,
        classes=classes,
        kernel_size=kernel_size,
        activation=activation,
        norm=norm,
        bias=bias,
    )
    return _with_warnings(Plan(graph, aggregate, in_degree, fan))


def __getattr__(name: str) -> Any:
    """The coordinate check, imported when it is first used: it starts torch."""
    if name == "coordinate_check":
        from tune_ext._coordinate_check import coordinate_check

        return coordinate_check
    if name == "CoordinateCheck":
        from tune_ext._coordinate_result import CoordinateCheck

        return CoordinateCheck
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
