"""ExpTestLR: the tuner's decisions in a torch loop, exactly, and back after a divergence."""

from __future__ import annotations

import copy
import gc
import io
import json
import math
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.test_loss_monitor import Remote
from tune_ext.errors import (
    InvalidTypeError,
    InvalidValueError,
    NoLearningRateError,
    StateError,
)
from tune_ext.exptest import Tuner
from tune_ext.lr_scheduler import ExpTestLR

pytestmark = pytest.mark.usefixtures("one_thread")


def falling_losses(count=400, seed=0, until=120):
    """Decay to a floor, with the noise of mini-batches."""
    rng = np.random.default_rng(seed)
    curve = np.exp(-0.03 * np.minimum(np.arange(count), until))
    return (curve * rng.lognormal(sigma=0.2, size=count)).tolist()


def sgd(lr=0.1, **options):
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=lr, **options)


def rates(scheduler, losses):
    found = []
    for loss in losses:
        scheduler.step(loss)
        found.append(scheduler.get_last_lr()[0])
    return found


class Task:
    """A small regression; its losses can be told to be bad."""

    def __init__(self, make=torch.optim.Adam, lr=0.05, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = make(self.model.parameters(), lr=lr)
        self.scheduler = ExpTestLR(
            self.optimizer, **({"window": 10, "model": self.model} | options)
        )
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(64, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True) + 0.1 * torch.randn(64, 1, generator=generator)

    def step(self, factor=1.0):
        rows = slice(*(np.array([0, 16]) + 16 * (self.scheduler.last_epoch % 4)))
        loss = functional.mse_loss(self.model(self.x[rows]), self.y[rows]) * factor
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step(loss)

    def trained(self):
        """As `picture`, without the statistics of the batches that went through."""
        model, state = self.picture()
        return {k: v for k, v in model.items() if "running" not in k and "num_" not in k}, state

    def picture(self):
        state = copy.deepcopy(self.optimizer.state_dict())
        return copy.deepcopy(self.model.state_dict()), state["state"]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# --- as a scheduler of torch ---------------------------------------------------------------


def test_it_is_a_scheduler_of_torch():
    optimizer = sgd(0.1)
    scheduler = ExpTestLR(optimizer, window=5)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert scheduler.optimizer is optimizer
    assert scheduler.get_last_lr() == scheduler.get_lr() == scheduler.base_lrs == [0.1]
    assert optimizer.param_groups[0]["initial_lr"] == 0.1
    assert scheduler.last_epoch == 0
    scheduler.step(1.0)
    assert scheduler.last_epoch == 1


def test_the_rate_may_be_given():
    optimizer = sgd(0.1)
    scheduler = ExpTestLR(optimizer, 0.7, window=5)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], scheduler.get_last_lr()) == (0.7, 0.7, [0.7])
    again = ExpTestLR(optimizer, window=5)  # as after a restart: the initial rate is kept
    group["lr"] = 0.2
    again = ExpTestLR(optimizer, window=5)
    assert (again.get_last_lr(), again.base_lrs) == ([0.2], [0.7])


@pytest.mark.parametrize(
    "options", [{}, {"total_steps": 400}, {"total_steps": 400, "cooldown": 0.3}, {"min_lr": 0.05}]
)
@pytest.mark.parametrize("kind", ["float", "tensor", "numpy"])
def test_the_rates_are_the_tuners(options, kind):
    losses = falling_losses()
    tuner = Tuner(0.1, 20, **options)
    expected = []
    for loss in losses:
        tuner.update(np.float32(loss).item() if kind == "tensor" else loss)
        expected.append(tuner.lr)
    make = {"float": float, "tensor": torch.tensor, "numpy": np.float64}[kind]
    scheduler = ExpTestLR(sgd(0.1), window=20, **options)
    assert rates(scheduler, map(make, losses)) == expected
    assert expected[-1] < 0.1
    assert scheduler.explain() == tuner.explain()


