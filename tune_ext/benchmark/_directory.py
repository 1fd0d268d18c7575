"""Whether a directory can take the records of a comparison: asked before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from tune_ext.errors import InvalidValueError

__all__ = ["check_directory"]

_WRITTEN = ("report.html", "report.md", "comparison*.png", "comparison*.svg")
"""What a report writes beside the records, in place of what was there."""

_FIX = "give another directory with --out"


def check_directory(directory: str | Path) -> Path:
    """The directory, which may not exist yet; nothing is created.

    Raises:
        InvalidValueError: It cannot be one, or holds files of others that would be overwritten.
    """
    path = Path(directory)
    try:
        _check_creatable(path)
        theirs = _files_of_others(path)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InvalidValueError):
            raise
        raise InvalidValueError(f"{str(path)!r} cannot be a directory ({error}): {_FIX}") from None
    if theirs:
        raise InvalidValueError(
            f"{path} holds {', '.join(theirs)} and no comparison, whose report would overwrite "
            f"that: {_FIX}, or move the files away"
        )
    return path


def _check_creatable(path: Path) -> None:
    """Raise unless it is a directory that can be written to, or can be made into one."""
    if "\0" in str(path):
        raise ValueError("no name holds a NUL")
    place = path
    while not os.path.lexists(os.fsencode(place)):
        place = place.parent
    place.stat()  # a link may lead nowhere, or to itself
    if not place.is_dir():
        raise InvalidValueError(f"{place} is no directory: {_FIX}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InvalidValueError(f"nothing can be written to {place}: {_FIX}")
    for part in path.parts[len(place.parts) :]:
        if len(os.fsencode(part)) > os.pathconf(place, "PC_NAME_MAX"):
            raise InvalidValueError(f"{part!r} is too long for the name of a directory: {_FIX}")


def _files_of_others(path: Path) -> list[str]:
    """What a report would overwrite although no comparison has been here."""
    if any((path / name).exists() for name in ("study.json", "records.jsonl")):
        return []
    return sorted({found.name for pattern in _WRITTEN for found in path.glob(pattern)})[:3]
