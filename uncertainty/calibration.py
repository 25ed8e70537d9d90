"""How far stated confidence can be believed: temperature, calibration errors, intervals.

Plain numpy in float64: the arrays are labelled sets (n up to some ten thousand), not pools.
Nothing here may be fitted on the audit set; it is what these numbers are reported on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from .errors import NotADistributionError, ShapeError
from .shapes import check_labels, check_probs

# Below this many labels an optimum of the likelihood is mostly noise (and often the edge of the interval);
# a fixed softening is better.
MIN_LABELS_FOR_TEMPERATURE = 20
COLD_TEMPERATURE = 2.0
LOG_TEMPERATURE_RANGE = (-2.3, 3.0)  # T in [0.1, 20]
_TOLERANCE = 1e-4  # of log T; 0.01 % of T
_GOLDEN = (sqrt(5) - 1) / 2
_SMALLEST_PROBABILITY = 1e-12  # NLL of a class called impossible stays finite: 27.6 nats


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


def negative_log_likelihood(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean of -ln max(p_y, 1e-12) over the examples, nats; NaN for no example.

    Args:
        probs: [n, C], rows sum to one.
        labels: [n], class indices.

    Raises:
        ShapeError, NotADistributionError.
    """
    p, y = _checked(probs, labels)
    if not len(y):
        return float("nan")
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], _SMALLEST_PROBABILITY)).mean())


def brier_score(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean over examples of sum_c (p_c - 1[y = c])^2, in [0, 2]; NaN for no example.

    Args / Raises: as `negative_log_likelihood`.

    Paper:
        Brier 1950, eq. 2.
    """
    p, y = _checked(probs, labels)
    if not len(y):
        return float("nan")
    # sum_c (p_c - 1[y=c])^2 = sum_c p_c^2 - 2 p_y + 1, without building the one-hot matrix.
    return float(((p * p).sum(1) - 2 * p[np.arange(len(y)), y] + 1).mean())


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram: examples whose confidence lies in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean stated confidence; None where the bin is empty
    accuracy: float | None  # share that was right; None where the bin is empty


def reliability_bins(probs: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> list[ReliabilityBin]:
    """Confidence and accuracy of the likeliest class in equal-width, right-closed bins over [0, 1].

    Args / Raises: as `negative_log_likelihood`; ShapeError for `bins` < 1.

    Returns:
        `bins` bars from low to high confidence; a confidence of exactly 0 belongs to the first.
    """
    if bins < 1:
        raise ShapeError(f"expected at least one bin, got {bins}")
    p, y = _checked(probs, labels)
    confidence = p.max(1) if len(y) else np.empty(0)
    correct = (p.argmax(1) == y).astype(np.float64) if len(y) else np.empty(0)
    edges = np.linspace(0, 1, bins + 1)
    # searchsorted(left) - 1 puts a value equal to an edge into the bin below it: right-closed.
    where = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    confidence_sum = np.bincount(where, confidence, minlength=bins)
    correct_sum = np.bincount(where, correct, minlength=bins)
    return [
        ReliabilityBin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            count=int(count[b]),
            confidence=float(confidence_sum[b] / count[b]) if count[b] else None,
            accuracy=float(correct_sum[b] / count[b]) if count[b] else None,
        )
        for b in range(bins)
    ]


def expected_calibration_error(probs: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over `reliability_bins`, weighted by count; in [0, 1].

    Biased upwards for small n (with 100 examples a perfect model shows several points); NaN for no example.

    Args / Raises: as `reliability_bins`.

    Paper:
        Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    bars = reliability_bins(probs, labels, bins)
    total = sum(b.count for b in bars)
    if not total:
        return float("nan")
    return sum(
        b.count / total * abs(b.accuracy - b.confidence)
        for b in bars
        if b.accuracy is not None and b.confidence is not None
    )


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a share seen as `successes` of `n`; stays in [0, 1] and is honest for small n.

    Args:
        successes: 0..n.
        n: trials; with none, the answer is (0, 1): nothing is known.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: counts or confidence out of range.

    Paper:
        Wilson 1927.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got successes={successes}, n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1 such as 0.95, got {confidence}")
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri((1 + confidence) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the exact ends are 0 and 1; rounding must not show a 1e-17 in their place.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def _checked(probs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    p = check_probs(probs)
    return p, check_labels(labels, n=p.shape[0], classes=p.shape[1])


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
