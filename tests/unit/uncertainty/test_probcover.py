"""ProbCover against naive float64: radius, greedy cover and what counts as covered."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty.selection import select
from uncertainty.strategies import probcover


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def distances(x, z):
    return np.linalg.norm(x.astype(np.float64)[:, None] - z.astype(np.float64)[None], axis=-1)


def mask(n, rows):
    out = np.zeros(n, dtype=bool)
    out[rows] = True
    return out


@pytest.fixture(params=[False, True], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(probcover, "_BLOCK", 7 * 120)


def purity(distance, label, reach):
    return np.mean([len(set(label[distance[i] < reach])) == 1 for i in range(len(label))])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", range(3))
def test_the_radius_is_the_largest_at_which_95_percent_of_balls_are_pure(seed):
    x, label = unit(120, 4, seed), np.random.default_rng(seed).integers(3, size=120)
    reach = probcover.radius(torch.from_numpy(x), label)
    distance = distances(x, x)
    assert purity(distance, label, reach - 1e-5) >= 0.95
    assert purity(distance, label, reach + 1e-5) < 0.95


def test_the_radius_is_not_spoilt_by_a_few_strangers_and_is_the_diameter_without_any(clusters):
    x, label = clusters([100, 100], spread=0.0)[0].features, np.repeat([0, 1], 100)
    label[:2] = 1  # two rows in the wrong cluster make the balls around the others impure
    assert probcover.radius(torch.from_numpy(x), label) == 0
    assert probcover.radius(torch.from_numpy(x), np.repeat([0, 1], 100)) == pytest.approx(np.sqrt(2), abs=1e-6)
    assert probcover.radius(torch.from_numpy(x), np.zeros(200, np.int64)) == 2


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("seed", range(3))
def test_cover_chooses_what_naive_greedy_chooses(seed):
    x, rng = unit(120, 5, seed), np.random.default_rng(seed)
    covered, allowed, reach = rng.random(120) < 0.1, rng.random(120) < 0.7, 0.8
    within = distances(x, x) < reach
    is_open, rows, newly = ~covered, [], []
    while True:
        count = (within & is_open).sum(1)
        count[~allowed] = 0
        if not count.any():
            break
        rows.append(int(count.argmax()))
        newly.append(int(count.max()))
        is_open &= ~within[rows[-1]]
    chosen, gains = probcover.cover(torch.from_numpy(x), covered, reach, 120, allowed)
    assert chosen.tolist() == rows
    assert gains.tolist() == newly
    some, _ = probcover.cover(torch.from_numpy(x), covered, reach, 4, allowed)
    assert some.tolist() == rows[:4]


def test_a_radius_of_zero_leaves_each_row_in_its_own_ball():
    x = torch.from_numpy(unit(10, 3))
    chosen, newly = probcover.cover(x, np.zeros(10, bool), 0.0, 10, np.ones(10, bool))
    assert chosen.tolist() == list(range(10))
    assert newly.tolist() == [1] * 10


@pytest.mark.usefixtures("blocks")
def test_large_clusters_are_covered_first_and_one_ball_each(clusters, monkeypatch):
    monkeypatch.setattr(probcover, "_PSEUDO_CLASSES", 4)
    pool, cluster = clusters([50, 40, 20, 10], spread=0)
    out = select("probcover", pool, 6, seed=0)
    assert cluster[out.indices[:4]].tolist() == [0, 1, 2, 3]
    assert out.gain == pytest.approx([50 / 120, 40 / 120, 20 / 120, 10 / 120, 0, 0])
    assert out.reason == ("diverse",) * 4 + ("explore",) * 2


def test_as_many_pseudo_classes_are_made_as_classes_are_known(clusters, monkeypatch):
    made = []

    def k_means(x, k, rng):
        made.append(k)
        return original(x, k, rng)

    original = probcover.clustering.k_means
    monkeypatch.setattr(probcover.clustering, "k_means", k_means)
    pool, _ = clusters([50, 40, 20, 10])
    select("probcover", pool, 3, seed=0)
    select("probcover", replace(pool, log_probs=torch.zeros(120, 1, 7).log_softmax(-1)), 3, seed=0)
    assert made == [10, 7]


@pytest.mark.parametrize("state", ["labelled", "pending"])
def test_what_a_labelled_or_pending_row_covers_needs_no_covering(clusters, state, monkeypatch):
    monkeypatch.setattr(probcover, "_PSEUDO_CLASSES", 4)
    pool, cluster = clusters([50, 40, 20, 10])
    pool = replace(pool, **{state: mask(120, [3, 100])})
    assert cluster[select("probcover", pool, 2, seed=0).indices].tolist() == [1, 3]


def test_an_excluded_row_covers_nothing(clusters, monkeypatch):
    monkeypatch.setattr(probcover, "_PSEUDO_CLASSES", 2)
    pool, cluster = clusters([50, 40])
    pool = replace(pool, labelled=mask(90, [3]), excluded=mask(90, [3]))
    assert cluster[select("probcover", pool, 1, seed=0).indices].tolist() == [0]


def test_on_a_sample_every_cluster_is_still_covered(clusters, monkeypatch):
    monkeypatch.setattr(probcover, "POINTS", 80)
    monkeypatch.setattr(probcover, "_PSEUDO_CLASSES", 4)
    pool, cluster = clusters([200, 150, 100, 100])
    for seed in range(3):
        assert sorted(cluster[select("probcover", pool, 4, seed=seed).indices]) == [0, 1, 2, 3]
