"""Knowledge gain of every kind of layer, and the meter around it."""

from __future__ import annotations

import copy
import gc
import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from tests.reference.evbmf_cases import digits_network, trained
from tests.reference.reference_evbmf import reference_evbmf
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.lowrank import KnowledgeGain, ResponseMeter, knowledge_gain


def structured(*shape, seed=0, strength=2.0):
    """A weight with a few strong directions among its channels, and noise."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(shape[0], math.prod(shape[1:])))
    for _ in range(2):
        matrix += strength * np.outer(
            rng.normal(size=len(matrix)), rng.normal(size=matrix.shape[1])
        )
    mixed = np.moveaxis(matrix.reshape(shape), 1, 0)
    flat = mixed.reshape(shape[1], -1)
    flat += strength * np.outer(rng.normal(size=len(flat)), rng.normal(size=flat.shape[1]))
    whole = np.moveaxis(flat.reshape(mixed.shape), 0, 1)
    return torch.tensor(np.ascontiguousarray(whole), dtype=torch.float32)


def fill(model, seed=0):
    """Give every convolution and linear layer of `model` a structured weight."""
    with torch.no_grad():
        for i, module in enumerate(model.modules()):
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                module.weight.copy_(structured(*module.weight.shape, seed=seed + i))
    return model


def gain_of(matrix):
    """Knowledge gain of an unfolding, by the reference."""
    values, _ = reference_evbmf(matrix)
    return values.sum() / values[0] / len(matrix) if len(values) else 0.0


def by_channels(weight, groups, transposed):
    """Both unfoldings, entry by entry: what each channel is multiplied with."""
    array = weight.double().numpy().reshape(*weight.shape[:2], -1)
    first, second, _ = array.shape
    by_first = [array[i].ravel() for i in range(first)]
    size = first // groups
    by_second = [
        np.concatenate([array[i, j] for i in range(group * size, (group + 1) * size)])
        for group in range(groups)
        for j in range(second)
    ]
    pair = (by_first, by_second) if transposed else (by_second, by_first)
    return tuple(np.array(rows) for rows in pair)


# --- knowledge gain --------------------------------------------------------------------

LAYERS = {
    "1-D": nn.Conv1d(12, 20, 5),
    "2-D": nn.Conv2d(12, 16, 3),
    "2-D, one input": nn.Conv2d(1, 16, 3),
    "2-D, one output": nn.Conv2d(16, 1, 3),
    "1 × 1, tall": nn.Conv2d(8, 40, 1),
    "1 × 1, wide": nn.Conv2d(40, 8, 1),
    "3-D": nn.Conv3d(6, 8, 2),
    "grouped": nn.Conv2d(24, 32, 3, groups=4),
    "depthwise": nn.Conv2d(24, 24, 5, groups=24),
    "depthwise, two each": nn.Conv2d(12, 24, 5, groups=12),
    "transposed 1-D": nn.ConvTranspose1d(10, 14, 4),
    "transposed": nn.ConvTranspose2d(12, 16, 3),
    "transposed, grouped": nn.ConvTranspose2d(24, 32, 3, groups=4),
    "transposed 3-D": nn.ConvTranspose3d(6, 8, 2),
    "linear": nn.Linear(30, 20),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_is_unfolded_by_channels(kind):
    layer = LAYERS[kind]
    transposed = kind.startswith("transposed")
    groups = getattr(layer, "groups", 1)
    weight = structured(*layer.weight.shape, seed=3)
    unfoldings = by_channels(weight, groups, transposed)
    sizes = (
        (layer.in_features, layer.out_features)
        if kind == "linear"
        else (layer.in_channels, layer.out_channels)
    )
    assert tuple(map(len, unfoldings)) == sizes
    result = knowledge_gain(weight, groups=groups, transposed=transposed)
    assert result == pytest.approx(tuple(map(gain_of, unfoldings)), rel=1e-5)
    assert max(result) > 0.0
    # And so does the meter, which finds out about groups and transposition by itself.
    with torch.no_grad():
        layer.weight.copy_(weight)
    meter = ResponseMeter(nn.Sequential(layer), linear=True)
    assert meter.measure(per_layer=True)["layers"]["0"] == result._asdict()


def test_trained_weights_against_the_reference():
    weights = trained(rates=(1e-2,), epochs=2)
    gains = {name: knowledge_gain(weight) for name, weight in weights}
    for name, weight in weights:
        expected = tuple(map(gain_of, by_channels(weight, 1, False)))
        assert gains[name] == pytest.approx(expected, rel=1e-5), name
    assert any(gain.input > 0 for gain in gains.values())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(1, 9))
def test_a_transposed_convolution_is_one_with_its_ends_swapped(seed, groups, multiple, kernel):
    weight = structured(2 * groups * multiple, 3, kernel, seed=seed)
    ahead = knowledge_gain(weight, groups=groups)
    back = knowledge_gain(weight, groups=groups, transposed=True)
    assert back == KnowledgeGain(ahead.output, ahead.input)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-12, 12), st.integers(2, 20), st.integers(2, 20))
def test_knowledge_gain_is_a_fraction_and_does_not_depend_on_scale(seed, exponent, rows, columns):
    weight = structured(rows, columns, 3, 3, seed=seed)
    result = knowledge_gain(weight)
    assert all(0.0 <= gain <= 1.0 for gain in result)
    scaled = knowledge_gain(weight * 10.0**exponent)
    assert scaled == pytest.approx(result, rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    weight = structured(24, 16, 3, 3).to(dtype)
    for wider in (weight.float(), weight.double()):
        assert knowledge_gain(weight) == pytest.approx(knowledge_gain(wider), rel=1e-6)


def test_the_order_of_a_weight_in_memory_does_not_matter():
    weight = structured(24, 16, 3, 3)
    for other in (
        weight.to(memory_format=torch.channels_last),
        weight.transpose(0, 1).contiguous().transpose(0, 1),
        weight.repeat_interleave(2, dim=3)[..., ::2],
    ):
        assert knowledge_gain(other) == pytest.approx(knowledge_gain(weight), rel=1e-6)


def test_rounded_products_are_not_used():
    weight = structured(24, 16, 3, 3)
    exact = knowledge_gain(weight.double())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert knowledge_gain(weight) == pytest.approx(exact, rel=1e-12)
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert knowledge_gain(weight) == pytest.approx(exact, rel=1e-5)


def test_extreme_scales_leave_float32_without_harm():
    weight = structured(24, 16, 3, 3)
    expected = knowledge_gain(weight)
    for scale in (1e-30, 1e-25, 1e25, 1e30):
        assert knowledge_gain(weight * scale) == pytest.approx(expected, rel=1e-5)
    assert knowledge_gain(torch.zeros(5, 4, 3, 3)) == KnowledgeGain(0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_has_no_knowledge_gain(bad):
    weight = structured(8, 6, 3, 3)
    weight[3, 2, 1, 0] = bad
    assert all(map(math.isnan, knowledge_gain(weight)))


@pytest.mark.parametrize(
    ("weight", "groups", "error", "words"),
    [
        (torch.zeros(4), 1, InvalidValueError, "shape (4,)"),
        (torch.zeros(0, 4), 1, InvalidValueError, "shape (0, 4)"),
        (torch.zeros(4, 4, 1), 3, InvalidValueError, "groups must divide"),
        (torch.zeros(4, 4, 1), 0, InvalidValueError, "groups must divide"),
        (torch.zeros(4, 4, dtype=torch.complex64), 1, InvalidTypeError, "complex64"),
    ],
)
def test_what_knowledge_gain_refuses(weight, groups, error, words):
    with pytest.raises(error) as caught:
        knowledge_gain(weight, groups=groups)
    assert words in str(caught.value)


# --- the meter -------------------------------------------------------------------------


def test_a_fresh_network_is_noise_and_a_trained_one_is_not():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = ResponseMeter(digits_network()).measure()
    assert fresh["response"] == 1.0
    assert fresh["knowledge_gain"] == 0.0
    responses = {}
    for rate in (1e-4, 1e-1):
        network = digits_network()
        last = {name.split()[-1]: weight for name, weight in trained(rates=(rate,), epochs=2)}
        network.load_state_dict(last, strict=False)
        responses[rate] = ResponseMeter(network).measure()["response"]
    assert responses[1e-4] > responses[1e-1]
    assert responses[1e-1] >= 1 / 8  # the first layer's single input row is always noise


def test_what_the_response_is():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(1, 64, 3)))
    result = ResponseMeter(model).measure(per_layer=True)
    gains = [gain for layer in result["layers"].values() for gain in layer.values()]
    assert list(result["layers"]) == ["0", "1", "2"]
    assert result["response"] == sum(gain == 0 for gain in gains) / 6
    assert result["knowledge_gain"] == pytest.approx(sum(gains) / 6)
    assert 0.0 < result["response"] < 1.0
    del result["layers"]
    assert all(isinstance(value, float | bool | int) for value in result.values())
    json.dumps(result)
    layers = ResponseMeter(model, count="layers").measure()
    assert layers["response"] == sum(gains[i : i + 2] == [0, 0] for i in (0, 2, 4)) / 3
    assert layers["response"] != result["response"]
    assert layers["knowledge_gain"] == result["knowledge_gain"]


def test_the_mean_is_over_the_epochs_since_the_start():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(16, 24, 3)))
    meter = ResponseMeter(model)
    responses = []
    for epoch in range(1, 4):
        result = meter.measure()
        responses.append(result["response"])
        assert result["epochs_measured"] == epoch
        assert result["response_mean"] == pytest.approx(sum(responses) / epoch)
        nn.init.normal_(model[epoch % 2].weight)
    assert len(set(responses)) > 1
    meter.reset()
    assert meter.measure()["epochs_measured"] == 1


def test_divergence_is_reported_and_stays_in_the_mean():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(16, 24, 3)))
    meter = ResponseMeter(model)
    assert meter.measure()["diverged"] is False
    saved = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[1].weight[0, 0, 0, 0] = math.nan
    result = meter.measure(per_layer=True)
    assert result["diverged"] is True
    assert math.isnan(result["response"])
    assert math.isnan(result["response_mean"])
    assert math.isnan(result["knowledge_gain"])
    assert result["layers"]["0"]["input"] > 0.0
    assert math.isnan(result["layers"]["1"]["output"])
    model.load_state_dict(saved)
    recovered = meter.measure()
    assert recovered["diverged"] is False
    assert recovered["response"] == 0.0
    assert math.isnan(recovered["response_mean"])
    again = ResponseMeter(model)
    again.load_state_dict(json.loads(json.dumps(meter.state_dict(), allow_nan=False)))
    assert math.isnan(again.measure()["response_mean"])


def test_a_saved_meter_goes_on_with_its_mean():
    model = nn.Sequential(nn.Conv2d(12, 16, 3))
    meter = ResponseMeter(model)
    meter.measure()
    fill(model)
    meter.measure()
    other = ResponseMeter(model)
    other.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    assert other.measure() == meter.measure()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"count": "layers"},
        {"threshold": "exact"},
        {"epochs_measured": -1},
        {"epochs_measured": "3"},
        {"response_sum": 7.0},
        {"response_sum": "1"},
    ],
)
def test_a_state_that_does_not_fit_is_refused(change):
    model = nn.Sequential(nn.Conv2d(12, 16, 3))
    meter = ResponseMeter(model)
    meter.measure()
    before = meter.state_dict()
    with pytest.raises(StateError):
        meter.load_state_dict(before | change)
    with pytest.raises(StateError):
        meter.load_state_dict([])
    assert meter.state_dict() == before


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Conv2d(12, 16, 3)  # a name that wrappers use too
        self.head = nn.Sequential(nn.Conv2d(16, 24, 3))


def test_wrappers_change_neither_results_nor_names(tmp_path):
    model = fill(Tower())
    plain = ResponseMeter(model).measure(per_layer=True)
    assert list(plain["layers"]) == ["module", "head.0"]
    nested = Tower()
    nested.load_state_dict(model.state_dict())
    nested.head = torch.compile(nested.head)
    wrapped = [
        nn.DataParallel(model),
        torch.compile(model),
        torch.compile(nn.DataParallel(model)),
        AveragedModel(model),
        nested,
    ]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped.append(nn.parallel.DistributedDataParallel(model))
        for wrapper in wrapped:
            assert ResponseMeter(wrapper).measure(per_layer=True) == plain
    finally:
        torch.distributed.destroy_process_group()


def test_shared_weights_count_once():
    first, second = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
    tied = nn.ConvTranspose2d(16, 16, 3)
    model = nn.Sequential(first, second, first, tied)
    assert ResponseMeter(model).layer_names == ("0", "1", "3")
    second.weight = first.weight
    tied.weight = first.weight
    assert ResponseMeter(model).layer_names == ("0",)


def test_linear_layers_by_option():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Flatten(), nn.Linear(16, 10)))
    assert ResponseMeter(model).layer_names == ("0",)
    result = ResponseMeter(model, linear=True).measure(per_layer=True)
    assert list(result["layers"]) == ["0", "2"]


def test_parametrised_weights_count_as_they_are_used():
    plain = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(16, 24, 3)))
    expected = ResponseMeter(plain).measure(per_layer=True)
    normed = copy.deepcopy(plain)
    parametrizations.weight_norm(normed[0])
    parametrizations.spectral_norm(normed[1])
    before = copy.deepcopy(normed.state_dict())
    meter = ResponseMeter(normed)
    for result in (meter.measure(per_layer=True), meter.measure(per_layer=True)):
        for name, gains in result["layers"].items():
            assert gains == pytest.approx(expected["layers"][name], rel=1e-4)
    assert normed.training
    assert all(module.training for module in normed.modules())
    after = normed.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.filterwarnings("ignore")
def test_hooks_that_compute_the_weight_are_asked_for_it():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(12, 16, 3), nn.Conv2d(12, 16, 3)))
    nn.utils.weight_norm(model[0])
    nn.utils.spectral_norm(model[1])
    prune.random_unstructured(model[2], "weight", amount=0.1)
    meter = ResponseMeter(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert meter.measure()["response"] < 1.0
    after = model.state_dict()
    assert all(torch.equal(state[key], after[key]) for key in state)
    with torch.no_grad():
        for layer, name in ((model[0], "weight_v"), (model[1], "weight_orig")):
            getattr(layer, name).copy_(torch.zeros(16, 12, 3, 3))
            getattr(layer, name)[0, 0, 0, 0] = 1.0
        model[2].weight_orig.zero_()
    layers = meter.measure(per_layer=True)["layers"]  # no forward pass in between
    assert layers["2"] == {"input": 0.0, "output": 0.0}
    assert layers["0"] != {"input": 0.0, "output": 0.0}


def test_measuring_leaves_everything_as_it_was():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Dropout(), nn.Conv2d(16, 24, 3)))
    before = copy.deepcopy(model.state_dict())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ResponseMeter(model).measure()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_the_model_may_move_and_change_its_type():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3)))
    meter = ResponseMeter(model)
    single = meter.measure(per_layer=True)["layers"]["0"]
    model.double()
    assert meter.measure(per_layer=True)["layers"]["0"] == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
            InvalidValueError,
            "2 linear layers: linear",
        ),
        (nn.Sequential(nn.ReLU()), InvalidValueError, "nothing to measure"),
        (nn.Sequential(nn.LazyConv2d(8, 3)), InvalidValueError, "layer '0' (LazyConv2d) is lazy"),
        (nn.Conv2d(3, 8, 3, device="meta"), InvalidValueError, "Conv2d is on the meta device"),
        (nn.Sequential(nn.Conv2d(3, 8, 3, dtype=torch.complex64)), InvalidTypeError, "complex64"),
        ("resnet", InvalidTypeError, "got str"),
    ],
)
def test_models_that_cannot_be_measured(model, error, words):
    with pytest.raises(error) as caught:
        ResponseMeter(model)
    assert words in str(caught.value)


def test_settings_that_do_not_exist():
    with pytest.raises(InvalidValueError, match="'unfoldings' or 'layers', got 'rows'"):
        ResponseMeter(nn.Conv2d(3, 8, 3), count="rows")
    with pytest.raises(InvalidValueError, match="'published' or 'exact', got 'loose'"):
        ResponseMeter(nn.Conv2d(3, 8, 3), threshold="loose")


# --- memory and devices ----------------------------------------------------------------


def peak_of_torch(function):
    """The most bytes that torch's CPU allocator held at once beyond those before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    assert changes
    return int(np.cumsum([nbytes for _, nbytes in sorted(changes, key=lambda c: c[0])]).max())


