"""How far the recorded tables can be trusted: trainings between their points, and points left out.

    python experiments/response_tables/fidelity.py train RECORDS [--counts 25 12 8]
    python experiments/response_tables/fidelity.py report RECORDS... > fidelity.md

`train` trains random configurations of the space that are not in the tables, each with a recorded
seed, and appends a line each; it can be stopped and started again. `report` compares them to what
the tables answer, and that to how far trainings of two seeds differ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from record import TABLES, train
from scipy.stats import spearmanr

from tune_ext._random import generator
from tune_ext.benchmark.tasks._recorded import CURVES, Recorded, load

DATA = Path(__file__).parents[2] / "tune_ext" / "benchmark" / "tasks" / "data"
RESPONSE_EPOCH = 5


def configurations(name: str, count: int) -> list[tuple[float, float, int]]:
    """Random (lr, weight decay, recorded seed), the same every time."""
    rng = generator(0, "fidelity", name)
    found = []
    for k in range(count):
        lr, decay = 10 ** rng.uniform(-6, 0), 10 ** rng.uniform(-7, -1)
        found.append((float(lr), float(decay), k % 3))
    return found


def _load(paths: list[Path]) -> list[dict[str, Any]]:
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def train_all(path: Path, counts: list[int]) -> None:
    """Train what is missing in `path`."""
    import torch

    torch.set_num_threads(1)
    done = {(r["table"], r["lr"]) for r in _load([path])}
    for name, count in zip(TABLES, counts, strict=True):
        task = TABLES[name].make()
        for lr, decay, seed in configurations(name, count):
            if (name, lr) in done:
                continue
            record = {"table": name, **train(task, lr, decay, seed)}
            del record["step_losses"]
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _seed_spread(recorded: Recorded, name: str, epoch: int) -> float:
    """Mean absolute difference of two recorded seeds at the same point."""
    values = recorded.values[name][..., epoch]
    pairs = [(a, b) for a in range(len(values)) for b in range(a)]
    return float(np.nanmean([np.abs(values[a] - values[b]) for a, b in pairs]))


def trained(name: str, records: list[dict[str, Any]]) -> str:
    """A row: real trainings against the table's answer for the same seed, and for others."""
    recorded = load(DATA / f"{name}.npz")
    rows = []
    for record in records:
        if record["table"] != name or len(record["epochs"]) < recorded.epochs:
            continue
        seed = recorded.about["seeds"].index(record["seed"])
        answers = [
            recorded.answer(record["lr"], record["weight_decay"], other).curves
            for other in (seed, (seed + 1) % recorded.seeds)
        ]
        truth = record["epochs"]
        at = RESPONSE_EPOCH - 1
        rows.append(
            [
                truth[-1]["validation_error"],
                *(answer["validation_error"][-1] for answer in answers),
                truth[at]["response"],
                *(answer["response"][at] for answer in answers),
                record["test_error"],
                recorded.true_error(record["lr"], record["weight_decay"]),
            ]
        )
    if not rows:
        return f"| {name} | 0 | | | | | | |"
    e, same, other, r, r_same, r_other, test, true = np.array(rows).T
    off = [np.abs(a - b) for a, b in ((e, same), (e, other), (r, r_same), (r, r_other))]
    rank = spearmanr(e, same).statistic, spearmanr(test, true).statistic
    return (
        f"| {name} | {len(rows)} | {100 * np.median(off[0]):.2f} / {100 * off[0].mean():.2f} "
        f"| {100 * np.median(off[1]):.2f} / {100 * off[1].mean():.2f} "
        f"| {off[2].mean():.3f} | {off[3].mean():.3f} | {rank[0]:.3f} | {rank[1]:.3f} |"
    )


def without_every_second(recorded: Recorded) -> tuple[Recorded, np.ndarray]:
    """The table without every second rate, and which were left out."""
    out = np.arange(1, len(recorded.lrs) - 1, 2)
    kept = np.setdiff1d(np.arange(len(recorded.lrs)), out)
    values = {name: value[:, kept] for name, value in recorded.values.items()}
    return Recorded(recorded.about, recorded.lrs[kept], recorded.decays, values), out


def left_out(name: str) -> str:
    """A row: every second rate, from its neighbours, which are twice as far away as they are."""
    recorded = load(DATA / f"{name}.npz")
    coarse, out = without_every_second(recorded)
    errors, responses, seconds = [], [], []
    for k, i, j in np.ndindex(recorded.seeds, len(out), len(recorded.decays)):
        lr, decay = recorded.lrs[out[i]], recorded.decays[j]
        answer = coarse.answer(float(lr), float(decay), k).curves
        truth = {metric: recorded.values[metric][k, out[i], j] for metric in CURVES}
        errors.append(abs(answer["validation_error"][-1] - truth["validation_error"][-1]))
        at = RESPONSE_EPOCH - 1
        responses.append(abs(answer["response"][at] - truth["response"][at]))
        seconds.append(truth["seconds"].sum())
    return (
        f"| {name} | {len(errors)} "
        f"| {100 * np.nanmedian(errors):.2f} / {100 * np.nanmean(errors):.2f} "
        f"| {100 * _seed_spread(recorded, 'validation_error', -1):.2f} "
        f"| {np.nanmean(responses):.3f} | {_seed_spread(recorded, 'response', 4):.3f} |"
    )


def report(paths: list[Path]) -> str:
    """All tables as Markdown."""
    records = _load(paths)
    names = [name for name in TABLES if (DATA / f"{name}.npz").exists()]
    return "\n".join(
        [
            "| table | trainings | error, same seed: median / mean, points "
            "| another seed | response, same seed | another seed "
            "| rank correlation, validation | of true error with one test |",
            "|---|---|---|---|---|---|---|---|",
            *(trained(name, records) for name in names),
            "",
            "| table | points left out | error: median / mean, points | two seeds | "
            "response | two seeds |",
            "|---|---|---|---|---|---|",
            *(left_out(name) for name in names),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.add_argument("records", type=Path)
    command.add_argument("--counts", type=int, nargs=3, default=[25, 12, 8])
    command = commands.add_parser("report")
    command.add_argument("records", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_all(arguments.records, arguments.counts)
    else:
        print(report(arguments.records))


if __name__ == "__main__":
    main()
