"""Label Studio's labelling config (XML) read into the few facts that we serve. Pure; the XML may be hostile.

Served today: one single-answer `Choices` on one `Image`. `LabelingConfig.controls` is a tuple all the same,
so that further controls become further `Control.kind`s. What is not served is refused with XML that would
work; `model_skip="true"` on a control takes it out of our sight.

How Label Studio 1.23.2 reads the same XML (its editor's source and `LabelInterface`):
- An answer on the wire is the choice's `alias` if it has one, else its `value`; `hint` and `html` are looks.
- A `Choice` inside a `Choice` is neither shown nor selectable, unless `allowNested="true"`; with that every
  answer becomes a path (a list in the list), which is refused here.
- Tag and attribute names are not case-sensitive in the editor.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from xml.etree import ElementTree as Tree
from xml.sax.saxutils import quoteattr

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from .control_options import PREFIX, ControlOptions, is_true, read_options
from .errors import PayloadTooLarge, UnsupportedLabelConfig

MAX_CONFIG_BYTES = 2**20  # a config of 10,000 choices has about half of this
_MAX_DEPTH = 100  # real configs stay below 15
_MAX_EXAMPLE_CHARS = 3000  # a longer config is not echoed in a message; a small one is shown instead
_VARIABLE = re.compile(r"\$[\w\[\].{}]+")  # what the editor replaces by task data

# Controls that answer a question about the whole image; only the first kind is served so far.
_IMAGE_LEVEL = {"choices", "taxonomy", "rating", "number", "pairwise", "ranker"}


@dataclass(frozen=True)
class Choice:
    """One answer. `label` is the word on the wire (alias, else value), `value` what the annotator reads."""

    label: str
    value: str
    predicted_values: tuple[str, ...] = ()  # class names of a pretrained model that mean this label


@dataclass(frozen=True)
class Control:
    """One question about an image that we answer."""

    kind: Literal["choices"]
    name: str  # `from_name` in results
    to_name: str  # name of the image tag
    choices: tuple[Choice, ...]
    options: ControlOptions

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the config; the class index of the model is the place in this tuple."""
        return tuple(choice.label for choice in self.choices)


@dataclass(frozen=True)
class LabelingConfig:
    """What we serve of a labelling config."""

    controls: tuple[Control, ...]  # exactly one today
    image_key: str  # task data key of the image's address, e.g. "image" for value="$image"
    notes: tuple[str, ...]  # sentences for the project manager: what in the config is not used, and why
    digest: str  # 16 hex digits; changes only with what we serve, not with layout, hints or styles

    @property
    def control(self) -> Control:
        """The one served control."""
        return self.controls[0]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.control.classes

    @property
    def options(self) -> ControlOptions:
        return self.control.options


@lru_cache(maxsize=32)  # Label Studio sends the config with each call, dozens of times an hour
def parse(xml: str) -> LabelingConfig:
    """The served part of a labelling config.

    Raises:
        UnsupportedLabelConfig: not XML, or nothing in it can be served; the message shows XML that works.
        PayloadTooLarge: more than `MAX_CONFIG_BYTES`.
    """
    size = len(xml.encode("utf-8", "surrogatepass"))
    if size > MAX_CONFIG_BYTES:
        raise PayloadTooLarge("a labelling config", MAX_CONFIG_BYTES, size)
    return _Reader(_root(xml)).read()


def example_config(
    image: str = "image",
    key: str = "image",
    control: str = "label",
    labels: tuple[str, ...] = ("cat", "dog"),
) -> str:
    """A labelling config that is served, in the words of the caller."""
    rows = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in labels)
    return (
        f"<View>\n  <Image name={quoteattr(image)} value={quoteattr('$' + key)}/>\n"
        f'  <Choices name={quoteattr(control)} toName={quoteattr(image)} choice="single">\n{rows}\n'
        "  </Choices>\n</View>"
    )


def _root(xml: str) -> Tree.Element:
    try:
        root = SafeTree.fromstring(xml, forbid_dtd=True)
    except DefusedXmlException:
        raise UnsupportedLabelConfig(
            "The labelling config declares a document type or entities; Label Studio refuses that too.",
            example_config(),
        ) from None
    except (Tree.ParseError, ValueError) as error:  # ValueError: lone surrogates, null bytes
        reason = f"is not well-formed XML: {error}." if xml.strip() else "is empty."
        raise UnsupportedLabelConfig(f"The labelling config {reason}", example_config()) from None
    return root


class _Tag:
    """An element with the editor's view of names: case does not matter."""

    def __init__(self, element: Tree.Element, choice_depth: int) -> None:
        self.element = element
        self.kind = element.tag.lower()
        self.attributes = {name.lower(): value for name, value in element.attrib.items()}
        self.choice_depth = choice_depth  # how many Choice tags are around this one

    def get(self, name: str) -> str:
        return self.attributes.get(name, "")

    @property
    def shown(self) -> str:
        return f'<{self.element.tag} name="{self.get("name")}">'


