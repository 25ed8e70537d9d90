"""What Label Studio's webhooks mean to us. Pure: a payload in, an Event out.

Payloads only wake us; labels are always read from Label Studio again. So an Event says which tasks to look at,
never what their label is. Shapes observed on Label Studio 1.23.2: `ANNOTATIONS_CREATED` carries lists under the
singular keys, `ANNOTATIONS_DELETED` names annotations but no tasks, imported annotations raise `TASKS_CREATED` only,
START_TRAINING has no `annotation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .errors import BadPayload

MAX_LISTED_IDS = 20_000  # more than this in one event: look at everything instead


class Wake(StrEnum):
    """What has to be looked at again."""

    LABELS = "labels"  # annotations of the tasks named, or of all tasks
    TASKS = "tasks"  # the list of tasks
    PROJECT = "project"  # settings of the project
    TRAIN = "train"  # the Start Training button


@dataclass(frozen=True)
class Event:
    """One webhook call, reduced to what it wakes."""

    action: str
    project_id: int
    wakes: frozenset[Wake]
    task_ids: tuple[int, ...] = ()  # whose annotations changed
    annotation_ids: tuple[int, ...] = ()  # deleted ones, whose task only our own map knows
    all_tasks: bool = False  # too many to name, or unknown which
    project: dict[str, Any] | None = None  # the payload's project, for comparing settings


_LABEL_ACTIONS = {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"}
_DELETE_ACTIONS = {"ANNOTATIONS_DELETED", "ANNOTATION_DELETED"}
KNOWN_ACTIONS = (
    _LABEL_ACTIONS | _DELETE_ACTIONS | {"TASKS_CREATED", "TASKS_DELETED", "PROJECT_UPDATED", "START_TRAINING"}
)


def parse(payload: Any) -> Event | None:
    """The event in a webhook body; None for an action that is none of our business.

    Raises:
        BadPayload: without a usable project id in a known action.
    """
    if not isinstance(payload, dict):
        raise BadPayload("expected a JSON object with the key 'action'")
    action = payload.get("action")
    if not isinstance(action, str):
        raise BadPayload("expected the name of an event", path="action")
    if action not in KNOWN_ACTIONS:
        return None
    project_id = _project_id(payload)
    project = payload.get("project") if isinstance(payload.get("project"), dict) else None
    if action in _LABEL_ACTIONS:
        ids = _task_ids(payload)
        return Event(
            action,
            project_id,
            frozenset({Wake.LABELS}),
            task_ids=ids[:MAX_LISTED_IDS],
            all_tasks=not ids or len(ids) > MAX_LISTED_IDS,
            project=project,
        )
    if action in _DELETE_ACTIONS:
        ids = _ids(payload.get("annotations")) or _ids(payload.get("annotation"))
        return Event(
            action,
            project_id,
            frozenset({Wake.LABELS}),
            annotation_ids=ids[:MAX_LISTED_IDS],
            all_tasks=not ids or len(ids) > MAX_LISTED_IDS,
            project=project,
        )
    if action == "TASKS_CREATED":
        labelled = _already_labelled(payload.get("tasks"))
        wakes = {Wake.TASKS, Wake.LABELS} if labelled else {Wake.TASKS}
        return Event(
            action,
            project_id,
            frozenset(wakes),
            task_ids=labelled[:MAX_LISTED_IDS],
            all_tasks=len(labelled) > MAX_LISTED_IDS,
            project=project,
        )
    if action == "TASKS_DELETED":
        return Event(
            action,
            project_id,
            frozenset({Wake.TASKS, Wake.LABELS}),
            task_ids=_ids(payload.get("tasks"))[:MAX_LISTED_IDS],
            project=project,
        )
    if action == "PROJECT_UPDATED":
        return Event(action, project_id, frozenset({Wake.PROJECT}), project=project)
    return Event(action, project_id, frozenset({Wake.TRAIN, Wake.LABELS}), project=project)


def _project_id(payload: dict[str, Any]) -> int:
    project = payload.get("project")
    candidates: Iterable[Any] = (
        project.get("id") if isinstance(project, dict) else project,
        *(item.get("project") for key in ("annotation", "task", "tasks") for item in _dicts(payload.get(key))[:1]),
    )
    for candidate in candidates:
        found = _as_id(str(candidate).partition(".")[0] if isinstance(candidate, str) else candidate)
        if found is not None:
            return found
    raise BadPayload("expected the id of a project", path="project.id")


def _as_id(value: Any) -> int | None:
    """A positive id that fits a database column, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            return None
        value = int(value)
    return value if isinstance(value, int) and 0 < value < 2**63 else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _ids(value: Any, key: str = "id") -> tuple[int, ...]:
    found = [_as_id(item.get(key)) for item in _dicts(value)]
    return tuple(dict.fromkeys(i for i in found if i is not None))


def _task_ids(payload: dict[str, Any]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_ids(payload.get("annotation"), "task") + _ids(payload.get("task"))))


def _already_labelled(tasks: Any) -> tuple[int, ...]:
    """Tasks that were imported together with annotations."""
    return _ids(
        [
            t
            for t in _dicts(tasks)
            if t.get("is_labeled")
            or t.get("total_annotations")
            or t.get("cancelled_annotations")
            or t.get("annotations")
        ]
    )
