"""What happens to branches where they meet, and on their way: the rules of a traced network."""

from __future__ import annotations

from dataclasses import replace

from tune_ext import _trace_ops as ops
from tune_ext._trace_site import Rule, Site, is_real, shape_of
from tune_ext._trace_values import Constant, Stack, Value, Wire, joined

__all__ = ["MERGES", "multiplied", "through"]


def through(site: Site, wires: list[Wire] | None = None) -> Wire:
    """An operation without a rule of its own: it passes a branch on, or multiplies several."""
    wires = site.wires if wires is None else wires
    if len({wire.node for wire in wires}) > 1 or "attention" in site.name:
        return multiplied(site, wires)
    wire, name = joined(wires), site.name
    if name in ops.NORMALIZATIONS:
        site.builder.note(f"normalisation: {name}")
        return site.builder.normalize(wire)
    activation = _activation(site)
    if activation is not None:
        return site.builder.activate(wire, activation)
    if name == "detach":
        site.builder.note("a branch is detached: its weights get no gradient through it")
    return replace(
        wire,
        plain=wire.plain and name in ops.PASSIVE,
        formula=wire.formula or name in ops.FORMULAS,
        statistic=wire.statistic or name in ops.STATISTICS,
    )


def _activation(site: Site) -> str | None:
    """The activation that an operation is, if it is one; ReLUs also where they are bounds."""
    if site.name in ("clamp", "clamp_min", "hardtanh"):
        least = site.given.get("min", site.given.get("min_val"))
        most = site.given.get("max", site.given.get("max_val"))
        bounded = {None: "relu", 6: "relu6"}.get(most)
        if least == 0 and bounded is not None:
            return bounded
    return site.name if site.name in ops.ACTIVATIONS else None


def multiplied(site: Site, wires: list[Wire]) -> Wire:
    """Branches multiplied with one another."""
    what = "attention" if "attention" in site.name else "product"
    site.builder.note(f"{what}: {site.name} multiplies branches, which the theory leaves out")
    return site.builder.product(wires, site.label)


def _add(site: Site) -> Value:
    """A sum: branches merge; a constant is a shift."""
    wires = [value for value in site.values if isinstance(value, Wire)]
    if len(wires) == 1:
        for value in site.values:
            if isinstance(value, Constant) and value.parameter is not None and value.whole:
                site.builder.shift(wires[0], value.parameter)
        return wires[0]
    one_branch = len({wire.node for wire in wires}) == 1
    if one_branch and ("sub" in site.name or any(wire.formula for wire in wires)):
        return replace(joined(wires), formula=True)
    return site.builder.add(wires, site.label)


def _multiply(site: Site) -> Value:
    """A product: scaling by a constant, a gate of the branch itself, or two branches."""
    given = list(site.given.values())
    nothing = any(isinstance(v, int | float) and v == 0 for v in given) or any(
        isinstance(v, Constant) and v.zero for v in given
    )
    if nothing and site.name in ("mul", "multiply"):
        return Constant(zero=True)
    stacks = [value for value in given if isinstance(value, Stack)]
    if len(stacks) == 1 and not any(isinstance(value, Wire | tuple) for value in given):
        return stacks[0]  # weighted summands
    if len(site.wires) == 2 and site.wires[0].node == site.wires[1].node:
        return _gate(site)
    return through(site)


def _gate(site: Site) -> Wire:
    """A branch times a function of itself: an activation, or a normalisation written out."""
    gates = [wire.activation for wire in site.wires if wire.activation is not None]
    whole = replace(joined(site.wires), activation=None, normalized=False)
    if any(wire.statistic for wire in site.wires):
        site.builder.note("normalisation: written out")
        return site.builder.normalize(whole)
    return replace(whole, activation=f"x·{gates[0]}" if gates else "product", plain=False)


def _concat(site: Site) -> Value:
    dim = int(site.given.get("dim", 0))
    sources = site.node.args[0]
    assert isinstance(sources, list | tuple)
    parts = []
    for source, given in zip(sources, site.given["tensors"], strict=True):
        value, shape = site.collapsed(given), shape_of(source)
        if isinstance(value, Wire):
            parts.append((value, max(1, shape[dim]) if shape else 1))
    return site.builder.concat(parts, site.label)


