"""Telling familiar from foreign examples, against scikit-learn and loops."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from uncertainty.errors import NonFiniteScoreError, ShapeError
from uncertainty.ood import false_positive_rate, ood_auroc


def scores(n, m, seed=0, decimals=9):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, n).round(decimals), rng.normal(0, 1, m).round(decimals)


@pytest.mark.parametrize("decimals", [9, 0], ids=["distinct", "tied"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (20, 7), (133, 250)])
def test_both_numbers_equal_those_of_scikit_learn(n, m, decimals):
    inside, outside = scores(n, m, n, decimals)
    truth, all_scores = np.arange(n + m) < n, np.concatenate([inside, outside])
    assert ood_auroc(inside, outside) == pytest.approx(roc_auc_score(truth, all_scores))
    false, true, _ = roc_curve(truth, all_scores, drop_intermediate=False)
    assert false_positive_rate(inside, outside) == pytest.approx(false[np.argmax(true >= 0.95 - 1e-9)])


@pytest.mark.parametrize("n", [1, 19, 20, 21, 60, 100])
def test_the_threshold_is_the_strictest_that_keeps_95_per_cent_of_the_familiar(n):
    inside, outside = scores(n, 200, n)
    rates = [(outside >= t).mean() for t in inside if (inside >= t).sum() * 20 >= 19 * n]
    assert false_positive_rate(inside, outside) == min(rates)


def test_scores_that_lie_apart_and_scores_that_are_all_equal():
    assert ood_auroc([3, 4], [1, 2]) == 1 and false_positive_rate([3, 4], [1, 2]) == 0
    assert ood_auroc([1, 2], [3, 4]) == 0 and false_positive_rate([1, 2], [3, 4]) == 1
    assert ood_auroc([1, 1], [1, 1]) == 0.5 and false_positive_rate([1, 1], [1, 1]) == 1


def test_without_either_kind_nothing_is_said():
    assert math.isnan(ood_auroc([], [1.0])) and math.isnan(false_positive_rate([1.0], []))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ShapeError, match=r"\[n\]"):
        ood_auroc([[1.0]], [1.0])
    with pytest.raises(NonFiniteScoreError, match="rows 2"):
        false_positive_rate([1.0, 2.0], [np.inf])
    with pytest.raises(ValueError, match="share"):
        false_positive_rate([1.0], [1.0], kept=95)
