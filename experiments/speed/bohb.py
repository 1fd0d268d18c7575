"""What a suggestion of BOHB costs: ours beside Ray's TuneBOHB, from the same observations.

    python experiments/speed/bohb.py [--json FILE] [--rounds N] [--observations N]

Twelve parameters (eight numbers, four choices of three), 5,000 observations at one budget, no
suggestion at random. In each round both are told one more result and asked for one more
configuration, in turns; the time from the result to the configuration is what a search waits,
and of it the part of the suggestion alone is told apart. Medians over the rounds, in processor
time of the process, which other work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ConfigSpace import CategoricalHyperparameter, ConfigurationSpace, UniformFloatHyperparameter
from ray.tune.search.bohb import TuneBOHB

from tune_ext.benchmark.records import provenance
from tune_ext.raytune import BOHBSearch

TARGET = 0.1


def space() -> ConfigurationSpace:
    made = ConfigurationSpace(seed=0)
    made.add(UniformFloatHyperparameter(f"x{i}", 0.0, 1.0) for i in range(8))
    made.add(CategoricalHyperparameter(f"c{i}", ["a", "b", "c"]) for i in range(4))
    return made


def loss(config: Any) -> float:
    distance = sum((config[f"x{i}"] - 0.3) ** 2 for i in range(8))
    return math.sqrt(distance) + sum(config[f"c{i}"] != "a" for i in range(4))


def theirs() -> Any:
    np.random.seed(0)  # noqa: NPY002 # it draws from numpy's global generator
    return TuneBOHB(space(), {"random_fraction": 0.0}, metric="loss", mode="min", seed=0)


def ours() -> Any:
    return BOHBSearch(space(), metric="loss", mode="min", random_fraction=0.0, seed=0)


def result(value: float) -> dict[str, Any]:
    """What both of them read."""
    return {"loss": value, "training_iteration": 1, "hyperband_info": {"budget": 1}}


def prepare(search: Any, count: int) -> None:
    """Tell a search about random configurations, without fitting a model to each."""
    for number, config in enumerate(space().sample_configuration(count)):
        values, name = dict(config), f"given{number}"
        if isinstance(search, BOHBSearch):
            search._live[name] = values
            search.on_trial_result(name, result(loss(values)))
        else:
            search.trial_to_params[name] = values
            job = search.to_wrapper(name, result(loss(values)))
            search.bohber.new_result(job, update_model=number == count - 1)


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--observations", type=int, default=5000)
    options = parser.parse_args()
    searches = {"TuneBOHB": theirs(), "BOHBSearch": ours()}
    for search in searches.values():
        prepare(search, options.observations)
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"suggestion": [], "result": []} for name in searches
    }
    for number in range(options.rounds):
        for name, search in searches.items():
            trial = f"trial{number}"
            took, config = spent(lambda s=search, t=trial: s.suggest(t))
            seconds[name]["suggestion"].append(took)
            told = result(loss(config))
            took, _ = spent(lambda s=search, t=trial, r=told: s.on_trial_result(t, r))
            seconds[name]["result"].append(took)
    told = {
        name: {
            "suggestion": median(parts["suggestion"][1:]),
            "result and suggestion": median(
                a + b for a, b in zip(parts["suggestion"][1:], parts["result"][1:], strict=True)
            ),
        }
        for name, parts in seconds.items()
    }
    ratios = {part: told["BOHBSearch"][part] / told["TuneBOHB"][part] for part in told["TuneBOHB"]}
    for part, ratio in ratios.items():
        both = ", ".join(f"{name} {1000 * told[name][part]:.1f} ms" for name in told)
        print(f"{part}: {both}; ratio {ratio:.3f} (target: at most {TARGET})")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "observations": options.observations,
            "parameters": 12,
            "rounds": options.rounds,
            "processor_seconds": told,
            "ratio": ratios,
            "target": TARGET,
            "provenance": provenance(),
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
