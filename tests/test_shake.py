"""Shake-Shake and ShakeDrop: which numbers they multiply by, forwards, backwards, evaluated."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.models import ShakeDrop, ShakeShake, seed_noise_

IMAGES = 4000
CHANCE = 1e-4
"""How often a right implementation would fail a test of a distribution, with another seed."""


def shaken(shake: ShakeShake, count: int, *, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """The weights of the branches, forwards and backwards, per image: (images, branches).

    Branch i is 1 in its own place and 0 elsewhere, so that the sum shows its weight.
    """
    branches = [torch.zeros(images, count, 1, 1) for _ in range(count)]
    for i, branch in enumerate(branches):
        branch[:, i] = 1
        branch.requires_grad_()
    total = shake(branches)
    total.sum().backward()
    gradients = torch.stack([branch.grad[:, 0, 0, 0] for branch in branches], dim=1)
    return total.detach()[:, :, 0, 0], gradients


def dropped(shake: ShakeDrop, *, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """The factor of each image, forwards and backwards."""
    branch = torch.ones(images, 3, 2, 2, requires_grad=True)
    out = shake(branch)
    out.sum().backward()
    for values in (out, branch.grad):
        assert torch.equal(values, values[:, :1, :1, :1].expand_as(values)), "one per image"
    return out.detach()[:, 0, 0, 0], branch.grad[:, 0, 0, 0]


def follows(values: Tensor, distribution: str, *args: float) -> bool:
    """Whether a Kolmogorov-Smirnov test lets the values pass."""
    return bool(stats.kstest(values.double().numpy(), distribution, args).pvalue > CHANCE)


def unrelated(one: Tensor, other: Tensor) -> bool:
    return bool(stats.pearsonr(one.numpy(), other.numpy()).pvalue > CHANCE)


# ---------------------------------------------------------------------- Shake-Shake


@pytest.mark.parametrize("count", [2, 3, 5])
def test_weights_of_branches_are_uniform_among_those_of_sum_one(count: int) -> None:
    """Then each of them is Beta(1, count - 1): of two branches, uniform in [0, 1]."""
    shake = ShakeShake()
    seed_noise_(shake, 1)
    forward, backward = shaken(shake, count)
    for weights in (forward, backward):
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(1), torch.ones(IMAGES))
        assert all(follows(weights[:, i], "beta", 1, count - 1) for i in range(count))
    # Of neighbours, one says of the other only that they share what is left.
    assert follows(forward[:, 0] / forward[:, :2].sum(1), "uniform")
    assert all(unrelated(forward[:, i], backward[:, i]) for i in range(count))


def test_softmax_is_the_weaker_noise_of_the_published_code() -> None:
    """Of two branches: the logistic function of a difference of two uniform numbers."""
    shake = ShakeShake("softmax")
    seed_noise_(shake, 1)
    forward, backward = shaken(shake, 2)
    for weights in (forward, backward):
        torch.testing.assert_close(weights.sum(1), torch.ones(IMAGES))
        assert follows(torch.logit(weights[:, 0]), "triang", 0.5, -1, 2)
    assert unrelated(forward[:, 0], backward[:, 0])


@pytest.mark.parametrize("coefficients", ["uniform", "softmax"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_evaluated_branches_count_alike_as_they_do_on_average(coefficients, count: int) -> None:
    shake = ShakeShake(coefficients)
    seed_noise_(shake, 2)
    forward, backward = shaken(shake, count)
    even = torch.full((IMAGES, count), 1 / count)
    # The standard deviation of a mean of 4,000 is below .005.
    torch.testing.assert_close(forward.mean(0), even[0], rtol=0, atol=0.02)
    torch.testing.assert_close(backward.mean(0), even[0], rtol=0, atol=0.02)
    for values in shaken(shake.eval(), count):
        torch.testing.assert_close(values, even)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 4, 4), (6, 2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_shape_and_precision(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    branches = [torch.ones(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    total = ShakeShake()(branches)
    assert (total.shape, total.dtype) == (shape, dtype)
    torch.testing.assert_close(total, torch.ones_like(total), atol=0.02, rtol=0)
    total.sum().backward()
    assert {branch.grad.dtype for branch in branches} == {dtype}


def test_only_branches_that_want_gradients_get_them() -> None:
    one, other = torch.ones(4, 2, requires_grad=True), torch.ones(4, 2)
    ShakeShake()([one, other]).sum().backward()
    assert one.grad is not None
    assert other.grad is None


def test_gradients_can_be_differentiated() -> None:
    """β·g is linear in g, and in nothing else: what is before the branches is seen through it."""
    shake = ShakeShake()
    seed_noise_(shake, 0)
    x = torch.tensor([[2.0], [3.0]], requires_grad=True)
    seen = shake([x**2, 0 * x])
    (first,) = torch.autograd.grad(seen.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, first.detach() / x.detach())  # 2βx, then 2β


# ---------------------------------------------------------------------- ShakeDrop


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_branch_is_dropped_so_often_and_then_by_random_factors(rate: float) -> None:
    shake = ShakeDrop(rate)
    seed_noise_(shake, 3)
    forward, backward = dropped(shake)
    dead = forward != 1
    assert torch.equal(dead, backward != 1)
    expected = stats.binomtest(int(dead.sum()), IMAGES, rate).pvalue
    assert expected > CHANCE
    if rate:
        assert follows(forward[dead], "uniform", -1, 2)
        assert follows(backward[dead], "uniform", 0, 1)
        assert unrelated(forward[dead], backward[dead])


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_an_evaluated_branch_counts_as_it_does_on_average(rate: float) -> None:
    shake = ShakeDrop(rate)
    seed_noise_(shake, 4)
    forward, _ = dropped(shake)
    assert forward.mean().item() == pytest.approx(1 - rate, abs=0.05)  # 5 deviations
    for factors in dropped(shake.eval()):
        torch.testing.assert_close(factors, torch.full((IMAGES,), 1 - rate))


# ---------------------------------------------------------------------- where the noise is from


class Two(nn.Module):
    """Two modules with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ShakeShake(), ShakeDrop(0.5)
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first([x, 2 * x]), self.second(x)])


