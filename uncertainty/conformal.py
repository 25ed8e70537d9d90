"""Sets of classes that hold the true one with a promised chance: split conformal prediction.

n calibration examples, C classes. The promise is about fresh calibration and fresh examples drawn alike: over
both, the set misses the true class at most a share alpha of the time. It needs calibration labels that the
model never trained on and that no model chose (an audit slice), and it lapses when the examples change.
With too few labels there is no threshold that keeps it, so the sets hold every class: empty words are not given.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .calibration import wilson_interval
from .errors import ShapeError
from .intervals import Floats
from .shapes import check_labels, check_mask, check_probs

Score = Literal["lac", "aps", "raps"]
SCORES: tuple[Score, ...] = get_args(Score)

MIN_PER_CLASS = (
    50  # labels from which a class gets a threshold of its own: a promise of 90 % then comes out at 90 +- 4 %
)
_FEW_CLASSES = 10  # up to these, a set of three is long; above, five as for a thousand classes
_ROUNDING = 1e-9  # (n + 1) * (1 - alpha) may come out just above a whole number


@dataclass(frozen=True, eq=False)
class ConformalSets:
    """Thresholds fitted to calibration labels.

    Attributes:
        score: what is compared with the threshold.
        alpha: share of misses promised, at most.
        thresholds: [C], a class is in the set when its score is no larger; infinite: always in.
        own: classes with a threshold (and a promise) of their own.
        pooled: the other classes, which share one threshold and one promise: on average over them.
        labels: [C], calibration examples of each class.
        missing: labels still missing before no threshold is infinite; 0: the sets tell something.
        lam, k_reg: penalty for each rank beyond k_reg; 0 and C but for RAPS.
    """

    score: Score
    alpha: float
    thresholds: Floats
    own: tuple[int, ...]
    pooled: tuple[int, ...]
    labels: npt.NDArray[np.int64]
    missing: int
    lam: float
    k_reg: int

    def sets(self, probabilities: npt.ArrayLike, *, seed: int = 0) -> npt.NDArray[np.bool_]:
        """Which classes each set holds. A set can be empty: then no class looks as its examples did.

        Args:
            probabilities: [m, C], from the model that the thresholds were fitted with.
            seed: of the chance in APS and RAPS.

        Returns:
            [m, C] bool.

        Raises:
            ShapeError, NotADistributionError.
        """
        p = check_probs(probabilities)
        if p.shape[1] != len(self.thresholds):
            raise ShapeError(f"expected {len(self.thresholds)} classes as in the calibration, got {p.shape[1]}")
        # Another stream than that of `fit`: the examples' chance must not repeat the calibration's.
        scores = _scores(self.score, p, np.random.default_rng([seed, 1]), self.lam, self.k_reg)
        inside: npt.NDArray[np.bool_] = scores <= self.thresholds
        return inside


def fit(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    alpha: float = 0.1,
    score: Score = "lac",
    per_class: bool = False,
    lam: float | None = None,
    k_reg: int | None = None,
    seed: int = 0,
) -> ConformalSets:
    """Find the thresholds: the ceil((n + 1)(1 - alpha))-th smallest score of the true class, of n examples.

    Args:
        probabilities: [n, C] of calibration examples, by a model that did not train on them.
        labels: [n], class indices.
        alpha: share of misses allowed, in (0, 1).
        score: of class c at one example. "lac": 1 - p_c, the smallest sets on average. "aps": the probability of
            all classes down to c, less a random part of p_c; sets grow where the model is unsure. "raps": as aps,
            plus `lam` for each rank of c beyond `k_reg`; without the long tail of aps.
        per_class: promise alpha for each class with `MIN_PER_CLASS` labels (and enough for alpha) by itself; the
            others are one group with a promise of its own. False: one promise for all together.
        lam, k_reg: of raps; None: 0.1 and 2 up to ten classes, else 0.01 and 5.
        seed: of the chance in aps and raps.

    Returns:
        `missing` and infinite thresholds tell when labels are too few (`labels_needed`).

    Raises:
        ValueError: alpha, score, lam or k_reg out of range; ShapeError, NotADistributionError.

    Paper:
        lac: Sadinle et al. 2019, arXiv:1609.00451; aps: Romano et al. 2020, arXiv:2006.02544;
        raps: Angelopoulos et al. 2021, arXiv:2009.14193; per class: Vovk 2012, arXiv:1209.2673.
    """
    if score not in SCORES:
        raise ValueError(f"expected a score among {', '.join(SCORES)}, got {score!r}")
    p = check_probs(probabilities)
    n, classes = p.shape
    y = check_labels(labels, n=n, classes=classes)
    needed = labels_needed(alpha)
    penalty, free = _penalty(score, classes, lam, k_reg)
    scores = _scores(score, p, np.random.default_rng([seed, 0]), penalty, free)[np.arange(n), y]
    count = np.bincount(y, minlength=classes)
    has_own = _has_own(count, needed, per_class)
    own, pooled = np.flatnonzero(has_own), np.flatnonzero(~has_own)
    thresholds = np.empty(classes)
    for c in own.tolist():
        thresholds[c] = _quantile(scores[y == c], alpha)
    # The rest is a group of its own: a threshold from all labels would promise it what the frequent classes keep.
    rest = scores[~has_own[y]]
    thresholds[pooled] = _quantile(rest, alpha)
    return ConformalSets(
        score,
        alpha,
        thresholds,
        tuple(own.tolist()),
        tuple(pooled.tolist()),
        count,
        max(0, needed - len(rest)) if len(pooled) else 0,
        penalty,
        free,
    )


def never_empty(sets: npt.ArrayLike, probabilities: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """`sets` [m, C] with the likeliest class put into those that are empty.

    A model that errs less often than alpha gets empty sets, since misses are allowed and an empty set is the smallest
    way to use them up. For people an answer is worth more; the promise only becomes safer.

    Raises:
        ShapeError, NotADistributionError.
    """
    held, p = np.asarray(sets), check_probs(probabilities)
    if held.shape != p.shape or held.dtype != np.bool_:
        raise ShapeError(f"expected sets as booleans of shape {list(p.shape)}, got {held.dtype} {list(held.shape)}")
    filled: npt.NDArray[np.bool_] = held.copy()
    rows = np.flatnonzero(~held.any(1))
    filled[rows, p[rows].argmax(1)] = True
    return filled


def leave_one_out(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, alpha: float = 0.1, per_class: bool = False
) -> npt.NDArray[np.bool_]:
    """The "lac" set of each calibration example by thresholds that were fitted without it, [n, C] bool.

    So that all labels fit and all measure. Only two thresholds can occur in a group, hence sorting is all it takes.
    How many sets hold the truth follows nearly from n and alpha, as was promised; what can be learnt from them is
    their size, and which classes are missed more often than others.

    Args:
        probabilities, labels, alpha, per_class: as `fit`; which classes have thresholds of their own is decided
            with all examples.

    Raises:
        ValueError: alpha out of range; ShapeError, NotADistributionError.
    """
    p = check_probs(probabilities)
    n, classes = p.shape
    y = check_labels(labels, n=n, classes=classes)
    has_own = _has_own(np.bincount(y, minlength=classes), labels_needed(alpha), per_class)
    scores = _scores("lac", p, np.random.default_rng(0), 0.0, classes)
    inside: npt.NDArray[np.bool_] = scores <= fit(p, y, alpha=alpha, per_class=per_class).thresholds
    groups = [*np.flatnonzero(has_own)[:, None], np.flatnonzero(~has_own)]
    for members in groups:
        rows: npt.NDArray[np.int64] = np.flatnonzero(np.isin(y, members))
        own = scores[rows, y[rows]]
        place = ceil(len(rows) * (1 - alpha) - _ROUNDING)  # among the others, of whom there is one less
        threshold: Floats = np.full(len(rows), np.inf)
        if 0 < place < len(rows):
            ordered = np.sort(own)
            threshold = np.where(own <= ordered[place - 1], ordered[place], ordered[place - 1])
        inside[np.ix_(rows, members)] = scores[np.ix_(rows, members)] <= threshold[:, None]
    return inside


def _has_own(count: npt.NDArray[np.int64], needed: int, per_class: bool) -> npt.NDArray[np.bool_]:
    """[C]: which classes get a threshold of their own."""
    return (count >= max(MIN_PER_CLASS, needed)) & per_class


def labels_needed(alpha: float) -> int:
    """Fewest calibration labels with which sets can miss a share `alpha` at most without holding every class.

    Raises:
        ValueError: alpha out of range.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"expected a share of misses alpha between 0 and 1 such as 0.1, got {alpha}")
    return max(1, ceil((1 - alpha) / alpha - _ROUNDING))


