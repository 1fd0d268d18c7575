"""What a loop reports: the same as the losses themselves, at one append a step."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.utils import flatten_dict

from tests.test_import import BLOCKED, python
from tune_ext._loss_monitor import LossMonitor, rate_in, read_rung, read_statistics
from tune_ext._losses import LossBuffer
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.exptest import DecayTest, RungTest, Tuner


def losses(count: int, seed: int = 0, slope: float = 0.02) -> list[float]:
    noise = np.random.default_rng(seed).normal(size=count)
    return np.exp(-slope * np.arange(count) + 0.1 * noise).tolist()


def rung(steps: int = 20, **ladder: Any) -> dict[str, Any]:
    ours = {"role": "rung", "rung": 1, "steps": steps, "ladder": {"alpha": 0.05, **ladder}}
    return {"lr": 0.1, "tune_ext": ours}


class Remote:
    """A number on a device: every way to read it is counted."""

    reads = 0

    def __init__(self, values: list[float], shape: tuple[int, ...] = ()) -> None:
        self.values, self.shape = values, shape
        self.device, self.dtype = SimpleNamespace(type="cuda"), "float32"

    def detach(self) -> Remote:
        return self

    def numel(self) -> int:
        return math.prod(self.shape)

    def reshape(self, shape: tuple[int, ...]) -> Remote:
        return self

    def new_empty(self, size: int) -> Remote:
        fresh = Remote([math.nan] * size, (size,))
        fresh.device = self.device
        return fresh

    def __setitem__(self, index: int, value: Remote) -> None:
        self.values[index] = value.values[0]

    def __getitem__(self, index: slice) -> Remote:
        return Remote(self.values[index])

    def tolist(self) -> list[float]:
        Remote.reads += 1
        return list(self.values)

    def item(self) -> float:
        raise AssertionError("one number was read by itself")


def test_a_report_is_what_the_test_of_these_losses_says() -> None:
    monitor, stream = LossMonitor({"lr": 0.5}), losses(50)
    assert not any(monitor.step(loss) for loss in stream)
    result = flatten_dict(json.loads(json.dumps({"loss": 1.0, **monitor.report()})))
    test = DecayTest()
    test.update_many(stream)
    assert {f"exptest/{k}": v for k, v in test.statistics().items()}.items() <= result.items()
    assert result["exptest/end_loss"] == pytest.approx(np.mean(stream[-10:]), rel=1e-12)
    assert (result["exptest/steps"], result["exptest/spent"]) == (50, 50)
    assert result["exptest/lr"] == 0.5


def test_a_report_covers_the_steps_since_the_last_one() -> None:
    monitor, stream, told = LossMonitor(), losses(90), Tuner(0.1, 90)
    straight = Tuner(0.1, 90)
    actions = []
    for start, end in ((0, 10), (10, 11), (11, 90)):
        for loss in stream[start:end]:
            monitor.step(loss)
        report = read_statistics(flatten_dict(monitor.report()))
        assert report is not None
        assert report["steps"] == end - start
        actions.append(told.tell(report))
    expected = [straight.update(loss) for loss in stream][-1]
    assert actions[:2] == [None, None]
    assert expected is not None
    assert actions[2] is not None
    assert actions[2].kind == expected.kind == "keep"
    assert actions[2].result.p_value == pytest.approx(expected.result.p_value, rel=1e-9)


@pytest.mark.parametrize("rate", [0.9, 0.99, 0.999])
def test_an_exact_exponential_survives_the_rounding_of_a_report(rate: float) -> None:
    monitor, tuner = LossMonitor(), Tuner(0.1, 40)
    for start in (0, 40, 80):
        for step in range(start, start + 40):
            monitor.step(rate**step)
        action = tuner.tell(monitor.report()["exptest"])
        assert action is not None
        assert action.kind == "keep"


def test_nothing_to_report_says_so() -> None:
    monitor = LossMonitor()
    report = monitor.report()["exptest"]
    assert (report["steps"], report["end_loss"], report["diverged"]) == (0, None, False)
    assert read_statistics({"exptest": report}) is None
    assert "lr" not in report


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_reported(bad: float) -> None:
    monitor = LossMonitor()
    for loss in (1.0, bad, 0.5):
        monitor.step(loss)
    report = monitor.report()["exptest"]
    assert (report["diverged"], report["end_loss"], report["steps"]) == (True, None, 3)
    action = Tuner(0.1, 60).tell(report)
    assert action is not None
    assert action.kind == "restore"
    monitor.step(1.0)
    assert not monitor.report()["exptest"]["diverged"]


@pytest.mark.parametrize("every", [1, 7, 20, 33, 100])
def test_a_rung_is_judged_by_its_first_steps_however_often_it_reports(every: int) -> None:
    monitor, stream = LossMonitor(rung(20)), losses(120)
    found = []
    for step, loss in enumerate(stream, 1):
        assert monitor.step(loss) == (step >= 20)
        if step % every == 0:
            result = flatten_dict(json.loads(json.dumps(monitor.report())))
            found.append(read_rung(result))
            assert read_statistics(result) is None
    test = RungTest(20)
    for loss in stream:
        test.update(loss)
    complete = [f for f in found if f is not None]
    assert complete == [test.result()] * len([s for s in range(every, 121, every) if s >= 20])


def test_a_rung_that_diverges_is_over() -> None:
    monitor = LossMonitor(rung(20))
    said = [monitor.step(loss) for loss in (1.0, 2.0, math.nan, 0.1)]
    assert said == [False, False, True, True]
    found = read_rung(monitor.report())
    assert found is not None
    assert (found.verdict, found.end_loss, found.steps) == ("diverged", None, 3)


def test_a_rung_that_ended_early_can_be_read() -> None:
    monitor = LossMonitor(rung(20))
    test = RungTest(20)
    for loss in losses(9, slope=0.3):
        monitor.step(loss)
        test.update(loss)
    report = monitor.report()
    assert read_rung(report) is None
    assert read_rung(report, partial=True) == test.result()
    assert read_rung(LossMonitor(rung(20)).report(), partial=True) is None


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"exptest": 3},
        {"exptest": {"complete": True}},
        {"exptest": {"complete": True, "verdict": "rising", "p_value": 1, "slope": 0, "steps": 3}},
        {"exptest/steps": "many", "exptest/n": 3},
        {"exptest/steps": True},
    ],
)
def test_a_damaged_report_is_none(report: Any) -> None:
    assert read_rung(report) is None
    assert read_statistics(report) is None


def test_losses_on_a_device_are_read_together() -> None:
    Remote.reads = 0
    monitor, stream = LossMonitor(), losses(600)
    for value in stream:
        monitor.step(Remote([value]))
    assert Remote.reads == 2
    there = monitor.report()
    assert Remote.reads == 3
    here = LossMonitor()
    for value in stream:
        here.step(value)
    assert there == here.report()


def test_a_rung_on_a_device_is_read_once() -> None:
    Remote.reads = 0
    monitor, stream = LossMonitor(rung(20)), losses(20)
    assert [monitor.step(Remote([value])) for value in stream] == [False] * 19 + [True]
    assert Remote.reads == 1
    assert read_rung(monitor.report()) is not None


def test_numbers_of_any_kind_in_their_order() -> None:
    import torch

    parameter = torch.tensor([3.0], requires_grad=True)
    kinds = [1, 2.0, parameter.sum(), np.float32(4), np.array(5.0), Remote([6.0], ()), 7.0]
    kinds += [torch.tensor(8.0, dtype=torch.bfloat16), torch.tensor([9.0]), Remote([10.0], (1,))]
    buffer = LossBuffer()
    for loss in kinds:
        buffer.add(loss)
    assert len(buffer) == 10
    assert list(buffer.take()) == list(range(1, 11))
    assert len(buffer) == 0


def test_a_device_tensor_may_be_overwritten_after_the_step() -> None:
    buffer, loss = LossBuffer(), Remote([1.0])
    buffer.add(loss)
    loss.values[0] = 2.0
    buffer.add(loss)
    assert list(buffer.take()) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("loss", "error", "said"),
    [
        (None, InvalidTypeError, "must be a number or a tensor"),
        ("3", InvalidTypeError, "must be a number or a tensor"),
        (np.ones(2), InvalidValueError, r"shape \(2,\).*mean"),
        (Remote([1.0, 2.0], (2,)), InvalidValueError, r"shape \(2,\).*mean"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        LossMonitor().step(loss)


def test_negative_losses_need_the_other_transform() -> None:
    monitor = LossMonitor()
    for loss in (1.0, -1.0, 0.5):
        monitor.step(loss)
    with pytest.raises(InvalidValueError, match="identity"):
        monitor.report()
    monitor = LossMonitor(transform="identity")
    for loss in (1.0, -1.0, 0.5):
        monitor.step(loss)
    action = Tuner(0.1, 3, correction="none", transform="identity").tell(
        monitor.report()["exptest"]
    )
    assert action is not None
    assert action.kind == "decay"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (3, InvalidTypeError),
        ({"tune_ext": {"role": "rung", "steps": "many"}}, InvalidTypeError),
        ({"tune_ext": {"role": "rung", "steps": 1}}, InvalidValueError),
        (rung(alpha=2.0), InvalidValueError),
    ],
)
def test_a_damaged_role_is_refused(config: Any, error: Any) -> None:
    with pytest.raises(error):
        LossMonitor(config)


def search(lr: Any, *arguments: Any, **options: Any) -> Any:
    """What `resolve_lr` promises: a number is free, "exptest" is searched."""
    assert (arguments, options) == (("model",), {"steps": 60})
    return SimpleNamespace(lr=0.25, steps=240)


def test_a_number_is_not_searched() -> None:
    monitor = LossMonitor({"optimizer": {"lr": 0.5}}, lr="optimizer/lr")
    assert monitor.resolve(search, "model", steps=60) == 0.5
    assert (monitor.spent, monitor.epochs(40)) == (0, 0.0)


def test_a_rate_is_searched_once_and_its_cost_counted() -> None:
    monitor = LossMonitor({"lr": "exptest"})
    assert monitor.lr is None
    assert monitor.resolve(search, "model", steps=60) == 0.25
    assert monitor.resolve(lambda *_: pytest.fail("searched again")) == 0.25
    for loss in losses(60):
        monitor.step(loss)
    assert monitor.epochs(60) == 5.0
    report = monitor.report()["exptest"]
    assert (report["lr"], report["spent"], report["steps"]) == (0.25, 300, 60)
    for config, rate in (({"lr": "exptest"}, 0.25), ({"lr": 0.1}, 0.1)):
        later = LossMonitor(config)
        later.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
        assert later.resolve(lambda *_: pytest.fail("searched again")) == rate
        assert later.spent == 300


@pytest.mark.parametrize("config", [None, {}, {"lr": None}, {"lr": "high"}, {"lr": -1.0}])
def test_no_rate_at_all_is_an_error(config: Any) -> None:
    with pytest.raises(InvalidValueError, match="no learning rate"):
        LossMonitor(config).resolve(search, "model", steps=60)


def test_a_search_without_an_answer_is_an_error() -> None:
    with pytest.raises(InvalidValueError, match="no rate"):
        LossMonitor({"lr": "exptest"}).resolve(lambda *_: SimpleNamespace(lr=None, steps=60))


def test_a_checkpoint_never_makes_a_step_count_twice() -> None:
    stream = losses(60)
    monitor = LossMonitor({"lr": 0.1})
    for loss in stream[:30]:
        monitor.step(loss)
    early = monitor.state_dict()
    first = monitor.report()
    assert early == monitor.state_dict()
    later = LossMonitor({"lr": 0.1})
    later.load_state_dict(early)
    for loss in stream[30:]:
        later.step(loss)
        monitor.step(loss)
    assert first["exptest"]["steps"] == 30
    assert later.report() == monitor.report()


def test_a_rung_goes_on_from_a_checkpoint() -> None:
    stream, straight, resumed = losses(20), LossMonitor(rung(20)), LossMonitor(rung(20))
    for loss in stream[:7]:
        straight.step(loss)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for loss in stream[7:]:
        straight.step(loss)
        resumed.step(loss)
    assert resumed.report() == straight.report()


@pytest.mark.parametrize("state", [{}, {"version": 2}, 3, {"version": 1, "lr": 1, "steps": "x"}])
def test_a_damaged_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError):
        LossMonitor().load_state_dict(state)


def test_rates_in_configurations() -> None:
    assert rate_in({"lr": 1}, "lr") == 1.0
    assert rate_in({"a/lr": 0.5, "a": {"lr": 0.1}}, "a/lr") == 0.5
    assert rate_in({"a": {"lr": "exptest"}}, "a/lr") == "exptest"
    assert rate_in({"a": 3}, "a/lr") is None
    assert rate_in({"lr": True}, "lr") is None
    assert rate_in({"lr": math.inf}, "lr") is None


def test_it_needs_neither_torch_nor_ray() -> None:
    python(BLOCKED.format(names=("ray", "torch")) + "import tune_ext._loss_monitor")
