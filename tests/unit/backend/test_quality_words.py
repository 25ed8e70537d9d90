"""Uncertainty in words: what is known, with interval and number of labels, and nothing where nothing is known."""

from dataclasses import replace

import numpy as np
import pytest

from backend.quality_words import CONFIDENCES, PossibleSummary, quality_sentences
from training.api import ErrorRanking, PossibleLabels, VersionInfo

METRICS = {
    "audit_n": 120.0,
    "accuracy": 0.8583,
    "ece_debiased": 0.032,
    "ece_low": 0.0,
    "ece_high": 0.061,
    "auroc": 0.84,
    "auroc_low": 0.77,
    "auroc_high": 0.9,
    "coverage_at_95": 0.62,
    "coverage_at_95_low": 0.31,
    "coverage_at_95_high": 0.8,
    "set_worst": 0.95,
}
VERSION = VersionInfo("g7-a", 7, 0.0, ("a", "b"), 900, "d", METRICS, 1.2, "r", "c")
SUMMARY = PossibleSummary("g7-a", 1000, 812, 1.26, 0.1, 120)


def said(**changes):
    live = replace(VERSION, metrics=METRICS | changes.pop("metrics", {}), **changes)
    return dict(quality_sentences(live, SUMMARY.record()))


def test_each_number_comes_with_its_interval_and_labels():
    found = said()
    assert list(found) == ["calibration", "errors", "labels left"]
    assert "typically 3.2% off (95 % interval 0.0% to 6.1%, 120 audit labels)" in found["calibration"]
    assert "84% of pairs (95 % interval 77% to 90%, 103 right and 17 wrong" in found["errors"]
    assert "surest 62% are right (95 % interval of that share 31% to 80%" in found["errors"]
    assert "of 100 unlabelled images 81 have one possible label at 90%, 1.3 on average" in found["labels left"]


def test_a_confidence_is_called_best_only_with_the_interval_that_says_so():
    areas = {"msp": 0.046, "margin": 0.041, "doctor": 0.045}
    won = said(error_ranking=ErrorRanking(120, 17, "margin", 0.005, 0.001, 0.009, areas))["errors"]
    assert "the gap between the two likeliest classes ranks errors best of 3" in won
    assert "0.041 instead of 0.046 (gain 0.005, 95 % interval 0.001 to 0.009)" in won
    none = said(error_ranking=ErrorRanking(120, 17, "msp", 0.0, 0.0, 0.0, areas))["errors"]
    assert "of 3 confidences none ranks errors better" in none and "beyond chance" in none


def test_every_confidence_has_a_name_for_people():
    from uncertainty.confidence import list_confidences

    assert CONFIDENCES.keys() == {info.name for info in list_confidences()}


def test_nothing_is_said_where_nothing_is_known():
    assert quality_sentences(None, None) == ()
    assert quality_sentences(replace(VERSION, metrics={"audit_n": 3.0, "accuracy": 1.0}), None) == ()
    older = replace(VERSION, metrics={"audit_n": 300.0, "accuracy": 0.9, "ece": 0.02})  # of a release before these
    assert quality_sentences(older, None) == ()


def test_without_an_interval_a_number_is_not_told():
    none = dict.fromkeys(
        ("ece_low", "ece_high", "auroc_low", "auroc_high", "coverage_at_95_low", "coverage_at_95_high")
    )
    assert list(said(metrics=none)) == ["labels left"]


def test_no_share_of_the_surest_is_told_as_that():
    text = said(metrics={"coverage_at_95": 0.0, "coverage_at_95_low": 0.0, "coverage_at_95_high": 0.2})["errors"]
    assert "no share of the surest is 95 % right" in text


def test_sets_of_another_version_are_not_shown():
    assert "labels left" not in dict(quality_sentences(replace(VERSION, id="g8-b"), SUMMARY.record()))


def test_a_class_that_is_missed_more_often_is_told():
    assert (
        "in the class that fares worst 61% of the sets hold the truth"
        in said(metrics={"set_worst": 0.61})["labels left"]
    )
    assert "fares worst" not in said()["labels left"]


@pytest.mark.parametrize(
    ("one", "words"), [(0, " 0 have"), (3, "fewer than 1 have"), (998, "more than 99 have"), (1000, " 100 have")]
)
def test_shares_claim_neither_all_nor_none_falsely(one, words):
    record = replace(SUMMARY, one=one).record()
    assert words in dict(quality_sentences(VERSION, record))["labels left"]


def test_a_summary_counts_what_was_looked_at():
    sets = np.array([[True, False], [True, True], [False, True], [False, False]])
    found = PossibleLabels(np.arange(4), sets, np.array([True, True, True, False]), 0.1, 77)
    assert PossibleSummary.of("v", found) == PossibleSummary("v", 3, 2, 4 / 3, 0.1, 77)
    nothing = PossibleLabels(np.arange(1), sets[:1], np.array([False]), 0.1, 77)
    assert PossibleSummary.of("v", nothing).images == 0