@pytest.mark.parametrize("tensor", [False, True])
def test_groups_keep_their_ratios(tensor):
    first, second, third = (nn.Parameter(torch.ones(1)) for _ in range(3))
    given = [torch.tensor(r) if tensor else r for r in (0.01, 0.1)]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": r} for p, r in zip((first, second), given, strict=True)],
        foreach=False,
    )
    scheduler = ExpTestLR(optimizer, 1.0, window=5)
    assert scheduler.get_last_lr() == pytest.approx([0.1, 1.0])
    optimizer.add_param_group({"params": [third], "lr": 0.5})
    for loss in [1.0] * 100:
        scheduler.step(loss)
    now = [float(group["lr"]) for group in optimizer.param_groups]
    assert now[1] < 1
    assert now == pytest.approx([0.1 * now[1], now[1], 0.5 * now[1]])
    assert scheduler.get_last_lr() == pytest.approx(now)
    assert [float(rate) for rate in scheduler.get_lr()] == pytest.approx(now)
    if tensor:
        assert optimizer.param_groups[1]["lr"] is given[1]


@pytest.mark.parametrize(
    ("loss", "error", "said"),
    [
        (None, InvalidTypeError, r"scheduler.step\(loss\)"),
        ("low", InvalidTypeError, "'low'"),
        (torch.ones(3), InvalidValueError, r"shape \(3,\)"),
        (torch.tensor(1j), InvalidTypeError, "1j"),
    ],
)
def test_a_step_needs_a_loss(loss, error, said):
    with pytest.raises(error, match=said):
        ExpTestLR(sgd(), window=5).step(loss)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"optimizer": 3}, InvalidTypeError, "optimizer"),
        ({"model": 3}, InvalidTypeError, "model"),
        ({"window": 2}, InvalidValueError, "window"),
        ({"window": 2.5}, InvalidTypeError, "window"),
        ({"lr": -1.0}, InvalidValueError, "lr"),
        ({"snapshot": "disk"}, InvalidValueError, "disk"),
        ({"read_every": 0}, InvalidValueError, "read_every"),
        ({"max_restores": -1}, InvalidValueError, "max_restores"),
        ({"alpha": 0.0}, InvalidValueError, "alpha"),
        ({"cooldown": 0.5}, InvalidValueError, "total_steps"),
    ],
)
def test_mistakes_are_named(options, error, said):
    with pytest.raises(error, match=said):
        ExpTestLR(**({"optimizer": sgd(), "window": 5} | options))


def test_a_trainer_may_call_it_as_reduce_on_plateau():
    """What Lightning does with ``reduce_on_plateau``: a tensor, by position, every step."""
    scheduler, plain = (ExpTestLR(sgd(), window=20) for _ in range(2))
    for loss in falling_losses():
        monitored = {"train_loss": torch.tensor(loss)}
        scheduler.step(monitored.get("train_loss"))
        plain.step(np.float32(loss))
    assert scheduler.state_dict() == plain.state_dict()


# --- states ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 7, 20, 133, 250, 399])
@pytest.mark.parametrize("through", ["json", "torch"])
def test_it_goes_on_from_a_state_anywhere(stop, through):
    losses = falling_losses()
    options = {"window": 20, "total_steps": 400, "cooldown": 0.2}
    whole = rates(ExpTestLR(sgd(), **options), losses)
    first = ExpTestLR(sgd(), **options)
    rates(first, losses[:stop])
    if through == "json":
        state = json.loads(json.dumps(first.state_dict()))
    else:
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    second = ExpTestLR(sgd(0.9), window=7)
    second.load_state_dict(state)
    assert second.get_last_lr() == first.get_last_lr()
    assert second.optimizer.param_groups[0]["lr"] == first.get_last_lr()[0]
    assert second.base_lrs == [0.1]
    assert rates(first, losses[stop:]) == rates(second, losses[stop:]) == whole[stop:]
    assert second.last_epoch == 400


def test_a_state_does_not_change_what_is_saved():
    losses = falling_losses(100)
    looked, plain = ExpTestLR(sgd(), window=20), ExpTestLR(sgd(), window=20)
    for loss in losses:
        looked.step(loss)
        looked.state_dict()
        plain.step(loss)
    assert looked.state_dict() == plain.state_dict()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 9}, "version 9"),
        ({"kind": "StepLR"}, "not the state"),
        ({"tuner": {}}, "Tuner"),
        ({"ratios": [1.0, 0.5]}, "2 parameter groups"),
        ({"ratios": ["x"]}, "damaged"),
        ({"unread": None}, "damaged"),
        ({"in_window": -1}, "damaged"),
    ],
)
def test_a_damaged_state_changes_nothing(change, said):
    scheduler = ExpTestLR(sgd(), window=20)
    rates(scheduler, falling_losses(150))
    before = scheduler.state_dict()
    with pytest.raises(StateError, match=said):
        scheduler.load_state_dict(before | change)
    assert scheduler.state_dict() == before


