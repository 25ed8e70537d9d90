"""Posterior samples of a linear head: closed forms against dense matrices, Monte Carlo and refits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from uncertainty import laplace, predictives
from uncertainty.errors import NotADistributionError, PoolError, ShapeError
from uncertainty.laplace import LinearPosterior, single
from uncertainty.linear_head import LinearHead
from uncertainty.pool import POSTERIORS, Pool
from uncertainty.predictives import (
    bootstrap_heads,
    ensemble,
    mc_dropout,
    posterior_of,
    samples_of,
    stack_members,
    tempered,
)


def data(n, width=6, classes=3, seed=0):
    """Unit rows [n, width] around a centre per class, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, width))
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n)])[:n]
    x = centres[y] + 1.5 * rng.normal(size=(n, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True), y


def queries(count=12, width=6, seed=1):
    return torch.from_numpy(data(count, width, seed=seed)[0])


def extended(x):
    return np.column_stack([8 * np.asarray(x), np.ones(len(x))])


def dense_precision(posterior, x, lam):
    """n A (x) G + lambda I, [(D+1) C, (D+1) C], from the definition."""
    rows = np.vstack([extended(x), np.eye(1, x.shape[1] + 1, x.shape[1])])
    p = softmax(rows @ np.vstack([posterior.weight / 8, posterior.bias]), axis=1)
    n = len(rows)
    a = rows.T @ rows / n
    g = sum(np.diag(q) - np.outer(q, q) for q in p) / n
    return n * np.kron(a, g) + lam * np.eye(a.size and len(a) * len(g))


def logit_variance(precision, x, classes):
    """Variance of logits without what is common to the classes, [B, C]."""
    covariance = np.linalg.inv(precision)
    middle = np.eye(classes) - 1 / classes
    out = []
    for row in extended(x):
        j = np.kron(row, np.eye(classes))  # [C, (D+1) C]
        out.append(np.diag(middle @ j @ covariance @ j.T @ middle))
    return np.array(out)


@pytest.mark.parametrize("lam", [0.1, 5.0])
@pytest.mark.parametrize("n", [3, 40], ids=["fewer rows than features", "more rows than features"])
def test_variance_is_that_of_the_dense_kronecker_posterior(n, lam):
    x, y = data(n)
    posterior = LinearPosterior.fit(x, y, 3, regularisation=lam)
    expected = logit_variance(dense_precision(posterior, x, lam), queries(), 3)
    np.testing.assert_allclose(posterior.variance(queries()), expected, rtol=1e-8)
    np.testing.assert_allclose(posterior.variance(queries().float()), expected, rtol=1e-3)


def test_the_kronecker_curvature_is_the_second_derivative_of_the_loss_where_predictions_are_alike():
    # Under a heavy ridge all predictions are the smoothed shares of the classes, and the factors are exact.
    x, y = data(20)
    lam = 1e7
    posterior = LinearPosterior.fit(x, y, 3, regularisation=lam)
    rows = np.vstack([extended(x), np.eye(1, 7, 6)])

    def loss(theta):
        logits = rows @ theta.reshape(7, 3)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -log_p[np.arange(20), y].sum() - log_p[20].mean()

    at, h = np.vstack([posterior.weight / 8, posterior.bias]).ravel(), 1e-3
    hessian = np.empty((21, 21))
    step = h * np.eye(21)
    for i in range(21):
        for j in range(21):
            corners = [loss(at + a * step[i] + b * step[j]) * a * b for a in (1, -1) for b in (1, -1)]
            hessian[i, j] = sum(corners) / (4 * h * h)
    curvature = dense_precision(posterior, x, lam) - lam * np.eye(21)
    np.testing.assert_allclose(curvature, hessian, atol=2e-3 * np.abs(hessian).max())


def test_an_example_of_weight_two_counts_like_two_examples():
    x, y = data(12)
    weighted = LinearPosterior.fit(x, y, 3, weights=np.where(np.arange(12) < 4, 2.0, 1.0))
    twice = LinearPosterior.fit(np.vstack([x, x[:4]]), np.concatenate([y, y[:4]]), 3)
    np.testing.assert_allclose(weighted.log_probs(queries()), twice.log_probs(queries()), atol=1e-5)
    np.testing.assert_allclose(weighted.variance(queries()), twice.variance(queries()), rtol=1e-4)


def centred_logits(log_probs):
    return log_probs - log_probs.mean(-1, keepdim=True)


@pytest.mark.parametrize("updates", [0, 2])
def test_samples_have_the_mean_and_variance_stated(updates):
    x, y = data(30)
    posterior = LinearPosterior.fit(x[:28], y[:28], 3)
    for row in range(28, 28 + updates):
        posterior = posterior.update(x[row], y[row])
    drawn = centred_logits(posterior.samples(queries(), 8_000, seed=3))
    sd = posterior.variance(queries()).sqrt()
    mean = centred_logits(posterior.logits(queries()))
    assert ((drawn.mean(1) - mean).abs() < 5 * sd / 8_000**0.5).all()
    np.testing.assert_allclose(drawn.var(1), sd.square(), rtol=0.1)


def test_samples_are_the_same_functions_for_every_row_call_and_count(monkeypatch):
    posterior = LinearPosterior.fit(*data(20), 3)
    x = queries()
    all_at_once = posterior.samples(x, 10, seed=4)
    np.testing.assert_allclose(posterior.samples(x[5:7], 10, seed=4), all_at_once[5:7])
    monkeypatch.setattr(laplace, "_REMEMBERED", 50)  # groups of two heads
    again = LinearPosterior.fit(*data(20), 3)
    np.testing.assert_allclose(again.samples(x, 7, seed=4), all_at_once[:, :7])
    assert not torch.allclose(posterior.samples(x, 10, seed=5), all_at_once)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_probit_is_nearer_to_the_average_over_samples_than_the_likeliest_weights_are(classes):
    x, y = data(30, width=16, classes=classes)
    posterior = LinearPosterior.fit(x, y, classes)
    q = torch.from_numpy(data(100, 16, classes, seed=2)[0])
    average = posterior.samples(q, 4000).exp().mean(1)
    off = (posterior.probit(q)[:, 0].exp() - average).abs().amax(1).mean()
    assert off < 0.06
    assert off < 0.3 * (posterior.log_probs(q)[:, 0].exp() - average).abs().amax(1).mean()


def test_a_class_without_examples_and_two_examples_are_enough():
    x, y = data(2, width=50)
    posterior = LinearPosterior.fit(x.astype(np.float32), y, 4)
    q = queries(5, 50).float()
    for out, samples in ((posterior.log_probs(q), 1), (posterior.probit(q), 1), (posterior.samples(q, 6), 6)):
        assert out.shape == (5, samples, 4)
        np.testing.assert_allclose(out.exp().sum(-1), 1, atol=1e-5)
    assert (posterior.variance(q) > 0).all()


def test_nothing_is_surer_than_what_was_seen_and_doubt_falls_with_labels():
    x, y = data(200)
    few, many = LinearPosterior.fit(x[:20], y[:20], 3), LinearPosterior.fit(x, y, 3)
    assert (many.variance(queries()) < few.variance(queries())).all()


# ---------------------------------------------------------------------- one more label
@pytest.mark.parametrize("labels", [1, 3])
def test_updates_are_newton_steps_with_the_dense_curvature(labels):
    x, y = data(10)
    new, new_y = data(labels, seed=5)
    posterior = LinearPosterior.fit(x, y, 3)
    precision = dense_precision(posterior, x, 1.0)
    theta = np.vstack([posterior.weight / 8, posterior.bias])
    for row, label in zip(new, new_y, strict=True):
        posterior = posterior.update(row, int(label))
        at = extended(row[None])[0]
        p = softmax(at @ theta)
        precision = precision + np.kron(np.outer(at, at), np.diag(p) - np.outer(p, p))
        step = np.linalg.solve(precision, np.kron(at, p - np.eye(3)[label]))
        theta = theta - step.reshape(7, 3)
    np.testing.assert_allclose(posterior.weight / 8, theta[:-1], atol=1e-9)
    np.testing.assert_allclose(posterior.bias, theta[-1], atol=1e-9)
    np.testing.assert_allclose(posterior.variance(queries()), logit_variance(precision, queries(), 3), rtol=1e-7)


def test_an_update_agrees_with_a_refit_to_first_order_where_the_curvature_is_exact():
    # Every row has every label once: all predictions are uniform, and the factors exact.
    x, _ = data(40)
    every, labels = np.tile(x, (3, 1)), np.repeat([0, 1, 2], 40)
    new = data(1, seed=8)[0]
    before = LinearPosterior.fit(every, labels, 3, regularisation=1e-2)
    refit = LinearPosterior.fit(np.vstack([every, new]), np.append(labels, 2), 3, regularisation=1e-2)
    moved = centred_logits(refit.logits(queries()))
    step = centred_logits(before.update(new[0], 2).logits(queries()))
    assert moved.abs().max() > 0.05
    np.testing.assert_allclose(step, moved, atol=0.02 * float(moved.abs().max()))


def test_an_update_moves_predictions_where_a_refit_moves_them():
    x, y = data(60)
    before = LinearPosterior.fit(x[:59], y[:59], 3)
    refit = LinearPosterior.fit(x, y, 3)
    updated = before.update(torch.from_numpy(x[59]), int(y[59]))
    q = queries(200)
    step = (updated.log_probs(q) - before.log_probs(q)).exp().flatten()
    wanted = (refit.log_probs(q) - before.log_probs(q)).exp().flatten()
    assert np.corrcoef(step, wanted)[0, 1] > 0.8
    old = before.log_probs(torch.from_numpy(x[59:]))[0, 0, y[59]]
    assert updated.log_probs(torch.from_numpy(x[59:]))[0, 0, y[59]] > old


def test_an_update_leaves_the_posterior_it_came_from_alone():
    x, y = data(10)
    posterior = LinearPosterior.fit(x, y, 3)
    before = posterior.samples(queries(), 5), posterior.variance(queries())
    after = posterior.update(x[0], 2)
    np.testing.assert_allclose(posterior.samples(queries(), 5), before[0])
    np.testing.assert_allclose(posterior.variance(queries()), before[1])
    assert (after.variance(queries()) < before[1]).all()


def test_variance_by_chunks_is_variance_at_once(monkeypatch):
    x, y = data(10)
    posterior = LinearPosterior.fit(x, y, 3).update(x[0], 1)
    at_once = posterior.variance(queries())
    monkeypatch.setattr(laplace, "_NUMBERS", 1)
    np.testing.assert_allclose(posterior.variance(queries()), at_once)


def test_other_widths_and_labels_are_refused():
    posterior = LinearPosterior.fit(*data(10), 3)
    with pytest.raises(ShapeError, match=r"\[B, 6\]"):
        posterior.samples(torch.zeros(3, 5))
    with pytest.raises(ShapeError, match=r"\[6\]"):
        posterior.update(torch.zeros(5), 0)
    with pytest.raises(ShapeError, match="labels in"):
        posterior.update(torch.zeros(6), 3)
    with pytest.raises(PoolError, match="at least one"):
        posterior.samples(queries(), 0)


# ---------------------------------------------------------------------- other ways to samples
def test_single_and_tempered_are_the_softmax_of_their_definition():
    logits = 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(single(logits)[:, 0].exp(), softmax(logits.numpy(), axis=1))
    np.testing.assert_allclose(tempered(logits, 2.5)[:, 0].exp(), softmax(logits.numpy() / 2.5, axis=1))
    with pytest.raises(NotADistributionError, match="above 0"):
        tempered(logits, 0)
    with pytest.raises(ShapeError, match=r"\[B, C\]"):
        single(logits[0])


def test_dropout_averages_to_the_head_and_drops_the_same_features_in_every_row():
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(6, 3)), rng.normal(size=3))
    x = queries()
    expected = x.numpy() @ head.weight + head.bias
    none = mc_dropout(head, x, p=0.0, count=4)
    np.testing.assert_allclose(none.exp(), np.repeat(softmax(expected, 1)[:, None], 4, 1))
    drawn = mc_dropout(head, x, p=0.3, count=30_000)
    centred = expected - expected.mean(1, keepdims=True)
    weight = head.weight - head.weight.mean(1, keepdims=True)
    variance = (x.numpy() ** 2) @ weight**2 * 0.3 / 0.7
    logits = centred_logits(drawn)
    np.testing.assert_allclose(logits.mean(1), centred, atol=5 * np.sqrt(variance.max() / 30_000))
    np.testing.assert_allclose(logits.var(1), variance, rtol=0.1)
    np.testing.assert_allclose(mc_dropout(head, x[3:5], p=0.3, count=8), mc_dropout(head, x, p=0.3, count=8)[3:5])
    with pytest.raises(PoolError, match="dropped"):
        mc_dropout(head, x, p=1.0)


