"""Promises kept by every registered uncertainty method. A new method is tested by registering it."""

import math

import numpy as np
import pytest
import torch

from uncertainty import registry
from uncertainty.errors import NonFiniteScoreError, NotADistributionError, ShapeError, UnknownMethodError
from uncertainty.registry import MethodInfo, get_method, list_methods, register, score

METHODS = [m.name for m in list_methods()]
SINGLE_PASS = [m.name for m in list_methods(max_samples=1)]


def log_probs(B, S, C, dtype=torch.float64, seed=0, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(B, S, C, generator=g, dtype=dtype)).log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 2), (7, 1, 10), (5, 8, 3), (4, 20, 100)])
@pytest.mark.parametrize("name", METHODS)
def test_score_is_one_finite_number_per_example_within_its_stated_bounds(name, shape, dtype):
    B, S, C = shape
    if get_method(name).min_samples > S:
        pytest.skip("needs more posterior samples")
    out = score(name, log_probs(B, S, C, dtype))
    assert out.shape == (B,)
    assert out.dtype == dtype
    assert (out >= 0).all()
    assert (out <= get_method(name).upper(S, C) + 1e-5).all()


@pytest.mark.parametrize("name", METHODS)
def test_certain_and_unanimous_samples_score_zero(name):
    certain = torch.full((1, 4, 3), -torch.inf, dtype=torch.float64)
    certain[..., 0] = 0.0
    assert score(name, certain).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", SINGLE_PASS)
def test_a_uniform_prediction_reaches_the_stated_bound(name):
    uniform = torch.zeros(1, 2, 5, dtype=torch.float64).log_softmax(-1)
    assert score(name, uniform).item() == pytest.approx(get_method(name).upper(2, 5))


@pytest.mark.parametrize("name", METHODS)
def test_reordering_classes_or_samples_does_not_change_the_score(name):
    x = log_probs(6, 5, 4)
    assert torch.allclose(score(name, x), score(name, x.flip(-1)))
    assert torch.allclose(score(name, x), score(name, x.roll(2, dims=1)))


@pytest.mark.parametrize("name", METHODS)
def test_scoring_a_batch_equals_scoring_its_rows_one_by_one(name):
    x = log_probs(6, 5, 4)
    assert torch.allclose(score(name, x), torch.cat([score(name, row[None]) for row in x]))


@pytest.mark.parametrize("name", METHODS)
def test_input_is_left_untouched(name):
    x = log_probs(3, 2, 4)
    before = x.clone()
    score(name, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", METHODS)
def test_logits_are_refused_rather_than_guessed(name):
    with pytest.raises(NotADistributionError, match="log_softmax"):
        score(name, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("name", METHODS)
def test_nan_in_the_model_output_is_refused(name):
    x = log_probs(3, 2, 4)
    x[1] = torch.nan
    with pytest.raises(NotADistributionError):
        score(name, x)


@pytest.mark.parametrize("name", METHODS)
def test_missing_sample_axis_is_refused_with_both_shapes_in_the_message(name):
    with pytest.raises(ShapeError, match=r"\[B, S, C\].*\[2, 4\]"):
        score(name, torch.zeros(2, 4).log_softmax(-1))


@pytest.mark.parametrize("name", METHODS)
def test_no_example_gives_no_score(name):
    assert score(name, torch.zeros(0, 2, 4)).shape == (0,)


def test_margin_entropy_and_least_confidence_equal_their_definitions_written_as_loops():
    x = log_probs(20, 3, 6, seed=3)
    mean = x.exp().numpy().mean(1)
    for row, probs in enumerate(mean):
        ordered = sorted(probs, reverse=True)
        assert score("margin", x)[row].item() == pytest.approx(1 - (ordered[0] - ordered[1]))
        assert score("least_confidence", x)[row].item() == pytest.approx(1 - ordered[0])
        assert score("entropy", x)[row].item() == pytest.approx(-sum(p * math.log(p) for p in probs))


def test_margin_of_two_equally_likely_classes_is_one():
    x = torch.tensor([[[0.5, 0.5, 0.0]]], dtype=torch.float64).log()
    assert score("margin", x).item() == 1.0


def test_margin_of_a_single_class_is_refused():
    with pytest.raises(ShapeError, match="C >= 2"):
        score("margin", torch.zeros(2, 1, 1))


def test_with_two_classes_all_single_pass_methods_rank_alike():
    x = log_probs(50, 1, 2)
    orders = {tuple(score(m, x).argsort(descending=True).tolist()) for m in SINGLE_PASS}
    assert len(orders) == 1


def test_unknown_method_message_lists_the_known_ones():
    with pytest.raises(UnknownMethodError, match="entropy, least_confidence, margin") as caught:
        get_method("margn")
    assert caught.value.name == "margn"


def test_a_name_can_be_taken_once():
    with pytest.raises(ValueError, match="already registered"):
        register(get_method("margin"))


@pytest.fixture
def only_here(monkeypatch):
    monkeypatch.setattr(registry._METHODS, "_known", dict(registry._METHODS._known))


@pytest.mark.usefixtures("only_here")
def test_a_method_that_returns_nan_is_stopped_and_its_rows_are_named():
    register(MethodInfo("broken", lambda x: x[:, 0, 0] / 0 * 0, lambda S, C: 1.0, "1", 1, "", "nothing"))
    with pytest.raises(NonFiniteScoreError, match="rows 0, 1") as caught:
        score("broken", log_probs(2, 1, 3))
    assert caught.value.rows == (0, 1)


@pytest.mark.usefixtures("only_here")
def test_a_method_for_several_samples_is_neither_listed_nor_run_for_one():
    register(MethodInfo("several", lambda x: x.new_zeros(len(x)), lambda S, C: 1.0, "1", 2, "", "nothing"))
    assert "several" not in [m.name for m in list_methods(max_samples=1)]
    with pytest.raises(ShapeError, match="at least 2"):
        score("several", log_probs(2, 1, 3))


def test_half_precision_log_probabilities_of_a_thousand_classes_are_accepted():
    x = log_probs(4, 1, 1000, dtype=torch.float32).half()
    assert np.isfinite(score("margin", x).float().numpy()).all()
