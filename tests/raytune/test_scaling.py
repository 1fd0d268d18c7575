"""ArchitectureScaledSearch: what trials get, what the wrapped searcher sees, and what is kept."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import math
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle, tune
from ray.tune.execution.tune_controller import _get_max_pending_trials
from ray.tune.schedulers import HyperBandForBOHB
from ray.tune.search import (
    BasicVariantGenerator,
    ConcurrencyLimiter,
    Repeater,
    Searcher,
    SearchGenerator,
)
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.optuna import OptunaSearch
from torch import nn

from tests.raytune.scaled_trainables import WantsItsOwnRate, factor, network
from tests.raytune.test_restore import Ends, drive, let_ray_end
from tests.raytune.trainables import Counter, notes, response
from tune_ext import ArchitectureScaledSearch, AutoHyperScheduler, AutoHyperSearch, scaling
from tune_ext.autohyper import AutoHyper, Parameter
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune._play import global_random_state, play
from tune_ext.raytune._replay import NotedSearcher
from tune_ext.raytune.testing import SearcherConformance

SPACE = {"lr": tune.loguniform(1e-6, 1.0), "depth": tune.randint(1, 4), "width": 8}
INPUT = torch.zeros(1, 4)


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """To trace takes a tenth of a second, and here are few different networks."""
    graphs: dict[str, Any] = {}

    def trace(model: nn.Module, example: Any) -> Any:
        key = f"{model} {example.shape}"
        if key not in graphs or type(model) is not nn.Sequential:
            graphs[key] = _trace.trace(model, example)
        return graphs[key]

    with pytest.MonkeyPatch.context() as patch:
        _trace = importlib.import_module("tune_ext._trace")
        patch.setitem(sys.modules, "tune_ext._trace", SimpleNamespace(trace=trace))
        yield


def scaled(searcher: Any, model_fn: Any = network, **options: Any) -> ArchitectureScaledSearch:
    return ArchitectureScaledSearch(searcher, model_fn, INPUT, **options)


class Scripted(Searcher):
    """Suggests what it is given, and keeps what it hears."""

    def __init__(self, *configs: Any, metric: str = "loss", taken: bool = True) -> None:
        super().__init__(metric, "min")
        self.configs, self.heard, self.taken = list(configs), [], taken

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        self.heard.append(("space", config, spec))
        return self.taken

    def suggest(self, trial_id: str) -> Any:
        return self.configs.pop(0) if self.configs else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        self.heard.append(("result", trial_id, result))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.heard.append(("complete", trial_id, result, error))

    def add_evaluated_point(self, parameters: Any, value: Any, *rest: Any) -> None:
        self.heard.append(("point", parameters, value, *rest))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps(self.configs))

    def restore(self, checkpoint_path: str) -> None:
        self.configs = list(json.loads(Path(checkpoint_path).read_text())[:])


class Counted:
    """A model builder that counts its calls, and keeps what they made."""

    def __init__(self) -> None:
        self.made: list[nn.Module] = []

    def __call__(self, config: Mapping[str, Any]) -> nn.Module:
        self.made.append(network(config))
        return self.made[-1]


class Trusting(ArchitectureScaledSearch):
    """The searchers of Ray's save pickles."""

    def restore(self, checkpoint_path: str, *, trusted: bool = True) -> None:
        super().restore(checkpoint_path, trusted=trusted)


class _Scaled(SearcherConformance):
    space: Mapping[str, Any] = SPACE
    names: tuple[str, ...] = ("lr", "depth")
    points: tuple[Mapping[str, Any], ...] = ({"lr": 1e-3, "depth": 2},)

    def wrap(self, **options: Any) -> Any:
        raise NotImplementedError

    def make(self, **options: Any) -> Any:
        return Trusting(self.wrap(**options), network, INPUT, base={"depth": 1})

    def test_suggestions_are_legal_and_plain(self) -> None:
        """The base rate lies in the domain; the rate is the factor times that."""
        for trial in self.run(self.ready()):
            ours, depth = trial.config["tune_ext"], trial.config.get("depth", 2)
            assert SPACE["lr"].is_valid(ours["base_lr"])
            assert ours["lr_factor"] == pytest.approx(factor(depth, base=1))
            assert trial.config["lr"] == ours["base_lr"] * ours["lr_factor"]

    def test_another_process_gives_the_same_run(self) -> None:
        pytest.skip("a process takes seconds, and the wrapped searchers' classes start some")


