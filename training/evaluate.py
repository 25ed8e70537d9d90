"""What a version is worth on labels it has never seen: the audit slice, and a paired test of two versions.

n  audit examples    C  classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .quality import quality_metrics

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

WORSE_AT = 0.05  # one-sided level at which a candidate counts as worse


def audit_metrics(probabilities: Floats, labels: Ints, *, intervals: bool = True) -> dict[str, float | None]:
    """Metrics on held-out labels; every key is always there, None where nothing can be said.

    Args:
        probabilities: [n, C] calibrated, of examples that were never trained on.
        labels: [n], in [0, C).
        intervals: False leaves out those of `quality_metrics`.
    Returns:
        audit_n            n
        accuracy           with accuracy_low and accuracy_high, the 95 % Wilson interval
        balanced_accuracy  mean recall of the classes that occur
        nll                nats per example
        ece                expected calibration error, 15 bins; biased upwards for small n
        and the keys of `quality.quality_metrics`
    """
    from uncertainty.calibration import expected_calibration_error, negative_log_likelihood, wilson_interval

    y = np.asarray(labels, np.int64)
    n = len(y)
    metrics: dict[str, float | None] = {
        "audit_n": float(n),
        "accuracy": None,
        "accuracy_low": None,
        "accuracy_high": None,
        "balanced_accuracy": None,
        "nll": None,
        "ece": None,
    }
    if n:
        right = probabilities.argmax(axis=1) == y
        low, high = wilson_interval(int(right.sum()), n)
        recalls = [float(right[y == index].mean()) for index in np.unique(y)]
        metrics |= {
            "accuracy": float(right.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "balanced_accuracy": float(np.mean(recalls)),
            "nll": negative_log_likelihood(probabilities, y),
            "ece": expected_calibration_error(probabilities, y),
        }
    return metrics | quality_metrics(probabilities, y, intervals=intervals)


@dataclass(frozen=True)
class Comparison:
    """Two versions on the same held-out examples."""

    examples: int
    candidate_accuracy: float | None  # None without examples
    live_accuracy: float | None
    candidate_only: int  # right by the candidate alone
    live_only: int  # right by the live version alone
    chance: float  # of so few or fewer wins of the candidate, were the two equally good; in (0, 1]

    @property
    def worse(self) -> bool:
        """Whether the candidate is worse beyond chance: then it should not go live."""
        return self.chance < WORSE_AT


def compare(candidate_right: NDArray[np.bool_], live_right: NDArray[np.bool_]) -> Comparison:
    """Exact one-sided sign test on the examples where two versions differ (McNemar 1947, exact form).

    Args:
        candidate_right, live_right: [n], whether each was right on the same examples.
    Raises:
        DataError: different lengths.
    """
    if len(candidate_right) != len(live_right):
        raise DataError(
            f"a paired test needs the same examples, got {len(candidate_right)} and {len(live_right)}: "
            "predict with both versions on one list of examples"
        )
    from scipy.stats import binom

    n = len(live_right)
    candidate_only = int((candidate_right & ~live_right).sum())
    live_only = int((live_right & ~candidate_right).sum())
    return Comparison(
        examples=n,
        candidate_accuracy=float(candidate_right.mean()) if n else None,
        live_accuracy=float(live_right.mean()) if n else None,
        candidate_only=candidate_only,
        live_only=live_only,
        chance=float(binom.cdf(candidate_only, candidate_only + live_only, 0.5)),
    )


def audit_is_enough(labels: int, accuracy: float | None, *, floor: int = 50, half_width: float = 0.025) -> bool:
    """Whether the audit slice can stop growing: at least `floor` labels, and an accuracy known to `half_width`.

    Before an accuracy was measured, one half is assumed, which asks for the most labels.
    """
    from uncertainty.calibration import wilson_interval

    if labels < floor:
        return False
    right = round(labels * (0.5 if accuracy is None else accuracy))
    low, high = wilson_interval(right, labels)
    return (high - low) / 2 <= half_width
