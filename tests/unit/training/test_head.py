"""The head agrees with independent solvers, survives labels of any kind, and searches only when it should."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from training import head as module
from training.errors import NoTrainableExamples, TrainingDiverged
from training.head import Start, fit_head, grouped_folds, solve
from training.linear import Head, log_softmax, unit_rows
from training.space import Space
from uncertainty.linear_head import fit_linear_head


def blobs(n, classes=3, width=12, seed=0, spread=1.0):
    """[n, width] features around one centre per class, and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width)) * 2 + 1
    y = rng.integers(0, classes, n)
    return (centres[y] + spread * rng.normal(size=(n, width))).astype(np.float32), y


def as_start(fit):
    return Start(fit.head, fit.regularisation, fit.regularisation_labels, fit.temperature_labels)


def zero(width, classes):
    return module._Solution.zero(width, classes)


# ---------------------------------------------------------------------- the optimum
@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [6, 40, 300])
def test_solution_predicts_what_scikit_learn_predicts_for_the_same_objective(n, lam):
    x, y = blobs(n, spread=2.0)
    z = Space.learn(x).coordinates(x)
    ours = solve(z, y, np.ones(n), 3, lam, zero(z.shape[1], 3))
    # The pseudo-example is a row of zeros of each class with weight 1/C.
    rows = np.vstack([z, np.zeros((3, z.shape[1]))]).astype(np.float64)
    weights = np.concatenate([np.ones(n), np.full(3, 1 / 3)])
    reference = LogisticRegression(C=1 / lam, tol=1e-8, max_iter=5000)
    reference.fit(rows, np.concatenate([y, [0, 1, 2]]), sample_weight=weights)
    np.testing.assert_allclose(softmax(ours.logits(z), axis=1), reference.predict_proba(z), atol=4e-3)


def test_warm_start_ends_where_a_cold_start_ends():
    x, y = blobs(300, spread=2.0)
    z = Space.learn(x).coordinates(x)
    cold = solve(z, y, np.ones(300), 3, 1.0, zero(z.shape[1], 3))
    far = module._Solution(np.random.default_rng(1).normal(size=cold.weight.shape), np.array([3.0, -3.0, 0.0]))
    warm = solve(z, y, np.ones(300), 3, 1.0, far)
    np.testing.assert_allclose(softmax(warm.logits(z), 1), softmax(cold.logits(z), 1), atol=4e-3)


def test_an_example_of_weight_two_counts_like_two_examples():
    x, y = blobs(50)
    z = Space.learn(x).coordinates(x)
    weights = np.ones(50)
    weights[:10] = 2
    weighted = solve(z, y, weights, 3, 1.0, zero(z.shape[1], 3))
    doubled = np.concatenate([np.arange(50), np.arange(10)])
    twice = solve(z[doubled], y[doubled], np.ones(60), 3, 1.0, zero(z.shape[1], 3))
    np.testing.assert_allclose(softmax(weighted.logits(z), 1), softmax(twice.logits(z), 1), atol=2e-3)


def test_without_useful_features_the_prediction_is_the_smoothed_share_of_each_class():
    y = np.array([0] * 6 + [1] * 3)
    z = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    solution = solve(z, y, np.ones(9), 3, 1e9, zero(4, 3))
    expected = (np.array([6, 3, 0]) + 1 / 3) / (9 + 1)  # one pseudo-example in total
    np.testing.assert_allclose(softmax(solution.bias), expected, atol=1e-3)


def test_scaling_all_embeddings_changes_no_prediction():
    x, y = blobs(60)
    plain = fit_head(x, y, 3, Space.learn(x)).head
    large = fit_head(100 * x, y, 3, Space.learn(100 * x)).head
    np.testing.assert_allclose(plain.probabilities(x), large.probabilities(100 * x), atol=1e-4)


# ---------------------------------------------------------------------- odd labels
def test_no_label_gives_the_uniform_prediction():
    x, _ = blobs(5)
    fit = fit_head(x[:0], [], 4, Space.learn(x))
    np.testing.assert_allclose(fit.head.probabilities(x), np.full((5, 4), 0.25), atol=1e-6)


