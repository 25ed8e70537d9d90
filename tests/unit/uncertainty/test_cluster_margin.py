"""Cluster-Margin, k-means-margin and CLUE on pools whose clusters are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty import clustering
from uncertainty.pool import Pool
from uncertainty.pool_scores import pool_score
from uncertainty.selection import Selection, select
from uncertainty.strategies import cluster_margin


def clusters(sizes, d=16, spread=0.2, seed=0):
    """A pool of separate clusters with random predictions, and the cluster of each row."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    x = np.eye(d)[label] + spread / np.sqrt(d) * rng.normal(size=(len(label), d))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    log_probs = torch.from_numpy(rng.normal(size=(len(label), 1, 3))).float().log_softmax(-1)
    none = np.zeros(len(label), dtype=bool)
    return Pool(x, log_probs, none, none, none), label


def sure(pool, rows):
    """The pool with a model that is sure of some rows."""
    log_probs = pool.log_probs.clone()
    log_probs[rows] = torch.tensor([20.0, 0, 0]).log_softmax(-1)
    return replace(pool, log_probs=log_probs)


@pytest.fixture(params=["average linkage", "k-means"])
def four_clusters(request, monkeypatch):
    monkeypatch.setattr(cluster_margin, "_ROWS_PER_CLUSTER", 25)
    if request.param == "k-means":
        monkeypatch.setattr(clustering, "LINKED_ROWS", 10)


@pytest.mark.usefixtures("four_clusters")
def test_cluster_margin_takes_turns_from_the_smallest_cluster_to_the_largest():
    pool, cluster = clusters([50, 30, 15, 5])
    out = select("cluster_margin", pool, 26, seed=0)
    # Five rounds of all four, then the smallest is empty.
    assert cluster[out.indices].tolist() == [3, 2, 1, 0] * 5 + [2, 1, 0] * 2
    assert out.propensity[:8] == pytest.approx([1 / 5, 1 / 15, 1 / 30, 1 / 50, 1 / 4, 1 / 14, 1 / 29, 1 / 49])
    assert out.gain == pytest.approx(pool_score("margin", pool, out.indices))


@pytest.mark.usefixtures("four_clusters")
def test_cluster_margin_counts_uncertain_rows_only():
    pool, cluster = clusters([50, 30, 15, 5])
    # 40 candidates at k = 4: 5 of the largest cluster, 20 of the second, 15 of the third, none of the fourth.
    pool = sure(pool, np.r_[5:50, 70:80, 95:100])
    out = select("cluster_margin", pool, 4, seed=0)
    assert cluster[out.indices].tolist() == [0, 2, 1, 0]
    assert out.propensity == pytest.approx([1 / 5, 1 / 15, 1 / 20, 1 / 4])


def test_cluster_margin_takes_each_row_of_a_cluster_as_often_as_its_propensity_says(monkeypatch):
    pool, cluster = clusters([30, 10])
    monkeypatch.setattr(cluster_margin, "_small_clusters", lambda pool, rows, asked, rng: cluster[rows[asked]])
    count = np.zeros(40)
    for seed in range(120):
        count[select("cluster_margin", pool, 10, seed=seed).indices] += 1
    # 120 * 5 / 10 = 60 and 120 * 5 / 30 = 20 expected, standard deviations 6 and 4.
    assert (np.abs(count[30:] - 60) < 26).all()
    assert (np.abs(count[:30] - 20) < 18).all()


def nearest_to_weighted_means(x, w, cluster):
    """Naive float64: of each cluster the row nearest to its weighted mean, heaviest cluster first."""
    x, w, out = x.astype(np.float64), w.astype(np.float64), {}
    for c in np.unique(cluster):
        mine = np.flatnonzero((cluster == c) & (w > 0))
        if not len(mine):
            continue
        centre = np.average(x[mine], 0, w[mine])
        out[w[mine].sum()] = int(mine[((x[mine] - centre) ** 2).sum(1).argmin()])
    return [out[mass] for mass in sorted(out, reverse=True)]


