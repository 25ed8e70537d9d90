"""Scores that look at how posterior samples differ, against their definitions in plain loops."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from uncertainty.errors import ShapeError
from uncertainty.registry import get_method, list_methods, score


def log_probs(B, S, C, seed=0, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(B, S, C, generator=g, dtype=torch.float64)).log_softmax(-1)


def opposed(S, C):
    """S samples, each certain, of as many classes as there are."""
    return torch.eye(C, dtype=torch.float64).log()[torch.arange(S) % C][None]


def test_scores_equal_their_definitions_written_as_loops():
    x = log_probs(20, 5, 4, seed=3)
    for row, samples in enumerate(x.exp().numpy()):
        mean = samples.mean(0)
        expected = np.mean([entropy(p) for p in samples])
        votes = [int(p.argmax()) for p in samples]
        ordered = sorted(mean, reverse=True)
        spread = [math.sqrt(np.mean((samples[:, c] - mean[c]) ** 2)) for c in range(4)]
        assert score("expected_entropy", x)[row].item() == pytest.approx(expected)
        assert score("bald", x)[row].item() == pytest.approx(entropy(mean) - expected)
        assert score("variation_ratio", x)[row].item() == pytest.approx(1 - max(map(votes.count, votes)) / 5)
        assert score("ratio", x)[row].item() == pytest.approx(ordered[1] / ordered[0])
        assert score("mean_std", x)[row].item() == pytest.approx(np.mean(spread))


def test_predictive_entropy_is_expected_entropy_plus_bald():
    x = log_probs(30, 6, 5)
    np.testing.assert_allclose(score("entropy", x), score("expected_entropy", x) + score("bald", x))


def test_bald_is_exact_where_probabilities_are_zero():
    # Samples (1, 0, 0) and (1/2, 1/2, 0): H(3/4, 1/4) - log(2) / 2.
    x = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0]]], dtype=torch.float64).log()
    assert score("bald", x).item() == pytest.approx(entropy([0.75, 0.25]) - math.log(2) / 2, abs=1e-15)
    assert score("bald", opposed(2, 3)).item() == pytest.approx(math.log(2), abs=1e-15)


def test_bald_is_the_mean_divergence_of_the_samples_from_their_mean():
    x = log_probs(10, 4, 3)
    p = x.exp()
    divergence = (p * (x - p.mean(1, keepdim=True).log())).sum(-1).mean(1)
    np.testing.assert_allclose(score("bald", x), divergence)


@pytest.mark.parametrize(
    ("name", "S", "C"), [("bald", 2, 5), ("bald", 6, 3), ("bald", 4, 4), ("mean_std", 6, 3), ("mean_std", 4, 4)]
)
def test_samples_that_are_certain_of_different_classes_reach_the_stated_bound(name, S, C):
    assert score(name, opposed(S, C)).item() == pytest.approx(get_method(name).upper(S, C))


def test_votes_that_tie_are_split_so_that_a_uniform_prediction_reaches_the_bound():
    uniform = torch.zeros(1, 3, 5, dtype=torch.float64).log_softmax(-1)
    assert score("variation_ratio", uniform).item() == pytest.approx(1 - 1 / 5)
    tied = torch.tensor([[[0.4, 0.4, 0.2], [0.6, 0.3, 0.1]]], dtype=torch.float64).log()
    assert score("variation_ratio", tied).item() == pytest.approx(1 - 0.75)


@pytest.mark.parametrize("name", [m.name for m in list_methods() if m.min_samples > 1])
def test_what_compares_samples_refuses_a_single_one(name):
    with pytest.raises(ShapeError, match="at least 2"):
        score(name, log_probs(3, 1, 4))


@pytest.mark.parametrize("name", ["bald", "variation_ratio", "mean_std"])
def test_samples_that_agree_leave_nothing_to_learn(name):
    assert score(name, log_probs(6, 1, 4).expand(6, 5, 4)).abs().max() < 1e-12


def test_ratio_of_two_equally_likely_classes_is_one_and_of_a_single_class_refused():
    x = torch.tensor([[[0.5, 0.5, 0.0]]], dtype=torch.float64).log()
    assert score("ratio", x).item() == 1.0
    with pytest.raises(ShapeError, match="C >= 2"):
        score("ratio", torch.zeros(2, 1, 1))
