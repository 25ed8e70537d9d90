"""BADGE against gradients that are built, in float64, and against counted draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty.pool import Pool
from uncertainty.strategies import badge, select


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_pool(n=120, d=6, classes=4, samples=1, labelled=10, seed=0, **changes):
    rng = np.random.default_rng(seed)
    log_probs = torch.from_numpy(2 * rng.normal(size=(n, samples, classes))).float().log_softmax(-1)
    none = np.zeros(n, dtype=bool)
    is_labelled = none.copy()
    is_labelled[rng.permutation(n)[:labelled]] = True
    return replace(Pool(unit(rng.normal(size=(n, d))), log_probs, is_labelled, none, none), **changes)


def gradients(pool, rows, likeliest=None):
    """[n, C * D] float64: gradient of the loss by the weights of a linear head, at the likeliest class."""
    probs = pool.log_probs[torch.from_numpy(rows)].double().exp().mean(1).numpy()
    if likeliest is not None:
        probs[probs < np.sort(probs, 1)[:, [-likeliest]]] = 0
        probs /= probs.sum(1, keepdims=True)
    residual = probs - np.eye(probs.shape[1])[probs.argmax(1)]
    return (residual[:, :, None] * pool.features[rows].astype(np.float64)[:, None, :]).reshape(len(rows), -1)


def plus_plus(g, k, rng):
    """k-means++ by loops over built gradients: the longest first, then in proportion to squared distance."""
    chosen, chance = [int((g**2).sum(1).argmax())], [1.0]
    while len(chosen) < k:
        squared = np.array([min(((one - g[row]) ** 2).sum() for row in chosen) for one in g])
        squared[chosen] = 0
        row = int(np.searchsorted(np.cumsum(squared), rng.random() * squared.sum(), side="right"))
        chosen.append(row)
        chance.append(squared[row] / squared.sum())
    return chosen, chance


@pytest.mark.parametrize(("classes", "samples", "likeliest"), [(4, 1, None), (2, 3, None), (150, 1, 10)])
@pytest.mark.parametrize("seed", [0, 1])
def test_factorised_seeding_draws_what_built_gradients_draw(seed, classes, samples, likeliest):
    pool = make_pool(classes=classes, samples=samples, seed=seed)
    rows = np.arange(120)
    expected, chance = plus_plus(gradients(pool, rows, likeliest), 25, np.random.default_rng(9))
    found, squared, probability = badge.seeds(pool.features, badge._Residuals(pool, rows), 25, np.random.default_rng(9))
    assert found == expected
    assert probability == pytest.approx(chance, rel=1e-4)
    g = gradients(pool, rows, likeliest)
    assert squared[0] == pytest.approx((g[found[0]] ** 2).sum(), rel=1e-5)
    assert squared[5] == pytest.approx(min(((g[found[5]] - g[row]) ** 2).sum() for row in found[:5]), rel=1e-4)


def test_the_stated_chance_is_how_often_a_row_is_drawn():
    pool = make_pool(n=6, labelled=0)
    rows = np.arange(6)
    residuals = badge._Residuals(pool, rows)
    g = gradients(pool, rows)
    first = int((g**2).sum(1).argmax())
    chance = ((g - g[first]) ** 2).sum(1) / ((g - g[first]) ** 2).sum()
    count = np.zeros(6)
    for seed in range(1500):
        chosen, _, stated = badge.seeds(pool.features, residuals, 2, np.random.default_rng(seed))
        assert chosen[0] == first
        assert stated[1] == pytest.approx(chance[chosen[1]], rel=1e-4)
        count[chosen[1]] += 1
    # Five standard deviations of a binomial count.
    assert (np.abs(count - 1500 * chance) <= 5 * np.sqrt(1500 * chance * (1 - chance))).all()


def test_a_longer_gradient_leads_even_where_both_models_are_almost_certain():
    log_probs = torch.full((120, 1, 4), -60.0, dtype=torch.float64)
    log_probs[:, 0, 0] = 0
    log_probs[7, 0, 1] = -25.0  # 1e-11: nothing beside one in float32
    pool = make_pool(labelled=0, log_probs=log_probs)
    out = select("badge", pool, 1, seed=0)
    assert out.indices.tolist() == [7]
    assert out.gain[0] == pytest.approx(2 * np.exp(-50.0), rel=1e-3)


def test_copies_follow_when_no_other_gradient_is_left():
    x, log_probs = make_pool().features.copy(), make_pool().log_probs.clone()
    x[5:], log_probs[5:] = x[0], log_probs[0]
    out = select("badge", make_pool(labelled=0, features=x, log_probs=log_probs), 20, seed=0)
    assert sorted(min(row, 5) % 5 for row in out.indices[:5]) == [0, 1, 2, 3, 4]
    assert out.reason == ("uncertain",) * 5 + ("explore",) * 15
    assert out.propensity[5:] == pytest.approx(1 / (115 - np.arange(15)))


def test_thinning_to_candidates_is_part_of_the_chance(monkeypatch):
    monkeypatch.setattr(badge, "CANDIDATES", 11)
    pool = make_pool()
    out = select("badge", pool, 11, seed=2)
    assert len(out) == 11 and pool.selectable[out.indices].all()
    assert out.propensity[0] == pytest.approx(0.1)
    assert (out.propensity <= 0.1 + 1e-12).all()
    assert out.propensity[-1] == pytest.approx(0.1)  # the only candidate left


def test_a_model_sure_of_everything_still_gives_k_rows():
    certain = torch.full((120, 1, 4), -torch.inf)
    certain[..., 2] = 0
    out = select("badge", make_pool(log_probs=certain), 30, seed=0)
    assert len(set(out.indices.tolist())) == 30 and (out.gain == 0).all() and (out.propensity > 0).all()
