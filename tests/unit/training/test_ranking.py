"""The order holds every open example once, and each kind of example stands where it should."""

import numpy as np
import pytest

from training.evaluate import audit_is_enough
from training.linear import log_softmax
from training.ranking import (
    REASONS,
    AuditStream,
    Candidates,
    Shares,
    hash_ids,
    order_candidates,
    to_ranking,
    unread_only,
)
from uncertainty.errors import UnknownMethodError

UNCERTAIN, DIVERSE, EXPLORE, AUDIT, PENDING, UNREAD = range(6)
STRATEGIES = ["random", "margin", "power_margin", "entropy", "maxherding", "uherding"]


def candidates(n=300, classes=4, seed=0, predictions=True, **changes):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = np.arange(1000, 1000 + n)
    labelled = rng.random(n) < 0.1
    values = {
        "example_ids": ids,
        "features": features,
        "log_probabilities": log_softmax(2 * rng.normal(size=(n, classes)).astype(np.float32)) if predictions else None,
        "labelled": labelled,
        "pending": ~labelled & (rng.random(n) < 0.02),
        "audit": AuditStream(0.1).mask(ids),
        "open": ~labelled & (rng.random(n) < 0.95),
    }
    return Candidates(**(values | changes))


def order(pool, strategy="uherding", front=40, explore=0.1, audit_share=0.1, seed=0, **shares):
    layers = Shares(explore=explore, **shares)
    return order_candidates(pool, strategy=strategy, front=front, layers=layers, audit_share=audit_share, seed=seed)


def margin(pool):
    p = np.sort(np.exp(pool.log_probabilities), axis=1)
    return 1 - (p[:, -1] - p[:, -2])


