"""Several labels, paths of a taxonomy, ratings and numbers: read from annotations and sent as Label Studio has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.heads import asking_of, in_words, spec_of
from backend.labeling_config import parse
from backend.labels import reduce_all, targets_of
from backend.order import read_order
from backend.overview import accuracy_sentence
from backend.refresh import SERVED_FILE
from backend.wire import Answer, prediction_of
from training import api

XML = """<View><Image name="img" value="$image"/>
<Choices name="flaws" toName="img" choice="multiple"><Choice value="blurry"/><Choice value="dark" alias="d"/>
<Choice value="cropped"/></Choices>
<Taxonomy name="what" toName="img" maxUsages="1"><Choice value="animal"><Choice value="cat"/><Choice value="dog"/>
</Choice><Choice value="thing" alias="object"/></Taxonomy>
<Rating name="stars" toName="img" maxRating="4"/>
<Number name="age" toName="img" min="0" max="90" step="5"/></View>"""
CONFIG = parse(XML)
FLAWS, WHAT, STARS, AGE = CONFIG.controls


def item(control, value):
    return {"from_name": control.name, "to_name": "img", "type": control.kind, "value": {control.kind: value}}


def annotation(*items, by=1, **changes):
    return {"id": by, "completed_by": by, "result": list(items), "updated_at": "2026-01-01T00:00:00Z"} | changes


def reduced(place, *rows, config=CONFIG):
    return reduce_all(rows, config)[place]


# ---------------------------------------------------------------------- the config
def test_each_tag_is_a_question_of_its_kind():
    assert [c.answering for c in CONFIG.controls] == ["multiple", "single", "ordered", "number"]
    assert [c.kind for c in CONFIG.controls] == ["choices", "taxonomy", "rating", "number"]
    assert FLAWS.classes == ("blurry", "d", "cropped")
    assert WHAT.classes == ("animal", "animal / cat", "animal / dog", "object")
    assert [c.path for c in WHAT.choices][1:] == [("animal", "cat"), ("animal", "dog"), ("object",)]
    assert STARS.classes == ("1", "2", "3", "4")
    assert spec_of(AGE) == api.HeadSpec("age", "number", (), 0.0, 90.0, 5.0)


def test_of_a_taxonomy_with_leaves_only_no_inner_path_can_be_chosen_and_several_paths_are_labels():
    leaves = parse(XML.replace('maxUsages="1"', 'leafsOnly="true"')).controls[1]
    assert leaves.classes == ("animal / cat", "animal / dog", "object")
    assert leaves.answering == "multiple"


def test_a_rating_has_five_stars_unless_it_says_otherwise():
    assert len(parse(XML.replace(' maxRating="4"', "")).controls[2].classes) == 5


def test_one_label_that_applies_or_not_is_a_question():
    one = '<Choices name="c" toName="i" choice="multiple"><Choice value="x"/></Choices>'
    assert parse(f'<View><Image name="i" value="$u"/>{one}</View>').classes == ("x",)


def test_a_question_shown_for_a_word_of_a_path_is_known_by_the_paths_that_end_in_it():
    child = (
        '<Rating name="fur" toName="img" visibleWhen="choice-selected" whenTagName="what" whenChoiceValue="cat,dog"/>'
    )
    asking = asking_of(parse(XML.replace("</View>", child + "</View>")))
    assert asking.shown == {"fur": (api.Shown("what", (1, 2)),)}


# ---------------------------------------------------------------------- what annotators said
def test_labels_that_apply_are_read_in_the_order_of_the_config():
    label = reduced(0, annotation(item(FLAWS, ["cropped", "d"])))
    assert (label.kind, label.value) == ("agreed", ("d", "cropped"))
    assert targets_of({7: label}, FLAWS) == {7: (1, 2)}


def test_a_submitted_annotation_without_labels_says_that_none_applies():
    assert reduced(0, annotation(item(STARS, 3))).value == ()
    assert reduced(0, annotation()).value == ()
    assert reduced(0, annotation(was_cancelled=True)).kind == "skipped"


def test_where_an_answer_must_be_given_an_open_question_was_not_asked():
    config = parse(XML.replace('choice="multiple"', 'choice="multiple" required="true"'))
    assert reduced(0, annotation(item(STARS, 3)), config=config).kind == "empty"


def test_labels_of_a_hidden_question_are_not_known():
    config = parse(XML.replace('name="flaws"', 'name="flaws" visibleWhen="choice-selected" whenTagName="what"'))
    assert reduced(0, annotation(item(STARS, 3)), config=config).kind == "empty"
    assert reduced(0, annotation(item(WHAT, [["object"]])), config=config).value == ()


def test_each_label_is_voted_on_by_itself():
    rows = [
        annotation(item(FLAWS, chosen), by=by) for by, chosen in enumerate((["blurry"], ["blurry", "d"], ["cropped"]))
    ]
    label = reduced(0, *rows)
    assert (label.kind, label.value, dict(label.votes)) == ("agreed", ("blurry",), {"blurry": 2, "d": 1, "cropped": 1})
    assert reduced(0, *rows[1:]).kind == "tie"


def test_labels_that_the_config_does_not_know_are_told_and_never_mean_none():
    label = reduced(0, annotation(item(FLAWS, ["old", "d"])))
    assert (label.value, label.unknown) == (("d",), (("old", 1),))
    assert reduced(0, annotation(item(FLAWS, ["old"]))).kind == "unknown"


def test_a_path_is_one_answer():
    label = reduced(1, annotation(item(WHAT, [["animal", "dog"]])))
    assert targets_of({1: label}, WHAT) == {1: 2}
    assert reduced(1, annotation(item(WHAT, [["animal", "dog"], ["object"]]))).kind == "unknown"
    assert reduced(1, annotation()).kind == "empty"


@pytest.mark.parametrize(("given", "target"), [(3, 2), (4.0, 3), (5, None), (True, None), ("3", None), (None, None)])
def test_a_rating_is_a_star_of_the_config(given, target):
    assert targets_of({1: reduced(2, annotation(item(STARS, given)))}, STARS).get(1) == target


def test_of_numbers_the_median_counts():
    rows = [annotation(item(AGE, value), by=by) for by, value in enumerate((20, 50.0, 30))]
    assert reduced(3, *rows).value == 30.0
    assert reduced(3, *rows[:2]).value == 35.0
    assert targets_of({1: reduced(3, *rows)}, AGE) == {1: 30.0}


@pytest.mark.parametrize("odd", [None, "30", True, float("nan"), [30], {"number": 3}])
def test_what_is_no_number_is_no_answer(odd):
    assert reduced(3, annotation(item(AGE, odd))).kind == "empty"


# ---------------------------------------------------------------------- what is sent
@pytest.mark.parametrize(
    ("control", "value", "sent"),
    [
        (FLAWS, ["d", "blurry"], {"choices": ["blurry", "d"]}),
        (WHAT, "animal / cat", {"taxonomy": [["animal", "cat"]]}),
        (STARS, "3", {"rating": 3}),
        (AGE, 35.0, {"number": 35}),
        (AGE, 35.5, {"number": 35.5}),
    ],
)
def test_answers_are_sent_as_label_studio_has_them(control, value, sent):
    prediction = prediction_of(None, [Answer(control, value, 0.9)], 0.4, "v")
    (found,) = prediction["result"]
    assert found["value"] == sent and found["type"] == control.kind
    assert LabelInterface(XML).validate_prediction(prediction, return_errors=True) == []


@pytest.mark.parametrize(("control", "value"), [(FLAWS, []), (FLAWS, ["old"]), (WHAT, "old"), (STARS, "9"), (AGE, "x")])
def test_what_the_config_does_not_know_is_not_sent(control, value):
    assert prediction_of(None, [Answer(control, value, 0.9)], 0.4, "v")["result"] == []


def test_answers_in_words():
    assert [in_words(v) for v in (["a", "b"], [], 35.0, "cat")] == ["a, b", "none of them", "35", "cat"]


# ---------------------------------------------------------------------- the whole way
@pytest.fixture
def album(loop):
    """A project with a question of each kind; two pixels tell all answers."""
    loop.ls.served = replace(loop.ls.served, label_config=XML)
    rows = {}

    def import_predictions(project_id, sent):
        rows.setdefault(sent[0]["model_version"], {}).update({row["task"]: row for row in sent})
        for row in sent:
            loop.ls.predictions.setdefault(row["model_version"], {})[row["task"]] = row["score"]
        return len(sent)

    def label(task):
        high = task > 30
        loop.ls.annotations[task] = [
            annotation(
                item(FLAWS, ["blurry", "d"] if high else ["cropped"]),
                item(WHAT, [["animal", "cat"]] if task % 2 else [["object"]]),
                item(STARS, 1 + (task - 1) // 15),
                item(AGE, task),
                id=1000 + task,
            )
        ]

    loop.ls.import_predictions, loop.ls.label, loop.sent = import_predictions, label, rows
    loop.start()
    loop.refresh()
    return loop


def test_a_question_of_each_kind_is_learnt_ordered_and_sent(album):
    chosen = [t for t in album.tasks if t % 5]
    for task in chosen:
        album.ls.label(task)
    album.refresh(*chosen)
    model = album.refresher.desk.model
    live = model.live()
    assert [spec.kind for spec in live.specs] == ["multiple", "single", "ordered", "number"]
    order = read_order(album.refresher.desk.home / SERVED_FILE)
    assert set(order.ids.tolist()) == {t for t in album.tasks if not t % 5}
    assert (np.diff(order.scores) > 0).all()
    interface = LabelInterface(XML)
    for row in album.sent[order.version].values():
        assert (
            interface.validate_prediction({k: row[k] for k in ("result", "score", "model_version")}, return_errors=True)
            == []
        )
    answers = {a.spec.name: a for a in model.predict_heads(live.id, order.ids)}
    off = np.abs(answers["age"].answer - order.ids)
    assert off.mean() < np.abs(order.ids - np.median(chosen)).mean()  # better than one number for all
    assert "average over 4 of 4 questions" in accuracy_sentence(live)


def test_a_project_with_several_labels_alone_is_ordered_by_what_is_doubtful(album):
    xml = XML.split("<Taxonomy")[0] + "</View>"
    album.ls.served = replace(album.ls.served, label_config=xml)
    album.start()
    for task in range(1, 41):
        album.ls.label(task)
    album.refresh(*range(1, 41))
    order = read_order(album.refresher.desk.home / SERVED_FILE)
    assert len(order) == 20 and order.worth is not None
    assert {order.question(row) for row in range(20)} == {""}
    live = album.refresher.desk.model.live()
    assert "every label right" in accuracy_sentence(live)
