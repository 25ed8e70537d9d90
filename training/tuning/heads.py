"""What one network is asked at the same time: one head per question, answers that may be missing.

Axes:
    n  examples        C  classes of a head        W  numbers that hold an answer: C, or 1 for a number
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

Kind = Literal["single", "multiple", "ordinal", "number"]
_KINDS = ("single", "multiple", "ordinal", "number")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HeadSpec:
    """One question about a picture."""

    name: str
    kind: Kind  # one of the classes; any of them; one of them, which have an order; a number
    classes: tuple[str, ...] = ()  # in order; () for a number
    weight: float = 1.0  # of its loss beside other heads
    inputs: tuple[str, ...] = ()  # names of the extra inputs that condition this head

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise DataError(f"head {self.name!r}: unknown kind {self.kind!r}; known: {', '.join(_KINDS)}")
        fewest = {"single": 2, "ordinal": 2, "multiple": 1, "number": 0}[self.kind]
        if len(self.classes) < fewest or (self.kind == "number" and self.classes):
            wanted = "no classes" if self.kind == "number" else f"at least {fewest} classes"
            raise DataError(f"head {self.name!r} of kind {self.kind!r} wants {wanted}, got {len(self.classes)}")
        if not self.weight > 0:
            raise DataError(f"head {self.name!r}: the weight must be positive, got {self.weight}")

    @property
    def width(self) -> int:
        """W, numbers that hold one answer."""
        return 1 if self.kind == "number" else len(self.classes)


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures by id, with what is known about them."""

    ids: NDArray[np.int64]  # [n], distinct
    # By head: [n] class index, -1 for no answer (single, ordinal); [n, C] of 0 and 1, NaN for no answer (multiple);
    # [n], NaN for no answer (number).
    answers: Mapping[str, NDArray[np.generic]]
    inputs: Mapping[str, Floats]  # by name: [n, E] encoded, NaN for a row without a value
    groups: NDArray[np.int64] | None = None  # [n]; one group (a lesion, near-duplicates) is neither split nor mixed
    weights: Floats | None = None  # [n], of each example's loss

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.intp]) -> Examples:
        """The examples of some rows, in that order."""
        return Examples(
            self.ids[rows],
            {name: values[rows] for name, values in self.answers.items()},
            {name: values[rows] for name, values in self.inputs.items()},
            None if self.groups is None else self.groups[rows],
            None if self.weights is None else self.weights[rows],
        )


@dataclass(frozen=True, eq=False)
class Targets:
    """Answers of one head as the loss takes them."""

    values: Floats  # [n, W]: one-hot, 0/1 each, or the number; 0 where there is no answer
    answered: NDArray[np.bool_]  # [n]


def targets_of(head: HeadSpec, examples: Examples) -> Targets:
    """The answers of `examples` to `head`; a head that nobody answered may be left out of `answers`.

    Raises:
        DataError: of another shape, or a class that does not exist.
    """
    n = len(examples)
    given = examples.answers.get(head.name)
    if given is None:
        return Targets(np.zeros((n, head.width), np.float32), np.zeros(n, bool))
    shape = (n, head.width) if head.kind == "multiple" else (n,)
    if given.shape != shape:
        raise DataError(f"answers to {head.name!r} must have the shape {list(shape)}, got {list(given.shape)}")
    if head.kind in ("single", "ordinal"):
        index = given.astype(np.int64)
        if (index != given).any() or index.max(initial=-1) >= head.width or index.min(initial=-1) < -1:
            raise DataError(f"answers to {head.name!r} must be class indices below {head.width}, or -1 for none")
        values = np.zeros((n, head.width), np.float32)
        values[index >= 0, index[index >= 0]] = 1
        return Targets(values, index >= 0)
    values = given.astype(np.float32).reshape(n, head.width)
    answered = np.asarray(np.isfinite(values).all(axis=1))
    values[~answered] = 0
    if head.kind == "multiple" and not np.isin(values, (0, 1)).all():
        raise DataError(f"answers to {head.name!r} must be 0 or 1 for each class, or NaN for none")
    return Targets(values, answered)


def check_heads(heads: Sequence[HeadSpec], examples: Examples) -> None:
    """Refuse what cannot be trained on. Raises DataError with what to do."""
    names = [head.name for head in heads]
    if not heads or len(set(names)) < len(names):
        raise DataError(f"at least one head is needed and their names must differ, got {names}")
    n = len(examples)
    if len(np.unique(examples.ids)) < n:
        raise DataError("ids of examples must be distinct")
    for name in sorted({name for head in heads for name in head.inputs}):
        values = examples.inputs.get(name)
        if values is None or values.ndim != 2 or len(values) != n:
            came = "nothing" if values is None else f"the shape {list(values.shape)}"
            raise DataError(f"the extra input {name!r} must be an array [{n}, E], got {came}")
    for what, column in (("groups", examples.groups), ("weights", examples.weights)):
        if column is not None and column.shape != (n,):
            raise DataError(f"{what} must have the shape [{n}], got {list(column.shape)}")
    if not any(targets_of(head, examples).answered.any() for head in heads):
        raise DataError("no example has an answer to any head; label something first")
