"""Losses as a training loop has them: numbers, or tensors that are read many at a time.

Reading one number from an accelerator waits for everything that it still has to compute. A
`LossBuffer` takes the tensors as they are and reads them together. Tensors are known by what they
can do; torch is not imported.
"""

from __future__ import annotations

import numbers
from array import array
from math import isfinite
from typing import Any

from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["LossBuffer"]


class LossBuffer:
    """Collects one loss a step.

    A number, or a tensor in the host's memory, is read at once. A tensor on a device is copied
    into a small buffer there, without waiting, so that the caller may go on and overwrite its
    own; the buffer is read when it is full or when somebody takes the losses.

    Args:
        size: Losses that wait on a device at most.

    Attributes:
        finite: Whether all losses that were read since the last `take` are finite.

    >>> losses = LossBuffer()
    >>> losses.add(0.5); losses.add(2)
    >>> list(losses.take()), list(losses.take())
    ([0.5, 2.0], [])
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._values = array("d")
        self._held: Any = None
        self._waiting = 0
        self.finite = True

    def __len__(self) -> int:
        return len(self._values) + self._waiting

    @property
    def waiting(self) -> int:
        """How many losses are still on a device."""
        return self._waiting

    def add(self, loss: Any) -> None:
        """Take the loss of one step.

        Raises:
            InvalidTypeError: It is neither a number nor a tensor.
            InvalidValueError: It is a tensor of more than one number.
        """
        if type(loss) is float and not self._waiting:
            self._values.append(loss)
            if not isfinite(loss):
                self.finite = False
        elif hasattr(loss, "detach") and not _in_host_memory(loss):
            self._hold(loss)
        else:
            number = _number(loss)
            self._read()
            self._values.append(number)
            if not isfinite(number):
                self.finite = False

    def take(self) -> array[float]:
        """All losses since the last time, in their order."""
        self._read()
        values, self._values = self._values, array("d")
        self.finite = True
        return values

    def _hold(self, loss: Any) -> None:
        loss = loss.detach()
        _check_one(loss, loss.numel())
        held = self._held
        if held is None or held.device != loss.device or held.dtype != loss.dtype:
            self._read()
            self._held = held = loss.new_empty(self._size)
        held[self._waiting] = loss.reshape(())
        self._waiting += 1
        if self._waiting == self._size:
            self._read()

    def _read(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, 0
            values = self._held[:waiting].tolist()
            self._values.extend(values)
            self.finite = self.finite and all(map(isfinite, values))


def _in_host_memory(tensor: Any) -> bool:
    known = getattr(tensor, "is_cpu", None)  # six times faster than the name of its device
    return bool(tensor.device.type == "cpu" if known is None else known)


def _number(loss: Any) -> float:
    if hasattr(loss, "item"):
        _check_one(loss, loss.numel() if hasattr(loss, "numel") else loss.size)
        loss = loss.item()
    if isinstance(loss, numbers.Real):
        return float(loss)
    raise InvalidTypeError(f"a loss must be a number or a tensor of one, got {loss!r}")


def _check_one(loss: Any, count: int) -> None:
    if count != 1:
        raise InvalidValueError(
            f"a loss must be one number, got a tensor of shape {tuple(loss.shape)}: "
            "give the mean over the batch"
        )
