"""All resamples at once give what one resample at a time gives."""

import numpy as np
import pytest

from uncertainty.calibration import squared_calibration_error
from uncertainty.resamples import Resamples
from uncertainty.selective import aurc, coverage_at_accuracy


def answers(n, seed=0, ties=False, accuracy=0.7):
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    correct = rng.random(n) < accuracy + 0.3 * (confidence - 0.5)
    return (confidence.round(1) if ties else confidence), correct


def repeated(resamples, one):
    return np.repeat(np.arange(len(resamples.counts)), resamples.counts[:, one])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "accuracy"), [(60, 0.7), (300, 0.9), (40, 0.1)])
def test_areas_and_coverages_equal_those_of_the_examples_repeated(n, accuracy, ties):
    confidence, correct = answers(n, ties=ties, accuracy=accuracy)
    resamples = Resamples.draw(n, resamples=40, seed=1)
    areas = resamples.aurc(confidence, correct)
    coverages = resamples.coverage_at_accuracy(confidence, correct, 0.8)
    for one in range(40):
        rows = repeated(resamples, one)
        assert areas[one] == pytest.approx(aurc(confidence[rows], correct[rows]), abs=1e-12)
        assert coverages[one] == pytest.approx(coverage_at_accuracy(confidence[rows], correct[rows], 0.8), abs=1e-12)


def test_an_accuracy_that_is_just_reached_counts_whatever_the_rounding():
    confidence = np.linspace(1, 0, 40)
    correct = np.ones(40, bool)
    correct[[19, 39]] = False  # 19 of the first 20 are right, 38 of all
    once = Resamples(np.ones((40, 1), np.uint8))
    assert once.coverage_at_accuracy(confidence, correct, 0.95)[0] == 1.0


def test_without_an_error_the_area_is_zero_and_everything_is_accepted():
    resamples = Resamples.draw(30, resamples=20)
    right = np.ones(30, bool)
    assert (resamples.aurc(np.linspace(0, 1, 30), right) == 0).all()
    assert (resamples.coverage_at_accuracy(np.linspace(0, 1, 30), right, 0.95) == 1).all()


def test_calibration_errors_equal_those_of_weighted_bins():
    rng = np.random.default_rng(3)
    probs = rng.dirichlet([0.5] * 4, 200)
    labels = rng.integers(0, 4, 200)
    resamples = Resamples.draw(200, resamples=10)
    once = Resamples(np.ones((200, 1), np.uint8))
    assert once.squared_calibration_error(probs, labels)[0] == pytest.approx(squared_calibration_error(probs, labels))
    confidence = probs.max(1)
    bins = ((np.argsort(np.argsort(confidence)) + 0.5) * 15 / 200).astype(int)
    gap = confidence - (probs.argmax(1) == labels)
    for one, found in enumerate(resamples.squared_calibration_error(probs, labels)):
        total = weight = 0.0
        for b in range(15):
            rows = [r for r in repeated(resamples, one) if bins[r] == b]
            k = len(rows)
            if k > 1:
                total += k * (gap[rows].sum() ** 2 - (gap[rows] ** 2).sum()) / (k * (k - 1))
                weight += k
        assert found == pytest.approx(total / weight)


def test_counts_are_those_of_a_poisson_distribution():
    counts = Resamples.draw(1000, resamples=1000).counts
    # A million draws: the standard deviation of these shares is below 0.0005.
    for k, share in enumerate([0.3679, 0.3679, 0.1839, 0.0613, 0.0153]):
        assert (counts == k).mean() == pytest.approx(share, abs=0.0025)


def test_the_spread_is_that_of_drawing_examples_with_replacement():
    confidence, correct = answers(200)
    ours = Resamples.draw(200, resamples=2000).aurc(confidence, correct).std()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 200, (2000, 200))
    theirs = np.std([aurc(confidence[r], correct[r]) for r in rows])
    assert ours == pytest.approx(theirs, rel=0.08)


def test_the_same_seed_draws_the_same():
    assert (Resamples.draw(50, seed=4).counts == Resamples.draw(50, seed=4).counts).all()
    assert (Resamples.draw(50, seed=4).counts != Resamples.draw(50, seed=5).counts).any()


def test_nothing_cannot_be_drawn_from():
    with pytest.raises(ValueError, match="at least one example"):
        Resamples.draw(0)
