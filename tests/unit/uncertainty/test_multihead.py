"""Examples with several answers: heads combined by ranks, labels combined by sum, mean or most doubtful."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from uncertainty.errors import NonFiniteScoreError, NotADistributionError, PoolError, ShapeError, UnknownMethodError
from uncertainty.multihead import combine, head_weights, multi_label


def average_rank(values, value):
    """Place from below, counting ties half, 1-based."""
    return sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2


def naive(scores, weights, missing):
    total = np.zeros(len(next(iter(scores.values()))))
    for name, column in scores.items():
        asked = [v for v, lacks in zip(column, missing[name], strict=True) if lacks]
        for row, value in enumerate(column):
            if missing[name][row]:
                total[row] += weights[name] * average_rank(asked, value) / len(asked)
    return total


def test_combination_is_the_weighted_mean_of_average_ranks_written_as_a_loop():
    rng = np.random.default_rng(0)
    scores = {"subject": rng.integers(0, 8, 40).astype(float), "expression": 100 * rng.random(40)}
    missing = {"subject": rng.random(40) < 0.7, "expression": rng.random(40) < 0.4}
    combined, head = combine(scores, {"subject": 1.0, "expression": 3.0}, missing)
    np.testing.assert_allclose(combined, naive(scores, {"subject": 0.25, "expression": 0.75}, missing))
    for row in range(40):
        parts = [
            w * naive({name: scores[name]}, {name: 1.0}, missing)[row] if missing[name][row] else -1
            for name, w in (("subject", 0.25), ("expression", 0.75))
        ]
        assert head[row] == (-1 if max(parts) < 0 else int(np.argmax(parts)))


def test_units_of_a_head_do_not_matter():
    rng = np.random.default_rng(1)
    a, b = rng.random(30), rng.random(30)
    combined, head = combine({"a": a, "b": b})
    squeezed, same = combine({"a": 1000 * a**3 - 5, "b": b})
    np.testing.assert_allclose(squeezed, combined)
    assert (head == same).all()


def test_one_head_alone_orders_as_its_own_uncertainty_and_ties_stay_ties():
    combined, head = combine({"only": [0.3, 0.9, 0.3, 0.1]})
    np.testing.assert_allclose(combined, [2.5 / 4, 1, 2.5 / 4, 1 / 4])
    assert head.tolist() == [0, 0, 0, 0]


def test_the_head_that_lacks_more_answers_counts_more_unless_weights_are_given():
    missing = {"a": np.array([True, True, True, False]), "b": np.array([True, False, False, False])}
    scores = {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 2.0, 3.0, 4.0]}
    combined, head = combine(scores, missing=missing)
    np.testing.assert_allclose(combined, [0.75 / 3 + 0.25, 0.5, 0.75, 0])
    assert head.tolist() == [0, 0, 0, -1]
    _, other = combine(scores, {"a": 0.1, "b": 1.0}, missing)
    assert other.tolist() == [1, 0, 0, -1]


def test_a_head_without_weight_is_asked_for_only_where_no_other_answer_is_missing():
    missing = {"a": np.array([True, True]), "b": np.array([True, False])}
    _, head = combine({"a": [1.0, 2.0], "b": [0.0, 0.0]}, {"a": 0.0, "b": 1.0}, missing)
    assert head.tolist() == [1, 0]


def test_what_is_known_already_may_hold_anything_and_what_is_missing_may_not():
    missing = {"a": np.array([True, False]), "b": np.array([True, True])}
    combined, _ = combine({"a": [1.0, np.nan], "b": [1.0, 2.0]}, missing=missing)
    assert np.isfinite(combined).all()
    with pytest.raises(NonFiniteScoreError, match="rows 1"):
        combine({"a": [1.0, np.nan]})


def test_weights_follow_missing_answers_and_loss():
    assert head_weights({"a": 30, "b": 10}) == {"a": 0.75, "b": 0.25}
    assert head_weights({"a": 30, "b": 10}, {"a": 0.2, "b": 1.8}) == {"a": 0.25, "b": 0.75}
    assert head_weights({"a": 0, "b": 0}) == {"a": 0.5, "b": 0.5}
    assert head_weights({"a": 5, "b": 5}, {"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


def test_what_makes_no_sense_is_refused():
    with pytest.raises(PoolError, match="at least one"):
        combine({})
    with pytest.raises(PoolError, match="at least one"):
        head_weights({})
    with pytest.raises(PoolError, match="weights for the heads"):
        combine({"a": [1.0]}, {"b": 1.0})
    with pytest.raises(PoolError, match="not all zero"):
        combine({"a": [1.0]}, {"a": 0.0})
    with pytest.raises(PoolError, match="none negative"):
        head_weights({"a": 1, "b": 2}, {"a": -1.0, "b": 1.0})
    with pytest.raises(ShapeError, match="each head"):
        combine({"a": [1.0, 2.0], "b": [1.0]})
    with pytest.raises(ShapeError, match="booleans"):
        combine({"a": [1.0, 2.0]}, missing={"a": [0, 1]})


def test_no_example_gives_no_combination():
    combined, head = combine({"a": [], "b": []})
    assert combined.shape == head.shape == (0,)


# ---------------------------------------------------------------------- labels that may all apply
def on(B, S, L, seed=0):
    return torch.rand(B, S, L, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loops(name, p):
    """[B, S, L] -> [B, L] from the definitions of one question with two answers."""
    out = np.empty((p.shape[0], p.shape[2]))
    for b in range(p.shape[0]):
        for label in range(p.shape[2]):
            samples = p[b, :, label]
            mean = samples.mean()
            if name == "margin":
                out[b, label] = 1 - abs(2 * mean - 1)
            else:
                out[b, label] = entropy([mean, 1 - mean])
                if name == "bald":
                    out[b, label] -= np.mean([entropy([q, 1 - q]) for q in samples])
    return out


@pytest.mark.parametrize("over", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", ["entropy", "margin", "bald"])
def test_multi_label_scores_equal_their_definitions_written_as_loops(name, over):
    p = on(7, 4, 5)
    expected = getattr(loops(name, p.numpy()), over)(axis=1)
    np.testing.assert_allclose(multi_label(name, p, over), expected)
    both = torch.stack([1 - p, p], -1).log()
    np.testing.assert_allclose(multi_label(name, both, over), expected)


@pytest.mark.parametrize("name", ["entropy", "margin", "bald"])
def test_certain_labels_score_zero_even_at_probabilities_of_zero_and_one(name):
    certain = torch.tensor([[[0.0, 1.0, 1.0]]]).expand(2, 3, 3)
    assert multi_label(name, certain).tolist() == [0, 0]


def test_many_doubtful_labels_lead_by_sum_and_one_very_doubtful_label_by_max():
    p = torch.tensor([[[0.2, 0.2, 0.2]], [[0.5, 0.0, 0.0]]])
    assert multi_label("margin", p, "sum").argmax() == 0
    assert multi_label("margin", p, "max").argmax() == 1


def test_what_is_no_probability_of_labels_is_refused():
    with pytest.raises(ShapeError, match=r"\[B, S, L\]"):
        multi_label("entropy", torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="2]"):
        multi_label("entropy", torch.zeros(2, 3, 4, 3))
    with pytest.raises(NotADistributionError, match="sigmoid"):
        multi_label("entropy", torch.full((1, 1, 2), 1.5))
    with pytest.raises(NotADistributionError):
        multi_label("entropy", torch.full((1, 1, 2), torch.nan))
    with pytest.raises(NotADistributionError):
        multi_label("entropy", torch.zeros(1, 1, 2, 2))
    with pytest.raises(UnknownMethodError, match="bald, entropy, margin"):
        multi_label("ratio", on(1, 1, 1))
    with pytest.raises(UnknownMethodError, match="max, mean, sum"):
        multi_label("bald", on(1, 1, 1), "median")