# ---------------------------------------------------------------------- all of them
@pytest.mark.parametrize("predictions", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("front", [0, 1, 7, 40, 1000])
def test_every_open_example_is_asked_for_once(strategy, front, predictions):
    pool = candidates(predictions=predictions)
    result = order(pool, strategy, front)
    assert sorted(result.rows.tolist()) == np.flatnonzero(pool.open).tolist()
    assert len(result.reasons) == len(result.rows)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_order(strategy):
    pool = candidates()
    np.testing.assert_array_equal(order(pool, strategy, seed=3).rows, order(pool, strategy, seed=3).rows)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_input_is_left_untouched(strategy):
    pool, same = candidates(), candidates()
    order(pool, strategy)
    for name in vars(pool):
        np.testing.assert_array_equal(getattr(pool, name), getattr(same, name))


def test_a_wrong_name_is_refused_even_when_nothing_is_left():
    pool = candidates(open=np.zeros(300, bool))
    with pytest.raises(UnknownMethodError):
        order(pool, "best")


def test_nothing_open_gives_an_empty_order():
    assert len(order(candidates(open=np.zeros(300, bool))).rows) == 0


def test_one_class_is_ordered_without_its_predictions():
    pool = candidates(classes=1)
    assert set(order(pool).reasons[pool.pending.sum() :]) <= {DIVERSE, EXPLORE, AUDIT, PENDING}


# ---------------------------------------------------------------------- places
def test_pending_examples_stay_in_front():
    pool = candidates()
    result = order(pool)
    pending = np.flatnonzero(pool.open & pool.pending)
    assert len(pending)
    np.testing.assert_array_equal(result.rows[: len(pending)], pending)
    assert (result.reasons == PENDING).sum() == len(pending)


def test_one_place_in_ten_belongs_to_the_audit_slice_while_it_lasts():
    pool = candidates(pending=np.zeros(300, bool), labelled=np.zeros(300, bool))
    audit = pool.open & pool.audit
    places = np.flatnonzero(order(pool).reasons == AUDIT)
    assert len(places) == audit.sum()
    for upto in range(10, int(pool.open.sum()) - 20, 10):  # those that found no place stand at the very end
        assert (places < upto).sum() == upto // 10


@pytest.mark.parametrize("taken", [1, 3, 40])
def test_the_audit_slice_and_chance_get_their_share_however_few_labels_an_order_lives_for(taken):
    pool = candidates(n=1000, pending=np.zeros(1000, bool), labelled=np.zeros(1000, bool), open=np.ones(1000, bool))
    reasons = []
    while len(reasons) < 240:
        result = order(pool, "margin", explore=0.1)
        pool.labelled[result.rows[:taken]], pool.open[result.rows[:taken]] = True, False
        reasons += result.reasons[:taken].tolist()
    assert abs(reasons.count(AUDIT) - len(reasons) / 10) <= 1
    assert 0.04 <= reasons.count(EXPLORE) / len(reasons) <= 0.16


def test_an_audit_slice_in_arrears_gets_every_second_place_and_no_more():
    # A hundred labels without an audit one among them: ten are owed, and a tenth of what follows.
    audit = AuditStream(0.1).mask(np.arange(300))
    pool = candidates(pending=np.zeros(300, bool), labelled=~audit & (np.arange(300) < 110), audit=audit)
    places = np.flatnonzero(order(pool).reasons == AUDIT)
    assert places[:8].tolist() == list(range(0, 16, 2))


def test_audit_examples_are_placed_by_their_hash_whatever_the_scores_are():
    pool, other = candidates(), candidates()
    rng = np.random.default_rng(7)
    object.__setattr__(other, "log_probabilities", log_softmax(rng.normal(size=(300, 4)).astype(np.float32)))
    a, b = order(pool), order(other, "margin", explore=0.5, seed=9)
    np.testing.assert_array_equal(a.rows[a.reasons == AUDIT], b.rows[b.reasons == AUDIT])
    np.testing.assert_array_equal(np.flatnonzero(a.reasons == AUDIT), np.flatnonzero(b.reasons == AUDIT))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_audit_example_is_ever_chosen_for_its_score(strategy):
    pool = candidates()
    result = order(pool, strategy)
    is_audit = pool.audit[result.rows]
    assert set(result.reasons[is_audit]) <= {AUDIT, PENDING}
    assert AUDIT not in result.reasons[~is_audit]


def test_audit_examples_come_last_once_the_slice_is_large_enough():
    pool = candidates(pending=np.zeros(300, bool))
    reasons = order(pool, audit_share=0.0).reasons
    count = int((pool.open & pool.audit).sum())
    assert (reasons[-count:] == AUDIT).all()
    assert AUDIT not in reasons[:-count]


def test_a_pool_of_audit_examples_alone_is_ordered():
    pool = candidates(audit=np.ones(300, bool), pending=np.zeros(300, bool))
    result = order(pool)
    assert (result.reasons == AUDIT).all()
    hashes = hash_ids(pool.example_ids[result.rows], salt=1)
    assert (np.diff(hashes.astype(np.float64)) > 0).all()


def test_the_front_has_its_share_of_random_and_audit_examples():
    pool = candidates(n=2000, pending=np.zeros(2000, bool), labelled=np.zeros(2000, bool))
    reasons = order(pool, front=100, explore=0.2).reasons[:100]
    assert (reasons == AUDIT).sum() == 10
    assert (reasons == EXPLORE).sum() == 18  # a fifth of the other ninety
    assert (reasons == UNCERTAIN).sum() == 72


def test_margin_without_random_or_audit_places_is_the_order_of_margins():
    pool = candidates(audit=np.zeros(300, bool), pending=np.zeros(300, bool))
    result = order(pool, "margin", explore=0.0, audit_share=0.0)
    assert (np.diff(margin(pool)[result.rows]) <= 1e-6).all()


@pytest.mark.parametrize("strategy", ["uherding", "maxherding", "margin"])
def test_behind_the_front_the_most_uncertain_comes_first(strategy):
    pool = candidates(audit=np.zeros(300, bool), pending=np.zeros(300, bool))
    rest = order(pool, strategy, front=20).rows[20:]
    assert (np.diff(margin(pool)[rest]) <= 1e-6).all()


def test_the_random_strategy_ignores_predictions_behind_the_front_too():
    pool, blind = candidates(), candidates(log_probabilities=None)
    np.testing.assert_array_equal(order(pool, "random").rows, order(blind, "random").rows)


def test_the_front_holds_one_of_each_set_of_copies_and_none_of_what_is_handed_out():
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(60, 8)).astype(np.float32)
    originals /= np.linalg.norm(originals, axis=1, keepdims=True)
    group = np.repeat(np.arange(60), 5)
    pending = np.zeros(300, bool)
    pending[0] = True
    for strategy in STRATEGIES:
        pool = candidates(
            features=originals[group],
            labelled=np.zeros(300, bool),
            open=np.ones(300, bool),
            audit=np.zeros(300, bool),
            pending=pending,
        )
        front = order(pool, strategy, front=30, audit_share=0.0).rows[:30]
        assert len(set(group[front])) == 30, strategy


