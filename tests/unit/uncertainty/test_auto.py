"""`auto`: each thing it measures, and what follows from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty.layers import distance_to_nearest
from uncertainty.strategies import Pool, select
from uncertainty.strategies.auto import class_need, competence, diagnose, said, share_of_copies

CLASSES = 3


def make_pool(n=600, labelled=60, *, seed=0, guessing=False, shares=(1, 1, 1), spread=0.35, **changes):
    """Three overlapping clusters, one a class, a head that knows them, labels of the first rows."""
    rng = np.random.default_rng(seed)
    y = rng.choice(CLASSES, n, p=np.array(shares) / sum(shares))
    x = np.eye(8)[y] + spread * rng.normal(size=(n, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    told = rng.integers(0, CLASSES, n) if guessing else y
    none = np.zeros(n, bool)
    is_labelled = np.arange(n) < labelled
    values = {
        "features": x.astype(np.float32),
        "log_probs": torch.from_numpy(6 * x[:, None, :CLASSES]).float().log_softmax(-1),
        "labelled": is_labelled,
        "pending": none,
        "excluded": none,
        "labels": np.where(is_labelled, told, -1),
    }
    return Pool(**(values | changes))


def rng():
    return np.random.default_rng(0)


def test_a_class_counts_by_its_labels_to_the_power_of_three_halves():
    pool = make_pool(labelled=10)
    pool = replace(pool, labels=np.where(pool.labelled, [0] * 8 + [1] + [2] + [0] * 590, -1))
    np.testing.assert_allclose(class_need(pool), [9**-1.5 / 2**-1.5, 1, 1])


def test_competence_tells_labels_that_can_be_learnt_from_random_ones():
    known, unknown = competence(make_pool(), rng()), competence(make_pool(guessing=True), rng())
    assert known is not None and unknown is not None
    assert known > 0.3 and unknown < 0.05


def test_nothing_is_said_of_competence_with_fewer_than_twenty_labels():
    assert competence(make_pool(labelled=19), rng()) is None
    assert competence(make_pool(labelled=20), rng()) is not None


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_copies_is_exact_on_small_pools(share):
    pool = make_pool(n=400)
    x = pool.features.copy()
    pairs = int(200 * share)
    x[200 : 200 + pairs] = x[:pairs]
    whole = replace(pool, features=x)
    cosine = x.astype(np.float64) @ x.T.astype(np.float64) - 3 * np.eye(400)
    assert share_of_copies(whole, np.arange(400)) == pytest.approx((cosine.max(1) > 0.98).mean())


def test_distance_to_the_nearest_of_given_rows_equals_the_naive_one():
    pool = make_pool(n=120)
    rows, anchors = np.arange(0, 80), np.arange(40, 120)
    cosine = pool.features[rows].astype(np.float64) @ pool.features[anchors].T.astype(np.float64)
    cosine[rows[:, None] == anchors[None]] = -np.inf
    expected = 1 - np.sort(cosine, axis=1)[:, -20:].mean(axis=1)
    np.testing.assert_allclose(distance_to_nearest(pool, rows, anchors), expected, atol=1e-5)


def test_a_class_with_few_labels_gets_more_than_its_share():
    pool = make_pool(n=1_500, labelled=150, shares=(20, 20, 1))
    rare = pool.features[:, :CLASSES].argmax(1) == 2
    share = rare[pool.selectable].mean()
    auto = select("auto", pool, 30, seed=0).indices
    uherding = select("uherding", pool, 30, seed=0).indices
    assert rare[auto].mean() > max(2 * share, rare[uherding].mean())


def test_while_the_model_guesses_its_doubts_count_for_nothing():
    pool = make_pool(labelled=200, guessing=True)
    assert competence(pool, np.random.default_rng(0)) < 0.02
    pool = replace(pool, labels=np.where(pool.labelled, np.arange(600) % CLASSES, -1))  # as many of each
    blind = [seed for seed in range(20) if "decides alone" in select("auto", pool, 10, seed=seed).note]
    assert blind


def test_what_is_like_nothing_else_is_not_asked_for():
    strange = np.zeros(600, bool)
    strange[580:] = True
    pool = make_pool(spread=0.15)
    x = pool.features.copy()
    x[strange] = np.random.default_rng(5).normal(size=(20, 8))
    x[strange, :CLASSES] -= 2
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    log_probs = pool.log_probs.clone()
    log_probs[torch.from_numpy(strange)] = float(-np.log(3))  # nothing is as uncertain
    out = select("auto", replace(pool, features=x, log_probs=log_probs), 25, seed=0)
    far = distance_to_nearest(replace(pool, features=x), np.flatnonzero(strange), np.arange(600))
    fence = diagnose(replace(pool, features=x), np.arange(600), rng()).fence
    outliers = np.flatnonzero(strange)[far > fence]
    assert len(outliers) >= 5 and not np.isin(out.indices, outliers).any()
    assert "like nothing else" in out.note


def test_the_note_tells_each_measurement():
    found = diagnose(make_pool(), np.arange(600), rng())
    text = said(replace(found, need=np.array([0.1, 1, 1]), competence=0.62, copies=0.4), 3, 600)
    for part in ("10 times", "62%", "40% have a copy", "3 of 600"):
        assert part in text
    even = said(replace(found, need=np.ones(3), competence=None, copies=0.0), 0, 600)
    assert "all classes count alike" in even and "not known yet" in even and "copy" not in even


def test_before_two_classes_are_known_it_is_coverage():
    pool = make_pool(labelled=0)
    np.testing.assert_array_equal(
        select("auto", pool, 10, seed=0).indices, select("maxherding", pool, 10, seed=0).indices
    )
