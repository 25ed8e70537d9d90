"""Labels that are each on or off: one search finds what two-class heads find one by one."""

import numpy as np
import pytest

from uncertainty.label_head import find_label_minimum, sigmoid
from uncertainty.linear_head import LinearHead, fit_linear_head

N, D, L = 60, 5, 4


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(N, D))
    y = rng.random((N, L)) < sigmoid(z @ rng.normal(size=(D, L)))
    y[:, 3] = False  # a label that nobody ever chose
    return z, y, rng.uniform(0.2, 2, N)


@pytest.mark.parametrize("lam", [0.1, 3.0])
def test_each_label_is_what_a_head_of_two_classes_makes_of_it(data, lam):
    z, y, w = data
    found = find_label_minimum(z, y, w, lam, LinearHead.zero(D, L)).head
    for label in range(L):
        two = fit_linear_head(z, y[:, label].astype(int), 2, regularisation=lam, weights=w)
        np.testing.assert_allclose(found.weight[:, label], two.weight[:, 1] - two.weight[:, 0], atol=1e-4)
        assert found.bias[label] == pytest.approx(two.bias[1] - two.bias[0], abs=1e-4)


def test_a_start_changes_nothing_and_saves_steps(data):
    z, y, w = data
    cold = find_label_minimum(z, y, w, 1.0, LinearHead.zero(D, L))
    warm = find_label_minimum(z, y, w, 1.0, cold.head)
    np.testing.assert_allclose(warm.head.weight, cold.head.weight, atol=1e-5)
    assert warm.steps < cold.steps


def test_a_label_without_examples_stays_finite_and_unlikely(data):
    z, y, w = data
    d = find_label_minimum(z, y, w, 1.0, LinearHead.zero(D, L)).head.logits(z)
    assert np.isfinite(d).all()
    assert sigmoid(d)[:, 3].max() < 0.1


def test_the_logistic_function_is_exact_far_out():
    np.testing.assert_array_equal(sigmoid(np.array([-1000.0, 0.0, 1000.0])), [0.0, 0.5, 1.0])
