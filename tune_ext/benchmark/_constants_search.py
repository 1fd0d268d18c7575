"""A searcher that adds what is the same in all trials. Importing this module imports Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from tune_ext.benchmark.tune_parts import NumberedSearch

__all__ = ["ConstantsSearch"]


class ConstantsSearch(NumberedSearch):
    """Adds constants to the suggestions of a searcher.

    Args:
        searcher: What suggests the rest.
        constants: They replace what it suggests under their names.
    """

    def __init__(self, searcher: Searcher, constants: Mapping[str, Any]) -> None:
        super().__init__(searcher, {})
        self._constants = dict(constants)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The searcher's suggestion with the constants."""
        config = super().suggest(trial_id)
        return {**config, **self._constants} if isinstance(config, dict) else config
