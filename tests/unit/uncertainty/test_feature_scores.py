"""Scores of features and linear heads, against naive loops, scikit-learn and scipy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import entropy
from sklearn.covariance import LedoitWolf

from uncertainty import feature_scores
from uncertainty.errors import PoolError
from uncertainty.feature_scores import epig, shrunk_covariance, target_rows
from uncertainty.pool import Pool
from uncertainty.pool_scores import get_score, pool_score
from uncertainty.predictives import posterior_of, samples_of

NAMES = ["geometric_margin", "energy", "knn_distance", "mahalanobis", "epig"]


def make_pool(n=200, width=6, classes=3, labelled=40, seed=0, spread=1.0, log_probs=None, dtype=np.float32):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    x = np.random.default_rng(7).normal(size=(classes, width))[y] + spread * rng.normal(size=(n, width))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    is_labelled = np.arange(n) < labelled
    none = np.zeros(n, dtype=bool)
    return Pool(x.astype(dtype), log_probs, is_labelled, none, none, labels=np.where(is_labelled, y, -1))


ROWS = np.array([150, 41, 60, 199, 90, 120, 44])


@pytest.mark.parametrize("name", NAMES)
def test_a_score_by_chunks_is_the_score_at_once_and_the_order_of_rows_is_kept(name, monkeypatch):
    pool = make_pool()
    at_once = pool_score(name, pool, ROWS)
    assert at_once.shape == (7,) and at_once.dtype == np.float32
    monkeypatch.setattr(feature_scores, "_CHUNK", 2)
    monkeypatch.setattr(feature_scores, "_JOINT", 100)  # EPIG: rows one by one, targets in groups of eleven
    np.testing.assert_allclose(pool_score(name, pool, ROWS), at_once, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pool_score(name, pool, ROWS[::-1].copy()), at_once[::-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_features_and_the_rows_of_none_are_scored(name):
    pool = make_pool(dtype=np.float16)
    assert np.isfinite(pool_score(name, pool, ROWS)).all()
    assert pool_score(name, pool, ROWS[:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_one_label_a_class_is_enough_and_unseen_classes_do_no_harm(name):
    uniform = torch.zeros(200, 1, 6).log_softmax(-1)  # three classes more than are labelled
    pool = make_pool(labelled=3, log_probs=uniform)
    assert np.isfinite(pool_score(name, pool, ROWS)).all()
    assert get_score(name).needs_labels and not get_score(name).needs_predictions


@pytest.mark.parametrize("name", NAMES)
def test_without_labels_it_says_what_is_missing(name):
    with pytest.raises(PoolError, match="label"):
        pool_score(name, make_pool(labelled=0), ROWS)


# ---------------------------------------------------------------------- the head
def test_geometric_margin_is_the_shortest_way_to_a_point_where_another_class_is_as_likely():
    pool = make_pool(classes=4)
    head, out = posterior_of(pool), pool_score("geometric_margin", pool, ROWS)
    for row, uncertainty in zip(ROWS, out, strict=True):
        x = pool.features[row].astype(np.float64)
        f = x @ head.weight + head.bias
        best, ways = int(f.argmax()), []
        for other in set(range(4)) - {best}:
            normal = head.weight[:, best] - head.weight[:, other]
            ways.append((f[best] - f[other]) / np.linalg.norm(normal))
            at = x - ways[-1] * normal / np.linalg.norm(normal)
            there = at @ head.weight + head.bias
            assert there[best] == pytest.approx(there[other])
        assert uncertainty == pytest.approx(-min(ways), rel=1e-4, abs=1e-6)


def test_energy_is_minus_the_log_sum_of_exponentials_of_the_head():
    pool = make_pool()
    head = posterior_of(pool)
    logits = pool.features[ROWS].astype(np.float64) @ head.weight + head.bias
    np.testing.assert_allclose(pool_score("energy", pool, ROWS), -logsumexp(logits, axis=1), rtol=1e-5)
    cool = feature_scores.energy(pool, ROWS, temperature=2.0)
    np.testing.assert_allclose(cool, -2 * logsumexp(logits / 2, axis=1), rtol=1e-5)
    assert (pool_score("energy", pool, ROWS) <= -np.log(3) + 1e-4).all()


# ---------------------------------------------------------------------- distances
@pytest.mark.parametrize("labelled", [40, 7])
def test_knn_distance_is_the_mean_of_the_twenty_smallest_cosine_distances_to_labelled_rows(labelled):
    pool = make_pool(labelled=labelled)
    distance = cdist(pool.features[ROWS].astype(np.float64), pool.features[:labelled].astype(np.float64), "cosine")
    expected = np.sort(distance, axis=1)[:, :20].mean(1)
    np.testing.assert_allclose(pool_score("knn_distance", pool, ROWS), expected, atol=1e-6)


def test_knn_distance_counts_neither_excluded_rows_nor_needs_their_classes():
    pool = make_pool()
    excluded = np.arange(200) < 10
    without = Pool(pool.features, None, pool.labelled, pool.pending, excluded)
    distance = cdist(pool.features[ROWS].astype(np.float64), pool.features[10:40].astype(np.float64), "cosine")
    expected = np.sort(distance, axis=1)[:, :20].mean(1)
    np.testing.assert_allclose(pool_score("knn_distance", without, ROWS), expected, atol=1e-6)


def test_mahalanobis_is_the_least_distance_scipy_finds_for_the_same_means_and_covariance():
    pool = make_pool(labelled=100)
    x, y = pool.features[:100].astype(np.float64), pool.labels[:100]
    means = np.array([x[y == c].mean(0) for c in range(3)])
    inverse = np.linalg.inv(shrunk_covariance(x - means[y]))
    expected = cdist(pool.features[ROWS], means, "mahalanobis", VI=inverse).min(1) ** 2
    np.testing.assert_allclose(pool_score("mahalanobis", pool, ROWS), expected, rtol=1e-4)


@pytest.mark.parametrize(("n", "width"), [(200, 5), (30, 40)])
def test_the_covariance_is_that_of_ledoit_and_wolf(n, width):
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(n, width)) @ rng.normal(size=(width, width))
    reference = LedoitWolf(assume_centered=True).fit(residuals)
    assert reference.shrinkage_ > 1 / (n + 1)
    np.testing.assert_allclose(shrunk_covariance(residuals), reference.covariance_, rtol=1e-8, atol=1e-10)


def test_a_covariance_of_mirror_images_or_of_nothing_can_be_inverted():
    mirror = np.array([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]])
    assert np.linalg.eigvalsh(shrunk_covariance(mirror)).min() > 0.1
    np.testing.assert_array_equal(shrunk_covariance(np.zeros((4, 3))), np.eye(3))


@pytest.mark.parametrize("name", ["knn_distance", "mahalanobis", "energy"])
def test_what_lies_opposite_to_all_classes_is_farther_than_what_lies_among_them(name):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = np.eye(2, 6)[y] + 0.1 * rng.normal(size=(200, 6))
    x[150:] = np.array([0, 0, -1, 0, 0, 0]) + 0.1 * rng.normal(size=(50, 6))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    none, is_labelled = np.zeros(200, dtype=bool), np.arange(200) < 60
    pool = Pool(x, None, is_labelled, none, none, labels=np.where(is_labelled, y, -1))
    out = pool_score(name, pool, np.arange(60, 200))
    assert out[90:].min() > out[:90].max()


# ---------------------------------------------------------------------- EPIG
def naive_epig(candidates, targets):
    """[B, S, C], [T, S, C] probabilities -> [B], from the definition, as a mutual information."""
    out = []
    for p in candidates:
        total = 0.0
        for q in targets:
            joint = sum(np.outer(a, b) for a, b in zip(p, q, strict=True)) / len(p)
            product = np.outer(joint.sum(1), joint.sum(0))
            total += entropy(joint.ravel(), product.ravel())
        out.append(total / len(targets))
    return np.array(out)


def test_epig_is_the_mean_mutual_information_with_the_targets():
    pool = make_pool()
    targets = target_rows(pool, 100, balanced=True)
    expected = naive_epig(
        samples_of(pool, ROWS).exp().double().numpy(), samples_of(pool, targets).exp().double().numpy()
    )
    np.testing.assert_allclose(pool_score("epig", pool, ROWS), expected, atol=3e-6)
    assert expected.max() > 5e-3


def test_epig_takes_the_samples_of_the_predictions_where_there_are_several():
    g = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(200, 4, 3, generator=g)).log_softmax(-1)
    pool = make_pool(log_probs=log_probs)
    about = log_probs[:9]
    expected = naive_epig(log_probs[ROWS].exp().double().numpy(), about.exp().double().numpy())
    np.testing.assert_allclose(epig(pool, ROWS, samples=about), expected, atol=3e-6)


def test_a_label_that_decides_all_targets_is_worth_their_entropy_and_one_that_decides_none_nothing():
    two = torch.eye(2, dtype=torch.float64).log()
    log_probs = torch.full((200, 2, 2), 0.5, dtype=torch.float64).log()
    log_probs[150], about = two, two.expand(5, 2, 2)
    gain = epig(make_pool(classes=2, log_probs=log_probs), np.array([150, 41]), samples=about)
    np.testing.assert_allclose(gain, [np.log(2), 0], atol=1e-6)


def test_targets_are_neither_labelled_nor_excluded_and_the_same_every_time():
    pool = make_pool()
    pool = Pool(pool.features, None, pool.labelled, pool.pending, np.arange(200) >= 150, labels=pool.labels)
    for balanced in (True, False):
        rows = target_rows(pool, 50, balanced=balanced)
        assert len(set(rows.tolist())) == 50
        assert ((rows >= 40) & (rows < 150)).all()
        assert (rows == target_rows(pool, 50, balanced=balanced)).all()
        assert sorted(target_rows(pool, 500, balanced=balanced)) == list(range(40, 150))


def test_balanced_targets_hold_each_predicted_class_equally_and_the_others_as_the_pool_does():
    logits = torch.full((1000, 2, 3), -3.0)
    predicted = np.repeat([0, 1, 2], [900, 90, 10])[np.random.default_rng(0).permutation(1000)]
    logits[torch.arange(1000), :, torch.from_numpy(predicted)] = 3.0
    pool = make_pool(n=1000, labelled=3, log_probs=logits.log_softmax(-1))
    balanced = np.bincount(predicted[target_rows(pool, 60, balanced=True)], minlength=3)
    plain = np.bincount(predicted[target_rows(pool, 100, balanced=False)], minlength=3)
    assert balanced[2] in (9, 10)  # all there are, but for a labelled one
    assert abs(balanced[0] - balanced[1]) <= 1
    assert 80 <= plain[0] <= 98


def test_epig_of_a_pool_without_open_rows_says_so():
    with pytest.raises(PoolError, match="labelled or excluded"):
        pool_score("epig", make_pool(labelled=200), ROWS)


def test_epig_orders_alike_with_more_samples():
    pool = make_pool(spread=0.7)
    rows = np.arange(40, 200)
    scores = []
    for count in (100, 400, 1600):
        about = posterior_of(pool).samples(pool.rows(target_rows(pool, 50, balanced=True)), count)
        log_probs = posterior_of(pool).samples(pool.rows(np.arange(200)), count)
        sampled = Pool(pool.features, log_probs, pool.labelled, pool.pending, pool.excluded, labels=pool.labels)
        scores.append(epig(sampled, rows, samples=about))
    agreement = [np.corrcoef(few, many)[0, 1] for few, many in pairwise(scores)]
    assert agreement[0] > 0.9 and agreement[1] > 0.97
