"""From a module and an example input to the graph that the theory of scaling speaks about.

The module is exported by `torch.export` as a copy on the meta device: no weight is allocated,
nothing is computed, and the module itself is left exactly as it was. The operations of the
exported program are then read by `tune_ext._trace_reader` (docs/decisions/ says why export and
not torch.fx). The graph is that of training mode.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from tune_ext._graph import NetworkGraph
from tune_ext._layers import plain_name
from tune_ext._trace_clone import Clone, Substitute, substitute_inputs, to_meta, weightless
from tune_ext._trace_reader import GraphReader
from tune_ext._trace_site import is_real
from tune_ext._trace_values import Builder, Constant, Value, Wire
from tune_ext.errors import InvalidTypeError, UntraceableModelError

__all__ = ["trace"]

_NOT_USERS = ("<", str(Path(torch.__file__).parent), str(Path(__file__).parent / "_trace"))

_DESCRIBE = "or describe the network yourself (tune_ext.scaling.plan_of_graph takes a NetworkGraph)"


def trace(model: nn.Module, example_input: Any) -> NetworkGraph:
    """The graph of a module's weighted layers and merges.

    Args:
        model: Any module, on any device, the meta device included. It is not changed, and nothing
            of its size is allocated.
        example_input: What the module takes: a tensor, a tuple of positional arguments or a
            dictionary of keyword arguments. Only shapes and types matter.

    Raises:
        InvalidTypeError: `model` is no module, or there is no tensor in `example_input`.
        InvalidValueError: A parameter has no shape yet.
        UntraceableModelError: The operations depend on the values of tensors, the module does not
            run on such an input, or no output depends on an input.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> graph = trace(model, torch.ones(1, 4))
    >>> [(node.op, node.name, node.inputs) for node in graph.nodes]
    [('input', 'input', ()), ('layer', '0', (0,)), ('layer', '2', (1,))]
    """
    args, kwargs = _check(model, example_input)
    clone, program, note = _export(model, args, kwargs)
    builder = Builder()
    if note:
        builder.note(note)
    if clone.dropped_hooks:
        builder.note(f"hooks: {clone.dropped_hooks} forward hooks are left out")
    reader = GraphReader(builder, clone.norms, partial(plain_name, clone.module))
    inputs = _inputs(program, clone, builder)
    outputs = reader.read(program.graph, program.graph_module, inputs)
    return builder.finish(_single(model, program, outputs, builder))


def _check(model: object, example_input: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the module."""
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {model!r}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UntraceableModelError(
            f"{type(model).__name__} is compiled to TorchScript, whose operations cannot be read: "
            "pass the module that it was made from"
        )
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    kwargs: dict[str, Any] = {}
    if isinstance(example_input, dict):
        args, kwargs = (), example_input
    if not any(
        isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves((args, kwargs))
    ):
        raise InvalidTypeError(
            "example_input must be a tensor, a tuple of positional arguments or a dictionary of "
            f"keyword arguments with a tensor among them, got {example_input!r}"
        )
    return args, kwargs


# ---------------------------------------------------------------------- export


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Clone, ExportedProgram, str | None]:
    """Export a weightless copy: on meta; on the model's devices; in evaluation mode."""
    first: Exception | None = None
    reason = ""
    for substitute, training in ((to_meta, True), (_fake(), True), (to_meta, False)):
        with torch.inference_mode(False):  # stand-ins that autograd takes, whoever asks
            clone = weightless(model, substitute, training=training, bare=first is None)
        try:
            program = _export_once(clone, substitute, args, kwargs)
        except Exception as error:
            if first is None:
                first, reason = error, _reason(model, clone, error)
        else:
            note = None if training else "read in evaluation mode, as training mode failed"
            return clone, program, note
    raise UntraceableModelError(
        f"{type(model).__name__} cannot be traced: {reason}; {_DESCRIBE}"
    ) from first


def _export_once(
    clone: Clone, substitute: Substitute, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ExportedProgram:
    device = torch.get_default_device()  # what forward makes without naming a device is there
    if substitute is to_meta:
        device = torch.device("meta")
    elif device.type == "meta":
        device = torch.device("cpu")
    with _untouched(), device:
        return torch.export.export(
            clone.module,
            substitute_inputs(args, substitute),
            substitute_inputs(kwargs, substitute),
            strict=False,
        )


def _fake() -> Substitute:
    """Stand-ins that remember their device, for modules that name one in forward."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()

    def substitute(tensor: Tensor) -> Tensor:
        device = "cpu" if tensor.is_meta else tensor.device
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    return substitute


@contextlib.contextmanager
def _untouched() -> Iterator[None]:
    """Leave random states as they were, and keep what torch logs, warns and prints to ourselves."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    logger = logging.getLogger("torch")
    disabled = logger.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def _reason(model: nn.Module, clone: Clone, error: Exception) -> str:
    """Where tracing failed, and why, in one line."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [f.f_locals["self"] for f in frames if isinstance(f.f_locals.get("self"), nn.Module)]
    paths = {id(module): path for path, module in clone.module.named_modules()}
    where = ""
    if modules:
        path = plain_name(clone.module, paths.get(id(modules[-1]), ""))
        where = f" in {type(modules[-1]).__name__}" + (f" {path!r}" if path else "")
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith(_NOT_USERS)]
    if own:
        where += f" ({Path(own[-1].f_code.co_filename).name}, line {own[-1].f_lineno})"
    text = " ".join(str(error).split()).rstrip(".")
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return (
            f"what it does depends on the values of tensors{where}; let forward do the same "
            f"operations whatever they are (torch: {text[:100]}…)"
        )
    return (
        f"{type(error).__name__}{where}: {text[:300]}; check that the model runs on example_input"
    )


# ---------------------------------------------------------------------- inputs and outputs


def _inputs(program: ExportedProgram, clone: Clone, builder: Builder) -> dict[str, Value]:
    """What each placeholder of the program is."""
    parameters = dict(clone.module.named_parameters(remove_duplicate=False))
    used = {node.name: bool(node.users) for node in program.graph.nodes if node.op == "placeholder"}
    values: dict[str, Value] = {}
    for spec in program.graph_signature.input_specs:
        name, target = spec.arg.name, spec.target
        if spec.kind is InputKind.PARAMETER and target is not None:
            path = clone.names.get(id(parameters[target]), plain_name(clone.module, target))
            shape = tuple(parameters[target].shape)
            values[name] = Constant(path, shape, parameters=frozenset([path]))
        elif spec.kind is InputKind.USER_INPUT and used.get(name):
            values[name] = builder.input(name)
        else:
            values[name] = Constant()
    return values


def _single(model: nn.Module, program: ExportedProgram, outputs: Any, builder: Builder) -> Wire:
    """The one output: all that depend on the input side by side, where there are several."""
    specs = program.graph_signature.output_specs
    last = next(node for node in program.graph.nodes if node.op == "output")
    wires: list[Wire] = []
    for spec, node, value in zip(specs, last.args[0], outputs, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, fx.Node) and is_real(node):
            wire = builder.collapsed(value, "output")
            wires += [wire] if isinstance(wire, Wire) else []
    wires = list({wire.node: wire for wire in wires}.values())
    if not wires:
        raise UntraceableModelError(
            f"{type(model).__name__}: none of its outputs depends on example_input through "
            f"operations that have gradients: return what the loss is computed from, {_DESCRIBE}"
        )
    if len(wires) == 1:
        return wires[0]
    builder.note(f"several outputs: paths to all {len(wires)} count")
    return builder.concat([(wire, 1) for wire in wires], "outputs")
