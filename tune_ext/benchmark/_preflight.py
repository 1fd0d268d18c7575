"""Whether a study can run where it was told to: asked once, before anything is trained.

A cluster is looked at by a process of its own, which is ended when it takes too long: Ray waits
minutes for an address that does not answer, and so do some storages.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_ext.benchmark._storage import Storage
from tune_ext.benchmark.cell_run import Place
from tune_ext.benchmark.study import Study
from tune_ext.errors import InvalidValueError

__all__ = ["check_place", "hints", "room"]

PATIENCE = 90.0
"""Seconds after which a cluster or a storage counts as out of reach."""

_GROWING = ("~/ray_bootstrap_config.yaml",)
"""Where `ray up` leaves the cluster file on the head."""

Node = Mapping[str, float]


def room(need: Node, nodes: Sequence[tuple[Node, int]]) -> int:
    """How many trials can run at once.

    Args:
        need: What a trial is given, such as `{"CPU": 1, "GPU": 0.25}`.
        nodes: What a node has, and how many such nodes there are.

    >>> room({"CPU": 1, "GPU": 0.4}, [({"CPU": 8, "GPU": 2}, 3)])  # 0.2 of each GPU is left
    12
    """
    total = 0
    for node, count in nodes:
        fits = [math.inf]
        for name, part in need.items():
            if part <= 0:
                continue
            have = node.get(name, 0)
            if name == "GPU" and part < 1:
                fits.append(math.floor(have) * math.floor(1 / part + 1e-9))
            else:
                fits.append(math.floor(have / part + 1e-9))
        least = min(fits)
        total += count * (1_000_000 if least == math.inf else int(least))
    return total


def check_place(place: Place, study: Study, jobs: int) -> list[str]:
    """Look at the cluster, or at this machine's GPUs, and say what is odd.

    Args:
        place: Where trials are to be trained.
        study: What is to run.
        jobs: How many cells at once.

    Returns:
        What the user may want to change, a sentence each.

    Raises:
        InvalidValueError: Nothing could ever run there, and why.
    """
    if all(task.create().simulated for task in study.tasks):
        return []
    if place.address is None:
        _check_own_gpus(place, study, jobs)
        return hints(place, study)
    if place.address.startswith("ray://"):
        raise InvalidValueError(
            f"{place.address!r} is Ray's client, through which no study runs: run the command on "
            "the cluster (`ray job submit`, docs/cluster.md) with --address auto"
        )
    seen = _look(place)
    nodes = [(node, 1) for node in seen["nodes"]]
    later = [(node, count) for node, count in seen["growth"] or []]
    need = {"CPU": place.cpus_per_trial, "GPU": place.gpus_per_trial}
    most = max(room(need, nodes), room(need, later))
    if most == 0 and not seen["unknown_growth"]:
        raise InvalidValueError(
            f"a trial asks for {_listed(need)}, and no node of the cluster has that, now or when "
            f"it grows: {_nodes(nodes + later)}. Give less with --gpus-per-trial and "
            "--cpus-per-trial, or run where the head's cluster file is (`ray job submit`)"
        )
    said = hints(place, study)
    if most == 0:
        said.append(f"no node has {_listed(need)} yet: every cell waits for one")
    elif most < study.workers:
        said.append(
            f"{study.workers} trials of a cell may run at once, and the cluster has room for "
            f"{most} ({_listed(need)} each): the others wait"
        )
    return said


def hints(place: Place, study: Study) -> list[str]:
    """What does not fit together in a study and its place."""
    said = []
    for task in study.tasks:
        device = task.create().options.get("device")
        if device is None:
            continue
        if place.gpus_per_trial > 0 and device == "cpu":
            said.append(
                f"{task.label}: trials are given GPUs and train on the processor; write "
                'options = { device = "cuda" } in the study file'
            )
        if place.gpus_per_trial == 0 and device != "cpu":
            said.append(
                f"{task.label}: trials train on {device!r} and are given no GPU, so that all "
                "share one unasked; give --gpus-per-trial"
            )
    return said


def _check_own_gpus(place: Place, study: Study, jobs: int) -> None:
    """Without a cluster every job has a Ray of its own, which knows nothing of the others."""
    if place.gpus_per_trial == 0:
        return
    wanted, have = math.ceil(study.workers * place.gpus_per_trial), _own_gpus()
    if wanted > have:
        raise InvalidValueError(
            f"{study.workers} trials at once with {place.gpus_per_trial:g} GPU each need "
            f"{wanted}, and this machine has {have}: give less with --gpus-per-trial or "
            "--workers, or --address of a cluster"
        )
    if jobs > 1:
        raise InvalidValueError(
            f"{jobs} cells at once would all use the same GPUs: give --jobs 1; or start a Ray "
            "(`ray start --head`) that they share, and give --address auto --storage DIRECTORY"
        )


def _own_gpus() -> int:
    from ray._private.accelerators import get_accelerator_manager_for_resource

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA ends the list at the first device that there cannot be
        names = [name.strip() for name in visible.split(",")]
        none = [i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles")]
        return none[0] if none else len(names)
    return int(get_accelerator_manager_for_resource("GPU").get_current_node_num_accelerators())


def _look(place: Place, patience: float = PATIENCE) -> dict[str, Any]:
    """What the other process says of a cluster and its storage."""
    command = [sys.executable, "-P", "-m", __name__, str(place.address), str(place.storage)]
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.seek(0)
        lines = [
            json.loads(line) for line in output.read().decode().splitlines() if line[:1] == "{"
        ]
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    said = {key: value for line in lines for key, value in line.items()}
    if "problem" in said:
        raise InvalidValueError(said["problem"])
    if "nodes" not in said:
        where = said.get("doing", f"the storage {place.storage!r} could not be used")
        why = "" if process.returncode in (0, -9) or not last else f" ({last[0]})"
        raise InvalidValueError(f"{where} within {patience:g} s{why}")
    return said


def _listed(need: Node) -> str:
    return " and ".join(f"{part:g} {name}" for name, part in need.items() if part > 0) or "nothing"


def _nodes(nodes: Sequence[tuple[Node, int]]) -> str:
    kinds: Counter[str] = Counter()
    for node, count in nodes:
        kinds[f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU"] += count
    return ", ".join(f"{count} with {kind}" for kind, count in kinds.items()) or "it has none"


# What follows runs in a process of its own.


def main(address: str, where: str) -> None:
    """Print what is found, a line of JSON for each step."""
    from tune_ext.errors import TuneExtError

    try:
        _say(doing=f"the storage {where!r} did not answer")
        storage = Storage(where)
        storage.check()
        _say(doing=f"no Ray cluster answered at {address!r}")
        _say(**_seen(address, storage))
    except TuneExtError as error:
        _say(problem=str(error))
    except (ConnectionError, ValueError, RuntimeError) as error:
        _say(problem=f"cannot use the cluster at {address!r}: {' '.join(str(error).split())}")


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def _seen(address: str, storage: Storage) -> dict[str, Any]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    _say(doing="a node of the cluster did not answer")
    probe = f"probe-{uuid.uuid4().hex}"
    storage.write(probe, b"tune-ext")
    try:
        problems = _ask_nodes(nodes, storage.where, probe)
    finally:
        with contextlib.suppress(OSError):
            storage.remove(probe)
    if problems:
        raise InvalidValueError("; ".join(dict.fromkeys(problems)))
    return {
        "nodes": [node["Resources"] for node in nodes],
        "growth": _growth(Path(path).expanduser() for path in _GROWING),
        "unknown_growth": "KUBERNETES_SERVICE_HOST" in os.environ,
    }


def _ask_nodes(nodes: Sequence[Mapping[str, Any]], where: str, probe: str) -> list[str]:
    """What every node lacks: this package in this version, or the storage."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from tune_ext.benchmark.provenance import provenance

    def on_node() -> tuple[str | None, str | None]:
        try:
            from tune_ext.benchmark._storage import Storage
            from tune_ext.benchmark.provenance import provenance
        except ImportError as error:
            return None, f"tune_ext cannot be imported there ({error})"
        version = provenance()["versions"]["tune-ext"]
        try:
            found = Storage(where).read(probe)
        except (OSError, ValueError) as error:
            return version, f"cannot read the storage {where!r}: {error}"
        return version, None if found else f"does not see what others write to {where!r}"

    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ask = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(on_node)
        asked.append((node["NodeManagerAddress"], ask.remote()))
    mine, problems = provenance()["versions"]["tune-ext"], []
    for name, answer in asked:
        version, problem = ray.get(answer)
        if problem:
            problems.append(f"node {name} {problem}")
        elif version != mine:
            problems.append(f"node {name} has tune-ext {version}, this machine {mine}")
    return problems


def _growth(paths: Any) -> list[tuple[dict[str, float], int]] | None:
    """The nodes that `ray up` may start, by its own file; None where there is none."""
    import yaml

    for path in paths:
        if path.is_file():
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            types = config.get("available_node_types", {})
            return [
                (kind.get("resources", {}), int(kind.get("max_workers", 0)))
                for name, kind in types.items()
                if name != config.get("head_node_type")
            ]
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
