"""The questions of a labelling config that we answer, each as one value. Pure.

How Label Studio 1.23.2 reads the same tags (its editor's source and `LabelInterface`):
- An answer on the wire is the choice's `alias` if it has one, else its `value`; `hint` and `html` are looks.
- A `Choice` inside a `Choice` is neither shown nor selectable, unless `allowNested="true"`; with that every
  answer becomes a path (a list in the list), which is refused here.
- An answer to a Taxonomy is a path: the words from the root to the choice. With `leafsOnly` a choice with choices
  inside cannot be chosen; `maxUsages="1"` allows one path.
- A question with `visibleWhen`, or inside a tag that has one, is not part of a result that hides it. Conditions look at
  results of Choices and Taxonomy; of a path the last step counts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from .config_tags import Tag, names_in, walk
from .control_options import ControlOptions, is_true

Kind = Literal["choices", "taxonomy", "rating", "number"]
Answering = Literal["single", "multiple", "ordered", "number"]
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
PATH_SEPARATOR = " / "  # between the words of a path where it is shown
_MOST_STARS = 100  # above, a Number is meant
VARIABLE = re.compile(r"\$[\w\[\].{}]+")  # what the editor replaces by task data


@dataclass(frozen=True)
class Choice:
    """One answer. `label` is the word on the wire (alias, else value), `value` what the annotator reads."""

    label: str
    value: str
    predicted_values: tuple[str, ...] = ()  # class names of a pretrained model that mean this label
    path: tuple[str, ...] = ()  # in a Taxonomy, from the root; `label` is its words joined

    @property
    def word(self) -> str:
        """What conditions of other questions look at."""
        return self.path[-1] if self.path else self.label


@dataclass(frozen=True)
class Condition:
    """A question is shown only where another one was answered in a certain way."""

    control: str  # name of the other; "": any
    labels: tuple[str, ...]  # one of them was chosen; empty: any was
    chosen: bool = True  # False: shown where that does not hold


@dataclass(frozen=True)
class Control:
    """One question about an image that we answer."""

    kind: Kind  # of the tag, and of its results
    name: str  # `from_name` in results
    to_name: str  # name of the image tag
    choices: tuple[Choice, ...]  # of a Rating its stars; empty for a Number
    options: ControlOptions
    answering: Answering = "single"
    required: bool = False
    conditions: tuple[Condition, ...] = ()  # all must hold for it to be shown
    low: float | None = None  # of a Number, as the annotator is held to
    high: float | None = None
    step: float | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the config; the class index of the model is the place in this tuple."""
        return tuple(choice.label for choice in self.choices)

    @property
    def empty_means_none(self) -> bool:
        """Whether an annotation that leaves the question open says that nothing applies; where an answer must be given
        it was submitted before the question was asked."""
        return self.answering == "multiple" and not self.required

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
            [self.low, self.high, self.step],
        ]


def read_control(tag: Tag, image: str, options: ControlOptions, others: dict[str, Tag]) -> Control:
    """The control of a tag that has no `problem_of`."""
    low, high, step = (
        (_number(tag.get(name)) for name in ("min", "max", "step")) if tag.kind == "number" else [None] * 3
    )
    return Control(
        _KINDS[tag.kind],
        tag.get("name"),
        image,
        tuple(choices_of(tag).values()),
        options,
        _answering(tag),
        is_true(tag.get("required")),
        tuple(_condition(hider, others) for hider in tag.hiders if _hides(hider)),
        low,
        high,
        step,
    )


def _answering(tag: Tag) -> Answering:
    if tag.kind == "rating":
        return "ordered"
    if tag.kind == "number":
        return "number"
    if tag.kind == "taxonomy":
        return "single" if tag.get("maxusages").strip() == "1" else "multiple"
    return "multiple" if tag.get("choice").lower() == "multiple" else "single"


