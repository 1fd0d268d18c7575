"""find_lr: the ladder on torch models; nothing is changed, whatever happens inside."""

from __future__ import annotations

import builtins
import copy
import itertools
import math
import random
import warnings
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tune_ext.errors import (
    InvalidTypeError,
    InvalidValueError,
    MissingDependencyError,
    NoLearningRateError,
    TuneExtError,
)
from tune_ext.exptest import learning_rate_bound
from tune_ext.lr_scheduler import find_lr, resolve_lr

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 15  # enough where the data have no noise


def data(rows=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    labels = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    return x, labels


def loader(batch_size=32, shuffle=True, rows=256, **options):
    return DataLoader(TensorDataset(*data(rows)), batch_size, shuffle=shuffle, **options)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(6, 3)


class Counting(nn.Module):
    """A module with every kind of thing that a training changes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.frozen = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)
        self.register_buffer("mean", torch.zeros(16))
        self.calls = 0
        self.cache = None

    def forward(self, x):
        self.calls += 1
        h = self.norm(self.frozen(self.body(x)))
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)  # a new tensor each time
        self.cache = 1.0
        return self.head(h) + float(np.random.rand() + random.random()) * 1e-3  # noqa: NPY002


def counting():
    torch.manual_seed(3)
    model = Counting()
    model.frozen.requires_grad_(False)
    model.norm.eval()
    return model


def picture(model, optimizer=None, generator=None):
    """Everything that must stay, with the identity of what is held by others."""
    tensors = [*model.parameters(), *model.buffers()]
    state = {
        "tensors": [(id(t), t.data_ptr(), t.detach().clone()) for t in tensors],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in tensors],
        "flags": [(m.training, getattr(m, "calls", None)) for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "cache": getattr(model, "cache", None),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "position": np.random.get_state()[2],  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    if optimizer is not None:
        state["optimizer"] = copy.deepcopy(optimizer.state_dict())
        state["held"] = [id(v) for s in optimizer.state.values() for v in s.values()]
        state["attributes"] = sorted(vars(optimizer))
    if generator is not None:
        state["generator"] = generator.get_state()
    return state


def same(one, other):
    """Equality to the last bit, through tensors, dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# --- nothing is changed ------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["found", "no rate", "error", "callback", "no batches"])
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_as_it_was(ending, training):
    model, generator = counting(), torch.Generator().manual_seed(5)
    model.train(training)
    model.norm.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": trained[:2], "lr": 0.01}, {"params": trained[2:], "lr": 0.001}]
    )
    x, y = data()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    if training:
        functional.cross_entropy(model(x), y).backward()
    else:
        optimizer.zero_grad()
    rows = 0 if ending == "no batches" else 256
    batches = DataLoader(
        TensorDataset(x[:rows], y[:rows]),
        32,
        sampler=torch.utils.data.RandomSampler(range(max(rows, 1)), generator=generator)
        if rows
        else None,
    )
    before = picture(model, optimizer, generator)
    calls = itertools.count()

    def loss_fn(logits, target):
        if ending == "error" and next(calls) == 20:
            raise KeyError("inside")
        random.random()
        loss = functional.cross_entropy(logits, target)
        return loss * math.nan if ending == "no rate" else loss

    def callback(rung):
        if ending == "callback":
            raise KeyError("inside")

    def search():
        return find_lr(model, loss_fn, batches, optimizer=optimizer, steps=8, callback=callback)

    if ending == "found":
        assert search().lr > 0
    else:
        expected = {"no rate": NoLearningRateError, "no batches": InvalidValueError}
        with pytest.raises(expected.get(ending, KeyError)):
            search()
    assert same(picture(model, optimizer, generator), before)


def test_a_loss_with_parameters_is_restored_too():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.norm = nn.BatchNorm1d(3)

        def forward(self, logits, y):
            return functional.cross_entropy(self.norm(logits * self.scale), y)

    loss, model = Weighted(), linear()
    before = picture(loss)
    seen = set()
    search = find_lr(model, loss, loader(), steps=STEPS, callback=lambda r: seen.add(r.index))
    assert search.lr > 0
    assert len(seen) >= 2
    assert same(picture(loss), before)


