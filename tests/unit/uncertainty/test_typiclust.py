"""TypiClust against naive float64 and on pools whose clusters are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty.selection import select
from uncertainty.strategies import typiclust


def mask(n, rows):
    out = np.zeros(n, dtype=bool)
    out[rows] = True
    return out


def naive_typicality(x):
    x, out = x.astype(np.float64), []
    t = min(20, len(x) // 2)
    for i in range(len(x)):
        distance = sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)
        out.append(1 / (np.mean(distance[:t]) + 1e-5))
    return np.array(out)


@pytest.mark.parametrize("n", [2, 3, 9, 41, 60])
def test_typicality_is_one_over_the_mean_distance_to_the_nearest(clusters, n):
    x = clusters([n])[0].features
    assert typiclust.typicality(torch.from_numpy(x)).numpy() == pytest.approx(naive_typicality(x), rel=1e-5)


def test_a_row_alone_has_no_typicality():
    assert typiclust.typicality(torch.ones(1, 4)).tolist() == [0]
    assert typiclust.typicality(torch.ones(0, 4)).tolist() == []


def test_the_most_typical_row_of_each_cluster_comes_first_from_large_clusters(clusters):
    pool, cluster = clusters([60, 45, 30, 15])
    out = select("typiclust", pool, 4, seed=0)
    expected = []
    for c in range(4):
        mine = np.flatnonzero(cluster == c)
        expected.append(mine[naive_typicality(pool.features[mine]).argmax()])
    assert out.indices.tolist() == expected
    assert out.gain == pytest.approx(np.array([60, 45, 30, 15]) / 150)
    assert set(out.reason) == {"diverse"}


def test_a_cluster_asked_again_gives_the_most_typical_of_what_is_left(clusters):
    x = clusters([30])[0].features
    left, expected = list(range(30)), []
    for _ in range(12):
        best = left[int(naive_typicality(x[left]).argmax())]
        expected.append(best)
        left.remove(best)
    picked, first = typiclust._most_typical(torch.from_numpy(x), np.zeros(30, np.int64), np.array([0]), 12)
    assert picked.tolist() == expected
    assert first.tolist() == [True] + [False] * 11


@pytest.mark.parametrize("state", ["labelled", "pending"])
def test_clusters_without_a_labelled_or_pending_row_come_first(clusters, state):
    pool, cluster = clusters([60, 45, 30, 15])
    pool = replace(pool, **{state: mask(150, [3, 110])})
    # Four clusters are made: two known rows and two choices.
    assert cluster[select("typiclust", pool, 2, seed=0).indices].tolist() == [1, 3]


def test_an_excluded_row_makes_no_cluster_known(clusters):
    pool, cluster = clusters([60, 45])
    pool = replace(pool, excluded=mask(105, [3]), labelled=mask(105, [3]))
    assert cluster[select("typiclust", pool, 1, seed=0).indices].tolist() == [0]


def test_clusters_of_five_rows_or_fewer_are_left_out(clusters):
    pool, cluster = clusters([40, 30, 20, 5, 4])
    out = select("typiclust", pool, 5, seed=0)
    assert cluster[out.indices].tolist() == [0, 1, 2, 0, 1]


def test_when_all_clusters_are_small_none_is_left_out(clusters):
    pool, cluster = clusters([5, 4, 3])
    assert cluster[select("typiclust", pool, 3, seed=0).indices].tolist() == [0, 1, 2]


def test_large_clusters_that_run_dry_are_followed_by_random_rows(clusters):
    pool, cluster = clusters([8, 4, 3])
    out = select("typiclust", pool, 3, seed=0)
    assert (cluster[out.indices] == 0).all()
    picked, _ = typiclust._most_typical(pool.rows(np.arange(15)), cluster, np.array([0]), 15)
    assert sorted(picked) == list(range(8))


def test_on_a_sample_every_cluster_is_still_visited(clusters, monkeypatch):
    for name, value in (("_ROWS", 80), ("_PER_CHOICE", 1), ("_COMPARED", 10)):
        monkeypatch.setattr(typiclust, name, value)
    pool, cluster = clusters([200, 150, 100, 100])
    for seed in range(3):
        assert sorted(cluster[select("typiclust", pool, 4, seed=seed).indices]) == [0, 1, 2, 3]


def test_every_row_of_a_cluster_larger_than_what_is_compared_may_still_be_chosen(clusters, monkeypatch):
    monkeypatch.setattr(typiclust, "_COMPARED", 4)
    pool, _ = clusters([30])
    picked, _ = typiclust._most_typical(pool.rows(np.arange(30)), np.zeros(30, np.int64), np.array([0]), 30)
    assert sorted(picked) == list(range(30))
