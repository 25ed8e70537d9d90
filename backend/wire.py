"""Label Studio's JSON in and out: scores, predictions, tasks and project ids. Pure.

Direction: inside the product uncertainty grows; on the wire `prediction.score` is a confidence and Label
Studio serves the LOWEST first. `order_scores` is the only place where one becomes the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from .controls import Control
from .errors import BadPayload

UNDEFINED_KEY = "$undefined$"  # data key of tasks imported as a plain list before the config named a key
MAX_GAP = 1e-6  # least distance of neighbouring scores; small enough to vanish in a percentage
_PATH_STEP = re.compile(r"[^.\[\]]+")
_MAX_ID = 2**63 - 1
_MOST_FACT_CHARS = 100  # of a text beside the picture; a longer one is no category


# ---- scores


def order_scores(confidence_in_order: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Scores for tasks in the order in which they shall be asked: `prediction.score`, low = asked first.

    Of all scores in [0, 1] that rise by at least a gap of min(1e-6, 1/(4n)) from task to task, these are the
    closest to the confidences in least squares: with t_i = s_i - i*gap this is isotonic regression of
    c_i - i*gap (pool adjacent violators), and for constant bounds clipping its solution is exact (Barlow et
    al. 1972). So a task's score, which Label Studio shows as a percentage, is its calibrated confidence
    wherever the order allows it.

    Args:
        confidence_in_order: [n], first = ask first; calibrated confidence in [0, 1]. Where it is not known
            (NaN, inf) the score is that of its neighbours.
    Returns:
        [n] float64, strictly increasing, in [0, 1].
    """
    from scipy.optimize import isotonic_regression  # here: the web process, which pushes nothing, goes without scipy

    confidence = np.asarray(confidence_in_order, dtype=np.float64).ravel()
    n = confidence.size
    if n == 0:
        return confidence
    gap = min(MAX_GAP, 1 / (4 * n))
    steps = np.arange(n) * gap
    known = np.isfinite(confidence)
    if not known.any():
        return np.asarray((np.arange(n) + 0.5) / n)  # nothing to be close to: the order alone, evenly spread
    level = np.empty(n)
    level[known] = isotonic_regression((confidence - steps)[known]).x
    source = np.maximum.accumulate(np.where(known, np.arange(n), -1))
    source[source < 0] = int(np.argmax(known))  # before the first known one
    level = np.clip(level[source], 0.0, 1.0 - steps[-1])
    return np.asarray(level + steps)


# ---- predictions


@dataclass(frozen=True)
class Answer:
    """An answer to be shown before anybody gave one."""

    control: Control
    value: str | float | Sequence[str]  # a class of the control, a number, or the classes that apply
    confidence: float | None = None  # calibrated chance that it is right, kept on the result itself


def to_prediction(
    task_id: int | None,
    label: str | None,
    score: float,
    version: str,
    control: Control,
    confidence: float | None = None,
) -> dict[str, Any]:
    """A prediction with the answer to one question at most, as `prediction_of`; `label` None gives `result: []`."""
    answers = () if label is None else (Answer(control, label, confidence),)
    return prediction_of(task_id, answers, score, version)