def _stack(site: Site) -> Value:
    dim = int(site.given.get("dim", 0)) % max(1, len(shape_of(site.node)))
    alone = len(site.node.users) == 1
    parts = [site.collapsed(value) for value in site.given["tensors"]]
    wires = (replace(p, alone=p.alone and alone) if isinstance(p, Wire) else p for p in parts)
    return Stack(tuple(wires), dim)


def _reduce(site: Site) -> Value:
    """A sum or mean: of what is stacked, if it runs over that dimension."""
    value, dims = site.given.get("self", site.given.get("input")), site.given.get("dim")
    if not isinstance(value, Stack):
        return through(site)
    rank = len(shape_of(site.node.args[0]))
    listed = dims if isinstance(dims, list) else [] if dims is None else [dims]
    if listed and value.dim not in [int(d) % rank for d in listed]:
        return through(site)
    wires = [wire for wire in value.wires if isinstance(wire, Wire)]
    return site.builder.add(wires, site.label) if len(wires) > 1 else wires[0]


def _pick(site: Site) -> Value:
    """One of what is stacked."""
    value = site.given.get("self", site.given.get("input"))
    rank = len(shape_of(site.node.args[0]))
    if not isinstance(value, Stack) or int(site.given.get("dim", 0)) % rank != value.dim:
        return through(site)
    return value.wires if site.name == "unbind" else value.wires[int(site.given["index"])]


def _choose(site: Site) -> Value:
    """Entries of several branches, each from one of them."""
    if len({wire.node for wire in site.wires}) > 1:
        site.builder.note(f"selection: {site.name} takes entries from several branches")
    return site.builder.concat([(wire, 1) for wire in site.wires], site.label)


def _extreme(site: Site) -> Value:
    """The larger or smaller of two branches (torch.max); along a dimension, one passes on."""
    several = len({wire.node for wire in site.wires}) > 1
    return _choose(site) if several else through(site)


def _add_product(site: Site) -> Value:
    """A branch plus a scaled product or quotient of two (addcmul, addcdiv)."""
    factors = [value for value in site.values[1:] if isinstance(value, Wire)]
    summands = [value for value in site.values[:1] if isinstance(value, Wire)]
    if factors:
        summands.append(through(site, factors))
    return summands[0] if len(summands) == 1 else site.builder.add(summands, site.label)


def _mix(site: Site) -> Value:
    """A mixture of two branches (lerp)."""
    ends, weight = site.values[:2], site.values[2:]
    if any(isinstance(value, Wire) for value in weight):
        return multiplied(site, site.wires)
    wires = [value for value in ends if isinstance(value, Wire)]
    return wires[0] if len(wires) == 1 else site.builder.add(wires, site.label)


def _copy(site: Site) -> Value:
    value = site.collapsed(site.given["src"])
    return replace(value, alone=False) if isinstance(value, Wire) else value


def _look_up(site: Site) -> Value:
    """Entries picked by integers; from a parameter, they are rows of an embedding."""
    tables = [site.value(source) for source in site.node.all_input_nodes if is_real(source)]
    parameters = [t.parameters for t in tables if isinstance(t, Constant) and t.parameters]
    if parameters and not any(isinstance(table, Wire) for table in tables):
        return site.builder.embedding(site.label, frozenset[str]().union(*parameters))
    return through(site)


MERGES: dict[str, Rule] = {
    **dict.fromkeys(("add", "sub", "rsub", "subtract"), _add),
    **dict.fromkeys(("mul", "div", "multiply", "divide"), _multiply),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    **dict.fromkeys(("sum", "mean"), _reduce),
    **dict.fromkeys(("select", "unbind"), _pick),
    **dict.fromkeys(("addcmul", "addcdiv"), _add_product),
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(ops.SELECTIONS, _choose),
    **dict.fromkeys(ops.LOOKUPS, _look_up),
    "copy": _copy,
    "lerp": _mix,
    "stack": _stack,
}
"""The rules, by the operation's name."""
