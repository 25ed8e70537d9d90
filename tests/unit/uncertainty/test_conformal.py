"""Conformal sets against loops, closed forms and simulated coverage."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from uncertainty.conformal import SCORES, evaluate, fit, labels_needed, leave_one_out, never_empty
from uncertainty.errors import NotADistributionError, ShapeError


def drawn(n, C, seed, temperature=0.5, bias=None):
    """Over-confident probabilities, and labels drawn from softer ones; `bias` [C] makes some classes frequent."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, C)) + (0 if bias is None else np.asarray(bias))
    labels = (softmax(logits, axis=1).cumsum(1) > rng.random((n, 1))).argmax(1)
    return softmax(logits / temperature, axis=1), labels


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("score", SCORES)
def test_coverage_over_many_calibrations_is_what_was_promised(score, alpha):
    n, m, repeats = 99, 20, 150
    hits = 0
    for seed in range(repeats):
        p, y = drawn(n + m, 5, seed)
        sets = fit(p[:n], y[:n], alpha=alpha, score=score, seed=seed).sets(p[n:], seed=seed)
        hits += int(sets[np.arange(m), y[n:]].sum())
    # (n + 1)(1 - alpha) is whole, so the chance is exactly 1 - alpha. Examples of one calibration go together: their
    # coverage is Beta(n + 1 - l, l), l = (n + 1) alpha.
    share = hits / (m * repeats)
    variance = alpha * (1 - alpha) * (1 / (n + 2) + 1 / m) / repeats
    assert abs(share - (1 - alpha)) < 4 * math.sqrt(variance)


@pytest.mark.parametrize("n", [9, 10, 25])
def test_the_threshold_is_the_stated_order_statistic(n):
    p, y = drawn(n, 4, 0)
    scores = sorted(1 - p[i, y[i]] for i in range(n))
    place = -(-(n + 1) * 9 // 10)  # ceil of nine tenths, in whole numbers
    assert fit(p, y, alpha=0.1).thresholds == pytest.approx(np.full(4, scores[place - 1]))


def test_adaptive_scores_equal_their_definition_written_as_loops():
    p, y = drawn(40, 12, 1)
    fitted = fit(p, y, alpha=0.2, score="raps", lam=0.05, k_reg=3, seed=7)
    chance = np.random.default_rng([7, 0]).random(40)
    scores = []
    for i in range(40):
        rank = 1 + sum(p[i] > p[i, y[i]])
        down_to = sum(v for v in p[i] if v >= p[i, y[i]])
        scores.append(down_to - chance[i] * p[i, y[i]] + 0.05 * max(0, rank - 3))
    assert fitted.thresholds[0] == pytest.approx(sorted(scores)[math.ceil(41 * 0.8 - 1e-9) - 1])


@pytest.mark.parametrize("score", SCORES)
def test_sets_hold_the_likeliest_classes(score):
    p, y = drawn(300, 6, 2)
    sets = fit(p[:200], y[:200], score=score).sets(p[200:])
    for row, held in zip(p[200:], sets, strict=True):
        assert set(np.flatnonzero(held)) == set(np.argsort(-row)[: held.sum()])


def test_the_penalty_shortens_the_longest_sets():
    p, y = drawn(4000, 30, 3, temperature=1.5)
    size = {s: fit(p[:2000], y[:2000], score=s).sets(p[2000:]).sum(1).max() for s in ("aps", "raps")}
    assert size["raps"] < size["aps"]


@pytest.mark.parametrize(("classes", "lam", "k_reg"), [(4, 0.1, 2), (10, 0.1, 2), (11, 0.01, 5)])
def test_the_penalty_fits_the_number_of_classes(classes, lam, k_reg):
    fitted = fit(*drawn(20, classes, 0), score="raps")
    assert (fitted.lam, fitted.k_reg) == (lam, k_reg)


def test_the_same_seed_gives_the_same_sets():
    p, y = drawn(200, 5, 4)
    fitted = fit(p, y, score="aps", seed=3)
    assert (fitted.sets(p, seed=1) == fitted.sets(p, seed=1)).all()
    assert (fitted.sets(p, seed=1) != fitted.sets(p, seed=2)).any()
    assert (fit(p, y, score="aps", seed=3).thresholds == fitted.thresholds).all()


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, 1), (0.2, 4), (0.1, 9), (0.05, 19), (0.01, 99), (0.9, 1)])
def test_the_labels_needed_are_the_fewest_for_which_a_threshold_exists(alpha, expected):
    assert labels_needed(alpha) == expected
    p, y = drawn(expected, 4, 0)
    enough, short = fit(p, y, alpha=alpha), fit(p[:-1], y[:-1], alpha=alpha)
    assert np.isfinite(enough.thresholds).all() and enough.missing == 0
    assert np.isinf(short.thresholds).all() and short.missing == 1


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("n", [0, 8])
def test_with_too_few_labels_every_set_holds_every_class(n, score, per_class):
    p, y = drawn(20, 5, 0)
    fitted = fit(p[:n], y[:n], alpha=0.1, score=score, per_class=per_class)
    assert fitted.sets(p).all()
    assert fitted.missing == 9 - n


