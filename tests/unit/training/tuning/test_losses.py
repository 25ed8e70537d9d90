"""Losses against formulas written out in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, logit

from training.tuning.heads import HeadSpec, Targets
from training.tuning.losses import HeadLoss, Objective
from training.tuning.net import OrdinalHead

RNG = np.random.default_rng(0)
N = 40
ABC = HeadSpec("abc", "single", ("a", "b", "c"))
TAGS = HeadSpec("tags", "multiple", ("x", "y"))
STARS = HeadSpec("stars", "ordinal", tuple("12345"))
AGE = HeadSpec("age", "number")


def one_hot(labels, classes):
    return np.eye(classes, dtype=np.float32)[labels]


LABELS = np.repeat([0, 1, 2], [30, 8, 2])
LOGITS = RNG.normal(size=(N, 3))
SINGLE = Targets(one_hot(LABELS, 3), np.ones(N, bool))


def rows(loss, outputs, targets):
    return loss.rows(torch.from_numpy(outputs).float(), torch.from_numpy(np.asarray(targets)).float()).numpy()


def test_balanced_softmax_is_its_formula():
    counts = np.array([30, 8, 2])
    weighted = counts * np.exp(LOGITS)
    expected = -np.log(weighted[np.arange(N), LABELS] / weighted.sum(1))  # Ren et al. 2020, eq. 3 and 4
    assert rows(HeadLoss.of(ABC, SINGLE, "balanced", 0.0), LOGITS, SINGLE.values) == pytest.approx(expected, rel=1e-5)


def test_square_root_weights_are_their_formula_and_one_on_average():
    weight = np.array([30, 8, 2]) ** -0.5
    weight *= N / weight[LABELS].sum()
    expected = -weight[LABELS] * log_softmax(LOGITS, 1)[np.arange(N), LABELS]
    assert rows(HeadLoss.of(ABC, SINGLE, "sqrt", 0.0), LOGITS, SINGLE.values) == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_of_equally_frequent_classes_is_that_of_torch():
    labels = np.arange(39) % 3
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS[:39]), torch.from_numpy(labels), label_smoothing=0.2, reduction="none"
    )
    head = HeadLoss.of(ABC, Targets(one_hot(labels, 3), np.ones(39, bool)), "plain", 0.2)
    assert rows(head, LOGITS[:39], one_hot(labels, 3)) == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.parametrize("loss", ["balanced", "plain"])
def test_smoothing_does_not_make_a_rare_class_likely_everywhere(loss):
    """What is lost least by, for a picture that shows the first class for sure: rare classes stay rare in it."""
    head = HeadLoss.of(ABC, SINGLE, loss, 0.1)
    z = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = head.rows(z, torch.from_numpy(one_hot([0], 3))).sum()
        value.backward()
        return value

    optimizer.step(closure)
    shares = np.array([30, 8, 2]) / 40
    expected = np.array([0.9, 0, 0]) + 0.1 * shares
    assert head.log_probabilities(z.detach()).exp().numpy()[0] == pytest.approx(expected, abs=1e-3)
    uniform = head.log_probabilities(z.detach(), uniform=True).exp().numpy()[0]
    assert uniform[2] / uniform[0] == pytest.approx((0.1 * shares[2] / expected[0]) * shares[0] / shares[2], rel=0.05)
    assert uniform[2] == pytest.approx(uniform[1], rel=0.05)


@pytest.mark.parametrize("loss", ["balanced", "sqrt", "plain"])
def test_probabilities_for_labels_and_for_equal_classes_differ_by_the_frequencies(loss):
    head = HeadLoss.of(ABC, SINGLE, loss, 0.0)
    outputs = torch.from_numpy(LOGITS).float()
    as_labels = head.log_probabilities(outputs).exp().numpy()
    uniform = head.log_probabilities(outputs, uniform=True).exp().numpy()
    expected = uniform * np.array([30, 8, 2])
    assert as_labels == pytest.approx(expected / expected.sum(1, keepdims=True), rel=1e-4)


def test_a_class_without_labels_costs_no_infinity():
    head = HeadLoss.of(ABC, Targets(one_hot(np.zeros(5, int), 3), np.ones(5, bool)), "balanced", 0.0)
    assert np.isfinite(rows(head, LOGITS[:5], one_hot(np.ones(5, int), 3))).all()
    assert torch.isfinite(head.log_probabilities(torch.from_numpy(LOGITS).float(), uniform=True)).all()


def test_several_classes_at_once_are_so_many_yes_or_no_questions():
    z, y = RNG.normal(size=(N, 2)), (RNG.uniform(size=(N, 2)) < [0.8, 0.1]).astype(np.float32)
    prior = y.mean(0)
    p = expit(z + logit(prior))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1)
    head = HeadLoss.of(TAGS, Targets(y, np.ones(N, bool)), "balanced", 0.0)
    assert rows(head, z, y) == pytest.approx(expected, rel=1e-4)
    assert head.log_probabilities(torch.from_numpy(z).float()).exp().numpy() == pytest.approx(p, rel=1e-4)


def test_an_ordinal_head_gives_differences_of_cumulative_probabilities():
    torch.manual_seed(0)
    head = OrdinalHead(4, 5)
    with torch.no_grad():
        head.gaps += torch.tensor([0.3, -2.0, 4.0])
    x = torch.randn(20, 4)
    found = head(x).exp().detach().numpy()
    cuts = np.cumsum([float(head.first.detach()), *np.log1p(np.exp(head.gaps.detach().double().numpy()))])
    below = expit(cuts - head.slope(x).detach().double().numpy())
    expected = np.diff(np.concatenate([np.zeros((20, 1)), below, np.ones((20, 1))], 1), axis=1)
    assert found == pytest.approx(expected, abs=1e-6)


def test_an_ordinal_head_knows_nothing_at_first_and_stays_finite_far_out():
    head = OrdinalHead(1, 4)
    assert head(torch.zeros(1, 1)).exp().detach().numpy() == pytest.approx(np.full((1, 4), 0.25), abs=1e-6)
    with torch.no_grad():
        head.slope.weight.fill_(1.0)
    out = head(torch.tensor([[-80.0], [80.0]]))
    out.sum().backward()
    assert torch.isfinite(out).all() and all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_a_number_is_learnt_in_units_of_its_own_spread():
    values = np.array([[10.0], [30.0]], np.float32)
    head = HeadLoss.of(AGE, Targets(values, np.ones(2, bool)), "balanced", 0.1)
    assert head.standardised(values).ravel() == pytest.approx([-1, 1])
    assert rows(head, np.array([[0.0], [3.0]]), [[-1.0], [1.0]]) == pytest.approx([0.5, 2.0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_of_softened_probabilities_times_the_squared_temperature(temperature):
    teacher = np.exp(log_softmax(RNG.normal(size=(N, 3)), 1))
    head = HeadLoss.of(ABC, SINGLE, "plain", 0.0)
    p = teacher ** (1 / temperature)
    p /= p.sum(1, keepdims=True)
    q = log_softmax(LOGITS / temperature, 1)
    expected = temperature**2 * (p * (np.log(p) - q)).sum(1)
    found = head.divergence(torch.from_numpy(LOGITS).float(), torch.from_numpy(teacher).float(), temperature)
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_student_that_equals_its_teacher_has_no_divergence():
    y = (RNG.uniform(size=(N, 2)) < 0.3).astype(np.float32)
    z = torch.from_numpy(RNG.normal(size=(N, 2))).float()
    tags = HeadLoss.of(TAGS, Targets(y, np.ones(N, bool)), "balanced", 0.0)
    assert tags.divergence(z, tags.log_probabilities(z).exp(), 2.0).abs().max() < 1e-5
    single = HeadLoss.of(ABC, SINGLE, "balanced", 0.0)
    z = torch.from_numpy(LOGITS).float()
    assert single.divergence(z, single.log_probabilities(z).exp(), 2.0).abs().max() < 1e-5


def test_the_best_temperature_makes_too_sure_answers_as_sure_as_they_may_be():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(4000, 3)) * 2
    labels = np.array([rng.choice(3, p=np.exp(row)) for row in log_softmax(z, 1)])
    head = HeadLoss.of(ABC, Targets(one_hot(labels, 3), np.ones(4000, bool)), "plain", 0.1)
    y, shares = torch.from_numpy(one_hot(labels, 3)), torch.full((4000,), 1 / 4000)
    temperature, cost = head.best_temperature(torch.from_numpy(3 * z).float(), y, shares)
    assert temperature == pytest.approx(3, rel=0.1)
    assert cost == pytest.approx(-log_softmax(z, 1)[np.arange(4000), labels].mean(), rel=0.01)
    assert head.best_temperature(torch.from_numpy(3 * z[:10]).float(), y[:10], shares[:10] * 400)[0] == 1


def test_the_surprise_of_several_classes_is_their_mean_cross_entropy():
    y = (RNG.uniform(size=(N, 2)) < 0.3).astype(np.float32)
    z = RNG.normal(size=(N, 2))
    head = HeadLoss.of(TAGS, Targets(y, np.ones(N, bool)), "plain", 0.1)
    p = expit(z / 2)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1)
    found = head.surprise(torch.from_numpy(z).float(), torch.from_numpy(y), 2.0)
    assert found.numpy() == pytest.approx(expected, rel=1e-4)


def joint(answered, log_variance, weight=1.0):
    """Two heads of which one is answered by some rows only."""
    y = (RNG.uniform(size=(N, 2)) < 0.3).astype(np.float32)
    heads = (
        HeadLoss.of(replace(ABC, weight=weight), SINGLE, "plain", 0.0),
        HeadLoss.of(TAGS, Targets(y, np.ones(N, bool)), "plain", 0.0),
    )
    shares = {"abc": torch.full((N,), 1 / N), "tags": torch.from_numpy(answered / max(1, answered.sum())).float()}
    outputs = [torch.from_numpy(LOGITS).float(), torch.from_numpy(RNG.normal(size=(N, 2))).float()]
    targets = {"abc": torch.from_numpy(SINGLE.values), "tags": torch.from_numpy(y)}
    return heads, outputs, targets, shares, torch.tensor(log_variance)


def test_a_masked_loss_is_the_loss_of_those_who_answered():
    answered = np.arange(N) % 3 == 0
    heads, outputs, targets, shares, s = joint(answered, [0.0, 0.0])
    total, by_head = Objective(heads)(outputs, targets, shares, s)
    part = heads[1].rows(outputs[1][answered], targets["tags"][answered]).mean()
    assert by_head["tags"] == pytest.approx(float(part), rel=1e-5)
    assert float(total) == pytest.approx(float(by_head["abc"] + part), rel=1e-5)


def test_heads_are_weighed_by_their_learnt_variance():
    heads, outputs, targets, shares, s = joint(np.ones(N), [0.7, -0.4], weight=2.0)
    total, by_head = Objective(heads)(outputs, targets, shares, s)
    a, b = float(by_head["abc"]), float(by_head["tags"])
    assert float(total) == pytest.approx(2 * (np.exp(-0.7) * a + 0.35) + np.exp(0.4) * b - 0.2, rel=1e-5)


def test_the_variance_of_a_head_that_nobody_answers_stays_where_it_is():
    heads, outputs, targets, shares, s = joint(np.zeros(N), [0.7, -0.4])
    s.requires_grad_(True)
    Objective(heads)(outputs, targets, shares, s)[0].backward()
    assert s.grad[1] == 0 and s.grad[0] != 0