def misses(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


class TestScaledOptunaSearch(_Scaled):
    trials = 14

    def wrap(self, **options: Any) -> Any:
        return OptunaSearch(**options)

    @misses("a result without the metric is a KeyError")
    def test_invalid_metrics_neither_raise_nor_stall(self) -> None:
        super().test_invalid_metrics_neither_raise_nor_stall()

    @misses("a trial that it did not suggest is a KeyError")
    def test_trials_of_others_are_ignored(self) -> None:
        super().test_trials_of_others_are_ignored()


@pytest.mark.skipif(importlib.util.find_spec("hpbandster") is None, reason="needs hpbandster")
class TestScaledTuneBOHB(_Scaled):
    def wrap(self, **options: Any) -> Any:
        return TuneBOHB(**options)

    @misses("what arrives at completion never reaches its model")
    def test_the_last_result_counts_also_when_it_arrives_at_completion_alone(self) -> None:
        super().test_the_last_result_counts_also_when_it_arrives_at_completion_alone()

    @misses("a trial that it did not suggest is a KeyError")
    def test_trials_of_others_are_ignored(self) -> None:
        super().test_trials_of_others_are_ignored()

    @misses("it pops from the list that it was given")
    def test_what_the_caller_passes_stays_as_it_is(self) -> None:
        super().test_what_the_caller_passes_stays_as_it_is()


class TestScaledAutoHyperSearch(_Scaled):
    space: Mapping[str, Any] = {**SPACE, "depth": 2}
    names = ("lr",)
    points = ({"lr": 1e-3},)
    finishes = True

    def wrap(self, **options: Any) -> Any:
        return AutoHyperSearch(probe_epochs=3, **options)

    def other_objective(self, config: Mapping[str, Any]) -> float:
        return abs(math.log10(config["lr"]) + 4) / 10


def test_the_answer_does_not_depend_on_the_number_of_workers() -> None:
    space = {"lr": tune.loguniform(1e-6, 1.0), "depth": 3, "width": 8}

    def answer(searcher: Any, workers: int) -> Any:
        searcher.set_search_properties(None, None, space)
        trials, finished = play(
            searcher,
            lambda c: response(c["tune_ext"]["base_lr"]),
            trials=99,
            metric="response_mean",
            workers=workers,
        )
        assert finished
        return trials[-1].config

    alone = answer(scaled(AutoHyperSearch(probe_epochs=3), base={"depth": 1}), 1)
    many = answer(scaled(AutoHyperSearch(probe_epochs=3, max_concurrent=4), base={"depth": 1}), 4)
    plain = AutoHyperSearch(probe_epochs=3)
    plain.set_search_properties(None, None, space)
    trials, _ = play(plain, lambda c: response(c["lr"]), trials=99, metric="response_mean")
    assert alone["lr"] == many["lr"] == trials[-1].config["lr"] * alone["tune_ext"]["lr_factor"]
    assert alone["tune_ext"]["base_lr"] == many["tune_ext"]["base_lr"]


def test_a_trial_gets_its_own_rate_and_the_searcher_hears_of_the_base() -> None:
    inner = Scripted({"lr": 0.1, "depth": 5, "width": 8})
    search = scaled(inner, base={"depth": 2, "width": 8})
    config = search.suggest("a")
    assert config == {
        "lr": 0.1 * config["tune_ext"]["lr_factor"],
        "depth": 5,
        "width": 8,
        "tune_ext": {"base_lr": 0.1, "lr_factor": pytest.approx(factor(5))},
    }
    flat = {"loss": 1.0, "config/lr": config["lr"], "config/depth": 5}
    flat |= {f"config/tune_ext/{k}": v for k, v in config["tune_ext"].items()}
    nested = {"loss": 1.0, "config": config}
    before = (dict(flat), dict(nested), dict(config))
    search.on_trial_result(trial_id="a", result=flat)
    search.on_trial_result("a", nested)
    search.on_trial_complete(trial_id="a", result=flat, error=False)
    search.on_trial_complete("a", None, error=True)
    search.on_trial_complete("a")
    seen = {"loss": 1.0, "config/lr": 0.1, "config/depth": 5}
    assert inner.heard == [
        ("result", "a", seen),
        ("result", "a", {"loss": 1.0, "config": {"lr": 0.1, "depth": 5, "width": 8}}),
        ("complete", "a", seen, False),
        ("complete", "a", None, True),
        ("complete", "a", None, False),
    ]
    assert before == (flat, nested, config), "a result of Ray's was changed"


def test_a_rate_that_a_scheduler_changed_stays_changed() -> None:
    inner = Scripted({"lr": 0.1, "depth": 5, "width": 8})
    search = scaled(inner)
    config = search.suggest("a")
    search.on_trial_result("a", {"config": {**config, "lr": 3 * config["lr"]}})
    assert inner.heard[0][2]["config"]["lr"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("suggested", "constants", "lr", "expected"),
    [
        ({"opt": {"lr": 0.1, "m": 1}, "n": 3}, {}, "opt/lr", {"opt": {"lr": 0.05, "m": 1}, "n": 3}),
        ({"opt/lr": 0.1}, {}, "opt/lr", {"opt/lr": 0.05}),
        ({"n": 3}, {"lr": 0.1}, "lr", {"lr": 0.05, "n": 3}),
        ({"n": 3}, {"opt": {"lr": 0.1, "m": 1}}, "opt/lr", {"opt": {"lr": 0.05}, "n": 3}),
        ({"lr": 0.1, "tune_ext": {"role": "probe"}}, {}, "lr", {"lr": 0.05, "role": "probe"}),
    ],
)
def test_wherever_the_rate_is_it_is_scaled(
    suggested: Any, constants: Any, lr: str, expected: Any
) -> None:
    search = scaled(Scripted(suggested, taken=False), lr=lr, base={"width": 8, "depth": 2})
    search._factors.factor = lambda config, constants: 0.5
    search.set_search_properties(None, None, constants)
    before = json.dumps(suggested)
    config = search.suggest("a")
    ours = config.pop("tune_ext")
    assert (ours.pop("base_lr"), ours.pop("lr_factor")) == (0.1, 0.5)
    assert {**config, **ours} == expected
    assert json.dumps(suggested) == before, "the searcher's own dictionary was changed"


def test_a_conditional_configuration_without_a_rate_passes() -> None:
    first = {"lr": 0.1, "depth": 2, "width": 8}
    search = scaled(Scripted(first, {"kind": "lbfgs"}, None, Searcher.FINISHED))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        search.suggest("a")
        assert search.suggest("b") == {"kind": "lbfgs"}
    assert [search.suggest("c"), search.suggest("d")] == [None, Searcher.FINISHED]
    with pytest.warns(UserWarning, match="not in the first suggested configuration"):
        scaled(Scripted({"rate": 0.1})).suggest("a")


def test_an_architecture_is_planned_once_and_never_built_in_memory() -> None:
    model_fn = Counted()
    configs = [{"lr": 10.0**-i, "depth": 1 + i % 3, "width": 8, "decay": i} for i in range(9)]
    search = scaled(Scripted(*configs), model_fn)
    factors = [search.suggest(str(i))["tune_ext"]["lr_factor"] for i in range(9)]
    assert factors == pytest.approx([factor(1), factor(2), factor(3)] * 3)
    assert len(model_fn.made) == 3
    assert {p.device.type for model in model_fn.made for p in model.parameters()} == {"meta"}


def test_a_model_that_is_moved_or_reads_numbers_is_planned() -> None:
    def model_fn(config: Any) -> nn.Module:
        config.pop("lr")
        assert torch.linspace(0, 1, 3).tolist() == [0, 0.5, 1]
        assert torch.zeros(2, device="cpu").tolist() == [0, 0]
        return network(config).to("cuda")

    search = scaled(Scripted({"lr": 0.1, "depth": 5}), model_fn, on_error="raise")
    assert search.suggest("a")["tune_ext"]["lr_factor"] == pytest.approx(factor(5))


def test_a_model_that_takes_everything_is_planned_once_too() -> None:
    made = []

    def model_fn(config: Any) -> nn.Module:
        assert "tune_ext" not in config
        made.append(config)
        return network(dict(**config))

    configs = [{"lr": 10.0**-i, "depth": 2, "width": 8, "tune_ext": {"i": i}} for i in range(5)]
    search = scaled(Scripted(*configs), model_fn)
    assert {search.suggest(str(i))["tune_ext"]["lr_factor"] for i in range(5)} == {1.0}
    assert len(made) == 1


def test_what_a_model_reads_in_forward_counts_too() -> None:
    class Skipping(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config, self.layers = config, network({"depth": 3})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[-1](
                self.layers[:2](x) if self.config["skip"] else self.layers[:-1](x)
            )

    configs = [
        {"lr": 0.1, "skip": skip, "decay": n}
        for n, skip in enumerate((True, False, True, False, True))
    ]
    made = []
    search = scaled(Scripted(*configs), lambda c: made.append(c) or Skipping(c))
    factors = [search.suggest(str(i))["tune_ext"]["lr_factor"] for i in range(5)]
    assert factors == pytest.approx([factor(n) for n in (1, 3, 1, 3, 1)])
    assert len(made) == 2


def test_a_model_that_insists_on_a_dictionary_gets_one() -> None:
    def model_fn(config: Any) -> nn.Module:
        if type(config) is not dict:
            raise TypeError("a dictionary!")
        return network(config)

    configs = [{"lr": 0.1, "depth": depth, "width": 8} for depth in (1, 2, 1)]
    search = scaled(Scripted(*configs), model_fn)
    factors = [search.suggest(str(i))["tune_ext"]["lr_factor"] for i in range(3)]
    assert factors == pytest.approx([factor(1), factor(2), factor(1)])


def test_the_example_may_depend_on_the_configuration() -> None:
    configs = [{"lr": 0.1, "depth": 2, "width": 8, "inputs": n} for n in (4, 6, 4)]
    asked = []

    def example(config: Any) -> torch.Tensor:
        asked.append(config["inputs"])
        return torch.zeros(2, config["inputs"])

    search = ArchitectureScaledSearch(
        Scripted(*configs), lambda c: nn.Sequential(nn.Linear(c["inputs"], 4), network(c)), example
    )
    with pytest.warns(scaling.ScalingWarning, match=r"widths.*first architecture only") as caught:
        factors = [search.suggest(str(i))["tune_ext"]["lr_factor"] for i in range(3)]
    assert len({str(warning.message) for warning in caught}) == len(caught)
    assert {warning.filename for warning in caught} == {__file__}
    assert factors == pytest.approx([factor(3)] * 3)
    assert asked == [4, 6]


def test_the_base_is_a_plan_a_configuration_or_the_published_one() -> None:
    config = {"lr": 0.1, "depth": 4, "width": 8}

    def found(**options: Any) -> float:
        search = scaled(Scripted(config), **options)
        return cloudpickle.loads(cloudpickle.dumps(search)).suggest("a")["tune_ext"]["lr_factor"]

    assert found() == pytest.approx(factor(4))
    assert found(base={"depth": 1, "width": 3}) == pytest.approx(factor(4, base=1))
    assert found(base=scaling.plan(network({"depth": 6, "width": 4}), INPUT)) == pytest.approx(
        factor(4, base=6)
    )
    assert found(base=config, aggregate="sum") == 1.0
    published = scaling.plan_of_dag("2", aggregate="sum")
    assert scaled(Scripted(), base=published).plan(config).aggregate == "sum"
    with pytest.raises(InvalidValueError, match="aggregate cannot be 'mean'"):
        scaled(Scripted(), base=published, aggregate="mean")
    options = {"aggregate": "gain", "in_degree": "stream"}
    stream = scaling.plan(network(config), INPUT, **options)
    for search in (scaled(Scripted(), base=stream), scaled(Scripted(), **options)):
        plan = search.plan(config)
        assert (plan.aggregate, plan.in_degree) == ("gain", "stream")
    with pytest.raises(InvalidValueError, match=r"base, as a configuration, .* KeyError: 'depth'"):
        scaled(Scripted(config), base={"width": 1}).suggest("a")


def test_an_architecture_that_cannot_be_planned_keeps_its_rate() -> None:
    configs = [{"lr": 0.1 / n, "depth": 1 + n % 2, "width": 8, "decay": n} for n in range(1, 9)]

    def model_fn(config: Any) -> nn.Module:
        if config["depth"] == 2:
            raise RuntimeError("too deep for me")
        return network(config)

    search = scaled(Scripted(*configs), model_fn)
    with pytest.warns(UserWarning, match="cannot be planned") as caught:
        seen = [search.suggest(str(i)) for i in range(8)]
    (warning,) = [w for w in caught if "cannot be planned" in str(w.message)]
    assert "model_fn failed with RuntimeError: too deep for me" in str(warning.message)
    assert warning.filename == __file__
    assert {c["depth"]: c["tune_ext"]["lr_factor"] for c in seen} == {
        1: pytest.approx(factor(1)),
        2: 1.0,
    }
    assert all(c["lr"] == c["tune_ext"]["base_lr"] for c in seen if c["depth"] == 2)
    with pytest.raises(InvalidValueError, match="too deep for me"):
        scaled(Scripted(*configs[:1]), model_fn, on_error="raise").suggest("a")


@pytest.mark.parametrize(
    ("model_fn", "said"),
    [
        (lambda c: "no module", "model_fn must return a torch module, got 'no module'"),
        (lambda c: nn.ReLU(), "no learning rate"),
        (lambda c: nn.Linear(4, {"a": 2}[c["act"]]), "Ray hides what is no number.*here: act"),
        (lambda c: nn.Linear(4, int(torch.ones(1).sum())), 'make that with device="cpu"'),
    ],
)
def test_why_an_architecture_cannot_be_planned_is_said(model_fn: Any, said: str) -> None:
    config = {"lr": 0.1, "act": ("__ref_ph", "12345678")}
    with pytest.raises(InvalidValueError, match=said):
        scaled(Scripted(config), model_fn, on_error="raise").suggest("a")


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf, "exptest", None, True, [0.1]])
def test_a_rate_that_is_no_positive_number_is_named(rate: Any) -> None:
    search = scaled(Scripted({"lr": rate, "depth": 1, "width": 8}))
    with pytest.raises(InvalidValueError, match="'lr' must be a positive number"):
        search.suggest("a")


