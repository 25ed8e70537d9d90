"""BAIT against dense inverses of every set it could have chosen, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty.pool import Pool
from uncertainty.strategies import bait, select


def make_pool(n=60, d=5, classes=3, labelled=8, seed=0, **changes):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    log_probs = torch.from_numpy(2 * rng.normal(size=(n, 1, classes))).float().log_softmax(-1)
    none = np.zeros(n, dtype=bool)
    is_labelled = none.copy()
    is_labelled[rng.permutation(n)[:labelled]] = True
    return replace(Pool(x, log_probs, is_labelled, none, none), **changes)


def mask(n, rows):
    out = np.zeros(n, dtype=bool)
    out[rows] = True
    return out


def by_hand(pool):
    """sqrt(u) [8 h; 1] of every row, float64."""
    p = pool.log_probs.double().exp().mean(1).amax(1).numpy()
    x = np.concatenate([8 * pool.features.astype(np.float64), np.ones((pool.size, 1))], axis=1)
    return np.sqrt(p * (1 - p))[:, None] * x


def dense(v, precision, everything, free, k):
    """Forward by 2 k and backward to k, with a fresh inverse for every set looked at."""

    def trace(rows):
        return np.trace(np.linalg.inv(precision + v[rows].T @ v[rows]) @ everything)

    chosen, shares = [], []
    for _ in range(min(2 * k, len(free))):
        after = {row: trace([*chosen, row]) for row in free if row not in chosen}
        best = min(after, key=after.get)
        shares.append((trace(chosen) - after[best]) / trace([]))
        chosen.append(best)
    gain = dict(zip(chosen, shares, strict=True))
    while len(chosen) > k:
        without = {row: trace([one for one in chosen if one != row]) for row in chosen}
        chosen.remove(min(without, key=without.get))
    return chosen, [gain[row] for row in chosen]


@pytest.mark.parametrize("seed", range(4))
def test_choices_are_those_of_dense_inverses(seed):
    pool = make_pool(seed=seed, pending=mask(60, [3, 5]), excluded=mask(60, range(50, 55)))
    v = by_hand(pool)
    inside, given = ~pool.excluded, (pool.labelled | pool.pending) & ~pool.excluded
    precision = np.eye(6) + v[given].T @ v[given]
    everything = v[inside].T @ v[inside] / inside.sum()
    expected, shares = dense(v, precision, everything, np.flatnonzero(pool.selectable).tolist(), 7)
    out = select("bait", pool, 7, seed=seed)
    assert out.indices.tolist() == expected
    assert out.gain == pytest.approx(shares, rel=1e-3)


def test_predictions_with_several_samples_are_averaged_first():
    several = torch.from_numpy(np.random.default_rng(1).normal(size=(60, 4, 3))).float().log_softmax(-1)
    averaged = several.double().exp().mean(1, keepdim=True).log()
    a, b = (select("bait", make_pool(log_probs=given), 10, seed=0) for given in (several, averaged))
    assert a.indices.tolist() == b.indices.tolist()


def test_numbers_kept_up_to_date_agree_with_a_fresh_inverse_after_many_changes():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(400, 20)).astype(np.float32)
    fishers = bait.Fishers(v, np.eye(20), v.T.astype(np.float64) @ v / 400)
    state = bait._Precision(fishers)
    for row in range(150):
        state.change(row, 1, slice(None))
    for row in range(100):
        state.change(row, -1, slice(None))
    kept = v[100:150].astype(np.float64)
    inverse = np.linalg.inv(np.eye(20) + kept.T @ kept)
    assert state.a == pytest.approx(np.einsum("nd,de,ne->n", v, inverse, v), rel=1e-3)
    middle = inverse @ fishers.pool @ inverse
    assert state.t == pytest.approx(np.einsum("nd,de,ne->n", v, middle, v), rel=1e-3)


def test_a_direction_that_is_uncertain_and_frequent_is_asked_before_one_known_or_rare():
    # 40 rows along e0, unsure and already labelled; 40 along e1, unsure; 5 along e2, unsure; 40 along e3, sure.
    which = np.repeat([0, 1, 2, 3], [40, 40, 5, 40])
    logits = torch.zeros(125, 1, 2)
    logits[which == 3, :, 0] = 12.0
    pool = make_pool(n=125, log_probs=logits.log_softmax(-1), features=np.eye(5, dtype=np.float32)[which])
    pool = replace(pool, labelled=mask(125, range(20)))
    assert which[select("bait", pool, 1, seed=0).indices].tolist() == [1]
    assert 3 not in which[select("bait", pool, 30, seed=0).indices]


def test_large_pools_are_thinned_and_still_supply_k(monkeypatch):
    monkeypatch.setattr(bait, "CANDIDATES", 20)
    monkeypatch.setattr(bait, "_PER_CHOICE", 1)
    for k in (5, 30):
        assert len(set(select("bait", make_pool(), k, seed=0).indices.tolist())) == k


def test_a_model_sure_of_everything_still_gives_k_rows():
    certain = torch.full((60, 1, 3), -torch.inf)
    certain[..., 0] = 0
    out = select("bait", make_pool(log_probs=certain), 20, seed=0)
    assert len(set(out.indices.tolist())) == 20 and (out.gain == 0).all()
