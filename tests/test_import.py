"""Importing is cheap, and the pure cores know neither Ray nor torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tune_ext

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_the_package_starts_neither_torch_nor_ray() -> None:
    python(
        "import sys, tune_ext; tune_ext.__all__; dir(tune_ext)\n"
        "assert not {'torch', 'ray', 'scipy'} & set(sys.modules), 'started too much'"
    )


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        ("tune_ext.autohyper, tune_ext.errors, tune_ext._random, tune_ext._mark", ("ray", "torch")),
        ("tune_ext.exptest, tune_ext._loss_monitor, tune_ext._losses", ("ray", "torch")),
        ("tune_ext.lowrank", ("ray",)),
        ("tune_ext.importance", ("ray", "torch", "sklearn")),
        ("tune_ext._plan_cache, tune_ext._architecture_factors", ("ray", "torch")),
        ("tune_ext.scaling; tune_ext.scaling.plan_of_dag('2_12').factor()", ("ray", "torch")),
        ("tune_ext._trace, tune_ext._initialize, tune_ext.models", ("ray",)),
        ("tune_ext.benchmark.tasks", ("ray",)),
        ("tune_ext.brackets, tune_ext.bohb, tune_ext.image_growth", ("ray", "torch")),
        ("tune_ext.spaces; tune_ext.spaces.joint_space()", ("ray", "torch")),
    ],
)
def test_the_pure_parts_do_without(modules: str, blocked: tuple[str, ...]) -> None:
    python(BLOCKED.format(names=blocked) + f"import {modules}")


def test_every_public_name_is_there() -> None:
    for name in tune_ext.__all__:
        assert getattr(tune_ext, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tune_ext.nothing