def test_a_rate_that_cannot_be_scaled_stays_as_it_is() -> None:
    tiny = {"lr": 5e-324, "depth": 9, "width": 8}
    with pytest.warns(UserWarning, match="times its factor"):
        assert scaled(Scripted(tiny)).suggest("a")["lr"] == 5e-324


def test_points_that_are_known_are_told_with_their_base_rate() -> None:
    inner = Scripted({"lr": 0.1, "depth": 5, "width": 8})
    search = scaled(inner)
    config = search.suggest("a")
    search.add_evaluated_point(config, 0.5)
    search.add_evaluated_point({"lr": config["lr"], "depth": 5, "width": 8}, 0.5, pruned=True)
    assert [point["lr"] for _, point, *_ in inner.heard] == pytest.approx([0.1, 0.1])
    assert [set(point) for _, point, *_ in inner.heard] == [{"lr", "depth", "width"}] * 2
    assert inner.heard[1][2:] == (0.5, False, True, None)
    nested = scaled(inner, lambda c: network({"depth": c["net"]["depth"], "width": 8}), lr="opt/lr")
    nested.add_evaluated_point({"opt/lr": 0.1, "net/depth": 5}, 0.5)
    assert inner.heard[-1][1] == {"opt/lr": pytest.approx(0.1 / factor(5)), "net/depth": 5}