def test_more_copies_than_places_still_fill_the_order():
    features = np.ones((50, 4), np.float32) / 2
    none = np.zeros(50, bool)
    pool = candidates(n=50, features=features, labelled=none, pending=none, audit=none, open=~none)
    assert sorted(order(pool, "margin", front=20).rows.tolist()) == list(range(50))


# ---------------------------------------------------------------------- audit stream
def test_the_audit_stream_takes_its_share_of_ids_and_never_changes_its_mind():
    ids = np.arange(20_000)
    mask = AuditStream(0.1, salt=5).mask(ids)
    assert mask.mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 20_000))
    np.testing.assert_array_equal(mask[100:200], AuditStream(0.1, salt=5).mask(ids[100:200]))
    assert [AuditStream(0.1, salt=5)(i) for i in range(50)] == mask[:50].tolist()


def test_a_larger_share_keeps_those_of_a_smaller_one():
    ids = np.arange(5_000)
    assert not (AuditStream(0.05).mask(ids) & ~AuditStream(0.2).mask(ids)).any()


def test_share_zero_takes_none_and_share_one_takes_all():
    ids = np.arange(5_000)
    assert not AuditStream(0.0).mask(ids).any()
    assert AuditStream(1.0).mask(ids).all()


def test_projects_with_different_salts_have_unrelated_slices():
    ids = np.arange(20_000)
    both = AuditStream(0.1, salt=1).mask(ids) & AuditStream(0.1, salt=2).mask(ids)
    assert both.mean() == pytest.approx(0.01, abs=0.004)


def test_hashes_are_those_of_splitmix64():
    # First outputs of the reference implementation (Vigna, splitmix64.c) for the state 0 and 1234567.
    assert hash_ids(np.array([0]))[0] == 0xE220A8397B1DCDAF
    assert hash_ids(np.array([1234567]))[0] == 6457827717110365317


# ---------------------------------------------------------------------- the ranking
def test_a_ranking_says_of_each_place_what_is_known():
    log_p = np.log(np.array([[0.9, 0.1], [0.4, 0.6]], np.float32))
    ranking = to_ranking("v", np.array([5, 6]), log_p, np.array([1, 0]), np.array([0, 2], np.int8), np.array([9]))
    assert ranking.example_ids.tolist() == [6, 5, 9]
    assert [ranking[i].label for i in range(3)] == [1, 0, None]
    assert [ranking[i].reason for i in range(3)] == ["uncertain", "explore", "unread"]
    np.testing.assert_allclose(ranking.confidence, [0.6, 0.9, 0.9], rtol=1e-6)


def test_without_a_version_nothing_is_claimed():
    ranking = unread_only(None, np.array([3, 1]))
    assert ranking.example_ids.tolist() == [3, 1]
    assert ranking.confidence.tolist() == [0, 0]
    assert ranking.label.tolist() == [-1, -1]
    assert {REASONS[code] for code in ranking.reason} == {"unread"}


def test_the_audit_slice_of_a_finished_project_is_enough():
    assert audit_is_enough(2_000, 0.8)


def test_what_looks_like_skipped_examples_comes_last_and_is_said():
    rng = np.random.default_rng(0)
    n = 300
    odd = np.arange(n) % 5 == 0
    x = 0.3 * rng.normal(size=(n, 8))
    x[np.arange(n), odd.astype(int)] += 1
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    given = np.arange(n) < 60
    log_p = np.log(rng.dirichlet(np.ones(3), n)).astype(np.float32)
    pool = Candidates(
        example_ids=np.arange(n) + 1,
        features=x,
        log_probabilities=log_p,
        labelled=given,
        pending=np.zeros(n, bool),
        audit=np.zeros(n, bool),
        open=~given,
        labels=np.where(given & ~odd, np.arange(n) % 3, -1),
        rejected=given & odd,
    )
    found = order_candidates(pool, strategy="uherding", front=20, layers=Shares(explore=0), audit_share=0.1, seed=0)
    assert odd[found.rows[-40:]].mean() > 0.9
    assert odd[found.rows[:20]].sum() <= 2  # one is a probe
    assert "skipped" in found.note
    blind = order_candidates(
        pool, strategy="uherding", front=20, layers=Shares(explore=0, skips=False), audit_share=0.1, seed=0
    )
    assert odd[blind.rows[-40:]].mean() < 0.5


