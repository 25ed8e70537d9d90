"""What is told of a version's uncertainty: the measures of the library, where there are labels enough, and no more."""

import json
import math

import numpy as np
import pytest
from scipy.special import softmax

from training.evaluate import audit_metrics
from training.quality import (
    ErrorRanking,
    agreement,
    quality_metrics,
    rank_errors,
    reference_rows,
    set_metrics,
)
from uncertainty import calibration, selective
from uncertainty.conformal import fit


def stated(n, C=4, seed=0, spread=3.0):
    """Logits, and labels drawn from their softmax: confidence is right on average."""
    rng = np.random.default_rng(seed)
    logits = (spread * rng.normal(size=(n, C))).astype(np.float32)
    probabilities = softmax(logits, axis=1)
    return logits, probabilities, (probabilities.cumsum(1) > rng.random((n, 1))).argmax(1)


def test_values_are_those_of_the_library():
    _, p, y = stated(200)
    found = quality_metrics(p, y)
    confidence, right = p.max(1).astype(np.float64), p.argmax(1) == y
    assert found["brier"] == pytest.approx(calibration.brier_score(p, y))
    assert found["ece_debiased"] == pytest.approx(calibration.debiased_calibration_error(p, y))
    assert found["aurc"] == pytest.approx(selective.aurc(confidence, right))
    assert found["e_aurc"] == pytest.approx(selective.excess_aurc(confidence, right))
    assert found["augrc"] == pytest.approx(selective.augrc(confidence, right))
    assert found["auroc"] == pytest.approx(selective.auroc(confidence, right))
    assert found["coverage_at_95"] == selective.coverage_at_accuracy(confidence, right, 0.95)


def test_intervals_lie_around_the_values_and_shrink_with_labels():
    def width(n, name):
        found = quality_metrics(*stated(n)[1:])
        value = found["ece_debiased" if name == "ece" else name]
        assert 0 <= found[f"{name}_low"] <= value <= found[f"{name}_high"] <= 1
        return found[f"{name}_high"] - found[f"{name}_low"]

    for name in ("ece", "auroc", "coverage_at_95"):
        assert width(1500, name) < width(60, name)


def test_the_interval_of_the_calibration_error_is_near_that_of_the_full_report():
    _, p, y = stated(300, seed=2)
    sharp = p**2 / (p**2).sum(1, keepdims=True)  # over-confident: there is an error to find
    ours = quality_metrics(sharp, y)
    full = calibration.calibration_report(sharp, y)["debiased_error"]
    assert (ours["ece_low"], ours["ece_high"]) == pytest.approx((full.low, full.high), abs=0.015)


@pytest.mark.parametrize(
    ("n", "told"),
    [(0, set()), (19, {"brier"}), (29, {"brier", "aurc", "e_aurc", "augrc", "auroc", "coverage_at_95"})],
)
def test_with_few_labels_little_is_told(n, told):
    _, p, y = stated(n, spread=1.5)
    found = quality_metrics(p, y)
    assert {
        name for name, value in found.items() if value is not None and name.rpartition("_")[2] not in ("low", "high")
    } == told
    assert found.keys() == quality_metrics(*stated(100)[1:]).keys()


def test_a_model_that_was_always_right_gets_no_interval_that_claims_it_will_be():
    _, p, _ = stated(60, spread=8)
    found = quality_metrics(p, p.argmax(1))
    assert found["coverage_at_95"] == 1.0 and found["ece_debiased"] is not None
    assert {value for name, value in found.items() if name.endswith(("_low", "_high"))} == {None}


def test_four_errors_do_not_tell_how_well_errors_are_found():
    _, p, _ = stated(100)
    right = p.argmax(1)
    wrong = np.arange(100) < 4
    found = quality_metrics(p, np.where(wrong, (right + 1) % 4, right))
    assert found["auroc"] is None and found["auroc_low"] is None and found["aurc"] is not None


def test_everything_told_can_be_stored_as_json():
    for n in (0, 1, 25, 60, 400):
        for sure in (False, True):
            _, p, y = stated(n)
            if sure:
                y = p.argmax(1)  # never wrong
            found = audit_metrics(p, y) | set_metrics(p, y)
            json.dumps(found, allow_nan=False)
            assert all(value is None or isinstance(value, float) for value in found.values())


def test_intervals_can_be_left_out():
    _, p, y = stated(100)
    assert quality_metrics(p, y, intervals=False) == {
        name: value for name, value in quality_metrics(p, y).items() if not name.endswith(("_low", "_high"))
    }


