"""What a version is worth on labels it has never seen: the audit slice.

n  audit examples    C  classes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .quality import quality_metrics

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


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
