"""Per-project options: `model_*` attributes on the control tag, and the extra params typed into Label Studio.

One table says name and range of each option; both doors read it. A value outside its range is told to the
user rather than replaced by a default: a project that silently runs with other options is worse.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace

PREFIX = "model_"
_MOST_INPUTS = 20  # each is encoded for every task whenever an order is made

# Attributes that other backends read; people copy configs around, so these are no spelling mistakes.
_OF_OTHERS = {
    "model_skip", "model_path", "model_trainable", "model_obb", "model_add_bboxes", "model_point_threshold",
    "model_point_size", "model_index", "model_conf", "model_iou", "model_tracker", "model_classifier_epochs",
    "model_classifier_sequence_size", "model_classifier_hidden_size", "model_classifier_num_layers",
    "model_classifier_f1_threshold", "model_classifier_accuracy_threshold",
}  # fmt: skip


@dataclass(frozen=True)
class ControlOptions:
    """What a project says about itself; None means: as the settings of the backend say."""

    strategy: str | None = None  # name of a selection strategy
    explore: float | None = None  # share of every batch drawn at random, 0..1
    min_labels: int | None = None  # labels before the first model is fitted, >= 1
    retrain_every: int | None = None  # new labels between two refits, >= 1
    prelabel_above: float | None = None  # calibrated confidence from which an answer is shown, 0..1; 1: never
    weight: float | None = None  # of this control among several when tasks are ordered, > 0
    inputs: tuple[str, ...] | None = None  # data fields of the task that the answer may depend on beside the picture
    group: str | None = None  # data field: tasks with one value (a patient, a lesion) stay together in fine-tuning

    def or_else(self, other: ControlOptions) -> ControlOptions:
        """These options; where one is not given, that of `other`."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(other, **given)

    def as_json(self) -> dict[str, str | float | int | tuple[str, ...] | None]:
        return asdict(self)


def _share(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and 0 <= number <= 1):
        raise ValueError
    return number


def _weight(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise ValueError
    return number


def _fields(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not 1 <= len(names) <= _MOST_INPUTS:
        raise ValueError
    return names


def _field(text: str) -> str:
    (name,) = _fields(text)
    return name


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError
    return int(text)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}(@[A-Za-z]{1,20})?", text):
        raise ValueError
    return text.lower().replace("-", "_")


_READERS: dict[str, tuple[Callable[[str], str | float | int | tuple[str, ...]], str]] = {
    "strategy": (_name, "the name of a strategy, e.g. uherding"),
    "explore": (_share, "a share from 0 to 1"),
    "min_labels": (_count, "a whole number from 1"),
    "retrain_every": (_count, "a whole number from 1"),
    "prelabel_above": (_share, "a probability from 0 to 1"),
    "weight": (_weight, "a number above 0"),
    "inputs": (_fields, f"up to {_MOST_INPUTS} names of data fields with commas between them"),
    "group": (_field, "the name of one data field"),
}
# The convention of other backends for "drop weaker predictions" means the same thing here.
_SYNONYMS = {"score_threshold": "prelabel_above"}
assert set(_READERS) == {field.name for field in fields(ControlOptions)}


def wanted_values() -> dict[str, str]:
    """Attribute -> what it takes, for people."""
    return {f"model_{name}": wanted for name, (_, wanted) in _READERS.items()}


def is_true(text: str) -> bool:
    """Booleans of the labelling config: 1, true or yes."""
    return text.strip().lower() in {"1", "true", "yes"}


def read_options(attributes: Mapping[str, str]) -> tuple[ControlOptions, dict[str, str], list[str]]:
    """Options from attributes named `model_...` (lower case).

    Returns:
        The options; per attribute whose value cannot be used, what was wanted; a sentence per unknown name.
    """
    values: dict[str, str | float | int | tuple[str, ...]] = {}
    problems: dict[str, str] = {}
    unknown: list[str] = []
    known = [PREFIX + name for name in _READERS]
    for attribute, text in attributes.items():
        written = attribute.removeprefix(PREFIX)
        name = _SYNONYMS.get(written, written)
        if name not in _READERS:
            if attribute not in _OF_OTHERS:
                near = difflib.get_close_matches(attribute, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
                unknown.append(f"{attribute} is not an option and is not used; {hint}")
            continue
        if name != written and PREFIX + name in attributes:
            continue  # our own name wins over its synonym
        reader, wanted = _READERS[name]
        try:
            values[name] = reader(text.strip())
        except ValueError:
            problems[attribute] = f"{attribute}={text!r} is not {wanted}"
    return ControlOptions(**values), problems, unknown  # type: ignore[arg-type]


def parse_extra_params(text: str | None) -> tuple[ControlOptions, list[str]]:
    """Options from the "extra params" of the backend in Label Studio: JSON; `model_` may be left out.

    Label Studio hands over whatever was typed at every /setup, so nothing here raises.

    Returns:
        The usable options, and a sentence per thing that cannot be used.
    """
    if not text or not text.strip():
        return ControlOptions(), []
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return ControlOptions(), ['Extra params are no JSON object like {"strategy": "uherding"}; not used.']
    attributes = {PREFIX + str(k).lower().removeprefix(PREFIX): _as_text(v) for k, v in found.items()}
    options, problems, unknown = read_options(attributes)
    return options, [*(f"Extra params: {p}; not used." for p in problems.values()), *unknown]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
