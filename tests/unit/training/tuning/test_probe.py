"""Heads on frozen features, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from training.tuning.heads import HeadSpec, Targets
from training.tuning.losses import HeadLoss
from training.tuning.net import TunedNet
from training.tuning.probe import _RIDGE, fit_heads

N, D = 120, 6
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(N, D)) * [1, 2, 3, 0.5, 1, 10] + [0, 5, 0, -1, 100, 0]).astype(np.float32)
Z = (X - X.mean(0)) / X.std(0)


def fitted(spec, values, answered=None, held_out=None):
    answered = np.ones(N, bool) if answered is None else answered
    loss = HeadLoss.of(spec, Targets(values, answered), "plain", 0.0)
    torch.manual_seed(0)
    net = TunedNet(torch.nn.Identity(), D, [spec], {})
    shares = torch.from_numpy(answered / answered.sum()).float()
    targets = torch.from_numpy(loss.standardised(values))
    fit_heads(net, [loss], torch.from_numpy(X), {spec.name: targets}, {spec.name: shares}, held_out)
    with torch.no_grad():
        return net.answer(torch.from_numpy(X), {})[0], loss


def test_a_single_choice_is_fitted_as_scikit_learn_does_with_the_same_penalty():
    labels = (Z[:, 0] + 0.5 * RNG.normal(size=N) > 0).astype(int) + (Z[:, 1] > 1)
    outputs, loss = fitted(HeadSpec("a", "single", ("x", "y", "z")), np.eye(3, dtype=np.float32)[labels])
    reference = LogisticRegression(C=1 / (_RIDGE * N), max_iter=5000, tol=1e-8).fit(Z, labels)
    found = loss.log_probabilities(outputs).exp().numpy()
    assert found == pytest.approx(reference.predict_proba(Z), abs=0.02)


def test_a_number_is_fitted_as_ridge_regression_does_and_the_unanswered_do_not_count():
    values = (3 * Z[:, :1] - Z[:, 2:3] + 50 + 0.1 * RNG.normal(size=(N, 1))).astype(np.float32)
    answered = np.arange(N) % 3 != 0
    values[~answered] = 0
    outputs, loss = fitted(HeadSpec("a", "number"), values, answered)
    found = outputs.numpy() * loss.spread + loss.centre
    reference = Ridge(alpha=_RIDGE * answered.sum()).fit(Z[answered], values[answered])
    assert found.ravel() == pytest.approx(reference.predict(Z).ravel(), abs=0.1)


def test_an_ordinal_head_on_raw_features_finds_the_order():
    level = np.digitize(Z[:, 0] + 0.2 * RNG.normal(size=N), [-0.5, 0.5])
    outputs, loss = fitted(HeadSpec("a", "ordinal", ("low", "middle", "high")), np.eye(3, dtype=np.float32)[level])
    assert (loss.log_probabilities(outputs).argmax(1).numpy() == level).mean() > 0.8


def test_the_penalty_is_the_one_that_does_best_on_the_held_out_examples(monkeypatch):
    from training.tuning import probe

    labels = RNG.integers(0, 2, N)  # nothing to learn: the strongest penalty is best
    values = np.eye(2, dtype=np.float32)[labels]
    held = torch.from_numpy(X), {"a": torch.from_numpy(values[::-1].copy())}, {"a": torch.full((N,), 1 / N)}
    spec = HeadSpec("a", "single", ("x", "y"))
    chosen, _ = fitted(spec, values, held_out=held)
    monkeypatch.setattr(probe, "_RIDGES", (max(probe._RIDGES),))
    strongest, _ = fitted(spec, values, held_out=held)
    assert torch.allclose(chosen, strongest)


def test_a_feature_that_was_the_same_in_all_examples_says_little_when_it_first_varies():
    x = np.column_stack([X, np.full(N, 3.0, np.float32)])
    labels = (Z[:, 0] > 0).astype(int)
    spec = HeadSpec("a", "single", ("x", "y"))
    loss = HeadLoss.of(spec, Targets(np.eye(2, dtype=np.float32)[labels], np.ones(N, bool)), "plain", 0.0)
    torch.manual_seed(0)
    net = TunedNet(torch.nn.Identity(), D + 1, [spec], {})
    wanted = {"a": torch.from_numpy(np.eye(2, dtype=np.float32)[labels])}
    fit_heads(net, [loss], torch.from_numpy(x), wanted, {"a": torch.full((N,), 1 / N)}, None)
    weights = net.heads[0].weight.detach().abs()
    assert weights[:, D].max() < 0.1 * weights[:, 0].max()