@pytest.mark.parametrize("n", [1, 5, 50])
def test_labels_of_one_class_say_how_often_it_was_seen_and_nothing_more(n):
    x, _ = blobs(n + 5)
    probabilities = fit_head(x[:n], [2] * n, 3, Space.learn(x)).head.probabilities(x)
    expected = np.array([1 / 3, 1 / 3, n + 1 / 3]) / (n + 1)  # one pseudo-example, shared by the classes
    np.testing.assert_allclose(probabilities, np.tile(expected, (n + 5, 1)), atol=1e-3)


def test_a_fit_goes_on_from_one_class_to_two():
    x, y = blobs(60)
    space = Space.learn(x)
    one = fit_head(x[y == 0], y[y == 0], 3, space)
    both = fit_head(x, y, 3, space, start=as_start(one))
    assert (both.head.probabilities(x).argmax(1) == y).mean() > 0.9


def test_a_class_without_labels_keeps_a_small_positive_probability():
    x, y = blobs(60)
    probabilities = fit_head(x, y, 5, Space.learn(x)).head.probabilities(x)
    assert probabilities.shape == (60, 5)
    assert (probabilities[:, 3:] > 0).all()
    assert (probabilities[:, 3:] < 0.05).all()


def test_a_single_class_in_all_is_certain():
    x, _ = blobs(30)
    np.testing.assert_allclose(fit_head(x, [0] * 30, 1, Space.learn(x)).head.probabilities(x), 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad):
    x, y = blobs(30)
    space = Space.learn(x)
    x[3, 2] = bad
    with pytest.raises(TrainingDiverged, match="finite"), np.errstate(invalid="ignore"):
        fit_head(x, y, 3, space)


# ---------------------------------------------------------------------- calibration and search
def test_with_few_labels_the_temperature_is_the_cold_one():
    x, y = blobs(19)
    fit = fit_head(x, y, 3, Space.learn(x))
    assert (fit.head.temperature, fit.nll_out_of_fold) == (2.0, None)


def test_temperature_makes_confidence_match_accuracy_on_unseen_examples():
    x, y = blobs(1200, spread=4.0)
    fit = fit_head(x[:200], y[:200], 3, Space.learn(x))
    probabilities = fit.head.probabilities(x[200:])
    accuracy = (probabilities.argmax(1) == y[200:]).mean()
    assert 0.5 < accuracy < 0.95
    assert abs(probabilities.max(1).mean() - accuracy) < 0.06


@pytest.mark.parametrize(
    ("labels", "searched_again", "calibrated_again"),
    [(100, False, False), (109, False, False), (111, False, True), (200, True, True), (80, True, True)],
)
def test_search_is_repeated_at_each_doubling_and_calibration_at_ten_per_cent(labels, searched_again, calibrated_again):
    x, y = blobs(250, spread=3.0)
    space = Space.learn(x)
    first = fit_head(x[:100], y[:100], 3, space)
    second = fit_head(x[:labels], y[:labels], 3, space, start=as_start(first))
    assert second.regularisation_labels == (labels if searched_again else 100)
    assert second.temperature_labels == (labels if calibrated_again else 100)
    assert (second.nll_out_of_fold is not None) == calibrated_again


def test_a_fit_that_was_started_predicts_like_one_that_was_not():
    x, y = blobs(150, spread=3.0)
    space = Space.learn(x)
    first = fit_head(x[:140], y[:140], 3, space)
    warm = fit_head(x, y, 3, space, start=as_start(first))
    cold = fit_head(
        x,
        y,
        3,
        space,
        start=Start(
            Head(np.zeros((12, 3), np.float32), np.zeros(3, np.float32), warm.head.temperature),
            warm.regularisation,
            140,
            140,
        ),
    )
    np.testing.assert_allclose(warm.head.probabilities(x), cold.head.probabilities(x), atol=5e-3)


