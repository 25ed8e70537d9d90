"""Confidence functions against their formulas, and the choice between them."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

from uncertainty import confidence
from uncertainty.confidence import (
    Confidence,
    Outputs,
    fit,
    get_confidence,
    label_agreement,
    list_confidences,
    register_confidence,
)
from uncertainty.errors import (
    NonFiniteScoreError,
    NotADistributionError,
    NotFittedError,
    ShapeError,
    UnknownMethodError,
)
from uncertainty.selective import aurc

NAMES = [info.name for info in list_confidences()]


def outputs(n=60, C=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, C))
    return Outputs(softmax(logits, axis=1), logits, softmax(logits / 2, axis=1), rng.random(n))


def flags(n, seed=0):
    return np.random.default_rng(seed).random(n) < 0.6


def test_each_confidence_is_its_formula():
    out = outputs()
    of = {name: Confidence(name, 4 if name == "max_logit_pnorm" else None).of(out) for name in NAMES}
    for i in range(len(out)):
        p, f = sorted(out.probabilities[i].tolist(), reverse=True), out.logits[i]
        assert of["msp"][i] == p[0]
        assert of["margin"][i] == pytest.approx(p[0] - p[1])
        assert of["negative_entropy"][i] == pytest.approx(sum(v * math.log(v) for v in p))
        assert of["max_logit"][i] == max(f)
        centred = [v - sum(f) / 5 for v in f]
        assert of["max_logit_pnorm"][i] == pytest.approx(max(centred) / sum(abs(v) ** 4 for v in centred) ** 0.25)
        square = sum(v * v for v in p)
        assert of["doctor"][i] == pytest.approx(1 - (1 - square) / square)
        assert of["laplace_probit"][i] == max(out.probit[i])
        assert of["label_agreement"][i] == out.agreement[i]


@pytest.mark.parametrize("name", NAMES)
def test_confidence_is_finite_even_where_the_model_is_certain_or_knows_nothing(name):
    logits = np.array([[1000.0, 0, -1000], [0, 0, 0], [5, 5, 5]])
    out = Outputs(softmax(logits, axis=1), logits, softmax(logits, axis=1), np.array([1.0, 0.3, 0.3]))
    values = Confidence(name, 5 if name == "max_logit_pnorm" else None).of(out)
    assert np.isfinite(values).all()
    assert values[0] > values[1]


@pytest.mark.parametrize("name", NAMES)
def test_no_example_has_no_confidence(name):
    assert Confidence(name).of(outputs(0)).shape == (0,)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "label_agreement"])
def test_reordering_classes_does_not_change_confidence(name):
    out = outputs()
    flipped = Outputs(out.probabilities[:, ::-1], out.logits[:, ::-1], out.probit[:, ::-1])
    ready = Confidence(name, 3 if name == "max_logit_pnorm" else None)
    assert ready.of(flipped) == pytest.approx(ready.of(out), rel=1e-12)


def test_norm_is_neither_changed_by_a_constant_nor_by_the_scale_of_the_logits():
    out = outputs()
    ready = Confidence("max_logit_pnorm", 6)
    moved = Outputs(out.probabilities, 1e60 * (out.logits + 7))
    assert ready.of(moved) == pytest.approx(ready.of(out))


def norm_helps(n=400, C=6, seed=0):
    """Logits of an uninformative scale: which answer is right shows in their shape only."""
    rng = np.random.default_rng(seed)
    correct = rng.random(n) < 0.7
    logits = rng.normal(size=(n, C))
    logits[:, 0] += np.where(correct, 4, 1.5)
    logits *= np.exp(2 * rng.normal(size=(n, 1)))
    return Outputs.of_logits(logits), correct


def test_the_power_of_the_norm_is_the_one_with_the_least_area():
    out, correct = norm_helps()
    areas = {p: aurc(Confidence("max_logit_pnorm", p).of(out), correct) for p in (3, 4, 5, 6)}
    assert fit("max_logit_pnorm", out, correct) == Confidence("max_logit_pnorm", min(areas, key=areas.get))


def test_a_norm_that_does_not_help_gives_way_to_the_likeliest_probability():
    out, _ = norm_helps()
    correct = out.probabilities.max(1) > np.median(out.probabilities.max(1))
    fitted = fit("max_logit_pnorm", out, correct)
    assert fitted.parameter is None
    assert (fitted.of(out) == out.probabilities.max(1)).all()


def test_what_was_fitted_can_be_kept_as_two_values():
    out, correct = norm_helps()
    fitted = fit("max_logit_pnorm", out, correct)
    assert (Confidence(fitted.name, fitted.parameter).of(out) == fitted.of(out)).all()
    assert fit("doctor", out, correct) == Confidence("doctor")


def test_two_classes_leave_the_norm_out():
    out = Outputs.of_logits(np.random.default_rng(0).normal(size=(100, 2)))
    with pytest.raises(NotFittedError, match="3 class"):
        fit("max_logit_pnorm", out, flags(100))


def test_what_is_not_given_is_asked_for():
    bare = Outputs(outputs().probabilities)
    for name in ("max_logit", "laplace_probit", "label_agreement"):
        with pytest.raises(NotFittedError, match=r"Outputs\("):
            Confidence(name).of(bare)
        with pytest.raises(NotFittedError, match=r"Outputs\("):
            fit(name, bare, flags(60))
    with pytest.raises(UnknownMethodError, match="doctor"):
        get_confidence("nurse")
    with pytest.raises(ValueError, match="already"):
        register_confidence(get_confidence("msp"))


def test_outputs_of_logits_are_softened_by_the_temperature():
    out = Outputs.of_logits([[1.0, 3.0]], temperature=2)
    assert out.probabilities == pytest.approx(softmax([[0.5, 1.5]], axis=1))


def test_outputs_that_disagree_are_refused():
    p = outputs().probabilities
    with pytest.raises(ShapeError, match="logits"):
        Outputs(p, np.zeros((60, 4)))
    with pytest.raises(ShapeError, match="agreement"):
        Outputs(p, agreement=np.zeros(59))
    with pytest.raises(NonFiniteScoreError, match="rows 2"):
        Outputs(p, np.where(np.arange(60)[:, None] == 2, np.nan, p))
    with pytest.raises(NotADistributionError):
        Outputs(p * 2)
    with pytest.raises(NotADistributionError):
        Outputs.of_logits([[np.nan, 0]])
    with pytest.raises(ShapeError, match="booleans"):
        fit("msp", Outputs(p), np.ones(60))


def units(n, seed):
    x = np.random.default_rng(seed).normal(size=(n, 6))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_agreement_is_that_of_the_nearest_neighbours_of_scikit_learn(monkeypatch):
    x, z = units(40, 0), units(90, 1)
    predicted, labels = np.arange(40) % 3, np.arange(90) % 3
    near = NearestNeighbors(n_neighbors=7).fit(z).kneighbors(x, return_distance=False)
    expected = (labels[near] == predicted[:, None]).mean(1)
    assert label_agreement(x, predicted, z, labels, k=7) == pytest.approx(expected)
    monkeypatch.setattr(confidence, "_BLOCK", 90 * 3)
    assert label_agreement(x, predicted, z, labels, k=7) == pytest.approx(expected)


def test_an_example_is_not_its_own_neighbour():
    z, labels = units(50, 2), np.arange(50) % 4
    near = NearestNeighbors(n_neighbors=6).fit(z).kneighbors(z, return_distance=False)[:, 1:]
    expected = (labels[near] == labels[:, None]).mean(1)
    assert label_agreement(z, labels, z, labels, k=5, own=np.arange(50)) == pytest.approx(expected)


def test_copies_at_the_edge_count_by_their_share():
    z = np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    # Of two neighbours one is sure (class 0), the other one of three equal ones (classes 0, 0, 1).
    assert label_agreement([[0.8, 0.6]], [0], z, [0, 0, 0, 1], k=2) == pytest.approx([(1 + 2 / 3) / 2])


def test_with_few_labels_all_of_them_are_neighbours():
    assert label_agreement(units(1, 0), [1], units(3, 1), [1, 1, 0], k=10) == pytest.approx([2 / 3])
    assert label_agreement(units(3, 1), [1, 1, 0], units(3, 1), [1, 1, 0], own=[0, 1, 2]) == pytest.approx(
        [0.5, 0.5, 0]
    )


def test_agreement_without_labels_or_with_nonsense_is_refused():
    x = units(2, 0)
    with pytest.raises(NotFittedError, match="label some"):
        label_agreement(x, [0, 0], np.zeros((0, 6)), np.zeros(0, int))
    with pytest.raises(NotFittedError, match="label some"):
        label_agreement(x[:1], [0], x[:1], [0], own=[0])
    with pytest.raises(ShapeError, match="reference"):
        label_agreement(x, [0, 0], np.zeros((3, 5)), [0, 0, 0])
    with pytest.raises(ShapeError, match="own"):
        label_agreement(x, [0, 0], x, [0, 0], own=[0, 2])
    with pytest.raises(ShapeError, match="NaN"):
        label_agreement(x * np.nan, [0, 0], x, [0, 0])
    with pytest.raises(ValueError, match="neighbours"):
        label_agreement(x, [0, 0], x, [0, 0], k=0)
