"""Names that the pure cores and the adapters share."""

from __future__ import annotations

__all__ = ["RESERVED_KEY"]

RESERVED_KEY = "tune_ext"
"""The key of a suggested configuration that is ours: searchers put there what a trial is for."""
