"""The controls of a config as the heads of a model: what each is asked, and what people want of them together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training import api as training

from .controls import Control
from .labeling_config import LabelingConfig
from .wire import Answer


def spec_of(control: Control) -> training.HeadSpec:
    """What the head of a control is asked."""
    return training.HeadSpec(
        control.name,
        control.answering,
        control.classes,
        control.low,
        control.high,
        control.step,
        control.options.inputs or (),
    )


def specs_of(config: LabelingConfig) -> tuple[training.HeadSpec, ...]:
    """Of each control."""
    return tuple(spec_of(control) for control in config.controls)


def inputs_of(config: LabelingConfig) -> tuple[str, ...]:
    """Data fields that some control looks at, in the order of the config."""
    return tuple(dict.fromkeys(name for control in config.controls for name in control.options.inputs or ()))


def group_of(config: LabelingConfig) -> str | None:
    """Data field whose values keep tasks together in fine-tuning: the first that a control names."""
    return next((control.options.group for control in config.controls if control.options.group), None)


def fields_of(config: LabelingConfig) -> tuple[str, ...]:
    """All data fields that are read beside the picture."""
    group = group_of(config)
    return tuple(dict.fromkeys((*inputs_of(config), *((group,) if group else ()))))


def asked_the_same(fitted: Sequence[training.HeadSpec], wanted: Sequence[training.HeadSpec]) -> bool:
    """Whether a version that was fitted for some questions answers these."""
    return len(fitted) == len(wanted) and all(w.answers_as(f) for f, w in zip(fitted, wanted, strict=True))


def answers_in_names(heads: Sequence[training.HeadLabels]) -> dict[int, dict[str, Any]]:
    """All answers known: task -> name of the question -> answer, as `ProjectModel.answers_of` tells of a version."""
    found: dict[int, dict[str, Any]] = {}
    for labels in heads:
        for task, target in (*labels.train.items(), *labels.audit.items()):
            found.setdefault(task, {})[labels.spec.name] = labels.spec.said(target)
    return found


def asking_of(config: LabelingConfig) -> training.Asking:
    """The weights of the controls, and where each is shown."""
    by_name = {control.name: control for control in config.controls}
    shown: dict[str, tuple[training.Shown, ...]] = {}
    for control in config.controls:
        conditions = []
        for condition in control.conditions:
            parent = by_name.get(condition.control)
            if parent is None:  # left to annotators: what it will say is not predicted
                continue
            words = condition.labels or tuple(choice.word for choice in parent.choices)
            chosen = tuple(place for place, choice in enumerate(parent.choices) if choice.word in words)
            conditions.append(training.Shown(parent.name, chosen, condition.chosen))
        if conditions:
            shown[control.name] = tuple(conditions)
    weights = {c.name: c.options.weight for c in config.controls if c.options.weight is not None}
    return training.Asking(weights, shown)


def shown_answers(
    said: Sequence[tuple[str, Any, float]], config: LabelingConfig, default: float, *, all_of_them: bool = False
) -> tuple[Answer, ...]:
    """The answers that annotators see: only where the model is sure enough, so that nobody is led astray.

    Args:
        said: (name of the question, "" for the first; answer; calibrated confidence) as `Order.said` gives them.
        default: confidence from which an answer is shown, where its control does not say.
        all_of_them: however unsure; somebody asked for them.
    """
    by_name = {control.name: control for control in config.controls}
    found = []
    for name, value, confidence in said:
        control = by_name.get(name) if name else config.control
        if control is None:
            continue
        own = control.options.prelabel_above
        if all_of_them or confidence >= (default if own is None else own):
            found.append(Answer(control, value, confidence))
    return tuple(found)


def in_words(value: Any) -> str:
    """An answer for people."""
    if isinstance(value, list):
        return ", ".join(value) or "none of them"
    return f"{value:g}" if isinstance(value, float) else str(value)
