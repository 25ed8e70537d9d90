"""What lies around a strategy: the dial, places for rare classes, the veto with its probe."""

import numpy as np
import pytest
import torch

from uncertainty.errors import PoolError
from uncertainty.layers import Layers, outlyingness, select_in_layers
from uncertainty.strategies import Pool

NOTHING = Layers(explore=0, quota=0, veto=0)


def make_pool(n=400, junk=0, seed=0, rare=0.0, **changes):
    """Three tight clusters, `junk` rows in directions of their own, and predictions of which a share is "rare"."""
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[:3]
    x = centres[np.arange(n) % 3] + 0.05 * rng.normal(size=(n, 8))
    x[:junk] = rng.normal(size=(junk, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    logits = 0.5 * rng.normal(size=(n, 2))
    logits[:, 0] += 3
    logits[rng.random(n) < rare] += [-6, 0]
    values = {
        "features": x.astype(np.float32),
        "log_probs": torch.from_numpy(logits).log_softmax(-1)[:, None, :],
        "labelled": np.zeros(n, bool),
        "pending": np.zeros(n, bool),
        "excluded": np.zeros(n, bool),
        "labels": np.full(n, -1),
    }
    return Pool(**(values | changes))


@pytest.mark.parametrize("strategy", ["random", "margin", "uherding", "power_margin"])
def test_without_layers_the_strategy_is_alone(strategy):
    from uncertainty.strategies import select

    pool = make_pool()
    layered = select_in_layers(strategy, pool, 20, seed=3, layers=NOTHING)
    np.testing.assert_array_equal(layered.indices, select(strategy, pool, 20, seed=3).indices)


@pytest.mark.parametrize("strategy", ["margin", "uherding", "maxherding", "power_entropy"])
def test_the_dial_means_the_same_for_every_strategy(strategy):
    pool = make_pool()
    for share in (0.0, 0.25, 0.5, 1.0):
        out = select_in_layers(strategy, pool, 40, seed=0, layers=Layers(explore=share, quota=0, veto=0))
        assert len(out) == 40 and out.reason.count("explore") == round(40 * share)
        assert (out.propensity[[r == "explore" for r in out.reason]] < 1).all()


def test_outlyingness_equals_the_mean_distance_to_the_nearest_twenty():
    pool = make_pool(n=60, junk=5)
    cosine = pool.features.astype(np.float64) @ pool.features.T.astype(np.float64)
    np.fill_diagonal(cosine, -np.inf)
    expected = 1 - np.sort(cosine, axis=1)[:, -20:].mean(axis=1)
    np.testing.assert_allclose(outlyingness(pool, seed=0), expected, atol=1e-5)


def test_outlyingness_on_a_sample_keeps_the_order_of_densities(monkeypatch):
    from uncertainty import layers

    pool = make_pool(n=600, junk=6)
    monkeypatch.setattr(layers, "_ANCHORS", 200)
    far = outlyingness(pool, seed=0)
    assert set(np.argsort(-far)[:6]) == set(range(6))


def test_junk_is_vetoed_and_asked_for_once_a_batch_as_a_probe():
    pool = make_pool(n=400, junk=4)
    out = select_in_layers("maxherding", pool, 40, seed=0, layers=Layers(explore=0, quota=0, veto=0.01))
    asked = [row for row in out.indices.tolist() if row < 4]
    assert len(out) == 40 and len(asked) == 1
    assert out.reason[out.indices.tolist().index(asked[0])] == "probe" and out.reason.count("probe") == 1
    without = select_in_layers("maxherding", pool, 40, seed=0, layers=NOTHING)
    assert sum(row < 4 for row in without.indices) == 4  # what the veto is for: coverage runs after junk


def test_a_veto_of_everything_left_is_no_veto():
    labelled = np.ones(400, bool)
    labelled[:3] = False
    pool = make_pool(junk=3, labelled=labelled)
    out = select_in_layers("margin", pool, 3, seed=0, layers=Layers(explore=0, quota=0, veto=0.01))
    assert sorted(out.indices.tolist()) == [0, 1, 2]


def test_probes_come_first_as_often_as_their_share():
    firsts = 0
    for labels in range(200):
        labelled = np.zeros(400, bool)
        labelled[300 : 300 + labels % 100] = True
        pool = make_pool(junk=4, labelled=labelled)
        out = select_in_layers("margin", pool, 10, seed=labels, layers=Layers(explore=0, quota=0, veto=0.01))
        firsts += out.reason[0] == "probe"
    assert 8 <= firsts <= 35  # 20 expected


def test_a_rare_predicted_class_gets_places_of_its_own_and_more_while_it_has_few_labels():
    labelled, labels = np.zeros(1000, bool), np.full(1000, -1)
    labelled[:50], labels[:50] = True, 0  # class 1 has no label yet
    pool = make_pool(n=1000, rare=0.03, labelled=labelled, labels=labels)
    rare = pool.likeliest_class(np.arange(1000)) == 1
    with_quota = select_in_layers("uherding", pool, 40, seed=0, layers=Layers(explore=0, quota=0.5, veto=0))
    # 20 places in proportion to 1/sqrt(51) and 1/sqrt(1): 17.5 for the rare class.
    assert rare[with_quota.indices].sum() >= 17
    assert len(with_quota) == len(set(with_quota.indices.tolist())) == 40


def test_balanced_predictions_leave_the_strategy_alone():
    pool = make_pool(rare=0.5)
    quota = select_in_layers("margin", pool, 20, seed=0, layers=Layers(explore=0, quota=0.5, veto=0))
    np.testing.assert_array_equal(quota.indices, select_in_layers("margin", pool, 20, seed=0, layers=NOTHING).indices)


@pytest.mark.parametrize("strategy", ["margin", "uherding", "random", "power_margin"])
def test_layers_keep_every_promise_of_a_strategy(strategy):
    rng = np.random.default_rng(1)
    n = 400
    labelled = rng.random(n) < 0.1
    pending = ~labelled & (rng.random(n) < 0.05)
    groups = np.where(rng.random(n) < 0.5, rng.integers(0, 40, n), -1)
    pool = make_pool(junk=8, rare=0.03, labelled=labelled, pending=pending, excluded=rng.random(n) < 0.1, groups=groups)
    layers = Layers(explore=0.2, quota=0.3, veto=0.02)
    out = select_in_layers(strategy, pool, 60, seed=0, layers=layers)
    assert pool.selectable[out.indices].all()
    grouped = groups[out.indices][groups[out.indices] >= 0]
    assert len(set(grouped)) == len(grouped) and not set(grouped) & set(groups[pending])
    again = select_in_layers(strategy, pool, 60, seed=0, layers=layers)
    np.testing.assert_array_equal(out.indices, again.indices)


def test_a_percentage_is_refused():
    with pytest.raises(PoolError, match="between 0 and 1"):
        Layers(explore=10)


def test_random_places_lie_one_in_each_stretch_and_fall_everywhere():
    from uncertainty.selection import spread

    hits = np.zeros(11)
    for seed in range(400):
        mask = spread(4, 11, np.random.default_rng(seed))
        assert mask.sum() == 4
        hits += mask
    assert hits.min() > 60  # stretches of two or three places: each is hit in a third to a half of all draws