def test_heads_of_a_bootstrap_differ_and_none_loses_a_class():
    x, y = data(60)
    y[y == 2] = 0
    y[5] = 2  # a class of one example
    heads = bootstrap_heads(x, y, 4, members=6, seed=1)
    out = ensemble(heads, torch.from_numpy(x))
    assert out.shape == (60, 6, 4)
    np.testing.assert_allclose(out.exp().sum(-1), 1)
    assert (out[5, :, 2] > out[:, :, 2].mean(0)).all()
    assert out[..., 2].exp().mean() > 2 * out[..., 3].exp().mean()
    assert all(((head.weight != 0).any(1)).sum() == 3 for head in heads)
    assert len({head.weight.tobytes() for head in heads}) == 6
    again = bootstrap_heads(x, y, 4, members=6, seed=1)
    assert all((a.weight == b.weight).all() for a, b in zip(heads, again, strict=True))
    assert (out.exp().mean(1).argmax(1).numpy() == y).mean() > 0.6


def test_members_are_stacked_in_order_whatever_number_of_samples_they_have():
    posterior = LinearPosterior.fit(*data(20), 3)
    first, more = posterior.log_probs(queries())[:, 0], posterior.samples(queries(), 4)
    out = stack_members([first, more])
    assert out.shape == (12, 5, 3)
    assert (out[:, 0] == first).all() and (out[:, 1:] == more).all()
    with pytest.raises(ShapeError, match="same rows"):
        stack_members([first, more[:3]])
    with pytest.raises(NotADistributionError):
        stack_members([posterior.logits(queries())])
    for nothing in (lambda: stack_members([]), lambda: ensemble([], queries())):
        with pytest.raises(PoolError, match="at least one"):
            nothing()


