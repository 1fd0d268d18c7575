"""The coordinate check: what it says of networks whose behaviour is known."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tune_ext import scaling
from tune_ext._coordinate_result import Coordinate
from tune_ext.errors import InvalidTypeError, InvalidValueError, TuneExtError
from tune_ext.models import DagMLP
from tune_ext.scaling import CoordinateCheck, coordinate_check

WIDTHS = (64, 128, 256, 512)


def batches(count: int = 1, inputs: int = 16) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(count * 64, inputs, generator=rng)
    y = torch.randint(0, 4, (count * 64,), generator=rng)
    return list(zip(x.split(64), y.split(64), strict=True))


def mlp(width: int, hidden: int = 1, std: float = math.sqrt(2)) -> nn.Sequential:
    """He's initialisation (std² 2/fan), or a wrong one."""
    sizes = [16, *[width] * (hidden + 1)]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Linear(width, 4))
    for part in parts[::2]:
        assert isinstance(part, nn.Linear)
        nn.init.normal_(part.weight, 0, std / math.sqrt(part.in_features))
        nn.init.zeros_(part.bias)
    return model


def with_sgd(model: nn.Module, lr: float = 0.1) -> tuple[nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def test_standard_parametrisation_grows_with_the_width() -> None:
    check = coordinate_check(lambda n: with_sgd(mlp(n)), WIDTHS, batches(), steps=1)
    assert check.sizes == WIDTHS
    assert check.layers == ("0", "1", "2", "3", "(output)")
    # At the start, all is as large as ever; the output's change is η times the width.
    assert abs(check.slope("2", 0)) < 0.1
    assert abs(check.slope("(output)", 0)) < 0.25
    assert check.slope("(output)", change=True) == pytest.approx(1, abs=0.2)
    assert check.judge(change=True) == check.verdict == "grow"
    assert "changes since the start grow with the size, ×" in check.summary()


def mup(width: int, base: int = 64) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The rule of "Tensor Programs V", table 8, for SGD: a control that must stay."""
    model, ratio = mlp(width), width / base
    rates = {0: ratio, 2: 1.0, 4: 1 / ratio}  # input, hidden, output
    nn.init.zeros_(model[4].weight)  # type: ignore[arg-type]
    nn.init.zeros_(model[4].bias)  # type: ignore[arg-type]
    groups = [{"params": [model[i].weight], "lr": 0.1 * rates[i]} for i in rates]
    biases = [{"params": [model[i].bias], "lr": 0.1 * ratio} for i in (0, 2)]
    return model, torch.optim.SGD([*groups, *biases, {"params": [model[4].bias], "lr": 0.1}])


def test_mup_stays() -> None:
    check = coordinate_check(mup, WIDTHS, batches(), steps=3)
    for layer in check.layers:
        assert abs(check.slope(layer, change=True)) < 0.25, check.table()
    assert check.judge(change=True) == "stay"


def test_a_deep_network_with_a_wrong_start_blows_up_or_vanishes() -> None:
    def deep(std: float):
        return coordinate_check(
            lambda depth: with_sgd(mlp(256, depth, std), 1e-3), (4, 8, 16), batches(), steps=1
        )

    assert deep(6.0).judge(change=False) in {"grow", "blow up"}
    assert deep(0.5).judge(change=False) == "vanish"
    right = deep(math.sqrt(2))
    assert right.layers == (
        "first layer", "at 1/4", "at 1/2", "at 3/4", "last layer", "(output)"
    )  # fmt: skip
    assert right.judge(change=False) == "stay", right.table()
    larger = coordinate_check(lambda n: with_sgd(mlp(64, n, 1e3)), (4, 64), batches(), steps=1)
    assert larger.verdict == "blow up"
    assert "not finite" in larger.summary()


def test_a_plan_keeps_a_deep_graph_level_and_torch_does_not() -> None:
    def chain(layers: int) -> str:
        return "_".join("0" * k + "2" for k in range(layers))

    def model(layers: int) -> DagMLP:
        return DagMLP(chain(layers), inputs=16, width=256, classes=4)

    def planned(layers: int) -> tuple[nn.Module, scaling.Plan]:
        return model(layers), scaling.plan_of_dag(chain(layers), inputs=16, width=256, classes=4)

    check = coordinate_check(planned, (4, 8, 16), batches(), lr=0.1, steps=1)
    assert check.judge(change=False) == "stay", check.table()
    other = coordinate_check(lambda n: with_sgd(model(n), 1e-4), (4, 8, 16), batches(), steps=1)
    assert other.judge(change=False) == "vanish", other.table()


class Slots(nn.Module):
    """Calls one layer twice, changes outputs in place, drops, returns a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.9)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.relu(self.layer(self.layer(x))))


