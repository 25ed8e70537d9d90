"""What heads say of examples: the answer, how sure it is, how uncertain. Pure numpy: the web process predicts too.

n  examples    C  classes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .linear import Floats, Head
from .targets import HeadSpec, Target
from .version_values import StoredVersion

Ids = NDArray[np.int64]

TOLERANCE = 0.05  # of the range of a number: an answer that is off by no more counts as right
_LEAST = np.float32(1e-6)  # confidence of an answer; 0 says that there is none


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """The answers of one head to examples, in the order asked for."""

    spec: HeadSpec
    answer: NDArray[Any]  # by kind: [n] int32 class index, [n, C] bool labels that apply, [n] float32 number
    confidence: NDArray[np.float32]  # [n], calibrated chance that the answer is right; 0 where there is none

    def target(self, row: int) -> Target | None:
        """The answer of a row, None where there is none."""
        if not self.confidence[row] > 0:
            return None
        if self.spec.kind == "multiple":
            return tuple(np.flatnonzero(self.answer[row]).tolist())
        return float(self.answer[row]) if self.spec.kind == "number" else int(self.answer[row])

    def take(self, rows: Ids) -> HeadAnswers:
        """Some rows, in the order given."""
        return HeadAnswers(self.spec, self.answer[rows], self.confidence[rows])

    def scattered(self, places: Ids, n: int) -> HeadAnswers:
        """[n] answers, these at `places`, none elsewhere."""
        nothing = -1 if self.spec.kind in ("single", "ordered") else 0
        answer = np.full((n, *self.answer.shape[1:]), nothing, self.answer.dtype)
        confidence = np.zeros(n, np.float32)
        answer[places], confidence[places] = self.answer, self.confidence
        return HeadAnswers(self.spec, answer, confidence)


class Output(Protocol):
    """What one head says of n examples."""

    @property
    def spec(self) -> HeadSpec: ...

    def answers(self) -> HeadAnswers:
        """The best answer to each."""

    def uncertainty(self) -> Floats:
        """[n] in [0, 1], growing with uncertainty."""

    def chance_of(self, classes: tuple[int, ...]) -> Floats:
        """[n] probability that the answer is, or holds, one of these classes; 1 for a number."""


@dataclass(frozen=True, eq=False)
class OneOf:
    """A distribution over classes; ordered ones or not."""

    spec: HeadSpec
    log_probabilities: Floats  # [n, C], calibrated

    def answers(self) -> HeadAnswers:
        """The likeliest class; of ordered ones the median, which is off by the least on average."""
        if self.spec.kind == "ordered":
            probabilities = np.exp(self.log_probabilities)
            best = (np.cumsum(probabilities, axis=1) < 0.5).sum(axis=1)
            best = np.minimum(best, len(self.spec.classes) - 1)
            confidence = probabilities[np.arange(len(best)), best]
        else:
            best = self.log_probabilities.argmax(axis=1)
            confidence = np.exp(self.log_probabilities.max(axis=1))
        return HeadAnswers(self.spec, best.astype(np.int32), np.maximum(confidence, _LEAST))

    def uncertainty(self) -> Floats:
        """One minus the gap between the two likeliest classes; of ordered ones how far the answer is off, expected, as
        a share of half their number; 0 where there is one class."""
        n, classes = self.log_probabilities.shape
        if classes < 2:
            return np.zeros(n, np.float32)
        if self.spec.kind == "ordered":
            off = np.abs(np.arange(classes)[None, :] - self.answers().answer[:, None])
            expected: Floats = (np.exp(self.log_probabilities) * off).sum(axis=1) * 2 / (classes - 1)
            return np.minimum(expected, 1)
        top = np.exp(np.partition(self.log_probabilities, -2, axis=1)[:, -2:])
        uncertainty: Floats = 1 - (top[:, 1] - top[:, 0])
        return uncertainty

    def chance_of(self, classes: tuple[int, ...]) -> Floats:
        """As `Output`."""
        chance: Floats = np.exp(self.log_probabilities[:, list(classes)]).sum(axis=1)
        return chance


@dataclass(frozen=True, eq=False)
class AnyOf:
    """A probability of each label by itself."""

    spec: HeadSpec
    probabilities: Floats  # [n, C], calibrated

    def answers(self) -> HeadAnswers:
        """The labels that are likelier than not; sure are as many as all of them, taken as independent."""
        sure = np.maximum(self.probabilities, 1 - self.probabilities).prod(axis=1)
        return HeadAnswers(self.spec, self.probabilities > 0.5, np.maximum(sure, _LEAST).astype(np.float32))

    def uncertainty(self) -> Floats:
        """Mean over the labels of one minus the gap between on and off."""
        gap = np.abs(2 * self.probabilities - 1)
        uncertainty: Floats = 1 - gap.mean(axis=1)
        return uncertainty

    def chance_of(self, classes: tuple[int, ...]) -> Floats:
        """As `Output`, labels taken as independent."""
        chance: Floats = 1 - (1 - self.probabilities[:, list(classes)]).prod(axis=1)
        return chance


@dataclass(frozen=True, eq=False)
class Amount:
    """A normal distribution over numbers."""

    spec: HeadSpec
    mean: NDArray[np.float64]  # [n]
    sd: NDArray[np.float64]  # [n], of an answer, its noise included
    low: float  # of the range that answers lie in
    high: float

    @property
    def tolerance(self) -> float:
        """How far an answer that counts as right may be off."""
        return max(TOLERANCE * (self.high - self.low), (self.spec.step or 0.0) / 2)

    def answers(self) -> HeadAnswers:
        """The mean, moved into the range and to the nearest step."""
        best = np.clip(self.mean, self.low, self.high)
        if self.spec.step:
            origin = self.spec.low or 0.0
            best = origin + np.round((best - origin) / self.spec.step) * self.spec.step
            best = np.where(best > self.high + 1e-9, best - self.spec.step, best)
        below, above = (normal_cdf((best + side * self.tolerance - self.mean) / self.sd) for side in (-1, 1))
        return HeadAnswers(self.spec, best.astype(np.float32), np.maximum(above - below, _LEAST).astype(np.float32))

    def uncertainty(self) -> Floats:
        """Standard deviation as a share of the range."""
        share: Floats = np.minimum(self.sd / (self.high - self.low), 1).astype(np.float32)
        return share

    def chance_of(self, classes: tuple[int, ...]) -> Floats:
        """As `Output`: no question depends on a number."""
        return np.ones(len(self.mean), np.float32)


def normal_cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] -> [n]; SciPy's would load SciPy in the web process."""
    half: NDArray[np.float64] = np.asarray(_erf(np.asarray(x) / math.sqrt(2)), np.float64)
    return 0.5 * (1 + half)


