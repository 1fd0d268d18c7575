"""Tables and pictures from the records of study.py.

    python experiments/exptest/report.py [--out results]

Writes report.md, report.json and the pictures fig1 … fig5, analogous to those of the paper
(arXiv 2411.16975), beside the records.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baselines import CONSTANTS, COOLED, methods, oracle
from scipy.stats import rankdata
from study import RECORDS, Record, read
from tasks import tasks

HERE = Path(__file__).parent
ORACLE, EXPTEST = "oracle", "exptest"
SGD_DEFAULT = "sgd-default"
COOLED_ORACLE = "oracle-cooled"
BASES = {EXPTEST: "plain SGD", "exptest-momentum": "momentum .9", "exptest-adam": "Adam"}
VARIANTS = ("exptest-open", "ladder", "tuner-oracle", "exptest-momentum", "exptest-adam")
Cells = dict[tuple[str, str, int], Record]


def gather(records: Iterable[Record]) -> Cells:
    """The cells by task, method and seed, with the oracle and SGD's default put together."""
    cells: Cells = {(r["task"], r["method"], r["seed"]): r for r in records}
    for task, seed in sorted({(t, s) for t, _, s in cells}):
        known = {m: r for (t, m, s), r in cells.items() if (t, s) == (task, seed)}
        for name, grid in ((ORACLE, CONSTANTS), (COOLED_ORACLE, COOLED)):
            if all(n in known for n in grid):
                cells[task, name, seed] = _best_of(known, name, grid)
        if "constant-0.001" in known:
            cells[task, SGD_DEFAULT, seed] = {**known["constant-0.001"], "method": SGD_DEFAULT}
    return cells


def _best_of(known: dict[str, Record], name: str, grid: tuple[str, ...]) -> Record:
    """The run of the grid with the best validation metric, charged with all of the grid."""
    best = known[oracle(known, known[grid[0]]["metric"], grid)]
    others = sum(known[n]["steps"] for n in grid) - best["steps"]
    return {**best, "method": name, "search_steps": others}


def compared(exptest: str = EXPTEST) -> list[str]:
    """The methods that are ranked; exptest's variants are left out, or one takes its place."""
    left_out = {*CONSTANTS, *COOLED, *VARIANTS}
    names = [name for name in methods() if name not in left_out]
    return [ORACLE, exptest, SGD_DEFAULT, *(n for n in names if n != EXPTEST)]


def cost(record: Record) -> int:
    """Training steps in all."""
    return int(record["search_steps"]) + int(record["steps"])


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error is NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)


@dataclass(frozen=True)
class Row:
    """What a method came to on a task.

    Attributes:
        method: Its name.
        seeds: How many seeds there are.
        diverged: How many of them diverged; they are left out of the means.
        values: Mean and standard error of "train_loss", "validation" and "test".
        cost: Mean steps, over a run's.
        share: Mean steps over the grid's; None without a grid.
        gap: Mean relative distance of the test metric from the oracle's of the same seed,
            positive where worse, and its standard error; None without an oracle.
        rate: Geometric mean of the rates that the runs began with; None if there are none.
    """

    method: str
    seeds: int
    diverged: int
    values: dict[str, tuple[float, float]]
    cost: float
    share: float | None
    gap: tuple[float, float] | None
    rate: float | None


def row(cells: Cells, task: str, method: str) -> Row | None:
    """The row of a method on a task, None if there is no record."""
    found = {s: r for (t, m, s), r in cells.items() if (t, m) == (task, method)}
    if not found:
        return None
    good = {s: r for s, r in found.items() if not r["diverged"]}
    pairs = [(r, cells.get((task, ORACLE, s))) for s, r in found.items()]
    shares = [cost(r) / cost(best) for r, best in pairs if best is not None]
    gaps = [relative_gap(r, best) for r, best in pairs if best is not None and not r["diverged"]]
    rates = [r["lr"] for r in found.values() if r["lr"]]
    return Row(
        method,
        len(found),
        len(found) - len(good),
        {
            name: mean_error([r["metrics"][name] for r in good.values()])
            for name in ("train_loss", "validation", "test")
        }
        if good
        else {},
        float(np.mean([cost(r) / r["run_steps"] for r in found.values()])),
        float(np.mean(shares)) if shares else None,
        mean_error(gaps) if gaps else None,
        float(np.exp(np.mean(np.log(rates)))) if rates else None,
    )


def relative_gap(record: Record, best: Record) -> float:
    """How much worse the test metric is than the oracle's, as a share of the oracle's."""
    a, b = record["metrics"]["test"], best["metrics"]["test"]
    return float((b - a) / b if record["metric"] == "accuracy" else (a - b) / b)


