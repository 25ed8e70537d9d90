"""Annotations of Label Studio reduced to one label per task and question. Pure.

An annotation is a dict as it comes in exports, in webhooks and from /api/tasks; `completed_by` is an int in
most and a dict in some. The rules, in this order:

1. Skipped annotations (`was_cancelled`) say nothing about the image.
2. Only results of our control about the whole image count: no other `from_name`, no per-region answers.
3. If any annotation with an answer is marked as ground truth, only those count.
4. Of several annotations by one annotator the newest counts.
5. Answers that the config does not know are kept aside and counted; they return with their label, because a changed
   config reduces all annotations anew.
6. The label with most votes wins. A tie has no label: it is shown to people and not trained on. Where several labels
   may apply each is voted on by itself, and of numbers the median counts.

A question that an annotation does not answer says nothing about the image: it was hidden, or passed over. Only where
several labels may apply, none need be given and the question was shown, does it mean that none applies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

from training import api as training

from .controls import PATH_SEPARATOR, Condition, Control
from .labeling_config import LabelingConfig

Kind = Literal["agreed", "tie", "skipped", "unknown", "empty"]
Votes = tuple[tuple[str, int], ...]
Value = str | float | tuple[str, ...]

# Keys of a result's value that place it somewhere in the image (or text, sound, video).
_REGION_KEYS = frozenset(
    "x y width height radiusX radiusY points vertices rle start end startOffset ranges sequence".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Label:
    """What the annotators of one task said."""

    value: Value | None  # only when kind is "agreed": a class of the config, those that apply in its order, or a number
    kind: Kind
    votes: Votes = ()  # (label, annotators), most first, then by name; only labels of the config
    annotation_ids: tuple[int, ...] = ()  # annotations whose answers were counted, known or not, ascending
    unknown: Votes = ()  # answers the config does not know
    ground_truth: bool = False  # decided by annotations marked as ground truth


@dataclass(frozen=True)
class _Answer:
    annotation_id: int
    annotator: object
    at: float  # unix seconds
    ground_truth: bool
    value: Value | None  # None: submitted without an answer


def reduce_annotations(annotations: Iterable[Any], config: LabelingConfig) -> Label:
    """One label from all annotations of one task, to the first question; never raises on odd shapes."""
    return reduce_to(annotations, config.control)


def reduce_all(annotations: Iterable[Any], config: LabelingConfig) -> tuple[Label, ...]:
    """A label to each question of the config, in its order; never raises on odd shapes."""
    rows = list(annotations)
    return tuple(reduce_to(rows, control) for control in config.controls)


def reduce_to(annotations: Iterable[Any], control: Control) -> Label:
    """One label to a question from all annotations of one task; never raises on odd shapes."""
    usable = [a for a in annotations if isinstance(a, Mapping)]
    submitted = [a for a in usable if not a.get("was_cancelled")]
    if not submitted:
        return Label(None, "skipped" if usable else "empty")
    answers = [_answer(a, control) for a in submitted]
    truths = [a for a in answers if a.ground_truth and a.value is not None]
    counted = [a for a in _newest_per_annotator(truths or answers) if a.value is not None]
    label = _settle([a.value for a in counted if a.value is not None], control)
    ids = tuple(sorted(a.annotation_id for a in counted))
    return replace(label, annotation_ids=ids, ground_truth=bool(truths))


def targets_of(labels: Mapping[int, Label], control: Control) -> dict[int, training.Target]:
    """Task id -> answer as the model knows it, for the tasks whose label is agreed."""
    place = {name: index for index, name in enumerate(control.classes)}
    found: dict[int, training.Target] = {}
    for task, label in labels.items():
        value = label.value
        if isinstance(value, tuple):
            found[task] = tuple(place[name] for name in value)
        elif isinstance(value, float):
            found[task] = value
        elif value is not None and value in place:
            found[task] = place[value]
    return found


def answers_all(annotation: Mapping[str, Any], controls: Sequence[Control]) -> bool:
    """Whether an annotation answers every question that must be answered and was shown."""
    result = annotation.get("result")
    return all(
        _value(result, control) is not None or not is_shown(result, control) for control in controls if control.required
    )


def is_shown(result: Any, control: Control) -> bool:
    """Whether a question is shown to an annotator who gave the answers of `result`."""
    items = [item for item in result if isinstance(item, Mapping)] if isinstance(result, list) else []
    return all(_holds(condition, items, control) for condition in control.conditions)


def _holds(condition: Condition, items: Sequence[Mapping[str, Any]], control: Control) -> bool:
    chosen: list[str] = []
    for item in items:
        value = item.get("value")
        if item.get("from_name") == control.name or condition.control not in ("", item.get("from_name")):
            continue
        if isinstance(value, Mapping):
            chosen += _last_steps(value.get("choices")) + _last_steps(value.get("taxonomy"))
    met = any(word in condition.labels for word in chosen) if condition.labels else bool(chosen)
    return met == condition.chosen


def _last_steps(chosen: Any) -> list[str]:
    """Chosen labels; of a path its last step, which is what conditions look at."""
    rows = chosen if isinstance(chosen, list) else [chosen]
    return [str(row[-1] if isinstance(row, list) else row) for row in rows if row not in (None, [])]


def class_indices(labels: Mapping[int, Label], classes: Sequence[str]) -> dict[int, int]:
    """Task id -> class index, for the tasks whose label is agreed and among `classes`."""
    index = {name: i for i, name in enumerate(classes)}
    agreed = ((t, label.value) for t, label in labels.items() if isinstance(label.value, str))
    return {t: index[value] for t, value in agreed if value in index}


def _settle(values: Sequence[Value], control: Control) -> Label:
    if control.answering == "number":
        numbers = [value for value in values if isinstance(value, float)]
        votes = _ranked(Counter(f"{number:g}" for number in numbers))
        return Label(float(median(numbers)), "agreed", votes) if numbers else Label(None, "empty")
    if control.answering == "multiple":
        return _settle_each([value for value in values if isinstance(value, tuple)], control.classes)
    counts = Counter(value for value in values if isinstance(value, str))
    names = set(control.classes)
    known = _ranked({value: n for value, n in counts.items() if value in names})
    unknown = _ranked({value: n for value, n in counts.items() if value not in names})
    if not known:
        return Label(None, "unknown" if unknown else "empty", unknown=unknown)
    if len(known) > 1 and known[0][1] == known[1][1]:
        return Label(None, "tie", known, unknown=unknown)
    return Label(known[0][0], "agreed", known, unknown=unknown)


def _settle_each(values: Sequence[tuple[str, ...]], classes: Sequence[str]) -> Label:
    """Each class voted on by itself. An answer that names only what the config does not know says nothing."""
    names = set(classes)
    usable = [value for value in values if not value or names.intersection(value)]
    counts = Counter(name for value in values for name in value)
    known = _ranked({name: n for name, n in counts.items() if name in names})
    unknown = _ranked({name: n for name, n in counts.items() if name not in names})
    if not usable:
        return Label(None, "unknown" if unknown else "empty", unknown=unknown)
    if any(2 * n == len(usable) for _, n in known):
        return Label(None, "tie", known, unknown=unknown)
    applies = tuple(name for name in classes if 2 * counts[name] > len(usable))
    return Label(applies, "agreed", known, unknown=unknown)


def _ranked(counts: Mapping[str, int]) -> Votes:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _newest_per_annotator(answers: Sequence[_Answer]) -> list[_Answer]:
    newest: dict[object, _Answer] = {}
    for answer in answers:
        other = newest.get(answer.annotator)
        if other is None or (answer.at, answer.annotation_id) > (other.at, other.annotation_id):
            newest[answer.annotator] = answer
    return list(newest.values())


def _answer(annotation: Mapping[str, Any], control: Control) -> _Answer:
    raw_id = annotation.get("id")
    annotation_id = raw_id if isinstance(raw_id, int) else -1
    return _Answer(
        annotation_id=annotation_id,
        annotator=_annotator(annotation),
        at=_seconds(annotation.get("updated_at") or annotation.get("created_at")),
        ground_truth=annotation.get("ground_truth") is True,
        value=_value(annotation.get("result"), control),
    )


def _seconds(text: Any) -> float:
    # Not compared as text: Label Studio leaves the fraction out when it is zero, and ".5Z" sorts before "Z".
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return 0.0
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _annotator(annotation: Mapping[str, Any]) -> object:
    by = annotation.get("completed_by")
    if isinstance(by, Mapping):
        by = by.get("id", by.get("email"))
    # A deleted user leaves nothing: such annotations cannot be told apart, so each counts for itself.
    return ("annotation", id(annotation)) if by is None or isinstance(by, (list, dict)) else ("user", str(by))


def _value(result: Any, control: Control) -> Value | None:
    """The answer to our control; several different ones are joined into an answer that no config has."""
    items = [item for item in result if isinstance(item, Mapping)] if isinstance(result, list) else []
    regions = {item.get("id") for item in items if _places(item)} - {None}
    found: list[Any] = []
    for item in items:
        if item.get("from_name") != control.name or item.get("type", control.kind) != control.kind:
            continue
        if item.get("to_name", control.to_name) != control.to_name:
            continue  # about another object: imported, or from before the config was changed
        if _places(item) or (item.get("id") is not None and item.get("id") in regions):
            continue
        value = item.get("value")
        found.append(value.get(control.kind) if isinstance(value, Mapping) else None)
    if control.answering == "number":
        numbers = [float(value) for value in found if _is_number(value)]
        return numbers[-1] if numbers else None
    if control.kind == "rating":
        names = [f"{float(value):g}" for value in found if _is_number(value)]
    else:
        names = [name for chosen in found for name in _names(chosen)]
    distinct = list(dict.fromkeys(names))
    if control.answering == "multiple":
        none = control.empty_means_none and is_shown(result, control)
        return tuple(distinct) if distinct or none else None
    return f"several answers: {', '.join(distinct)}" if len(distinct) > 1 else next(iter(distinct), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _places(item: Mapping[str, Any]) -> bool:
    value = item.get("value")
    return isinstance(value, Mapping) and not _REGION_KEYS.isdisjoint(value)


def _names(chosen: Any) -> list[str]:
    """Chosen labels; a path (of a Taxonomy, or left by `allowNested`) is its steps joined."""
    if isinstance(chosen, str):
        chosen = [chosen]
    if not isinstance(chosen, list):
        return []
    names = [PATH_SEPARATOR.join(map(str, c)) if isinstance(c, list) else str(c) for c in chosen if c is not None]
    return [name for name in names if name]
