"""From annotations to one label per task."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.labeling_config import parse
from backend.labels import Label, class_indices, reduce_annotations

CONFIG = parse(
    '<View><Image name="img" value="$image"/><Choices name="cls" toName="img">'
    '<Choice value="cat"/><Choice value="dog"/><Choice value="bird"/></Choices></View>'
)
CLASSES = CONFIG.classes
_next_id = iter(range(1, 10**9))


def item(*choices, **changes):
    return {
        "from_name": "cls",
        "to_name": "img",
        "type": "choices",
        "value": {"choices": list(choices)},
        **changes,
    }


def annotation(*choices, by=1, at="2026-11-20T22:00:00.000000Z", result=None, **changes):
    found = [item(*choices)] if choices else []
    return {
        "id": next(_next_id),
        "completed_by": by,
        "updated_at": at,
        "was_cancelled": False,
        "ground_truth": False,
        "result": found if result is None else result,
        **changes,
    }


def label(*annotations):
    return reduce_annotations(annotations, CONFIG)


def test_one_answer_is_the_label():
    a = annotation("cat")
    assert label(a) == Label("cat", "agreed", (("cat", 1),), (a["id"],))


def test_an_answer_about_another_object_is_none_of_ours():
    assert label(annotation(result=[item("cat", to_name="text")])).kind == "empty"
    unnamed = item("cat")
    del unnamed["to_name"]  # of imports that leave it out
    assert label(annotation(result=[unnamed])).value == "cat"


def test_nothing_at_all_is_empty():
    assert label() == Label(None, "empty")


def test_a_submission_without_answer_is_empty():
    assert label(annotation()).kind == "empty"


def test_a_skip_is_no_answer_even_when_it_holds_one():
    assert label(annotation("cat", was_cancelled=True)) == Label(None, "skipped")


def test_an_answer_beside_a_skip_counts():
    assert label(annotation("cat", was_cancelled=True), annotation("dog", by=2)).value == "dog"


def test_several_annotators_are_settled_by_majority():
    got = label(annotation("cat", by=1), annotation("dog", by=2), annotation("dog", by=3))
    assert (got.value, got.kind, got.votes) == ("dog", "agreed", (("dog", 2), ("cat", 1)))


def test_a_tie_is_shown_and_has_no_label():
    got = label(annotation("cat", by=1), annotation("dog", by=2))
    assert (got.value, got.kind, got.votes) == (None, "tie", (("cat", 1), ("dog", 1)))


def test_ground_truth_outvotes_everybody():
    got = label(annotation("cat", by=1), annotation("cat", by=2), annotation("dog", by=3, ground_truth=True))
    assert (got.value, got.ground_truth) == ("dog", True)


def test_an_older_ground_truth_stays_ahead_of_a_newer_answer_of_the_same_person():
    truth = annotation("dog", at="2026-11-20T20:00:00Z", ground_truth=True)
    assert label(truth, annotation("cat", at="2026-11-20T23:00:00Z")).value == "dog"


def test_a_ground_truth_without_answer_or_that_was_skipped_decides_nothing():
    assert label(annotation(ground_truth=True), annotation("cat", by=2)).value == "cat"
    assert label(annotation("dog", ground_truth=True, was_cancelled=True), annotation("cat", by=2)).value == "cat"


def test_a_ground_truth_that_the_config_does_not_know_is_not_replaced_by_other_votes():
    assert label(annotation("zebra", ground_truth=True), annotation("cat", by=2)).kind == "unknown"


def test_of_one_annotators_answers_the_newest_counts_in_any_order_of_arrival():
    old, new = annotation("cat", at="2026-11-20T22:00:00.5Z"), annotation("dog", at="2026-11-20T22:00:01Z")
    assert label(old, new).value == label(new, old).value == "dog"


def test_fractions_of_a_second_are_compared_as_numbers():
    whole, half = annotation("cat", at="2026-11-20T22:00:00Z"), annotation("dog", at="2026-11-20T22:00:00.5Z")
    assert label(whole, half).value == "dog"


def test_times_with_an_offset_are_compared_as_moments():
    early, late = (
        annotation("cat", at="2026-11-20T23:30:00+02:00"),
        annotation("dog", at="2026-11-20T22:00:00Z"),
    )
    assert label(early, late).value == "dog"


def test_of_answers_at_one_time_the_higher_id_counts():
    assert label(annotation("cat"), annotation("dog")).value == "dog"


def test_an_annotator_who_takes_the_answer_back_has_no_vote():
    took_back = annotation(at="2026-11-20T23:00:00Z", by=1)
    assert label(annotation("cat", by=1), took_back, annotation("dog", by=2)).value == "dog"


@pytest.mark.parametrize("by", [{"id": 1, "email": "a@example.com"}, 1, "1"])
def test_the_annotator_is_recognised_in_every_shape(by):
    assert label(annotation("cat", by=1), annotation("dog", by=by, at="2026-11-20T23:00:00Z")).votes == (("dog", 1),)


def test_annotations_of_deleted_users_count_one_by_one():
    assert label(annotation("cat", by=None), annotation("cat", by=None)).votes == (("cat", 2),)


def test_unknown_labels_are_counted_and_kept_aside():
    got = label(annotation("zebra", by=1), annotation("zebra", by=2), annotation("cat", by=3))
    assert (got.value, got.votes, got.unknown) == ("cat", (("cat", 1),), (("zebra", 2),))


def test_only_unknown_labels_make_an_unknown_task():
    got = label(annotation("zebra"))
    assert (got.value, got.kind, got.unknown) == (None, "unknown", (("zebra", 1),))


def test_results_of_other_controls_are_not_ours():
    foreign = [item("dog", from_name="attrs"), item("cat"), item("dog", type="taxonomy")]
    assert label(annotation(result=foreign)).value == "cat"
    assert label(annotation(result=[item("dog", from_name="attrs")])).kind == "empty"


def test_per_region_answers_are_not_about_the_image():
    box = {
        "id": "r",
        "from_name": "bb",
        "type": "rectanglelabels",
        "value": {"x": 1, "y": 1, "rectanglelabels": ["car"]},
    }
    with_place = {**item("dog"), "id": "r", "value": {"x": 1, "y": 1, "choices": ["dog"]}}
    with_id_only = item("dog", id="r")
    assert label(annotation(result=[box, with_place])).kind == "empty"
    assert label(annotation(result=[box, with_id_only])).kind == "empty"
    assert label(annotation(result=[box, with_place, item("cat", id="own")])).value == "cat"


def test_two_answers_where_one_is_asked_are_not_guessed_between():
    got = label(annotation("cat", "dog"))
    assert (got.value, got.kind) == (None, "unknown")
    assert label(annotation("cat", "cat")).value == "cat"


def test_paths_left_by_allow_nested_are_read_when_they_have_one_step():
    assert label(annotation(["cat"])).value == "cat"
    assert label(annotation(["animal", "cat"])).unknown == (("animal / cat", 1),)


@pytest.mark.parametrize("result", [None, "x", [None], [{"from_name": "cls"}], [item()], [{**item(), "value": None}]])
def test_odd_results_are_empty_and_raise_nothing(result):
    assert label(annotation(), {"result": result}, None, "odd", 7).kind == "empty"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["cat", "zebra", "cls", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "result", "value", "choices", "from_name", "completed_by", "x", "updated_at"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(json_values, max_size=4))
def test_no_shape_of_annotations_raises(annotations):
    got = reduce_annotations(annotations, CONFIG)
    assert (got.value is not None) == (got.kind == "agreed")
    assert got.value is None or got.value in CLASSES


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*CLASSES, "zebra"]), st.integers(1, 4)), max_size=8), st.randoms())
def test_the_label_does_not_depend_on_the_order_of_annotations(answers, random):
    annotations = [annotation(value, by=by) for value, by in answers]
    shuffled = list(annotations)
    random.shuffle(shuffled)
    assert label(*annotations) == label(*shuffled)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=9))
def test_the_majority_agrees_with_counting_by_hand(values):
    got = label(*(annotation(v, by=i) for i, v in enumerate(values)))
    best = max(values.count(c) for c in CLASSES)
    winners = [c for c in CLASSES if values.count(c) == best]
    assert got.value == (winners[0] if len(winners) == 1 else None)


def under(classes, *annotations):
    """The label of the same annotations under a config with other classes."""
    rows = "".join(f'<Choice value="{c}"/>' for c in classes)
    xml = f'<View><Image name="img" value="$image"/><Choices name="cls" toName="img">{rows}</Choices></View>'
    return reduce_annotations(annotations, parse(xml))


def test_a_removed_label_is_set_aside_and_comes_back_with_its_class():
    assert under(("dog", "bird"), annotation("cat")).kind == "unknown"
    assert under(("dog", "bird"), annotation("cat")).unknown == (("cat", 1),)
    assert under(CLASSES, annotation("cat")).value == "cat"


def test_an_added_class_turns_unknown_votes_into_votes():
    votes = annotation("zebra", by=1), annotation("zebra", by=2), annotation("cat", by=3)
    assert under(CLASSES, *votes).value == "cat"
    assert under((*CLASSES, "zebra"), *votes).value == "zebra"


def test_class_indices_follow_the_config_and_leave_out_what_is_not_agreed():
    labels = {5: label(annotation("dog")), 6: label(annotation("zebra")), 7: label()}
    assert class_indices(labels, CLASSES) == {5: 1}
    assert class_indices(labels, ("dog",)) == {5: 0}
    assert class_indices(labels, ("cat",)) == {}


# What follows are bodies recorded from Label Studio 1.23.2, shortened to the keys that matter.
EXPORTED = {
    "id": 1, "completed_by": 1, "was_cancelled": False, "ground_truth": False,
    "updated_at": "2026-11-20T22:17:04.086799Z",
    "result": [
        item("cat"),
        item("blurry", "dark", from_name="attrs"),
        {"from_name": "tx", "to_name": "img", "type": "taxonomy", "value": {"taxonomy": [["A"], ["A", "A1"]]}},
        {"id": "rg1", "from_name": "bb", "to_name": "img", "type": "rectanglelabels",
         "value": {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["car"]}},
        {"id": "rg1", "from_name": "cls", "to_name": "img", "type": "choices",
         "value": {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "choices": ["dog"]}},
    ],
}  # fmt: skip


def test_a_recorded_export_with_many_controls_gives_the_image_level_answer():
    assert label(EXPORTED).value == "cat"


FIXTURES = Path(__file__).resolve().parents[4] / "shared" / "fixtures" / "label_studio"


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="recorded payloads are not part of the repository")
@pytest.mark.parametrize(
    "name", ["export_JSON.json", "webhook_ANNOTATION_CREATED.json", "webhook_ANNOTATIONS_CREATED.json"]
)
def test_recorded_payloads_of_every_shape_are_read(name):
    body = json.loads((FIXTURES / name).read_text())
    found = [a for task in body for a in task["annotations"]] if isinstance(body, list) else body["body"]["annotation"]
    labels = [label(a) for a in (found if isinstance(found, list) else [found])]
    assert any(got.kind in ("agreed", "unknown") for got in labels)
