"""BatchBALD against mutual information by enumeration of all labels, in float64."""

from dataclasses import replace
from itertools import product
from math import log

import numpy as np
import pytest
import torch

from uncertainty.pool import Pool
from uncertainty.registry import score
from uncertainty.strategies import batchbald, select


def sampled(n=12, samples=5, classes=3, seed=0, spread=1.5):
    """[n, S, C] probabilities, float64."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(spread * rng.normal(size=(n, samples, classes))).softmax(-1)


def information(probs, rows):
    """I(y_rows; w) = H(y_rows) - E_s H(y_rows | s), by all configurations of labels."""
    p = probs.numpy()
    samples, classes = p.shape[1:]
    joint = within = 0.0
    for labels in product(range(classes), repeat=len(rows)):
        of_sample = np.prod([p[row, :, label] for row, label in zip(rows, labels, strict=True)], axis=0)
        joint -= of_sample.mean() * log(of_sample.mean())
        within -= (of_sample * np.log(of_sample)).sum() / samples
    return joint - within


def greedy(probs, k):
    chosen, before, gains = [], 0.0, []
    for _ in range(k):
        now = {row: information(probs, [*chosen, row]) for row in range(len(probs)) if row not in chosen}
        best = max(now, key=now.get)
        chosen.append(best)
        gains.append(now[best] - before)
        before = now[best]
    return chosen, gains


def make_pool(probs, labelled=2, **changes):
    n = len(probs)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4))
    none = np.zeros(n, dtype=bool)
    is_labelled = none.copy()
    is_labelled[:labelled] = True
    labels = np.full(n, -1)
    labels[:labelled] = np.arange(labelled) % 2
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return replace(Pool(x, probs.log().float(), is_labelled, none, none, labels=labels), **changes)


@pytest.mark.parametrize("seed", range(4))
def test_choices_and_gains_are_those_of_enumerating_all_labels(seed):
    probs = sampled(seed=seed)
    rows, gains = batchbald.jointly_most_informative(probs, 4, np.random.default_rng(0))
    expected, expected_gains = greedy(probs, 4)
    assert rows == expected
    assert gains == pytest.approx(expected_gains, abs=1e-5)


def test_the_first_choice_gains_its_own_mutual_information():
    probs = sampled(n=40, samples=20, classes=10)
    rows, gains = batchbald.jointly_most_informative(probs, 1, np.random.default_rng(0))
    alone = [information(probs, [row]) for row in range(40)]
    assert rows == [int(np.argmax(alone))]
    assert gains[0] == pytest.approx(max(alone), abs=1e-5)


def test_drawn_configurations_come_close_to_all_of_them(monkeypatch):
    probs = sampled(n=8, seed=3)
    exact, exact_gains = batchbald.jointly_most_informative(probs, 5, np.random.default_rng(0))
    monkeypatch.setattr(batchbald, "TABLE", 1)
    for seed in range(3):
        rows, gains = batchbald.jointly_most_informative(probs, 5, np.random.default_rng(seed))
        assert rows[:2] == exact[:2]
        assert sum(gains) == pytest.approx(sum(exact_gains), rel=0.03)
        # What was chosen is worth nearly as much as the exact choice.
        assert information(probs, rows) > 0.98 * information(probs, exact)


def test_lazy_choice_looks_at_every_row_that_could_win(monkeypatch):
    probs = sampled(n=60, samples=4, classes=2, seed=5)
    monkeypatch.setattr(batchbald, "_AT_ONCE", 1)
    one = batchbald.jointly_most_informative(probs, 6, np.random.default_rng(0))
    monkeypatch.setattr(batchbald, "_AT_ONCE", 60)
    everything = batchbald.jointly_most_informative(probs, 6, np.random.default_rng(0))
    assert one[0] == everything[0]
    assert one[1] == pytest.approx(everything[1], abs=1e-6)


def test_a_batch_tells_no_more_than_which_sample_is_right():
    rows, gains = batchbald.jointly_most_informative(sampled(n=50, samples=4, spread=8.0), 8, np.random.default_rng(0))
    assert len(set(rows)) == 8
    assert 0.9 * log(4) < sum(gains) <= log(4) + 1e-4


def test_a_copy_of_the_best_row_is_not_the_second_choice_though_its_own_score_is():
    probs = sampled(n=30, samples=6)
    best = int(score("bald", probs.log()).argmax())
    probs = torch.cat([probs[:2], probs[best : best + 1].repeat(6, 1, 1), probs[2:]])
    out = select("batchbald", make_pool(probs), 3, seed=0)
    copies = set(range(2, 8)) | {best + 6}
    assert len(copies & set(out.indices.tolist())) == 1


def test_after_the_careful_rows_the_rest_is_drawn_in_proportion_to_mutual_information(monkeypatch):
    monkeypatch.setattr(batchbald, "CAREFUL", 3)
    pool = make_pool(sampled(n=30))
    bald = score("bald", pool.log_probs).double().numpy()
    out = select("batchbald", pool, 28, seed=1)
    assert sorted(out.indices) == list(range(2, 30))
    assert (out.propensity[:3] == 1).all()
    for place in range(3, 28):
        left = bald[out.indices[place:]].sum()
        assert out.propensity[place] == pytest.approx(bald[out.indices[place]] / left, rel=1e-4)
    assert out.gain[3:] == pytest.approx(bald[out.indices[3:]], rel=1e-4)


def test_only_the_rows_of_highest_mutual_information_are_weighed_jointly(monkeypatch):
    monkeypatch.setattr(batchbald, "CANDIDATES", 5)
    pool = make_pool(sampled(n=40))
    bald = score("bald", pool.log_probs).numpy()
    bald[~pool.selectable] = -1
    assert set(select("batchbald", pool, 5, seed=0).indices[:5]) == set(np.argsort(-bald)[:5])


def test_samples_that_all_agree_leave_the_choice_to_chance():
    probs = sampled(n=30)[:, :1].repeat(1, 5, 1)
    first = [select("batchbald", make_pool(probs), 15, seed=seed) for seed in range(2)]
    assert all(len(set(out.indices.tolist())) == 15 for out in first)
    assert first[0].indices.tolist() != first[1].indices.tolist()