def test_gradients_that_others_hold_keep_their_values():
    model = linear()
    x, y = data()
    functional.cross_entropy(model(x), y).backward()
    held, value = model.weight.grad, model.weight.grad.clone()

    def clobber(model, batch):
        held.zero_()
        return functional.cross_entropy(model(batch[0]), batch[1])

    find_lr(model, None, loader(), steps=STEPS, forward=clobber)
    assert model.weight.grad is held
    assert torch.equal(held, value)


def test_a_rung_that_thaws_a_layer_finds_it_frozen_again():
    model, found = counting(), []

    def forward(model, batch):
        found.append(model.frozen.weight.requires_grad)
        model.frozen.requires_grad_(True)
        return functional.cross_entropy(model(batch[0]), batch[1])

    search = find_lr(model, None, loader(), steps=5, forward=forward)
    assert found.count(False) == len(search.rungs)
    assert not model.frozen.weight.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_a_model_trains_and_its_parts_stay_as_they_are(training):
    model, modes = counting(), []
    model.train(training)
    model.norm.eval()

    def forward(model, batch):
        modes.append((model.training, model.body[1].training, model.norm.training))
        return functional.cross_entropy(model(batch[0]), batch[1])

    find_lr(model, None, loader(), steps=5, forward=forward)
    assert set(modes) == {(True, True, not training)}


# --- rungs are comparable ------------------------------------------------------------------


def test_rungs_start_alike_and_see_the_same_batches():
    model, seen = counting(), []

    def forward(model, batch):
        seen.append((batch[0].clone(), model.body[0].weight.detach().clone()))
        return functional.cross_entropy(model(batch[0]), batch[1])

    search = find_lr(model, None, loader(), steps=10, forward=forward)
    lengths = [len(rung.losses) for rung in search.rungs]
    assert len(lengths) >= 3
    assert search.steps == sum(lengths) == len(seen)
    assert len({rung.losses[0] for rung in search.rungs}) == 1  # dropout and numpy's numbers too
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for start, length in zip(starts, lengths, strict=True):
        assert torch.equal(seen[start][1], seen[0][1])
        for k in range(length):
            assert torch.equal(seen[start + k][0], seen[k][0])


def test_the_same_seed_gives_the_same_search():
    model = counting()
    searches = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        searches.append(find_lr(model, functional.cross_entropy, loader(), steps=10))
    assert searches[0] == searches[1]


def test_the_batches_are_those_of_the_first_epochs():
    seen = []

    def forward(model, batch):
        seen.append(batch[0])
        return functional.cross_entropy(model(batch[0]), batch[1])

    torch.manual_seed(7)
    search = find_lr(linear(7), None, loader(64), steps=6, forward=forward)  # an epoch has 4
    torch.manual_seed(7)
    linear(7)
    expected = [x for _ in range(2) for x, _ in loader(64)][:6]
    for x, y in zip(seen[: len(search.rungs[0].losses)], expected, strict=True):
        assert torch.equal(x, y)


# --- optimisers ------------------------------------------------------------------------------

CLASSES = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adagrad": {},
    "Adadelta": {},
    "Adafactor": {},
    "RMSprop": {"centered": True},
    "Rprop": {},
    "ASGD": {},
    "LBFGS": {"max_iter": 4},
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_optimiser_of_torch_works(name):
    model = linear()
    before = picture(model)
    made = getattr(torch.optim, name)
    search = find_lr(
        model, nn.CrossEntropyLoss(), loader(), optimizer=made, optimizer_kwargs=CLASSES[name],
        steps=STEPS,
    )  # fmt: skip
    assert 1e-6 < search.lr < 1e6
    assert same(picture(model), before)
    optimizer = made(model.parameters(), lr=0.5, **CLASSES[name])
    kept = picture(model, optimizer)
    again = find_lr(model, nn.CrossEntropyLoss(), loader(), optimizer=optimizer, steps=STEPS)
    assert same(picture(model, optimizer), kept)
    assert again.lr > 0


