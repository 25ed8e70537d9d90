"""Risk-coverage numbers against enumeration of orders, loops and scikit-learn."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from uncertainty import selective
from uncertainty.errors import NonFiniteScoreError, ShapeError
from uncertainty.selective import (
    augrc,
    aupr_error,
    aupr_success,
    aurc,
    auroc,
    auroc_interval,
    coverage_at_accuracy,
    excess_aurc,
    fewest_accepted,
    mean_ranks,
    risk_coverage,
)

MEASURES = [aurc, excess_aurc, augrc, auroc, aupr_success, aupr_error]


def drawn(n, seed=0, levels=None):
    """Confidence, and whether right; with `levels`, only so many different confidences."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    correct = rng.random(n) < 0.3 + 0.6 * confidence
    return (confidence if levels is None else np.floor(confidence * levels) / levels), correct


def orders(confidence, correct):
    """Errors in every order that is sorted by confidence."""
    for order in permutations(range(len(confidence))):
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order)):
            yield [not correct[i] for i in order]


@pytest.mark.parametrize("seed", range(4))
def test_ties_count_as_the_mean_over_all_their_orders(seed):
    confidence, correct = drawn(7, seed, levels=3)
    risks, areas, silent = [], [], []
    for errors in orders(confidence, correct):
        risk = [sum(errors[: k + 1]) / (k + 1) for k in range(7)]
        risks.append(risk)
        areas.append(sum(risk) / 7)
        generalised = [0.0] + [sum(errors[: k + 1]) / 7 for k in range(7)]
        silent.append(np.trapezoid(generalised, dx=1 / 7))
    assert risk_coverage(confidence, correct).risk == pytest.approx(np.mean(risks, axis=0))
    assert aurc(confidence, correct) == pytest.approx(np.mean(areas))
    assert augrc(confidence, correct) == pytest.approx(np.mean(silent))


def test_without_ties_the_curve_is_the_running_share_of_errors():
    confidence, correct = drawn(50)
    curve = risk_coverage(confidence, correct)
    order = sorted(range(50), key=lambda i: -confidence[i])
    expected = [sum(not correct[i] for i in order[:k]) / k for k in range(1, 51)]
    assert curve.risk == pytest.approx(expected)
    assert curve.coverage == pytest.approx(np.arange(1, 51) / 50)
    assert curve.threshold.tolist() == [confidence[i] for i in order]
    assert curve.attainable.all()


def test_only_whole_runs_of_equal_confidence_are_attainable():
    curve = risk_coverage([0.9, 0.9, 0.5, 0.9], np.array([True, True, False, True]))
    assert curve.attainable.tolist() == [False, False, True, True]


@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("measure", MEASURES)
def test_the_order_of_rows_does_not_matter_nor_does_the_scale_of_confidence(measure, levels):
    confidence, correct = drawn(80, levels=levels)
    order = np.random.default_rng(1).permutation(80)
    expected = measure(confidence, correct)
    assert measure(confidence[order], correct[order]) == pytest.approx(expected, rel=1e-12)
    assert measure(np.exp(3 * confidence) - 7, correct) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("levels", [None, 6])
def test_auroc_and_average_precisions_equal_those_of_scikit_learn(levels):
    confidence, correct = drawn(200, 3, levels)
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence))
    assert aupr_success(confidence, correct) == pytest.approx(average_precision_score(correct, confidence))
    assert aupr_error(confidence, correct) == pytest.approx(average_precision_score(~correct, -confidence))


@pytest.mark.parametrize("levels", [None, 1, 4])
def test_ranks_equal_those_of_scipy(levels):
    confidence, _ = drawn(50, 0, levels)
    assert (mean_ranks(confidence) == rankdata(confidence)).all()
    assert mean_ranks(confidence[:0]).shape == (0,)


def test_auroc_counts_pairs_and_half_of_the_ties():
    confidence, correct = drawn(30, 2, levels=4)
    pairs = [(a, b) for a in confidence[correct] for b in confidence[~correct]]
    assert auroc(confidence, correct) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))


@pytest.mark.parametrize("levels", [None, 4])
def test_augrc_follows_from_auroc_and_the_error_rate(levels):
    confidence, correct = drawn(300, 5, levels)
    r = 1 - correct.mean()
    expected = (1 - auroc(confidence, correct)) * r * (1 - r) + r * r / 2
    assert augrc(confidence, correct) == pytest.approx(expected)


def test_a_perfect_ranking_has_no_excess_but_that_of_few_examples():
    correct = np.arange(4000) < 3000
    assert excess_aurc(-np.arange(4000), correct) == pytest.approx(0.25 / 8000, rel=0.01)


def test_one_confidence_for_all_has_the_area_of_the_error_rate():
    _, correct = drawn(40)
    assert aurc(np.zeros(40), correct) == pytest.approx(1 - correct.mean())
    assert auroc(np.zeros(40), correct) == 0.5