def test_optuna_learns_from_points_in_terms_of_the_base() -> None:
    inner = OptunaSearch(metric="loss", mode="min", seed=0)
    search = scaled(inner, lambda c: network({"depth": 5, "width": 8}))
    search.set_search_properties(None, None, {"lr": tune.loguniform(1e-6, 1.0)})
    search.add_evaluated_point(search.scale({"lr": 0.01}), 1.0)
    assert inner._ot_study.trials[0].params == {"lr": 0.01}


def test_a_space_without_the_rate_is_an_error_before_the_run() -> None:
    with pytest.raises(InvalidValueError, match="has learning_rate, depth: name the entry"):
        scaled(Scripted()).set_search_properties(
            None, None, {"learning_rate": tune.loguniform(1e-3, 1), "depth": 1}
        )
    several = {"opt": tune.choice([{"name": "sgd", "lr": 0.1}, {"name": "lbfgs"}]), "depth": 1}
    inner = Scripted()
    assert scaled(inner, lr="opt/lr").set_search_properties("loss", "min", several, num_samples=3)
    assert inner.heard == [("space", several, {"num_samples": 3})]
    assert not scaled(Scripted(taken=False)).set_search_properties(None, None, {"depth": 1})


def test_the_random_state_is_untouched_whatever_the_model_does() -> None:
    def model_fn(config: Any) -> nn.Module:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        return network(config)

    before, torch_before = global_random_state(), torch.get_rng_state()
    scaled(Scripted({"lr": 0.1, "depth": 2, "width": 8}), model_fn).suggest("a")
    assert global_random_state() == before
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_scaling_a_configuration_afterwards() -> None:
    """The base rate that was found serves an architecture that was never tried."""
    search = scaled(Scripted(), base={"depth": 2, "width": 8})
    config = search.scale({"lr": 0.1, "depth": 12, "width": 8})
    assert config["lr"] == pytest.approx(0.1 * factor(12))
    assert search.unscale(config) == {"lr": 0.1, "depth": 12, "width": 8}
    assert search.scale(config) == config
    assert search.scale({**config, "depth": 3})["lr"] == pytest.approx(0.1 * factor(3))
    assert search.plan({"depth": 12, "width": 8}).factor() == pytest.approx(factor(12))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((BasicVariantGenerator(), network, INPUT), {}, InvalidTypeError, "RandomSampler"),
        (("optuna", network, INPUT), {}, InvalidTypeError, "must be a Searcher of Ray's"),
        ((Scripted(), "net", INPUT), {}, InvalidTypeError, "model_fn must be a function"),
        ((Scripted(), network, [3]), {}, InvalidTypeError, "example_input must be a tensor"),
        ((Scripted(), network, INPUT), {"base": 3}, InvalidTypeError, "base must be a plan"),
        ((Scripted(), network, INPUT), {"lr": 3}, InvalidTypeError, "lr must be the name"),
        ((Scripted(), network, INPUT), {"aggregate": "max"}, InvalidValueError, "aggregate must"),
        ((Scripted(), network, INPUT), {"in_degree": "x"}, InvalidValueError, "in_degree must"),
        ((Scripted(), network, INPUT), {"on_error": "x"}, InvalidValueError, "on_error must be"),
    ],
)
def test_arguments_that_cannot_work_are_named(
    arguments: Any, options: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        ArchitectureScaledSearch(*arguments, **options)


def test_scaling_twice_is_an_error() -> None:
    with pytest.raises(InvalidTypeError, match="scale it once"):
        scaled(ConcurrencyLimiter(scaled(Scripted()), max_concurrent=2))
    with pytest.raises(InvalidValueError, match="'tune_ext' is 'mine'"):
        scaled(Scripted({"lr": 1, "depth": 1, "width": 8, "tune_ext": "mine"})).suggest("a")


def limited(model_fn: Any, *, inside: bool) -> Any:
    optuna_search = OptunaSearch(metric="loss", mode="min", seed=0)
    if inside:
        return scaled(ConcurrencyLimiter(optuna_search, max_concurrent=2), model_fn)
    return ConcurrencyLimiter(scaled(optuna_search, model_fn), max_concurrent=2)


@pytest.mark.parametrize("inside", [True, False])
def test_ray_saves_and_restores_it_around_and_inside_a_limiter(
    inside: bool, tmp_path: Path
) -> None:
    """Running trials and plans survive: nothing is planned again."""
    search, again = Counted(), Counted()
    one, other = limited(search, inside=inside), limited(again, inside=inside)
    assert _get_max_pending_trials(SearchGenerator(one)) == 2
    one.set_search_properties(None, None, dict(SPACE))
    play(one, lambda c: c["tune_ext"]["base_lr"], trials=9)
    configs = [one.suggest("r1"), one.suggest("r2"), one.suggest("r3")]
    assert configs[2] is None
    SearchGenerator(one).save_to_dir(str(tmp_path), "2026-01-01_00-00-00")
    SearchGenerator(other).restore_from_dir(str(tmp_path))
    for each in (one, other):
        assert each.suggest("r3") is None
        for name, config in zip(("r1", "r2"), configs, strict=False):
            each.on_pause(name)
            each.on_unpause(name)
            each.on_trial_complete(name, {"loss": 1.0, "config": config})
    runs = [
        play(s, lambda c: c["tune_ext"]["base_lr"], trials=6, first=50)[0] for s in (one, other)
    ]
    assert runs[0] == runs[1]
    assert (len(search.made), len(again.made)) == (3, 0)


def test_a_chain_ends_where_the_wrapped_searcher_ends_it() -> None:
    """AutoHyperSearch tells Ray how many pending trials it may keep."""
    assert _get_max_pending_trials(SearchGenerator(scaled(AutoHyperSearch()))) == 64
    searcher = TuneBOHB(metric="loss", mode="min")
    ConcurrencyLimiter(scaled(searcher), max_concurrent=3)
    assert searcher._max_concurrent == 3


def test_repeats_of_a_suggestion_are_scaled_alike() -> None:
    for inside in (True, False):
        inner: Any = Scripted({"lr": 0.1, "depth": 5, "width": 8})
        search = scaled(Repeater(inner, 2)) if inside else Repeater(scaled(inner), 2)
        configs = [search.suggest("a"), search.suggest("b")]
        assert [c["__trial_index__"] for c in configs] == [0, 1]
        assert [c["lr"] for c in configs] == pytest.approx([0.1 * factor(5)] * 2)
        search.on_trial_complete("a", {"loss": 1.0})
        search.on_trial_complete("b", {"loss": 3.0})
        assert inner.heard == [("complete", "a", {"loss": 2.0}, False)]


def saved(path: Path, **options: Any) -> tuple[ArchitectureScaledSearch, dict[str, Any]]:
    search = scaled(Scripted(*[{"lr": 0.1, "depth": n} for n in (1, 2)], taken=False), **options)
    search.set_search_properties(None, None, {"width": 8, "pair": (1, [2]), "object": object()})
    search.suggest("a")
    search.save(str(path))
    return search, json.loads(path.read_text())


def test_its_own_file_holds_the_wrapped_searchers(tmp_path: Path) -> None:
    search, state = saved(tmp_path / "state")
    assert (state["kind"], state["version"]) == ("ArchitectureScaledSearch", 1)
    model_fn = Counted()
    fresh = scaled(Scripted(), model_fn)
    fresh.restore(str(tmp_path / "state"))
    assert fresh.suggest("b") == search.suggest("b")
    assert fresh.scale({"lr": 0.1, "depth": 1})["lr"] == pytest.approx(0.1 * factor(1))
    assert len(model_fn.made) == 1
    assert fresh._constants == {"width": 8, "pair": (1, [2])}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    with pytest.raises(NotImplementedError):
        scaled(Searcher("loss", "min")).save(str(tmp_path / "other"))


def test_what_brings_searchers_of_others_back_brings_the_wrapped_one_back_too() -> None:
    def noted() -> NotedSearcher:
        space = {"lr": SPACE["lr"], "depth": SPACE["depth"]}
        return NotedSearcher(scaled(OptunaSearch(space, "loss", "min", seed=0)))

    search, again = noted(), noted()
    search.suggest("a")
    search.suggest("b")
    assert again.load_json(json.loads(json.dumps(search.to_json())))
    for one in (search, again):
        one.on_trial_complete("a", {"loss": 1.0, "training_iteration": 1}, error=False)
    assert again.suggest("c") == search.suggest("c")


def damage(state: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    node: Any = state
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["version"], 99, "has version 99"),
        (["kind"], "OptunaSearch", "is not the state of a ArchitectureScaledSearch"),
        (["searcher"], "%", "is damaged"),
        (["searcher"], base64.b64encode(b"nothing").decode(), "holds a pickle of the wrapped Scr"),
        (["searcher"], base64.b64encode(b"{" * 9999).decode(), "holds a pickle of the wrapped Scr"),
        (["searcher"], base64.b64encode(b"{}").decode(), "is not one of a Scripted"),
        (["searcher"], None, "is damaged"),
        (["plans", "factors", 0, "answers", 0, 1], -1.0, "impossible factor"),
        (["plans", "factors"], 3, "is damaged"),
        (["constants"], [[["a"], {"set": [1]}]], "is damaged"),
        (["plans", "settings", "rate"], ["eta"], "use the same lr, base, aggregate"),
    ],
)
def test_a_state_that_cannot_be_taken_changes_nothing(
    path: Any, value: Any, said: str, tmp_path: Path
) -> None:
    _, state = saved(tmp_path / "state")
    del state["check"]  # what follows is what a checksum would not tell
    (tmp_path / "state").write_text(json.dumps(damage(state, *path, value=value)))
    before = (tmp_path / "state").read_bytes()
    fresh = scaled(Scripted({"lr": 0.1, "depth": 1, "width": 8}))
    was = fresh.get_state()
    with pytest.raises(StateError, match=said):
        fresh.restore(str(tmp_path / "state"))
    assert (fresh.get_state(), (tmp_path / "state").read_bytes()) == (was, before)
    assert fresh.suggest("a")["tune_ext"]["base_lr"] == 0.1


