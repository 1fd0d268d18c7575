"""From a graph of ATen operations to weighted layers and merges.

Every value is abstracted to where it comes from: a `Constant` (parameters, buffers, what is
computed from them), a `Wire` from one node of the growing `NetworkGraph`, or a `Stack` of wires.
An operation is then read by a few rules, in this order:

1. nothing in it depends on the input: a constant;
2. a parameter is applied to a branch by a convolution or a matrix product: a layer
   (`_trace_layers`);
3. branches are added, concatenated, selected from, or multiplied: a merge (`_trace_merges`);
4. everything else passes its branch on (activations and normalisations are remembered).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from tune_ext import _trace_ops as ops
from tune_ext._trace_layers import LAYERS
from tune_ext._trace_merges import MERGES, through
from tune_ext._trace_site import Site, is_real, size_of
from tune_ext._trace_values import Builder, Constant, Value, Wire, joined
from tune_ext.errors import UntraceableModelError

__all__ = ["GraphReader"]

_RULES = {**MERGES, **LAYERS}


class GraphReader:
    """Reads the operations of an exported program into a builder.

    Args:
        builder: Where nodes and notes go.
        norms: Paths of the modules whose normalisation was replaced by a mark (`alias`).
        rename: From a module's path in the exported model to that in the caller's model.
    """

    def __init__(
        self, builder: Builder, norms: frozenset[str], rename: Callable[[str], str]
    ) -> None:
        self._builder = builder
        self._norms = norms
        self._rename = rename
        self._values: dict[fx.Node, Value] = {}
        self._bases: dict[fx.Node, fx.Node] = {}

    def read(self, graph: fx.Graph, owner: torch.nn.Module, inputs: Mapping[str, Value]) -> Any:
        """The values of the outputs, nested as in the graph.

        Args:
            graph: Operations in topological order.
            owner: Where the graph's attributes are.
            inputs: The value of each placeholder.
        """
        result: Any = ()
        for node in graph.nodes:
            site = Site(node, self._builder, self._operand, self._rename)
            if node.op == "placeholder":
                self._values[node] = inputs[node.name]
            elif node.op == "call_function":
                self._values[node] = self._call(site, owner)
            elif node.op == "output":
                result = site.mapped(node.args[0])
            else:
                self._values[node] = Constant()
        return result

    def _operand(self, node: fx.Node) -> Value:
        """The value of an operand; a wire knows whether anything else uses it."""
        value = self._values[node]
        if isinstance(value, Wire) and len(node.users) > 1:
            return replace(value, alone=False)
        return value

    def _call(self, site: Site, owner: torch.nn.Module) -> Value:
        node = site.node
        if node.target is operator.getitem:
            return self._item(node)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._nested(site, owner)
        if not isinstance(node.target, torch._ops.OpOverload):
            return Constant()  # arithmetic with sizes
        value = self._operation(site)
        if _is_written(node.target):
            self._write(site, value)
        elif site.name in ops.SHARING:
            self._bases[node] = node.all_input_nodes[0]
        results = node.meta.get("val")
        if isinstance(results, list | tuple) and not isinstance(value, tuple):
            return (value,) * len(results)
        return value

    def _item(self, node: fx.Node) -> Value:
        """One of several results."""
        source, index = node.args
        assert isinstance(source, fx.Node)
        if source in self._bases:
            self._bases[node] = self._bases[source]
        value = self._values[source]
        return value[int(index)] if isinstance(value, tuple) else value  # type: ignore[arg-type]

    def _operation(self, site: Site) -> Value:
        name, node = site.name, site.node
        if name in ops.RECURRENT:
            raise UntraceableModelError(
                f"{site.where} is recurrent ({name}): it applies one weight in every step of a "
                "sequence, for which the theory of path depths has no rule"
            )
        if name in ops.CREATIONS:
            return Constant(zero="zeros" in name)
        if not site.wires or (not is_real(node) and any(map(is_real, node.all_input_nodes))):
            return self._constant(site)
        if name == "alias" and site.inner_path in self._norms:
            self._builder.note(f"normalisation: {site.kind}")
            return self._builder.normalize(joined(site.wires))
        return _RULES.get(name, through)(site)

    def _constant(self, site: Site) -> Constant:
        """The result of an operation on constants."""
        sources = [self._values[source] for source in site.node.all_input_nodes]
        constants = [value for value in sources if isinstance(value, Constant)]
        if len(constants) == 1 and site.name in ops.VIEWS | ops.SLICES:
            return replace(constants[0], whole=constants[0].whole and site.name in ops.VIEWS)
        parameters = frozenset[str]().union(*(c.parameters for c in constants))
        return Constant(parameters=parameters, zero=site.name in ("zeros", "zero"))

    def _nested(self, site: Site, owner: torch.nn.Module) -> Value:
        """A graph inside the graph, as torch.no_grad and autocast make."""
        node = site.node
        graphs = [
            (i, getattr(owner, str(argument.target), None))
            for i, argument in enumerate(node.args)
            if isinstance(argument, fx.Node) and argument.op == "get_attr"
        ]
        inner = [(i, g) for i, g in graphs if isinstance(g, fx.GraphModule)]
        if len(inner) != 1:
            raise UntraceableModelError(
                f"{site.where} decides what to do while it runs ({node.target}); a graph of layers "
                "has to be the same for every input"
            )
        position, module = inner[0]
        operands = [a for a in node.args[position + 1 :] if isinstance(a, fx.Node)]
        holes = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        inputs = dict(zip(holes, map(self._operand, operands), strict=True))
        outputs = self.read(module.graph, module, inputs)
        return tuple(v if v is not None else Constant() for v in outputs)

    def _write(self, site: Site, value: Value) -> None:
        """An operation in place: what was written to changes, and what that is a view of."""
        target, part = site.node.args[0], size_of(site.node)
        while isinstance(target, fx.Node):
            rest, before = size_of(target) - part, self._values[target]
            if rest > 0 and isinstance(before, Wire):
                self._builder.note("writing into part of a tensor is read as a concatenation")
                new = [(before, rest)] + ([(value, part)] if isinstance(value, Wire) else [])
                value, part = self._builder.concat(new, site.label), part + rest
            self._values[target] = value
            target = self._bases.get(target)


def _is_written(target: torch._ops.OpOverload) -> bool:
    arguments = target._schema.arguments
    info = arguments[0].alias_info if arguments else None
    return info is not None and bool(info.is_write)
