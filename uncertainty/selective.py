"""Whether confidence tells right from wrong: risk against coverage, and the areas that sum it up.

n labelled examples, each with a confidence (any scale, higher means surer) and whether the model was right.
Equal confidences are one step: every number is the mean over all orders of them, hence free of the order of
the rows. Nothing may be fitted on the labels these numbers are reported on.
"""

from dataclasses import dataclass
from math import ceil, exp, log, sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from .errors import NonFiniteScoreError, ShapeError
from .intervals import Floats

Flags = npt.NDArray[np.bool_]

# Fewer accepted examples than this reach an accuracy by luck.
_FEWEST_ACCEPTED = 200
_FEWEST_ACCEPTED_SHARE = 0.02
# Of a small labelled set, 200 could be nearly all: a tenth of it then, but never so few that one example is 5 %.
_FEWEST_ACCEPTED_OF_SMALL_SHARE = 0.1
_FEWEST_ACCEPTED_OF_SMALL = 20


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Share of errors among the k most confident examples, k = 1..n.

    Attributes:
        coverage: [n], k/n.
        risk: [n], errors among the first k / k, in [0, 1]; inside a run of equal confidences the expected share.
        threshold: [n], confidence of the k-th example, falling.
        attainable: [n], whether a threshold accepts just these k: false inside a run of equal confidences.
    """

    coverage: Floats
    risk: Floats
    threshold: Floats
    attainable: Flags


def risk_coverage(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> RiskCoverage:
    """The risk-coverage curve.

    Args:
        confidence: [n], finite, higher means surer.
        correct: [n] bool, whether the model was right.

    Raises:
        ShapeError; NonFiniteScoreError: a confidence is NaN or infinite.

    Paper:
        El-Yaniv and Wiener 2010; ties: the expectation over random order.
    """
    score, right = _checked(confidence, correct)
    n = len(score)
    ordered, errors, ends = _descending(score, ~right)
    k = np.arange(1, n + 1)
    attainable = np.zeros(n, np.bool_)
    attainable[ends] = True
    return RiskCoverage(k / max(n, 1), _expected_errors(errors, ends) / k, ordered, attainable)


def aurc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the risk-coverage curve, (1/n) sum_k risk_k: in [0, 1], lower is better; NaN for no example.

    Args / Raises: as `risk_coverage`.

    Paper:
        Geifman et al. 2019, arXiv:1805.08206.
    """
    risk = risk_coverage(confidence, correct).risk
    return float(risk.mean()) if len(risk) else float("nan")


def excess_aurc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """AURC above that of a perfect ranking at the same error rate r, r + (1 - r) ln(1 - r); NaN for no example.

    The perfect area is that of many examples; with n of them a perfect ranking keeps an excess of about r/(2n).

    Args / Raises: as `risk_coverage`.

    Paper:
        Geifman et al. 2019, arXiv:1805.08206, sec. 3.
    """
    score, hits = _checked(confidence, correct)
    if not len(hits):
        return float("nan")
    area, right = aurc(score, hits), float(hits.mean())
    # x ln x -> 0: a model that is never right has area 1 whatever its confidence.
    return area - (1 - right + (right * log(right) if right else 0.0))


def augrc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under (errors among the k most confident) / n: the mean risk of silent errors over all coverages.

    By the trapezoid rule, as the authors compute it, so that with error rate r it is exactly
    (1 - AUROC) r (1 - r) + r^2 / 2. In [0, 1/2], lower is better; NaN for no example.

    Args / Raises: as `risk_coverage`.

    Paper:
        Traub et al. 2024, arXiv:2407.01032.
    """
    score, right = _checked(confidence, correct)
    n = len(score)
    if not n:
        return float("nan")
    _, errors, ends = _descending(score, ~right)
    return float((_expected_errors(errors, ends).sum() - errors.sum() / 2) / n**2)


def auroc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Chance that a right answer is more confident than a wrong one, ties counting half: 1 perfect, 1/2 useless.

    Args / Raises: as `risk_coverage`.

    Returns:
        In [0, 1]; NaN unless there are both right and wrong answers.
    """
    score, right = _checked(confidence, correct)
    positive = int(right.sum())
    pairs = positive * (len(right) - positive)
    if not pairs:
        return float("nan")
    wins = mean_ranks(score)[right].sum() - positive * (positive + 1) / 2  # mean ranks count a tie as half
    return float(wins / pairs)


