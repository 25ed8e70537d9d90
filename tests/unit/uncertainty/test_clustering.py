"""k-means and average linkage against scikit-learn, scipy and hand-made clusters."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from uncertainty import clustering
from uncertainty.clustering import assign, average_linkage, in_turn, k_means
from uncertainty.errors import PoolError, ShapeError


def rng(seed=0):
    return np.random.default_rng(seed)


def blobs(sizes, d=16, spread=0.1, seed=0):
    label = np.repeat(np.arange(len(sizes)), sizes)
    x = np.eye(d)[label] + spread / np.sqrt(d) * rng(seed).normal(size=(len(label), d))
    return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float(), label


def digits():
    x = load_digits().data
    return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float()


@pytest.fixture
def many_seeds(monkeypatch):
    """Seeding as for large k: on a sample and several a pass."""
    monkeypatch.setattr(clustering, "_SEED_ROWS", 400)
    monkeypatch.setattr(clustering, "_PASSES", 5)


def check_inertia(x, k, weights=None):
    """At most 5 % above scikit-learn's, one start each, on average over five seeds."""
    ours = []
    for seed in range(5):
        out = k_means(x, k, rng(seed), weights=weights)
        ours.append(out.distances @ (np.ones(len(x)) if weights is None else weights))
    theirs = [
        KMeans(k, n_init=1, random_state=seed).fit(x.numpy(), sample_weight=weights).inertia_ for seed in range(5)
    ]
    assert np.mean(ours) <= 1.05 * np.mean(theirs)


@pytest.mark.parametrize("k", [10, 60])
def test_inertia_is_that_of_scikit_learn(k):
    check_inertia(digits(), k)


def test_weighted_inertia_is_that_of_scikit_learn():
    check_inertia(digits(), 20, rng().random(1797) ** 4)


@pytest.mark.usefixtures("many_seeds")
def test_drawing_several_seeds_at_a_time_costs_little():
    check_inertia(digits(), 30)


def test_fitting_centres_to_a_sample_costs_little(monkeypatch):
    monkeypatch.setattr(clustering, "FIT_ROWS", 600)
    check_inertia(digits(), 20)


def test_separate_clusters_are_found_whatever_their_size():
    x, label = blobs([200, 100, 40, 10, 3])
    assert adjusted_rand_score(label, k_means(x, 5, rng()).labels) == 1


def test_centres_are_weighted_means_and_labels_name_the_nearest():
    x, w = blobs([30, 20, 25], spread=2.0)[0], rng().random(75)
    out = k_means(x, 4, rng(), weights=w, iterations=300)
    for c in range(4):
        mine = out.labels == c
        assert out.centres[c].numpy() == pytest.approx(np.average(x[mine], 0, w[mine]), abs=1e-5)
    distance = ((x[:, None].double() - out.centres[None].double()) ** 2).sum(-1).numpy()
    assert out.labels.tolist() == distance.argmin(1).tolist()
    assert out.distances == pytest.approx(distance.min(1), abs=1e-5)


def test_a_row_of_weight_zero_moves_no_centre():
    x, _ = blobs([20, 20])
    far = torch.cat([x, torch.full((1, 16), 9.0)])
    out = k_means(far, 2, rng(), weights=np.append(np.ones(40), 0))
    assert float(out.centres.norm(dim=1).max()) < 1.01


def test_a_cluster_that_lost_its_rows_starts_again_where_the_inertia_is(monkeypatch):
    x, label = blobs([50, 50, 50])
    # Two seeds alike: the second attracts nothing.
    monkeypatch.setattr(clustering, "_seeds", lambda x, k, *_: np.array([0, 0, 60]))
    assert adjusted_rand_score(label, k_means(x, 3, rng()).labels) == 1


@pytest.mark.parametrize("k", [1, 5, 40])
def test_copies_of_one_row_are_one_cluster(k):
    x = torch.eye(8)[:1].repeat(40, 1)
    out = k_means(x, k, rng())
    assert len(set(out.labels.tolist())) == 1
    assert out.centres.shape == (k, 8)
    assert out.distances == pytest.approx(np.zeros(40), abs=1e-6)