def test_outputs_are_taken_before_they_are_changed_and_nothing_is_dropped() -> None:
    model = Slots()
    x = torch.ones(8, 4)
    check = coordinate_check(
        lambda _: (model, torch.optim.SGD(model.parameters(), lr=0.0)),
        (1, 2), [(x, torch.zeros(8, dtype=torch.long))], steps=2, seeds=1,
    )  # fmt: skip
    assert check.layers == ("layer", "layer (2)", "(output)")
    second = model.layer(model.layer(x)).detach()
    assert check.value("layer (2)", 1, 0) == pytest.approx(float(second.square().mean().sqrt()))
    assert check.value("layer (2)", 1, 0, mean_abs=True) == pytest.approx(
        float(second.abs().mean())
    )
    kept = float(second.relu().square().mean().sqrt())
    assert check.value("(output)", 1, 2) == pytest.approx(kept)
    assert check.value("(output)", 1, 2, change=True) == 0  # a rate of 0 changes nothing
    assert math.isnan(check.slope("(output)", change=True))
    assert model.drop.training
    assert "0 at some size" in check.summary()


def test_slopes_are_those_of_known_numbers() -> None:
    coordinates = [
        Coordinate(n, seed, step, "(output)", n**0.5, n**0.5 * scale, 1.0, n**-1.0 * step)
        for n in (2.0, 4.0, 8.0)
        for seed, scale in enumerate((0.5, 2.0))  # geometric mean 1
        for step in (0, 1)
    ]
    check = CoordinateCheck(tuple(coordinates), 0.4)
    assert check.slope("(output)") == pytest.approx(0.5)
    assert check.slope("(output)", change=True) == pytest.approx(-1)
    assert check.value("(output)", 4.0, 1) == pytest.approx(2)
    assert check.value("(output)", 4.0, 1, change=True) == pytest.approx(0.25)
    assert (check.judge(change=False), check.judge(change=True)) == ("grow", "vanish")
    assert check.verdict == "grow"
    assert "×1.41 at each doubling (slope +0.50 at (output))" in check.table()
    with pytest.raises(InvalidValueError, match="nothing was measured of layer 'x'"):
        check.value("x", 4.0, 1)


def test_the_global_random_state_is_left_and_the_seed_decides() -> None:
    def make(width: int):
        random.random()
        np.random.random()  # noqa: NPY002
        return with_sgd(nn.Linear(16, width))

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    runs = [coordinate_check(make, (4, 8), batches(), seed=s, steps=1) for s in (0, 0, 1)]
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()
    assert runs[0] == runs[1] != runs[2]
    with pytest.raises(ZeroDivisionError):
        coordinate_check(lambda _: 1 // 0, (4, 8), batches())
    assert torch.equal(before[0], torch.get_rng_state())


def test_plot_and_chosen_layers(tmp_path) -> None:
    check = coordinate_check(
        lambda n: with_sgd(mlp(n)), (8, 16), batches(2), steps=3, seeds=1,
        layers=lambda _, module: isinstance(module, nn.Linear),
    )  # fmt: skip
    assert check.layers == ("0", "2", "(output)")
    figure = check.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 5000
    assert len(figure.axes) == 2 * 4
    assert len(figure.axes[1].get_lines()) == 3


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"sizes": (4,)}, InvalidValueError, "at least two different"),
        ({"sizes": (4, 4)}, InvalidValueError, "at least two different"),
        ({"sizes": (0, 4)}, InvalidValueError, "positive"),
        ({"batches": []}, InvalidValueError, "no batch"),
        ({"batches": [torch.ones(3)]}, InvalidTypeError, "pairs"),
        ({"make_model": lambda _: 3}, InvalidTypeError, "got int"),
        ({"make_model": lambda _: (mlp(4), 3), "lr": 0.1}, InvalidTypeError, "or a plan, got 3"),
        ({"make_model": mlp}, InvalidValueError, "lr is missing"),
        ({"steps": 0}, InvalidValueError, "steps"),
        ({"lr": -1.0}, InvalidValueError, "lr"),
        ({"seed": -1}, InvalidValueError, "seed"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[TuneExtError], said: str) -> None:
    arguments = {"make_model": lambda n: with_sgd(mlp(n)), "sizes": (4, 8), "batches": batches()}
    with pytest.raises(error, match=said):
        coordinate_check(**(arguments | change))  # type: ignore[arg-type]