def auroc_interval(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Interval for `auroc`, symmetric in log-odds so that it stays inside [0, 1].

    In simulations with five and more answers of either kind the 95 % interval held the truth in 94-98 % of draws. A
    perfect separation counts as half a pair in the wrong order.

    Args:
        confidence, correct: as `risk_coverage`.
        level: coverage aimed at, in (0, 1).

    Returns:
        (0, 1), nothing is known, unless there are two right and two wrong answers.

    Raises:
        ValueError: level out of range; ShapeError, NonFiniteScoreError.

    Paper:
        DeLong et al. 1988 (variance); Pepe 2003, sec. 5.2.4 (log-odds).
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1 such as 0.95, got {level}")
    score, right = _checked(confidence, correct)
    positive = int(right.sum())
    negative = len(right) - positive
    if min(positive, negative) < 2:
        return 0.0, 1.0
    ranks = mean_ranks(score)
    # Of each right answer the share of wrong ones below it, of each wrong one the share of right ones above it.
    beaten = (ranks[right] - mean_ranks(score[right])) / negative
    lost = 1 - (ranks[~right] - mean_ranks(score[~right])) / positive
    variance = float(beaten.var(ddof=1) / positive + lost.var(ddof=1) / negative)
    pairs = positive * negative
    area = (float(beaten.mean()) * pairs + 0.5) / (pairs + 1)
    odds = log(area / (1 - area))
    half = float(ndtri((1 + level) / 2)) * sqrt(max(variance, 1 / pairs**2)) / (area * (1 - area))
    return 1 / (1 + exp(half - odds)), 1 / (1 + exp(-half - odds))


def aupr_success(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Average precision of finding right answers by high confidence, in [0, 1]; NaN without a right answer.

    Args / Raises: as `risk_coverage`.

    Paper:
        Hendrycks and Gimpel 2017, arXiv:1610.02136.
    """
    score, right = _checked(confidence, correct)
    return _average_precision(score, right)


def aupr_error(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Average precision of finding wrong answers by low confidence, in [0, 1]; NaN without a wrong answer.

    Args / Raises / Paper: as `aupr_success`.
    """
    score, right = _checked(confidence, correct)
    return _average_precision(-score, ~right)


def fewest_accepted(n: int) -> int:
    """Accepted examples below which `coverage_at_accuracy` does not believe an accuracy.

    From 2,000 examples on max(200, 2 %); of fewer a tenth, at least 20, at most all.
    """
    small = max(_FEWEST_ACCEPTED_OF_SMALL, ceil(_FEWEST_ACCEPTED_OF_SMALL_SHARE * n))
    return min(n, max(min(_FEWEST_ACCEPTED, small), ceil(_FEWEST_ACCEPTED_SHARE * n)))


def coverage_at_accuracy(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, accuracy: float, *, min_accepted: int | None = None
) -> float:
    """Largest share of the examples that a threshold accepts with at least this accuracy among them.

    A description of these labels, not a promise for others: a threshold chosen by it on so many labels misses
    the accuracy about as often as not.

    Args:
        confidence, correct: as `risk_coverage`.
        accuracy: wanted among the accepted, in [0, 1].
        min_accepted: thresholds that accept fewer are passed over; None: `fewest_accepted(n)`.

    Returns:
        In [0, 1]; 0 where no threshold will do; NaN for no example.

    Raises:
        ValueError: accuracy out of range; ShapeError, NonFiniteScoreError.

    Paper:
        Galil et al. 2023, arXiv:2302.11874 (SAC).
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"expected an accuracy between 0 and 1 such as 0.95, got {accuracy}")
    score, right = _checked(confidence, correct)
    n = len(score)
    if not n:
        return float("nan")
    _, hits, ends = _descending(score, right)
    accepted = ends + 1
    # A quotient of whole numbers: 19 of 20 reach 0.95, which 1 - 1/20 might miss by a rounding.
    reached = np.cumsum(hits)[ends] / accepted >= accuracy
    reached &= accepted >= (fewest_accepted(n) if min_accepted is None else min_accepted)
    return float(accepted[reached].max() / n) if reached.any() else 0.0


def mean_ranks(values: Floats) -> Floats:
    """Place of each number [n] in rising order, from 1; equal numbers share their mean place.

    As `scipy.stats.rankdata`, whose import takes most of a second.
    """
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(count) - (count - 1) / 2)[which]
    return ranks


def _checked(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Floats, Flags]:
    score = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct)
    if score.ndim != 1:
        raise ShapeError(f"expected confidences of shape [n], got {list(score.shape)}")
    if right.shape != score.shape:
        raise ShapeError(f"expected correct of shape {list(score.shape)} like confidence, got {list(right.shape)}")
    if right.dtype != np.bool_ and right.size:
        raise ShapeError(f"expected correct as booleans, got {right.dtype}; compare predictions with labels")
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        raise NonFiniteScoreError("confidence", bad.tolist())
    return score, right.astype(np.bool_)


def _descending(score: Floats, flag: Flags) -> tuple[Floats, Flags, npt.NDArray[np.int64]]:
    """Scores and flags, highest score first, and the last place of each run of equal scores."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.ones(len(score), np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    return ordered, flag[order], np.flatnonzero(last)


def _expected_errors(errors: Flags, ends: npt.NDArray[np.int64]) -> Floats:
    """[n]: errors among the first k in the mean over all orders of equal confidences; a straight line within each."""
    known = np.concatenate([[0], np.cumsum(errors)[ends]])
    expected: Floats = np.interp(np.arange(1, len(errors) + 1), np.concatenate([[0], ends + 1]), known)
    return expected


def _average_precision(score: Floats, positive: Flags) -> float:
    total = int(positive.sum())
    if not total:
        return float("nan")
    _, found, ends = _descending(score, positive)
    hits = np.cumsum(found)[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / total)
