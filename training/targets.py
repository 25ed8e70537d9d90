"""What a head is asked about an example, and what is known of the answer. Values only; imports no network.

single    one of several classes                target: its index
multiple  any number of classes, or none        target: their indices, rising
ordered   one of several classes with an order  target: its index
number    a number between two bounds           target: itself
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Kind = Literal["single", "multiple", "ordered", "number"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Target = int | float | tuple[int, ...]


@dataclass(frozen=True)
class HeadSpec:
    """One question; two equal ones may share weights and labels."""

    name: str = ""  # of the control; "" where a project asks one question and nobody gave it a name
    kind: Kind = "single"
    classes: tuple[str, ...] = ()  # empty for a number
    low: float | None = None  # of a number; None: what was answered tells
    high: float | None = None
    step: float | None = None  # between two numbers that can be answered, counted from `low` or 0; None: any can
    inputs: tuple[str, ...] = ()  # facts beside the picture that the answer may depend on, by name

    def record(self) -> dict[str, Any]:
        """As JSON values, without what is as in the first releases, whose versions hold one nameless single head."""
        found: dict[str, Any] = {"classes": list(self.classes)}
        if self.name:
            found["name"] = self.name
        if self.kind != "single":
            found["kind"] = self.kind
        if self.inputs:
            found["inputs"] = list(self.inputs)
        limits = {"low": self.low, "high": self.high, "step": self.step}
        return found | {name: limit for name, limit in limits.items() if limit is not None}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> HeadSpec:
        """From what `record` gave; other keys are left alone."""
        return cls(
            record.get("name", ""),
            record.get("kind", "single"),
            tuple(record["classes"]),
            record.get("low"),
            record.get("high"),
            record.get("step"),
            tuple(record.get("inputs", ())),
        )

    def answers_as(self, other: HeadSpec) -> bool:
        """Whether answers to the other question are answers to this one: all is alike, where both have a name that
        too."""
        named = self.name == other.name or not (self.name and other.name)
        return named and replace(self, name="") == replace(other, name="")

    def valid(self, target: Target) -> bool:
        """Whether a target can be an answer to this question."""
        if self.kind == "number":
            return isinstance(target, float) and math.isfinite(target)
        places = target if self.kind == "multiple" else (target,)
        return isinstance(places, tuple) and all(
            isinstance(place, int) and 0 <= place < len(self.classes) for place in places
        )

    def said(self, target: Target) -> Any:
        """A target in names, as JSON values: it means the same whatever the order of the classes."""
        if isinstance(target, tuple):
            return [self.classes[place] for place in target]
        return target if isinstance(target, float) else self.classes[target]

    def from_json(self, value: Any) -> Target:
        """A target from JSON, where tuples come back as lists."""
        if self.kind == "multiple":
            return tuple(int(place) for place in value)
        return float(value) if self.kind == "number" else int(value)


@dataclass(frozen=True)
class HeadLabels:
    """What is known of one question; an example that is in neither is not answered, which says nothing about it."""

    spec: HeadSpec
    train: Mapping[int, Target]  # example id -> target, to learn from
    audit: Mapping[int, Target]  # to measure with
    weights: Mapping[int, float] | None = None  # of the examples learnt from; None: each counts 1
