"""Label Studio's labelling config (XML) read into the few facts that we serve. Pure; the XML may be hostile.

Served: every `Choices`, `Taxonomy`, `Rating` and `Number` about one `Image`, see `controls`. What is not served is
refused with XML that would work; `model_skip="true"` on a control takes it out of our sight. Tag and attribute names
are not case-sensitive in the editor, nor here.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from xml.etree import ElementTree as Tree
from xml.sax.saxutils import quoteattr

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from .config_tags import Tag, TooDeep, names_in, walk
from .control_options import PREFIX, ControlOptions, is_true, read_options
from .controls import VARIABLE, Choice, Control, asks_about_regions, choices_of, problem_of, read_control
from .errors import PayloadTooLarge, UnsupportedLabelConfig

__all__ = ["MAX_CONFIG_BYTES", "Choice", "Control", "LabelingConfig", "example_config", "parse"]

MAX_CONFIG_BYTES = 2**20  # a config of 10,000 choices has about half of this
_MAX_EXAMPLE_CHARS = 3000  # a longer config is not echoed in a message; a small one is shown instead

# Controls that answer a question about the whole image.
_IMAGE_LEVEL = {"choices", "taxonomy", "rating", "number", "pairwise", "ranker"}


@dataclass(frozen=True)
class LabelingConfig:
    """What we serve of a labelling config."""

    controls: tuple[Control, ...]  # at least one, in the order of the config
    image_key: str  # task data key of the image's address, e.g. "image" for value="$image"
    notes: tuple[str, ...]  # sentences for the project manager: what in the config is not used, and why
    digest: str  # 16 hex digits; changes only with what we serve, not with layout, hints or styles

    @property
    def control(self) -> Control:
        """The first one."""
        return self.controls[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the first control."""
        return self.control.classes

    @property
    def options(self) -> ControlOptions:
        """Of the project: where several controls give one, that of the first."""
        return functools.reduce(lambda first, other: first.or_else(other), (c.options for c in self.controls))


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


class _Reader:
    """One pass over one config; methods in the order in which decisions fall."""

    def __init__(self, root: Tree.Element) -> None:
        self.root = root
        try:
            self.tags = list(walk(root))
        except TooDeep as error:
            raise UnsupportedLabelConfig(str(error), example_config()) from None
        self.named = {tag.get("name"): tag for tag in reversed(self.tags) if tag.get("name")}  # of two the first
        self.notes: list[str] = []

    def read(self) -> LabelingConfig:
        self._refuse_repeaters()
        images = {tag.get("name"): tag for tag in self.tags if tag.kind == "image" and tag.get("name")}
        candidates = [tag for tag in self.tags if self._is_candidate(tag, images)]
        if not candidates:
            why = " ".join(self.notes) or "It has no <Choices> (nor <Taxonomy>, <Rating>, <Number>) on an <Image>."
            raise UnsupportedLabelConfig(
                f"Nothing in the labelling config can be predicted. {why}", self._example(images)
            )
        first = next((tag for tag in candidates if not problem_of(tag, self.named)), candidates[0])
        image = self._image_of(first, images)
        key = self._image_key(image)
        self._refuse_problems(candidates, first, image, key)
        for tag in candidates:
            self._note_hidden(tag)
        controls = tuple(read_control(tag, image.get("name"), self._options(tag), self.named) for tag in candidates)
        return LabelingConfig(controls, key, tuple(self.notes), _digest(controls, key))

    def _refuse_repeaters(self) -> None:
        if any(tag.kind == "repeater" for tag in self.tags):
            raise UnsupportedLabelConfig(
                "<Repeater> shows a changing number of images in one task; one image per task is served. "
                "Import each image as a task of its own.",
                example_config(),
            )

    def _is_candidate(self, tag: Tag, images: dict[str, Tag]) -> bool:
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
            self.notes.append(f"{tag.shown} is left to annotators: answers about the whole image are predicted.")
            return False
        if asks_about_regions(tag):
            self.notes.append(f"{tag.shown} is left to annotators: it asks about regions, not the image.")
            return False
        if not set(names_in(tag.get("toname"))) & set(images):
            self.notes.append(f"{tag.shown} is not used: toName={tag.get('toname')!r} is not an <Image>.")
            return False
        return True

    def _refuse_problems(self, candidates: list[Tag], first: Tag, image: Tag, key: str) -> None:
        """Refuse a config with a question that cannot be served; alone, or beside others that can."""
        if problem := problem_of(first, self.named):
            choices = choices_of(first)
            known = tuple(choices) if len(choices) > 1 else ("cat", "dog")
            raise UnsupportedLabelConfig(
                f"{first.shown} {problem}", example_config(image.get("name"), key, first.get("name"), known)
            )
        names = [tag.get("name") for tag in candidates]
        problems = {}
        for place, tag in enumerate(candidates):
            problem = problem_of(tag, self.named)
            if not problem and tag.get("name") in names[:place]:
                problem = "has the name of another control; give it one of its own."
            if not problem and names_in(tag.get("toname")) != [image.get("name")]:
                problem = (
                    f"is not about the image {image.get('name')!r} alone, as {first.shown} is; one image is served."
                )
            if problem:
                problems[place] = f"{tag.shown} {problem}"
        if problems:
            raise UnsupportedLabelConfig(
                f'{" ".join(problems.values())} Or add model_skip="true" to what annotators shall answer without help.',
                self._with_skips([candidates[place] for place in problems]),
            )

    def _note_hidden(self, tag: Tag) -> None:
        """Note choices that nobody can choose."""
        hidden = [row for row in walk(tag.element) if row.kind == "choice" and row.choices]
        if hidden and tag.kind == "choices":
            self.notes.append(
                f"{tag.shown} has {len(hidden)} <Choice> inside others; Label Studio does not show them, "
                "so they are not used."
            )

    def _image_of(self, tag: Tag, images: dict[str, Tag]) -> Tag:
        targets = names_in(tag.get("toname"))
        if len(targets) != 1:
            raise UnsupportedLabelConfig(
                f"{tag.shown} belongs to several tags (toName={tag.get('toname')!r}); name one image.",
                self._example(images, tag),
            )
        return images[targets[0]]

    def _image_key(self, image: Tag) -> str:
        value = image.get("value")
        if image.get("valuelist") or not value:
            raise UnsupportedLabelConfig(
                f'{image.shown} shows a list of images or none; write value="$column" for one address.',
                example_config(image.get("name")),
            )
        if not VARIABLE.fullmatch(value):
            raise UnsupportedLabelConfig(
                f"{image.shown} has value={value!r}, which is not one variable. Put the whole address "
                'into the task data and write value="$column".',
                example_config(image.get("name")),
            )
        return value[1:]

    def _options(self, tag: Tag) -> ControlOptions:
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

    def _example(self, images: dict[str, Tag], tag: Tag | None = None) -> str:
        name = next(iter(images), "image")
        key = images[name].get("value").removeprefix("$") if images else "image"
        source = tag or next((t for t in self.tags if t.kind == "choices"), None)
        labels = tuple(choices_of(source)) if source else ()
        return example_config(
            name,
            key if VARIABLE.fullmatch("$" + key) else "image",
            (source.get("name") if source else "") or "label",
            labels if 1 < len(labels) <= 50 else ("cat", "dog"),
        )

    def _with_skips(self, others: list[Tag]) -> str:
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


def _digest(controls: tuple[Control, ...], key: str) -> str:
    facts = [key, *(control.facts() for control in controls)]
    return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()[:16]
