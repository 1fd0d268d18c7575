"""Building a module without memory for its weights, also where its builder names a device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["built_on_meta"]


@contextmanager
def built_on_meta(*, numbers: bool = False) -> Iterator[None]:
    """Whatever is built meanwhile lies on the meta device, and stays there.

    A tensor that is made on no named device, or moved to one, or made on an accelerator, is on
    the meta device instead, which has shapes and types but no data. One that is made on
    ``device="cpu"`` expressly has its data: builders read numbers from such tensors.

    Args:
        numbers: Ranges, and tensors of given numbers, are made on the host as well. Some builders
            read widths or rates from those; others mix them with tensors without data, and fail.

    >>> with built_on_meta():
    ...     model = torch.nn.Linear(10**6, 10**6).to("cuda").half()
    >>> model.weight.device, model.weight.dtype
    (device(type='meta'), torch.float16)
    """
    with torch.device("meta"), _StaysOnMeta(_NUMBERS if numbers else ()):
        yield


_NUMBERS = (torch.arange, torch.linspace, torch.logspace, torch.tensor, torch.as_tensor)


class _StaysOnMeta(TorchFunctionMode):
    """Leaves out moves of tensors without data, and makes none on an accelerator.

    Args:
        on_host: Functions that make tensors on the host unless they are told otherwise.
    """

    def __init__(self, on_host: Collection[Callable[..., Any]]) -> None:
        super().__init__()
        self._on_host = on_host

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in (Tensor.cpu, Tensor.cuda):
            return _moved(args[0], Tensor.cpu is func)
        if func is Tensor.to:
            return _converted(args[0], args[1:], named)
        device = named.get("device")
        if device is None and func in self._on_host:
            named["device"] = "cpu"
        elif device is not None and torch.device(device).type not in ("cpu", "meta"):
            named["device"] = "meta"
        return func(*args, **named)


def _moved(tensor: Tensor, to_cpu: bool) -> Tensor:
    return tensor if tensor.is_meta or to_cpu else torch.empty_like(tensor, device="meta")


def _converted(tensor: Tensor, args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """`Tensor.to` in every of its forms, without its device."""
    other = args[0] if args else named.get("other")
    if isinstance(other, Tensor):
        device, dtype = other.device, other.dtype
    else:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **named)
    if device is not None:
        tensor = _moved(tensor, torch.device(device).type == "cpu")
    return tensor if dtype is None else tensor.type(dtype)