def problem_of(tag: Tag, others: dict[str, Tag]) -> str:
    """What keeps this tag from being served; empty when nothing does.

    Args:
        others: all tags with a name.
    """
    if tag.kind not in _KINDS:
        return "is not served; <Choices>, <Taxonomy>, <Rating> and <Number> are."
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
    if tag.kind == "number":
        return _number_problem(tag)
    if tag.kind == "rating":
        wanted = f"a whole number from 2 to {_MOST_STARS} is wanted."
        return "" if _stars(tag) else f"has maxRating={tag.get('maxrating')!r}; {wanted}"
    return _choices_problem(tag)


def _number_problem(tag: Tag) -> str:
    values: dict[str, float | None] = {}
    for name in ("min", "max", "step"):
        values[name] = _number(tag.get(name))
        if tag.get(name) and values[name] is None:
            return f"has {name}={tag.get(name)!r}, which is no number."
    low, high, step = values["min"], values["max"], values["step"]
    if low is not None and high is not None and low >= high:
        return f"has min={low:g} and max={high:g}; the first must be less."
    return f"has step={step:g}; it must be above 0." if step is not None and step <= 0 else ""


def _choices_problem(tag: Tag) -> str:
    if tag.get("value").startswith("$"):
        return f"takes its choices from task data (value={tag.get('value')!r}); list them as <Choice> tags."
    if tag.get("apiurl"):
        return f"takes its choices from {tag.get('apiurl')!r}; list them as <Choice> tags."
    if is_true(tag.get("allownested")):
        return 'has allowNested="true", so answers are paths in a tree; list the choices flat, without it.'
    changing = [row for row in walk(tag.element) if row.kind == "choice" and _changes_by_task(row)]
    if changing:
        return (
            f"has <Choice value={changing[0].get('value')!r}>, whose answer differs from task to task; "
            "give it an alias."
        )
    count = len(choices_of(tag))
    if count < (1 if _answering(tag) == "multiple" else 2):
        return f"has {count or 'no'} usable <Choice>; at least two are needed to have something to learn."
    return ""


def _stars(tag: Tag) -> int:
    """How many a Rating has; 0 where that is nothing to learn."""
    text = tag.get("maxrating").strip() or "5"
    return int(text) if re.fullmatch("[0-9]{1,3}", text) and 2 <= int(text) <= _MOST_STARS else 0


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def choices_of(tag: Tag) -> dict[str, Choice]:
    """The answers of a tag by label; of two with one label the first, as in Label Studio."""
    if tag.kind == "rating":
        return {star: Choice(star, star) for star in (str(number) for number in range(1, _stars(tag) + 1))}
    if tag.kind == "taxonomy":
        return _paths_of(tag)
    rows = [row for row in walk(tag.element) if row.kind == "choice" and not row.choices]
    choices: dict[str, Choice] = {}
    for choice in (_choice(row) for row in rows):
        if choice is not None:
            choices.setdefault(choice.label, choice)
    return choices


def _paths_of(tag: Tag) -> dict[str, Choice]:
    """The paths of a Taxonomy that can be chosen."""
    found: dict[str, Choice] = {}
    for row in walk(tag.element):
        own = _choice(row) if row.kind == "choice" else None
        if own is None or (
            is_true(tag.get("leafsonly")) and any(child.tag.lower() == "choice" for child in row.element)
        ):
            continue
        path = (*(around.get("alias") or around.get("value") for around in row.choices), own.label)
        label = PATH_SEPARATOR.join(path)
        found.setdefault(label, Choice(label, own.value, own.predicted_values, path))
    return found


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
        words = [next((c.word for c in known if word in (c.word, c.value)), word) for word in words]
    return Condition(name, tuple(words), hider.get("visiblewhen").lower() == "choice-selected")


def _choice(row: Tag) -> Choice | None:
    """The choice of a `<Choice>` tag; None when it has no answer, or one that differs from task to task."""
    alias, value = row.get("alias"), row.get("value")
    if not (alias or value) or _changes_by_task(row):
        return None
    return Choice(alias or value, value, tuple(dict.fromkeys(names_in(row.get("predicted_values")))))


def _changes_by_task(row: Tag) -> bool:
    return not row.get("alias") and bool(VARIABLE.search(row.get("value")))
