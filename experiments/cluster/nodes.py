"""The same answers on one, two and four nodes: every searcher and scheduler, and `compare`.

    python experiments/cluster/nodes.py [--only WORD] [--nodes 1 2 4]

What is in the results already is not run again.

Each number of nodes is a cluster of its own on this machine (`ray.cluster_utils.Cluster`): a head
without processors, and nodes that share four processors and as many GPUs as it takes, which only
Ray believes in. A trial is given a processor and half a GPU. Four trials run at once on any of
them.

A search that learns from results in the order in which they come is given them in the same order
(`turns.py`); every configuration and every loss must then be the same. The others run as they
will, and the answer must be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
os.environ.setdefault("RAY_health_check_failure_threshold", "30")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from cases import CASES, RATES, WORKERS
from ray import tune
from ray.cluster_utils import Cluster
from trained import Formula
from turns import Turns, start_desk

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.own_ray import be_patient  # noqa: E402

GPU = 0.5
PATIENCE = 150.0


@contextmanager
def cluster_of(nodes: int) -> Iterator[str]:
    """The address of a cluster with so many nodes that train; this process is connected to it."""
    each = WORKERS // nodes
    with started([{"num_cpus": each, "num_gpus": math.ceil(each * GPU)}] * nodes) as address:
        yield address


def _ports() -> dict[str, int]:
    """Free ports for a node's agents.

    A raylet aborts when agents that choose their own do not say so within 15 s, as happens on a
    busy machine.
    """
    names = ("dashboard_agent_listen_port", "metrics_export_port")
    names += ("metrics_agent_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("", 0))
        return {n: s.getsockname()[1] for n, s in zip(names, sockets, strict=True)}


def patient(services: Any) -> None:
    """Let a node take its time to register, and tell its raylet the agent's port."""
    be_patient(PATIENCE)
    start = services.start_ray_process
    if start.__name__ == "start_told":
        return

    def start_told(command: list[str], *arguments: Any, **named: Any) -> Any:
        """The raylet has a flag for this agent's port as well; Ray does not use it."""
        port = re.search(r"--listen-port=(\d+)", " ".join(command))
        if port is not None and command[0].endswith("raylet"):
            command = [*command, f"--dashboard_agent_listen_port={port[1]}"]
        return start(command, *arguments, **named)

    services.start_ray_process = start_told


@contextmanager
def started(nodes: Sequence[dict[str, Any]], attempts: int = 3) -> Iterator[str]:
    """A head without processors, and these nodes; on a busy machine a start may fail."""
    small = {"object_store_memory": 80 * 1024**2, "wait": False}
    patient(ray._private.services)
    for attempt in range(1, attempts + 1):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, **small, **_ports())
            for node in nodes:
                cluster.add_node(**node, **small, **_ports())
            cluster.wait_for_nodes(timeout=PATIENCE)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        except Exception:
            ray.shutdown()
            cluster.shutdown()
            if attempt == attempts:
                raise
        else:
            break
    try:
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


def run_case(
    name: str,
    storage: Path,
    resources: dict[str, Any] | None = None,
    workers: int = WORKERS,
    trials: int | None = None,
) -> dict[str, Any]:
    """Run a case on the Ray of this process; what came out.

    Args:
        name: Of the case.
        storage: Where Ray writes.
        resources: Of a trial.
        workers: How many trials run at once.
        trials: How many in all; None: as many as the case has.
    """
    case = CASES[name]
    desk_name = f"desk-{time.monotonic_ns()}"
    desk = start_desk(desk_name, case.ordered)
    search, scheduler = case.make()
    started = time.monotonic()
    analysis = tune.run(
        Formula,
        config={"lr": RATES, "desk": desk_name, **case.space},
        search_alg=search,
        scheduler=scheduler,
        num_samples=case.trials if trials is None else trials,
        max_concurrent_trials=workers if case.ordered else None,
        resources_per_trial=resources or {"cpu": 1, "gpu": GPU},
        callbacks=[Turns(desk, workers)] if case.ordered else [],
        stop=None if scheduler is not None else {"training_iteration": 2},
        reuse_actors=True,
        storage_path=str(storage),
        name=desk_name,
        verbose=0,
        raise_on_failed_trial=False,
    )
    seen = ray.get(desk.seen.remote())
    ray.kill(desk)
    ended = [_trial(t) for t in analysis.trials]
    best = getattr(search, "best_config", None)
    return {
        "trials": len(ended),
        "failed": sum(t.status != "TERMINATED" for t in analysis.trials),
        "answer": _values(best if best is not None else min(ended, key=_loss)["config"]),
        "sequence": ended if case.ordered else None,
        "seconds": round(time.monotonic() - started, 1),
        **seen,
    }


def _trial(trial: Any) -> dict[str, Any]:
    result = trial.last_result or {}
    return {
        "config": _plain({k: v for k, v in trial.config.items() if k != "desk"}),
        "epochs": result.get("training_iteration", 0),
        "loss": result.get("loss"),
    }


