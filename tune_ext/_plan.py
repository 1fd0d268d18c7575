"""The plan of a network: standard deviations and learning rates from its graph.

Notation (Chen, Wu, Wang, Hanin, "Principled architecture-aware scaling of hyperparameters", ICLR
2024, arXiv 2402.17440):

=======  =====================================================================
d_in     summands that meet where a layer's output goes (`tune_ext._graph.in_degree`)
C        2/d_in: a layer's weights are N(0, C/fan), the read-out's N(0, C/fan²)
L_p      weighted layers on the path p
q        kernel size
η        c·(Σ_p L_p³)^(−1/2)/q, the learning rate; c is found on a small network
=======  =====================================================================
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from tune_ext._assumptions import broken_assumptions
from tune_ext._checks import check_choice, check_positive, check_state
from tune_ext._explanation import Explanation
from tune_ext._graph import (
    Aggregate,
    Convention,
    Layer,
    NetworkGraph,
    Node,
)
from tune_ext._moments import PathMoments, short
from tune_ext._paths import AGGREGATES, CONVENTIONS, in_degree, moments, readouts, visits
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tune_ext._initialize import Initialization

__all__ = ["DEFAULT_AGGREGATE", "LayerPlan", "Plan"]

#: How paths are added up where the caller does not say.
DEFAULT_AGGREGATE: Aggregate = "mean"
_VERSION = 1
#: The published base: one path of stem, one hidden layer and read-out.
_BASE = PathMoments(1, 3, 9, 27)


@dataclass(frozen=True)
class LayerPlan:
    """What the plan says of one weight.

    Args:
        layer: The layer.
        in_degree: d_in; the largest one where layers share the weight.
        fan: What the variance is divided by.
        std: Standard deviation of the initial weights.
        readout: Whether paths end here (mean-field: N(0, C/fan²)).
        paths: How many paths to the output go through it, as a share of all in [0, 1].
    """

    layer: Layer
    in_degree: int
    fan: int
    std: float
    readout: bool
    paths: float


@dataclass(frozen=True)
class Plan:
    """How to initialise a network and how to scale its learning rate.

    `tune_ext.scaling.plan` makes one from a module, `plan_of_dag` from a string, `plan_of_graph`
    from a graph. `print(plan)` shows all of it.

    Args:
        graph: The network.
        aggregate: How paths are added up: "sum", "mean" or "gain".
        in_degree: Which addition counts: "target", "source" or "stream".
        fan: "in" or "out".
    """

    graph: NetworkGraph
    aggregate: Aggregate = DEFAULT_AGGREGATE
    in_degree: Convention = "target"
    fan: Literal["in", "out"] = "in"
    _model: weakref.ref[nn.Module] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.graph, NetworkGraph):
            raise InvalidTypeError(f"graph must be a NetworkGraph, got {self.graph!r:.80}")
        check_choice("aggregate", self.aggregate, AGGREGATES)
        check_choice("in_degree", self.in_degree, CONVENTIONS)
        check_choice("fan", self.fan, ("in", "out"))

    def __getstate__(self) -> dict[str, Any]:
        names = ("graph", "aggregate", "in_degree", "fan")  # a weak reference cannot be pickled
        return {name: getattr(self, name) for name in names}

    @cached_property
    def moments(self) -> PathMoments:
        """The moments of the depths of all paths, exactly."""
        return moments(self.graph, self.aggregate, self.in_degree)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What breaks the theory's assumptions, and what is then known."""
        return broken_assumptions(self.graph, self.in_degree)

    @cached_property
    def layers(self) -> tuple[LayerPlan, ...]:
        """One entry for each weight, in the order of the graph."""
        last = set(readouts(self.graph))
        uses: dict[str, list[int]] = {}
        for index in self.graph.layers:
            uses.setdefault(self.graph.layer(index).name, []).append(index)
        return tuple(self._layer_plan(same, last) for same in uses.values())

    @cached_property
    def _visits(self) -> dict[int, int | Fraction]:
        return visits(self.graph, self.aggregate, self.in_degree)

    def _layer_plan(self, same: list[int], last: set[int]) -> LayerPlan:
        layer = self.graph.layer(same[0])
        fan = layer.fan_in if self.fan == "in" else layer.fan_out
        readout = last.issuperset(same)
        degree = max(in_degree(self.graph, index, self.in_degree) for index in same)
        if readout and self.in_degree == "source":
            degree = 1  # as in the published code, whatever is added up before
        std = math.sqrt(2 / degree) / (fan if readout else math.sqrt(fan))
        weight = Fraction(max(self._visits[index] for index in same))
        share = float(weight / self.moments.count) if self.moments.count else 0.0
        return LayerPlan(layer, degree, fan, std, readout, share)

    @cached_property
    def kernel_size(self) -> float:
        """The q of the network: 1 for linear layers, the kernel size if all kernels have one.

        A kernel's size is the geometric mean of its sides, a linear layer's 1. Where they differ, q
        is the root of their mean square over all (path, layer on it), with the weights of the
        paths, read-outs left out. That is ours; the published rule is for one size and a linear
        read-out. It keeps η²q²·Σ_p L_p³ constant, a mean squared change of the features, and
        a layer's part of that grows with the positions of its own kernel.
        """
        ends = {one.layer.name for one in self.layers if one.readout}
        names = {one.layer.name for one in self.layers}
        weights: dict[float, Fraction] = {}
        for index, weight in self._visits.items():
            layer = self.graph.layer(index)
            if weight and (layer.name not in ends or ends == names):
                size = _kernel_size(layer)
                weights[size] = weights.get(size, Fraction(0)) + weight
        if len(weights) < 2:
            return next(iter(weights), 1.0)
        total = sum(weights.values())
        return math.sqrt(sum(size**2 * float(part / total) for size, part in weights.items()))

    def factor(self, base: Plan | None = None) -> float:
        """The learning rate of this network over that of the base.

        Args:
            base: The plan of the network on which a rate was found. None: the published base,
                one path of three layers (stem, one hidden, read-out) with this kernel.

        Returns:
            √(Σ_base L³ / Σ_p L_p³)·(q_base/q) (equations 8 and 9).

        Raises:
            InvalidValueError: The plans add up their paths differently; no path of one of them
                has a layer; or the factor is not a positive float.
        """
        theirs, q = (_BASE, self.kernel_size) if base is None else _of_base(base, self)
        for name, found in (("the network", self.moments), ("the base", theirs)):
            if not found.third:
                raise InvalidValueError(
                    f"no path of {name} from an input to the output has a weighted layer: it has "
                    "no learning rate"
                )
        try:
            ratio = float(Fraction(theirs.third) / self.moments.third)
        except OverflowError:
            ratio = math.inf
        if not 0 < ratio < math.inf:
            raise InvalidValueError(
                f"the factor between learning rates is {ratio}: the depths of the two networks' "
                'paths differ too much; aggregate="mean" weights them'
            )
        return math.sqrt(ratio) * q / self.kernel_size

    def learning_rate(self, base_lr: float, base: Plan | None = None) -> float:
        """The learning rate for this network.

        Args:
            base_lr: The best learning rate of the base.
            base: As in `factor`.
        """
        rate = check_positive("base_lr", base_lr, below=math.inf)
        return rate * self.factor(base)

    def initialize_(self, model: nn.Module, generator: torch.Generator | int) -> Initialization:
        """Draw the weights anew: N(0, C/fan), the read-out N(0, C/fan²), biases 0.

        Normalisation layers become 1 and 0, their running statistics those of a new layer. Other
        parameters (embeddings, learned positions, what a weight is computed from, …) are left
        alone; the result names them.
        Wrappers (DataParallel, torch.compile, …) make no difference, a weight that several
        layers share is drawn once, and the numbers do not depend on the model's device.

        Args:
            model: What was planned, or a model of the same architecture.
            generator: A generator on any device, or a seed.

        Returns:
            What was set and what was not.

        Raises:
            InvalidValueError: The model lacks a planned weight, has it in another shape, or not
                on a real device; nothing has been changed then.
        """
        from tune_ext._initialize import initialize

        parts, computed = self._noted("part of a parameter"), self._noted("computed weight")
        return initialize(self.layers, model, generator, parts, computed)

    def _noted(self, kind: str) -> set[str]:
        """The weights that the graph has a note of this kind about."""
        about = {n.split(" ")[len(kind.split())] for n in self.graph.notes if n.startswith(kind)}
        return about & {one.layer.name for one in self.layers}

    def param_groups(
        self,
        base_lr: float,
        model: nn.Module | None = None,
        *,
        base: Plan | None = None,
        weight_decay: float | None = None,
        per_kernel: bool = False,
    ) -> list[dict[str, Any]]:
        """All parameters in groups with their learning rate, for any torch optimiser.

        Args:
            base_lr: The best learning rate of the base; it is scaled here.
            model: Whose parameters. Default: the model that was planned.
            base: As in `factor`.
            weight_decay: For weights; biases, normalisation and whatever else has fewer than two
                dimensions then get 0. None: groups say nothing about it.
            per_kernel: Whether each layer has the rate of its own kernel, η·q/q_layer, instead
                of one for all. Read-outs and what belongs to no layer keep η. (Ours; no
                difference where all kernels have one size.)

        Raises:
            InvalidValueError: As in `factor`; or there is no model to take parameters from.
        """
        from tune_ext._initialize import param_groups

        if model is None and self._model is not None:
            model = self._model()
        if model is None:
            raise InvalidValueError(
                "the plan was not made from a module that is still there: pass model=…"
            )
        hidden = [one.layer for one in self.layers if not one.readout]
        scales = {layer.name: self.kernel_size / _kernel_size(layer) for layer in hidden}
        rate = self.learning_rate(base_lr, base)
        computed = self._noted("computed weight")
        return param_groups(model, rate, scales if per_kernel else {}, weight_decay, computed)

    def to_dict(self) -> dict[str, Any]:
        """The plan as values that JSON knows; `from_dict` reads it."""
        return {
            "kind": "plan",
            "version": _VERSION,
            "aggregate": self.aggregate,
            "in_degree": self.in_degree,
            "fan": self.fan,
            "graph": _graph_as_dict(self.graph),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` wrote.

        Raises:
            StateError: It is something else, of another version, or damaged.
        """
        check_state(state, "plan", _VERSION, "a plan")
        try:
            graph = _graph_of_dict(state["graph"])
            return cls(graph, state["aggregate"], state["in_degree"], state["fan"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"damaged plan: {error!r}") from error

    def __str__(self) -> str:
        table = str(Explanation(tuple(map(_row, self.layers)))) if self.layers else "no layers"
        every = moments(self.graph, "sum").count
        weights = {
            "sum": ", each with weight 1",
            "mean": ", each weighted by 1/summands along it",
            "gain": ", each weighted by what it passes on",
        }[self.aggregate]
        lines = [
            f"paths        {short(every)}{weights if every > 1 else ''}",
            f"depth        {float(self.moments.mean_depth):.4g} layers on average",
            f"sum of L^3   {short(self.moments.third)}",
            f"kernel size  {self.kernel_size:.4g}",
        ]
        with suppress(InvalidValueError):  # no path, or so many that the rate is 0
            factor = self.factor()
            lines.append(f"factor       {factor:.4g} of the rate of one path of three layers")
        lines += [f"warning      {said}" for said in self.warnings]
        return "\n".join([table, "", *lines])


def _of_base(base: object, plan: Plan) -> tuple[PathMoments, float]:
    """Moments and kernel size of a base that can be compared with `plan`."""
    if not isinstance(base, Plan):
        raise InvalidTypeError(f"base must be a Plan, got {type(base).__name__}")
    if base.aggregate != plan.aggregate:
        raise InvalidValueError(
            f"base adds up its paths by aggregate={base.aggregate!r}, this plan by "
            f"{plan.aggregate!r}: make both plans with the same"
        )
    return base.moments, base.kernel_size


def _kernel_size(layer: Layer) -> float:
    """Geometric mean of the sides of a kernel; 1 for a linear layer."""
    if len(set(layer.kernel)) < 2:
        return float(next(iter(layer.kernel), 1))
    return float(math.prod(layer.kernel) ** (1 / len(layer.kernel)))


def _row(plan: LayerPlan) -> dict[str, Any]:
    layer = plan.layer
    edge = [layer.activation or "", "norm" if layer.normalized else ""]
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "kernel": "×".join(map(str, layer.kernel)) or "-",
        "fan": str(plan.fan),
        "d_in": plan.in_degree,
        "std": plan.std,
        "paths": f"{plan.paths:.3g}",
        "with": "read-out" if plan.readout else ", ".join(filter(None, edge)) or "-",
    }


def _graph_as_dict(graph: NetworkGraph) -> dict[str, Any]:
    nodes = []
    for node in graph.nodes:
        entry: dict[str, Any] = {"op": node.op, "inputs": list(node.inputs), "name": node.name}
        if node.shares:
            entry["shares"] = list(node.shares)
        if node.layer is not None:
            entry["layer"] = {**vars(node.layer)}
            entry["layer"] |= {
                name: list(getattr(node.layer, name)) for name in ("kernel", "shape")
            }
        nodes.append(entry)
    return {"nodes": nodes, "output": graph.output, "notes": list(graph.notes)}


def _graph_of_dict(state: Mapping[str, Any]) -> NetworkGraph:
    nodes = []
    for entry in state["nodes"]:
        layer = entry.get("layer")
        if layer is not None:
            layer = Layer(**layer)
            layer = replace(layer, kernel=tuple(layer.kernel), shape=tuple(layer.shape))
        shares = tuple(entry.get("shares", ()))
        nodes.append(Node(entry["op"], tuple(entry["inputs"]), layer, shares, entry["name"]))
    return NetworkGraph(tuple(nodes), state["output"], tuple(state["notes"]))
