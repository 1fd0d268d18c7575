"""How much should small images be trusted? Rules compared on searches that cost no training.

    python experiments/image_growth/weights.py [--seeds 100] [--searchers random tpe]

A real search tells little about a rule: its error depends on chance by a tenth of itself, and what
rules differ by is a fiftieth. So the errors here are looked up: of the configurations that
`importances.py` trained once at every size, a forest of each size predicts those of any other, and
what an evaluation shows is drawn around it. What counts is the predicted error at full size,
without that noise, of the configuration that a search recommends, relative to the same search with
all evaluations at full size. Beside the world as measured there are two in which small images
mislead: the best learning rate lies elsewhere on them, and all other parameters are turned around.

Writes results/weights.md and results/weights.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ConfigSpace import Configuration
from importances import load
from scipy.stats import spearmanr

from tune_ext import ImageGrowthSearch, image_growth
from tune_ext._transfer import Transfer, measure_transfer
from tune_ext.raytune._play import play

HERE = Path(__file__).parent
SIZES = (14, 21, 28)
SHARES = {48: (24, 16, 8), 24: (12, 8, 4)}
WORLDS = {"as measured": 0.0, "misleading": 0.2, "very misleading": 0.4}
"""By how much of its range the best learning rate of smaller images is higher."""
NOISE = 0.06
"""Standard deviation of the logarithm of the error that one evaluation shows."""
TREES = 40

Pairs = Sequence[tuple[float, float | None]]
Rule = Callable[[Pairs], Transfer]


class World:
    """The errors of any configuration at any size, by forests on those that were trained.

    Args:
        path: The trainings of `importances.py`.
        shift: See `WORLDS`; 0 leaves everything as it was measured.
    """

    def __init__(self, path: Path, shift: float) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        from tune_ext.benchmark.study import recorded_task

        head = json.loads(path.open(encoding="utf-8").readline())["task"]
        self.space = recorded_task(head).space
        self._shift, self._rate = shift, list(self.space).index("learning_rate")
        self._trees: dict[int, list[Any]] = {}
        rows = load(path)
        for size in SIZES:
            found = [row[size] for row in rows.values() if size in row]
            x = np.array([self._vector(row["config"]) for row in found])
            y = np.log([_finite(row["error"]) for row in found])
            forest = ExtraTreesRegressor(TREES, random_state=0).fit(x, y)
            self._trees[size] = [tree.tree_ for tree in forest.estimators_]

    def _vector(self, config: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        known = {name: config[name] for name in self.space}
        return np.array(Configuration(self.space, known).get_array())

    def error(self, config: Mapping[str, Any], size: int) -> float:
        """The error without noise."""
        vector = self._vector(config)
        if self._shift and size < SIZES[-1]:
            rate = min(1.0, vector[self._rate] + self._shift)
            vector, size = 1 - vector, SIZES[-1]
            vector[self._rate] = rate
        elif self._shift:
            size = SIZES[-1]
        x = vector.astype(np.float32)[None]
        return math.exp(float(np.mean([tree.predict(x)[0, 0] for tree in self._trees[size]])))

    def correlation(self, count: int = 300) -> float:
        """Spearman's, of random configurations at the smallest and the full size."""
        self.space.seed(0)
        configs = [dict(c) for c in self.space.sample_configuration(count)]
        errors = [[self.error(c, size) for c in configs] for size in (SIZES[0], SIZES[-1])]
        return float(spearmanr(*errors).statistic)

    def search(self, name: str, sizes: Sequence[tuple[int, int]], seed: int) -> float:
        """One search to its end: the true error of what it recommends."""
        rng = np.random.default_rng([seed, 99])
        search = ImageGrowthSearch(
            name, sizes, space=self.space, metric="loss", mode="min", seed=seed
        )

        def shown(config: dict[str, Any]) -> float:
            return self.error(config, config["image_size"]) * math.exp(rng.normal(0, NOISE))

        play(search, shown, trials=sum(count for _, count in sizes) + 1, epochs=1)
        return self.error(search.best_config or {}, SIZES[-1])


