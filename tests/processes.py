"""Scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def printed_by(script: str) -> set[str]:
    """What a script prints, in processes with different hash seeds."""
    return {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
