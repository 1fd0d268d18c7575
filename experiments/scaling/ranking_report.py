"""What the records of ranking.py say: Kendall's τ within and between protocols, who gains."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ranking import PROTOCOLS, SEEDS, STEPS, base_exponent, networks

from tune_ext._random import generator

Array = NDArray[np.float64]
MIDDLE = len(STEPS) // 2
DRAWS = 1000


@dataclass(frozen=True)
class Trained:
    """What was measured of a set of architectures.

    Attributes:
        dags: The architectures.
        accuracy: protocol → (architectures, rates, seeds).
        loss: The same for the training loss, infinite where it diverged.
    """

    dags: list[str]
    accuracy: dict[str, Array]
    loss: dict[str, Array]


def arrange(records: Sequence[Mapping[str, Any]], dags: Sequence[str]) -> Trained:
    """The architectures for which every protocol is on record."""
    cells = {(r["dag"], r["protocol"]): r for r in records if r["kind"] == "cell"}
    there = [d for d in dags if all((d, p) in cells for p in PROTOCOLS)]

    def stack(what: str, protocol: str) -> Array:
        rows = [cells[d, protocol][what] for d in there]
        return np.array([[[np.inf if v is None else v for v in x] for x in r] for r in rows])

    return Trained(
        there,
        {p: stack("accuracy", p) for p in PROTOCOLS},
        {p: stack("loss", p) for p in PROTOCOLS},
    )


def halves(seeds: int) -> list[tuple[list[int], list[int]]]:
    """Every way to split the seeds into two equal halves, both orders.

    >>> halves(2)
    [([0], [1]), ([1], [0])]
    """
    everyone = range(seeds)
    return [
        (list(one), [s for s in everyone if s not in one])
        for one in itertools.combinations(everyone, seeds // 2)
    ]


def agreements(a: Array, b: Array) -> tuple[Array, Array]:
    """Agreement of two rankings, each from one half of the seeds, pair by pair.

    The halves share no seed, so that a protocol with itself gives the noise of a ranking and
    is comparable with two protocols.

    Args:
        a: (architectures, seeds) accuracies.
        b: The same of another protocol, or of the same.

    Returns:
        For each pair of architectures 1 or -1 (0 for equals), the mean over all splits; and the
        pairs (2, pairs). The mean over pairs is Kendall's τ_a.
    """
    pairs = np.array(np.triu_indices(len(a), 1))
    total = np.zeros(pairs.shape[1])
    splits = halves(a.shape[1])
    for one, two in splits:
        x, y = a[:, one].mean(axis=1), b[:, two].mean(axis=1)
        total += np.sign(x[pairs[0]] - x[pairs[1]]) * np.sign(y[pairs[0]] - y[pairs[1]])
    return total / len(splits), pairs


def with_interval(a: Array, b: Array) -> list[float]:
    """The mean τ over splits with a 95% interval over architectures drawn with replacement."""
    each, (i, j) = agreements(a, b)
    draws = generator(0, "architectures").multinomial(len(a), [1 / len(a)] * len(a), size=DRAWS)
    weights = draws[:, i] * draws[:, j]
    drawn = weights @ each / weights.sum(axis=1)
    return [float(each.mean()), *np.quantile(drawn, (0.025, 0.975)).tolist()]


def tuned(trained: Trained, protocol: str, seeds: Sequence[int]) -> NDArray[np.int64]:
    """The rate of each architecture with the smallest mean training loss over these seeds."""
    losses = np.minimum(trained.loss[protocol][:, :, list(seeds)], np.log(10)).mean(axis=2)
    return np.argmin(losses, axis=1)


def at(trained: Trained, protocol: str, which: int | NDArray[np.int64] = MIDDLE) -> Array:
    """The accuracies (architectures, seeds) at one of the rates."""
    values = trained.accuracy[protocol]
    return np.asarray(values[np.arange(len(values)), which])


def gain(a: Array, b: Array) -> dict[str, Any]:
    """How much more b has than a, architecture by architecture.

    Args:
        a: (architectures, seeds).
        b: (architectures, seeds).
    """
    each = (b - a).mean(axis=1)
    errors = (b - a).std(axis=1, ddof=1) / np.sqrt(a.shape[1])
    rng = generator(0, "gain")
    drawn = each[rng.integers(len(each), size=(DRAWS, len(each)))].mean(axis=1)
    return {
        "mean": [float(each.mean()), *np.quantile(drawn, (0.025, 0.975)).tolist()],
        "gain": int((each > 2 * errors).sum()),
        "lose": int((each < -2 * errors).sum()),
        "each": each.tolist(),
    }


def analyse(trained: Trained) -> dict[str, Any]:
    """Everything about one set of architectures."""
    names = list(PROTOCOLS)
    half = SEEDS // 2
    # Rates chosen by the training loss of all seeds; accuracies are of test images.
    best = {p: tuned(trained, p, range(SEEDS)) for p in names}
    common = {p: int(np.bincount(best[p], minlength=len(STEPS)).argmax()) for p in names}
    shared = at(trained, "shared")
    shared_tuned = at(trained, "shared", best["shared"])
    out: dict[str, Any] = {"architectures": len(trained.dags), "seeds": SEEDS, "half": half}
    out["protocols"] = {
        p: {
            "accuracy": float(at(trained, p).mean()),
            "spread": float(at(trained, p).mean(axis=1).std(ddof=1)),
            "at chance": int((at(trained, p).mean(axis=1) < 0.2).sum()),
            "with each rate": trained.accuracy[p].mean(axis=(0, 2)).tolist(),
            "with its own best": float(at(trained, p, best[p]).mean()),
            "best rates": np.bincount(best[p], minlength=len(STEPS)).tolist(),
            "most often best": common[p],
            "noise": with_interval(at(trained, p), at(trained, p)),
            "with shared": with_interval(at(trained, p), shared),
            "with shared, tuned": with_interval(at(trained, p), shared_tuned),
            "tuned, with shared, tuned": with_interval(at(trained, p, best[p]), shared_tuned),
            "gain over shared": gain(shared, at(trained, p)),
            "gain over shared, both tuned": gain(shared_tuned, at(trained, p, best[p])),
        }
        for p in names
    }
    out["accuracy by architecture"] = {
        dag: {p: round(float(at(trained, p)[i].mean()), 4) for p in names}
        for i, dag in enumerate(trained.dags)
    }
    return out


def words(value: Sequence[float], digits: int = 2) -> str:
    return f"{value[0]:.{digits}f} [{value[1]:.{digits}f}, {value[2]:.{digits}f}]"


def tables(found: Mapping[str, Any]) -> str:
    """Markdown: accuracies and gains, then rankings."""
    lines = [
        "| protocol | accuracy at the base rate | spread | with 1/2, 1, 2 of it "
        "| each its best | gain over shared, points | gain, lose |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for p, v in found["protocols"].items():
        g = v["gain over shared"]
        each = ", ".join(f"{100 * a:.1f}" for a in v["with each rate"])
        gained = words([100 * x for x in g["mean"]], 1) if p != "shared" else ""
        changed = f"{g['gain']}, {g['lose']}"
        lines.append(
            f"| {p} | {100 * v['accuracy']:.1f} | {100 * v['spread']:.1f} | {each} "
            f"| {100 * v['with its own best']:.1f} | {gained} "
            f"| {changed if p != 'shared' else ''} |"
        )
    lines += [
        "",
        "| protocol | τ with itself (noise) | τ with shared | τ with shared, each its best rate |",
        "|---|---:|---:|---:|",
    ]
    for p, v in found["protocols"].items():
        lines.append(
            f"| {p} | {words(v['noise'])} | {words(v['with shared'])} "
            f"| {words(v['with shared, tuned'])} |"
        )
    return "\n".join(lines)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy of each architecture with scaled against shared rates, a panel a set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(4.6 * len(found), 4), squeeze=False)
    for axis, (kind, part) in zip(panels[0], found.items(), strict=True):
        rows = list(part["accuracy by architecture"].values())
        x = [100 * r["shared"] for r in rows]
        for name, marker in (("scaled, sum", "o"), ("scaled, mean", "^"), ("published", "s")):
            axis.plot(x, [100 * r[name] for r in rows], marker, markersize=4, label=name)
        axis.axline((75, 75), slope=1, color="grey", linewidth=0.8)
        axis.set_title(f"{part['architectures']} graphs: {kind}", fontsize=10)
        axis.set_xlabel("test accuracy, one shared rate, %")
        axis.set_ylabel("test accuracy, scaled, %")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(
    records: Sequence[Mapping[str, Any]], results: Path, versions: Mapping[str, str]
) -> None:
    """Print the tables; write ranking.json and ranking.png beside the records."""
    found = {}
    for kind in ("any", "layers"):
        trained = arrange(records, [n.dag for n in networks(kind)])
        if len(trained.dags) >= 3:
            found[kind] = analyse(trained)
    if not found:
        raise SystemExit("no records yet: run first")
    base = {r["init"]: 2 ** (base_exponent(r) / 2) for r in records if r["kind"] == "base"}
    out = {"versions": dict(versions), "base rates": base, "architectures": found}
    (results / "ranking.json").write_text(json.dumps(out, indent=1) + "\n")
    plot(found, results / "ranking.png")
    print("base rates:", {k: round(v, 4) for k, v in base.items()})
    for kind, part in found.items():
        print(f"\n{kind}, {part['architectures']} architectures\n", tables(part), sep="\n")
