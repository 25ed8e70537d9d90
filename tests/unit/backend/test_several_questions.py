"""Several questions about an image, from the labelling config to what Label Studio is sent."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from backend.errors import UnsupportedLabelConfig
from backend.heads import asked_the_same, asking_of, fields_of, group_of, inputs_of, shown_answers, specs_of
from backend.label_book import LabelBook
from backend.labeling_config import parse
from backend.labels import answers_all, is_shown, reduce_all
from backend.order import read_order
from backend.overview import accuracy_sentence, project_overview, question_sentences
from backend.predictor import Predictor
from backend.refresh import SERVED_FILE
from backend.wire import fact
from training import api

FACES = """<View><Image name="img" value="$image"/>
<Choices name="subject" toName="img" required="true"><Choice value="anna"/><Choice value="ben"/></Choices>
<Choices name="expression" toName="img" model_weight="2"><Choice value="sad"/><Choice value="happy" alias="h"/>
</Choices></View>"""
CHILD = """<View><Image name="img" value="$image"/>
<Choices name="seen" toName="img"><Choice value="Yes" alias="y"/><Choice value="No"/></Choices>
<View visibleWhen="choice-selected" whenTagName="seen" whenChoiceValue="Yes">
  <Choices name="kind" toName="img" required="true"><Choice value="cat"/><Choice value="dog"/></Choices>