def test_kmeans_margin_takes_the_rows_nearest_to_weighted_centres_of_the_uncertain():
    pool, cluster = clusters([50, 40, 30, 20])
    certain = np.r_[12:50, 58:90, 100:140]  # 30 rows are uncertain, ten for each of k = 3
    pool = sure(pool, certain)
    w = pool_score("margin", pool, np.arange(140))
    w[certain] = 0
    out = select("kmeans_margin", pool, 3, seed=0)
    assert out.indices.tolist() == nearest_to_weighted_means(pool.features, w, cluster)
    assert out.gain == pytest.approx(w[out.indices])
    assert (out.propensity == 1).all()


def test_clue_takes_the_rows_nearest_to_entropy_weighted_centres_of_the_pool():
    pool, cluster = clusters([50, 40, 30, 20])
    w = pool_score("entropy", pool, np.arange(140))
    out = select("clue", pool, 4, seed=0)
    assert out.indices.tolist() == nearest_to_weighted_means(pool.features, w, cluster)
    assert out.gain == pytest.approx(w[out.indices])


@pytest.mark.parametrize("seed", range(3))
def test_clue_on_a_sample_still_visits_every_uncertain_cluster(seed, monkeypatch):
    monkeypatch.setattr(clustering, "FIT_ROWS", 60)
    monkeypatch.setattr(cluster_margin, "_PER_CHOICE", 1)
    pool, cluster = clusters([300, 150, 100, 50])
    pool = sure(pool, np.flatnonzero(cluster == 0))
    assert sorted(cluster[select("clue", pool, 3, seed=seed).indices]) == [1, 2, 3]


@pytest.mark.parametrize("name", ["cluster_margin", "kmeans_margin", "clue"])
def test_a_model_sure_of_everything_still_gets_a_full_batch(name):
    pool, cluster = clusters([50, 40, 30])
    certain = torch.full((120, 1, 3), -torch.inf)
    certain[..., 0] = 0
    out = select(name, replace(pool, log_probs=certain), 30, seed=0)
    assert len(set(out.indices.tolist())) == 30
    assert set(cluster[out.indices]) == {0, 1, 2}


@pytest.mark.parametrize("name", ["kmeans_margin", "clue"])
def test_clusters_supply_several_rows_where_more_are_asked_for_than_centres_allowed(name, monkeypatch):
    monkeypatch.setattr(clustering, "MOST_CENTRES", 2)
    pool, cluster = clusters([50, 40])
    out = select(name, pool, 6, seed=0)
    assert np.bincount(cluster[out.indices]).tolist() == [3, 3]


def test_clue_with_few_uncertain_rows_goes_on_with_the_others():
    pool, _ = clusters([50, 40])
    certain = torch.full((90, 1, 3), -torch.inf)
    certain[..., 0] = 0
    certain[:5] = np.log(1 / 3)
    out = select("clue", replace(pool, log_probs=certain), 20, seed=0)
    assert sorted(out.indices[:5]) == [0, 1, 2, 3, 4]
    assert len(set(out.indices.tolist())) == 20


def test_topping_up_takes_the_most_uncertain_that_are_no_copies():
    pool, _ = clusters([20])
    groups = np.full(20, -1)
    margin = pool_score("margin", pool, np.arange(20))
    order = np.argsort(-margin)
    groups[[order[0], order[19]]] = 7  # the most uncertain is a copy of what is chosen
    pool = replace(pool, groups=groups)
    out = cluster_margin.topped_up(pool, Selection.of(order[19:], [0.5], "diverse"), 4, np.random.default_rng(0))
    assert out.indices.tolist() == [order[19], order[1], order[2], order[3]]
    assert out.gain == pytest.approx([0.5, *margin[order[1:4]]])
    assert out.reason == ("diverse", "uncertain", "uncertain", "uncertain")


def test_topping_up_without_a_model_is_uniform_and_says_so():
    pool = replace(clusters([10])[0], log_probs=None)
    count = np.zeros(10)
    for seed in range(450):
        start = Selection.of(np.array([3]), [0.5], "diverse")
        out = cluster_margin.topped_up(pool, start, 3, np.random.default_rng(seed))
        count[out.indices] += 1
    assert out.reason == ("diverse", "explore", "explore")
    assert out.propensity == pytest.approx([1, 1 / 9, 1 / 8])
    # 100 expected each, standard deviation 9.
    assert (np.abs(np.delete(count, 3) - 100) < 45).all()
