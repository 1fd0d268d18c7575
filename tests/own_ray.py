"""A Ray of a process's own, started patiently."""

from __future__ import annotations

from typing import Any

import ray

ATTEMPTS = 3
"""On a busy machine a limit of 30 s passes that Ray does not let us change."""


def start(**options: Any) -> None:
    """Start a local Ray; "local", as another process of this machine may have one, too."""
    given = {
        "address": "local",
        "num_cpus": 2,
        "include_dashboard": False,
        "object_store_memory": 80 * 1024**2,
        "log_to_driver": False,
    }
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**{**given, **options})
        except Exception:
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise
        else:
            return