def test_the_state_of_another_scheduler_is_refused():
    other = torch.optim.lr_scheduler.StepLR(sgd(), 3)
    with pytest.raises(StateError, match="not the state of an ExpTestLR"):
        ExpTestLR(sgd(), window=5).load_state_dict(other.state_dict())


# --- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"total_steps": 400}, {"total_steps": 400, "cooldown": 0.3}]
)
@pytest.mark.parametrize("read_every", [1, 3, 16, 1000])
def test_decisions_do_not_depend_on_how_often_losses_are_read(read_every, options):
    losses = falling_losses()
    expected = rates(ExpTestLR(sgd(), window=20, **options), losses)
    scheduler = ExpTestLR(sgd(), window=20, read_every=read_every, **options)
    Remote.reads = 0
    assert rates(scheduler, [Remote([loss]) for loss in losses]) == expected
    windows = len(losses) / 20
    assert Remote.reads <= windows + len(losses) / read_every + 1


def test_a_divergence_on_a_device_is_noticed_when_it_is_read():
    losses = falling_losses(100)
    losses[33:] = [math.nan] * 67
    scheduler = ExpTestLR(sgd(), window=60, read_every=10, max_restores=None)
    with pytest.warns(RuntimeWarning, match="step 40 was not finite"):
        found = rates(scheduler, [Remote([loss]) for loss in losses[:40]])
    assert found[38] == 0.1
    assert found[39] == pytest.approx(0.033)


def test_no_loss_is_kept_alive():
    parameter = nn.Parameter(torch.ones(1))
    scheduler = ExpTestLR(torch.optim.SGD([parameter], lr=0.1), window=50)
    loss = (parameter * 2).sum()
    node = weakref.ref(loss)
    scheduler.step(loss)
    del loss
    gc.collect()
    assert node() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_step_waits_for_cuda():
    losses = torch.tensor(falling_losses(100), device="cuda")
    scheduler = ExpTestLR(sgd(), window=60, read_every=16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses[:15]:
            scheduler.step(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rates(scheduler, losses[15:]) == rates(
        ExpTestLR(sgd(), window=60), losses.tolist()
    )[15:]  # fmt: skip


# --- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", ["device", "cpu"])
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD])
def test_a_divergence_goes_back_to_the_start_of_the_window(snapshot, make):
    task = Task(make, snapshot=snapshot, correction="none")
    pictures = [task.picture()]
    starts = [0]
    for _ in range(34):
        before = len(task.scheduler.explain().rows)
        task.step()
        pictures.append(task.picture())
        if len(task.scheduler.explain().rows) > before:
            starts.append(len(pictures) - 1)
    held = [id(t) for t in task.model.state_dict(keep_vars=True).values()]
    rate = task.scheduler.get_last_lr()[0]
    with pytest.warns(RuntimeWarning, match="back at the last snapshot"):
        task.step(math.inf)
    assert starts[-1] > 0
    assert equal(task.picture(), pictures[starts[-1]])
    assert [id(t) for t in task.model.state_dict(keep_vars=True).values()] == held
    assert task.scheduler.get_last_lr()[0] == pytest.approx(0.33 * rate)
    assert task.optimizer.param_groups[0]["lr"] == task.scheduler.get_last_lr()[0]
    for _ in range(60):
        task.step()
    assert math.isfinite(float(task.model[0].weight.detach().sum()))
    assert task.scheduler.tuner.restores == 1


def test_a_restored_optimiser_has_the_present_rate():
    task = Task(window=5, min_lr=0.02, correction="none", max_restores=None)
    while task.scheduler.get_last_lr()[0] > 0.02:  # decays: the snapshot is from before that
        task.scheduler.step(1.0)
        task.optimizer.step()
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="snapshot"):
            task.step(math.nan)
        assert task.optimizer.param_groups[0]["lr"] == 0.02


