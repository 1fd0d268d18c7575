"""A search's account of itself, as rows and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """Every probe and every move of a search, in order; `str()` is a table.

    Probes that were measured ahead and never needed stand at the end.
    """

    rows: tuple[dict[str, Any], ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """One dictionary a row: round, event, a value per parameter, response, zeta, reason."""
        return [dict(row) for row in self.rows]

    def __str__(self) -> str:
        if not self.rows:
            return "nothing has been probed yet"
        header = list(self.rows[0])
        cells = [header, *([_cell(row[key]) for key in header] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(header) - 1)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]])
            for line in cells
        )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
