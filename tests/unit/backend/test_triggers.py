"""When a refit starts, when an order is pushed, when a person's choice is respected."""

from dataclasses import replace

import pytest

from backend.triggers import (
    Fit,
    FitPolicy,
    LabelFacts,
    Push,
    QueueFacts,
    Reason,
    Wait,
    decide_fit,
    decide_push,
    judge_settings,
    sprint_size,
)

READY = LabelFacts(count=5, changed=1, outdated=False, fitted=True)
QUEUE = QueueFacts(unlabelled=1000, remaining=100, sprint_size=100, stale=False, pushed=True, held=False)


def test_one_new_label_starts_a_refit_by_default():
    assert decide_fit(READY, FitPolicy(), asked=False) == Fit()


@pytest.mark.parametrize(
    "change, policy, reason",
    [
        ({"count": 0}, FitPolicy(), Reason.NO_LABELS),
        ({"changed": 0}, FitPolicy(), Reason.NOTHING_NEW),
        ({}, FitPolicy(each_n=0), Reason.PAUSED),
        ({}, FitPolicy(min_annotations=6), Reason.TOO_FEW),
        ({"changed": 9}, FitPolicy(each_n=10), Reason.TOO_FEW_NEW),
    ],
)
def test_each_reason_to_wait(change, policy, reason):
    assert decide_fit(replace(READY, **change), policy, asked=False) == Wait(reason)


def test_the_start_training_button_overrides_thresholds_but_not_an_empty_project():
    strict = FitPolicy(each_n=0, min_annotations=1000)
    assert decide_fit(READY, strict, asked=True) == Fit()
    assert decide_fit(replace(READY, count=0), strict, asked=True) == Wait(Reason.NO_LABELS)


def test_the_first_model_does_not_wait_for_each_n():
    assert decide_fit(replace(READY, fitted=False, count=1), FitPolicy(each_n=10), asked=False) == Fit()


def test_other_classes_or_another_representation_refit_even_without_new_labels():
    assert decide_fit(replace(READY, changed=0, outdated=True), FitPolicy(each_n=50), asked=False) == Fit()


def test_an_order_in_step_is_left_alone():
    assert decide_push(QUEUE) is Push.NOTHING


@pytest.mark.parametrize("change", [{"stale": True}, {"pushed": False}, {"remaining": 49}])
def test_each_reason_to_push_a_sprint(change):
    assert decide_push(replace(QUEUE, **change)) is Push.SPRINT


def test_a_small_project_is_pushed_whole():
    assert decide_push(replace(QUEUE, stale=True, unlabelled=200)) is Push.EVERYTHING


def test_an_order_that_holds_all_that_is_left_is_not_renewed_when_it_runs_low():
    assert decide_push(replace(QUEUE, unlabelled=30, remaining=30)) is Push.NOTHING


@pytest.mark.parametrize("change", [{"held": True}, {"unlabelled": 0}, {"ready": False}])
def test_nothing_is_pushed_while_held_nor_with_all_labelled_nor_before_anything_is_embedded(change):
    assert decide_push(replace(QUEUE, stale=True, **change)) is Push.NOTHING


def test_a_sprint_lasts_through_45_seconds_at_the_observed_pace():
    assert sprint_size(1, 0.1, 100) == 100
    assert sprint_size(8, 0.1, 100) == 160
    assert sprint_size(3, 6.0, 100) == 270


SETTINGS = {
    "wanted_sampling": "Uncertainty sampling",
    "sampling": "Uncertainty sampling",
    "pushed": "askfirst a sprint-1",
    "backend_titles": frozenset({"Ask First"}),
    "held": None,
}


@pytest.mark.parametrize("broken", ["", None, "Ask First"])
def test_an_empty_version_or_the_backends_title_serves_tasks_at_random_and_is_put_right(broken):
    standing = judge_settings(**{**SETTINGS, "model_version": broken})
    assert standing.reassert_version and standing.hold is None


def test_another_stored_version_picked_by_hand_is_respected():
    standing = judge_settings(**{**SETTINGS, "model_version": "my own predictions"})
    assert standing.hold == "my own predictions" and not standing.reassert_version


def test_a_hold_ends_when_the_version_is_ours_again_or_broken():
    for version in (SETTINGS["pushed"], ""):
        assert judge_settings(**{**SETTINGS, "held": "my own", "model_version": version}).hold is None


def test_a_changed_sampling_is_put_right():
    assert judge_settings(
        **{**SETTINGS, "model_version": SETTINGS["pushed"], "sampling": "Sequential sampling"}
    ).reassert_sampling