def test_snapshots_are_renewed_during_a_cool_down():
    task = Task(window=5, total_steps=1000, cooldown=0.9, max_restores=1)
    while not task.scheduler.tuner.cooling:
        task.step()
    for _ in range(3):  # a whole window lies between them
        while task.scheduler._due != task.scheduler.tuner.window:
            task.step()
        before = task.picture()
        rate = task.optimizer.param_groups[0]["lr"]
        for _ in range(4):
            task.step()
        with pytest.warns(RuntimeWarning, match="snapshot"):
            task.step(math.inf)
        assert equal(task.picture(), before)
        assert task.optimizer.param_groups[0]["lr"] < rate
        for _ in range(task.scheduler.tuner.window):
            task.step()


def test_after_giving_up_it_is_in_order():
    task = Task(max_restores=0)
    task.step()
    with pytest.raises(NoLearningRateError):
        task.step(math.nan)
    assert task.optimizer.param_groups[0]["lr"] == pytest.approx(0.33 * 0.05)
    task.step()
    assert task.scheduler.last_epoch == 3


def test_the_first_snapshot_is_from_before_the_first_step():
    task = Task()
    before = task.trained()
    for _ in range(4):
        task.step()
    with pytest.warns(RuntimeWarning, match="snapshot"):
        task.step(math.nan)
    assert equal(task.trained(), before)
    assert not task.optimizer._optimizer_step_pre_hooks  # no hook is left behind


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
@pytest.mark.parametrize("before", [0, 4, 13])
def test_a_copy_goes_on_as_the_original(copied, before):
    task = Task()
    for _ in range(before):
        task.step()
    other = copied(task)
    for factor in [1.0] * 3 + [math.nan] + [1.0] * 12:
        for one in (task, other):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                one.step(factor)
    assert equal(task.picture(), other.picture())
    assert task.scheduler.get_last_lr() == other.scheduler.get_last_lr()
    assert task.model[0].weight.isfinite().all()


def test_a_group_that_is_added_after_the_end():
    optimizer = sgd()
    scheduler = ExpTestLR(optimizer, window=5, total_steps=20)
    rates(scheduler, [1.0] * 20)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.05})
    rates(scheduler, [1.0])
    assert scheduler.get_last_lr() == [0.0, 0.0]


def test_weights_loaded_after_construction_are_in_the_first_snapshot():
    task = Task()
    with torch.no_grad():
        task.model[0].weight.fill_(0.25)
    before = task.trained()
    with pytest.warns(RuntimeWarning, match="snapshot"):
        task.step(math.nan)
    assert equal(task.trained(), before)


def test_without_a_snapshot_it_says_so_and_lowers_the_rate():
    for options in ({"model": None}, {"snapshot": False}):
        task = Task(**options)
        for _ in range(3):
            task.step()
        with pytest.warns(RuntimeWarning, match="no snapshot"):
            task.step(math.nan)
        assert task.scheduler.get_last_lr()[0] == pytest.approx(0.33 * 0.05)
        assert torch.isnan(task.model[0].weight).any()
        assert task.scheduler.snapshot_nbytes == 0


def test_weights_that_are_not_finite_make_no_snapshot():
    task = Task(window=5, correction="none")
    for _ in range(4):
        task.step()
    with torch.no_grad():  # the update after a finite loss broke the weights
        task.optimizer.register_step_post_hook(
            lambda *_: (
                task.model[0].weight.data.fill_(math.nan)
                if task.scheduler.last_epoch == 4
                else None
            )
        )
    task.step()
    assert torch.isnan(task.model[0].weight).all()
    with pytest.warns(RuntimeWarning, match="snapshot"):
        task.step()
    assert torch.isfinite(task.model[0].weight).all()


def test_a_window_in_which_the_loss_rose_makes_no_snapshot():
    task = Task(window=10, correction="none")
    before = task.trained()
    for step in range(10):
        task.step(factor=3.0**step)
    assert task.scheduler.explain().to_rows()[-1]["p_value"] > 0.95
    with pytest.warns(RuntimeWarning, match="snapshot"):
        task.step(math.nan)
    assert equal(task.trained(), before)


