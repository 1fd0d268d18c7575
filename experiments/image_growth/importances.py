"""What matters at each image size, and whether that is the same: the same configurations at all.

Random configurations of a study's first task are each trained once at every image size, with the
same images, weights' seed and batches' seed. One file has them all, so that a run that was ended
goes on.

    python experiments/image_growth/importances.py run         # goes on where it ended
    python experiments/image_growth/importances.py report      # importances.md and a picture

The published finding (Hinz et al., arXiv 1807.07362, by functional ANOVA as here): nearly the same
parameters matter at every size, and only the importance of the number of layers depends on it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tune_ext.benchmark._method import Setup
from tune_ext.benchmark.history import finite
from tune_ext.benchmark.importance_report import draw_groups, groups_markdown
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.study_file import load_study
from tune_ext.benchmark.tasks import Task
from tune_ext.errors import StateError, TuneExtError
from tune_ext.importance_groups import Estimate, GroupedImportance, importance_by

HERE = Path(__file__).parent
LAYERS = ("conv_layers", "fc_layers")
RATE, USEFUL = "learning_rate", (1e-3, 3e-2)
SEED, RESAMPLES = 0, 500
LEAST_R2 = 0.5
MATERIAL = 0.01
"""A share that moves by less is the same: of many small ones, some intervals exclude zero."""

Rows = Mapping[int, Mapping[int, Mapping[str, Any]]]
"""Configuration's number → image size → what was recorded of its training."""


# Training -----------------------------------------------------------------------------------


