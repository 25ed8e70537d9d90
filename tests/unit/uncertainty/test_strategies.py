"""Promises kept by every registered strategy, and what each one is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from uncertainty import pool as pool_module
from uncertainty import pool_scores
from uncertainty.errors import (
    EmptyPool,
    NotADistributionError,
    PoolError,
    PoolExhausted,
    ShapeError,
    UncertaintyError,
    UnknownMethodError,
)
from uncertainty.pool import POSTERIORS
from uncertainty.pool_scores import pool_score
from uncertainty.registry import score
from uncertainty.strategies import (
    Pool,
    get_strategy,
    herding,
    interleave,
    list_strategies,
    register_strategy,
    select,
)

NAMES = [s.name for s in list_strategies()]
NAMES += ["bald@bootstrap", "power_epig@dropout", "batchbald@bootstrap"]
WITH_PREDICTIONS = [s.name for s in list_strategies() if s.needs_predictions]


def make_pool(n=300, d=8, classes=4, labelled=20, seed=0, dtype=np.float32, **changes):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)
    log_probs = torch.from_numpy(3 * rng.normal(size=(n, 1, classes))).float().log_softmax(-1)
    none = np.zeros(n, dtype=bool)
    is_labelled = none.copy()
    is_labelled[rng.permutation(n)[:labelled]] = True
    # Answers follow the features, so that what is fitted to them has something to find; all rows have one, as
    # changes of the mask need.
    labels = x[:, :classes].argmax(1).astype(np.int64)
    return replace(Pool(x, log_probs, is_labelled, none, none, labels=labels), **changes)


def mask(n, rows):
    out = np.zeros(n, dtype=bool)
    out[rows] = True
    return out


@pytest.fixture(autouse=True)
def small_samples(request, monkeypatch):
    """Samples smaller than these pools, so that both the exact and the sampled way are walked."""
    if "sampled" in request.fixturenames and request.getfixturevalue("sampled"):
        for name, value in (("CANDIDATES", 60), ("POINTS", 80), ("PER_CHOICE", 2)):
            monkeypatch.setattr(herding, name, value)


both_ways = pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])


@both_ways
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_selection_is_k_different_rows_that_may_be_selected(name, cold, dtype, sampled):
    pool = make_pool(dtype=dtype, pending=mask(300, range(30)), excluded=mask(300, range(50, 90)))
    pool = replace(pool, log_probs=None) if cold else pool
    out = select(name, pool, 25, seed=1)
    assert out.indices.dtype == np.int64
    assert len(out) == len(out.gain) == len(out.reason) == len(set(out.indices.tolist())) == 25
    assert pool.selectable[out.indices].all()
    assert (out.gain >= 0).all()


@both_ways
@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_answer(name, sampled):
    pool = make_pool()
    assert (select(name, pool, 20, seed=5).indices == select(name, pool, 20, seed=5).indices).all()


@pytest.mark.parametrize("name", NAMES)
def test_asking_for_more_than_is_left_gives_all_that_is_left(name):
    pool = make_pool(n=40, labelled=33)
    assert sorted(select(name, pool, 100, seed=0).indices) == np.flatnonzero(pool.selectable).tolist()


@both_ways
@pytest.mark.parametrize("name", NAMES)
def test_a_near_duplicate_group_supplies_one_row_and_a_pending_group_none(name, sampled):
    groups = np.arange(300) // 30
    groups[270:] = -1
    pool = make_pool(labelled=0, groups=groups, pending=mask(300, [0]))
    out = select(name, pool, 300, seed=0)
    chosen = groups[out.indices]
    assert sorted(chosen[chosen >= 0]) == list(range(1, 9))
    if not sampled:
        assert (chosen == -1).sum() == 30


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_one_image_are_still_handed_out(name):
    same = np.tile(np.eye(1, 8, dtype=np.float32), (300, 1))
    pool = make_pool(features=same)
    assert len(select(name, pool, 10, seed=0)) == 10


@pytest.mark.parametrize("name", NAMES)
def test_excluded_rows_may_hold_anything(name):
    pool = make_pool()
    features, log_probs = pool.features.copy(), pool.log_probs.clone()
    features[:5] = np.nan
    features[5:9] = 0
    log_probs[:9] = torch.nan
    broken = replace(pool, features=features, log_probs=log_probs, excluded=mask(300, range(9)))
    assert len(select(name, broken, 10, seed=0)) == 10


@pytest.mark.parametrize("name", NAMES)
def test_read_only_features_are_read_and_left_alone(name):
    pool = make_pool()
    features = pool.features.copy()
    features.flags.writeable = False
    assert len(select(name, replace(pool, features=features), 10, seed=0)) == 10


@pytest.mark.parametrize("name", NAMES)
def test_predictions_may_come_as_an_array(name):
    pool = make_pool()
    as_array = replace(pool, log_probs=pool.log_probs.numpy())
    assert (select(name, pool, 10, seed=0).indices == select(name, as_array, 10, seed=0).indices).all()


@pytest.mark.parametrize("name", WITH_PREDICTIONS)
@pytest.mark.parametrize("log_probs", [None, torch.zeros(300, 1, 1)], ids=["no model", "one class"])
def test_without_an_opinion_of_the_model_coverage_decides(name, log_probs):
    pool = make_pool(log_probs=log_probs)
    out = select(name, pool, 10, seed=3)
    assert (out.indices == select("maxherding", pool, 10, seed=3).indices).all()
    assert set(out.reason) == {"diverse"}


@pytest.mark.parametrize("name", ["margin", "entropy", "least_confidence"])
def test_uncertainty_strategies_return_the_rows_of_highest_score_in_order(name):
    pool = make_pool()
    out = select(name, pool, 15, seed=0)
    expected = score(name, pool.log_probs).numpy()
    free = np.flatnonzero(pool.selectable)
    assert out.indices.tolist() == free[np.argsort(-expected[free])][:15].tolist()
    assert out.gain == pytest.approx(expected[out.indices])


@pytest.mark.parametrize("name", ["margin", "entropy", "least_confidence", "random", "maxherding"])
def test_ties_are_broken_by_the_seed(name):
    pool = make_pool(log_probs=torch.zeros(300, 1, 4).log_softmax(-1), features=np.eye(300, dtype=np.float32))
    assert select(name, pool, 5, seed=0).indices.tolist() != select(name, pool, 5, seed=1).indices.tolist()


def clusters(sizes, d=32, spread=0.15, seed=0):
    rng = np.random.default_rng(seed)
    centre = np.eye(d)[: len(sizes)]
    x = np.repeat(centre, sizes, 0) + spread / np.sqrt(d) * rng.normal(size=(sum(sizes), d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


@both_ways
def test_maxherding_visits_every_cluster_once_before_any_twice_and_large_ones_first(sampled):
    x, cluster = clusters([100, 80, 60, 40, 20])
    out = select("maxherding", make_pool(labelled=0, features=x), 5, seed=0)
    assert cluster[out.indices].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("state", ["labelled", "pending"])
@pytest.mark.parametrize("name", ["maxherding", "uherding"])
def test_a_cluster_with_a_labelled_or_pending_row_is_left_for_last(name, state):
    x, cluster = clusters([100, 80, 60, 40, 20])
    uniform = torch.zeros(300, 1, 4).log_softmax(-1)
    pool = replace(make_pool(labelled=0, features=x, log_probs=uniform), **{state: mask(300, [3, 110])})
    assert cluster[select(name, pool, 3, seed=0).indices].tolist() == [2, 3, 4]


def test_an_excluded_row_covers_nothing():
    x, cluster = clusters([200, 100])
    pool = make_pool(labelled=0, features=x, excluded=mask(300, [3]))
    assert cluster[select("maxherding", pool, 1, seed=0).indices].tolist() == [0]


@both_ways
def test_uherding_goes_where_the_model_is_unsure_and_still_spreads(sampled):
    x, cluster = clusters([100, 80, 60, 40, 20])
    logits = torch.zeros(300, 1, 4)
    logits[cluster < 3, :, 0] = 12.0  # the three largest clusters are sure
    out = select("uherding", make_pool(labelled=0, features=x, log_probs=logits.log_softmax(-1)), 2, seed=0)
    assert cluster[out.indices].tolist() == [3, 4]
    assert set(out.reason) == {"uncertain"}


def test_uherding_of_a_model_sure_of_everything_still_covers_the_pool():
    x, cluster = clusters([100, 80, 60, 40, 20])
    certain = torch.full((300, 1, 4), -torch.inf)
    certain[..., 0] = 0
    out = select("uherding", make_pool(labelled=0, features=x, log_probs=certain), 5, seed=0)
    assert sorted(cluster[out.indices]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["maxherding", "uherding"])
def test_herding_equals_the_published_greedy_rule_in_float64(name, monkeypatch):
    monkeypatch.setattr(herding.coverage, "kernel_width", lambda *_: 0.5)
    pool = make_pool(n=120, labelled=10)
    x = pool.features.astype(np.float64)
    kernel = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 0.25)
    u = np.ones(120) if name == "maxherding" else score("margin", pool.log_probs.double()).numpy()
    u[pool.labelled] = 0
    covered, rows, gains = kernel[pool.labelled].max(0), [], []
    for _ in range(20):
        gain = np.maximum(kernel - covered, 0) @ u
        gain[rows] = gain[pool.labelled] = -1
        rows.append(int(gain.argmax()))
        gains.append(gain.max() / u.sum())
        covered = np.maximum(covered, kernel[rows[-1]])
    out = select(name, pool, 20, seed=0)
    assert out.indices.tolist() == rows
    assert out.gain == pytest.approx(gains, rel=1e-3)


def test_sampled_herding_of_digits_covers_nearly_what_exact_herding_covers(monkeypatch):
    x = load_digits().data - load_digits().data.mean(0)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    none = np.zeros(len(x), dtype=bool)
    pool = Pool(x, None, none, none, none)

    def covered(rows):
        return np.exp(-2 * (1 - (x @ x[rows].T).max(1)) / 0.25).mean()

    exact = covered(select("maxherding", pool, 40, seed=0).indices)
    chance = covered(select("random", pool, 40, seed=0).indices)
    for name, value in (("CANDIDATES", 450), ("POINTS", 450)):
        monkeypatch.setattr(herding, name, value)
    sampled = np.mean([covered(select("maxherding", pool, 40, seed=s).indices) for s in range(3)])
    # A quarter of the digits as candidates and as points keeps most of what choosing well is worth.
    assert exact > sampled > chance + 0.5 * (exact - chance)


def test_random_is_uniform_over_what_may_be_selected():
    pool = make_pool(n=20, labelled=5)
    count = np.zeros(20)
    for seed in range(3000):
        count[select("random", pool, 3, seed=seed).indices] += 1
    free = pool.selectable
    assert not count[~free].any()
    # 600 expected each, standard deviation 22.
    assert (np.abs(count[free] - 600) < 110).all()


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.001, 1), (0.1, 5), (1.0, 50)])
def test_interleave_makes_the_asked_share_random_and_keeps_the_length(share, expected):
    pool = make_pool()
    chosen = select("margin", pool, 50, seed=0)
    out = interleave(chosen, pool, share, np.random.default_rng(0))
    assert out.reason.count("explore") == expected
    assert len(out) == len(set(out.indices.tolist())) == 50
    assert pool.selectable[out.indices].all()


def test_interleave_keeps_the_order_gain_and_reason_of_the_others():
    pool = make_pool()
    chosen = select("margin", pool, 50, seed=0)
    out = interleave(chosen, pool, 0.2, np.random.default_rng(0))
    gain = dict(zip(chosen.indices.tolist(), chosen.gain, strict=True))
    exploit = [i for i, reason in enumerate(out.reason) if reason == "uncertain"]
    places = [chosen.indices.tolist().index(r) for r in out.indices[exploit]]
    assert places == sorted(places)
    assert all(out.gain[i] == gain[out.indices[i]] for i in exploit)


def test_interleave_spreads_the_random_rows_evenly():
    pool = make_pool()
    out = interleave(select("margin", pool, 100, seed=0), pool, 0.1, np.random.default_rng(3))
    for start in range(0, 100, 10):
        assert out.reason[start : start + 10].count("explore") == 1


def test_random_rows_of_a_batch_are_a_fair_sample_even_of_what_the_strategy_prefers():
    pool = make_pool(n=30, labelled=0)
    chosen = select("margin", pool, 15, seed=0)
    count = np.zeros(30)
    for seed in range(1000):
        out = interleave(chosen, pool, 0.2, np.random.default_rng(seed))
        count[[row for row, why in zip(out.indices, out.reason, strict=True) if why == "explore"]] += 1
    # 100 expected each, standard deviation 9.
    assert (np.abs(count - 100) < 45).all()


def test_interleave_keeps_one_row_of_a_near_duplicate_group():
    groups = np.arange(300) // 3
    pool = make_pool(labelled=0, groups=groups)
    for seed in range(20):
        out = interleave(select("margin", pool, 60, seed=0), pool, 0.5, np.random.default_rng(seed))
        assert len(set(groups[out.indices])) == len(out)


def test_interleave_refuses_a_percentage():
    pool = make_pool()
    with pytest.raises(PoolError, match="between 0 and 1"):
        interleave(select("margin", pool, 5, seed=0), pool, 10, np.random.default_rng(0))


def test_unknown_strategy_message_lists_the_known_ones():
    with pytest.raises(UnknownMethodError, match=r"maxherding, .*random, .*uherding"):
        select("uherdng", make_pool(), 1, seed=0)


def test_a_posterior_behind_the_name_changes_what_is_chosen_and_laplace_is_the_usual_one():
    pool = make_pool()
    plain = select("bald", pool, 20, seed=0)
    chosen = {name: select(f"bald@{name}", pool, 20, seed=0) for name in POSTERIORS}
    assert (chosen["laplace"].indices == plain.indices).all()
    assert len({tuple(out.indices) for out in chosen.values()}) == 3
    rows = chosen["dropout"].indices
    expected = pool_score("bald", replace(pool, posterior="dropout"), rows)
    assert chosen["dropout"].gain == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["bald@magic", "bald@", "margin@dropout", "typiclust@laplace"])
def test_a_posterior_that_is_none_or_would_change_nothing_is_refused(name):
    with pytest.raises(UnknownMethodError, match=r"bald@laplace\|bootstrap\|dropout, batchbald@"):
        select(name, make_pool(), 1, seed=0)


def test_every_strategy_has_a_summary_and_a_name_can_be_taken_once():
    assert all(info.summary.endswith(".") for info in list_strategies())
    with pytest.raises(ValueError, match="already registered"):
        register_strategy(get_strategy("margin"))


def test_an_exhausted_pool_says_so_and_nothing_asked_is_nothing_given():
    pool = make_pool(n=10, labelled=10)
    with pytest.raises(PoolExhausted, match="asked for 3") as caught:
        select("margin", pool, 3, seed=0)
    assert (caught.value.asked, caught.value.left) == (3, 0)
    for name in NAMES:
        assert len(select(name, make_pool(n=10, labelled=2), 0, seed=0)) == 0
        assert len(select(name, pool, 0, seed=0)) == 0


def test_an_empty_pool_and_a_negative_k_are_refused():
    none = np.zeros(0, dtype=bool)
    with pytest.raises(EmptyPool):
        select("random", Pool(np.zeros((0, 4), np.float32), None, none, none, none), 1, seed=0)
    with pytest.raises(PoolError, match="k >= 0"):
        select("random", make_pool(), -1, seed=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": np.ones(5, np.float32)}, ShapeError, r"\[N, D\]"),
        ({"features": np.ones((5, 4), np.int64)}, PoolError, "float32 or float16, got int64"),
        ({"features": np.ones((5, 4), np.float32)}, PoolError, "row 0 has norm 2.*divide each row"),
        ({"features": np.full((5, 4), np.nan, np.float32)}, PoolError, "row 0 has norm nan"),
        ({"labelled": np.zeros(4, bool)}, ShapeError, r"labelled of shape \[5\].*\[4\]"),
        ({"pending": np.zeros(5, int)}, ShapeError, "pending as booleans"),
        ({"excluded": [0, 3]}, ShapeError, "excluded"),
        ({"groups": np.zeros(5)}, ShapeError, "groups as integers"),
        ({"groups": np.zeros(4, int)}, ShapeError, r"groups as integers of shape \[5\]"),
        ({"log_probs": torch.zeros(5, 3)}, ShapeError, r"\[N, S, C\] with N=5, got \[5, 3\]"),
        ({"log_probs": torch.zeros(4, 1, 3)}, ShapeError, r"N=5"),
        ({"log_probs": torch.zeros(5, 1, 3, dtype=torch.int64)}, NotADistributionError, "int64"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused_with_what_was_wanted_and_what_came(change, error, message):
    with pytest.raises(error, match=message) as caught:
        replace(make_pool(n=5, d=4, labelled=1), **change)
    assert isinstance(caught.value, UncertaintyError)


@pytest.mark.parametrize("name", WITH_PREDICTIONS)
def test_logits_given_as_log_probabilities_are_refused(name):
    with pytest.raises(NotADistributionError, match="log_softmax"):
        select(name, make_pool(log_probs=torch.zeros(300, 1, 4)), 5, seed=0)


def test_row_numbers_in_messages_count_from_the_start_of_the_pool(monkeypatch):
    monkeypatch.setattr(pool_module, "CHUNK", 64)
    features = make_pool().features.copy()
    features[200] *= 3
    with pytest.raises(PoolError, match="row 200 has norm 3"):
        make_pool(features=features)


def test_chunks_do_not_change_the_selection(monkeypatch):
    pool = make_pool()
    expected = {name: select(name, pool, 20, seed=0).indices.tolist() for name in NAMES}
    monkeypatch.setattr(pool_scores, "CHUNK", 7)
    assert {name: select(name, pool, 20, seed=0).indices.tolist() for name in NAMES} == expected
