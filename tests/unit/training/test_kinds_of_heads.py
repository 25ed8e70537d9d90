"""Heads that choose any of several labels, a rating, or a number; each beside a second route to the same figures."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, f1_score

from training.answers import Amount, AnyOf, OneOf, output_of
from training.head import fit_head, fit_label_head
from training.head_measures import (
    as_array,
    as_classes,
    average_precision,
    distances,
    label_metrics,
    metrics_of,
    number_metrics,
)
from training.linear import log_softmax
from training.number_head import fit_number_head
from training.space import Space
from training.targets import HeadSpec

RNG = np.random.default_rng(5)
X = RNG.normal(size=(400, 8)).astype(np.float32)
SPACE = Space.learn(X)
LABELS = HeadSpec("labels", "multiple", ("a", "b", "c"))
AMOUNT = HeadSpec("age", "number", (), 0.0, 100.0)
STARS = HeadSpec("stars", "ordered", ("1", "2", "3", "4", "5"))


# ---------------------------------------------------------------------- any of several labels
def flags(n=200):
    unit = X[:n] / np.linalg.norm(X[:n], axis=1, keepdims=True)
    chance = 1 / (1 + np.exp(-6 * unit[:, :3] - np.array([0.0, -1.0, -2.0])))
    return np.random.default_rng(6).random((n, 3)) < chance


def test_one_label_is_calibrated_like_a_head_of_two_classes():
    on = flags()[:, :1]
    labels = fit_label_head(X[:200], on, SPACE)
    two = fit_head(X[:200], on[:, 0].astype(int), 2, SPACE)
    # The likelihood is flat around the best lambda: the searches may end one step apart.
    assert labels.nll_out_of_fold == pytest.approx(two.nll_out_of_fold, rel=2e-3)
    found = output_of(HeadSpec("q", "multiple", ("a",)), labels.head, labels.head.logits(X), {})
    np.testing.assert_allclose(found.probabilities[:, 0], two.head.probabilities(X)[:, 1], atol=0.03)


def test_labels_are_learnt_and_their_probabilities_hold():
    y = flags(400)
    fit = fit_label_head(X[:300], y[:300], SPACE)
    output = output_of(LABELS, fit.head, fit.head.logits(X[300:]), {})
    measured = label_metrics(output.probabilities, y[300:])
    assert measured["mean_average_precision"] > y[300:].mean() + 0.2
    assert measured["ece"] < 0.08


def test_with_no_label_given_nothing_is_known():
    fit = fit_label_head(X[:0], np.zeros((0, 3), bool), SPACE)
    output = output_of(LABELS, fit.head, fit.head.logits(X[:5]), {})
    np.testing.assert_allclose(output.probabilities, 0.5, atol=1e-6)
    np.testing.assert_allclose(output.uncertainty(), 1, atol=1e-5)


def test_what_nobody_ever_chose_becomes_unlikely_by_the_rule_of_succession():
    fit = fit_label_head(X[:9], np.zeros((9, 2), bool), SPACE)
    p = output_of(HeadSpec("q", "multiple", ("a", "b")), fit.head, fit.head.logits(X[:5]), {}).probabilities
    np.testing.assert_allclose(p, 0.05, atol=0.001)  # half a label on in ten


def test_an_answer_names_what_is_likelier_than_not_and_is_as_sure_as_all_of_it():
    output = AnyOf(LABELS, np.array([[0.9, 0.2, 0.6], [0.1, 0.1, 0.1]], np.float32))
    answers = output.answers()
    assert [answers.target(row) for row in (0, 1)] == [(0, 2), ()]
    np.testing.assert_allclose(answers.confidence, [0.9 * 0.8 * 0.6, 0.9**3], rtol=1e-5)
    np.testing.assert_allclose(output.uncertainty(), [np.mean([0.2, 0.4, 0.8]), 0.2], rtol=1e-5)
    assert output.chance_of((1, 2))[0] == pytest.approx(1 - 0.8 * 0.4)


def test_metrics_of_labels_agree_with_scikit_learn():
    rng = np.random.default_rng(8)
    p, y = np.round(rng.random((90, 4)), 1), rng.random((90, 4)) < 0.3  # rounded: equal scores occur
    found = label_metrics(p, y)
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(y, p, average="macro"))
    assert found["f1_macro"] == pytest.approx(f1_score(y, p > 0.5, average="macro", zero_division=0))
    assert found["accuracy"] == pytest.approx(np.mean(((p > 0.5) == y).all(1)))
    assert found["label_accuracy"] == pytest.approx(np.mean((p > 0.5) == y))
    assert found["brier"] == pytest.approx(
        np.mean([(1 - q - (1 - t)) ** 2 + (q - t) ** 2 for q, t in zip(p.flat, y.flat, strict=True)])
    )


def test_a_label_that_occurs_nowhere_is_left_out_and_nothing_is_measured_on_nothing():
    y = np.array([[True, False], [False, False]])
    assert label_metrics(np.array([[0.8, 0.9], [0.3, 0.1]]), y)["f1_macro"] == 1.0
    empty = label_metrics(np.zeros((0, 2)), np.zeros((0, 2), bool))
    assert empty["audit_n"] == 0 and set(empty.values()) == {0, None}


def test_precision_of_a_perfect_and_of_a_blind_ranking():
    truth = np.array([True, False, False, True])
    assert average_precision(np.array([0.9, 0.1, 0.2, 0.8]), truth) == 1.0
    assert average_precision(np.zeros(4), truth) == 0.5


def test_labels_as_classes_are_the_rarest_that_applies():
    targets = {1: (0,), 2: (0, 1), 3: (0, 2), 4: (0, 1, 2), 5: ()}  # a 4 times, b twice, c twice: b before c
    p = np.array([[0.7, 0.4, 0.2], [0.1, 0.5, 0.9]], np.float32)
    seen, classes = as_classes(AnyOf(LABELS, p), targets)
    assert classes == {1: 0, 2: 1, 3: 2, 4: 1, 5: 3}
    expected = np.zeros((2, 4))
    for row, on in itertools.product(range(2), itertools.product([False, True], repeat=3)):
        chance = np.prod([q if o else 1 - q for q, o in zip(p[row], on, strict=True)])
        expected[row, next((c for c in (1, 2, 0) if on[c]), 3)] += chance
    np.testing.assert_allclose(np.exp(seen), expected, rtol=1e-4)


# ---------------------------------------------------------------------- a rating
def test_a_rating_is_the_median_and_off_by_the_least():
    p = np.array([[0.3, 0.1, 0.2, 0.0, 0.4], [0.0, 0.0, 0.05, 0.05, 0.9]])
    output = OneOf(STARS, np.log(np.maximum(p, 1e-12)).astype(np.float32))
    answers = output.answers()
    np.testing.assert_array_equal(answers.answer, [2, 4])
    off = np.abs(np.arange(5)[None, :] - np.arange(5)[:, None])  # of each answer, by truth
    np.testing.assert_array_equal(answers.answer, (p @ off).argmin(1))
    np.testing.assert_allclose(output.uncertainty(), (p @ off).min(1) / 2, rtol=1e-5)
    found = metrics_of(output, np.array([4, 4]))
    assert (found["mae"], found["accuracy"], found["audit_n"]) == (1.0, 0.5, 2)


# ---------------------------------------------------------------------- a number
def years(n, noise=5.0, seed=9):
    unit = X[:n] / np.linalg.norm(X[:n], axis=1, keepdims=True)
    return np.clip(50 + 40 * unit[:, 0] - 20 * unit[:, 1] + np.random.default_rng(seed).normal(0, noise, n), 0, 100)


def amount(fit, x, spec=AMOUNT, low=0.0, high=100.0):
    return output_of(spec, fit.head, fit.head.logits(x), {"low": low, "high": high})


def test_numbers_are_those_of_ridge_regression():
    y = years(150)
    fit = fit_number_head(X[:150], y, (0.0, 100.0), SPACE)
    reference = Ridge(alpha=fit.regularisation).fit(SPACE.coordinates(X[:150]), y)
    np.testing.assert_allclose(amount(fit, X).mean, reference.predict(SPACE.coordinates(X)), atol=1e-2)


def test_the_spread_is_that_of_bayesian_regression():
    y = years(60)
    fit = fit_number_head(X[:60], y, (0.0, 100.0), SPACE)
    z = SPACE.coordinates(X).astype(np.float64)
    rows = z[:60] - z[:60].mean(0)
    inverse = np.linalg.inv(rows.T @ rows + fit.regularisation * np.eye(z.shape[1]))
    away = z - z[:60].mean(0)
    variance = 1 + 1 / 60 + np.einsum("nd,de,ne->n", away, inverse, away)
    np.testing.assert_allclose(amount(fit, X).sd, 100 * fit.head.temperature * np.sqrt(variance), rtol=1e-3)


def test_nine_of_ten_answers_lie_in_their_interval_and_the_noise_is_found():
    covered, noise = [], []
    for seed in range(5):
        y = years(400, seed=seed)
        fit = fit_number_head(X[:150], y[:150], (0.0, 100.0), SPACE)
        measured = number_metrics(amount(fit, X[150:]), y[150:])
        covered.append(measured["coverage_90"])
        noise.append(100 * fit.head.temperature)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.03)
    assert np.mean(noise) == pytest.approx(5, abs=0.7)


def test_far_from_what_is_labelled_a_number_is_less_certain():
    close = np.argsort(X[:, 2])[:60]
    fit = fit_number_head(X[close], years(400)[close], (0.0, 100.0), SPACE)
    uncertainty = amount(fit, X).uncertainty()
    assert uncertainty[np.argsort(X[:, 2])[-60:]].mean() > 1.02 * uncertainty[close].mean()


@pytest.mark.parametrize("n", [0, 1, 7])
def test_of_few_numbers_the_smoothed_mean_is_told(n):
    fit = fit_number_head(X[:n], np.full(n, 80.0), (0.0, 100.0), SPACE)
    found = amount(fit, X[:3])
    np.testing.assert_allclose(found.mean, (80 * n + 50) / (n + 1), atol=1e-3)
    assert (found.sd > 0).all() and np.isfinite(found.sd).all()


def test_numbers_that_are_all_alike_do_not_make_it_certain():
    fit = fit_number_head(X[:50], np.full(50, 30.0), (0.0, 100.0), SPACE)
    found = amount(fit, X[:5])
    np.testing.assert_allclose(found.mean, 30, atol=0.1)
    assert found.sd.min() >= 1


def test_a_second_fit_keeps_what_was_searched():
    first = fit_number_head(X[:100], years(100), (0.0, 100.0), SPACE)
    from training.head import Start

    start = Start(first.head, first.regularisation, first.regularisation_labels, first.temperature_labels)
    again = fit_number_head(X[:105], years(105), (0.0, 100.0), SPACE, start=start)
    assert (again.regularisation, again.head.temperature) == (first.regularisation, first.head.temperature)
    assert again.nll_out_of_fold is None


def test_an_answer_stays_in_the_range_and_on_the_steps():
    spec = HeadSpec("n", "number", (), 0.0, 10.0, 4.0)
    output = Amount(spec, np.array([-3.0, 5.9, 6.1, 11.0]), np.ones(4), 0.0, 10.0)
    np.testing.assert_array_equal(output.answers().answer, [0, 4, 8, 8])
    assert Amount(AMOUNT, np.array([120.0]), np.ones(1), 0.0, 100.0).answers().target(0) == 100.0


def test_how_sure_a_number_is_is_the_chance_to_be_off_by_little():
    output = Amount(AMOUNT, np.array([40.0, 102.0]), np.array([5.0, 3.0]), 0.0, 100.0)
    expected = [
        norm.cdf(45, 40, 5) - norm.cdf(35, 40, 5),
        norm.cdf(105, 102, 3) - norm.cdf(95, 102, 3),
    ]
    np.testing.assert_allclose(output.answers().confidence, expected, rtol=1e-5)
    np.testing.assert_allclose(output.uncertainty(), [0.05, 0.03], rtol=1e-5)


def test_metrics_of_numbers():
    output = Amount(AMOUNT, np.array([40.0, 60.0, 50.0]), np.array([5.0, 5.0, 5.0]), 0.0, 100.0)
    truth = np.array([44.0, 50.0, 50.0])
    found = number_metrics(output, truth)
    assert found["mae"] == pytest.approx(14 / 3)
    assert found["rmse"] == pytest.approx(np.sqrt(116 / 3))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["coverage_90"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-norm.logpdf(truth, output.mean, output.sd).mean())
    right, distance = distances(output, truth)
    np.testing.assert_array_equal(right, [True, False, True])
    np.testing.assert_allclose(distance, 2 * np.array([0.04, 0.1, 0]) ** 2, atol=1e-9)


def test_a_number_as_classes_falls_into_quarters_of_what_is_known():
    output = Amount(AMOUNT, np.array([10.0, 55.0]), np.array([10.0, 20.0]), 0.0, 100.0)
    targets = {i: float(i) for i in range(0, 101)}
    seen, classes = as_classes(output, targets)
    assert [classes[i] for i in (0, 26, 51, 100)] == [0, 1, 2, 3]
    edges = norm.cdf(np.array([[25.0, 50.0, 75.0]]), output.mean[:, None], output.sd[:, None])
    expected = np.diff(edges, axis=1, prepend=0, append=1)
    np.testing.assert_allclose(np.exp(seen), expected, atol=1e-6)


# ---------------------------------------------------------------------- all of them
@pytest.mark.parametrize("spec", [LABELS, AMOUNT, STARS], ids=lambda s: s.kind)
def test_answers_can_be_cut_moved_and_left_out(spec):
    if spec is LABELS:
        output = AnyOf(spec, RNG.random((6, 3)).astype(np.float32))
    elif spec is AMOUNT:
        output = Amount(spec, RNG.random(6) * 100, np.full(6, 9.0), 0.0, 100.0)
    else:
        output = OneOf(spec, log_softmax(RNG.normal(size=(6, 5))).astype(np.float32))
    answers = output.answers()
    assert spec.valid(answers.target(3))
    moved = answers.take(np.array([3, 1])).scattered(np.array([4, 0]), 5)
    assert [moved.target(row) for row in range(5)] == [answers.target(1), None, None, None, answers.target(3)]
    array = as_array(spec, [answers.target(row) for row in range(6)])
    right, distance = distances(output, array)
    assert right.all() and ((distance >= 0) & (distance <= 2)).all()
    assert ((output.uncertainty() >= 0) & (output.uncertainty() <= 1)).all()
    assert np.allclose(np.exp(as_classes(output, {})[0]).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [(LABELS, 1), (LABELS, (3,)), (STARS, 5), (STARS, (1,)), (STARS, 2.0), (AMOUNT, 3), (AMOUNT, float("nan"))],
)
def test_a_target_of_another_kind_is_no_answer(spec, wrong):
    assert not spec.valid(wrong)


@pytest.mark.parametrize("spec", [LABELS, AMOUNT, STARS, HeadSpec("q", "single", ("x", "y"))], ids=lambda s: s.kind)
def test_a_question_comes_back_from_its_record(spec):
    assert HeadSpec.of(spec.record()) == spec


def test_numbers_that_the_features_were_learnt_from_do_not_say_how_exact_a_head_is():
    rng = np.random.default_rng(0)
    y = rng.uniform(0, 100, 400)
    seen = np.arange(400) % 2 == 0
    x = rng.normal(size=(400, 5)).astype(np.float32)
    x[:, 0] = (y - 50) / 10 + np.where(seen, 0.05, 3.0) * rng.normal(size=400)
    space = Space.learn(x)
    told = fit_number_head(x, y, (0.0, 100.0), space, seen=seen)
    by_all = fit_number_head(x, y, (0.0, 100.0), space)
    assert told.head.temperature > 1.2 * by_all.head.temperature
    off = told.head.logits(x[~seen])[:, 0] - y[~seen] / 100
    assert told.head.temperature == pytest.approx(off.std(), rel=0.15)
