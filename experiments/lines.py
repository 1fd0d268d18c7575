"""Records of experiments as lines of JSON, which a kill may cut short."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["append", "read"]


def read(path: Path) -> list[dict[str, Any]]:
    """The records written so far; a line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print("left out a damaged line", file=sys.stderr)
    return records


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record, and wait until it is on the disk.

    It has a line of its own, also where a kill cut the last one short.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
