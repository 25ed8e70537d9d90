"""What heads say of examples: the answer, how sure it is, how uncertain. Pure numpy: the web process predicts too.

n  examples    C  classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear import Floats, Head
from .targets import HeadSpec, Target
from .version_values import StoredVersion

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """The answers of one head to examples, in the order asked for."""

    spec: HeadSpec
    answer: NDArray[Any]  # [n] int32, index in the head's classes, -1 for none
    confidence: NDArray[np.float32]  # [n], calibrated chance that the answer is right; 0 where not known

    def target(self, row: int) -> Target | None:
        """The answer of a row, None where there is none."""
        answer = int(self.answer[row])
        return None if answer < 0 else answer

    def take(self, rows: Ids) -> HeadAnswers:
        """Some rows, in the order given."""
        return HeadAnswers(self.spec, self.answer[rows], self.confidence[rows])

    def scattered(self, places: Ids, n: int) -> HeadAnswers:
        """[n] answers, these at `places`, none elsewhere."""
        answer = np.full(n, -1, self.answer.dtype)
        confidence = np.zeros(n, np.float32)
        answer[places], confidence[places] = self.answer, self.confidence
        return HeadAnswers(self.spec, answer, confidence)


@dataclass(frozen=True, eq=False)
class Output:
    """What one head says of n examples."""

    spec: HeadSpec
    log_probabilities: Floats  # [n, C], calibrated

    @classmethod
    def of(cls, spec: HeadSpec, head: Head, logits: Floats) -> Output:
        """From its columns [n, C] before calibration."""
        return cls(spec, head.log_probabilities(logits))

    def answers(self) -> HeadAnswers:
        """The likeliest class of each example."""
        best = self.log_probabilities.max(axis=1)
        return HeadAnswers(self.spec, self.log_probabilities.argmax(axis=1).astype(np.int32), np.exp(best))

    def uncertainty(self) -> Floats:
        """[n] in [0, 1]: one minus the gap between the two likeliest classes; 0 where there is one class."""
        if self.log_probabilities.shape[1] < 2:
            return np.zeros(len(self.log_probabilities), np.float32)
        top = np.exp(np.partition(self.log_probabilities, -2, axis=1)[:, -2:])
        uncertainty: Floats = 1 - (top[:, 1] - top[:, 0])
        return uncertainty

    def chance_of(self, classes: tuple[int, ...]) -> Floats:
        """[n] probability that the answer is one of these classes."""
        chance: Floats = np.exp(self.log_probabilities[:, list(classes)]).sum(axis=1)
        return chance


def outputs_of(stored: StoredVersion, logits: Floats) -> list[Output]:
    """[n, all columns] of `StoredVersion.joint` -> what each head says."""
    parts = stored.split(logits)
    return [Output.of(h.info.spec, h.head, part) for h, part in zip(stored.heads, parts, strict=True)]