_erf = np.frompyfunc(math.erf, 1, 1)


def output_of(spec: HeadSpec, head: Head, columns: Floats, numbers: Mapping[str, float]) -> Output:
    """What a head says by its columns [n, K] before calibration.

    Args:
        numbers: what is kept with the head.
    """
    if spec.kind == "multiple":
        odds = columns / np.float32(head.temperature)
        return AnyOf(spec, np.exp(-np.logaddexp(np.float32(0), -odds)))
    if spec.kind == "number":
        low, high = numbers["low"], numbers["high"]
        exact = columns.astype(np.float64)
        # By the columns that `number_head` writes: the mean, and the growth of the variance in two parts.
        grown = np.maximum(1 + exact[:, 1] - (exact[:, 2:] ** 2).sum(axis=1), 1e-3)
        width = high - low
        return Amount(spec, low + width * exact[:, 0], width * head.temperature * np.sqrt(grown), low, high)
    return OneOf(spec, head.log_probabilities(columns))


def outputs_of(stored: StoredVersion, columns: Floats, encoded: Sequence[Floats]) -> list[Output]:
    """What each head says.

    Args:
        columns: [n, all columns] of `StoredVersion.joint`.
        encoded: facts of the same examples for each head, [n, E].
    """
    parts = zip(stored.heads, stored.split(columns), encoded, strict=True)
    return [output_of(h.info.spec, h.head, h.with_inputs(part, facts), h.info.numbers) for h, part, facts in parts]