def test_the_optimisers_state_is_where_each_rung_starts():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = data()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    buffer = optimizer.state[model.weight]["momentum_buffer"]
    seen = []

    def forward(model, batch):
        seen.append(optimizer.state[model.weight]["momentum_buffer"].clone())
        return functional.cross_entropy(model(batch[0]), batch[1])

    search = find_lr(model, None, loader(), optimizer=optimizer, steps=5, forward=forward)
    starts = list(itertools.accumulate([0, *(len(r.losses) for r in search.rungs)]))[:-1]
    assert all(torch.equal(seen[start], buffer) for start in starts)
    assert not torch.equal(seen[1], buffer)


@pytest.mark.parametrize("tensor", [False, True])
def test_groups_keep_the_ratios_of_their_rates(tensor):
    model, rates = linear(), []
    groups = [
        {"params": [model.bias], "lr": torch.tensor(0.002) if tensor else 0.002},
        {"params": [model.weight], "lr": torch.tensor(0.02) if tensor else 0.02},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.5, foreach=False)

    def forward(model, batch):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        return functional.cross_entropy(model(batch[0]), batch[1])

    search = find_lr(model, None, loader(), optimizer=optimizer, steps=5, forward=forward)
    tried = sorted({rate[1] for rate in rates})
    assert tried == pytest.approx(sorted(rung.lr for rung in search.rungs), rel=1e-6)
    assert all(rate[0] == pytest.approx(rate[1] / 10) for rate in rates)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.002, 0.02])


def test_a_warm_up_that_begins_at_zero_has_ratios():
    model = linear()
    optimizer = torch.optim.SGD(
        [{"params": [model.bias], "lr": 1.0}, {"params": [model.weight], "lr": 2.0}]
    )
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert find_lr(model, functional.cross_entropy, loader(), optimizer=optimizer, steps=10).lr > 0
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=9.0, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    ],
)
def test_a_function_makes_the_optimiser(make):
    model = linear()
    plain = find_lr(
        model, functional.cross_entropy, loader(shuffle=False), optimizer_kwargs={"momentum": 0.9},
        steps=STEPS,
    )  # fmt: skip
    made = find_lr(
        model, functional.cross_entropy, loader(shuffle=False), optimizer=make, steps=STEPS
    )
    assert made == plain


def test_only_what_requires_a_gradient_is_handed_to_the_optimiser():
    model, given = counting(), []

    def make(parameters):
        given.extend(parameters)
        return torch.optim.SGD(parameters)

    find_lr(model, functional.cross_entropy, loader(), optimizer=make, steps=5)
    assert {id(p) for p in given} == {id(p) for p in model.parameters() if p.requires_grad}


# --- steps -----------------------------------------------------------------------------------


def test_accumulation_is_one_step_over_several_batches():
    model = linear()
    whole = find_lr(model, functional.cross_entropy, loader(32, False), steps=STEPS)
    parts = find_lr(
        model, functional.cross_entropy, loader(8, False), steps=STEPS, accumulate=4,
        bound=whole.bound,
    )  # fmt: skip
    assert parts.lr == whole.lr
    for one, other in zip(whole.rungs, parts.rungs, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-3)


@pytest.mark.parametrize(
    "autocast",
    [torch.bfloat16, torch.float16, torch.autocast("cpu", dtype=torch.float16)],
)
def test_mixed_precision(autocast):
    model, types = linear(), []

    def forward(model, batch):
        logits = model(batch[0])
        types.append(logits.dtype)
        return functional.cross_entropy(logits, batch[1])

    half = find_lr(model, None, loader(64, False), forward=forward, autocast=autocast, steps=STEPS)
    single = find_lr(
        model, functional.cross_entropy, loader(64, False), steps=STEPS, bound=half.bound
    )
    assert set(types) <= {torch.bfloat16, torch.float16}
    assert half.lr / single.lr == pytest.approx(1, abs=0.7)  # the same rung, or its neighbour


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_gradients_are_clipped(autocast):
    model, norms = linear(), []

    def make(parameters):
        optimizer = torch.optim.SGD(parameters)
        optimizer.register_step_pre_hook(
            lambda *_: norms.append(float(nn.utils.get_total_norm([p.grad for p in parameters])))
        )
        return optimizer

    find_lr(
        model, functional.cross_entropy, loader(), optimizer=make, steps=5, clip_norm=0.01,
        autocast=autocast,
    )  # fmt: skip
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_batches_of_any_kind_go_through_forward():
    batches = [{"x": [x], "y": y, "name": "kept"} for x, y in loader()]
    moved = []

    def forward(model, batch):
        moved.append(batch["name"])
        return {"loss": functional.cross_entropy(model(batch["x"][0]), batch["y"])}["loss"]

    search = find_lr(linear(), None, batches, forward=forward, steps=STEPS)
    assert search.lr > 0
    assert set(moved) == {"kept"}
    assert "not floating-point" in search.source