def _walk(element: Tree.Element) -> Iterator[_Tag]:
    """All tags in document order."""
    stack = [(element, 0, 0)]  # not recursive: depth is the sender's choice
    while stack:
        current, depth, choice_depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise UnsupportedLabelConfig(
                f"The labelling config nests tags more than {_MAX_DEPTH} deep.", example_config()
            )
        tag = _Tag(current, choice_depth)
        yield tag
        inner = choice_depth + (tag.kind == "choice")
        stack.extend((child, depth + 1, inner) for child in reversed(current))


class _Reader:
    """One pass over one config; methods in the order in which decisions fall."""

    def __init__(self, root: Tree.Element) -> None:
        self.root = root
        self.tags = list(_walk(root))
        self.notes: list[str] = []

    def read(self) -> LabelingConfig:
        self._refuse_repeaters()
        images = {tag.get("name"): tag for tag in self.tags if tag.kind == "image" and tag.get("name")}
        candidates = [tag for tag in self.tags if self._is_candidate(tag, images)]
        control_tag = self._the_one(candidates, images)
        image = self._image_of(control_tag, images)
        key = self._image_key(image)
        control = Control(
            "choices",
            control_tag.get("name"),
            image.get("name"),
            self._choices(control_tag, image, key),
            self._options(control_tag),
        )
        return LabelingConfig((control,), key, tuple(self.notes), _digest(control, key))

    def _refuse_repeaters(self) -> None:
        if any(tag.kind == "repeater" for tag in self.tags):
            raise UnsupportedLabelConfig(
                "<Repeater> shows a changing number of images in one task; one image per task is served. "
                "Import each image as a task of its own.",
                example_config(),
            )

    def _is_candidate(self, tag: _Tag, images: dict[str, _Tag]) -> bool:
        """Whether `tag` asks about a whole image and is meant for us; the notes say why others are not."""
        if not (tag.get("name") and tag.get("toname")) or tag.kind == "filter":
            if tag.kind in _IMAGE_LEVEL:
                missing = " and ".join(a for a in ("name", "toName") if not tag.get(a.lower()))
                self.notes.append(f"{tag.shown} is not used: it has no {missing}.")
            return False
        if is_true(tag.get("model_skip")):
            self.notes.append(f"{tag.shown} is left to annotators: model_skip is set.")
            return False
        if tag.kind not in _IMAGE_LEVEL:
            self.notes.append(f"{tag.shown} is left to annotators: only <Choices> are predicted.")
            return False
        if is_true(tag.get("perregion")) or tag.get("visiblewhen").lower() == "region-selected":
            self.notes.append(f"{tag.shown} is left to annotators: it asks about regions, not the image.")
            return False
        if not set(_split(tag.get("toname"))) & set(images):
            self.notes.append(f"{tag.shown} is not used: toName={tag.get('toname')!r} is not an <Image>.")
            return False
        return True

    def _the_one(self, candidates: list[_Tag], images: dict[str, _Tag]) -> _Tag:
        if not candidates:
            why = " ".join(self.notes) or "It has no <Choices> on an <Image>."
            raise UnsupportedLabelConfig(
                f"Nothing in the labelling config can be predicted. {why}", self._example(images)
            )
        served = [tag for tag in candidates if tag.kind == "choices"]
        if len(candidates) > 1:
            keep = served[0] if served else None
            others = [tag for tag in candidates if tag is not keep]
            raise UnsupportedLabelConfig(
                f"These controls ask about the image: {', '.join(tag.shown for tag in candidates)}. "
                'One single-choice <Choices> is served. Add model_skip="true" to those that annotators shall '
                "answer without help.",
                self._with_skips(others) if keep is not None else self._example(images),
            )
        if not served:
            raise UnsupportedLabelConfig(f"{candidates[0].shown} is not served; <Choices> is.", self._example(images))
        return served[0]

    def _image_of(self, tag: _Tag, images: dict[str, _Tag]) -> _Tag:
        targets = _split(tag.get("toname"))
        if len(targets) != 1:
            raise UnsupportedLabelConfig(
                f"{tag.shown} belongs to several tags (toName={tag.get('toname')!r}); name one image.",
                self._example(images, tag),
            )
        return images[targets[0]]

    def _image_key(self, image: _Tag) -> str:
        value = image.get("value")
        if image.get("valuelist") or not value:
            raise UnsupportedLabelConfig(
                f'{image.shown} shows a list of images or none; write value="$column" for one address.',
                example_config(image.get("name")),
            )
        if not _VARIABLE.fullmatch(value):
            raise UnsupportedLabelConfig(
                f"{image.shown} has value={value!r}, which is not one variable. Put the whole address "
                'into the task data and write value="$column".',
                example_config(image.get("name")),
            )
        return value[1:]

    def _choices(self, tag: _Tag, image: _Tag, key: str) -> tuple[Choice, ...]:
        choices = _choices_of(tag)
        known = tuple(choices) if len(choices) > 1 else ("cat", "dog")
        problem = _choices_problem(tag, len(choices))
        if problem:
            raise UnsupportedLabelConfig(
                f"{tag.shown} {problem}", example_config(image.get("name"), key, tag.get("name"), known)
            )
        hidden = [row for row in _walk(tag.element) if row.kind == "choice" and row.choice_depth > 0]
        if hidden:
            self.notes.append(
                f"{tag.shown} has {len(hidden)} <Choice> inside others; Label Studio does not show them, "
                "so they are not used."
            )
        return tuple(choices.values())

    def _options(self, tag: _Tag) -> ControlOptions:
        attributes = {name: value for name, value in tag.attributes.items() if name.startswith(PREFIX)}
        options, problems, unknown = read_options(attributes)
        if problems:
            mended = copy.deepcopy(self.root)
            for element in mended.iter():
                if element.attrib == tag.element.attrib and element.tag == tag.element.tag:
                    for name in [n for n in element.attrib if n.lower() in problems]:
                        del element.attrib[name]
            raise UnsupportedLabelConfig(f"{tag.shown}: {'; '.join(problems.values())}.", self._shown(mended))
        self.notes.extend(unknown)
        return options

    # -- examples, made of the user's own words where there are any

    def _example(self, images: dict[str, _Tag], tag: _Tag | None = None) -> str:
        name = next(iter(images), "image")
        key = images[name].get("value").removeprefix("$") if images else "image"
        source = tag or next((t for t in self.tags if t.kind == "choices"), None)
        labels = tuple(_choices_of(source)) if source else ()
        return example_config(
            name,
            key if _VARIABLE.fullmatch("$" + key) else "image",
            (source.get("name") if source else "") or "label",
            labels if 1 < len(labels) <= 50 else ("cat", "dog"),
        )

    def _with_skips(self, others: list[_Tag]) -> str:
        marked = [copy.copy(tag.element.attrib) for tag in others]
        for tag in others:
            tag.element.set("model_skip", "true")
        try:
            # The mended config must itself be served, or the user is sent round in circles.
            _Reader(self.root).read()
            return self._shown(self.root)
        except UnsupportedLabelConfig as error:
            return error.example
        finally:
            for tag, attributes in zip(others, marked, strict=True):
                tag.element.attrib.clear()
                tag.element.attrib.update(attributes)

    def _shown(self, root: Tree.Element) -> str:
        text = Tree.tostring(root, encoding="unicode")
        return text if len(text) <= _MAX_EXAMPLE_CHARS else example_config()


