"""The gate: who is refused, at what level, and how it is said."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from training.errors import DataError
from training.gate import MARGIN, compare, decide, squared_distances


def test_paired_test_is_the_exact_sign_test_on_what_differs():
    candidate = np.array([True] * 50 + [True] * 3 + [False] * 11 + [False] * 6)
    live = np.array([True] * 50 + [False] * 3 + [True] * 11 + [False] * 6)
    result = compare(candidate, live)
    assert (result.candidate_only, result.live_only, result.examples) == (3, 11, 70)
    assert result.chance == pytest.approx(binomtest(3, 14, alternative="less").pvalue)
    assert result.worse
    assert not compare(live, candidate).worse


@pytest.mark.parametrize("n", [0, 1, 40])
def test_equal_versions_are_not_worse(n):
    right = np.arange(n) % 2 == 0
    result = compare(right, right)
    assert (result.chance, result.worse) == (1.0, False)


def test_four_losses_in_a_row_may_be_chance_and_five_are_not():
    nothing = np.zeros(5, bool)
    assert not compare(nothing[:4], ~nothing[:4]).worse  # 1/16
    assert compare(nothing, ~nothing).worse  # 1/32


def test_paired_test_refuses_different_examples():
    with pytest.raises(DataError, match="same examples"):
        compare(np.ones(3, bool), np.ones(4, bool))


def test_squared_distances_average_to_the_brier_score_of_a_naive_loop():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(4), 30), rng.integers(0, 4, 30)
    naive = [sum((p[i, c] - (c == y[i])) ** 2 for c in range(4)) for i in range(30)]
    assert squared_distances(p, y) == pytest.approx(naive)


def test_a_class_that_a_version_does_not_know_is_an_answer_it_cannot_give():
    assert squared_distances(np.array([[0.75, 0.25]]), np.array([-1])) == pytest.approx([0.75**2 + 0.25**2 + 1])


def briers(n, shift, seed=0):
    rng = np.random.default_rng(seed)
    live = rng.uniform(0, 1, n)
    return np.clip(live + rng.normal(shift, 0.2, n), 0, 2), live


def test_stated_probabilities_that_got_worse_are_found_where_answers_are_the_same():
    right = np.ones(60, bool)
    candidate, live = briers(60, 0.12)
    result = compare(right, right, candidate, live)
    expected = ttest_1samp(candidate - live, MARGIN, alternative="greater").pvalue
    assert result.brier_chance == pytest.approx(expected) and result.worse
    assert not compare(right, right, live, candidate).worse


def test_what_is_worse_by_less_than_the_margin_everywhere_is_not_refused():
    right, live = np.ones(500, bool), np.full(500, 0.3)
    assert not compare(right, right, live + MARGIN / 2, live).worse
    assert compare(right, right, live + 2 * MARGIN, live).worse


def test_with_few_examples_only_answers_decide():
    right = np.ones(9, bool)
    candidate, live = briers(9, 0.5)
    result = compare(right, right, candidate, live)
    assert result.brier_chance is None and not result.worse and result.brier_difference > 0.3


def test_two_tests_share_the_level():
    nothing, same = np.zeros(25, bool), np.full(25, 0.2)
    five = np.arange(25) < 5  # 1/32 by chance: enough for one test, not for one of two
    assert compare(nothing, five).worse
    assert not compare(nothing, five, same, same).worse


def test_the_outcome_is_told_in_numbers():
    right = np.arange(30) < 20
    candidate, live = briers(30, 0.2)
    assert compare(right, ~right, candidate, live).words() == (
        "on 30 audit labels it alone is right 20 times, the live version alone 10 times, "
        f"and its Brier score is {abs((candidate - live).mean()):.3f} higher (worse)"
    )
    assert "no audit labels" in compare(right[:0], right[:0]).words()


def test_a_change_that_costs_much_must_be_ahead_by_one_measure():
    right = np.arange(40) < 30
    live = briers(40, 0.0)[1]
    behind = compare(right, right, live + MARGIN / 2, live)
    assert not behind.worse and not behind.better
    assert decide(behind, "g1").promoted and not decide(behind, "g1", must_gain=True).promoted
    ahead = compare(right, right & (np.arange(40) > 0), live + MARGIN / 2, live)
    assert ahead.better and decide(ahead, "g1", must_gain=True).promoted
