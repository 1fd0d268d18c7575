"""Modules are built without data, whatever device their builder names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tune_ext._on_meta import built_on_meta

WAYS: dict[str, Callable[[], Any]] = {
    "as it is": lambda: nn.Linear(3, 4),
    "moved": lambda: nn.Linear(3, 4).to("cuda:0"),
    "moved by keyword": lambda: nn.Linear(3, 4).to(device="cuda", non_blocking=True),
    "moved to the host": lambda: nn.Linear(3, 4).to(torch.device("cpu")),
    "cuda": lambda: nn.Linear(3, 4).cuda(),
    "cpu": lambda: nn.Linear(3, 4).cpu(),
    "made there": lambda: nn.Linear(3, 4, device="cuda"),
    "made under a device": lambda: _under("cuda"),
    "moved empty": lambda: nn.Linear(3, 4).to_empty(device="cuda"),
    "from the host": lambda: nn.Linear(3, 4, device="cpu").to("cuda"),
    "from the host by cuda": lambda: nn.Linear(3, 4, device="cpu").cuda(),
    "like another": lambda: nn.Linear(3, 4).to(torch.zeros(1)),
}


def _under(device: str) -> nn.Module:
    with torch.device(device):
        return nn.Linear(3, 4)


@pytest.mark.parametrize("way", WAYS)
def test_a_module_has_shapes_and_no_data(way: str) -> None:
    with built_on_meta():
        model = WAYS[way]()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 3), (4,)]
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


def test_types_change_all_the_same() -> None:
    with built_on_meta():
        models = [
            nn.Linear(3, 4).half(),
            nn.Linear(3, 4).to(torch.float16),
            nn.Linear(3, 4).to("cuda", torch.float16),
            nn.Linear(3, 4).to(torch.zeros(1, dtype=torch.float16)),
        ]
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float16}


def test_tensors_on_the_host_keep_their_numbers() -> None:
    with built_on_meta():
        shares = torch.linspace(0, 1, 3, device="cpu")
        assert shares.tolist() == shares.cpu().tolist() == shares.to("cpu").tolist() == [0, 0.5, 1]
        assert shares.to(torch.float64).tolist() == [0, 0.5, 1]


def test_numbers_may_be_on_the_host_too() -> None:
    with pytest.raises(NotImplementedError, match="meta"), built_on_meta():
        torch.arange(3).tolist()
    with built_on_meta(numbers=True):
        assert torch.arange(3).tolist() == torch.tensor([0, 1, 2]).tolist() == [0, 1, 2]
        assert torch.arange(3, device="cuda").is_meta
        assert nn.Linear(3, 4).weight.is_meta


def test_afterwards_everything_is_as_before() -> None:
    with pytest.raises(RuntimeError, match="stop"), built_on_meta():
        raise RuntimeError("stop")
    assert torch.zeros(1).device.type == "cpu"