def test_noise_is_regularised_more_than_structure():
    rng = np.random.default_rng(0)
    x, y = blobs(80, spread=0.3)
    noise = rng.normal(size=(80, 12)).astype(np.float32)
    clean = fit_head(x, y, 3, Space.learn(x)).regularisation
    assert fit_head(noise, rng.integers(0, 3, 80), 3, Space.learn(noise)).regularisation > clean


# ---------------------------------------------------------------------- folds
def test_folds_are_equal_in_size_and_drawn_without_regard_to_class():
    fold = grouped_folds(78, 5)
    assert sorted(np.bincount(fold, minlength=5)) == [15, 15, 16, 16, 16]
    # The class of an example says nothing about its fold: shares of a class vary between folds as chance has it.
    y = np.repeat([0, 1], [60, 20])
    counts = [np.bincount(grouped_folds(80, 5, seed=s)[y == 1], minlength=5) for s in range(400)]
    chance = 16 * 0.25 * 0.75 * (80 - 16) / (80 - 1)  # variance of the hypergeometric distribution
    assert np.var(np.array(counts)) == pytest.approx(chance, rel=0.1)


def test_right_out_of_fold_is_right_on_new_examples():
    """Not so with folds that share out the classes evenly: eight points too many here."""
    found, new = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 10, 660)
        x = (0.45 * np.eye(10)[y] + 0.35 * rng.normal(size=(660, 10))).astype(np.float32)
        fold = grouped_folds(60, 5, seed=seed)
        for number in range(5):
            seen = np.flatnonzero(fold != number)
            head = fit_linear_head(x[seen], y[seen], 10, regularisation=0.3)
            found.append((head.logits(x[:60][fold == number]).argmax(1) == y[:60][fold == number]).mean())
            new.append((head.logits(x[60:]).argmax(1) == y[60:]).mean())
    assert np.mean(found) == pytest.approx(np.mean(new), abs=0.02)


def test_a_group_is_never_cut():
    rng = np.random.default_rng(0)
    groups = rng.integers(-1, 30, 200)
    fold = grouped_folds(200, 5, groups=groups)
    for group in range(30):
        assert len(set(fold[groups == group])) <= 1
    assert set(fold[groups == -1]) == set(range(5)) or (groups == -1).sum() < 5
    assert np.bincount(fold, minlength=5).min() > 20