</View></View>"""


def item(name, *labels):
    return {"from_name": name, "to_name": "img", "type": "choices", "value": {"choices": list(labels)}}


def annotation(*items, **changes):
    return {"id": 1, "completed_by": 1, "result": list(items), "updated_at": "2026-01-01T00:00:00Z"} | changes


# ---------------------------------------------------------------------- the config
def test_every_single_choice_on_the_image_is_a_question():
    config = parse(FACES)
    assert [c.name for c in config.controls] == ["subject", "expression"]
    assert [s.classes for s in specs_of(config)] == [("anna", "ben"), ("sad", "h")]
    assert [c.required for c in config.controls] == [True, False]
    assert asking_of(config) == api.Asking({"expression": 2.0})


def test_one_that_cannot_be_served_is_refused_with_the_others_kept():
    xml = FACES.replace('<Choice value="sad"/>', "").replace("</View>", '<Pairwise name="p" toName="img"/></View>')
    with pytest.raises(UnsupportedLabelConfig) as caught:
        parse(xml)
    assert '"expression"' in caught.value.reason and '"p"' in caught.value.reason
    served = parse(caught.value.example)
    assert [c.name for c in served.controls] == ["subject"]


def test_a_question_about_another_image_is_refused():
    xml = FACES.replace("</View>", '<Image name="b" value="$b"/></View>').replace(
        'name="expression" toName="img"', 'name="expression" toName="b"'
    )
    with pytest.raises(UnsupportedLabelConfig, match="'img' alone") as caught:
        parse(xml)
    assert [c.name for c in parse(caught.value.example).controls] == ["subject"]


def test_two_questions_of_one_name_are_refused():
    with pytest.raises(UnsupportedLabelConfig, match="name of another control"):
        parse(FACES.replace('"expression"', '"subject"'))


def test_what_decides_how_answers_are_read_changes_the_digest():
    changed = [
        FACES.replace(' required="true"', ""),
        FACES.replace('model_weight="2"', 'model_weight="3"'),
        CHILD,
        CHILD.replace('Yes">', 'No">'),
    ]
    assert len({parse(xml).digest for xml in [FACES, *changed]}) == 5


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "much"])
def test_a_weight_that_makes_no_sense_is_refused(weight):
    with pytest.raises(UnsupportedLabelConfig, match="a number above 0"):
        parse(FACES.replace('"2"', f'"{weight}"'))


def test_the_first_option_given_is_that_of_the_project():
    xml = FACES.replace('name="subject"', 'name="subject" model_strategy="margin"').replace(
        'name="expression"', 'name="expression" model_strategy="entropy" model_explore="0.3"'
    )
    assert (parse(xml).options.strategy, parse(xml).options.explore) == ("margin", 0.3)


# ---------------------------------------------------------------------- what annotators said
def test_each_question_has_its_own_label():
    labels = reduce_all([annotation(item("subject", "ben"), item("expression", "h"))], parse(FACES))
    assert [(label.kind, label.value) for label in labels] == [("agreed", "ben"), ("agreed", "h")]


def test_a_missing_answer_says_nothing_and_is_no_tie():
    rows = [annotation(item("subject", "ben")), annotation(item("expression", "h"), id=2, completed_by=2)]
    assert [label.value for label in reduce_all(rows, parse(FACES))] == ["ben", "h"]
    one = reduce_all([annotation(item("subject", "ben"))], parse(FACES))
    assert [label.kind for label in one] == ["agreed", "empty"]


@pytest.mark.parametrize(
    ("chosen", "shown", "complete"),
    [("y", True, False), ("No", False, True), (None, False, True)],
)
def test_a_question_that_was_not_shown_need_not_be_answered(chosen, shown, complete):
    config = parse(CHILD)
    found = annotation(item("seen", chosen)) if chosen else annotation()
    assert is_shown(found["result"], config.controls[1]) is shown
    assert answers_all(found, config.controls) is complete
    assert answers_all(annotation(item("seen", "y"), item("kind", "cat")), config.controls)


@pytest.mark.parametrize(
    ("when", "results", "shown"),
    [
        ('visibleWhen="choice-unselected" whenTagName="seen" whenChoiceValue="No"', [item("seen", "No")], False),
        ('visibleWhen="choice-unselected" whenTagName="seen" whenChoiceValue="No"', [item("seen", "y")], True),
        ('visibleWhen="choice-unselected" whenTagName="seen" whenChoiceValue="No"', [], True),
        ('visibleWhen="choice-selected" whenTagName="seen"', [item("seen", "No")], True),
        ('visibleWhen="choice-selected" whenTagName="seen"', [], False),
        ('visibleWhen="choice-selected"', [item("seen", "No")], True),
        ('visibleWhen="choice-selected"', [item("kind", "cat")], False),
        ('visibleWhen="no-region-selected"', [], True),
        (
            'visibleWhen="choice-selected" whenTagName="seen" whenChoiceValue="kitten"',
            [{"from_name": "seen", "type": "taxonomy", "value": {"taxonomy": [["cat", "kitten"]]}}],
            True,
        ),
    ],
)
def test_conditions_are_read_as_the_editor_does(when, results, shown):
    xml = CHILD.replace('visibleWhen="choice-selected" whenTagName="seen" whenChoiceValue="Yes"', when)
    assert is_shown(results, parse(xml).controls[1]) is shown


def test_a_question_of_regions_through_a_view_around_it_is_left_to_annotators():
    config = parse(CHILD.replace('visibleWhen="choice-selected"', 'visibleWhen="region-selected"'))
    assert [c.name for c in config.controls] == ["seen"]
    assert any('"kind"' in note and "regions" in note for note in config.notes)


def test_where_a_question_is_shown_is_known_by_the_classes_of_the_other():
    asking = asking_of(parse(CHILD))
    assert asking == api.Asking(shown={"kind": (api.Shown("seen", (0,)),)})


def test_a_task_that_lacks_a_required_answer_is_counted_as_half_done():
    book = LabelBook(1)
    config = parse(CHILD)
    book.annotations = {
        1: [annotation(item("seen", "y"))],
        2: [annotation(item("seen", "No"))],
        3: [annotation(item("seen", "y"), item("kind", "dog"))],
        4: [annotation(was_cancelled=True)],
    }
    book._required = tuple(c for c in config.controls if c.required)
    book.labels = {t: reduce_all(a, config) for t, a in book.annotations.items()}
    assert [book.annotators_of(t) for t in (1, 2, 3, 4)] == [0, 1, 1, 0]
    summary = book.summary()
    assert (summary.labelled, summary.half, summary.skipped) == (3, 1, 1)
    assert book.targets(config) == [{1: 0, 2: 1, 3: 0}, {3: 1}]


# ---------------------------------------------------------------------- what is shown
def test_each_answer_is_shown_from_its_own_confidence_on():
    config = parse(FACES.replace('model_weight="2"', 'model_prelabel_above="0.6"'))
    said = [("subject", "anna", 0.7), ("expression", "h", 0.65)]
    assert [(a.control.name, a.value) for a in shown_answers(said, config, 0.8)] == [("expression", "h")]
    assert len(shown_answers(said, config, 0.8, all_of_them=True)) == 2
    assert shown_answers([("gone", "x", 1.0)], config, 0.0) == ()


def test_a_nameless_head_of_an_old_version_is_the_only_question():
    assert asked_the_same([api.HeadSpec("", "single", ("a", "b"))], [api.HeadSpec("q", "single", ("a", "b"))])
    assert not asked_the_same([api.HeadSpec("p", "single", ("a", "b"))], [api.HeadSpec("q", "single", ("a", "b"))])
    assert not asked_the_same([api.HeadSpec("", "single", ("a", "b"))], specs_of(parse(FACES)))


# ---------------------------------------------------------------------- the whole way
@pytest.fixture
def faces(loop):
    """A project of two questions; the pixels tell both."""
    loop.ls.served = replace(loop.ls.served, label_config=FACES.replace(' model_weight="2"', ""))
    rows = {}

    def import_predictions(project_id, sent):
        rows.setdefault(sent[0]["model_version"], {}).update({row["task"]: row for row in sent})
        for row in sent:
            loop.ls.predictions.setdefault(row["model_version"], {})[row["task"]] = row["score"]
        return len(sent)

    def label(task, *, half=False):
        answers = [item("subject", ["anna", "ben"][task % 2])]
        answers += [] if half else [item("expression", ["sad", "h"][task > 30])]
        loop.ls.annotations[task] = [annotation(*answers, id=1000 + task)]

    loop.ls.import_predictions, loop.ls.label, loop.sent = import_predictions, label, rows
    loop.start()
    loop.refresh()
    return loop


def test_labels_of_two_questions_become_a_version_an_order_and_pre_labels(faces):
    for task in range(1, 51, 2):
        faces.ls.label(task)
    for task in range(2, 51, 2):
        faces.ls.label(task, half=task % 4 == 0)
    faces.refresh(*range(1, 51))
    model = faces.refresher.desk.model
    live = model.live()
    assert [head.spec.name for head in live.heads] == ["subject", "expression"]
    counts = [head.labels_used + int(head.metrics["audit_n"]) for head in live.heads]
    assert counts == [50, 38]
    order = read_order(faces.refresher.desk.home / SERVED_FILE)
    assert [a.spec.name for a in order.answers] == ["subject", "expression"]
    assert set(order.ids.tolist()) == set(range(51, 61))
    assert {order.question(row) for row in range(len(order))} <= {"subject", "expression"}
    above = faces.workshop.settings.prelabel_above
    for row, task in enumerate(order.ids.tolist()):
        sent = faces.sent[order.version][task]
        expected = {name: value for name, value, sure in order.said(row) if sure >= above}
        assert {r["from_name"]: r["value"]["choices"][0] for r in sent["result"]} == expected
        assert sent["score"] == order.scores[row]
    json.dumps(faces.sent[order.version])


def test_the_page_and_predict_tell_of_each_question(faces):
    for task in range(1, 41):
        faces.ls.label(task)
    faces.refresh(*range(1, 41))
    desk = faces.refresher.desk

    class NoJobs:
        def jobs(self, project_id):
            return []

    shown = project_overview(faces.workshop, NoJobs(), 5)
    assert [name for name, _ in shown.questions] == ["subject", "expression"]
    assert "on average over 2 of 2 questions" in shown.accuracy
    first = shown.queue[0]
    assert [name for name, _, _ in first.answers] == ["subject", "expression"]
    assert first.question in {"subject", "expression"}
    config = parse(faces.ls.served.label_config)
    predictor = Predictor(faces.workshop.settings)
    tasks = [{"id": t, "data": {"image": "x"}} for t in (1, 59, 999)]
    answered = predictor.predict(desk.home, tasks, config, interactive=True)
    assert [r["from_name"] for r in answered[0]["result"]] == ["subject", "expression"]
    assert [r["from_name"] for r in answered[1]["result"]] == ["subject", "expression"]
    assert answered[2]["result"] == []
    found = desk.model.predict_heads(desk.model.live().id, [1])
    assert answered[0]["score"] == pytest.approx(np.mean([a.confidence[0] for a in found]))


def test_what_is_half_answered_is_asked_again_last(faces):
    required = FACES.replace('name="expression"', 'name="expression" required="1"')
    faces.ls.served = replace(faces.ls.served, label_config=required)
    faces.start()
    for task in range(1, 41):
        faces.ls.label(task, half=task in (3, 4))
    faces.refresh(*range(1, 41))
    order = read_order(faces.refresher.desk.home / SERVED_FILE)
    assert set(order.ids[-2:].tolist()) == {3, 4}
    assert len(order) == 22


def test_the_pick_of_a_label_tells_which_question_was_worth_most(faces):
    for task in range(1, 31):
        faces.ls.label(task)
    faces.refresh(*range(1, 31))
    order = read_order(faces.refresher.desk.home / SERVED_FILE)
    task = faces.label(3)  # the first may be open since the order before
    faces.refresh(task)
    row = order.ids.tolist().index(task)
    assert faces.log[task].question == order.question(row) != ""


def test_a_project_of_one_question_speaks_as_it_did():
    assert question_sentences(None) == ()
    assert accuracy_sentence(None).startswith("no model yet")


# ---------------------------------------------------------------------- facts beside the picture
def test_the_fields_that_a_question_looks_at_are_read_from_its_tag():
    xml = FACES.replace('name="subject"', 'name="subject" model_inputs="age, site.name,age"')
    config = parse(xml)
    assert inputs_of(config) == ("age", "site.name")
    assert [spec.inputs for spec in specs_of(config)] == [("age", "site.name"), ()]
    with pytest.raises(UnsupportedLabelConfig, match="names of data fields"):
        parse(FACES.replace('name="subject"', 'name="subject" model_inputs=" , "'))


def test_the_field_that_keeps_tasks_together_is_read_but_not_learnt_from():
    config = parse(FACES.replace('name="subject"', 'name="subject" model_inputs="age" model_group="patient"'))
    assert (inputs_of(config), group_of(config), fields_of(config)) == (("age",), "patient", ("age", "patient"))
    assert all("patient" not in spec.inputs for spec in specs_of(config))
    assert group_of(parse(FACES)) is None
    with pytest.raises(UnsupportedLabelConfig, match="name of one data field"):
        parse(FACES.replace('name="subject"', 'name="subject" model_group="a,b"'))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"age": 30}, 30),
        ({"age": "x" * 500}, "x" * 100),
        ({"age": True}, True),
        ({"age": {"years": 3}}, None),
        ({"age": float("inf")}, None),
        ({}, None),
        ("no object", None),
    ],
)
def test_a_fact_is_a_short_text_a_number_or_a_truth_value(data, found):
    assert fact(data, "age") == found


def test_facts_are_listed_with_the_tasks_learnt_and_listed_anew_when_others_are_wanted(faces):
    from backend.pool_sync import PoolSync

    def listed(project_id, after_id=0):
        rows = [{"id": t, "data": {"image": "x", "who": "ab"[t % 2], "age": t}} for t in faces.tasks if t > after_id]
        asked.append((after_id, len(rows)))
        return iter(rows)

    asked = []
    faces.ls.tasks = listed
    xml = FACES.replace('name="subject"', 'name="subject" model_inputs="who"')
    faces.ls.served = replace(faces.ls.served, label_config=xml)
    faces.start()
    desk = faces.refresher.desk
    for task in range(1, 41):
        faces.ls.label(task)
    faces.refresh(*range(1, 41))
    assert "tasks" in faces.state.flags(5)  # the list lacks the field: the slow path is asked for it
    without = desk.model.newest()
    PoolSync(desk).list_tasks(all_again=False)
    assert desk.files.tasks().facts == (tuple("ab"[t % 2] for t in faces.tasks),)
    faces.refresh()
    newest = desk.model.newest()
    assert newest.generation == without.generation + 1
    assert newest.heads[0].schema.columns == ("who=a", "who=b", "who=other", "who missing")
    found = desk.model.predict_heads(newest.id, list(faces.tasks))[0]
    np.testing.assert_array_equal(found.answer, [t % 2 for t in faces.tasks])
    PoolSync(desk).list_tasks(all_again=False)
    faces.ls.served = replace(faces.ls.served, label_config=xml.replace('"who"', '"who,age"'))
    faces.start()
    PoolSync(faces.refresher.desk).list_tasks(all_again=False)
    assert asked == [(0, 60), (60, 0), (0, 60)]