def test_views_of_the_same_examples_become_samples():
    posterior = LinearPosterior.fit(*data(20), 3)
    views = [queries(seed=s) for s in (1, 2, 3)]
    out = predictives.test_time_augmentation(posterior.log_probs, views)
    np.testing.assert_allclose(out[:, 1], posterior.log_probs(views[1])[:, 0])
    assert out.shape == (12, 3, 3)


# ---------------------------------------------------------------------- of a pool
def pool_of(labels, log_probs=None):
    x, _ = data(len(labels))
    labels = np.asarray(labels)
    none = np.zeros(len(labels), dtype=bool)
    return Pool(x.astype(np.float32), log_probs, labels >= 0, none, none, labels=labels)


def test_a_pool_is_fitted_once_and_given_samples_go_first():
    pool = pool_of([0, 1, 2, 1] + [-1] * 20)
    rows = np.array([5, 3, 9])
    assert posterior_of(pool) is posterior_of(pool)
    assert samples_of(pool, rows, 7).shape == (3, 7, 3)
    given = torch.zeros(24, 2, 3).log_softmax(-1)
    assert samples_of(pool_of([0, 1, 2, 1] + [-1] * 20, given), rows).shape == (3, 2, 3)


def test_the_posterior_of_a_pool_says_which_heads_its_samples_are_of():
    labels = np.array([0, 1, 2, 1] * 5 + [-1] * 20)
    rows = np.array([25, 3, 30])
    pool = pool_of(labels)
    x = torch.from_numpy(pool.features[rows])
    heads = bootstrap_heads(pool.features[:20], labels[:20], 3)
    expected = {
        "laplace": posterior_of(pool).samples(x),
        "bootstrap": ensemble(heads, x),
        "dropout": mc_dropout(posterior_of(pool), x),
    }
    assert set(expected) == set(predictives.MEANING) == set(POSTERIORS)
    for name, samples in expected.items():
        np.testing.assert_allclose(samples_of(replace(pool, posterior=name), rows), samples, atol=1e-5)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_pool_of_one_known_class_has_no_posterior(posterior):
    pool = replace(pool_of([0, 0] + [-1] * 5), posterior=posterior)
    with pytest.raises(PoolError, match="two classes"):
        samples_of(pool, np.array([3]))


def test_bootstrap_heads_of_a_pool_are_fitted_once(monkeypatch):
    fits = []
    monkeypatch.setattr(predictives, "bootstrap_heads", lambda *a: fits.append(a) or bootstrap_heads(*a))
    pool = replace(pool_of([0, 1, 2, 1] + [-1] * 20), posterior="bootstrap")
    for rows in (np.array([5, 3]), np.array([9])):
        samples_of(pool, rows)
    assert len(fits) == 1