def test_move_and_device_are_the_users():
    devices = []

    def move(batch, device):
        devices.append(device)
        return batch

    find_lr(linear(), functional.cross_entropy, loader(), steps=5, move=move, device="cpu")
    assert set(devices) == {torch.device("cpu")}


def test_works_without_gradients_enabled_around_it():
    with torch.no_grad():
        assert find_lr(linear(), functional.cross_entropy, loader(), steps=STEPS).lr > 0


# --- the bound ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "options", "expected"),
    [
        (functional.cross_entropy, {}, "cross_entropy"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), {}, "cross_entropy"),
        (partial(functional.cross_entropy, label_smoothing=0.1), {}, "cross_entropy"),
        (lambda p, y: functional.mse_loss(p, functional.one_hot(y, 3).float()), {}, "mse"),
        (lambda p, y: functional.cross_entropy(p, y), {"loss": "cross_entropy"}, "cross_entropy"),
    ],
)
def test_the_bound_is_that_of_the_batches_and_the_loss(loss_fn, options, expected):
    batches = list(loader(shuffle=False))
    search = find_lr(linear(), loss_fn, batches, steps=16, **options)
    cycled = (batches * 3)[:16]
    assert search.bound == pytest.approx(learning_rate_bound(cycled, loss=expected))
    assert expected in search.source
    assert search.rungs[0].lr == search.bound


def test_token_numbers_have_no_second_moments():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (128, 4), generator=generator)
    batches = DataLoader(TensorDataset(tokens, tokens[:, 0] % 3), 32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(32, 3))
    search = find_lr(model, functional.cross_entropy, batches, optimizer=torch.optim.Adam, steps=20)
    assert search.bound == 0.01
    assert "not floating-point" in search.source


def test_bounds_of_the_ladder_are_passed_on():
    search = find_lr(
        linear(), functional.cross_entropy, loader(), steps=10, bound=0.5, lower=0.1, upper=2.0
    )
    assert (search.bound, search.source) == (0.5, "given")
    assert all(0.1 <= rung.lr <= 2.0 for rung in search.rungs)
    few = find_lr(linear(), functional.cross_entropy, loader(), steps=10, max_rungs=2)
    assert len(few.rungs) == 2


# --- loaders ---------------------------------------------------------------------------------


def test_a_one_shot_iterator_must_be_long_enough():
    assert find_lr(linear(), functional.cross_entropy, iter(loader(16)), steps=10).lr > 0
    with pytest.raises(InvalidValueError, match=r"gave 8 batches.*10 are needed"):
        find_lr(linear(), functional.cross_entropy, iter(loader(32)), steps=10)


# --- when nothing works --------------------------------------------------------------------


def test_an_error_shows_the_rungs_when_none_passes():
    x, y = data()
    x[:, 0] = math.nan
    batches = DataLoader(TensorDataset(x, y), 32)
    with pytest.raises(NoLearningRateError, match="no learning rate passed") as error:
        find_lr(linear(), functional.cross_entropy, batches, steps=5, bound=0.1, max_rungs=4)
    assert "diverged" in str(error.value)
    assert len(error.value.result.rungs) == 4
    assert math.isnan(error.value.result.lr)
    assert isinstance(error.value, TuneExtError | ArithmeticError)