def train(task: Task, config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Train once at a size.

    Returns:
        "error" of the last epoch, None where it diverged; "epochs"; "cpu_seconds" of training.
    """
    run = task.start({**config, "image_size": size}, seed=SEED)
    metrics: Mapping[str, Any] = {}
    seconds = 0.0
    for _ in range(task.max_epochs):
        begun = time.process_time()
        metrics = run.train_epoch()
        seconds += time.process_time() - begun
        if metrics.get("diverged") or metrics.get("ended"):
            break
    error = finite(metrics.get("validation_error"))
    return {"error": error, "epochs": run.epoch, "cpu_seconds": round(seconds, 3)}


def run(spec: TaskSpec, out: Path, count: int) -> None:
    """Train what the file does not have yet: configuration after configuration, at all sizes.

    Args:
        spec: The task.
        out: The file: its first line names the task, each other is a training.
        count: How many configurations.
    """
    task = spec.create()
    known = load(out, spec) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        if not known and not out.stat().st_size:
            file.write(json.dumps(_head(spec)) + "\n")
        for number, config in enumerate(itertools.islice(_configurations(task), count)):
            for size in task.image_sizes:
                if size in known.get(number, {}):
                    continue
                row = {"number": number, "size": size, "config": config}
                file.write(json.dumps(row | train(task, config, size)) + "\n")
                file.flush()
            print(f"{number + 1} of {count}", flush=True)


def _configurations(task: Task) -> Any:
    return Setup(task, 1, SEED).configurations()


def _head(spec: TaskSpec) -> dict[str, Any]:
    return {"schema": "tune-ext.importances", "version": 1, "task": spec.to_json()}


def load(path: Path, spec: TaskSpec | None = None) -> Rows:
    """What a file of `run` holds; a last line that was cut off is left out.

    Args:
        path: The file.
        spec: The task that it has to be of; None: any.

    Raises:
        StateError: It is no such file, damaged, or of another task.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        head, *rows = [json.loads(line) for line in lines]
        if (head["schema"], head["version"]) != ("tune-ext.importances", 1):
            raise StateError(f"{path} is of another kind: {head}")
        found: dict[int, dict[int, dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(int(row["number"]), {})[int(row["size"])] = row
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is damaged: {error!r}") from None
    if spec is not None and head["task"] != spec.to_json():
        raise StateError(f"{path} is of another task: {head['task']}; give another file with --out")
    return found


# What it says -------------------------------------------------------------------------------


def table(rows: Rows, sizes: Sequence[int]) -> tuple[list[int], np.ndarray[Any, Any]]:
    """The configurations that were trained at every size, and their errors there.

    Returns:
        Their numbers, and the errors, shape (configurations, sizes); NaN where one diverged.
    """
    whole = [n for n, at in sorted(rows.items()) if all(size in at for size in sizes)]
    errors = [[_number(rows[n][size]["error"]) for size in sizes] for n in whole]
    return whole, np.array(errors, dtype=np.float64).reshape(len(whole), len(sizes))


def _number(error: float | None) -> float:
    return math.nan if error is None else float(error)


def rank_correlation(
    first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], seed: int = 0
) -> Estimate:
    """Spearman's correlation of configurations' errors at two sizes, with a bootstrap interval.

    Args:
        first: Shape (configurations,); NaN ranks last.
        second: The same at the other size.
        seed: Of the resamples.
    """
    from scipy.stats import rankdata

    a, b = (np.where(np.isnan(x), np.inf, x) for x in (first, second))

    def spearman(rows: np.ndarray[Any, Any]) -> float:
        x, y = rankdata(a[rows]), rankdata(b[rows])
        return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else math.nan

    rng = np.random.default_rng(seed)
    draws = np.array([spearman(rng.integers(len(a), size=len(a))) for _ in range(RESAMPLES)])
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(spearman(np.arange(len(a))), float(low), float(high))


def regret_of_transfer(
    first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], share: float = 0.1
) -> tuple[float, float, float]:
    """Errors at the second size: the best, and the best and the median of the first's best share.

    Args:
        first: Errors at the size where configurations are chosen.
        second: Errors at the size where they are used.
        share: Of the configurations that are chosen.
    """
    chosen = np.argsort(np.where(np.isnan(first), np.inf, first), kind="stable")
    chosen = chosen[: max(1, round(share * len(first)))]
    known = np.where(np.isnan(second), 1.0, second)
    return float(known.min()), float(known[chosen].min()), float(np.median(known[chosen]))


def verdict(found: GroupedImportance) -> list[str]:
    """Whether the published finding holds, in sentences that name what speaks against it."""
    pairs = list(itertools.combinations(found.groups, 2))
    rank = [found.rank_correlation(a, b) for a, b in pairs]
    others = [n for n in found.names if n not in LAYERS]
    first, last = pairs[0][0], pairs[-1][1]
    moves = {n: found.difference(n, first, last) for n in found.names}
    apart = {n for n, d in moves.items() if d.excludes_zero and abs(d.value) >= MATERIAL}
    largest = max(others, key=lambda n: abs(moves[n].value))
    moved = moves[largest]
    moving = sorted(apart & set(others))
    same = not moving
    layers = sorted(apart & set(LAYERS))
    lines = [
        f"Nearly the same at every size: the rank correlation of the shares is "
        f"{min(r.value for r in rank):.2f} to {max(r.value for r in rank):.2f}; "
        + (
            f"of the parameters that are no numbers of layers, none differs by a point or more "
            f"between {first} and {last} beyond its interval."
            if same
            else f"but between {first} and {last} these differ: {', '.join(moving)}."
        ),
        f"The largest move of them from {first} to {last} is that of {largest}, by "
        f"{100 * moved.value:+.1f} points [{100 * moved.low:+.1f}, {100 * moved.high:+.1f}].",
    ]
    for name in LAYERS:
        if name not in found.names:
            continue
        d = moves[name]
        lines.append(
            f"{name} from {first} to {last}: {100 * d.value:+.1f} points "
            f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}], "
            + ("which depends on the size." if name in apart else "not told apart from none.")
        )
    held = "holds" if same and layers else "holds in part" if same or layers else "does not hold"
    lines.append(f"The published finding {held} here.")
    return lines


def report(path: Path, resamples: int = 100) -> Path:
    """Write the page and the picture beside a file of `run`; returns the page.

    Args:
        path: The file.
        resamples: Of the trials, for the intervals of the shares.
    """
    head = json.loads(path.open(encoding="utf-8").readline())
    rows = load(path)
    spec = TaskSpec(**head["task"])
    task = spec.create()
    sizes = task.image_sizes
    numbers, errors = table(rows, sizes)
    if len(numbers) < 20:
        raise StateError(f"{path} has {len(numbers)} whole configurations; 20 are needed")
    configs = [{**rows[n][s]["config"], "image_size": s} for n in numbers for s in sizes]
    values = [None if math.isnan(e) else float(e) for e in errors.ravel()]
    found = importance_by(
        task.space, configs, values, group_by="image_size", resamples=resamples, pairs=False
    )
    page = path.with_suffix(".md")
    draw_groups(spec.label, found, path.with_suffix(""))
    lines = _page(spec, rows, numbers, errors, found, path)
    lines += _useful(spec, configs, values, resamples)
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


