"""What the status page says about annotations that are not trained on."""

from dataclasses import asdict

from backend.label_book import LabelSummary
from backend.overview import label_sentences


def test_ties_and_unknown_labels_are_shown_with_their_number():
    said = label_sentences(asdict(LabelSummary(labelled=5, ties=2, skipped=1, unknown=3, empty=0)))
    assert len(said) == 2 and said[0].startswith("2 task(s) have a tie") and said[1].startswith("3 task(s)")


def test_nothing_is_said_when_all_agree():
    assert label_sentences(asdict(LabelSummary(labelled=5, ties=0, skipped=1, unknown=0, empty=0))) == []
    assert label_sentences({}) == []
