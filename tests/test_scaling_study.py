"""experiments/scaling: what is trained next, what the records say, and that training is right."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "experiments" / "scaling"
MODULES = (
    *("_dag_training", "correlation", "correlation_report"),
    *("ranking", "ranking_report", "nasbench201"),
)


@pytest.fixture(scope="module")
def study(one_thread):
    """The study's modules, which import each other by their plain names."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(
            **{name.strip("_"): importlib.import_module(name) for name in MODULES}
        )
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def images(study):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (96,), generator=rng)
    inputs = torch.randn(96, 1, 6, 6, generator=rng) + labels[:, None, None, None] / 3
    return study.dag_training.Images(inputs, labels, inputs[:32], labels[:32])


@pytest.fixture(scope="module")
def small(study):
    return study.dag_training.Network("mlp", "2_12", width=8)


# What is trained next ----------------------------------------------------------------------


def search(study, curve, seeds, *, staged):
    """Answer `wanted` from a curve until nothing is wanted; returns all that was asked for."""
    known: dict[int, dict[int, float]] = {}
    for _ in range(100):
        exponents, which = study.correlation.wanted(known, seeds, staged=staged)
        if not exponents:
            return known
        for k, seed in itertools.product(exponents, which):
            assert seed not in known.get(k, {}), "trained twice"
            known.setdefault(k, {})[seed] = curve(k, seed)
    pytest.fail("no end")


def test_the_whole_grid_is_wanted_once(study):
    known = search(study, lambda k, seed: k**2, 3, staged=False)
    grid = range(study.correlation.LOWEST, study.correlation.HIGHEST + 1)
    assert {k: set(v) for k, v in known.items()} == {k: {0, 1, 2} for k in grid}


@pytest.mark.parametrize("best", [-17, -16, -9, -4, 0, 3])
def test_in_stages_the_best_is_surrounded_by_all_seeds(study, best):
    # The first seed misleads by two exponents.
    known = search(
        study, lambda k, seed: 1 + 0.01 * abs(k - best + 2 * (seed == 0)), 3, staged=True
    )
    full = [k for k, v in known.items() if len(v) == 3]
    means = {k: np.mean(list(known[k].values())) for k in full}
    winner = min(means, key=means.get)
    c = study.correlation
    around = {k for k in range(winner - 3, winner + 4) if c.LOWEST <= k <= c.HIGHEST}
    assert around <= set(full)
    assert abs(winner - best) <= 1


def test_a_divergence_counts_as_guessing(study):
    capped = study.correlation.capped
    assert capped(None) == capped(math.inf) == capped(math.nan) == capped(9.0) == math.log(10)
    assert capped(1.5) == 1.5


def test_records_of_a_network_are_collected(study, small):
    c = study.correlation
    record = {
        "network": c.as_record(small),
        "init": "he",
        "exponents": [0, 1],
        "seeds": [0],
        "loss": [[1.0], [None]],
        "running": [[2.0], [None]],
    }
    more = record | {"exponents": [1], "seeds": [1], "loss": [[3.0]], "running": [[4.0]]}
    other = record | {"init": "torch"}
    merged = c.merge([record, more, other])
    assert len(merged) == 2
    entry = merged[(*c.as_record(small).values(), "he")]
    assert entry["running"] == {0: {0: 2.0}, 1: {0: None, 1: 4.0}}


