"""The README's examples run as they stand (that for Ray with fewer epochs and probes)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

MY_PROJECT = """
import torch


def make_model():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )


def make_loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1, 8, 8, generator=generator)
    y = torch.randint(10, (256,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
"""

CLUSTER = """
import ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 1024**2)
"""


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, folder: Path) -> str:
    (folder / "my_project.py").write_text(MY_PROJECT)
    (folder / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_example_in_torch_runs(tmp_path):
    code, _ = examples()
    said = run(code, tmp_path)
    assert re.search(r"^[0-9.e-]+ after \d+ steps$", said, re.MULTILINE)
    assert "window" in said
    assert (tmp_path / "ladder.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_example_in_ray_runs(tmp_path):
    _, code = examples()
    shorter = code.replace("AutoHyperSearch()", "AutoHyperSearch(max_probes=3)")
    shorter = shorter.replace("probe_epochs=5, max_t=200", "probe_epochs=5, max_t=6")
    shorter = shorter.replace("tune.loguniform(1e-7, 1e-1)", "1e-5")  # a constant: fewer probes
    assert len(set(code.split()) - set(shorter.split())) >= 3
    said = run(CLUSTER + shorter, tmp_path)
    assert re.search(r"\{'lr': [0-9.e-]+\}", said)
    assert "round" in said