def _finite(error: float | None) -> float:
    """A training that diverged is at chance."""
    return 0.9 if error is None or not math.isfinite(error) else error


def rules() -> dict[str, Rule]:
    """Ours, what it was before, other expectations, and no rule at all."""

    def always(weight: float) -> Rule:
        return lambda pairs: Transfer(len(pairs), None, weight)

    def expecting(correlation: float) -> Rule:
        return lambda pairs: measure_transfer(pairs, correlation)

    def pairs_alone(pairs: Pairs) -> Transfer:
        found, n = measure_transfer(pairs), len(pairs)
        rho = found.correlation or 0.0
        squared = 1 - (1 - rho**2) * (n - 1) / max(1, n - 2)
        return Transfer(n, rho, math.sqrt(squared) if rho > 0 and squared > 0 else 0.0)

    return {
        "carries nothing": always(0.0),
        "trusts the pairs alone": pairs_alone,
        "expects .3": expecting(0.3),
        "expects .6 (ours)": expecting(0.6),
        "expects .85": expecting(0.85),
        "carries everything": always(1.0),
    }


def compare(seeds: int, searchers: Sequence[str], path: Path) -> list[dict[str, Any]]:
    """Every rule in every world: one row each, with the mean over seeds and its error."""
    rows = []
    for title, shift in WORLDS.items():
        world = World(path, shift)
        rho = world.correlation()
        for total, shares in SHARES.items():
            for name in searchers:
                full = [world.search(name, [(SIZES[-1], total)], seed) for seed in range(seeds)]
                for label, rule in rules().items():
                    with mock.patch.object(image_growth, "measure_transfer", rule):
                        sizes = list(zip(SIZES, shares, strict=True))
                        grown = [world.search(name, sizes, seed) for seed in range(seeds)]
                    change = np.log(np.divide(grown, full))
                    rows.append(
                        {
                            "world": title,
                            "correlation": rho,
                            "evaluations": total,
                            "searcher": name,
                            "rule": label,
                            "change": float(np.expm1(change.mean())),
                            "standard_error": float(change.std(ddof=1) / math.sqrt(seeds)),
                        }
                    )
                    print(*rows[-1].values(), flush=True)
    return rows


def page(rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """The table: a rule a line, a world and a number of evaluations a column."""
    lines = [
        "# How much small images should be trusted",
        "",
        f"Relative change of the error of the recommendation, %, against the same search with all "
        f"evaluations at {SIZES[-1]}×{SIZES[-1]} pixels; ± a standard error over {seeds} seeds, "
        "paired. Looked up, not trained (`weights.py`).",
        "",
    ]
    keys = list(dict.fromkeys((r["world"], r["correlation"], r["evaluations"]) for r in rows))
    for name in dict.fromkeys(row["searcher"] for row in rows):
        heads = [f"{world} (ρ = {rho:.2f}), {total}" for world, rho, total in keys]
        lines += [
            f"## {name}",
            "",
            f"| rule | {' | '.join(heads)} |",
            "|---" * (len(keys) + 1) + "|",
        ]
        for rule in dict.fromkeys(row["rule"] for row in rows):
            cells = []
            for world, _, total in keys:
                asked = (name, rule, world, total)
                (row,) = (
                    r
                    for r in rows
                    if (r["searcher"], r["rule"], r["world"], r["evaluations"]) == asked
                )
                cells.append(f"{100 * row['change']:+.1f} ± {100 * row['standard_error']:.1f}")
            lines.append(f"| {rule} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--searchers", nargs="+", default=["random"])
    parser.add_argument("--trained", type=Path, default=HERE / "results" / "importances.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", image_growth.TransferWarning)
    rows = compare(options.seeds, options.searchers, options.trained)
    (options.out / "weights.json").write_text(
        json.dumps({"seeds": options.seeds, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    (options.out / "weights.md").write_text(page(rows, options.seeds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