# ---------------------------------------------------------------------- with what chance
def test_odds_of_a_deterministic_strategy_are_one_and_its_share_is_what_chance_leaves():
    pool = candidates(labelled=np.zeros(300, bool), pending=np.zeros(300, bool), open=np.ones(300, bool))
    found = order(pool, "margin", 40, explore=0.1, audit_share=0.1)
    odds, n_audit = found.odds, int(pool.audit.sum())
    main = found.reasons != AUDIT
    front = np.flatnonzero(main)[:30]
    own, drawn = front[found.reasons[front] == UNCERTAIN], front[found.reasons[front] == EXPLORE]
    assert (odds.propensity[own] == 1).all() and len(drawn) >= 2
    # Chance fills about a tenth of what the audit slice leaves; together all layers fill every place.
    assert odds.share[drawn] == pytest.approx(np.full(len(drawn), 0.09), abs=0.02)
    assert odds.share[own[0]] + odds.share[drawn[0]] == pytest.approx(0.9)
    assert set(odds.share[~main].tolist()) == {0.1}
    assert set(odds.left[main].tolist()) == {300 - n_audit} and set(odds.left[~main].tolist()) == {n_audit}
    assert odds.propensity[drawn] == pytest.approx(1 / (300 - n_audit - np.arange(len(drawn))))
    assert odds.propensity[~main] == pytest.approx(1 / np.arange(n_audit, 0, -1))


def test_what_was_not_chosen_has_no_odds():
    pool = candidates()
    found = order(pool)
    pending = found.reasons == PENDING
    assert pending.any() and np.isnan(found.odds.propensity[pending]).all() and (found.odds.left[pending] == 0).all()
    assert (found.odds.propensity[~pending] > 0).all() and (found.odds.propensity[~pending] <= 1).all()
    ranking = to_ranking(None, pool.example_ids, None, found.rows, found.reasons, np.array([7, 8]), found.odds)
    assert np.isnan(ranking.odds.propensity[-2:]).all()
    np.testing.assert_array_equal(ranking.odds.left[: len(found.rows)], found.odds.left)


def test_all_of_a_random_order_is_uniform():
    pool = candidates(n=120, labelled=np.zeros(120, bool), pending=np.zeros(120, bool), open=np.ones(120, bool))
    found = order(pool, "random", 30, audit_share=0.0)
    main = found.reasons == EXPLORE
    count = int(main.sum())
    assert found.odds.share[main] == pytest.approx(1)
    assert (found.odds.left[main] == count).all()
    assert found.odds.propensity[main] == pytest.approx(1 / np.arange(count, 0, -1))


def everything_open(n, seed=0):
    nothing = np.zeros(n, bool)
    return candidates(n=n, seed=seed, labelled=nothing, pending=nothing, open=~nothing, audit=nothing)


def test_what_chance_drew_in_one_order_estimates_the_pool_and_what_was_asked_for_does_not():
    """The strategy looks for losses. Farquhar et al. 2021, eq. 4, on the draws of chance."""
    pool = everything_open(60)
    loss = margin(pool)
    estimates, plain = [], []
    for seed in range(120):
        found = order(pool, "margin", 20, explore=0.25, audit_share=0.0, seed=seed)
        drawn = np.flatnonzero(found.reasons[:20] == EXPLORE)[:4]
        seen = loss[found.rows[drawn[:-1]]].sum()
        estimates.append((seen + loss[found.rows[drawn[-1]]] / found.odds.propensity[drawn[-1]]) / 60)
        plain.append(loss[found.rows[:20]].mean())
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - loss.mean()) < 3.5 * error
    assert np.mean(plain) - loss.mean() > 3.5 * error


def test_one_label_from_each_order_estimates_the_pool_whatever_the_strategy_took_between():
    """As the live loop does: the first place is taken and the order made anew. Each pick of chance, with the losses of
    everything labelled before it, is an estimate without bias."""
    pool = everything_open(40)
    loss = margin(pool)
    estimates = []
    for seed in range(70):
        labelled = np.zeros(40, bool)
        for _ in range(8):
            now = candidates(n=40, labelled=labelled.copy(), pending=pool.pending, open=~labelled, audit=pool.audit)
            found = order(now, "margin", 4, explore=0.25, audit_share=0.0, seed=seed)
            row = found.rows[0]
            if found.reasons[0] == EXPLORE:
                estimates.append((loss[labelled].sum() + loss[row] / found.odds.propensity[0]) / 40)
            labelled[row] = True
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert len(estimates) > 80
    assert abs(np.mean(estimates) - loss.mean()) < 3.5 * error
