"""The head solves the convex problem it states, for any labels."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from uncertainty.errors import PoolError, ShapeError
from uncertainty.linear_head import LinearHead, find_minimum, fit_linear_head


def blobs(n, classes=3, width=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    y = rng.integers(0, classes, n)
    return centres[y] + rng.normal(size=(n, width)), y


def loss(head, x, y, w, lam):
    """The objective as its definition reads."""
    classes = len(head.bias)
    log_p = log_softmax(x @ head.weight + head.bias, axis=1)
    pseudo = -log_softmax(head.bias).sum() / classes
    return -(w * log_p[np.arange(len(y)), y]).sum() + lam / 2 * (head.weight**2).sum() + pseudo


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_it_predicts_what_scikit_learn_predicts_for_the_same_objective(lam):
    x, y = blobs(60)
    w = np.random.default_rng(1).uniform(0.2, 2, 60)
    ours = fit_linear_head(x, y, 3, regularisation=lam, weights=w)
    rows, classes = np.vstack([x, np.zeros((3, 6))]), np.concatenate([y, [0, 1, 2]])
    reference = LogisticRegression(C=1 / lam, tol=1e-10, max_iter=5000)
    reference.fit(rows, classes, sample_weight=np.concatenate([w, np.full(3, 1 / 3)]))
    np.testing.assert_allclose(softmax(ours.logits(x), axis=1), reference.predict_proba(x), atol=1e-4)


def test_no_small_step_in_any_direction_lowers_the_loss():
    x, y = blobs(30)
    head = fit_linear_head(x, y, 3, regularisation=0.5)
    w, rng = np.ones(30), np.random.default_rng(0)
    for _ in range(30):
        dw, db = 1e-3 * rng.normal(size=head.weight.shape), 1e-3 * rng.normal(size=3)
        there = loss(LinearHead(head.weight + dw, head.bias + db), x, y, w, 0.5)
        assert there > loss(head, x, y, w, 0.5)


def test_the_stated_loss_is_that_of_the_head_returned():
    x, y = blobs(30)
    found = find_minimum(x, y, np.ones(30), 3, 0.5, LinearHead.zero(6, 3))
    assert found.loss == pytest.approx(loss(found.head, x, y, np.ones(30), 0.5))


def test_a_start_changes_no_result():
    x, y = blobs(50)
    far = LinearHead(np.random.default_rng(0).normal(size=(6, 3)), np.array([4.0, -4.0, 0.0]))
    cold = fit_linear_head(x, y, 3, regularisation=1)
    warm = fit_linear_head(x, y, 3, regularisation=1, start=far)
    # A common shift of all biases is free, so probabilities are compared.
    np.testing.assert_allclose(softmax(warm.logits(x), 1), softmax(cold.logits(x), 1), atol=1e-5)


def test_classes_without_examples_stay_finite_and_unlikely_and_no_example_is_the_uniform_prediction():
    x, y = blobs(40)
    head = fit_linear_head(x, y, 6, regularisation=1)
    assert softmax(head.logits(x), 1)[:, 3:].max() < 0.1
    nothing = fit_linear_head(x[:0], y[:0], 4, regularisation=1)
    np.testing.assert_allclose(softmax(nothing.logits(x), 1), 0.25)


def test_what_makes_no_sense_is_refused():
    x, y = blobs(10)
    for wrong in ({"regularisation": 0}, {"regularisation": 1, "weights": -np.ones(10)}):
        with pytest.raises(PoolError):
            fit_linear_head(x, y, 3, **wrong)
    with pytest.raises(PoolError, match="NaN"):
        fit_linear_head(np.where(x > 1, np.nan, x), y, 3, regularisation=1)
    with pytest.raises(ShapeError, match="labels in"):
        fit_linear_head(x, y, 2, regularisation=1)
    with pytest.raises(ShapeError, match="weights"):
        fit_linear_head(x, y, 3, regularisation=1, weights=np.ones(3))