def noise(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.ones(20, 3))
    return found


def test_a_seed_decides_the_noise_and_leaves_torchs_own_generator_alone() -> None:
    one, same, other = Two(), Two(), Two()
    for model, seed in ((one, 0), (same, 0), (other, 1)):
        seed_noise_(model, seed)
    state = torch.get_rng_state()
    first = noise(one)
    assert torch.equal(first, noise(same))
    assert not torch.equal(first, noise(other))
    assert not torch.equal(first, noise(one)), "it goes on"
    one.first([torch.ones(2, 1, requires_grad=True)] * 2).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    seed_noise_(one, 0)
    assert torch.equal(first, noise(one))


def test_modules_of_a_model_share_a_generator_and_a_copy_has_its_own() -> None:
    model = Two()
    seed_noise_(model, 5)
    assert model.first.generator is model.second.generator
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.first.generator is copied.second.generator
        before = model.first.generator.get_state()
        later = noise(copied)
        assert torch.equal(model.first.generator.get_state(), before)
        model.first.generator.set_state(before)
        assert torch.equal(noise(model), later)
        model.first.generator.set_state(before)


def test_without_a_seed_the_noise_is_torchs_own_as_dropouts_is() -> None:
    model = Two()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = noise(model)
        assert not torch.equal(first, noise(model))
        torch.manual_seed(0)
        assert torch.equal(first, noise(model))


def test_evaluation_draws_nothing() -> None:
    model = Two().eval()
    seed_noise_(model, 0)
    before = model.first.generator.get_state()
    assert torch.equal(noise(model), noise(model))
    assert torch.equal(model.first.generator.get_state(), before)


def test_noise_is_not_in_the_state_dict() -> None:
    model = Two()
    names = set(model.state_dict())
    seed_noise_(model, 0)
    assert set(model.state_dict()) == names == {"layer.weight", "layer.bias"}


def test_a_model_that_moved_since_it_was_seeded_says_so() -> None:
    shake = ShakeDrop(0.5)
    seed_noise_(shake, 0)
    with FakeTensorMode():
        elsewhere = torch.empty(2, 3, device="cuda")
    with pytest.raises(InvalidValueError, match=r"on cpu but .* cuda.*seed_noise_ after moving"):
        shake(elsewhere)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: ShakeShake("even"), InvalidValueError),
        (lambda: ShakeShake()([]), InvalidValueError),
        (lambda: ShakeDrop(-0.1), InvalidValueError),
        (lambda: ShakeDrop(1.1), InvalidValueError),
        (lambda: ShakeDrop(float("nan")), InvalidValueError),
        (lambda: ShakeDrop("often"), InvalidTypeError),
        (lambda: seed_noise_(Two(), -1), InvalidValueError),
        (lambda: seed_noise_(Two(), None), InvalidTypeError),
        (lambda: seed_noise_(Two(), 0.5), InvalidTypeError),
        (lambda: seed_noise_(Two().to("meta"), 0), InvalidValueError),
    ],
)
def test_arguments_are_checked(make, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()