def test_a_torn_line_is_left_out_and_written_again(study, tmp_path, capsys):
    path = tmp_path / "deep" / "records.jsonl"
    study.dag_training.append(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": 2, "b')
    study.dag_training.append(path, {"a": 3})
    assert study.dag_training.read(path) == [{"a": 1}, {"a": 3}]
    assert "damaged" in capsys.readouterr().err


def test_networks_without_identities(study):
    found = study.correlation.without_identities(5, seed=2)
    assert len(set(found)) == 5
    assert not any("1" in dag for dag in found)


# Training -----------------------------------------------------------------------------------


def test_side_by_side_is_as_alone(study, images, small):
    t = study.dag_training
    models = [t.start(small, "target-in", seed, images) for seed in (0, 0, 1)]
    rates, seeds = [0.05, 1e9, 0.1], [0, 0, 1]
    together, alone = (
        t.train(models, rates, seeds, images, batch=16, epochs=2, side_by_side=s)
        for s in (True, False)
    )
    assert not math.isfinite(together[1].loss)
    assert not math.isfinite(alone[1].loss)
    for k in (0, 2):
        assert together[k].loss == pytest.approx(alone[k].loss, rel=1e-4)
        assert together[k].running == pytest.approx(alone[k].running, rel=1e-4)
        assert together[k].accuracy == alone[k].accuracy


def test_training_is_plain_sgd_with_that_seeds_batches(study, images, small):
    t = study.dag_training
    model = t.start(small, "he", 3, images)
    (result,) = t.train([model], [0.05], [3], images, batch=16, side_by_side=False)
    losses = []
    for rows in t._orders([3], 96, 16, 0)[3]:
        loss = nn.functional.cross_entropy(model(images.inputs[rows]), images.labels[rows])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
        losses.append(loss.item())
    after = nn.functional.cross_entropy(model(images.inputs), images.labels).item()
    assert result.running == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.loss == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("init", ["target-in", "source-out", "he", "torch"])
def test_initial_weights_are_the_seeds(study, images, small, init):
    before = torch.random.get_rng_state()
    one, same, other = (study.dag_training.start(small, init, s, images) for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.readout.weight, same.readout.weight)
    assert not torch.equal(one.readout.weight, other.readout.weight)


# What the records say -----------------------------------------------------------------------


def test_the_vertex_between_points_of_the_grid(study):
    k = np.arange(-3.0, 4.0)
    found = study.correlation_report.parabola(k, np.stack([(k - 1.25) ** 2, (k + 0.4) ** 2]))
    assert found == pytest.approx([1.25, -0.4])


def test_of_equal_losses_the_larger_rate(study):
    flat = np.array([[2.0, 1.0, 1.0, 2.0], [np.inf, 2.0, 1.0, np.inf]])
    found = study.correlation_report.parabola(np.arange(4.0), flat)
    assert found == pytest.approx([1.5, 2.0])  # the vertex; no neighbours to make one of


def test_within_one_standard_error_and_the_edge(study):
    k = np.arange(4.0)
    losses = np.array([[1.2, 1.0, 1.02, 3.0], [1.2, 1.0, 0.99, 3.0], [1.2, 1.0, 1.0, 1.0]])
    assert study.correlation_report.one_error(k, losses) == 2.0
    assert study.correlation_report.edge(k, losses) == 2.0
    assert math.isnan(study.correlation_report.edge(k, losses + 9))


def test_a_perfect_rule_and_a_useless_one(study):
    r = study.correlation_report
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    drawn = (3 + x)[:, None] + 0.01 * rng.normal(size=(30, 50))
    perfect = r.with_interval(x, 3 + x, drawn)
    assert perfect["pearson"][0] == pytest.approx(1)
    assert perfect["slope"][0] == pytest.approx(1)
    assert perfect["error"][0] == pytest.approx(0, abs=1e-9)
    assert perfect["pearson"][1] > 0.99
    assert r.reliability(3 + x, drawn, 5) > 0.99
    noise = rng.normal(size=(30, 50))
    useless = r.with_interval(x, noise[:, 0], noise)
    assert useless["pearson"][1] < 0 < useless["pearson"][2]
    assert r.reliability(noise[:, 0], noise, 5) < 0.4


def test_predictions_are_exponents(study):
    t, r = study.dag_training, study.correlation_report
    base = t.Network("cnn", "2", width=8, kernel=3)
    deep = replace(base, dag=t.chain(4), kernel=5)
    for rule in ("sum", "mean"):
        change = r.predictions(deep)[rule] - r.predictions(base)[rule]
        assert 2 ** (change / 2) == pytest.approx((6 / 3) ** -1.5 * 3 / 5)


def test_a_family_is_analysed(study, small):
    r, t = study.correlation_report, study.dag_training
    rng = np.random.default_rng(0)
    nets = []
    for hidden in (1, 2, 4, 8):
        network = t.Network("mlp", t.chain(hidden), width=8)
        top = r.predictions(network)["sum"]
        k = np.arange(-20.0, 4.0)
        losses = np.minimum(1 + 0.02 * (k - top) ** 2 + 1e-4 * rng.normal(size=(3, 24)), r.CHANCE)
        nets.append(r.Measured(network, k, losses, losses))
    found = r.analyse(nets, 3, np.ones(4), np.full(4, 0.5))
    assert found["rules"]["sum"]["pearson"][0] > 0.99
    assert found["rules"]["sum"]["slope"][0] == pytest.approx(1, abs=0.05)
    low, high = found["exponents"]["ΣL³"][1:]
    assert low - 0.05 < -0.5 < high + 0.05
    assert "| a family | 4 | sum |" in r.table({"a family": found})
    assert "ΣL³ -0." in r.details({"a family": found})


def test_features_grow_by_identities(study, images):
    t, r = study.dag_training, study.correlation_report
    growth = {
        dag: r.feature_growth(t.Network("mlp", dag, width=256), "target-in", images)
        for dag in ("1_02", "1_11", "2_02")
    }
    assert growth["1_11"] == pytest.approx(4)  # twice the same, and no weights to divide
    assert growth["1_02"] == pytest.approx(1, rel=0.3)
    assert growth["2_02"] == pytest.approx(1, rel=0.4)


def test_the_readouts_share_is_that_of_its_weights(study, images):
    t, r = study.dag_training, study.correlation_report
    network = t.Network("mlp", "2_02", width=64)
    small, large = (r.readout_share(network, i, images) for i in ("target-in", "target-out"))
    assert 0 < large < small < 1


def test_halves_share_no_seed(study):
    found = study.ranking_report.halves(4)
    assert len(found) == 6
    assert all(sorted(one + two) == [0, 1, 2, 3] for one, two in found)


def test_agreement_tells_noise_from_another_ranking(study):
    rng = np.random.default_rng(0)
    truth = np.linspace(0, 1, 30)[:, None]
    a, b = (truth + 0.05 * rng.normal(size=(30, 4)) for _ in range(2))

    def agreement(a, b):
        return study.ranking_report.agreements(a, b)[0].mean()

    assert agreement(a, a) < 0.99  # noise, although it is the same
    assert agreement(a, b) == pytest.approx(agreement(a, a), abs=0.1)
    assert agreement(a, -b) < -0.8


def cells(study, dags, accuracy):
    """Records as ranking.py writes them; `accuracy` of dag, protocol, rate and seed."""
    r = study.ranking
    shape = len(r.STEPS), r.SEEDS
    for i, dag in enumerate(dags):
        for protocol in r.PROTOCOLS:
            rows = [[accuracy(i, protocol, k, s) for s in range(shape[1])] for k in range(shape[0])]
            losses = [[None if v < 0.2 else 1 - v for v in row] for row in rows]
            yield {
                **{"kind": "cell", "dag": dag, "protocol": protocol},
                **{"accuracy": rows, "loss": losses},
            }


def test_a_ranking_is_analysed(study):
    rng = np.random.default_rng(0)

    def accuracy(i, protocol, rate, seed):
        if rate == 0:
            return 0.1
        better = 0.05 if protocol == "scaled, sum" else 0.0
        peak = 0.02 * (rate == (2 if protocol == "shared" else 1))
        return 0.5 + 0.01 * i + better + peak + 0.001 * rng.normal()

    dags = [f"dag {i}" for i in range(12)]
    records = list(cells(study, dags, accuracy))
    missing = [r for r in records if (r["dag"], r["protocol"]) != ("dag 3", "shared")]
    trained = study.ranking_report.arrange(missing, dags)
    assert trained.dags == [d for d in dags if d != "dag 3"]
    found = study.ranking_report.analyse(study.ranking_report.arrange(records, dags))
    shared, scaled = (found["protocols"][p] for p in ("shared", "scaled, sum"))
    assert shared["most often best"] == 2
    assert scaled["gain over shared"]["mean"][0] == pytest.approx(0.07, abs=0.005)
    assert scaled["gain over shared, both tuned"]["mean"][0] == pytest.approx(0.05, abs=0.005)
    assert scaled["gain over shared"]["gain"] == 12
    assert scaled["with shared"][0] > 0.9
    assert "| scaled, sum |" in study.ranking_report.tables(found)


def test_the_base_rate_is_the_larger_of_equals(study):
    exponents = study.ranking.BASE_EXPONENTS
    losses = [[2.0]] * len(exponents)
    losses[3] = losses[4] = [1.0]
    losses[5] = [None]
    assert study.ranking.base_exponent({"running": losses}) == exponents[4]


# NAS-Bench-201 ------------------------------------------------------------------------------


def cell(text):
    """A cell from its six operations: n none, s skip, 1, 3, p pool."""
    names = dict(
        zip(
            "ns13p",
            ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
            strict=True,
        )
    )
    ops = [names[c] for c in text]
    return (tuple(ops[:1]), tuple(ops[1:3]), tuple(ops[3:]))


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("31nn13", "13nn31", True),  # nodes 1 and 2 change places
        ("s3nn1n", "nnn1nn", True),  # node 2 leads nowhere
        ("3nsnn1", "3nnn1n", True),  # an identity contracts
        ("3nnnnn", "nnnnnn", True),  # nothing reaches the end
        ("313131", "313113", False),
    ],
)
def test_cells_that_compute_the_same(study, one, two, same):
    a, b = (study.nasbench201.function_of(cell(text)) for text in (one, two))
    assert (a == b) is same


