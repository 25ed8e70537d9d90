"""The fitted classifier: two arrays and a temperature. Pure numpy, so that the web process can predict.

n  examples    D  embedding width    C  classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def unit_rows(features: NDArray[np.floating]) -> Floats:
    """[n, D] -> [n, D] float32 rows of length one; a row of zeros stays zero."""
    rows = features.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    rows /= np.maximum(norms, 1e-12)[:, None]
    return rows


_Array = TypeVar("_Array", NDArray[np.float32], NDArray[np.float64])


def log_softmax(logits: _Array) -> _Array:
    """[..., C] -> [..., C] log-probabilities. SciPy's has more overhead per call, and a fit makes thousands."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


@dataclass(frozen=True, eq=False)
class Head:
    """Linear classifier on unit embeddings with its calibration. Values only; safe to share between threads."""

    weight: Floats  # [D, C]
    bias: Floats  # [C]
    temperature: float

    @property
    def classes(self) -> int:
        """C."""
        return len(self.bias)

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """[n, D] raw embeddings -> [n, C], before the temperature."""
        logits: Floats = unit_rows(features) @ self.weight
        logits += self.bias
        return logits

    def log_probabilities(self, logits: Floats) -> Floats:
        """[n, C] logits -> [n, C] calibrated log-probabilities."""
        return log_softmax(logits / np.float32(self.temperature))

    def probabilities(self, features: NDArray[np.floating]) -> Floats:
        """[n, D] raw embeddings -> [n, C] calibrated probabilities; rows sum to one."""
        probabilities: Floats = np.exp(self.log_probabilities(self.logits(features)))
        return probabilities