@dataclass(frozen=True)
class SetReport:
    """What sets were worth on labels that took no part in fitting them."""

    examples: int
    coverage: float  # share of sets with the true class; NaN for no example
    coverage_low: float  # with coverage_high, the 95 % Wilson interval
    coverage_high: float
    mean_size: float  # classes per set; NaN for no example
    empty: float  # share of sets without a class
    single: float  # share of sets with just one
    class_coverage: tuple[float | None, ...]  # of each class; None where it does not occur


def evaluate(sets: npt.ArrayLike, labels: npt.ArrayLike) -> SetReport:
    """Coverage and size of sets on labelled examples.

    Args:
        sets: [m, C] bool.
        labels: [m], class indices.

    Raises:
        ShapeError.
    """
    held = np.asarray(sets)
    if held.ndim != 2 or held.dtype != np.bool_:
        raise ShapeError(f"expected sets as booleans of shape [m, C], got {held.dtype} {list(held.shape)}")
    m, classes = held.shape
    y = check_labels(labels, n=m, classes=classes)
    hit = check_mask("hits", held[np.arange(m), y], m)
    low, high = wilson_interval(int(hit.sum()), m)
    size = held.sum(1)
    nothing = float("nan")
    return SetReport(
        examples=m,
        coverage=float(hit.mean()) if m else nothing,
        coverage_low=low,
        coverage_high=high,
        mean_size=float(size.mean()) if m else nothing,
        empty=float((size == 0).mean()) if m else nothing,
        single=float((size == 1).mean()) if m else nothing,
        class_coverage=tuple(float(hit[y == c].mean()) if (y == c).any() else None for c in range(classes)),
    )


