"""Search spaces of any kind: each searcher suggests from them, or says what is wrong."""

import math

import pytest
from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    ForbiddenEqualsClause,
    NormalFloatHyperparameter,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from hypothesis import given
from hypothesis import strategies as st
from ray import tune
from ray.tune.search import Searcher

from tests.fuzz.odd import clear, fuzz, values
from tune_ext import AutoHyperSearch, BOHBSearch, ExpTestSearch
from tune_ext.errors import TuneExtError
from tune_ext.raytune._space import to_parameters

SEARCHERS = {
    "autohyper": lambda space: AutoHyperSearch(space, seed=0),
    "exptest": lambda space: ExpTestSearch(space, metric="loss", mode="min", bound=1.0),
    "bohb": lambda space: BOHBSearch(space, metric="loss", mode="min", seed=0),
}

bounds = st.one_of(
    st.sampled_from([0, 1, -1, 2, 0.0, 1e-6, 1.0, 1e308, -1e308, 5e-324, math.nan, math.inf]),
    st.sampled_from([-math.inf, 10**18, 2**63, 10**400, True, None, "1", [1], 1j]),
    st.floats(),
    st.integers(-5, 5),
)
choices = st.one_of(
    st.lists(st.one_of(bounds, st.text(max_size=3)), max_size=4),
    st.sampled_from([range(2000), [[1], [1]], [{"a": 1}, {"a": 1}], [float("nan")] * 2, ["x"]]),
    st.sampled_from([[None], [True, 1, 1.0], [print, len], "abc", {"a": 1}, None, 3]),
)


def attempt(make, *arguments):
    """A domain, or the text "none" where Tune itself refuses to make it."""
    try:
        return make(*arguments)
    except (ValueError, TypeError, AssertionError, ArithmeticError, AttributeError):
        return "none"


domains = st.one_of(
    *(
        st.builds(lambda a, b, make=make: attempt(make, a, b), bounds, bounds)
        for make in (tune.uniform, tune.loguniform, tune.randint, tune.lograndint, tune.randn)
    ),
    *(
        st.builds(lambda a, b, q, make=make: attempt(make, a, b, q), bounds, bounds, bounds)
        for make in (tune.quniform, tune.qloguniform, tune.qrandint, tune.qlograndint, tune.qrandn)
    ),
    choices.map(lambda c: attempt(tune.choice, c)),
    choices.map(lambda c: attempt(tune.grid_search, c)),
    st.builds(lambda: tune.sample_from(lambda spec: 1)),
)
keys = st.one_of(
    st.sampled_from(["lr", "a", "a/b", "", "/", "b", "\0", " ", "grid_search", "x" * 300]),
    st.sampled_from([0, 1.5, None, True, ("a",), b"k"]),
)
tune_spaces = st.recursive(
    st.dictionaries(keys, st.one_of(domains, values), max_size=3),
    lambda inner: st.dictionaries(keys, st.one_of(domains, inner, st.lists(inner)), max_size=2),
    max_leaves=4,
)


def search(name, space, *, own):
    """Two suggestions of a searcher, as Ray asks for them, and its state and back."""
    searcher = SEARCHERS[name](space if own else None)
    if not own:
        searcher.set_search_properties("loss", "min", space)
    for trial in ("a", "b"):
        suggested = searcher.suggest(trial)
        assert suggested is None or suggested == Searcher.FINISHED or isinstance(suggested, dict)
    return searcher


@pytest.mark.parametrize("name", SEARCHERS)
@fuzz(50)
@given(space=tune_spaces, own=st.booleans())
def test_tune_domains_of_any_kind(name, space, own):
    clear(lambda: search(name, space, own=own))


@pytest.mark.parametrize("name", SEARCHERS)
@fuzz(15)
@given(space=values, own=st.booleans())
def test_what_is_no_space(name, space, own):
    if own:
        found = clear(lambda: search(name, space, own=True))
        assert space is None or isinstance(found, TuneExtError)
    elif isinstance(space, dict):  # Ray hands on nothing else
        clear(lambda: search(name, space, own=False))


@st.composite
def config_spaces(draw):
    """A ConfigSpace with parameters of all kinds, conditions and forbidden values."""
    space = ConfigurationSpace()
    made = []
    kinds = st.sampled_from(["float", "log", "integer", "choice", "ordinal", "constant", "normal"])
    for number in range(draw(st.integers(0, 4))):
        kind, name = draw(kinds), draw(st.sampled_from(["a", "b", "lr", "x/y", "x", " "]))
        name = name if name not in space else f"p{number}"
        low = draw(st.sampled_from([1e-9, 1, 0.5, 3]))
        high = low + draw(st.sampled_from([1e-9, 1, 5, 1e9]))
        try:
            made.append(
                {
                    "float": lambda n, a, b: UniformFloatHyperparameter(n, -a, b),
                    "log": lambda n, a, b: UniformFloatHyperparameter(n, a, b, log=True),
                    "integer": lambda n, a, b: UniformIntegerHyperparameter(n, int(a), int(b) + 1),
                    "choice": lambda n, a, b: CategoricalHyperparameter(n, [str(a), b, 7]),
                    "ordinal": lambda n, a, b: OrdinalHyperparameter(n, [a, b]),
                    "constant": lambda n, a, b: Constant(n, a),
                    "normal": lambda n, a, b: NormalFloatHyperparameter(n, a, 1, lower=-9, upper=b),
                }[kind](name, low, high)
            )
            space.add(made[-1])
        except Exception:  # ConfigSpace's own errors have no common base
            made = made[: len(space)]
    if len(made) > 1 and draw(st.booleans()):
        space.add(EqualsCondition(made[0], made[1], made[1].default_value))
    elif made and isinstance(made[0], CategoricalHyperparameter) and draw(st.booleans()):
        space.add(ForbiddenEqualsClause(made[0], 7))
    return space


@pytest.mark.parametrize("name", SEARCHERS)
@fuzz(20)
@given(space=config_spaces(), own=st.just(True))
def test_config_spaces_of_any_kind(name, space, own):
    clear(lambda: search(name, space, own=own))


@fuzz(50)
@given(st.one_of(tune_spaces, config_spaces(), values))
def test_numbers_of_any_space(space):
    found = clear(lambda: to_parameters(space))
    if not isinstance(found, TuneExtError):
        assert all(math.isfinite(p.lower) and p.lower < p.upper for p in found)


@pytest.mark.parametrize("name", SEARCHERS)
@fuzz(25)
@given(points=values)
def test_points_to_evaluate_of_any_kind(name, points):
    space = {"lr": tune.loguniform(1e-5, 1), "b": tune.uniform(0, 1)}
    make = {
        "autohyper": lambda: AutoHyperSearch(space, points_to_evaluate=points, seed=0),
        "exptest": lambda: ExpTestSearch({"lr": space["lr"]}, "loss", "min", bound=points),
        "bohb": lambda: BOHBSearch(space, "loss", "min", points_to_evaluate=points, seed=0),
    }[name]
    clear(lambda: make().suggest("a"))
    if name == "bohb":
        nested = [{"lr": points, "b": 0.5}]
        clear(lambda: BOHBSearch(space, "loss", "min", points_to_evaluate=nested).suggest("a"))
