"""Label Studio's JSON, in and out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface
from scipy.optimize import minimize
from sklearn.isotonic import isotonic_regression

from backend.errors import BadPayload
from backend.labeling_config import parse
from backend.wire import (
    ProjectRef,
    Task,
    image_uri,
    no_answer,
    order_scores,
    parse_project,
    parse_task,
    to_prediction,
)

XML = (
    '<View><Image name="img" value="$image"/><Choices name="cls" toName="img">'
    '<Choice value="Common cat" alias="cat"/><Choice value="dog"/></Choices></View>'
)
CONTROL = parse(XML).control

# ---- order -> scores


def test_a_confidence_that_already_rises_is_kept():
    confidence = [0.1, 0.35, 0.6, 0.99]
    assert order_scores(confidence) == pytest.approx(confidence, abs=1e-12)


def test_an_order_against_the_confidence_is_pooled_to_its_mean():
    scores = order_scores([0.9, 0.1])
    assert scores == pytest.approx([0.5, 0.5], abs=1e-6)
    assert scores[0] < scores[1]


def test_first_in_our_order_has_the_lowest_score():
    rng = np.random.default_rng(0)
    assert np.argmin(order_scores(rng.random(100))) == 0


@pytest.mark.parametrize("n", [1, 2, 1000, 100_000])
@pytest.mark.parametrize("kind", ["random", "falling", "all zero", "all one", "two values"])
def test_scores_rise_strictly_within_zero_and_one_however_the_confidence_looks(n, kind):
    rng = np.random.default_rng(1)
    confidence = {
        "random": rng.random(n),
        "falling": np.linspace(1, 0, n),
        "all zero": np.zeros(n),
        "all one": np.ones(n),
        "two values": rng.integers(0, 2, n).astype(float),
    }[kind]
    scores = order_scores(confidence.astype(np.float32))
    assert scores.dtype == np.float64
    assert scores.shape == (n,)
    assert (np.diff(scores) > 0).all()
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_scores_still_rise_strictly_after_a_trip_through_json():
    scores = json.loads(json.dumps(order_scores(np.ones(5000)).tolist()))
    assert (np.diff(scores) > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_scores_agree_with_scikit_learns_isotonic_regression(confidence):
    expected = np.clip(isotonic_regression(np.asarray(confidence)), 0, 1)
    assert order_scores(confidence) == pytest.approx(expected, abs=1e-6 * len(confidence))


@pytest.mark.parametrize("seed", range(4))
def test_no_allowed_scores_are_closer_to_the_confidence(seed):
    # Second route: a general solver on the same problem, with a gap large enough to see.
    rng = np.random.default_rng(seed)
    n = 6
    confidence = rng.choice([0.0, 0.02, 0.5, 0.98, 1.0], n)
    gap = min(1e-6, 1 / (4 * n))
    constraints = [{"type": "ineq", "fun": lambda s, i=i: s[i + 1] - s[i] - gap} for i in range(n - 1)]
    best = minimize(
        lambda s: ((s - confidence) ** 2).sum(), np.linspace(0, 1, n), bounds=[(0, 1)] * n, constraints=constraints,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    loss = ((order_scores(confidence) - confidence) ** 2).sum()
    assert loss <= best.fun + 1e-8


def test_an_unknown_confidence_takes_the_level_of_its_neighbours():
    scores = order_scores([np.nan, 0.2, np.nan, np.inf, 0.8, np.nan])
    assert scores == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.8, 0.8], abs=1e-5)
    assert (np.diff(scores) > 0).all()


def test_without_any_known_confidence_the_order_alone_is_spread_evenly():
    assert order_scores([np.nan] * 4) == pytest.approx([0.125, 0.375, 0.625, 0.875])


def test_no_tasks_have_no_scores():
    assert order_scores([]).shape == (0,)


# ---- predictions


def test_a_prediction_with_a_pre_label_is_valid_for_label_studio():
    prediction = to_prediction(7, "cat", 0.25, "v1", CONTROL, confidence=0.9)
    assert prediction == {
        "task": 7,
        "score": 0.25,
        "model_version": "v1",
        "result": [
            {
                "from_name": "cls",
                "to_name": "img",
                "type": "choices",
                "value": {"choices": ["cat"]},
                "score": 0.9,
            }
        ],
    }
    assert LabelInterface(XML).validate_prediction(prediction, return_errors=True) == []


def test_without_a_pre_label_the_score_alone_orders_the_task():
    prediction = to_prediction(None, None, 0.25, "v1", CONTROL)
    assert prediction == {"score": 0.25, "model_version": "v1", "result": []}
    assert LabelInterface(XML).validate_prediction(prediction, return_errors=True) == []


def test_a_label_that_the_config_has_no_more_is_not_pre_labelled_and_keeps_its_place():
    assert to_prediction(7, "Common cat", 0.1, "v1", CONTROL)["result"] == []


@pytest.mark.parametrize("confidence", [None, float("nan")])
def test_an_unknown_confidence_is_left_out_of_the_result(confidence):
    assert "score" not in to_prediction(7, "cat", 0.1, "v1", CONTROL, confidence)["result"][0]


def test_numpy_scores_become_numbers_that_json_can_write():
    json.dumps(to_prediction(7, "cat", np.float64(0.1), "v1", CONTROL, np.float32(0.5)))


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_that_label_studio_would_drop_is_refused(score):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        to_prediction(7, "cat", score, "v1", CONTROL)


def test_a_prediction_without_version_is_refused_since_it_could_never_be_deleted():
    with pytest.raises(ValueError, match="version"):
        to_prediction(7, "cat", 0.5, "", CONTROL)


def test_a_task_nobody_knows_still_has_an_answer_and_is_asked_last():
    assert no_answer("v1") == {"result": [], "score": 1.0, "model_version": "v1"}


# ---- tasks


def test_a_task_of_label_studio_is_reduced_to_what_we_use():
    raw = {"id": 3, "data": {"image": " /data/upload/1/a.png ", "k": 1}, "is_labeled": True, "meta": {}}
    assert parse_task(raw, "image") == Task(3, "/data/upload/1/a.png", is_labeled=True)


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"image": "u"}, "image"),
        ({"$undefined$": "u"}, "image"),
        ({"image": ["u"]}, "image"),
        ({"item": {"urls": ["x", "u"]}}, "item.urls[1]"),
        ({"item.url": "u"}, "item.url"),
        ({"image": None, "$undefined$": "u"}, "image"),
        ("u", "image"),
    ],
)
def test_the_address_is_found_in_every_shape_of_data(data, key):
    assert image_uri(data, key) == "u"
    assert parse_task({"id": 1, "data": data}, key).uri == "u"


def test_a_task_that_is_only_text_is_the_address():
    assert parse_task("http://host/a.png", "image") == Task(None, "http://host/a.png")


@pytest.mark.parametrize(
    "raw",
    [None, 7, [], True, {}, "", "  ", {"id": 1}, {"id": 1, "data": None}, {"id": 1, "data": []},
     {"data": {"image": ""}},
     {"data": {"image": 5}}, {"data": {"image": ["a", "b"]}}, {"data": {"image": {"url": "u"}}},
     {"data": {"other": "u"}}],
)  # fmt: skip
def test_odd_tasks_are_answered_with_a_problem(raw):
    task = parse_task(raw, "image")
    assert task.uri is None
    assert task.problem


def test_the_problem_names_the_wanted_key_and_those_that_are_there():
    problem = parse_task({"id": 1, "data": {"photo": "u", "age": 3}}, "image").problem
    assert "'image'" in problem
    assert "age, photo" in problem


@pytest.mark.parametrize("task_id", [None, True, "5", 1.5, -1, 2**63, [1]])
def test_an_id_that_is_none_is_not_used(task_id):
    assert parse_task({"id": task_id, "data": {"image": "u"}}, "image").task_id is None


@settings(max_examples=40, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "data", "image", "$undefined$", "a"]), inner),
    max_leaves=8,
), st.sampled_from(["image", "a.image[0]", "a[", "...", "[0]"]))  # fmt: skip
def test_no_shape_of_a_task_raises(raw, key):
    task = parse_task(raw, key)
    assert bool(task.uri) != bool(task.problem)


# ---- projects


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.1795211221", ProjectRef(1, 1795211221)),
        ("42", ProjectRef(42)),
        (42, ProjectRef(42)),
        (" 7. ", ProjectRef(7)),
        ({"id": 7, "created_at": "2026-11-20T21:47:01.966491Z"}, ProjectRef(7, 1795211221)),
        ({"id": 7, "created_at": "2026-11-20T23:47:01.966491+02:00"}, ProjectRef(7, 1795211221)),
        ({"id": "7", "created_at": "yesterday"}, ProjectRef(7)),
    ],
)
def test_a_project_is_recognised_in_every_way_label_studio_names_it(value, expected):
    assert parse_project(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "x",
        "0",
        0,
        -1,
        True,
        1.5,
        [1],
        "1.2.3",
        "1e3",
        "\u0667",
        "9" * 30,
        {},
        {"id": None},
        {"id": {"id": 1}}.keys(),
    ],
)
def test_anything_else_is_refused_by_path(value):
    with pytest.raises(BadPayload) as caught:
        parse_project(value)
    assert caught.value.path.startswith("project")


def test_the_folder_name_tells_projects_of_two_installations_apart():
    assert ProjectRef(7, 100).key == "7-100"
    assert ProjectRef(7).key is None


def test_a_deeply_wrapped_project_is_refused_without_running_out_of_stack():
    value: dict = {"id": None}
    for _ in range(3):
        value = {"id": value}
    with pytest.raises(BadPayload, match=r"project\.id\.id"):
        parse_project(value)
