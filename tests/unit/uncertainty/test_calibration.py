"""Calibration numbers against closed forms, scipy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss

from uncertainty.calibration import (
    COLD_TEMPERATURE,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
    wilson_interval,
)
from uncertainty.errors import NotADistributionError, ShapeError


def drawn(n, C, temperature, seed=0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, C))
    p = softmax(logits / temperature, axis=1)
    labels = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return logits, labels, p


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true", [0.4, 1.0, 3.5])
def test_temperature_is_the_minimum_that_scipy_finds(true, seed):
    logits, labels, _ = drawn(400, 5, true, seed)

    def nll(log_t):
        return -log_softmax(logits / math.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean()

    expected = math.exp(minimize_scalar(nll, bounds=(-2.3, 3.0), method="bounded").x)
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-3)


def test_temperature_recovers_the_one_that_labels_were_drawn_with():
    logits, labels, _ = drawn(20_000, 4, 2.5)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.05)


def test_temperature_is_not_changed_by_a_constant_added_to_the_logits_of_a_row():
    logits, labels, _ = drawn(100, 4, 2.0)
    assert fit_temperature(logits + np.arange(100)[:, None], labels) == pytest.approx(fit_temperature(logits, labels))


def test_temperature_of_a_model_that_is_always_right_stays_at_the_sharp_end():
    assert fit_temperature(np.eye(30), np.arange(30)) == pytest.approx(math.exp(-2.3), rel=1e-3)


def test_temperature_of_a_model_that_is_always_wrong_stays_at_the_soft_end():
    assert fit_temperature(50 * np.eye(30), (np.arange(30) + 1) % 30) == pytest.approx(math.exp(3), rel=1e-3)


def test_with_too_few_labels_the_temperature_is_the_cold_one():
    logits, labels, _ = drawn(19, 3, 0.3)
    assert fit_temperature(logits, labels) == COLD_TEMPERATURE
    assert fit_temperature(logits, labels, min_labels=5) != COLD_TEMPERATURE
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int), min_labels=0) == COLD_TEMPERATURE


def test_infinite_logits_are_refused():
    with pytest.raises(NotADistributionError, match="NaN or infinite"):
        fit_temperature(np.array([[np.inf, 0.0]]), [0])


def test_likelihood_and_brier_equal_those_of_scikit_learn():
    _, labels, p = drawn(200, 4, 1.0)
    assert negative_log_likelihood(p, labels) == pytest.approx(log_loss(labels, p, labels=range(4)))
    two = np.stack([p[:, 0], 1 - p[:, 0]], 1)
    is_rest = (labels > 0).astype(int)
    # scikit-learn's binary score counts one of the two equal terms.
    assert brier_score(two, is_rest) == pytest.approx(2 * brier_score_loss(is_rest, two[:, 1]))
    assert brier_score(p, labels) == pytest.approx(((p - np.eye(4)[labels]) ** 2).sum(1).mean())


def test_a_class_called_impossible_costs_a_large_but_finite_likelihood():
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-math.log(1e-12))


def test_calibration_error_of_a_small_example_worked_by_hand():
    # Confidences .9 .9 .6 in bins (.8,1] (.4,.6]; right, wrong, right.
    p = [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]
    assert expected_calibration_error(p, [0, 1, 0], bins=5) == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.4)


def test_calibration_error_equals_its_definition_written_as_loops():
    _, labels, p = drawn(300, 6, 1.7)
    total = 0.0
    for b in range(15):
        inside = [i for i in range(300) if b / 15 < p[i].max() <= (b + 1) / 15]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            total += len(inside) / 300 * abs(accuracy - np.mean([p[i].max() for i in inside]))
    assert expected_calibration_error(p, labels) == pytest.approx(total)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    bars = reliability_bins([[0.5, 0.5], [1.0, 0.0]], [0, 0], bins=2)
    assert [b.count for b in bars] == [1, 1]


def test_an_empty_bin_has_neither_confidence_nor_accuracy():
    first = reliability_bins([[1.0, 0.0]], [0], bins=2)[0]
    assert (first.count, first.confidence, first.accuracy) == (0, None, None)


@pytest.mark.parametrize("metric", [negative_log_likelihood, brier_score, expected_calibration_error])
def test_no_example_gives_nan_rather_than_a_perfect_score(metric):
    assert math.isnan(metric(np.zeros((0, 3)), np.zeros(0, dtype=int)))


@pytest.mark.parametrize("metric", [negative_log_likelihood, brier_score, expected_calibration_error])
def test_logits_and_foreign_labels_are_refused(metric):
    with pytest.raises(NotADistributionError, match="softmax"):
        metric([[2.0, -1.0]], [0])
    with pytest.raises(NotADistributionError, match="softmax"):
        metric([[2.0, 1.0]], [0])
    with pytest.raises(ShapeError, match=r"\[0, 2\)"):
        metric([[0.5, 0.5]], [2])
    with pytest.raises(ShapeError, match="2 labels"):
        metric([[0.5, 0.5], [0.5, 0.5]], [0])


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (5, 5), (3, 7), (553, 600)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_interval_equals_that_of_scipy(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(successes, n, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


def test_without_trials_the_interval_says_that_nothing_is_known():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 95)])
def test_impossible_counts_and_percentages_are_refused(successes, n, confidence):
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(successes, n, confidence)