def _choices_of(tag: _Tag) -> dict[str, Choice]:
    """The selectable choices of a `Choices` by label; of two with one label the first, as in Label Studio."""
    rows = [row for row in _walk(tag.element) if row.kind == "choice" and row.choice_depth == 0]
    choices: dict[str, Choice] = {}
    for choice in (_choice(row) for row in rows):
        if choice is not None:
            choices.setdefault(choice.label, choice)
    return choices


def _choices_problem(tag: _Tag, count: int) -> str:
    """What keeps this `Choices` from being served; empty when nothing does."""
    if tag.get("value").startswith("$"):
        return f"takes its choices from task data (value={tag.get('value')!r}); list them as <Choice> tags."
    if tag.get("choice").lower() == "multiple":
        return 'has choice="multiple"; choice="single" is served.'
    if is_true(tag.get("allownested")):
        return 'has allowNested="true", so answers are paths in a tree; list the choices flat, without it.'
    if tag.get("visiblewhen"):
        return (
            f"is shown only sometimes (visibleWhen={tag.get('visiblewhen')!r}), so a missing answer means "
            "nothing; show it with every image."
        )
    changing = [row for row in _walk(tag.element) if row.kind == "choice" and _changes_by_task(row)]
    if changing:
        return (
            f"has <Choice value={changing[0].get('value')!r}>, whose answer differs from task to task; "
            "give it an alias."
        )
    if count < 2:
        return f"has {count or 'no'} usable <Choice>; at least two are needed to have something to learn."
    return ""


def _choice(row: _Tag) -> Choice | None:
    """The choice of a `<Choice>` tag; None when it has no answer, or one that differs from task to task."""
    alias, value = row.get("alias"), row.get("value")
    if not (alias or value) or _changes_by_task(row):
        return None
    predicted = tuple(dict.fromkeys(p.strip() for p in row.get("predicted_values").split(",") if p.strip()))
    return Choice(alias or value, value, predicted)


def _changes_by_task(row: _Tag) -> bool:
    return not row.get("alias") and bool(_VARIABLE.search(row.get("value")))


def _digest(control: Control, key: str) -> str:
    facts = [control.kind, control.name, control.to_name, key, control.classes, control.options.as_json()]
    return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()[:16]


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