def _penalty(score: Score, classes: int, lam: float | None, k_reg: int | None) -> tuple[float, int]:
    if score != "raps":
        if lam is not None or k_reg is not None:
            raise ValueError(f"lam and k_reg belong to raps, got them with {score!r}")
        return 0.0, classes
    default = (0.1, 2) if classes <= _FEW_CLASSES else (0.01, 5)
    penalty, free = default[0] if lam is None else lam, default[1] if k_reg is None else k_reg
    if not (0 <= penalty < np.inf) or free < 0:
        raise ValueError(f"expected lam >= 0 and k_reg >= 0, got lam={penalty}, k_reg={free}")
    return penalty, free


def _scores(score: Score, p: Floats, rng: np.random.Generator, lam: float, k_reg: int) -> Floats:
    """[n, C]: how little each class fits each example."""
    if score == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    ordered = np.take_along_axis(p, order, axis=1)
    # One chance per example for all its classes: so the scores fall in the order of the classes.
    by_rank = np.cumsum(ordered, axis=1) - rng.random((len(p), 1)) * ordered
    by_rank += lam * np.maximum(np.arange(1, p.shape[1] + 1) - k_reg, 0)
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, by_rank, axis=1)
    return scores


def _quantile(scores: Floats, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest; infinite when there are not so many."""
    place = ceil((len(scores) + 1) * (1 - alpha) - _ROUNDING)
    if place > len(scores):
        return float("inf")
    return float(np.partition(scores, place - 1)[place - 1])