def ranks(cells: Cells, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean rank of each method on each task, by the test metric within each seed.

    Ties share their mean rank; diverged runs come last. Seeds that lack a method are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for task in tasks_of(cells):
        seeds = sorted({s for t, _, s in cells if t == task})
        full = [s for s in seeds if all((task, n, s) in cells for n in names)]
        if not full:
            continue
        table = [[_badness(cells[task, n, s]) for n in names] for s in full]
        means = np.mean([rankdata(line) for line in table], axis=0)
        found[task] = dict(zip(names, map(float, means), strict=True))
    return found


def _badness(record: Record) -> float:
    if record["diverged"]:
        return math.inf
    value = float(record["metrics"]["test"])
    return -value if record["metric"] == "accuracy" else value


def tasks_of(cells: Cells) -> list[str]:
    """The tasks there are records of, without the lattice, in the order of tasks.py."""
    order = {name: place for place, name in enumerate(tasks())}
    found = {t for t, _, _ in cells if not t.startswith("lattice")}
    return sorted(found, key=lambda t: (order.get(t, len(order)), t))


# -- targets ------------------------------------------------------------------------------


def targets(cells: Cells) -> list[tuple[str, str, bool]]:
    """Each target with what was measured and whether it is met."""
    found = []
    if (r := row(cells, "logistic-128", EXPTEST)) is not None and r.values:
        value, error = r.values["train_loss"]
        text = f"{value:.3f} ± {error:.3f} ({r.seeds} seeds)"
        found.append(("logistic-128: train loss ≤ .407", text, value <= 0.407))
    if (r := row(cells, "mlp-128", EXPTEST)) is not None and r.values:
        value, error = r.values["test"]
        text = f"{value:.3f} ± {error:.3f} ({r.seeds} seeds)"
        found.append(("mlp-128: test accuracy ≥ .864", text, value >= 0.864))
    for task in tasks_of(cells):
        r = row(cells, task, EXPTEST)
        if r is None or r.gap is None or r.share is None:
            continue
        text = f"{_gap(r.gap)} ({r.seeds} seeds)"
        met = r.gap[0] <= 0.01 and not r.diverged
        found.append((f"{task}: test metric within 1 % of the oracle's", text, met))
        found.append((f"{task}: ≤ 1/4 of the grid's steps", f"{r.share:.3f}", r.share <= 0.25))
    found += _rank_target(cells)
    return found


def _rank_target(cells: Cells) -> Iterator[tuple[str, str, bool]]:
    for ours, base in BASES.items():
        average = average_ranks(ranks(cells, compared(ours)))
        if not average:
            continue
        others = {n: v for n, v in average.items() if n not in (ORACLE, ours)}
        second = min(others, key=lambda n: others[n])
        text = f"{average[ours]:.2f}; the best of the others: {second}, {others[second]:.2f}"
        target = f"average rank ahead of every baseline but the oracle, {base}"
        yield target, text, average[ours] < others[second]


def average_ranks(by_task: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean over tasks, each counting the same."""
    if not by_task:
        return {}
    names = next(iter(by_task.values()))
    return {n: float(np.mean([of[n] for of in by_task.values()])) for n in names}


# -- report.md ----------------------------------------------------------------------------


def markdown(cells: Cells) -> str:
    """The whole report."""
    lines = [
        "# ExpTest against other ways to a learning rate: tables",
        "",
        "Written by `report.py`; what it says and the conditions are in ../README.md.",
        "± is the standard error over seeds. Cost is training steps, the search included, over",
        "those of one run; share is the same over those of the whole grid. Gap is the relative",
        "distance of the test metric from the oracle's on the same seed (+ is better than it).",
        "",
        *_targets_table(cells),
        *(
            line
            for ours, base in BASES.items()
            for line in _ranks_table(cells, compared(ours), f"Average ranks, exptest with {base}")
        ),
        *_ranks_table(
            cells,
            [ORACLE, COOLED_ORACLE, "cosine-oracle", EXPTEST, *VARIANTS],
            "Average ranks among the variants of exptest",
        ),
    ]
    for task in tasks_of(cells):
        lines += _task_table(cells, task)
    lines += _lattice_table(cells)
    return "\n".join(lines) + "\n"


def _targets_table(cells: Cells) -> Iterator[str]:
    yield from ("## Targets", "", "| target | measured | met |", "|---|---|---|")
    for target, text, met in targets(cells):
        yield f"| {target} | {text} | {'yes' if met else '**no**'} |"
    yield ""


def _ranks_table(cells: Cells, names: Sequence[str], title: str) -> Iterator[str]:
    by_task = ranks(cells, names)
    if not by_task:
        return
    average = average_ranks(by_task)
    yield from (f"## {title}", "", f"Of {len(names)} methods; 1 is the best.", "")
    yield "| method | average | " + " | ".join(by_task) + " |"
    yield "|---|---:|" + "---:|" * len(by_task)
    for name in sorted(names, key=lambda n: average[n]):
        values = " | ".join(f"{of[name]:.1f}" for of in by_task.values())
        yield f"| {name} | {average[name]:.2f} | {values} |"
    yield ""


def _task_table(cells: Cells, task: str) -> Iterator[str]:
    metric = next(r["metric"] for (t, _, _), r in cells.items() if t == task)
    yield from (f"## {task}", "")
    yield f"| method | test {metric} | gap | validation | train loss | first rate | cost | share |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    rows = [row(cells, task, n) for n in _ALL]
    present = [r for r in rows if r is not None]
    sign = -1 if metric == "accuracy" else 1
    present.sort(key=lambda r: sign * r.values["test"][0] if r.values else math.inf)
    for r in present:
        yield _task_row(r)
    yield ""


def _task_row(r: Row) -> str:
    name = r.method if not r.diverged else f"{r.method} ({r.diverged} of {r.seeds} diverged)"
    values = [_pm(r.values.get(k), 4) for k in ("test", "validation", "train_loss")]
    gap = "" if r.gap is None else _gap(r.gap)
    rate = "" if r.rate is None else f"{r.rate:.3g}"
    share = "" if r.share is None else f"{r.share:.3f}"
    return (
        f"| {name} | {values[0]} | {gap} | {values[1]} | {values[2]} | {rate} "
        f"| {r.cost:.2f} | {share} |"
    )


def _gap(gap: tuple[float, float]) -> str:
    """In percent, positive where better than the oracle; no minus before a zero."""
    error = "" if math.isnan(gap[1]) else f" ± {100 * gap[1]:.2f}"
    return f"{0.0 - 100 * gap[0]:+.2f} %{error}"


def _lattice_table(cells: Cells) -> Iterator[str]:
    names = [t for t in dict.fromkeys(t for t, _, _ in cells) if t.startswith("lattice")]
    if not names:
        return
    yield from ("## Lattice: width × depth", "")
    yield (
        "| width-depth | seeds | best constant that never diverged | its test mse "
        "| exptest's rates | its test mse | search / run |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for task in names:
        rates = dict.fromkeys(m for t, m, _ in cells if t == task and m.startswith("rate-"))
        rows = [r for m in rates if (r := row(cells, task, m)) is not None and not r.diverged]
        ours = row(cells, task, EXPTEST)
        if ours is None or not rows:
            continue
        best = min(rows, key=lambda r: r.values["validation"][0])
        found = [r["lr"] for k, r in sorted(cells.items()) if k[:2] == (task, EXPTEST)]
        chosen = dict.fromkeys("none" if lr is None else f"{lr:.2g}" for lr in found)
        lost = f" ({ours.diverged} without a result)" if ours.diverged else ""
        yield (
            f"| {task.removeprefix('lattice-')} | {ours.seeds} | {best.rate:.3g} "
            f"| {_pm(best.values['test'], 3)} | {', '.join(chosen)} "
            f"| {_pm(ours.values.get('test'), 3)}{lost} | {ours.cost - 1:.1f} |"
        )
    yield ""


def _pm(value: tuple[float, float] | None, digits: int) -> str:
    if value is None:
        return ""
    error = "" if math.isnan(value[1]) else f" ± {value[1]:.{digits}f}"
    return f"{value[0]:.{digits}f}{error}"


def summary(cells: Cells) -> dict[str, Any]:
    """The same as plain JSON."""
    rows = {t: [row(cells, t, n) for n in _ALL] for t in tasks_of(cells)}
    return {
        "targets": [{"target": a, "measured": b, "met": bool(c)} for a, b, c in targets(cells)],
        "average_ranks": average_ranks(ranks(cells, compared())),
        "tasks": {t: {r.method: _plain(r) for r in of if r is not None} for t, of in rows.items()},
    }


def _plain(r: Row) -> dict[str, Any]:
    pairs = {k: list(v) for k, v in r.values.items()}
    plain = {**pairs, "gap": None if r.gap is None else list(r.gap)}
    plain |= {"seeds": r.seeds, "diverged": r.diverged, "cost": r.cost, "share": r.share}
    return json.loads(json.dumps(plain | {"rate": r.rate}).replace("NaN", "null"))  # type: ignore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    out = parser.parse_args().out
    cells = gather(read(out / RECORDS))
    (out / "report.md").write_text(markdown(cells), encoding="utf-8")
    (out / "report.json").write_text(json.dumps(summary(cells), indent=1) + "\n", encoding="utf-8")
    for target, text, met in targets(cells):
        print(f"{'met    ' if met else 'NOT MET'} {target}: {text}")
    from pictures import draw

    for path in draw(cells, out):
        print(path)


_ALL = (*compared(), COOLED_ORACLE, *VARIANTS, *CONSTANTS)

if __name__ == "__main__":
    main()
