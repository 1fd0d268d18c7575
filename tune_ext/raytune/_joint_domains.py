"""The joint search's parameters as Ray Tune's domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.search.sample import Float

from tune_ext._joint_space import Range

__all__ = ["domains", "range_domain"]


def domains(searched: Sequence[Range], depends_on: Sequence[str] | None) -> dict[str, Any]:
    """A Tune domain for each range, or the value itself where it has only one.

    Args:
        searched: The ranges.
        depends_on: One of these has to be 1 for death_rate to be drawn; None if it always is.
    """
    made = {p.name: range_domain(p.lower, p.upper, integer=p.integer, log=p.log) for p in searched}
    rate = made.get("death_rate")
    if depends_on is not None and isinstance(rate, Float):
        if not depends_on:
            return made | {"death_rate": 0.0}
        rate.set_sampler(_WhereOneBranch(depends_on), allow_override=True)
    return made


def range_domain(lower: float, upper: float, *, integer: bool, log: bool) -> Any:
    """A Tune domain from `lower` to `upper`, both included; the value itself where they are one."""
    kind = int if integer else float
    first, last = kind(lower), kind(upper)
    if first == last:
        return first
    if integer:  # Tune's ranges of integers exclude their upper end
        return (tune.lograndint if log else tune.randint)(first, last + 1)
    return (tune.loguniform if log else tune.uniform)(first, last)


class _WhereOneBranch(Float._Uniform):
    """Uniform where one of some parameters is 1, else 0.

    Ray's own random search asks it, with what it drew before; searchers that read ranges off
    domains see a uniform range.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def sample(
        self, domain: Any, config: Any = None, size: int = 1, random_state: Any = None
    ) -> Any:
        """Draw a value, from as many random numbers in either case.

        Args:
            domain: The range.
            config: What Ray knows of the trial; it says when something is not drawn yet.
            size: How many values.
            random_state: Ray's generator.
        """
        drawn = super().sample(domain, config, size, random_state)
        if config is None:
            return drawn
        ones = [getattr(config.config, name) == 1 for name in self._names]
        return drawn if any(ones) else drawn * 0.0
