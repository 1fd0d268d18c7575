"""The README's example runs as it stands (with fewer epochs and probes)."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

MY_PROJECT = """
import torch


def make_model():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )


def make_loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=generator)
    y = torch.randint(10, (64,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
"""

CLUSTER = """
import ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 1024**2)
"""


def test_the_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    shorter = code.replace("AutoHyperSearch()", "AutoHyperSearch(max_probes=3)")
    shorter = shorter.replace("probe_epochs=5, max_t=200", "probe_epochs=5, max_t=6")
    shorter = shorter.replace("tune.loguniform(1e-7, 1e-1)", "1e-5")  # a constant: fewer probes
    assert len(set(code.split()) - set(shorter.split())) >= 3
    (tmp_path / "my_project.py").write_text(MY_PROJECT)
    (tmp_path / "example.py").write_text(CLUSTER + shorter)
    run = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert re.search(r"\{'lr': [0-9.e-]+\}", run.stdout)
    assert "round" in run.stdout
