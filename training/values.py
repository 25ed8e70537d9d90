"""The values that cross the narrow door: numpy and plain Python, frozen.

n  examples    C  classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """One item to label."""

    example_id: int
    uri: str


@dataclass(frozen=True)
class EmbedReport:
    """What one call of `ProjectModel.embed` did."""

    embedded: int  # by this call
    skipped: int  # known before, done by another process, or not reached
    unreadable: dict[int, str]  # example id -> reason; found by this call
    seconds: float


@dataclass(frozen=True)
class LabelledSet:
    """Labels by example."""

    labels: dict[int, int]  # example id -> index in `classes`
    classes: tuple[str, ...]
    weights: dict[int, float] | None = None  # None: every example counts 1


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of examples, in the order asked for."""

    example_ids: NDArray[np.int64]  # [n]
    probabilities: NDArray[np.float32]  # [n, C], calibrated; 0 where not known
    known: NDArray[np.bool_]  # [n], whether the example is embedded


@dataclass(frozen=True, eq=False)
class PossibleLabels:
    """Conformal sets of classes, in the order asked for."""

    example_ids: NDArray[np.int64]  # [n]
    sets: NDArray[np.bool_]  # [n, C], whether a class is in the set, at least one is; all False where not known
    known: NDArray[np.bool_]  # [n], whether the example is embedded
    misses: float  # share of sets that may lack the true class, over examples drawn as the audit slice was
    labels: int  # audit labels that the thresholds come from
