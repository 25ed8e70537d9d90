"""K-center greedy against the rule as published, in float64 over all pairs."""

from dataclasses import replace

import numpy as np
import pytest

from uncertainty.pool import Pool
from uncertainty.strategies import core_set, select


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_pool(n=300, d=8, labelled=20, seed=0, **changes):
    rng = np.random.default_rng(seed)
    none = np.zeros(n, dtype=bool)
    is_labelled = none.copy()
    is_labelled[rng.permutation(n)[:labelled]] = True
    return replace(Pool(unit(rng.normal(size=(n, d))), None, is_labelled, none, none), **changes)


def mask(n, rows):
    out = np.zeros(n, dtype=bool)
    out[rows] = True
    return out


def farthest_first(pool, k, first=None):
    """The published rule: all distances as float64, one argmax a choice."""
    x = pool.features.astype(np.float64)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    centres = np.flatnonzero((pool.labelled | pool.pending) & ~pool.excluded).tolist()
    chosen, gains = ([], []) if first is None else ([first], [2.0])
    while len(chosen) < k:
        nearest = distance[:, centres + chosen].min(1)
        nearest[~pool.selectable] = -1
        chosen.append(int(nearest.argmax()))
        gains.append(float(nearest.max()))
    return chosen, np.array(gains) / 2


@pytest.mark.parametrize("front", [5, 40, 10_000], ids=["tiny front", "small front", "whole pool in front"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_choices_are_those_of_the_greedy_rule_over_all_pairs(seed, front, monkeypatch):
    monkeypatch.setattr(core_set, "FRONT", front)
    monkeypatch.setattr(core_set, "_FEW", 3)
    monkeypatch.setattr(core_set, "_ROWS_AT_ONCE", 64)
    monkeypatch.setattr(core_set, "_CENTRES_AT_ONCE", 7)
    pool = make_pool(seed=seed, pending=mask(300, range(10)), excluded=mask(300, range(250, 290)))
    rows, gain = farthest_first(pool, 60)
    out = select("k_center", pool, 60, seed=seed)
    assert out.indices.tolist() == rows
    assert out.gain == pytest.approx(gain, abs=1e-6)
    assert (out.propensity == 1).all()


def test_half_precision_features_give_the_rule_of_their_own_values():
    pool = make_pool(features=make_pool().features.astype(np.float16))
    rows, _ = farthest_first(replace(pool, features=unit(pool.features.astype(np.float64))), 15)
    assert select("k_center", pool, 15, seed=0).indices.tolist() == rows


def test_without_any_label_the_first_is_drawn_and_the_rest_follow_from_it():
    pool = make_pool(n=40, labelled=0)
    firsts = set()
    for seed in range(30):
        out = select("k_center", pool, 10, seed=seed)
        firsts.add(int(out.indices[0]))
        assert out.indices.tolist() == farthest_first(pool, 10, int(out.indices[0]))[0]
        assert out.propensity.tolist() == [1 / 40] + 9 * [1]
    assert len(firsts) > 15  # 21 expected of 30 draws


def test_gains_are_shares_of_the_diameter_and_never_grow():
    gain = select("k_center", make_pool(labelled=0), 100, seed=3).gain
    assert gain[0] == 1
    assert (np.diff(gain) <= 1e-6).all() and (gain >= 0).all()


def test_a_copy_of_a_labelled_row_comes_last():
    x = make_pool().features.copy()
    x[100:150] = x[0]
    pool = replace(make_pool(labelled=0, features=x), labelled=mask(300, [0]))
    out = select("k_center", pool, 299, seed=0).indices
    assert sorted(out[-50:]) == list(range(100, 150))


def test_a_pool_too_large_for_all_pairs_is_thinned_and_still_supplies_k(monkeypatch):
    pool = make_pool()
    monkeypatch.setattr(core_set, "PAIRS", 1000)  # (20 labelled + 10 chosen) * 33 candidates
    out = select("k_center", pool, 10, seed=0)
    assert len(out) == 10 and pool.selectable[out.indices].all()
    monkeypatch.setattr(core_set, "PAIRS", 1)
    out = select("k_center", make_pool(labelled=0), 10, seed=0)
    assert len(out) == 10
    assert out.propensity[0] == 1 / 300  # drawn from the whole pool, by way of what was kept of it
