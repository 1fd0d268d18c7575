"""Published search spaces, as ConfigSpace and as Ray Tune's domains.

* `joint_space`: architecture and hyperparameters of a residual network, searched together (Zela,
  Klein, Falkner, Hutter, "Towards automated deep learning", 2018, arXiv 1807.06906):
  `tune_ext.models.joint_network` builds the network of a configuration.

| name | | range | log |
|---|---|---|---|
| nr_residual_blocks_1, _2, _3 | blocks of each group | 1 … 16 | yes |
| initial_filters | channels of the stem | 8 … 32 | yes |
| widen_factor_1 | channels of a group by those before it | .5 … 8 | yes |
| widen_factor_2, _3 | | .5 … 4 | yes |
| res_branches_1, _2, _3 | residual branches of a block | 1 … 5 | |
| death_rate | ShakeDrop, in groups with one branch | 0 … 1 | |
| learning_rate | of SGD with Nesterov's momentum | .001 … 1 | yes |
| batch_size | images | 32 … 128 | yes |
| weight_decay | | 1e-5 … 1e-3 | yes |
| momentum | | .001 … .99 | |
| alpha | Mixup | 0 … 1 | |
| length | Cutout, pixels | 0 … 20 | |

Those up to death_rate are the architecture, the others the hyperparameters.

* `growth_space`: a convolutional network of any depth and its training, for searches over growing
  images (Hinz, Navarro-Guerrero, Magg, Wermter, 2018, arXiv 1807.07362; the ranges are ours):
  `tune_ext.models.growth_network` builds the network of a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ConfigSpace import (
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    OrConjunction,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from tune_ext._checks import check_flag
from tune_ext._growth_space import GROWTH_DEFAULTS, growth_domains, growth_space
from tune_ext._joint_space import PARAMETERS, Part, Range, death_rate_depends_on, ranges

__all__ = [
    "GROWTH_DEFAULTS",
    "JOINT_DEFAULTS",
    "growth_domains",
    "growth_space",
    "joint_domains",
    "joint_space",
]

JOINT_DEFAULTS: dict[str, int | float] = {
    parameter.name: int(parameter.default) if parameter.integer else float(parameter.default)
    for parameter in PARAMETERS
}
"""WRN-16-4 as its authors train it (arXiv 1605.07146), with Mixup and Cutout as the published
code of the joint search has them unless it searches: a configuration without noise in the network,
and what the part of the parameters is that is not searched."""


def joint_space(
    *,
    flat: bool = False,
    limits: Mapping[str, tuple[float, float]] | None = None,
    part: Part = "joint",
) -> ConfigurationSpace:
    """The joint search's 17 parameters, or a part of them, as a ConfigSpace.

    death_rate is there where a group has one residual branch, because nothing else reads it. It
    belongs to the architecture: the network is built with it, and its condition is on others of
    the architecture.

    Args:
        flat: As published: death_rate without its condition.
        limits: Other lower and upper limits (both included) by parameter, for small set-ups.
            Equal ones make it a constant.
        part: "joint" is everything, "architecture" what `tune_ext.models.joint_network`
            builds, "hyperparameters" the rest. Where a part is searched, the other one is as in
            `JOINT_DEFAULTS`.

    Raises:
        InvalidTypeError: Limits are not pairs of numbers.
        InvalidValueError: Limits are impossible or of no parameter; or the part is unknown.

    >>> space = joint_space(part="architecture", limits={"res_branches_1": (2, 3)})
    >>> len(space), space["nr_residual_blocks_1"].upper, len(space.conditions)
    (11, 16, 1)
    >>> dict(joint_space(part="hyperparameters").get_default_configuration())["momentum"]
    0.9
    """
    check_flag("flat", flat)
    searched = ranges(limits, part)
    depends_on = None if flat else death_rate_depends_on(searched)
    if depends_on == []:  # it never has an effect
        searched = [parameter for parameter in searched if parameter.name != "death_rate"]
    space = ConfigurationSpace()
    space.add([_parameter(parameter) for parameter in searched])
    if depends_on and "death_rate" in space:
        ones = [EqualsCondition(space["death_rate"], space[name], 1) for name in depends_on]
        space.add(OrConjunction(*ones) if len(ones) > 1 else ones[0])
    return space


def _parameter(parameter: Range) -> Any:
    """A parameter of ConfigSpace."""
    kind = int if parameter.integer else float
    name, lower, upper = parameter.name, kind(parameter.lower), kind(parameter.upper)
    if lower == upper:
        return Constant(name, lower)
    made = UniformIntegerHyperparameter if parameter.integer else UniformFloatHyperparameter
    return made(name, lower, upper, log=parameter.log, default_value=kind(parameter.default))


def joint_domains(
    *,
    flat: bool = True,
    limits: Mapping[str, tuple[float, float]] | None = None,
    part: Part = "joint",
) -> dict[str, Any]:
    """The joint search's 17 parameters, or a part of them, as Ray Tune's domains.

    Tune's domains know no conditions: as published, death_rate is one of them always, and without
    effect where no group has one residual branch. Unless `flat`, Ray's own random search draws 0
    there; searchers that read the ranges off domains (Optuna's, TuneBOHB, …) do as if it were
    flat. Those that know conditions take `joint_space`.

    Args:
        flat: Whether death_rate is drawn also where it has no effect. If not, the domains
            have to be the outermost level of Tune's ``param_space``.
        limits: As for `joint_space`; equal ones are that value.
        part: As for `joint_space`.

    Raises:
        InvalidTypeError: Limits are not pairs of numbers.
        InvalidValueError: Limits are impossible or of no parameter; or the part is unknown.

    >>> domains = joint_domains(limits={"learning_rate": (0.1, 0.1)})
    >>> len(domains), domains["learning_rate"], domains["length"].upper
    (17, 0.1, 21)
    """
    from tune_ext.raytune._joint_domains import domains

    check_flag("flat", flat)
    searched = ranges(limits, part)
    return domains(searched, None if flat else death_rate_depends_on(searched))
