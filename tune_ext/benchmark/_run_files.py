"""Runs in files: tensors and plain values, which nothing but data can be read from.

A state is walked: its tensors go into a list that `torch.save` writes, everything else into
JSON that stands beside them in the same file. `torch.load(weights_only=True)` reads it, so that
a file of somebody else's can hold wrong numbers, but no code.

What is kept to the bit: tensors; arrays and scalars of numpy, as in the state of its generators;
numbers (integers of any size), text, bytes, lists, tuples, and dictionaries with any such keys.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tune_ext._json import loads
from tune_ext._sealed import seal_bytes, unseal_bytes
from tune_ext.errors import InvalidTypeError, StateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_no_pickle", "read_run", "write_run"]

_FILE = "run.pt"
_PICKLE = "run.pkl"
"""What tune_ext wrote before, which is not read any more."""

_VERSION = 2
"""From this one on with a checksum, as torch looks for none: a bit that flips would be a weight."""
_KIND = "tune_ext run"
_NUMBERS = "biufc"
"""The kinds of arrays that are kept: booleans and numbers."""


def write_run(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state into the folder of a checkpoint.

    Args:
        folder: It exists.
        state: Tensors and plain values, see the module.

    Raises:
        InvalidTypeError: It holds something else; the message says where.
    """
    import torch

    tensors: list[Tensor] = []
    text = json.dumps(_encoded(dict(state), tensors, "state"))
    kept = {"kind": _KIND, "version": _VERSION, "state": text, "tensors": tensors}
    whole = io.BytesIO()
    torch.save(kept, whole)
    Path(folder, _FILE).write_bytes(seal_bytes(whole.getvalue()))


def read_run(folder: str | Path) -> dict[str, Any]:
    """What `write_run` wrote, with its tensors on the CPU.

    Raises:
        StateError: There is no such file, it is damaged, or of another version.
    """
    import torch

    path = Path(folder, _FILE)
    if not path.exists() and Path(folder, _PICKLE).exists():
        raise StateError(
            f"{folder} was written by an earlier tune_ext as a pickle, which could run code: it is "
            "not read; train this trial again, or go on with the tune_ext that wrote it"
        )
    try:
        data, is_sealed = unseal_bytes(path.read_bytes())
        kept = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything
        raise StateError(_damaged(folder, error)) from error
    if not isinstance(kept, dict) or kept.get("kind") != _KIND:
        raise StateError(f"{path} holds no run of a comparison; it was left alone")
    if kept.get("version") == _VERSION and not is_sealed:
        raise StateError(_damaged(folder, StateError("it ends without its checksum")))
    if kept.get("version") not in (1, _VERSION):
        raise StateError(
            f"{path} has version {kept.get('version')!r}, but this tune_ext knows version "
            f"{_VERSION}; use the tune_ext that wrote it"
        )
    try:
        state: dict[str, Any] = _decoded(loads(kept["state"]), kept["tensors"])
        if not isinstance(state, dict):
            raise TypeError(f"a state is a dictionary, not {type(state).__name__}")
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise StateError(_damaged(folder, error)) from error
    return state


def check_no_pickle(checkpoint: Any) -> None:
    """Raise where Ray would unpickle a file of a checkpoint before it asks a trainable to load it.

    Ray takes a checkpoint with a file of this name for one of a trainable that saves
    dictionaries. Ours never do.

    Args:
        checkpoint: What `Trainable.restore` is given: a folder, a checkpoint, or a result with one.

    Raises:
        StateError: There is such a file.
    """
    from pyarrow import fs
    from ray.tune.trainable.trainable import _DICT_CHECKPOINT_FILE_NAME as NAME

    found = getattr(checkpoint, "checkpoint", checkpoint)
    path = str(getattr(found, "path", found))
    files = getattr(found, "filesystem", None) or fs.LocalFileSystem()
    if files.get_file_info(f"{path}/{NAME}").type != fs.FileType.NotFound:
        raise StateError(
            f"{path} has a file {NAME}, which tune_ext does not write and Ray would unpickle: it "
            "could run code, and was left alone"
        )


def _damaged(folder: str | Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's advice is to trust the file
        return f"{folder} holds something else than tensors and plain values; it was left alone"
    said = " ".join(str(error).split()) or type(error).__name__
    return f"{folder} holds no run that can be read: {said}"


def _encoded(value: Any, tensors: list[Tensor], where: str) -> Any:
    """A value as JSON; tensors are put into a list, and stand as their places in it."""
    import torch

    if isinstance(value, str):
        return str(value)
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, torch.Tensor):
        tensors.append(value.detach())
        return {"tensor": len(tensors) - 1}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _NUMBERS:
        return _encoded_number(value)
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode("ascii")}
    if type(value) in (list, tuple):
        items = [_encoded(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        return _encoded_mapping(value, tensors, where)
    raise _no_plain(value, where)


def _encoded_number(value: Any) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
    kind = "array" if isinstance(value, np.ndarray) else "scalar"
    return {kind: [value.dtype.str, list(value.shape), data]}


def _encoded_mapping(value: Mapping[Any, Any], tensors: list[Tensor], where: str) -> dict[str, Any]:
    items = [
        [_encoded(k, tensors, f"a key of {where}"), _encoded(v, tensors, f"{where}[{k!r}]")]
        for k, v in value.items()
    ]
    if not isinstance(value, OrderedDict):
        return {"dict": items}
    # The versions of a network's modules, which torch hangs onto the dictionary.
    about = getattr(value, "_metadata", None)
    return {"ordered": items, "metadata": about and _encoded(about, tensors, where)}


def _no_plain(value: Any, where: str) -> InvalidTypeError:
    return InvalidTypeError(
        f"a run's state must hold tensors and plain values only, but {where} is a "
        f"{type(value).__name__}: give what it is made from instead"
    )


def _decoded(value: Any, tensors: list[Tensor]) -> Any:
    """Undo `_encoded`."""
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == "ordered":
        made = OrderedDict((_decoded(k, tensors), _decoded(v, tensors)) for k, v in inner)
        if (about := _decoded(value["metadata"], tensors)) is not None:
            made._metadata = about  # type: ignore[attr-defined] # as torch does
        return made
    if kind not in _DECODERS:
        raise ValueError(f"an unknown kind of value: {kind!r}")
    return _DECODERS[kind](inner, tensors)


def _tensor(place: Any, tensors: list[Tensor]) -> Tensor:
    import torch

    if not isinstance(place, int) or place < 0 or not isinstance(tensors[place], torch.Tensor):
        raise ValueError(f"{place!r} is the place of no tensor")
    return tensors[place]


def _array(told: Any, tensors: list[Tensor]) -> Any:
    name, shape, data = told
    dtype = np.dtype(str(name))
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"an array of {name!r}")
    return np.frombuffer(_bytes(data), dtype=dtype).reshape([int(n) for n in shape]).copy()


def _bytes(data: Any, tensors: object = None) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


_DECODERS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "tensor": _tensor,
    "array": _array,
    "scalar": lambda told, tensors: _array(told, tensors)[()],
    "bytes": _bytes,
    "tuple": lambda items, tensors: tuple(_decoded(items, tensors)),
    "dict": lambda items, tensors: {_decoded(k, tensors): _decoded(v, tensors) for k, v in items},
}