def test_as_many_clusters_as_rows_are_the_rows():
    x, _ = blobs([10, 10], spread=1.0)
    assert sorted(k_means(x, 50, rng()).labels) == list(range(20))


def test_a_few_heavy_rows_do_not_leave_too_few_seeds(monkeypatch):
    monkeypatch.setattr(clustering, "FIT_ROWS", 50)
    monkeypatch.setattr(clustering, "_PER_CENTRE", 1)
    monkeypatch.setattr(clustering, "_SEED_ROWS", 50)
    monkeypatch.setattr(clustering, "_PER_SEED", 1)
    x, _ = blobs([50, 50], spread=1.0)
    w = np.full(100, 1e-9)
    w[0] = 1
    assert k_means(x, 40, rng(), weights=w).centres.shape == (40, 16)


@pytest.mark.usefixtures("many_seeds")
def test_the_same_seed_gives_the_same_clusters():
    x = digits()
    assert (k_means(x, 20, rng(3)).labels == k_means(x, 20, rng(3)).labels).all()
    assert (k_means(x, 20, rng(3)).labels != k_means(x, 20, rng(4)).labels).any()


def test_inputs_of_k_means_are_left_untouched():
    x, w = digits()[:200], np.ones(200)
    before = x.clone()
    k_means(x, 5, rng(), weights=w)
    assert torch.equal(x, before) and (w == 1).all()


def test_blocks_do_not_change_the_nearest_centre(monkeypatch):
    x = digits()
    whole = assign(x, x[:7])
    monkeypatch.setattr(clustering, "_BLOCK", 7 * 100)
    labels, distances = assign(x, x[:7])
    assert (labels == whole[0]).all()
    assert distances == pytest.approx(whole[1], abs=1e-6)


@pytest.mark.parametrize(
    ("k", "weights", "error"),
    [
        (0, None, PoolError),
        (2, -np.ones(20), PoolError),
        (2, np.zeros(20), PoolError),
        (2, np.full(20, np.nan), PoolError),
        (2, np.ones(3), ShapeError),
    ],
)
def test_clusters_that_make_no_sense_are_refused(k, weights, error):
    with pytest.raises(error):
        k_means(blobs([20])[0], k, rng(), weights=weights)


@pytest.mark.parametrize("block", [1, 10**6])
def test_average_linkage_is_that_of_scipy_in_float64(block, monkeypatch):
    monkeypatch.setattr(clustering, "_BLOCK", block)
    x = digits()[:300]
    expected = fcluster(linkage(pdist(x.numpy().astype(np.float64)), "average"), 30, "maxclust")
    out = average_linkage(x, 30)
    assert adjusted_rand_score(expected, out) == 1
    assert (out.min(), out.max()) == (0, 29)


def test_average_linkage_of_one_row_and_of_none():
    assert average_linkage(torch.ones(1, 4), 3).tolist() == [0]
    assert average_linkage(torch.ones(0, 4), 3).tolist() == []


def test_average_linkage_of_more_pairs_than_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(clustering, "LINKED_ROWS", 10)
    with pytest.raises(PoolError, match="at most 10 rows"):
        average_linkage(torch.ones(11, 4), 3)


def test_clusters_take_turns_each_supplying_its_smallest_value():
    labels = np.array([0, 0, 0, 1, 2, 2])
    values = np.array([3.0, 1.0, 2.0, 9.0, 5.0, 4.0])
    places, turn = in_turn(labels, values, np.array([1, 2, 0]))
    assert places.tolist() == [3, 5, 1, 4, 2, 0]
    assert turn.tolist() == [0, 0, 0, 1, 1, 2]


def test_turns_of_no_rows_are_none():
    places, turn = in_turn(np.empty(0, np.int64), np.empty(0), np.arange(3))
    assert len(places) == len(turn) == 0
