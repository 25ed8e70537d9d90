"""Held-out metrics agree with reference libraries and closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, log_loss

from training.evaluate import audit_is_enough, audit_metrics


def predictions(n=200, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), n)
    return probabilities, np.array([rng.choice(classes, p=p) for p in probabilities])


def test_metrics_are_those_of_scikit_learn():
    probabilities, y = predictions()
    metrics = audit_metrics(probabilities, y)
    best = probabilities.argmax(1)
    assert metrics["accuracy"] == pytest.approx((best == y).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, best))
    assert metrics["nll"] == pytest.approx(log_loss(y, probabilities))


def test_interval_is_the_one_scipy_gives_and_holds_the_accuracy():
    probabilities, y = predictions()
    metrics = audit_metrics(probabilities, y)
    right = int((probabilities.argmax(1) == y).sum())
    interval = binomtest(right, len(y)).proportion_ci(method="wilson")
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == pytest.approx((interval.low, interval.high))


def test_a_class_that_does_not_occur_does_not_count_in_balanced_accuracy():
    probabilities = np.eye(3)[[0, 0, 1]]
    assert audit_metrics(probabilities, np.array([0, 0, 0]))["balanced_accuracy"] == pytest.approx(2 / 3)


def test_confidence_of_point_eight_that_is_right_half_the_time_is_off_by_point_three():
    probabilities = np.tile([0.8, 0.2], (10, 1))
    assert audit_metrics(probabilities, np.array([0, 1] * 5))["ece"] == pytest.approx(0.3)


def test_without_audit_labels_nothing_is_claimed():
    metrics = audit_metrics(np.empty((0, 3)), np.empty(0, np.int64))
    assert metrics.pop("audit_n") == 0
    assert set(metrics.values()) == {None}
    assert metrics.keys() == audit_metrics(*predictions()).keys() - {"audit_n"}


def test_at_ninety_per_cent_the_audit_slice_is_enough_near_the_number_of_the_normal_approximation():
    needed = next(n for n in range(1, 2000) if audit_is_enough(n, 0.9))
    assert needed == pytest.approx(1.96**2 * 0.9 * 0.1 / 0.025**2, rel=0.03)


def test_the_audit_slice_is_never_enough_below_its_floor():
    assert not audit_is_enough(49, 1.0)
    assert not audit_is_enough(60, 1.0)
    assert audit_is_enough(math.ceil(1.96**2 / 0.05) + 5, 1.0)


def test_before_anything_was_measured_one_half_is_assumed():
    assert not audit_is_enough(1500, None)
    assert audit_is_enough(1540, None)
