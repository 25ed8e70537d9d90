"""The gate's comparison of two versions, head by head and put together example by example.

n  audit examples    H  questions    C  classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .answers import Output
from .gate import Comparison, Flags, compare
from .head_measures import as_array, distances
from .targets import HeadLabels, HeadSpec, Target

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measured:
    """One head of one version on n audit examples."""

    known: Flags  # [n], whether the answer is known and the example can be predicted
    right: Flags  # [n]
    distance: NDArray[np.float64]  # [n] in [0, 2], of what is stated from the truth


def same_question(spec: HeadSpec, among: Sequence[HeadSpec], *, same_answers: bool = False) -> int | None:
    """Place of the head that is asked the same; a name that only one of them has must belong to the only one.

    Args:
        same_answers: the classes must be the same too.
    """
    for place, other in enumerate(among):
        named = spec.name == other.name or (len(among) == 1 and not (spec.name and other.name))
        if named and spec.kind == other.kind and (not same_answers or spec.answers_as(other)):
            return place
    return None


def measure_answers(output: Output, labels: HeadLabels, ids: Ids, embedded: Flags) -> Measured:
    """What a head makes of its audit answers; `output` is of the embedded ones of the n ids, [n] in `embedded`.

    The classes of the head and those of the answers may differ.
    """
    known = np.array([example in labels.audit for example in ids.tolist()], bool)
    right, distance = np.zeros(len(ids), bool), np.zeros(len(ids))
    targets = [_moved(labels.audit.get(example), labels.spec, output.spec) for example in ids[embedded].tolist()]
    right[embedded], distance[embedded] = distances(output, as_array(output.spec, targets))
    return Measured(known & embedded, right, distance)


def _moved(target: Target | None, spec: HeadSpec, to: HeadSpec) -> Target:
    """A target in the classes of another head; what that does not know, or nobody does, as some target of its kind."""
    if to.kind == "number":
        return 0.0 if target is None else target
    place = {name: index for index, name in enumerate(to.classes)}
    if to.kind == "multiple":
        return tuple(place[name] for name in (() if target is None else spec.said(target)) if name in place)
    return -1 if target is None else place.get(spec.said(target), -1)


def compare_sides(
    names: Sequence[str], candidate: Sequence[Measured | None], live: Sequence[Measured | None]
) -> Comparison:
    """Paired by example: whether all of its answers are right, and the mean distance. A question that one side is not
    asked, and an answer that it cannot give, does not count. `names`: of the questions."""
    both = [(n, c, v) for n, c, v in zip(names, candidate, live, strict=True) if c is not None and v is not None]
    pairs = [(c, v) for _, c, v in both]
    if not pairs:
        nothing = np.empty(0, bool)
        return compare(nothing, nothing)
    known = np.stack([c.known & v.known for c, v in pairs])  # [H, n]
    rows = known.any(axis=0)
    columns = []
    for side in (0, 1):
        wrong = np.stack([~pair[side].right for pair in pairs]) & known
        distance = np.stack([pair[side].distance for pair in pairs]) * known
        columns.append((~np.any(wrong, axis=0)[rows], (distance.sum(axis=0) / np.maximum(known.sum(axis=0), 1))[rows]))
    compared = compare(columns[0][0], columns[1][0], columns[0][1], columns[1][1])
    if len(both) == 1:
        return compared
    alone = (
        (name, int((c.right & ~v.right & k).sum()), int((v.right & ~c.right & k).sum()))
        for (name, c, v), k in zip(both, known, strict=True)
    )
    return replace(compared, questions=tuple(alone))