@pytest.mark.parametrize("text", ["333333", "3sp131", "s1nn3n", "n3nns3"])
def test_moments_of_a_cell_by_listing_its_paths(study, text):
    groups = cell(text)
    depths = []

    def walk(node, depth):
        if node == 3:
            depths.append(depth)
        for target in range(node + 1, 4):
            op = groups[target - 1][node]
            if op != "none":
                walk(target, depth + op.startswith("nor"))

    walk(0, 0)
    found = study.nasbench201.cell_moments(groups, "sum")
    assert (found.count, found.first, found.third) == (
        len(depths),
        sum(depths),
        sum(d**3 for d in depths),
    )
    assert study.nasbench201.cell_moments(groups, "mean").count == 1
    assert study.nasbench201.depth_of(groups) == max(depths)


def test_concordance_within_strata_only(study):
    n = study.nasbench201
    keys = np.array([[0], [0], [0], [1], [1], [1], [2]])
    parts = n.strata(keys)
    assert [p.tolist() for p in parts] == [[0, 1, 2], [3, 4, 5]]
    x = np.array([1.0, 2, 3, 30, 20, 10, 0])
    y = np.array([1.0, 2, 3, 1, 2, 2, 9])
    assert n.concordance(x, y, parts).tolist() == [[3, 3], [-2, 2]]
    assert n.within(x, y, parts, seed=0) is None  # too few pairs


def test_a_logarithm_beyond_floats(study):
    assert study.nasbench201.log_of(10**400) == pytest.approx(400 * math.log(10))
