"""What a network has that the theory of architecture-aware scaling does not, in words.

Each sentence says what was found, and what is then known. Source of what is published: Chen, Wu,
Wang, Hanin (ICLR 2024, arXiv 2402.17440): it assumes ReLU, SGD, early training, hidden layers of
one width and no normalisation; its experiments add GELU, and NAS-Bench-201's normalised networks.
"""

from __future__ import annotations

from tune_ext._graph import Convention, NetworkGraph
from tune_ext._moments import short
from tune_ext._paths import growth, readouts

__all__ = ["ScalingWarning", "broken_assumptions"]

#: Notes of a graph that are said together with what is then known.
_EXPLAINED = ("normalisation: ", "product: ", "attention: ")
#: What turns answers into probabilities, and so may follow a read-out.
_ANSWERS = ("log_softmax", "sigmoid", "softmax")


class ScalingWarning(UserWarning):
    """A network is not what the theory assumes; the message says what is then known."""


def broken_assumptions(graph: NetworkGraph, convention: Convention) -> tuple[str, ...]:
    """What breaks the theory's assumptions, a sentence each; what else the graph notes first.

    Args:
        graph: The network.
        convention: What d_in is in its initialisation.
    """
    notes = [note for note in graph.notes if not note.startswith(_EXPLAINED)]
    if not graph.live[graph.output]:
        return (*notes, "no path leads from an input to the output: nothing can be learned")
    checks = (_layers_missing, _normalisation, _products, _widths, _activations)
    sentences = [*map(lambda check: check(graph), checks), _growth(graph, convention)]
    return (*notes, *(said for said in sentences if said))


def _noted(graph: NetworkGraph, *kinds: str) -> list[str]:
    """What the graph's notes of these kinds say."""
    return [note.partition(": ")[2] for note in graph.notes if note.startswith(kinds)]


def _layers_missing(graph: NetworkGraph) -> str | None:
    if readouts(graph):
        return None
    return "no weighted layer lies between the inputs and the output: there is nothing to scale"


def _normalisation(graph: NetworkGraph) -> str | None:
    layers = [graph.layer(i) for i in graph.layers]
    count = sum(layer.normalized for layer in layers)
    noted = _noted(graph, "normalisation: ")
    if not count and not noted:
        return None
    found = ", ".join(noted or [f"{count} of {len(layers)} layers"])
    return (
        f"normalisation: {found}. The theory leaves it out: initial weights then hardly matter, "
        "and how the largest learning rate depends on depth is not derived; published are gains "
        "in accuracy on NAS-Bench-201"
    )


def _products(graph: NetworkGraph) -> str | None:
    count = sum(node.op == "product" for node in graph.nodes)
    noted = _noted(graph, "product: ", "attention: ")
    if not count and not noted:
        return None
    found = ", ".join(noted or [f"{count} of features, which the theory leaves out"])
    return (
        f"products: {found}. Paths are counted through each factor; nothing is published about "
        "such networks"
    )


def _widths(graph: NetworkGraph) -> str | None:
    last = readouts(graph)
    widths = {graph.layer(i).shape[0] for i in graph.layers if i not in last}
    if len(widths) < 2:
        return None
    return (
        f"widths: hidden layers have {min(widths)} to {max(widths)}, the theory takes one. "
        "Each layer's initialisation follows its own fan; the learning rate does not depend on "
        "width, so networks of similar widths can be compared"
    )


def _activations(graph: NetworkGraph) -> str | None:
    hidden = set(graph.layers) - set(readouts(graph))
    named = {graph.layer(i).activation for i in hidden} - {None}
    if hidden and not named:  # that of a sum is the read-out's which reads the sum
        named = {graph.layer(i).activation for i in readouts(graph)} - {None, *_ANSWERS}
    others = sorted(str(name) for name in named if name not in ("relu", "relu6"))
    if hidden and not named:
        return (
            "activations: none was found. 2/fan is made for ReLU and doubles the second moment in "
            "every layer without one"
        )
    if not others:
        return None
    known = (
        "for GELU the published correlations with the best rates are .92, .68 and .95 "
        "(ReLU: .96, .84, .86)"
        if others == ["gelu"]
        else "nothing is published but for GELU"
    )
    return f"activations: {', '.join(others)}. The theory takes ReLU; {known}"


def _growth(graph: NetworkGraph, convention: Convention) -> str | None:
    """Sums of identities: what 1/d_in cannot scale."""
    if any(graph.layer(i).normalized for i in graph.layers):
        return None
    times = growth(graph, convention)
    if times < 4:
        return None
    advice = "" if convention == "stream" else '; in_degree="stream" makes it less'
    return (
        "identities: they are added up unscaled, so that the second moment of the features is "
        f"expected to be at least {short(times)} times the input's before the read-out{advice}"
    )