def _useful(
    spec: TaskSpec, configs: list[dict[str, Any]], values: list[float | None], resamples: int
) -> list[str]:
    """The same among the learning rates with which most networks learn, if there are enough."""
    space = spec.create().space
    if RATE not in space:
        return []
    limits = {**(spec.options.get("limits") or {}), RATE: USEFUL}
    narrow = TaskSpec(spec.name, {**spec.options, "limits": limits}).create().space
    kept = [i for i, c in enumerate(configs) if USEFUL[0] <= c[RATE] <= USEFUL[1]]
    if len(kept) < 40 * len({c["image_size"] for c in configs}):
        return []
    chosen = [configs[i] for i in kept], [values[i] for i in kept]
    found = importance_by(narrow, *chosen, group_by="image_size", resamples=resamples, pairs=False)
    count = len(kept) // len(found.groups)
    fit = ", ".join(f"{group.r2:.2f} at {size}" for size, group in found.groups.items())
    return [
        f"## With learning rates from {USEFUL[0]:g} to {USEFUL[1]:g}",
        "",
        f"Over the whole range the rate decides whether a network learns at all. {count} of the "
        f"configurations have one of these rates. R² of the forests: {fit}.",
        "",
        *groups_markdown(found),
        "",
        *(f"* {line}" for line in _trusted(found)),
        "",
    ]


def _trusted(found: GroupedImportance) -> list[str]:
    """The verdict, where the forests know something of trials that they have not seen."""
    if min(group.r2 for group in found.groups.values()) < LEAST_R2:
        return [
            f"The forests predict too little (R² below {LEAST_R2:g}) for these shares to say much."
        ]
    return verdict(found)


def _page(
    spec: TaskSpec,
    rows: Rows,
    numbers: Sequence[int],
    errors: np.ndarray[Any, Any],
    found: GroupedImportance,
    path: Path,
) -> list[str]:
    sizes = list(found.groups)
    lines = [
        f"# What matters at each image size: {spec.label}",
        "",
        f"{len(numbers)} random configurations, each trained once at {_listed(sizes)} pixels with "
        "the same images and seeds. Shares of the variance of the validation error by functional "
        "ANOVA of a random forest; 95 % intervals from resampled configurations, of which fewer "
        "are distinct, so that what a resample says has more noise: intervals of rank correlations "
        "lie low.",
        "",
        *(f"* {line}" for line in _trusted(found)),
        "",
        f"![Importance by image size]({path.stem}.svg)",
        "",
        *groups_markdown(found),
        "",
        "## How well a size ranks configurations for another",
        "",
        "| from | to | rank correlation of errors | best at the larger, % | best of the smaller's "
        "best tenth there, % | median of them, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for i, j in itertools.combinations(range(len(sizes)), 2):
        rank = rank_correlation(errors[:, i], errors[:, j])
        best, chosen, middle = regret_of_transfer(errors[:, i], errors[:, j])
        lines.append(
            f"| {sizes[i]} | {sizes[j]} | {rank.value:.2f} [{rank.low:.2f}, {rank.high:.2f}] | "
            f"{100 * best:.1f} | {100 * chosen:.1f} | {100 * middle:.1f} |"
        )
    lines += [
        "",
        "## What a training costs",
        "",
        "| size | CPU seconds, mean | median | epochs, mean | best error, % | R² of the forest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for k, size in enumerate(sizes):
        cost = [float(rows[n][size]["cpu_seconds"]) for n in numbers]
        epochs = [int(rows[n][size]["epochs"]) for n in numbers]
        lines.append(
            f"| {size} | {np.mean(cost):.2f} | {np.median(cost):.2f} | {np.mean(epochs):.1f} | "
            f"{100 * np.nanmin(errors[:, k]):.1f} | {found.groups[size].r2:.2f} |"
        )
    options = json.dumps(dict(spec.options))
    lines += ["", f"Task `{spec.name}` with `{options}`. {platform.machine()}, one thread.", ""]
    return lines


def _listed(sizes: Sequence[int]) -> str:
    *most, last = map(str, sizes)
    return f"{', '.join(most)} and {last}" if most else last


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--study", type=Path, default=HERE / "study.toml", help="whose first task")
    parser.add_argument("--count", type=int, default=150, help="configurations (default: 150)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "importances.jsonl")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            import torch

            torch.set_num_threads(1)
            run(load_study(options.study).tasks[0], options.out, options.count)
        else:
            print(f"Written: {report(options.out)}")
    except TuneExtError as error:
        print(f"importances: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