def test_losses_that_may_be_negative():
    def loss(p, y):
        return functional.cross_entropy(p, y) - 2.0

    search = find_lr(linear(), loss, loader(), steps=STEPS, loss="cross_entropy",
                     transform="identity")  # fmt: skip
    plain = find_lr(linear(), functional.cross_entropy, loader(), steps=STEPS)
    assert search.lr == plain.lr


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("training", [True, False])
def test_a_scripted_model_is_as_it_was(training):
    model = torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    assert find_lr(model, functional.cross_entropy, loader(), steps=STEPS).lr > 0
    assert same(model.state_dict(), before)
    assert all(module.training == training for module in model.modules())


def test_a_buffer_that_shares_its_memory_is_put_back():
    model = linear()
    model.register_buffer("shift", torch.ones(1).expand(3))
    assert find_lr(model, functional.cross_entropy, loader(), steps=STEPS).lr > 0
    assert torch.equal(model.shift, torch.ones(3))


def test_inputs_that_the_model_changes_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear()

        def forward(self, x):
            return self.layer(x.mul_(0.5))

    batches = list(loader())
    before = copy.deepcopy(batches)
    search = find_lr(InPlace(), functional.cross_entropy, batches, steps=STEPS)
    assert len({rung.losses[0] for rung in search.rungs}) == 1
    assert all(torch.equal(x, y) for x, y in zip(chain(*batches), chain(*before), strict=True))


def test_a_model_that_refuses_nan_has_diverged():
    class Refusing(nn.Linear):
        def forward(self, x):
            if not torch.isfinite(self.weight).all():
                raise ValueError("the parameter loc must be real")
            return super().forward(x)

    torch.manual_seed(0)
    model = Refusing(6, 1)
    x, _ = data()
    batches = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 32)

    def explosive(p, y):
        return (p - y).square().mean() + (p - y).pow(4).mean()

    search = find_lr(model, explosive, batches, bound=1.0, steps=STEPS)
    assert any(rung.result.verdict == "diverged" for rung in search.rungs)
    assert search.lr < 1


def test_other_errors_are_not_swallowed():
    def broken(p, y):
        raise RuntimeError("a mistake of the user's")

    with pytest.raises(RuntimeError, match="of the user's"):
        find_lr(linear(), broken, loader(), steps=5)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"model": 3}, InvalidTypeError, "model"),
        ({"model": nn.ReLU()}, InvalidValueError, "no parameter"),
        ({"model": nn.Linear(6, 3).requires_grad_(False)}, InvalidValueError, "no parameter"),
        ({"model": nn.LazyLinear(3)}, InvalidValueError, "lazy"),
        ({"loss_fn": None}, InvalidTypeError, "loss_fn"),
        ({"loss_fn": lambda p, y: 0.5}, InvalidTypeError, "must be a tensor"),
        ({"loss_fn": lambda p, y: p}, InvalidValueError, "one number"),
        ({"loss_fn": lambda p, y: torch.tensor(1.0)}, InvalidValueError, "does not depend"),
        ({"loader": []}, InvalidValueError, "no batches"),
        ({"loader": [data()[0]]}, InvalidValueError, "forward="),
        ({"loader": [(*data(), 3)]}, InvalidValueError, "forward="),
        ({"optimizer": "sgd"}, InvalidTypeError, "'sgd'"),
        ({"optimizer": lambda p: None}, InvalidTypeError, "None"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, InvalidValueError, "model"),
        ({"optimizer_kwargs": {"lr": 1}, "optimizer": len}, InvalidValueError, "class"),
        ({"optimizer_kwargs": {"lr": 1}}, InvalidValueError, "lr=1"),
        ({"loader": 3}, InvalidTypeError, "loader"),
        ({"loss_fn": lambda p, y: p.sum() * 0 - 1}, InvalidValueError, "transform='identity'"),
        ({"steps": 2}, InvalidValueError, "steps"),
        ({"accumulate": 0}, InvalidValueError, "accumulate"),
        ({"alpha": 1.5}, InvalidValueError, "alpha"),
        ({"beta": 0.0}, InvalidValueError, "beta"),
        ({"bound": -1.0}, InvalidValueError, "bound"),
        ({"clip_norm": 0.0}, InvalidValueError, "clip_norm"),
        ({"loss": "hinge"}, InvalidValueError, "hinge"),
        ({"autocast": torch.float16, "optimizer": torch.optim.LBFGS}, InvalidValueError, "float16"),
    ],
)
def test_mistakes_are_named(options, error, said):
    arguments = {
        "model": linear(), "loss_fn": functional.cross_entropy, "loader": loader(), "steps": 5,
    } | options  # fmt: skip
    with pytest.raises(error, match=said):
        find_lr(**arguments)


