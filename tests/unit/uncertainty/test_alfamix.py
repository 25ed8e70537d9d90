"""ALFA-Mix against features that are mixed step by step, and on a pool whose flips are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uncertainty.pool import Pool
from uncertainty.strategies import alfamix, select


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def mask(n, rows):
    out = np.zeros(n, dtype=bool)
    out[rows] = True
    return out


def mixed(h, anchor, weight, bias, eps):
    """h + alpha * (z - h) with the paper's alpha = eps |z - h| g / |g| / (z - h), g by automatic differentiation."""
    h = torch.tensor(h, dtype=torch.float64, requires_grad=True)
    logits = h @ torch.from_numpy(weight) + torch.from_numpy(bias)
    torch.nn.functional.cross_entropy(logits[None], logits.argmax()[None]).backward()
    z = torch.from_numpy(anchor)
    towards = z - h.detach()
    alpha = eps * towards.norm() * h.grad / h.grad.norm() / towards
    return (h.detach() + alpha * towards).numpy()


@pytest.mark.parametrize("seed", range(5))
def test_the_class_flips_just_beyond_the_stated_share_and_not_just_before(seed):
    rng = np.random.default_rng(seed)
    h, anchors = unit(rng.normal(size=(20, 6))), unit(rng.normal(size=(3, 6))).astype(np.float64)
    weight, bias = rng.normal(size=(6, 4)), rng.normal(size=4)
    share = alfamix.flip_shares(torch.from_numpy(h), weight, bias, anchors)
    for row in range(20):
        before = (h[row].astype(np.float64) @ weight + bias).argmax()

        def flips(eps, row=row, before=before):
            mixes = [mixed(h[row].astype(np.float64), anchor, weight, bias, eps) for anchor in anchors]
            return any((mix @ weight + bias).argmax() != before for mix in mixes)

        assert np.isfinite(share[row])
        assert flips(1.001 * share[row] + 1e-6)
        assert not flips(0.999 * share[row] - 1e-6)


def test_a_head_that_tells_nothing_apart_flips_nothing():
    h = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(4, 3))))
    share = alfamix.flip_shares(h, np.zeros((3, 2)), np.array([1.0, 0.0]), np.eye(3)[:2])
    assert np.isinf(share).all()


def test_a_sure_prediction_still_has_a_direction():
    h = torch.from_numpy(unit(np.array([[1.0, 0.1], [1.0, 0.9]])))
    share = alfamix.flip_shares(h, 200 * np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2), np.eye(2))
    # The boundary is the diagonal: (h0 - h1) / sqrt(2) away, and the anchor of the other class is the farthest.
    x = h.double().numpy()
    expected = (x[:, 0] - x[:, 1]) / np.sqrt(2) / np.linalg.norm(x - [0.0, 1.0], axis=1)
    assert share == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def on_a_circle(monkeypatch):
    """Rows at angles of 0..90 degrees, classes told apart at 45, labels at both ends."""
    degrees = np.concatenate([[0.0, 90.0], np.linspace(1, 89, 400)])
    angle = np.deg2rad(degrees)
    none = np.zeros(402, dtype=bool)
    labels = np.full(402, -1)
    labels[:2] = 0, 1
    x = unit(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    head = SimpleNamespace(weight=10 * np.eye(2), bias=np.zeros(2))
    monkeypatch.setattr(alfamix, "posterior_of", lambda _: head)
    return degrees, Pool(x, None, mask(402, [0, 1]), none, none, labels=labels)


def test_rows_next_to_the_boundary_flip_and_are_spread_over_it(on_a_circle):
    degrees, pool = on_a_circle
    out = select("alfa_mix", pool, 6, seed=0)
    chosen = degrees[out.indices]
    # sin(45 - a) <= 0.2 * 2 * sin((90 - a) / 2) on the side of class 0, and its mirror image: within 9.4 degrees.
    assert (np.abs(chosen - 45) < 9.5).all()
    assert np.ptp(chosen) > 9  # clustered, not the six nearest, which lie within 1.4 degrees
    assert ((out.gain > 0.79) & (out.gain <= 1)).all()


def test_with_fewer_flips_than_asked_for_those_nearest_to_one_follow(on_a_circle, monkeypatch):
    degrees, pool = on_a_circle
    monkeypatch.setattr(alfamix, "REACH", 0.001)
    out = select("alfa_mix", pool, 20, seed=0)
    nearest = np.argsort(np.abs(degrees - 45))[:20]
    assert sorted(out.indices) == sorted(nearest)
    assert sorted(select("alfa_mix", pool, 400, seed=0).indices) == list(range(2, 402))


def test_many_flips_are_thinned_before_they_are_clustered(on_a_circle, monkeypatch):
    _, pool = on_a_circle
    monkeypatch.setattr(alfamix, "CANDIDATES", 12)
    monkeypatch.setattr(alfamix, "_PER_CHOICE", 2)
    assert len(set(select("alfa_mix", pool, 10, seed=0).indices.tolist())) == 10


def test_copies_are_handed_out_when_nothing_else_is_left(on_a_circle):
    _, pool = on_a_circle
    x = pool.features.copy()
    x[2:] = x[200]
    assert len(set(select("alfa_mix", replace(pool, features=x), 10, seed=0).indices.tolist())) == 10


def test_anchors_are_mean_features_of_the_labelled_classes(on_a_circle):
    _, pool = on_a_circle
    labels = pool.labels.copy()
    labels[2:5] = 1, 1, -1
    pool = replace(pool, labels=labels, labelled=mask(402, range(6)))
    expected = [pool.features[0], pool.features[[1, 2, 3]].astype(np.float64).mean(0)]
    assert alfamix._anchors(pool) == pytest.approx(np.array(expected))