def test_classes_with_enough_labels_get_their_own_threshold_and_the_rest_share_one():
    p, _ = drawn(160, 4, 0)
    y = np.repeat([0, 1, 2, 3], [60, 50, 49, 1])
    fitted = fit(p, y, alpha=0.1, per_class=True)
    assert (fitted.own, fitted.pooled) == ((0, 1), (2, 3))
    assert fitted.labels.tolist() == [60, 50, 49, 1]
    for c in (0, 1):
        assert fitted.thresholds[c] == fit(p[y == c], y[y == c], alpha=0.1).thresholds[0]
    rest = y >= 2
    assert fitted.thresholds[2] == fitted.thresholds[3] == fit(p[rest], y[rest], alpha=0.1).thresholds[0]


def test_a_rare_rest_without_labels_is_always_in_the_set_and_says_what_is_missing():
    p, _ = drawn(123, 3, 0)
    y = np.repeat([0, 1, 2], [60, 60, 3])
    fitted = fit(p, y, alpha=0.1, per_class=True)
    assert fitted.missing == 6
    sets = fitted.sets(p)
    assert sets[:, 2].all() and not sets[:, :2].all()


def test_a_small_alpha_asks_for_more_labels_of_a_class():
    p, _ = drawn(120, 2, 0)
    y = np.repeat([0, 1], 60)
    assert fit(p, y, alpha=0.01, per_class=True).pooled == (0, 1)
    assert fit(p, y, alpha=0.02, per_class=True).own == (0, 1)


def test_each_class_is_covered_where_one_threshold_for_all_would_miss_the_rare_one():
    bias, misses = [3.0, 0.0, -1.0], {True: 0, False: 0}
    rare = 0
    for seed in range(30):
        p, y = drawn(4000, 3, seed, bias=bias)
        test = slice(2000, 4000)
        rare += int((y[test] == 2).sum())
        for per_class in (True, False):
            sets = fit(p[:2000], y[:2000], alpha=0.1, per_class=per_class).sets(p[test])
            misses[per_class] += int((~sets[:, 2] & (y[test] == 2)).sum())
    assert binom.sf(misses[True] - 1, rare, 0.1 * 1.15) > 1e-3  # 15 %: calibrations of some 80 labels vary
    assert misses[False] / rare > 0.2


def test_report_on_sets_counts_what_they_hold():
    sets = np.array([[True, False, False], [True, True, False], [False, False, False], [True, True, True]])
    report = evaluate(sets, [0, 1, 1, 1])
    assert (report.examples, report.coverage, report.mean_size) == (4, 0.75, 1.5)
    assert (report.empty, report.single) == (0.25, 0.25)
    assert report.class_coverage == (1, pytest.approx(2 / 3), None)
    assert report.coverage_low < 0.75 < report.coverage_high


def test_report_on_no_sets_claims_nothing():
    report = evaluate(np.zeros((0, 2), bool), np.zeros(0, int))
    assert math.isnan(report.coverage) and (report.coverage_low, report.coverage_high) == (0, 1)
    assert report.class_coverage == (None, None)


def test_what_makes_no_sense_is_refused():
    p, y = drawn(20, 3, 0)
    for wrong in (0, 1, 5):
        with pytest.raises(ValueError, match="alpha"):
            fit(p, y, alpha=wrong)
    with pytest.raises(ValueError, match="lac, aps, raps"):
        fit(p, y, score="thr")
    with pytest.raises(ValueError, match="belong to raps"):
        fit(p, y, score="aps", lam=0.1)
    with pytest.raises(ValueError, match="lam >= 0"):
        fit(p, y, score="raps", lam=-0.1)
    with pytest.raises(NotADistributionError, match="softmax"):
        fit(np.log(p), y)
    with pytest.raises(ShapeError, match="3 classes"):
        fit(p, y).sets(np.ones((1, 2)) / 2)
    with pytest.raises(ShapeError, match="booleans"):
        evaluate(p, y)


@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_leaving_one_out_equals_fitting_without_it(alpha):
    p, y = drawn(70, 4, 3)
    p = p.round(2) / p.round(2).sum(1, keepdims=True)  # ties
    inside = leave_one_out(p, y, alpha=alpha)
    for i in range(70):
        rest = np.arange(70) != i
        np.testing.assert_array_equal(inside[i], fit(p[rest], y[rest], alpha=alpha).sets(p[i : i + 1])[0])


def test_leaving_one_out_by_class_equals_fitting_each_group_without_it():
    p, y = drawn(260, 4, 4, bias=[2, 1.5, 0, -1])
    inside = leave_one_out(p, y, per_class=True)
    own = [c for c in range(4) if (y == c).sum() >= 50]
    assert 0 < len(own) < 4
    groups = [[c] for c in own] + [[c for c in range(4) if c not in own]]
    expected = np.zeros_like(inside)
    for i in range(260):
        for members in groups:
            rows = np.isin(y, members) & (np.arange(260) != i)
            scores = np.sort(1 - p[rows, y[rows]])
            threshold = scores[math.ceil((len(scores) + 1) * 0.9 - 1e-9) - 1]
            expected[i, members] = 1 - p[i, members] <= threshold
    np.testing.assert_array_equal(inside, expected)


def test_with_too_few_labels_what_is_left_out_gets_every_class():
    p, y = drawn(9, 3, 0)
    assert leave_one_out(p, y, alpha=0.1).all()  # eight are left, nine are needed
    assert leave_one_out(p[:0], y[:0]).shape == (0, 3)


def test_an_empty_set_gets_the_likeliest_class_and_others_stay():
    p = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    sets = np.array([[False, False, False], [False, True, True]])
    assert never_empty(sets, p).tolist() == [[False, True, False], [False, True, True]]
    assert not sets[0].any()  # the input is left untouched
    with pytest.raises(ShapeError, match="booleans"):
        never_empty(sets.astype(int), p)