def test_an_optimiser_without_a_rate_has_no_ratios():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(InvalidValueError, match="not all 0"):
        find_lr(model, functional.cross_entropy, loader(), optimizer=optimizer)


# --- what comes out ----------------------------------------------------------------------------


def test_the_account_names_every_rung():
    told = []
    search = find_lr(
        linear(), functional.cross_entropy, loader(), steps=STEPS, callback=told.append
    )
    assert told == list(search.rungs)
    rows = search.explain().to_rows()
    assert {row["rung"] for row in rows} == {rung.index for rung in search.rungs}
    chosen = next(rung for rung in search.rungs if rung.lr == search.lr)
    passing = [rung.result.end_loss for rung in search.rungs if rung.result.passes]
    assert chosen.result.end_loss == min(passing)
    assert f"lr {search.lr:.3g}: decaying" in str(chosen)


def test_plot_needs_matplotlib_and_rungs(tmp_path, monkeypatch):
    search = find_lr(linear(), functional.cross_entropy, loader(), steps=5)
    figure = search.plot(tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    curves, ends = figure.axes
    assert sum(line.get_linewidth() > 2 for line in curves.lines) == 1
    assert len(curves.lines) == len(search.rungs)
    assert sorted(line.get_xdata()[0] for line in ends.lines)[-1] == max(r.lr for r in search.rungs)
    with pytest.raises(InvalidValueError, match="given"):
        resolve_lr(0.1).plot()
    for factor in (math.nan, 0.0):  # there is little to see, but that can be looked at
        with pytest.raises(NoLearningRateError) as caught:
            find_lr(linear(), lambda p, y, f=factor: p.sum() * f, loader(), steps=5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            caught.value.result.plot(tmp_path / "nothing.png")

    real = builtins.__import__

    def blocked(name, *rest, **named):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        search.plot()


@pytest.mark.parametrize("rich", [True, False])
def test_progress_says_something_about_each_rung(rich, monkeypatch, capfd):
    if not rich:
        monkeypatch.setitem(__import__("sys").modules, "rich.progress", None)
    search = find_lr(linear(), functional.cross_entropy, loader(), steps=5, progress=True)
    shown = "".join(capfd.readouterr())
    assert all(f"lr {rung.lr:.3g}: {rung.result.verdict}" in shown for rung in search.rungs)


# --- resolve_lr --------------------------------------------------------------------------------


def test_a_number_costs_nothing_and_the_word_searches():
    assert (resolve_lr(0.3).lr, resolve_lr(0.3).steps) == (0.3, 0)
    assert resolve_lr(np.float32(0.5)).lr == 0.5
    model = linear()
    found = resolve_lr("exptest", model, functional.cross_entropy, loader(shuffle=False), steps=5)
    assert found == find_lr(model, functional.cross_entropy, loader(shuffle=False), steps=5)
    for wrong, error in (
        ("auto", InvalidValueError),
        (-1.0, InvalidValueError),
        (math.nan, InvalidValueError),
        (None, InvalidTypeError),
    ):
        with pytest.raises(error, match="lr"):
            resolve_lr(wrong, model, functional.cross_entropy, loader())
    with pytest.raises(InvalidTypeError, match="needs the model"):
        resolve_lr("exptest")


# --- accelerators ------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_cuda(autocast):
    model = counting().cuda()
    before, cuda = picture(model), torch.cuda.get_rng_state_all()
    search = find_lr(model, functional.cross_entropy, loader(), steps=20, autocast=autocast)
    assert search.lr > 0
    assert same(picture(model), before)
    assert same(torch.cuda.get_rng_state_all(), cuda)
