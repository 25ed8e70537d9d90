"""What each recorded webhook of Label Studio 1.23.2 wakes."""

import json
from pathlib import Path

import pytest

from backend.errors import BadPayload
from backend.events import Wake, parse

FIXTURES = Path(__file__).parents[2] / "fixtures" / "label_studio" / "1.23.2"


def body(name):
    recorded = json.loads((FIXTURES / f"{name}.json").read_text())
    return (recorded[0] if isinstance(recorded, list) else recorded)["body"]


@pytest.mark.parametrize("name", ["webhook_ANNOTATION_CREATED", "webhook_ANNOTATION_UPDATED"])
def test_a_submit_or_an_update_names_its_task(name):
    payload = body(name)
    event = parse(payload)
    assert event.task_ids == (payload["task"]["id"],)
    assert event.wakes == {Wake.LABELS} and not event.all_tasks


def test_bulk_annotations_come_as_lists_under_singular_keys():
    assert parse(body("webhook_ANNOTATIONS_CREATED")).task_ids == (5, 6)


def test_deleted_annotations_name_no_task_only_annotations():
    payload = body("webhook_ANNOTATIONS_DELETED")
    event = parse(payload)
    assert event.task_ids == () and event.annotation_ids == tuple(a["id"] for a in payload["annotations"])


def test_imported_annotations_raise_only_tasks_created_and_are_looked_at():
    payload = body("webhook_TASKS_CREATED")
    assert parse(payload).wakes == {Wake.TASKS}
    payload["tasks"][1]["total_annotations"] = 1
    event = parse(payload)
    assert event.wakes == {Wake.TASKS, Wake.LABELS} and event.task_ids == (payload["tasks"][1]["id"],)


def test_start_training_has_no_annotation_and_is_understood():
    payload = body("ls_to_backend_START_TRAINING_webhook_POST")
    assert "annotation" not in payload and Wake.TRAIN in parse(payload).wakes


def test_a_payload_with_only_the_minimal_keys_is_enough():
    event = parse({"action": "ANNOTATION_CREATED", "project": {"id": 42, "label_config": "<View/>"}})
    assert event.project_id == 42 and event.all_tasks


@pytest.mark.parametrize("project", [7, "7", "7.1795211221", {"id": "7"}])
def test_odd_ways_of_naming_a_project(project):
    assert parse({"action": "PROJECT_UPDATED", "project": project}).project_id == 7


def test_an_unknown_action_is_no_event():
    assert parse({"action": "LABEL_LINK_CREATED", "project": {"id": 1}}) is None


@pytest.mark.parametrize(
    "payload",
    [
        [],
        None,
        {},
        {"action": 3},
        {"action": "TASKS_CREATED"},
        {"action": "TASKS_CREATED", "project": {"id": -1}},
        {"action": "TASKS_CREATED", "project": {"id": True}},
        {"action": "TASKS_CREATED", "project": {"id": 2**70}},
    ],
)
def test_what_is_no_event_is_refused_with_the_place(payload):
    with pytest.raises(BadPayload):
        parse(payload)


def test_a_flood_of_ids_is_answered_by_looking_at_everything():
    event = parse({"action": "ANNOTATIONS_CREATED", "project": 1, "task": [{"id": i} for i in range(1, 30_002)]})
    assert event.all_tasks and len(event.task_ids) == 20_000
