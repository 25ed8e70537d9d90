"""Tools that strategies share: a fair part of a pool too large to be looked at whole."""

from dataclasses import replace

import numpy as np
import torch

from uncertainty.selection import thinned


def test_thinning_keeps_each_predicted_class_by_its_share_and_gives_rows_the_same_chance(clusters):
    likeliest = np.repeat([0, 1, 2], [200, 80, 20])
    logits = torch.from_numpy(5.0 * np.eye(3)[likeliest])[:, None]
    pool = replace(clusters([300])[0], log_probs=logits.log_softmax(-1))
    count = np.zeros(300)
    for seed in range(400):
        rows = thinned(pool, np.arange(300), 30, np.random.default_rng(seed))
        assert len(set(rows.tolist())) == 30
        assert np.abs(np.bincount(likeliest[rows], minlength=3) - [20, 8, 2]).max() <= 1
        count[rows] += 1
    # 40 expected each, standard deviation 6.
    assert (np.abs(count - 40) < 30).all()


def test_thinning_without_predictions_is_a_draw_and_needless_thinning_only_shuffles(clusters):
    pool, _ = clusters([300])
    rows = thinned(pool, np.arange(300), 30, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 30
    assert sorted(thinned(pool, np.arange(9), 9, np.random.default_rng(0))) == list(range(9))