@pytest.mark.parametrize("kind", ["fresh", "structured", "half precision", "float64 products"])
def test_memory_stays_below_twice_the_largest_unfolding(kind):
    """What torch allocates (its allocator's log) and what numpy does (tracemalloc)."""
    model = nn.Sequential(nn.Conv2d(64, 256, 3), nn.Conv2d(256, 256, 3), nn.Conv2d(256, 128, 1))
    largest = model[1].weight.numel() * 4
    if kind != "fresh":
        fill(model)
    if kind == "half precision":
        model.bfloat16()
    meter = ResponseMeter(model)
    meter.measure()  # what is set up once is not counted
    gc.collect()
    before = torch.get_float32_matmul_precision()
    try:
        if kind == "float64 products":
            torch.set_float32_matmul_precision("high")
        assert peak_of_torch(meter.measure) <= 2 * largest
    finally:
        torch.set_float32_matmul_precision(before)
    tracemalloc.start()
    try:
        meter.measure()
        assert tracemalloc.get_traced_memory()[1] <= 2 * largest
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_same():
    model = fill(nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(16, 24, 3, groups=2)))
    here = ResponseMeter(model).measure(per_layer=True)["layers"]
    there = ResponseMeter(model.cuda()).measure(per_layer=True)["layers"]
    for name, gains in here.items():
        assert there[name] == pytest.approx(gains, rel=1e-5)
