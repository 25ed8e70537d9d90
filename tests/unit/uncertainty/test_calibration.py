"""Calibration numbers against closed forms, scipy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import brier_score_loss, log_loss

from uncertainty.calibration import (
    adaptive_calibration_error,
    brier_score,
    calibration_report,
    classwise_calibration_error,
    debiased_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
    squared_calibration_error,
    wilson_interval,
)
from uncertainty.errors import NotADistributionError, ShapeError
from uncertainty.intervals import bootstrap, reflected_interval
from uncertainty.temperature import COLD_TEMPERATURE, fit_temperature

METRICS = {
    "nll": negative_log_likelihood,
    "brier": brier_score,
    "ece": expected_calibration_error,
    "adaptive_ece": adaptive_calibration_error,
    "classwise_ece": classwise_calibration_error,
    "debiased_error": debiased_calibration_error,
}


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


@pytest.mark.parametrize("metric", [*METRICS.values(), squared_calibration_error])
def test_no_example_gives_nan_rather_than_a_perfect_score(metric):
    assert math.isnan(metric(np.zeros((0, 3)), np.zeros(0, dtype=int)))


@pytest.mark.parametrize("metric", [*METRICS.values(), squared_calibration_error])
def test_logits_and_foreign_labels_are_refused(metric):
    with pytest.raises(NotADistributionError, match="softmax"):
        metric([[2.0, -1.0]], [0])
    with pytest.raises(NotADistributionError, match="softmax"):
        metric([[2.0, 1.0]], [0])
    with pytest.raises(ShapeError, match=r"\[0, 2\)"):
        metric([[0.5, 0.5]], [2])
    with pytest.raises(ShapeError, match="2 labels"):
        metric([[0.5, 0.5], [0.5, 0.5]], [0])


def test_equal_mass_bins_are_runs_of_the_order_of_confidence():
    _, labels, p = drawn(300, 6, 1.7)
    gap = p.max(1) - (p.argmax(1) == labels)
    runs = np.array_split(gap[np.argsort(p.max(1))], 15)
    assert adaptive_calibration_error(p, labels) == pytest.approx(sum(abs(run.sum()) for run in runs) / 300)


@pytest.mark.parametrize("metric", METRICS.values())
def test_the_order_of_examples_with_equal_confidence_does_not_matter(metric):
    p = np.repeat([[0.7, 0.3], [0.9, 0.1]], [40, 10], axis=0)
    labels = np.random.default_rng(0).integers(0, 2, 50)
    order = np.random.default_rng(1).permutation(50)
    assert metric(p[order], labels[order]) == pytest.approx(metric(p, labels))


def test_with_one_confidence_for_all_equal_mass_bins_are_one_bin():
    p = np.repeat([[0.7, 0.3]], 10, axis=0)
    labels = np.array([0] * 5 + [1] * 5)
    assert adaptive_calibration_error(p, labels) == pytest.approx(0.2)
    # Kumar et al.: squared gap less accuracy (1 - accuracy) / (n - 1).
    assert squared_calibration_error(p, labels) == pytest.approx(0.2**2 - 0.25 / 9)


def test_class_wise_error_equals_its_definition_written_as_loops():
    _, labels, p = drawn(200, 4, 1.7)
    total = 0.0
    for c in range(4):
        for b in range(15):
            inside = (p[:, c] > b / 15) & (p[:, c] <= (b + 1) / 15)
            if inside.any():
                total += inside.sum() / 200 * abs((labels[inside] == c).mean() - p[inside, c].mean()) / 4
    assert classwise_calibration_error(p, labels) == pytest.approx(total)


def test_squared_error_equals_the_mean_over_pairs_of_different_examples():
    _, labels, p = drawn(60, 4, 1.7)
    gap = p.max(1) - (p.argmax(1) == labels)
    total = 0.0
    for run in np.array_split(gap[np.argsort(p.max(1))], 5):
        total += np.mean([run[i] * run[j] for i in range(12) for j in range(12) if i != j]) / 5
    assert squared_calibration_error(p, labels, bins=5) == pytest.approx(total)
    assert debiased_calibration_error(p, labels, bins=5) == pytest.approx(math.sqrt(max(0, total)))


@pytest.mark.parametrize("overconfidence", [0.0, 0.15])
def test_squared_error_is_right_on_average_where_the_plain_one_is_too_large(overconfidence):
    rng = np.random.default_rng(0)
    p = np.repeat([[0.7, 0.3], [0.95, 0.05]], 20, axis=0)
    truth = np.repeat([0.7, 0.95], 20) - overconfidence
    draws = [(rng.random(40) >= truth).astype(int) for _ in range(400)]
    unbiased = np.array([squared_calibration_error(p, y, bins=2) for y in draws])
    assert abs(unbiased.mean() - overconfidence**2) < 4 * unbiased.std() / math.sqrt(len(draws))
    plain = np.mean([adaptive_calibration_error(p, y, bins=2) ** 2 for y in draws])
    assert plain > overconfidence**2 + 0.001


def test_bins_of_one_example_cannot_tell_their_noise():
    p = [[0.6, 0.4], [0.8, 0.2]]
    assert math.isnan(squared_calibration_error(p, [0, 0]))
    assert math.isnan(debiased_calibration_error(p, [0, 0]))


def test_report_holds_what_each_measure_says_by_itself():
    _, labels, p = drawn(300, 4, 1.7)
    report = calibration_report(p, labels, resamples=0)
    assert {name: e.value for name, e in report.items()} == pytest.approx({n: m(p, labels) for n, m in METRICS.items()})
    assert all(e.low is None and e.high is None for e in report.values())


def test_intervals_are_repeatable_surround_proper_scores_and_stay_within_bounds():
    _, labels, p = drawn(200, 3, 1.0)
    report = calibration_report(p, labels, resamples=100, seed=5)
    assert report == calibration_report(p, labels, resamples=100, seed=5)
    assert report != calibration_report(p, labels, resamples=100, seed=6)
    assert all(0 <= e.low <= e.high for e in report.values())
    assert all(report[name].low < report[name].value < report[name].high for name in ("nll", "brier"))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_intervals_hold_the_truth_about_as_often_as_they_say(temperature):
    def stated(n, seed):
        logits, labels, _ = drawn(n, 4, temperature, seed)
        return softmax(logits, axis=1), labels

    truth = calibration_report(*stated(50_000, 99), resamples=0)
    held = dict.fromkeys(METRICS, 0)
    for seed in range(40):
        for name, e in calibration_report(*stated(300, seed), resamples=60, seed=seed).items():
            held[name] += e.low <= truth[name].value <= e.high
    # 95 % of 40 is 38; binomial noise and that of so few resamples take some: 32 is 80 %.
    assert min(held.values()) >= 32, held


def test_a_single_example_says_nothing_about_its_own_spread():
    report = calibration_report([[0.6, 0.4]], [0])
    assert (report["ece"].low, report["ece"].high) == (0, 1)
    assert (report["nll"].low, report["nll"].high) == (0, math.inf)
    assert all(math.isnan(e.value) for e in calibration_report(np.zeros((0, 2)), np.zeros(0, dtype=int)).values())


def test_bins_and_resamples_below_zero_are_refused():
    with pytest.raises(ShapeError, match="one bin"):
        classwise_calibration_error([[0.6, 0.4]], [0], bins=0)
    with pytest.raises(ValueError, match="resamples"):
        calibration_report([[0.6, 0.4]], [0], resamples=-1)


def test_bootstrap_interval_of_a_mean_is_that_of_scipy():
    x = np.random.default_rng(0).exponential(size=80)
    draws = bootstrap(lambda rows: x[rows].mean(), 80, resamples=2000)
    expected = scipy_bootstrap((x,), np.mean, method="basic", n_resamples=2000, rng=1).confidence_interval
    assert reflected_interval(x.mean(), draws) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_reflected_interval_leaves_out_draws_that_could_not_be_measured():
    assert reflected_interval(0.5, [np.nan, 0.5, 0.5]) == (0.5, 0.5)
    assert reflected_interval(0.5, [np.nan], bounds=(0, 1)) == (0, 1)
    assert all(math.isnan(end) for end in reflected_interval(math.nan, [0.5]))
    with pytest.raises(ValueError, match="95"):
        reflected_interval(0.5, [0.5], confidence=95)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap(lambda rows: 0.0, 0)


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