@pytest.mark.parametrize("limit", [0, 3])
def test_it_gives_up_when_nothing_helps(limit):
    task = Task(max_restores=limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(limit):
            task.step()
            task.step(math.nan)
        task.step()
        with pytest.raises(NoLearningRateError, match="look for NaN in a batch"):
            task.step(math.nan)
    assert torch.isfinite(task.model[0].weight).all()


def test_a_whole_window_in_between_forgives():
    task = Task(max_restores=1, window=5, correction="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(3):
            task.step(math.nan)
            for _ in range(task.scheduler.tuner.window):
                task.step()
    assert task.scheduler.tuner.restores == 3


def test_what_a_snapshot_costs():
    task = Task()
    task.step()
    tensors = [*task.model.parameters(), *task.model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors)
    assert task.scheduler.snapshot_nbytes == weights  # Adam has no state before its first step
    for _ in range(30):
        task.step()
    state = sum(
        t.numel() * t.element_size() for s in task.picture()[1].values() for t in s.values()
    )
    assert state > 1.5 * weights
    assert task.scheduler.snapshot_nbytes == weights + state


@pytest.mark.parametrize("snapshot", ["device", "cpu"])
def test_a_saved_snapshot_continues_exactly(snapshot):
    options = {"save_snapshot": True, "snapshot": snapshot}
    task = Task(**options)
    for _ in range(25):
        task.step()
    file = io.BytesIO()
    parts = (task.model, task.optimizer, task.scheduler)
    torch.save([copy.deepcopy(part.state_dict()) for part in parts], file)
    file.seek(0)
    again = Task(**options)
    for part, state in zip(
        (again.model, again.optimizer, again.scheduler),
        torch.load(file, weights_only=True),
        strict=True,
    ):
        part.load_state_dict(state)
    for one in (task, again):
        one.step()
        with pytest.warns(RuntimeWarning, match="back at the last snapshot"):
            one.step(math.nan)
        for _ in range(20):
            one.step()
    assert equal(task.picture(), again.picture())
    assert task.scheduler.get_last_lr() == again.scheduler.get_last_lr()


def test_without_a_saved_snapshot_the_checkpoint_is_the_snapshot():
    task = Task()
    for _ in range(25):
        task.step()
    state = json.loads(json.dumps(task.scheduler.state_dict()))
    again = Task()
    again.model.load_state_dict(task.model.state_dict())
    again.optimizer.load_state_dict(task.optimizer.state_dict())
    again.scheduler.load_state_dict(state)
    before = again.trained()
    again.step()
    with pytest.warns(RuntimeWarning, match="back at the last snapshot"):
        again.step(math.nan)
    assert equal(again.trained(), before)


def test_a_snapshot_of_another_model_is_refused():
    task = Task(save_snapshot=True)
    task.step()
    state = task.scheduler.state_dict()
    state["snapshot"]["tensors"][0]["tensor"] = torch.zeros(1)
    before = task.picture()
    with pytest.raises(StateError, match="other shapes"):
        task.scheduler.load_state_dict(state)
    assert equal(task.picture(), before)
    with pytest.raises(StateError, match="does not fit"):
        task.scheduler.load_state_dict(state | {"snapshot": {"tensors": []}})


def test_the_optimisers_that_keep_lists_are_put_back():
    task = Task(lambda p, lr: torch.optim.LBFGS(p, lr=lr, max_iter=3), lr=0.5, correction="none")

    def step(factor=1.0):
        def closure():
            task.optimizer.zero_grad()
            loss = functional.mse_loss(task.model(task.x), task.y) * factor
            loss.backward()
            return loss

        task.scheduler.step(task.optimizer.step(closure))

    for _ in range(12):
        step()
    kept = task.scheduler._snapshot
    assert kept is not None
    with pytest.warns(RuntimeWarning, match="back at the last snapshot"):
        step(math.nan)
    assert all(torch.isfinite(p).all() for p in task.model.parameters())
    state = task.optimizer.state[task.model[0].weight]
    assert len(state["old_dirs"]) > 0
    assert all(torch.isfinite(t).all() for t in state["old_dirs"])
    step()
