"""From a graph of ATen operations to weighted layers and merges.

Every value is abstracted to where it comes from: a `Constant` (parameters, buffers, what is
computed from them), a `Wire` from one node of the growing `NetworkGraph`, or a `Stack` of wires.
An operation is then read by a few rules, in this order:

1. nothing in it depends on the input: a constant;
2. a parameter is applied to a branch by a convolution or a matrix product: a layer;
3. branches are added, concatenated, selected from, or multiplied: a merge;
4. everything else passes its branch through (activations and normalisations are remembered).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from tune_ext import _trace_ops as ops
from tune_ext._trace_values import Builder, Constant, Stack, Value, Wire, joined
from tune_ext._trace_weights import contracts, einsum_weight, layer_weight, matrix_weight
from tune_ext.errors import UntraceableModelError

__all__ = ["GraphReader"]


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
        """The values of the outputs (nested as in the graph).

        Args:
            graph: Operations in topological order.
            owner: Where the graph's attributes are.
            inputs: The value of each placeholder.
        """
        result: Any = ()
        for node in graph.nodes:
            if node.op == "placeholder":
                self._values[node] = inputs[node.name]
            elif node.op == "call_function":
                self._values[node] = self._call(node, owner)
            elif node.op == "output":
                result = _mapped(node.args[0], self._operand)
            else:
                self._values[node] = Constant()
        return result

    # ------------------------------------------------------------------ operands

    def _operand(self, node: fx.Node) -> Value:
        """The value of an operand; a wire knows whether anything else uses it."""
        value = self._values[node]
        if isinstance(value, Wire) and len(node.users) > 1:
            return replace(value, alone=False)
        return value

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments by their names in the operation's schema, with values for nodes."""
        schema = node.target._schema  # type: ignore[union-attr]
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        given.update(node.kwargs)
        return {name: _mapped(value, self._operand) for name, value in given.items()}

    def _wires(self, node: fx.Node) -> list[Wire]:
        """The branches among the operands; those of floating-point numbers if there are any."""
        found = [
            (source, self._collapsed(self._operand(source))) for source in node.all_input_nodes
        ]
        wires = [(source, value) for source, value in found if isinstance(value, Wire)]
        real = [wire for source, wire in wires if is_real(source)]
        return real or [wire for _, wire in wires]

    def _collapsed(self, value: Value) -> Value:
        """A stack, or several results of one operation, as one branch."""
        if isinstance(value, Stack):
            parts = [(wire, 1) for wire in value.wires if isinstance(wire, Wire)]
            return self._builder.concat(parts, "stack") if parts else Constant()
        if isinstance(value, tuple):
            wires = [v for v in map(self._collapsed, value) if isinstance(v, Wire)]
            return wires[0] if wires else Constant()
        return value

    # ------------------------------------------------------------------ operations

    def _call(self, node: fx.Node, owner: torch.nn.Module) -> Value:
        if node.target is operator.getitem:
            source = node.args[0]
            if isinstance(source, fx.Node) and source in self._bases:
                self._bases[node] = self._bases[source]
            return _item(self._values[node.args[0]], node.args[1])  # type: ignore[index]
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._nested(node, owner)
        if not isinstance(node.target, torch._ops.OpOverload):
            return Constant()  # arithmetic with sizes
        name = base_name(node.target)
        value = self._operation(name, node)
        if _is_written(node.target):
            self._write(node, value)
        elif name in ops.SHARING:
            self._bases[node] = node.all_input_nodes[0]
        return self._per_result(node, value)

    def _operation(self, name: str, node: fx.Node) -> Value:
        if name in ops.RECURRENT:
            raise UntraceableModelError(
                f"{self._where(node)} is recurrent ({name}): it applies one weight in every step "
                "of a sequence, for which the theory of path depths has no rule"
            )
        if name in ops.CREATIONS:
            return Constant(zero="zeros" in name)
        wires = self._wires(node)
        if not wires or (not is_real(node) and any(map(is_real, node.all_input_nodes))):
            return self._constant(name, node)
        handler = _HANDLERS.get(name)
        if handler is not None:
            return handler(self, name, node, wires)
        if name in ops.LOOKUPS:
            return self._lookup(name, node, wires)
        return self._through(name, node, wires)

    def _constant(self, name: str, node: fx.Node) -> Constant:
        """The result of an operation on constants."""
        sources = [self._values[source] for source in node.all_input_nodes]
        constants = [value for value in sources if isinstance(value, Constant)]
        parameters = frozenset[str]().union(*(c.parameters for c in constants))
        if (name in ops.VIEWS or name in ops.SLICES) and len(constants) == 1:
            return replace(constants[0], whole=constants[0].whole and name in ops.VIEWS)
        return Constant(parameters=parameters, zero=name in ("zeros", "zero"))

    def _through(self, name: str, node: fx.Node, wires: list[Wire]) -> Wire:
        """Any other operation: it passes a branch through, or multiplies several."""
        if len({wire.node for wire in wires}) > 1 or "attention" in name:
            return self._product(name, node, wires)
        wire = wires[0] if len(wires) == 1 else joined(wires)
        if name in ops.NORMALIZATIONS or (name == "alias" and self._path(node) in self._norms):
            if name == "alias":
                name = self._norm_name(node)
            self._builder.note(f"normalisation: {name}")
            return self._builder.normalize(wire)
        if name == "hardtanh" and self._arguments(node).get("min_val") == 0:
            name = "relu6"
        if name in ops.ACTIVATIONS or self._is_relu(name, node):
            return self._builder.activate(wire, name if name in ops.ACTIVATIONS else "relu")
        if name == "detach":
            self._builder.note("a branch is detached: its weights get no gradient through it")
        return replace(
            wire,
            plain=wire.plain and name in ops.PASSIVE,
            formula=wire.formula or name in ops.FORMULAS,
            statistic=wire.statistic or name in ops.STATISTICS,
        )

    def _is_relu(self, name: str, node: fx.Node) -> bool:
        arguments = self._arguments(node) if name in ("clamp", "clamp_min") else {}
        return arguments.get("min") == 0 and arguments.get("max") is None

    def _product(self, name: str, node: fx.Node, wires: list[Wire]) -> Wire:
        what = "attention" if "attention" in name else "product"
        self._builder.note(f"{what}: {name} multiplies branches, which the theory leaves out")
        return self._builder.product(wires, self._label(node, name))

    def _add(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """A sum: branches merge; a constant is a shift."""
        given = self._arguments(node)
        operands = [v for v in map(self._collapsed, _values(given)) if isinstance(v, Wire)]
        if len(operands) == 1:
            self._shift(operands[0], given)
            return replace(operands[0], formula=operands[0].formula)
        same = len({wire.node for wire in operands}) == 1
        if same and ("sub" in name or any(wire.formula for wire in operands)):
            return replace(joined(operands), formula=True)
        return self._builder.add(operands, self._label(node, name))

    def _shift(self, wire: Wire, given: dict[str, Any]) -> None:
        for value in _values(given):
            if isinstance(value, Constant) and value.parameter is not None and value.whole:
                self._builder.shift(wire, value.parameter)

    def _multiply(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """A product: scaling by a constant, a gate of the branch itself, or two branches."""
        given = self._arguments(node)
        numbers = [value for value in given.values() if isinstance(value, int | float)]
        constants = [value for value in given.values() if isinstance(value, Constant)]
        if name == "mul" and (0 in numbers or any(c.zero for c in constants)):
            return Constant(zero=True)
        stacks = [value for value in given.values() if isinstance(value, Stack)]
        if stacks and len(stacks) == len(node.all_input_nodes) - len(constants):
            return stacks[0]
        if len(wires) == 2 and wires[0].node == wires[1].node:
            return self._gate(wires)
        return self._through(name, node, wires)

    def _gate(self, wires: list[Wire]) -> Wire:
        """A branch times a function of itself: an activation or a normalisation."""
        gates = [wire.activation for wire in wires if wire.activation is not None]
        whole = replace(joined(wires), activation=None, normalized=False, alone=False)
        if any(wire.statistic for wire in wires):
            self._builder.note("normalisation: written out")
            return self._builder.normalize(whole)
        return replace(whole, activation=f"x·{gates[0]}" if gates else "product", plain=False)

    def _weighted(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """A convolution or a linear layer."""
        given = self._arguments(node)
        x, weight = self._collapsed(given["input"]), self._collapsed(given["weight"])
        if not isinstance(x, Wire) or not isinstance(weight, Constant):
            return self._through(name, node, wires)  # weights that depend on the input
        if not weight.parameters:
            self._builder.note(f"fixed weights: {name} with no parameter counts as no layer")
            return replace(x, plain=False)
        shape = shape_of(node.args[1])
        made = layer_weight(name, self._weight_name(weight, node), shape, given)
        return self._builder.layer(x, replace(made, part=not weight.whole))

    def _matrix(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """A matrix product: a linear layer if one side is made of parameters."""
        given = self._arguments(node)
        factors = [source for source in _factors(name, node)]
        values = [self._collapsed(self._operand(source)) for source in factors]
        weights = [(i, v) for i, v in enumerate(values) if isinstance(v, Constant) and v.parameters]
        branches = [v for v in values if isinstance(v, Wire)]
        if len(branches) != 1 or len(weights) != 1 or len(values) != 2:
            return self._added(name, node, given, self._unweighted(name, node, branches))
        side, weight = weights[0]
        if name == "einsum" and not contracts(str(given["equation"]), side):
            return self._through(name, node, branches)  # scaling
        label, shape = self._weight_name(weight, node), shape_of(factors[side])
        if name == "einsum":
            made = einsum_weight(label, str(given["equation"]), side, shape)
        else:
            made = matrix_weight(label, side, shape)
        layer = self._builder.layer(branches[0], replace(made, part=not weight.whole))
        return self._added(name, node, given, layer)

    def _unweighted(self, name: str, node: fx.Node, branches: list[Wire]) -> Value:
        """A matrix product of branches, or of one with constants."""
        if len(branches) == 2 and branches[0].node == branches[1].node:
            return self._product(name, node, branches)  # queries and keys of one layer
        if not branches:
            return Constant()
        return self._through(name, node, branches)

    def _added(self, name: str, node: fx.Node, given: dict[str, Any], value: Value) -> Value:
        """What `addmm` and its like add to the product."""
        if not name.startswith(("add", "badd")):
            return value
        extra = self._collapsed(given["self" if "self" in given else "input"])
        if isinstance(value, Wire) and isinstance(extra, Wire):
            return self._builder.add([extra, value], self._label(node, name))
        if isinstance(value, Wire) and isinstance(extra, Constant) and extra.parameter:
            self._builder.shift(value, extra.parameter)
        return value if isinstance(value, Wire) else extra

    def _weight_name(self, weight: Constant, node: fx.Node) -> str:
        """The parameter that a layer's weight is, or the path that it would have."""
        if weight.parameter is not None:
            if not weight.whole:
                self._builder.note(f"part of a parameter: {weight.parameter} holds several weights")
            return weight.parameter
        path = self._rename(self._path(node))
        name = f"{path}.weight" if path else "weight"
        self._builder.note(
            f"computed weight: {name} is a function of {', '.join(sorted(weight.parameters))}"
        )
        return name

    def _concat(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        given = self._arguments(node)
        dim = int(given.get("dim", 0))
        sources = node.args[0]
        assert isinstance(sources, list | tuple)
        parts = []
        for source in sources:
            value = self._collapsed(self._operand(source))  # type: ignore[arg-type]
            if isinstance(value, Wire):
                shape = shape_of(source)
                parts.append((value, max(1, shape[dim]) if shape else 1))
        return self._builder.concat(parts, self._label(node, name))

    def _stack(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        given = self._arguments(node)
        dim = int(given.get("dim", 0)) % max(1, len(shape_of(node)))
        alone = len(node.users) == 1
        parts = [self._collapsed(value) for value in given["tensors"]]
        kept = tuple(
            replace(p, alone=p.alone and alone) if isinstance(p, Wire) else p for p in parts
        )
        return Stack(kept, dim)  # type: ignore[arg-type]

    def _reduce(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """A sum or mean: of what is stacked, if it runs over that dimension."""
        given = self._arguments(node)
        value = given.get("self", given.get("input"))
        if not isinstance(value, Stack):
            return self._through(name, node, wires)
        rank, dims = len(shape_of(node.args[0])), given.get("dim")
        over = range(rank) if dims in (None, []) else [d % rank for d in _listed(dims)]
        if value.dim not in over:
            return self._through(name, node, wires)
        parts = [wire for wire in value.wires if isinstance(wire, Wire)]
        if len(parts) == 1:
            return replace(parts[0], alone=False)
        return self._builder.add(parts, self._label(node, name))

    def _pick(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """One of what is stacked."""
        given = self._arguments(node)
        value = given.get("self", given.get("input"))
        if not isinstance(value, Stack):
            return self._through(name, node, wires)
        rank = len(shape_of(node.args[0]))
        if int(given.get("dim", 0)) % rank != value.dim:
            return self._through(name, node, wires)
        return value.wires if name == "unbind" else value.wires[int(given["index"])]

    def _choose(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """Entries of several branches side by side."""
        if len({wire.node for wire in wires}) > 1:
            self._builder.note(f"selection: {name} takes entries from several branches")
        return self._builder.concat([(wire, 1) for wire in wires], self._label(node, name))

    def _fused_add(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """A branch plus a product (addcmul, addcdiv), or a mixture of two (lerp)."""
        values = [self._collapsed(v) for v in _values(self._arguments(node))]
        if name == "lerp":
            factors, summands = values[2:], values[:2]
        else:
            factors, summands = values[1:], values[:1]
        inner = [v for v in factors if isinstance(v, Wire)]
        merged = [v for v in summands if isinstance(v, Wire)]
        if inner and name != "lerp":
            merged.append(self._through(name, node, inner))
        elif inner:
            return self._product(name, node, [*merged, *inner])
        return merged[0] if len(merged) == 1 else self._builder.add(merged, self._label(node, name))

    def _copy(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        source = self._collapsed(self._arguments(node)["src"])
        return source if isinstance(source, Constant) else replace(wires[-1], alone=False)

    def _lookup(self, name: str, node: fx.Node, wires: list[Wire]) -> Value:
        """Entries picked by integers: from a parameter that is an embedding, whose rows differ."""
        constants = [self._values[source] for source in node.all_input_nodes if is_real(source)]
        if any(isinstance(c, Constant) and c.parameters for c in constants) and not any(
            isinstance(c, Wire) for c in constants
        ):
            found = (c.parameters for c in constants if isinstance(c, Constant))
            parameters = frozenset[str]().union(*found)
            return self._builder.embedding(self._label(node, name), parameters)
        return self._through(name, node, wires)

    # ------------------------------------------------------------------ structure

    def _nested(self, node: fx.Node, owner: torch.nn.Module) -> Value:
        """A graph inside the graph, as torch.no_grad and autocast make."""
        graphs = [
            (i, getattr(owner, str(argument.target), None))
            for i, argument in enumerate(node.args)
            if isinstance(argument, fx.Node) and argument.op == "get_attr"
        ]
        inner = [(i, g) for i, g in graphs if isinstance(g, fx.GraphModule)]
        if len(inner) != 1:
            raise UntraceableModelError(
                f"{self._where(node)} chooses between branches while it runs ({node.target})"
            )
        position, module = inner[0]
        operands = [a for a in node.args[position + 1 :] if isinstance(a, fx.Node)]
        holes = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        inputs = dict(zip(holes, map(self._operand, operands), strict=True))
        outputs = self.read(module.graph, module, inputs)
        return tuple(v if v is not None else Constant() for v in outputs)

    def _write(self, node: fx.Node, value: Value) -> None:
        """An operation in place: what was written to, and what that is a view of, change."""
        target = node.args[0]
        if isinstance(target, fx.Node) and target in self._bases and isinstance(value, Wire):
            self._builder.note("writing into part of a tensor is read as a concatenation")
        while isinstance(target, fx.Node):
            whole, part = product(shape_of(target)), product(shape_of(node))
            before = self._values[target]
            if part < whole and isinstance(before, Wire) and isinstance(value, Wire):
                value = self._builder.concat([(before, whole - part), (value, part)], "write")
            elif part < whole and isinstance(before, Wire):
                value = before
            self._values[target] = value
            target = self._bases.get(target)

    def _per_result(self, node: fx.Node, value: Value) -> Value:
        """One value for each result of an operation that has several."""
        results = node.meta.get("val")
        if isinstance(results, list | tuple) and not isinstance(value, tuple):
            return (value,) * len(results)
        return value

    # ------------------------------------------------------------------ names

    def _path(self, node: fx.Node) -> str:
        """Path of the innermost module that an operation belongs to."""
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]) if stack else ""

    def _norm_name(self, node: fx.Node) -> str:
        kind = str(list(node.meta["nn_module_stack"].values())[-1][1])
        return kind.rpartition(".")[2]

    def _label(self, node: fx.Node, name: str) -> str:
        path = self._rename(self._path(node))
        return f"{path}.{name}" if path else name

    def _where(self, node: fx.Node) -> str:
        path = self._rename(self._path(node))
        return f"module {path!r}" if path else "the model"


_Handler = Callable[[GraphReader, str, fx.Node, list[Wire]], Value]
_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(("add", "sub", "rsub", "subtract"), GraphReader._add),
    **dict.fromkeys(("mul", "div", "multiply", "divide"), GraphReader._multiply),
    **dict.fromkeys([*ops.CONVOLUTIONS, "linear"], GraphReader._weighted),
    **dict.fromkeys(ops.PRODUCTS, GraphReader._matrix),
    **dict.fromkeys(("cat", "concat", "concatenate"), GraphReader._concat),
    **dict.fromkeys(("sum", "mean"), GraphReader._reduce),
    **dict.fromkeys(("select", "unbind"), GraphReader._pick),
    **dict.fromkeys(ops.SELECTIONS, GraphReader._choose),
    **dict.fromkeys(("addcmul", "addcdiv", "lerp"), GraphReader._fused_add),
    "stack": GraphReader._stack,
    "copy": GraphReader._copy,
}


def base_name(target: torch._ops.OpOverload) -> str:
    """The name of an operation, the same for its form in place."""
    name: str = target.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_real(node: fx.Node) -> bool:
    """Whether a value is of floating-point (or complex) numbers."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        value = next((v for v in value if isinstance(v, Tensor)), None)
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a value; () if it has none."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def product(sizes: tuple[int, ...]) -> int:
    """How many entries a shape has."""
    result = 1
    for size in sizes:
        result *= size
    return result


def _is_written(target: torch._ops.OpOverload) -> bool:
    arguments = target._schema.arguments
    info = arguments[0].alias_info if arguments else None
    return info is not None and bool(info.is_write)


def _item(value: Value, index: Any) -> Value:
    return value[int(index)] if isinstance(value, tuple) else value


def _mapped(argument: Any, function: Callable[[fx.Node], Value]) -> Any:
    """Nested arguments with values for nodes."""
    if isinstance(argument, fx.Node):
        return function(argument)
    if isinstance(argument, list | tuple):
        return [_mapped(item, function) for item in argument]
    return argument


def _listed(dims: Any) -> list[int]:
    return [int(d) for d in dims] if isinstance(dims, list | tuple) else [int(dims)]


def _values(given: dict[str, Any]) -> list[Any]:
    """The arguments that are values of the network."""
    return [v for v in given.values() if isinstance(v, Constant | Wire | Stack | tuple)]


def _factors(name: str, node: fx.Node) -> list[fx.Node]:
    """The two sides of a matrix product."""
    if name == "einsum":
        return list(node.args[1])  # type: ignore[arg-type]
    sides = node.args[1:3] if name.startswith(("add", "badd")) else node.args[:2]
    return [side for side in sides if isinstance(side, fx.Node)]
