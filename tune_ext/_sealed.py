"""JSON with a checksum at its end, so that a bit that flips on a disk does not go unnoticed.

A digit of a JSON document may turn into another one, and all of it can still be read. So what is
kept here ends with a digest of the text before it. The text stays JSON, with an entry more.

>>> text = seal('{"lr": 0.1}')
>>> unseal(text), unseal('{"lr": 0.1}')  # without a checksum: written before there were any
('{"lr": 0.1}', '{"lr": 0.1}')
>>> unseal(text.replace("0.1", "0.3"))
Traceback (most recent call last):
tune_ext.errors.StateError: it does not fit its checksum
"""

from __future__ import annotations

import re
from hashlib import blake2b

from tune_ext.errors import StateError

__all__ = ["is_sealed", "seal", "seal_bytes", "unseal", "unseal_bytes"]

_MARK, _SIZE = b"tune_ext seal 1\n", 16

_END = re.compile(r',\s*"check":\s*"([^"]*)"\s*\}\s*$')


def seal(text: str) -> str:
    """The text of a JSON object, which must not be empty, with its checksum as the last entry."""
    head = text.rstrip().removesuffix("}").rstrip()
    before, after = (",\n  ", "\n") if "\n" in head else (", ", "")
    return f'{head}{before}"check": "{_digest(head)}"{after}}}'


def unseal(text: str) -> str:
    """The text without its checksum; text that has none as it is.

    Raises:
        StateError: The two do not belong together.
    """
    found = _END.search(text)
    if found is None:
        return text
    head = text[: found.start()]
    if _digest(head) != found[1]:
        raise StateError("it does not fit its checksum")
    return head + "}"


def is_sealed(text: str) -> bool:
    """Whether the text ends with a checksum, right or wrong."""
    return _END.search(text) is not None


def seal_bytes(data: bytes) -> bytes:
    """Any bytes, with their checksum behind them."""
    return data + _MARK + blake2b(data, digest_size=_SIZE).digest()


def unseal_bytes(data: bytes) -> tuple[bytes, bool]:
    """Bytes without their checksum, and whether they had one.

    Raises:
        StateError: The two do not belong together.

    >>> unseal_bytes(seal_bytes(b"weights")), unseal_bytes(b"weights")
    ((b'weights', True), (b'weights', False))
    """
    length = len(data) - _SIZE - len(_MARK)
    if length < 0 or data[length:-_SIZE] != _MARK:
        return data, False
    if blake2b(data[:length], digest_size=_SIZE).digest() != data[-_SIZE:]:
        raise StateError("it does not fit its checksum")
    return data[:length], True


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
