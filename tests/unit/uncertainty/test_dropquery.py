"""DropQuery: votes against naive float64, candidates, and cluster centres while no class is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty.pool import Pool
from uncertainty.predictives import posterior_of
from uncertainty.selection import select
from uncertainty.strategies import dropquery


def learned(pool, cluster, known, classes=2):
    """The pool with labels of some rows: the cluster modulo the number of classes."""
    labels = np.full(pool.size, -1)
    labels[known] = cluster[known] % classes
    return replace(pool, labels=labels, labelled=labels >= 0)


class Head:
    """Logits x.w of a weight [D, C]."""

    def __init__(self, weight):
        self.weight = weight

    def logits(self, features):
        return features @ torch.from_numpy(self.weight).float()


@pytest.mark.parametrize("block", [7, 4096])
def test_votes_are_counted_as_by_hand_whatever_the_blocks(clusters, block, monkeypatch):
    monkeypatch.setattr(dropquery, "_BLOCK", block)
    pool, _ = clusters([30, 20], spread=3.0)
    weight = np.random.default_rng(1).normal(size=(16, 4))
    rows = np.random.default_rng(2).permutation(50)[:40]
    out = dropquery.votes_against(pool, rows, Head(weight), np.random.default_rng(3))
    drawn = np.random.default_rng(3).random((40, 3, 16), dtype=np.float32)
    expected = []
    for i, row in enumerate(rows):
        x = pool.features[row].astype(np.float64)
        said = (x @ weight).argmax()
        expected.append(sum(((x * (drawn[i, vote] >= 0.75) * 4) @ weight).argmax() != said for vote in range(3)))
    assert out.tolist() == expected


def test_three_quarters_of_the_features_are_dropped_and_the_rest_scaled_up(clusters):
    seen = []

    class Spy(Head):
        def logits(self, features):
            seen.append(features)
            return super().logits(features)

    pool, _ = clusters([400], spread=3.0)
    dropquery.votes_against(pool, np.arange(400), Spy(np.eye(16)), np.random.default_rng(0))
    dropped = seen[0].reshape(400, 3, 16)
    kept = dropped != 0
    # 19,200 numbers: the standard deviation of the share is 0.003.
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.015)
    whole = torch.from_numpy(pool.features)[:, None].expand(-1, 3, -1)
    assert torch.allclose(dropped[kept], 4 * whole[kept])


@pytest.mark.parametrize(("wanted", "bar"), [(1, 2), (3, 2), (4, 1), (6, 1), (7, 0), (100, 0)])
def test_the_bar_is_a_majority_and_lowered_until_enough_rows_pass(wanted, bar):
    assert dropquery._bar(np.array([0, 0, 1, 1, 1, 2, 2, 3]), wanted) == bar


def test_rows_whose_prediction_survives_are_not_asked_for(clusters, monkeypatch):
    pool, cluster = clusters([100, 60, 40])
    pool = learned(pool, cluster, [0, 1, 100, 101, 160, 161])
    monkeypatch.setattr(dropquery, "votes_against", lambda pool, rows, *_: np.where(cluster[rows] == 0, 1, 2))
    out = select("dropquery", pool, 2, seed=0)
    assert cluster[out.indices].tolist() == [1, 2]
    assert out.gain == pytest.approx([2 / 3, 2 / 3])
    assert set(out.reason) == {"uncertain"}


def test_rows_between_two_classes_have_more_votes_against_them_than_rows_of_one(clusters):
    pool, cluster = clusters([100, 100])
    between = pool.features[:50] + pool.features[100:150]
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    none = np.zeros(250, dtype=bool)
    labels = np.r_[cluster, np.full(50, -1)]
    labels[20:100] = labels[120:200] = -1
    pool = Pool(np.r_[pool.features, between], None, labels >= 0, none, none, labels=labels)
    against = dropquery.votes_against(pool, np.arange(250), posterior_of(pool), np.random.default_rng(0))
    assert against[200:].mean() > against[:200].mean() + 0.2


def test_one_row_of_each_cluster_of_candidates_the_nearest_to_its_centre(clusters, monkeypatch):
    pool, cluster = clusters([60, 50, 40])
    pool = learned(pool, cluster, [0, 60, 110])
    monkeypatch.setattr(dropquery, "votes_against", lambda pool, rows, *_: np.full(len(rows), 3))
    expected = []
    for c in range(3):
        mine = np.flatnonzero((cluster == c) & ~pool.labelled)
        x = pool.features[mine].astype(np.float64)
        expected.append(int(mine[((x - x.mean(0)) ** 2).sum(1).argmin()]))
    assert select("dropquery", pool, 3, seed=0).indices.tolist() == expected


@pytest.mark.parametrize("labels", [None, np.r_[0, 0, np.full(118, -1)]], ids=["none", "one class"])
def test_without_two_classes_the_centres_of_clusters_are_chosen(clusters, labels):
    pool, cluster = clusters([50, 40, 30])
    known = np.zeros(120, bool) if labels is None else labels >= 0
    pool = replace(pool, labels=labels, labelled=known)
    out = select("dropquery", pool, 3, seed=0)
    assert cluster[out.indices].tolist() == [0, 1, 2]
    left = 50 - known.sum()
    assert out.gain == pytest.approx(np.array([left, 40, 30]) / (left + 70))
    assert set(out.reason) == {"diverse"}


def test_on_a_sample_a_full_batch_is_chosen(clusters, monkeypatch):
    monkeypatch.setattr(dropquery, "_VOTED", 30)
    monkeypatch.setattr(dropquery, "_PER_CHOICE", 1)
    pool, cluster = clusters([100, 60, 40])
    pool = learned(pool, cluster, [0, 1, 100, 101, 160, 161])
    assert len(set(select("dropquery", pool, 25, seed=0).indices.tolist())) == 25


def test_a_pool_held_back_by_a_pending_group_gives_nothing(clusters):
    pool, _ = clusters([10])
    pending = np.zeros(10, dtype=bool)
    pending[0] = True
    pool = replace(pool, groups=np.zeros(10, np.int64), pending=pending)
    assert len(select("dropquery", pool, 3, seed=0)) == 0
