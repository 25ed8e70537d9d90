"""The simulator: nothing is learnt from what was not bought, strategies are paired, groups stay on one side."""

from dataclasses import replace

import numpy as np
import pytest

from training import simulate
from training.errors import DataError
from training.ranking import Shares
from training.simulate import Ground, Oracle, Plan, measure, replay, split
from uncertainty import calibration, conformal, selective


def blobs(n=300, classes=3, d=12, seed=0, **changes):
    """Clusters around class means, far enough apart to be learnt from a few labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    features = 3 * np.eye(d)[labels] + rng.normal(size=(n, d))
    values = {
        "features": features.astype(np.float32),
        "labels": labels.astype(np.int64),
        "classes": tuple("abc"[:classes]),
    }
    return Oracle(**(values | changes))


def _noise(n):
    return np.random.default_rng(3).normal(size=(n, 12)).astype(np.float32)


def test_groups_stay_on_one_side_of_the_split_and_the_share_is_kept():
    groups = np.repeat(np.arange(100), 3)
    pool, test = split(blobs(groups=groups), 0.25, seed=1)
    assert not set(pool.groups.tolist()) & set(test.groups.tolist())
    assert len(pool.labels) + len(test.labels) == 300
    assert abs(len(test.labels) - 75) <= 3


def test_the_split_depends_on_the_seed_alone():
    oracle = blobs()
    np.testing.assert_array_equal(split(oracle, 0.3, 5)[1].features, split(oracle, 0.3, 5)[1].features)
    assert not np.array_equal(split(oracle, 0.3, 5)[1].features, split(oracle, 0.3, 6)[1].features)


def test_junk_is_never_tested_on():
    junk = np.arange(300) < 60
    pool, test = split(blobs(junk=junk), 0.25, seed=0)
    assert pool.junk.sum() == 60 and not test.junk.any()


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match="cannot split"):
        split(blobs(groups=np.zeros(300, np.int64)), 0.25, seed=0)


@pytest.mark.parametrize("strategy", ["random", "margin", "uherding"])
def test_each_round_buys_a_batch_until_the_budget_is_spent(strategy):
    pool, test = split(blobs(), 0.25, seed=0)
    rounds = list(replay(Ground.of(pool, test, 0), Plan(strategy, batch=15, budget=70)))
    assert [r.labels for r in rounds] == [15, 30, 45, 60, 70]
    bought = np.concatenate([r.chosen for r in rounds])
    assert len(set(bought.tolist())) == 70
    assert rounds[-1].probabilities.shape == (len(test.labels), 3)


def test_buying_goes_on_from_labels_that_are_there():
    pool, test = split(blobs(), 0.25, seed=0)
    first = list(replay(Ground.of(pool, test, 0), Plan("margin", batch=20, budget=40)))
    before = np.concatenate([r.chosen for r in first])
    other = Ground.of(replace(pool, features=pool.features[:, ::-1].copy()), test, 0)
    rounds = list(replay(other, Plan("margin", batch=20, budget=100), before))
    assert [r.labels for r in rounds] == [60, 80, 100]
    chosen = np.concatenate([r.chosen for r in rounds])
    assert not set(chosen.tolist()) & set(before.tolist())
    kept = np.concatenate([rounds[-1].train, rounds[-1].measured])
    assert set(kept.tolist()) == set(before.tolist()) | set(chosen.tolist())


def test_what_features_were_learnt_from_does_not_say_how_sure_the_head_may_be():
    """Features that give away the answers of half of the pool: judged by those, the head would think it never errs."""
    pool, test = split(blobs(1000, features=_noise(1000)), 0.25, seed=0)
    seen = np.arange(len(pool.labels)) % 2 == 0
    features = pool.features.copy()
    features[seen] += 8 * np.eye(12, dtype=np.float32)[pool.labels[seen]]
    losses = []
    for told in (seen, None):
        ground = Ground.of(replace(pool, features=features, seen=told), test, 0)
        last = list(replay(ground, Plan("random", batch=100, budget=300)))[-1]
        losses.append(calibration.negative_log_likelihood(last.probabilities, test.labels))
    assert losses[0] < np.log(3) + 0.01 < 1.2 < losses[1]


def test_the_pool_may_be_smaller_than_the_budget():
    pool, test = split(blobs(n=40), 0.25, seed=0)
    assert list(replay(Ground.of(pool, test, 0), Plan("margin", batch=20, budget=1000)))[-1].labels == len(pool.labels)


def test_no_label_matters_that_was_not_bought():
    pool, test = split(blobs(), 0.25, seed=0)
    plan = Plan("uherding", batch=10, budget=40)
    first = list(replay(Ground.of(pool, test, plan.seed), plan))
    bought = np.concatenate([r.chosen for r in first])
    hidden = pool.labels.copy()
    others = np.setdiff1d(np.arange(len(hidden)), bought)
    hidden[others] = (hidden[others] + 1) % 3
    again = list(replay(Ground.of(replace(pool, labels=hidden), test, plan.seed), plan))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.chosen, b.chosen)
        np.testing.assert_array_equal(a.probabilities, b.probabilities)


def test_the_audit_slice_gets_its_share_and_is_not_trained_on():
    pool, test = split(blobs(), 0.25, seed=0)
    plan = Plan("margin", batch=10, budget=100, audit_share=0.1)
    rounds = list(replay(Ground.of(pool, test, plan.seed), plan))
    assert 8 <= rounds[-1].audit <= 12
    # Wrong answers in the audit slice alone change what is measured and nothing that is predicted.
    from training.ranking import AuditStream

    ids = np.random.default_rng([0, 20])
    ids.random(len(pool.labels))  # the draws of the noise come first
    ids.integers(1, 3, len(pool.labels))
    audit = AuditStream(0.1, salt=0).mask(ids.permutation(len(pool.labels)).astype(np.int64) + 1)
    wrong = np.where(audit, (pool.labels + 1) % 3, pool.labels)
    spoilt = list(replay(Ground.of(replace(pool, labels=wrong), test, plan.seed), plan))
    np.testing.assert_array_equal(rounds[-1].probabilities, spoilt[-1].probabilities)
    assert measure(rounds[-1], test)["audit_accuracy"] > measure(spoilt[-1], test)["audit_accuracy"]


def test_noise_is_the_same_for_every_strategy_of_a_seed_and_has_its_share():
    labels = np.zeros(20_000, np.int64)
    a = simulate._noisy(labels, 4, 0.1, np.random.default_rng(3))
    b = simulate._noisy(labels, 4, 0.1, np.random.default_rng(3))
    np.testing.assert_array_equal(a, b)
    assert abs((a != 0).mean() - 0.1) < 0.01 and set(a.tolist()) == {0, 1, 2, 3}


def test_junk_may_be_bought_and_is_never_learnt():
    rng = np.random.default_rng(0)
    junk = np.arange(400) >= 300
    base = blobs(n=400)
    features = base.features.copy()
    features[junk] = 5 * rng.normal(size=(100, 12))
    pool, test = split(replace(base, features=features, junk=junk), 0.25, seed=0)
    last = list(replay(Ground.of(pool, test, 0), Plan("random", batch=25, budget=150, layers=Shares(explore=0))))[-1]
    assert last.junk > 20
    assert measure(last, test)["accuracy"] > 0.9


def test_learning_goes_up_and_asking_by_coverage_beats_chance_at_first():
    oracle = blobs(n=600, d=30)
    at_ten = {}
    for strategy in ("random", "uherding"):
        values = []
        for seed in range(4):
            pool, test = split(oracle, 0.3, seed)
            rounds = list(replay(Ground.of(pool, test, seed), Plan(strategy, batch=5, budget=60, seed=seed)))
            values.append([measure(r, test)["accuracy"] for r in rounds])
        mean = np.mean(values, axis=0)
        at_ten[strategy] = mean[1]
        assert mean[-1] > 0.85 and mean[-1] > mean[0]
    assert at_ten["uherding"] > at_ten["random"]


def test_the_curves_say_what_the_measures_say():
    pool, test = split(blobs(), 0.25, seed=0)
    last = list(replay(Ground.of(pool, test, 0), Plan("margin", batch=20, budget=60)))[-1]
    found, curves = measure(last, test), simulate.curves(last, test)
    assert curves["risk"][-1] == [1.0, pytest.approx(1 - found["accuracy"])]
    count, confidence, accuracy = np.array(curves["reliability"]).T
    assert count.sum() == len(test.labels)
    assert (count * np.abs(accuracy - confidence)).sum() / count.sum() == pytest.approx(found["ece"], abs=1e-6)


def test_the_rounds_of_a_plan_are_those_that_are_replayed():
    ground = Ground.of(*split(blobs(n=100), 0.25, seed=0), 0)
    for changes in ({}, {"first": 25}, {"first": 200}, {"budget": 1000}, {"batch": 7}):
        plan = Plan(**({"strategy": "random", "batch": 20, "budget": 70} | changes))
        assert plan.curve(len(ground.pool.labels)) == [r.labels for r in replay(ground, plan)]


def test_the_measures_of_a_round_are_those_of_the_library_on_the_test_examples():
    ground = Ground.of(*split(blobs(n=400, d=4), 0.4, seed=0), 0)
    last = list(replay(ground, Plan("margin", batch=40, budget=80, audit_share=0.3)))[-1]
    found = measure(last, ground.test)
    assert found.keys() == set(simulate.MEASURES)
    p, y = last.probabilities, ground.test.labels
    assert found["brier"] == pytest.approx(calibration.brier_score(p, y))
    assert found["auroc"] == pytest.approx(selective.auroc(p.max(1), p.argmax(1) == y))
    sets = conformal.fit(last.audit_probabilities, last.audit_labels, alpha=0.1).sets(p)
    report = conformal.evaluate(conformal.never_empty(sets, p), y)
    assert (found["set_size"], found["set_coverage"]) == (report.mean_size, report.coverage)


def test_with_eight_audit_labels_no_set_is_promised():
    ground = Ground.of(*split(blobs(), 0.25, seed=0), 0)
    rounds = list(replay(ground, Plan("random", batch=20, budget=140)))
    for found in rounds:
        assert (measure(found, ground.test)["set_size"] is None) == (found.audit < 9)


def test_sets_hold_the_truth_as_often_as_promised_over_seeds():
    held = []
    for seed in range(12):
        ground = Ground.of(*split(blobs(n=300, d=4, seed=seed), 0.4, seed), seed)
        last = list(replay(ground, Plan("random", batch=150, budget=150, seed=seed, audit_share=0.2)))[-1]
        held.append(measure(last, ground.test)["set_coverage"])
    assert np.mean(held) > 0.88


def test_confidences_are_compared_on_the_test_examples_and_chosen_on_the_audit_slice():
    ground = Ground.of(*split(blobs(n=700, d=4), 0.3, seed=0), 0)
    last = list(replay(ground, Plan("random", batch=300, budget=300, audit_share=0.3, noise=0.2)))[-1]
    found = simulate.confidences(last, ground)
    assert {"msp", "margin", "doctor", "max_logit", "max_logit_pnorm", "label_agreement"} <= found["aurc"].keys()
    right = last.probabilities.argmax(1) == ground.test.labels
    assert found["aurc"]["msp"] == pytest.approx(selective.aurc(last.probabilities.max(1), right), abs=1e-3)
    assert found["compared"] and found["chosen"] in found["aurc"]
    # The labels of the test examples choose nothing.
    spoilt = replace(ground, test=replace(ground.test, labels=(ground.test.labels + 1) % 3))
    assert simulate.confidences(last, spoilt)["chosen"] == found["chosen"]
    first = next(iter(replay(ground, Plan("random", batch=20, budget=20))))
    assert simulate.confidences(first, ground)["compared"] is False


def test_examples_keep_their_names_through_a_split():
    oracle = blobs()
    pool, test = split(oracle, 0.25, seed=0)
    np.testing.assert_array_equal(oracle.features[pool.names], pool.features)
    assert sorted([*pool.names.tolist(), *test.names.tolist()]) == list(range(300))
    named = replace(oracle, names=np.array([f"n{i}" for i in range(300)]))
    assert split(named, 0.25, seed=0)[0].names.tolist() == [f"n{i}" for i in pool.names]