def prediction_of(task_id: int | None, answers: Sequence[Answer], score: float, version: str) -> dict[str, Any]:
    """A prediction as Label Studio stores it.

    Args:
        task_id: the task for /import/predictions; None for a /predict item, whose task is known by its place.
        answers: pre-labels, one of a control at most; none gives `result: []`, which orders the task without anchoring
            the annotator. What its control does not know (removed meanwhile) is left out, since Label Studio drops such
            predictions silently and a task without a prediction is never asked.
        score: wire score in [0, 1], low = asked first; see `order_scores`.
        version: model version string; Label Studio matches it with project.model_version.
    Raises:
        ValueError: score outside [0, 1] or NaN, empty version.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"a wire score lies in [0, 1], got {score!r}")
    if not version:
        raise ValueError("a prediction needs a version: Label Studio cannot select or delete one without")
    prediction: dict[str, Any] = {
        "result": [item for item in map(_item, answers) if item is not None],
        "score": float(score),
        "model_version": version,
    }
    if task_id is not None:
        prediction["task"] = task_id
    return prediction


def _item(answer: Answer) -> dict[str, Any] | None:
    """The result item of an answer; None when its control does not know it, or nothing applies."""
    control = answer.control
    value = _wire_value(control, answer.value)
    if value is None:
        return None
    item: dict[str, Any] = {
        "from_name": control.name,
        "to_name": control.to_name,
        "type": control.kind,
        "value": {control.kind: value},
    }
    if answer.confidence is not None and math.isfinite(answer.confidence):
        item["score"] = float(answer.confidence)
    return item


def _wire_value(control: Control, value: str | float | Sequence[str]) -> Any:
    if control.kind == "number":
        if not isinstance(value, float):
            return None
        return int(value) if value.is_integer() else round(value, 6)
    names = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    chosen = [choice for choice in control.choices if choice.label in names]
    if not chosen or (control.answering != "multiple" and len(chosen) > 1):
        return None
    if control.kind == "rating":
        return int(chosen[0].label)
    return [list(choice.path) if choice.path else choice.label for choice in chosen]


def no_answer(version: str, score: float = 1.0) -> dict[str, Any]:
    """The /predict item of a task that we know nothing about; by default it is asked last.

    Label Studio needs one dict per task: null fails the annotator's request, a missing item voids the batch.
    """
    return {"result": [], "score": float(score), "model_version": version}


# ---- tasks


@dataclass(frozen=True)
class Task:
    """What we use of a task."""

    task_id: int | None  # None: not a stored task, or an odd shape
    uri: str | None  # address of the image as the task has it
    problem: str = ""  # why there is no uri, and what to do
    is_labeled: bool = False


def parse_task(raw: Any, image_key: str) -> Task:
    """A task of /predict, of a webhook or of a listing, in any shape; never raises.

    A string is taken as the image's address itself, as in plain lists of addresses.
    """
    if isinstance(raw, str):
        return _with_uri(None, raw, False)
    if not isinstance(raw, Mapping):
        return Task(None, None, f"a task must be a JSON object, this one is {_kind(raw)}.")
    task_id = raw.get("id")
    if isinstance(task_id, bool) or not isinstance(task_id, int) or not 0 <= task_id <= _MAX_ID:
        task_id = None
    labeled = raw.get("is_labeled") is True
    data = raw.get("data")
    if isinstance(data, str):
        return _with_uri(task_id, data, labeled)
    if not isinstance(data, Mapping):
        return Task(task_id, None, f"the task's data must be a JSON object, it is {_kind(data)}.", labeled)
    found = lookup(data, image_key)
    if found is None:
        found = data.get(UNDEFINED_KEY)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, str) and found.strip():
        return _with_uri(task_id, found, labeled)
    keys = ", ".join(sorted(map(str, data))[:10]) or "nothing"
    return Task(
        task_id,
        None,
        f"no image address under {image_key!r} in the task's data (it has {keys}). "
        f'Import tasks with that column, or let the config say <Image value="$..."> with the right one.',
        labeled,
    )


def image_uri(data: Any, image_key: str) -> str | None:
    """The image's address in a task's data; None when there is none."""
    return parse_task({"data": data}, image_key).uri


def fact(data: Any, key: str) -> str | float | bool | None:
    """A value of a task's data that a model can look at: a short text, a number or a truth value; None for all else."""
    found = lookup(data, key) if isinstance(data, Mapping) else None
    if isinstance(found, str):
        return found[:_MOST_FACT_CHARS]
    if isinstance(found, (bool, int)):
        return found
    return found if isinstance(found, float) and math.isfinite(found) else None


def lookup(data: Mapping[str, Any], key: str) -> Any:
    """Value of a config variable in task data: the key, else a path as `item.urls[0]`; None if absent."""
    if key in data:
        return data[key]
    found: Any = data
    for step in _PATH_STEP.findall(key):
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isascii() and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def _with_uri(task_id: int | None, uri: str, labeled: bool) -> Task:
    uri = uri.strip()
    return Task(task_id, uri, "", labeled) if uri else Task(task_id, None, "the image address is empty.", labeled)


def _kind(value: Any) -> str:
    return (
        "null"
        if value is None
        else {"str": "text", "list": "a list", "bool": "a boolean", "dict": "an object"}.get(
            type(value).__name__, "a number"
        )
    )


# ---- projects


@dataclass(frozen=True)
class ProjectRef:
    """A project as Label Studio names it."""

    project_id: int
    created_at: int | None = None  # unix seconds, whole; None where the call does not say

    @property
    def key(self) -> str | None:
        """Folder name; a fresh Label Studio starts again at id 1, so the id alone would mix up projects."""
        return None if self.created_at is None else f"{self.project_id}-{self.created_at}"


def parse_project(value: Any, path: str = "project") -> ProjectRef:
    """A project from "7.1795211221" (/setup, /predict), "7", 7, or a project object of Label Studio.

    Raises:
        BadPayload: anything else.
    """
    if isinstance(value, Mapping):
        ref = parse_project(value.get("id"), f"{path}.id")
        return ProjectRef(ref.project_id, _unix(value.get("created_at")))
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    # Not float(): "7.1795211221" as a number would round the time stamp away.
    match = re.fullmatch(r"\s*([0-9]{1,18})(?:\.([0-9]{0,18}))?\s*", text) if isinstance(text, str) else None
    if match is None or int(match[1]) == 0:
        shown = repr(value)[:60]
        raise BadPayload(f'must be a project id such as 7 or "7.1795211221", got {shown}', path)
    return ProjectRef(int(match[1]), int(match[2]) if match[2] else None)


def _unix(text: Any) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp())  # as Label Studio builds the suffix of "7.1795211221"
