"""One number that makes a model's confidence believable: softmax(logits / T).

Plain numpy in float64. T may not be fitted on the audit set; that is what calibration is reported on.
"""

from collections.abc import Callable
from math import exp, sqrt

import numpy as np
import numpy.typing as npt

from .errors import NotADistributionError, ShapeError
from .shapes import check_labels

# Below this many labels an optimum of the likelihood is mostly noise (and often the edge of the interval);
# a fixed softening is better.
MIN_LABELS_FOR_TEMPERATURE = 20
COLD_TEMPERATURE = 2.0
LOG_TEMPERATURE_RANGE = (-2.3, 3.0)  # T in [0.1, 20]
_TOLERANCE = 1e-4  # of log T; 0.01 % of T
_GOLDEN = (sqrt(5) - 1) / 2


def fit_temperature(
    logits: npt.ArrayLike, labels: npt.ArrayLike, *, min_labels: int = MIN_LABELS_FOR_TEMPERATURE
) -> float:
    """The T > 0 for which softmax(logits / T) has the least negative log-likelihood.

    The likelihood is convex in 1/T, hence has one valley in log T, and golden-section search finds it.

    Args:
        logits: [n, C], out of fold: from a model that did not train on these labels.
        labels: [n], class indices.
        min_labels: with fewer labels the answer is `COLD_TEMPERATURE`.

    Returns:
        T in [0.1, 20]; greater than 1 softens.

    Raises:
        ShapeError; NotADistributionError: a logit is NaN or infinite.

    Paper:
        Guo et al. 2017, arXiv:1706.04599, sec. 4.2.
    """
    shifted = np.asarray(logits, dtype=np.float64)
    if shifted.ndim != 2 or shifted.shape[1] < 1:
        raise ShapeError(f"expected logits of shape [n, C], got {list(shifted.shape)}")
    target = check_labels(labels, n=shifted.shape[0], classes=shifted.shape[1])
    if not np.isfinite(shifted).all():
        raise NotADistributionError("some logits are NaN or infinite; look for NaN in what the head was given")
    if len(target) < max(min_labels, 1):
        return COLD_TEMPERATURE
    # Dividing by T > 0 keeps the row maximum where it is, so one shift serves every T.
    shifted = shifted - shifted.max(1, keepdims=True)
    own = shifted[np.arange(len(target)), target].mean()

    def nll(log_t: float) -> float:
        beta = exp(-log_t)
        return float(np.log(np.exp(shifted * beta).sum(1)).mean() - own * beta)

    return exp(_golden_section(nll, *LOG_TEMPERATURE_RANGE))


def _golden_section(f: Callable[[float], float], low: float, high: float) -> float:
    """The minimiser of a function with one valley in [low, high]; an edge when the valley lies there."""
    a, b = low, high
    c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    fc, fd = f(c), f(d)
    while b - a > _TOLERANCE:
        if fc <= fd:
            b, d, fd = d, c, fc
            c = b - _GOLDEN * (b - a)
            fc = f(c)
        else:
            a, c, fc = c, d, fd
            d = a + _GOLDEN * (b - a)
            fd = f(d)
    return (a + b) / 2