def _values(config: dict[str, Any]) -> Any:
    """A configuration without what our searchers note in it, as the name of another trial."""
    return _plain({k: v for k, v in config.items() if k != "tune_ext"})


def _loss(trial: dict[str, Any]) -> float:
    return math.inf if trial["loss"] is None else trial["loss"]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def compared(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether runs of one case came out the same, and no GPU had more than it holds."""
    first = runs[0]
    same = all(r["answer"] == first["answer"] for r in runs)
    same = same and all(r["sequence"] == first["sequence"] for r in runs)
    return same and all(r["most of a device"] <= 1 and r["failed"] == 0 for r in runs)


def run_compare(address: str, storage: Path) -> dict[str, Any]:
    """`tune-ext compare` on a cluster: what it recommends and measures.

    One trial at a time where the method learns from the order of results. ExpTest, which does not,
    has several, and a budget in which it ends by itself: where a budget runs out decides how far
    it has come, and that depends on which of several trials are trained first.
    """
    from tune_ext.benchmark.cell_run import Place
    from tune_ext.benchmark.records import RecordStore
    from tune_ext.benchmark.runner import run_study
    from tune_ext.benchmark.study import Study, TaskSpec

    started, found, trials = time.monotonic(), [], 0
    for workers, method, budget in ((4, "exptest", 60), (1, "our-bohb", 12)):
        study = Study(
            title="nodes",
            tasks=(TaskSpec("diabetes", {"epochs": 3}),),
            methods=(method,),
            seeds=(0,),
            budget=budget,
            final_seeds=1,
            workers=workers,
        )
        place = Place(address, str(storage / "trials"), gpus_per_trial=GPU)
        with tempfile.TemporaryDirectory() as out:
            records = run_study(study, RecordStore(out), _Quiet(), place=place)
        for record in records:
            trials += len(record.trials)
            tests = [test["test_error"] for test in record.tests]
            found.append([record.method, record.recommendation["config"], tests, record.failures])
    return {
        "trials": trials,
        "failed": sum(bool(f[3]) for f in found),
        "answer": _plain(found),
        "sequence": None,
        "seconds": round(time.monotonic() - started, 1),
        "trials on nodes": [],
        "most on a device": 0,
        "most of a device": 0.0,
        "devices": 0,
    }


class _Quiet:
    """Says nothing of a study's progress."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    names = [n for n in [*CASES, "tune-ext compare"] if given.only in n]
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "nodes.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    runs = found.get("runs", {}) if found.get("conditions") == conditions() else {}
    for nodes in given.nodes:
        left = [name for name in names if str(nodes) not in runs.get(name, {})]
        if not left:
            continue
        with cluster_of(nodes) as address, tempfile.TemporaryDirectory() as scratch:
            for name in left:
                if name in CASES:
                    run = run_case(name, Path(scratch))
                else:
                    run = run_compare(address, Path(scratch))
                runs.setdefault(name, {})[str(nodes)] = run
                text = json.dumps({"conditions": conditions(), "runs": runs}, indent=1)
                path.write_text(text + "\n", encoding="utf-8")
                print(f"{nodes} nodes, {name}: {run['trials']} trials, {run['seconds']} s")
    (given.out / "nodes.md").write_text(table(runs), encoding="utf-8")
    print(table(runs))
    sys.exit(not all(compared(list(of.values())) for of in runs.values()))


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Method × nodes, in Markdown."""
    nodes = sorted({n for of in runs.values() for n in of}, key=int)
    heads = [f"trials on {n} node{'s' if n != '1' else ''}" for n in nodes]
    lines = [
        f"| method | {' | '.join(heads)} | compared | equal | at most on a GPU |",
        "|---" * (len(nodes) + 4) + "|",
    ]
    for name, of in runs.items():
        cells = [_cell(of[n]) if n in of else "" for n in nodes]
        what = "every trial" if next(iter(of.values()))["sequence"] else "the answer"
        same = ("yes" if len(of) > 1 else "–") if compared(list(of.values())) else "**no**"
        most = max(run["most of a device"] for run in of.values())
        lines.append(f"| {name} | {' | '.join(cells)} | {what} | {same} | {most:g} |")
    return "\n".join(lines) + "\n"


def _cell(run: dict[str, Any]) -> str:
    shared = "+".join(map(str, run["trials on nodes"]))
    return f"{run['trials']} ({shared})" if shared else str(run["trials"])


def conditions() -> dict[str, Any]:
    """What the numbers depend on."""
    import ConfigSpace
    import numpy

    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "numpy": numpy.__version__,
        "ConfigSpace": ConfigSpace.__version__,
        "processors": os.cpu_count(),
        "workers": WORKERS,
        "seed": 0,
    }


if __name__ == "__main__":
    main()