# ---------------------------------------------------------------------- sets
def test_sets_are_measured_without_the_example_they_are_measured_on():
    _, p, y = stated(120, seed=3)
    found = set_metrics(p, y)
    hits, sizes = [], []
    for i in range(120):
        rest = np.arange(120) != i
        inside = fit(p[rest], y[rest], alpha=0.1).sets(p[i : i + 1])[0]
        inside[p[i].argmax()] |= not inside.any()
        hits.append(inside[y[i]])
        sizes.append(inside.sum())
    assert (found["set_coverage"], found["set_size"]) == pytest.approx((np.mean(hits), np.mean(sizes)))
    shares = [np.mean([h for h, c in zip(hits, y, strict=True) if c == k]) for k in range(4) if (y == k).sum() >= 20]
    assert found["set_worst"] == pytest.approx(min(shares))


def test_the_promise_by_class_helps_the_class_that_is_missed():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [400, 60])
    logits = np.stack([1.5 + rng.normal(size=460), 2.0 * (y == 1) + rng.normal(size=460)], axis=1)
    found = set_metrics(softmax(logits, axis=1), y)
    assert found["set_worst"] < 0.75
    assert found["class_set_worst"] > 0.85
    assert found["class_set_size"] > found["set_size"]


def test_a_model_that_hardly_errs_has_one_possible_label_and_not_fewer():
    _, p, _ = stated(100, spread=8)
    found = set_metrics(p, p.argmax(1))
    assert (found["set_size"], found["set_coverage"], found["set_worst"]) == (1.0, 1.0, 1.0)


def test_without_a_class_of_fifty_labels_no_promise_is_made_by_class():
    found = set_metrics(*stated(80, C=4)[1:])
    assert found["set_size"] is not None
    assert {found[f"class_set_{what}"] for what in ("size", "coverage", "worst")} == {None}
    assert set(set_metrics(*stated(49)[1:]).values()) == {None}


# ---------------------------------------------------------------------- which confidence
def test_a_number_that_knows_more_wins_and_is_kept_as_plain_values():
    logits, p, y = stated(200)
    right = p.argmax(1) == y
    found = rank_errors(logits, 1.0, y, 0.5 * right + 0.5)
    assert (found.best, found.examples, found.errors) == ("label_agreement", 200, int((~right).sum()))
    assert 0 < found.gain_low < found.gain < found.gain_high
    assert found.gain == pytest.approx(found.aurc["msp"] - found.aurc["label_agreement"])
    assert ErrorRanking.of(json.loads(json.dumps(found.record(), allow_nan=False))) == found
    assert ErrorRanking.of(None) is None


def test_nothing_is_said_to_be_better_where_nothing_is():
    found = rank_errors(*(stated(150)[i] for i in (0,)), 1.0, stated(150)[2])
    assert (found.best, found.gain, found.gain_low, found.gain_high) == ("msp", 0.0, 0.0, 0.0)
    assert {"msp", "margin", "doctor", "max_logit"} <= found.aurc.keys() and "label_agreement" not in found.aurc


def test_surest_answers_are_not_tied_by_rounding():
    # In float32 all of these are 1.0 and msp could not tell them apart; in float64 it ranks as the logits do.
    rng = np.random.default_rng(0)
    gap = np.linspace(20, 60, 80)
    logits = np.stack([gap, np.zeros(80), np.zeros(80)], axis=1).astype(np.float32)
    labels = np.where(rng.random(80) < np.linspace(0.5, 0, 80), 1, 0)
    found = rank_errors(logits, 2.0, labels)
    assert found.best == "msp" and found.aurc["msp"] == pytest.approx(found.aurc["max_logit"], abs=0.01)


@pytest.mark.parametrize(("n", "errors"), [(49, 20), (200, 4)])
def test_too_few_labels_or_errors_compare_nothing(n, errors):
    logits, p, _ = stated(n)
    labels = np.where(np.arange(n) < errors, (p.argmax(1) + 1) % 4, p.argmax(1))
    assert rank_errors(logits, 1.0, labels) is None


def test_agreement_asks_a_thousand_labelled_examples_at_most():
    assert len(reference_rows(5000)) == 1000 and len(reference_rows(7)) == 7
    asked = np.eye(3, dtype=np.float32)
    known = np.repeat(asked, 10, axis=0)
    labels = np.repeat([0, 1, 2], 10)
    np.testing.assert_allclose(agreement(asked, np.array([0, 1, 0]), known, labels), [1, 1, 0])


def test_the_temperature_softens_what_is_compared():
    logits, _, y = stated(120, seed=4)
    cold, warm = rank_errors(logits, 1.0, y), rank_errors(logits, 4.0, y)
    assert cold.aurc["max_logit"] == warm.aurc["max_logit"]
    assert not math.isclose(cold.aurc["msp"], warm.aurc["msp"], rel_tol=1e-6)
