"""Near-duplicate groups against the full matrix of cosines."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from uncertainty import duplicates
from uncertainty.duplicates import near_duplicate_groups
from uncertainty.errors import PoolError, ShapeError


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pool_with_copies(n, copies, d=24, seed=0):
    rng = np.random.default_rng(seed)
    x = unit(rng.normal(size=(n, d)))
    near = unit(x[rng.integers(0, n, copies)] + 0.01 * rng.normal(size=(copies, d)))
    return np.concatenate([x, near]).astype(np.float32)[rng.permutation(n + copies)]


def partition(groups):
    alone = {frozenset([i]) for i in np.flatnonzero(groups < 0)}
    return alone | {frozenset(np.flatnonzero(groups == g)) for g in range(groups.max() + 1)}


@pytest.mark.parametrize("tile", [8, 50, 512])
@pytest.mark.parametrize("d", [6, 40])
def test_groups_are_the_connected_parts_of_the_full_matrix(tile, d, monkeypatch):
    monkeypatch.setattr(duplicates, "_TILE", tile)
    x = pool_with_copies(301, 60, d)
    parts = connected_components(x @ x.T > 0.99)[1]
    assert partition(near_duplicate_groups(x, 0.99)) == partition(parts)


def test_folding_edges_into_a_forest_does_not_change_the_groups(monkeypatch):
    x = pool_with_copies(50, 200)
    expected = near_duplicate_groups(x)
    monkeypatch.setattr(duplicates, "_MOST_EDGES", 0)
    monkeypatch.setattr(duplicates, "_TILE", 8)
    assert (near_duplicate_groups(x) == expected).all()


def test_groups_are_numbered_by_their_first_row_and_rows_alone_are_minus_one():
    a, b, c = np.eye(3)
    assert near_duplicate_groups(np.stack([a, b, c, b, a])).tolist() == [0, 1, -1, 1, 0]


def test_half_precision_copies_are_found():
    x = pool_with_copies(100, 20).astype(np.float16)
    assert (near_duplicate_groups(x) == near_duplicate_groups(x.astype(np.float32))).all()


def test_rows_of_zeros_are_like_no_other():
    assert near_duplicate_groups(np.zeros((5, 4), np.float32)).tolist() == [-1] * 5


def test_a_pool_of_one_image_is_one_group():
    assert set(near_duplicate_groups(np.tile(np.eye(1, 8, dtype=np.float32), (2000, 1)))) == {0}


def test_a_chain_is_cut_so_that_it_cannot_swallow_the_pool():
    angle = np.linspace(0, np.pi, 200)  # each frame is like the next, the last is the opposite of the first
    film = np.stack([np.cos(angle), np.sin(angle)], 1)
    groups = near_duplicate_groups(film)
    members = [film[groups == g] for g in range(groups.max() + 1)]
    assert len(members) > 3
    # Within a ball of cosine .92 around one of them.
    assert all((m @ m.T).max(0).min() >= 0.92 and (m @ m.T).min(1).max() >= 0.92 for m in members)


@pytest.mark.parametrize("n", [0, 1])
def test_a_pool_too_small_for_pairs_has_no_groups(n):
    assert near_duplicate_groups(np.ones((n, 3), np.float32)).tolist() == [-1] * n


def test_features_are_left_untouched():
    x = pool_with_copies(60, 20)
    before = x.copy()
    near_duplicate_groups(x)
    assert (x == before).all()


def test_nan_shape_and_threshold_are_refused():
    x = pool_with_copies(60, 20)
    x[7] = np.nan
    with pytest.raises(PoolError, match="row 7"):
        near_duplicate_groups(x)
    with pytest.raises(ShapeError, match=r"\[N, D\]"):
        near_duplicate_groups(np.ones(3))
    with pytest.raises(PoolError, match="between 0 and 1"):
        near_duplicate_groups(np.eye(3), 98)


def test_pairs_just_above_the_threshold_are_found_across_tiles(monkeypatch):
    monkeypatch.setattr(duplicates, "_TILE", 1)
    angle = (0.6 * np.arange(10)[:, None] + [0.0, np.arccos(0.9801)]).ravel()
    groups = near_duplicate_groups(np.stack([np.cos(angle), np.sin(angle)], 1))
    assert groups.tolist() == np.repeat(np.arange(10), 2).tolist()
