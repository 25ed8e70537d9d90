"""GALAXY on lines and pools small enough to know the answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uncertainty.pool import Pool
from uncertainty.strategies import galaxy, select


def mask(n, rows):
    out = np.zeros(n, dtype=bool)
    out[rows] = True
    return out


def line(n, answered, boundary):
    """Signs with some answers, and a model that believes in a change at `boundary`."""
    signs = np.zeros(n, np.int8)
    for place, sign in answered.items():
        signs[place] = sign
    return signs, np.where(np.arange(n) < boundary, 1, -1).astype(np.int8)


def ask(count, n, answered, boundary, seed=0):
    return galaxy.at_the_cuts(*line(n, answered, boundary), count, np.random.default_rng(seed))


def test_the_stretch_between_two_different_answers_is_halved_until_the_change_is_found():
    assert ask(4, 17, {0: 1, 16: -1}, boundary=6) == [8, 4, 6, 5]


def test_around_a_change_between_neighbours_both_sides_are_asked_alike():
    for seed in range(5):
        asked = ask(6, 20, {9: 1, 10: -1}, boundary=10, seed=seed)
        assert set(asked[:2]) == {8, 11} and set(asked[2:4]) == {7, 12} and set(asked[4:]) == {6, 13}


def test_the_shortest_stretch_comes_first():
    assert ask(3, 40, {0: 1, 20: -1, 30: 1, 34: -1}, boundary=33)[:2] == [32, 33]


def test_without_an_answer_of_one_sign_it_is_taken_to_lie_beyond_its_end():
    assert ask(1, 15, {15 - 1: -1}, boundary=3) == [6]  # between -1 and 14
    assert ask(1, 15, {0: 1}, boundary=3) == [7]  # between 0 and 15
    assert ask(1, 15, {}, boundary=3) == [7]


def test_every_unanswered_place_is_asked_in_the_end_and_none_twice():
    rng = np.random.default_rng(0)
    for seed in range(20):
        answered = {int(place): int(rng.choice([-1, 1])) for place in rng.permutation(60)[: rng.integers(0, 30)]}
        asked = ask(100, 60, answered, boundary=int(rng.integers(0, 60)), seed=seed)
        assert sorted(asked) == [place for place in range(60) if place not in answered]


def test_turns_fill_up_the_classes_with_fewest_labels():
    turns = galaxy._turns(np.array([5, 0, 3]), 7, np.random.default_rng(0))
    assert turns[:3] == [1, 1, 1]
    assert np.bincount(turns, minlength=3).tolist() == [0, 5, 2]


def make_pool(position, labelled, label, classes=2):
    """Rows whose probability of class 0 is `position`."""
    n = len(position)
    probs = np.stack([position, 1 - position] + (classes - 2) * [np.zeros(n)], axis=1)
    x = np.eye(4, dtype=np.float32)[np.arange(n) % 4]
    none = np.zeros(n, dtype=bool)
    labels = np.full(n, -1)
    labels[labelled] = label
    return Pool(x, torch.from_numpy(np.log(probs + 1e-9))[:, None], mask(n, labelled), none, none, labels=labels)


def test_questions_gather_where_the_labels_of_a_class_change_not_where_the_model_is_unsure():
    # The model is unsure at 0.5; labels say that class 0 begins at 0.8.
    position = np.linspace(0.01, 0.99, 99)
    pool = make_pool(position, [77, 81], [1, 0])
    out = select("galaxy", pool, 8, seed=0)
    assert (np.abs(position[out.indices] - position[79]) < 0.08).all()
    assert out.indices[0] in {78, 79, 80} and {78, 79, 80} <= set(out.indices)
    assert out.gain == pytest.approx(1 - np.abs(2 * position[out.indices] - 1), abs=1e-5)


def test_a_rare_class_is_asked_for_until_counts_are_level():
    rng = np.random.default_rng(0)
    likeliest = np.repeat([0, 1, 2], [260, 30, 10])
    log_probs = torch.from_numpy(4 * np.eye(3)[likeliest] + rng.normal(size=(300, 3)))[:, None].log_softmax(-1)
    x = np.eye(8, dtype=np.float32)[np.arange(300) % 8]
    none = np.zeros(300, dtype=bool)
    labelled = [*range(20), 260, 261, 290]
    labels = np.full(300, -1)
    labels[labelled] = likeliest[labelled]
    pool = Pool(x, log_probs, mask(300, labelled), none, none, labels=labels)
    share = np.bincount(likeliest[select("galaxy", pool, 30, seed=0).indices], minlength=3) / 30
    # By chance one in thirty belongs to the rarest class, one in ten to the next.
    assert share[2] > 0.15 and share[1] > 0.2


def test_pending_rows_count_for_the_class_the_model_sees_in_them():
    position = np.linspace(0.01, 0.99, 99)
    pool = make_pool(position, [0, 98], [1, 0])
    assert galaxy._turns(galaxy._counts(pool, 2), 1, np.random.default_rng(0)) in ([0], [1])
    assert galaxy._counts(replace(pool, pending=mask(99, [90, 91, 92])), 2).tolist() == [4, 1]
    assert galaxy._counts(replace(pool, pending=mask(99, [90]), excluded=mask(99, [90])), 2).tolist() == [1, 1]


def test_labels_of_a_class_that_the_model_does_not_know_yet_count_as_other():
    position = np.linspace(0.01, 0.99, 99)
    pool = make_pool(position, [0, 50, 98], [1, 2, 0])
    assert len(set(select("galaxy", pool, 40, seed=0).indices.tolist())) == 40


def test_pools_with_too_many_probabilities_are_thinned_and_still_supply_k(monkeypatch):
    position = np.linspace(0.01, 0.99, 99)
    pool = make_pool(position, [0, 98], [1, 0])
    monkeypatch.setattr(galaxy, "NUMBERS", 80)
    for k in (10, 60, 97):
        assert len(set(select("galaxy", pool, k, seed=0).indices.tolist())) == k