# ---------------------------------------------------------------------- space and linear parts
def test_log_softmax_is_that_of_scipy_even_for_huge_logits():
    from scipy.special import log_softmax as reference

    logits = np.array([[1e4, 0.0, -1e4], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(log_softmax(logits), reference(logits, axis=1))


def test_weights_folded_for_raw_rows_give_the_logits_of_the_coordinates():
    x, _ = blobs(40)
    space = Space.learn(x)
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(space.axes.shape[1], 3)), rng.normal(size=3)
    folded = Head(*space.fold(weight, bias), 1.0)
    np.testing.assert_allclose(folded.logits(x), space.coordinates(x) @ weight + bias, atol=1e-3)
    back, back_bias = space.unfold(folded.weight, folded.bias)
    np.testing.assert_allclose(back, weight, atol=1e-4)
    np.testing.assert_allclose(back_bias, bias, atol=1e-3)


def test_coordinates_keep_distances_up_to_one_scale_and_put_variance_first():
    x, _ = blobs(80)
    space = Space.learn(x)
    z, unit = space.coordinates(x), unit_rows(x)
    np.testing.assert_allclose(
        np.linalg.norm(z[:40] - z[40:], axis=1), space.scale * np.linalg.norm(unit[:40] - unit[40:], axis=1), rtol=1e-3
    )
    assert (np.diff(z.var(0)) <= 1e-4).all()
    assert np.sqrt((z**2).sum(1).mean()) == pytest.approx(8, rel=1e-4)


def test_reduced_rows_have_length_one_even_at_the_centre():
    x, _ = blobs(30)
    space = Space.learn(x)
    x[0] = 0
    reduced = space.reduced(np.vstack([x, space.mean[None]]), 4)
    assert reduced.shape == (31, 4)
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("n", [1, 5])
def test_a_pool_of_equal_pictures_has_a_space(n):
    x = np.ones((n, 6), np.float32)
    space = Space.learn(x)
    assert np.isfinite(space.coordinates(x)).all()
    np.testing.assert_allclose(np.linalg.norm(space.reduced(x, 3), axis=1), 1)


def test_no_space_is_learnt_from_nothing():
    with pytest.raises(NoTrainableExamples):
        Space.learn(np.empty((0, 4), np.float32))


def test_space_survives_its_file(tmp_path):
    x, _ = blobs(20)
    space = Space.learn(x)
    space.save(tmp_path / "space.safetensors")
    loaded = Space.load(tmp_path / "space.safetensors")
    assert loaded is not None
    assert (loaded.scale, loaded.learnt_on) == (space.scale, 20)
    np.testing.assert_array_equal(loaded.coordinates(x), space.coordinates(x))
    assert Space.load(tmp_path / "other") is None


def test_labels_told_apart_without_error_leave_doubt_of_about_one_in_n():
    x, y = blobs(60, spread=0.1)
    confidence = fit_head(x, y, 3, Space.learn(x)).head.probabilities(x).max(1)
    assert 1 - 3 / 61 < confidence.mean() < 1 - 0.2 / 61


def test_with_many_labels_the_temperature_is_the_one_of_most_likelihood():
    from uncertainty.temperature import fit_temperature

    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(5000, 4))
    y = np.array([rng.choice(4, p=p) for p in softmax(logits / 2.5, axis=1)])
    assert module._fit_temperature(logits, y) == pytest.approx(fit_temperature(logits, y), rel=0.01)
    assert module._fit_temperature(logits, y) == pytest.approx(2.5, rel=0.05)


def leaking(n, seed):
    """Features in which half of the examples, those a network learnt from, show their class almost for sure."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    seen = np.arange(n) % 2 == 0
    x = rng.normal(size=(n, 6))
    x[:, :3] += np.eye(3)[y] * np.where(seen, 5.0, 0.8)[:, None]
    return x.astype(np.float32), y, seen


def test_examples_that_the_features_were_learnt_from_do_not_say_how_sure_a_head_may_be():
    x, y, seen = leaking(400, 0)
    new, truth, of_network = leaking(4_000, 1)
    new, truth = new[~of_network], truth[~of_network]
    space = Space.learn(x)
    told, by_all = fit_head(x, y, 3, space, seen=seen), fit_head(x, y, 3, space)
    costs = [-np.log(fit.head.probabilities(new)[np.arange(len(new)), truth]).mean() for fit in (told, by_all)]
    assert costs[0] < costs[1] - 0.02
    assert told.nll_out_of_fold == pytest.approx(costs[0], abs=0.08)
    assert by_all.nll_out_of_fold < costs[1] - 0.1
    best = min(
        -np.log(Head(told.head.weight, told.head.bias, t).probabilities(new)[np.arange(len(new)), truth]).mean()
        for t in np.geomspace(0.2, 5, 60)
    )
    assert costs[0] < best + 0.02


def test_with_few_new_examples_all_count():
    x, y, seen = leaking(200, 0)
    seen[: 200 - 19] = True
    seen[200 - 19 :] = False
    few, none = fit_head(x, y, 3, Space.learn(x), seen=seen), fit_head(x, y, 3, Space.learn(x))
    assert few.head.temperature == none.head.temperature and few.regularisation == none.regularisation


def test_a_search_among_many_labels_looks_at_those_that_count():
    x, y, _ = leaking(3_000, 0)
    seen = np.ones(3_000, bool)
    seen[-60:] = False
    fit = fit_head(x, y, 3, Space.learn(x), seen=seen)
    assert np.isfinite(fit.nll_out_of_fold) and fit.regularisation_labels == 3_000
