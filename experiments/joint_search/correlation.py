"""How well do short trainings rank configurations that are trained for longer?

Random configurations of the joint space of study.toml are each trained once through all rungs of
its ladder, with restarts that are nested: every rung's budget ends a cycle of the learning rate,
and the next rung goes on from there. One training so gives an error at every budget. The second
seed has other images in its parts, other weights and other batches: how well a budget agrees with
itself is the most that it can agree with another.

    python experiments/joint_search/correlation.py run         # goes on where it ended
    python experiments/joint_search/correlation.py report      # tables, JSON and a figure
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune_ext._random import derive_seed
from tune_ext.benchmark.history import finite, plain
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.study_file import load_study
from tune_ext.benchmark.tasks import Task
from tune_ext.errors import TuneExtError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from experiments.lines import append, read  # noqa: E402

CONFIGURATIONS, SEEDS, EPOCHS = 48, 2, 27


def joint_task(study: Path, epochs: int) -> TaskSpec:
    """The task of a study that searches everything, its first, with another full length."""
    spec = load_study(study).tasks[0]
    return replace(spec, options={**spec.options, "epochs": epochs}, methods=None)


def configurations(task: Task, count: int) -> list[dict[str, Any]]:
    """The first random configurations, the same every time.

    Args:
        task: Whose space they are of.
        count: How many.
    """
    space = copy.deepcopy(task.space)
    space.seed(derive_seed(0, "rank correlation") % 2**32)
    drawn = [space.sample_configuration() for _ in range(count)]
    return [{name: plain(value) for name, value in dict(one).items()} for one in drawn]


def train(task: Task, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train once through all rungs.

    Returns:
        "error" and "seconds" of each epoch (None from where it diverged), "parameters" of the
        network.
    """
    from tune_ext.models import count_parameters

    weights = count_parameters(lambda: task.build(config))
    run = task.start(config, seed=seed)
    errors: list[float | None] = []
    seconds: list[float] = []
    for _ in range(task.max_epochs):
        begun = time.process_time()
        metrics = run.train_epoch()
        seconds.append(round(time.process_time() - begun, 3))
        errors.append(finite(metrics.get("validation_error")))
        if metrics.get("diverged"):
            break
    lost = task.max_epochs - len(errors)
    return {"parameters": weights, "error": errors + [None] * lost, "seconds": seconds}


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    import numpy
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "threads": str(torch.get_num_threads()),
    }


def run(spec: TaskSpec, path: Path, count: int, seeds: int) -> None:
    """Train what is missing, first all configurations with the first seed.

    Raises:
        TuneExtError: The data is not here, or the records are of another task.
    """
    task = spec.create()
    if problem := task.missing():
        raise TuneExtError(problem)
    records = read(path)
    settings = {"task": spec.to_json(), "epochs": task.max_epochs}
    heads = [r for r in records if r["kind"] == "settings"]
    if not heads:
        append(path, {"kind": "settings", **settings, "versions": versions()})
    elif {k: heads[-1][k] for k in settings} != settings:
        raise TuneExtError(
            f"{path} holds trainings of another task: {heads[-1]['task']}. "
            "Give another directory with --results, or move this one away"
        )
    done = {(r["index"], r["seed"]) for r in records if r["kind"] == "training"}
    for seed in range(seeds):
        for index, config in enumerate(configurations(task, count)):
            if (index, seed) in done:
                continue
            found = train(task, config, seed)
            append(
                path, {"kind": "training", "index": index, "seed": seed, "config": config, **found}
            )
            last = found["error"][-1]
            print(
                f"configuration {index + 1} of {count}, seed {seed}: error "
                f"{'diverged' if last is None else f'{100 * last:.2f} %'}, "
                f"{found['parameters']} weights, {math.fsum(found['seconds']):.1f} s",
                flush=True,
            )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--study", type=Path, default=HERE / "study.toml")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "correlation")
    parser.add_argument("--configurations", type=int, default=CONFIGURATIONS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="the full length")
    args = parser.parse_args()
    path = args.results / "trainings.jsonl"
    try:
        if args.what == "run":
            import torch

            torch.set_num_threads(1)
            run(joint_task(args.study, args.epochs), path, args.configurations, args.seeds)
        else:
            from rungs import report  # beside this file

            report(read(path), args.results)
    except TuneExtError as error:
        print(f"correlation.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