def test_a_state_of_another_base_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "state", base={"depth": 3})
    for other in ({}, {"base": {"depth": 4}}, {"base": {"depth": 3}, "aggregate": "sum"}):
        with pytest.raises(StateError, match="use the same lr, base, aggregate") as caught:
            scaled(Scripted(), **other).restore(str(tmp_path / "state"))
        assert "damaged" not in str(caught.value)
    scaled(Scripted(), base={"depth": 3}).restore(str(tmp_path / "state"))


@pytest.mark.skipif(importlib.util.find_spec("hpbandster") is None, reason="needs hpbandster")
def test_a_real_run_of_bohb_pauses_and_finds_one_base_rate_for_all_depths(run: Any) -> None:
    heard = []

    class Listening(TuneBOHB):
        def on_trial_result(self, trial_id: str, result: Any) -> None:
            heard.append((result["config/lr"], self.trial_to_params[trial_id]["lr"]))
            super().on_trial_result(trial_id, result)

        def on_pause(self, trial_id: str) -> None:
            heard.append("pause")
            super().on_pause(trial_id)

    analysis = run(
        WantsItsOwnRate,
        config={"lr": tune.loguniform(1e-6, 1.0), "depth": tune.randint(1, 4)},
        search_alg=scaled(Listening(metric="loss", mode="min", seed=0), base={"depth": 2}),
        scheduler=HyperBandForBOHB(metric="loss", mode="min", max_t=3),
        num_samples=4,
        max_concurrent_trials=4,
        stop={"training_iteration": 3},
    )
    assert len(analysis.trials) == 4
    for trial in analysis.trials:
        ours = trial.config["tune_ext"]
        assert trial.status == "TERMINATED"
        assert ours["lr_factor"] == pytest.approx(factor(trial.config["depth"]))
        assert trial.config["lr"] == ours["base_lr"] * ours["lr_factor"]
        distance = abs(math.log10(ours["base_lr"] / 0.01))
        assert trial.last_result["loss"] == pytest.approx(distance)
    assert "pause" in heard
    told = [pair for pair in heard if pair != "pause"]
    assert {seen for seen, _ in told} == {t.config["tune_ext"]["base_lr"] for t in analysis.trials}
    assert all(seen == asked for seen, asked in told)


