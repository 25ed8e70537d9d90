"""What people skip is learnt from: what looks like it is asked last, and only once that can be told."""

from dataclasses import replace

import numpy as np
import pytest

from uncertainty.errors import PoolError
from uncertainty.layers import Layers, select_in_layers
from uncertainty.rejection import like_rejected
from uncertainty.strategies import Pool

ALONE = Layers(explore=0, quota=0, veto=0)
N = 300


def junk_rows():
    return np.arange(N) % 5 == 0


def make_pool(told=60, *, skipped=None, seed=0):
    """A fifth of the rows points elsewhere; of the first `told` rows the answer is known, `skipped` are skips."""
    rng = np.random.default_rng(seed)
    x = 0.3 * rng.normal(size=(N, 8))
    x[:, 0] += np.where(junk_rows(), 0, 1)
    x[:, 1] += np.where(junk_rows(), 1, 0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labelled = np.arange(N) < told
    skipped = junk_rows() if skipped is None else skipped
    return Pool(
        features=x.astype(np.float32),
        log_probs=None,
        labelled=labelled,
        pending=np.zeros(N, bool),
        excluded=np.zeros(N, bool),
        labels=np.where(labelled & ~skipped, 0, -1),
        rejected=labelled & skipped,
    )


def test_rows_like_the_skipped_ones_are_found_and_few_others():
    found = like_rejected(make_pool(), seed=0)
    junk = np.flatnonzero(junk_rows() & (np.arange(N) >= 60))
    assert np.isin(junk, found).mean() > 0.9
    assert np.isin(found, junk).mean() > 0.9
    assert (np.diff(found) > 0).all()


def test_they_are_not_asked_for_but_for_one_probe():
    pool = make_pool()
    found = like_rejected(pool, seed=0)
    for strategy in ("maxherding", "k_center"):
        out = select_in_layers(strategy, pool, 40, seed=0, layers=ALONE)
        assert out.reason.count("probe") == 1
        assert np.isin(out.indices, found).sum() == 1
        unlearnt = select_in_layers(strategy, pool, 40, seed=0, layers=replace(ALONE, skips=False))
        assert np.isin(unlearnt.indices, found).sum() > 1


def test_random_order_stays_uniform_over_everything():
    pool = make_pool()
    found = like_rejected(pool, seed=0)
    everything = select_in_layers("random", pool, N - 60, seed=0, layers=ALONE)
    assert np.isin(found, everything.indices).all()
    np.testing.assert_allclose(everything.propensity, 1 / (N - 60 - np.arange(N - 60)))


def test_skips_that_look_like_everything_else_teach_nothing():
    for seed in range(20):
        skipped = np.random.default_rng(seed).random(N) < 0.2
        assert not len(like_rejected(make_pool(skipped=skipped, seed=seed), seed=seed))


def test_four_skips_are_too_few_and_five_are_enough():
    assert not len(like_rejected(make_pool(told=20), seed=0))
    assert len(like_rejected(make_pool(told=25), seed=0))


def test_skips_of_the_audit_slice_are_none_of_its_business():
    pool = make_pool()
    hidden = replace(pool, excluded=pool.rejected, labelled=pool.labelled & ~pool.rejected, rejected=None)
    assert not len(like_rejected(hidden, seed=0))


def test_a_rejected_row_that_could_be_asked_for_again_is_refused():
    pool = make_pool()
    with pytest.raises(PoolError, match="rejected"):
        replace(pool, labelled=pool.labelled & ~pool.rejected)