def test_models_that_are_always_right_or_always_wrong():
    confidence = np.arange(5.0)
    right, wrong = np.ones(5, bool), np.zeros(5, bool)
    assert (aurc(confidence, right), excess_aurc(confidence, right), augrc(confidence, right)) == (0, 0, 0)
    assert (aurc(confidence, wrong), excess_aurc(confidence, wrong), augrc(confidence, wrong)) == (1, 0, 0.5)
    assert math.isnan(auroc(confidence, right)) and math.isnan(auroc(confidence, wrong))
    assert aupr_success(confidence, right) == 1 and math.isnan(aupr_success(confidence, wrong))
    assert aupr_error(confidence, wrong) == 1 and math.isnan(aupr_error(confidence, right))


@pytest.mark.parametrize("measure", [*MEASURES, lambda c, r: coverage_at_accuracy(c, r, 0.9)])
def test_no_example_gives_nan_rather_than_a_perfect_score(measure):
    assert math.isnan(measure([], []))


def test_the_curve_of_no_example_is_empty():
    assert len(risk_coverage([], []).risk) == 0


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9])
def test_coverage_at_accuracy_is_the_best_of_all_thresholds(wanted, levels):
    confidence, correct = drawn(400, 1, levels)
    best = 0.0
    for threshold in np.unique(confidence):
        accepted = confidence >= threshold
        if accepted.sum() >= 30 and correct[accepted].mean() >= wanted:
            best = max(best, accepted.mean())
    assert coverage_at_accuracy(confidence, correct, wanted, min_accepted=30) == best


def test_a_lucky_few_do_not_count():
    correct = np.arange(3000) < 150
    assert coverage_at_accuracy(-np.arange(3000), correct, 0.95) == 0
    assert coverage_at_accuracy(-np.arange(3000), correct, 0.95, min_accepted=1) == pytest.approx(157 / 3000)


def test_an_accuracy_met_exactly_is_met():
    correct = np.arange(20) != 7
    assert coverage_at_accuracy(np.zeros(20), correct, 0.95) == 1


@pytest.mark.parametrize(
    ("n", "expected"), [(0, 0), (5, 5), (20, 20), (150, 20), (600, 60), (2000, 200), (9000, 200), (50_000, 1000)]
)
def test_fewest_accepted_grow_with_the_labelled_set(n, expected):
    assert fewest_accepted(n) == expected


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ShapeError, match="shape"):
        aurc([0.1, 0.2], np.array([True]))
    with pytest.raises(ShapeError, match="booleans"):
        aurc([0.1, 0.2], [1, 0])
    with pytest.raises(ShapeError, match=r"\[n\]"):
        aurc([[0.1]], np.array([[True]]))
    with pytest.raises(NonFiniteScoreError, match="rows 1"):
        auroc([0.1, np.nan], np.array([True, False]))
    with pytest.raises(ValueError, match=r"0\.95"):
        coverage_at_accuracy([0.1], np.array([True]), 95)


def test_input_is_left_untouched():
    confidence, correct = drawn(20)
    before = confidence.copy(), correct.copy()
    for measure in MEASURES:
        measure(confidence, correct)
    assert (confidence == before[0]).all() and (correct == before[1]).all()
    assert selective.risk_coverage(confidence.tolist(), correct.tolist()).risk.shape == (20,)


@pytest.mark.parametrize("right", [12, 60])
def test_the_interval_of_the_auroc_holds_the_truth_about_as_often_as_it_says(right):
    # Right answers are one standard deviation surer: the truth is the normal distribution function at 1/sqrt(2).
    truth = 0.5 * (1 + math.erf(1 / 2))
    held = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        correct = np.arange(right + 25) < right
        low, high = auroc_interval(rng.normal(size=right + 25) + correct, correct)
        held += low <= truth <= high
    assert 0.91 < held / 300 < 0.99


def test_the_interval_of_the_auroc_uses_the_variance_of_delong():
    confidence, correct = drawn(80, levels=9)
    positive, negative = confidence[correct], confidence[~correct]
    wins = (positive[:, None] > negative).astype(float) + (positive[:, None] == negative) / 2
    variance = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    area = (wins.sum() + 0.5) / (wins.size + 1)
    odds, half = math.log(area / (1 - area)), 1.959964 * math.sqrt(variance) / (area * (1 - area))
    expected = [1 / (1 + math.exp(-(odds + sign * half))) for sign in (-1, 1)]
    assert auroc_interval(confidence, correct) == pytest.approx(expected, rel=1e-5)


def test_a_perfect_separation_is_not_told_for_certain():
    low, high = auroc_interval(np.arange(20.0), np.arange(20) >= 8)
    assert 0.7 < low < 0.9 and 0.99 < high < 1
    assert auroc_interval(np.arange(20.0), np.arange(20) >= 19) == (0.0, 1.0)
    assert auroc_interval([], np.zeros(0, bool)) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"0\.95"):
        auroc_interval([0.1], np.array([True]), level=95)
