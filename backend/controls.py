"""The questions of a labelling config that we answer, each as one value. Pure.

How Label Studio 1.23.2 reads the same tags (its editor's source and `LabelInterface`):
- An answer on the wire is the choice's `alias` if it has one, else its `value`; `hint` and `html` are looks.
- A `Choice` inside a `Choice` is neither shown nor selectable, unless `allowNested="true"`; with that every
  answer becomes a path (a list in the list), which is refused here.
- A question with `visibleWhen`, or inside a tag that has one, is not part of a result that hides it. Conditions look at
  results of Choices and Taxonomy; of a path the last step counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .config_tags import Tag, names_in, walk
from .control_options import ControlOptions, is_true

Answering = Literal["single", "multiple", "ordered", "number"]
VARIABLE = re.compile(r"\$[\w\[\].{}]+")  # what the editor replaces by task data


@dataclass(frozen=True)
class Choice:
    """One answer. `label` is the word on the wire (alias, else value), `value` what the annotator reads."""

    label: str
    value: str
    predicted_values: tuple[str, ...] = ()  # class names of a pretrained model that mean this label


@dataclass(frozen=True)
class Condition:
    """A question is shown only where another one was answered in a certain way."""

    control: str  # name of the other; "": any
    labels: tuple[str, ...]  # one of them was chosen; empty: any was
    chosen: bool = True  # False: shown where that does not hold


@dataclass(frozen=True)
class Control:
    """One question about an image that we answer."""

    kind: Literal["choices"]  # of the tag, and of its results
    name: str  # `from_name` in results
    to_name: str  # name of the image tag
    choices: tuple[Choice, ...]
    options: ControlOptions
    answering: Answering = "single"
    required: bool = False
    conditions: tuple[Condition, ...] = ()  # all must hold for it to be shown

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the config; the class index of the model is the place in this tuple."""
        return tuple(choice.label for choice in self.choices)

    def facts(self) -> list[object]:
        """What of it decides how annotations are read, as JSON values."""
        return [
            self.kind,
            self.name,
            self.to_name,
            self.classes,
            self.options.as_json(),
            self.answering,
            self.required,
            [vars(condition) for condition in self.conditions],
        ]


def read_control(tag: Tag, image: str, options: ControlOptions, others: dict[str, Tag]) -> Control:
    """The control of a tag that has no `problem_of`."""
    return Control(
        "choices",
        tag.get("name"),
        image,
        tuple(choices_of(tag).values()),
        options,
        required=is_true(tag.get("required")),
        conditions=tuple(_condition(hider, others) for hider in tag.hiders if _hides(hider)),
    )


def problem_of(tag: Tag, others: dict[str, Tag]) -> str:
    """What keeps this tag from being served; empty when nothing does.

    Args:
        others: all tags with a name.
    """
    if tag.kind != "choices":
        return "is not served; <Choices> is."
    if tag.get("value").startswith("$"):
        return f"takes its choices from task data (value={tag.get('value')!r}); list them as <Choice> tags."
    if tag.get("choice").lower() == "multiple":
        return 'has choice="multiple"; choice="single" is served.'
    if is_true(tag.get("allownested")):
        return 'has allowNested="true", so answers are paths in a tree; list the choices flat, without it.'
    for hider in tag.hiders:
        parent = others.get(hider.get("whentagname"))
        if (
            _hides(hider)
            and hider.get("whentagname")
            and (parent is None or parent.kind not in ("choices", "taxonomy"))
        ):
            return (
                f"is shown only sometimes (visibleWhen={hider.get('visiblewhen')!r}), by the answer to "
                f"{hider.get('whentagname')!r}, which is no <Choices> of this config; show it with every image."
            )
    changing = [row for row in walk(tag.element) if row.kind == "choice" and _changes_by_task(row)]
    if changing:
        return (
            f"has <Choice value={changing[0].get('value')!r}>, whose answer differs from task to task; "
            "give it an alias."
        )
    count = len(choices_of(tag))
    if count < 2:
        return f"has {count or 'no'} usable <Choice>; at least two are needed to have something to learn."
    return ""


def choices_of(tag: Tag) -> dict[str, Choice]:
    """The selectable choices of a `Choices` by label; of two with one label the first, as in Label Studio."""
    rows = [row for row in walk(tag.element) if row.kind == "choice" and not row.choices]
    choices: dict[str, Choice] = {}
    for choice in (_choice(row) for row in rows):
        if choice is not None:
            choices.setdefault(choice.label, choice)
    return choices


def asks_about_regions(tag: Tag) -> bool:
    """Whether a question is one about regions of the image."""
    when = {hider.get("visiblewhen").lower() for hider in tag.hiders}
    return is_true(tag.get("perregion")) or "region-selected" in when


def _hides(hider: Tag) -> bool:
    # While no region is selected an image-level question is shown, which is the state an answer to it is given in.
    return hider.get("visiblewhen").lower() in ("choice-selected", "choice-unselected")


def _condition(hider: Tag, others: dict[str, Tag]) -> Condition:
    name = hider.get("whentagname")
    parent = others.get(name)
    words = names_in(hider.get("whenchoicevalue"))
    if parent is not None:  # the editor takes alias and value alike
        known = list(choices_of(parent).values())
        words = [next((c.label for c in known if word in (c.label, c.value)), word) for word in words]
    return Condition(name, tuple(words), hider.get("visiblewhen").lower() == "choice-selected")


def _choice(row: Tag) -> Choice | None:
    """The choice of a `<Choice>` tag; None when it has no answer, or one that differs from task to task."""
    alias, value = row.get("alias"), row.get("value")
    if not (alias or value) or _changes_by_task(row):
        return None
    return Choice(alias or value, value, tuple(dict.fromkeys(names_in(row.get("predicted_values")))))


def _changes_by_task(row: Tag) -> bool:
    return not row.get("alias") and bool(VARIABLE.search(row.get("value")))
