"""Tags of a labelling config with the editor's view of them. Pure; the XML may be hostile.

What a tag sees of the tags around it is what decides when its question is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as Tree

_MAX_DEPTH = 100  # real configs stay below 15


class TooDeep(ValueError):
    """The sender nests tags without end."""

    def __init__(self) -> None:
        super().__init__(f"The labelling config nests tags more than {_MAX_DEPTH} deep.")


class Tag:
    """An element with the editor's view of names: case does not matter."""

    def __init__(self, element: Tree.Element, choices: tuple[Tag, ...], hiders: tuple[Tag, ...]) -> None:
        self.element = element
        self.kind = element.tag.lower()
        self.attributes = {name.lower(): value for name, value in element.attrib.items()}
        self.choices = choices  # Choice tags around this one, outermost first
        self.hiders = hiders  # this tag and those around it that have a visibleWhen

    def get(self, name: str) -> str:
        """Value of an attribute, by its name in lower case; "" without one."""
        return self.attributes.get(name, "")

    @property
    def shown(self) -> str:
        """For messages."""
        return f'<{self.element.tag} name="{self.get("name")}">'


def walk(element: Tree.Element) -> Iterator[Tag]:
    """All tags in document order.

    Raises:
        TooDeep.
    """
    stack: list[tuple[Tree.Element, int, tuple[Tag, ...], tuple[Tag, ...]]] = [(element, 0, (), ())]
    while stack:  # not recursive: depth is the sender's choice
        current, depth, choices, hiders = stack.pop()
        if depth > _MAX_DEPTH:
            raise TooDeep
        tag = Tag(current, choices, hiders)
        if tag.get("visiblewhen"):
            tag.hiders = hiders = (*hiders, tag)
        yield tag
        inner = (*choices, tag) if tag.kind == "choice" else choices
        stack.extend((child, depth + 1, inner, hiders) for child in reversed(current))


def names_in(text: str) -> list[str]:
    """The names of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