def expected(times: float, **options: Any) -> float:
    """The base rate that autoHyper finds where trials train with `times` that."""
    search = AutoHyper([Parameter.learning_rate(upper=1.0)], **options)
    while not search.finished:
        for probe in search.ask():
            search.tell(probe.id, response(times * probe.values["lr"]))
    assert search.best is not None
    return search.best["lr"]


def test_a_restored_run_gives_the_same_answer(cluster: None, tmp_path: Path) -> None:
    def start() -> Any:
        tuner = tune.Tuner(
            Counter,
            param_space={"lr": tune.loguniform(1e-6, 1.0), "depth": 5, "home": str(tmp_path)},
            tune_config=tune.TuneConfig(
                search_alg=scaled(AutoHyperSearch(probe_epochs=3, max_probes=9)),
                scheduler=AutoHyperScheduler(probe_epochs=3, max_t=5),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="experiment",
                storage_path=str(tmp_path),
                verbose=0,
                callbacks=[Ends(tmp_path, 14)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            ),
        )
        if (tmp_path / "ended").exists():
            tuner = tune.Tuner.restore(str(tmp_path / "experiment"), trainable=Counter)
        return tuner.fit()

    with pytest.raises(Exception, match="the driver ends here"):
        start()
    let_ray_end(tmp_path / "experiment")
    before = {note["lr"] for note in notes(tmp_path)}
    (final,) = [r.config for r in start() if r.config["tune_ext"]["role"] == "final"]
    assert final["tune_ext"]["base_lr"] == expected(factor(5), max_probes=9)
    assert final["lr"] == pytest.approx(factor(5) * final["tune_ext"]["base_lr"])
    assert before <= {note["lr"] for note in notes(tmp_path)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_gives_the_same_answer(tmp_path: Path) -> None:
    for more in (17, None):
        drive(tmp_path, "scaled", more)
    results = json.loads((tmp_path / "results.json").read_text())
    (final,) = [r for r in results if r["tune_ext"]["role"] == "final"]
    assert final["tune_ext"]["base_lr"] == expected(factor(5))
    assert len({r["lr"] for r in results}) == len(results) - 1
