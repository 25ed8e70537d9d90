"""Bootstrap of measures of ranking and calibration, all resamples at once.

A version of a model is measured after every label, so an interval may cost milliseconds, not tenths of a second. What
differs between resamples is only how often each example counts: orders, ties and bins are found once.

Axes: n examples, R resamples, G groups of equal confidence that hold an error.
"""

from dataclasses import dataclass
from functools import cache
from math import exp, factorial

import numpy as np
import numpy.typing as npt

from .calibration import equal_mass_residuals
from .intervals import RESAMPLES, Floats
from .selective import Flags, fewest_accepted

Counts = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
_LEVELS = 1 << 16  # a count is drawn from 16 random bits: its chances are those of Poisson(1) to 1 in 65,536


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each example counts in each resample.

    The counts are independent and Poisson(1), so a resample has n examples on average; for measures that are means the
    intervals are those of drawing n with replacement. Several rankings measured on one object are paired.

    Attributes:
        counts: [n, R].

    Paper:
        Hanley and MacGibbon 2006, Creating non-parametric bootstrap samples using Poisson frequencies.
    """

    counts: Counts

    @classmethod
    def draw(cls, n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> "Resamples":
        """Raises: ValueError: n or `resamples` below one."""
        if n < 1 or resamples < 1:
            raise ValueError(f"expected at least one example and one resample, got n={n}, resamples={resamples}")
        bits = np.random.default_rng(seed).integers(0, _LEVELS, (n, resamples), dtype=np.uint16)
        return cls(_poisson()[bits])

    def aurc(self, confidence: Floats, correct: Flags) -> Floats:
        """[R] `selective.aurc` of the examples counted so often; NaN where none is.

        Args:
            confidence: [n], finite, higher means surer.
            correct: [n] bool.
        """
        steps = self._steps(confidence, correct)
        # An error at place r adds 1/k to the mean risk of every k >= r, together H(total) - H(r - 1); inside a group
        # errors are spread evenly. The sum of H(0) to H(k - 1) is k (H(k) - 1).
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(steps.total.max()) + 1))])
        sums = np.arange(len(harmonic)) * (harmonic - 1)
        late = (sums[steps.before + steps.size] - sums[steps.before]) * steps.errors / np.maximum(steps.size, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            area: Floats = (steps.errors.sum(0) * harmonic[steps.total] - late.sum(0)) / steps.total
        return area

    def coverage_at_accuracy(self, confidence: Floats, correct: Flags, accuracy: float) -> Floats:
        """[R] `selective.coverage_at_accuracy` of the examples counted so often; NaN where none is.

        Args:
            confidence, correct: as `aurc`.
            accuracy: wanted among the accepted, in [0, 1].
        """
        steps = self._steps(confidence, correct)
        # Right answers raise the accuracy, so the best threshold stands before a group with an error, behind one that
        # holds right answers too, or accepts all.
        after, mixed = np.cumsum(steps.errors, axis=0, dtype=np.int32), steps.mixed
        accepted = np.concatenate([steps.before, (steps.before + steps.size)[mixed], steps.total[None]])
        wrong = np.concatenate([after - steps.errors, after[mixed], steps.errors.sum(0)[None]])
        reached = wrong <= accepted * ((1 - accuracy) * (1 + 1e-9))  # 19 of 20 reach 0.95, whatever the rounding
        reached &= accepted >= _fewest(int(steps.total.max()).bit_length())[steps.total]
        with np.errstate(invalid="ignore", divide="ignore"):
            share: Floats = np.where(reached, accepted, 0).max(0) / steps.total
        return share

    def squared_calibration_error(self, probs: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> Floats:
        """[R] `calibration.squared_calibration_error` of the examples counted so often, in bins that stay; NaN where
        every bin has fewer than two.

        Raises:
            ShapeError, NotADistributionError.
        """
        where, residual = equal_mass_residuals(probs, labels, bins)
        order = np.argsort(where, kind="stable")
        starts = np.flatnonzero(np.diff(where[order], prepend=-1))  # of the bins that hold an example
        counts, gap = self.counts[order], residual[order, None]
        # Sums over bins without a matrix product, whose threads wait for each other on a busy machine.
        count = np.add.reduceat(counts, starts, axis=0, dtype=np.float64)
        ones = np.add.reduceat(counts * gap, starts, axis=0)
        twos = np.add.reduceat(counts * gap**2, starts, axis=0)
        pairs = count * (count - 1)
        known = pairs > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            square = np.where(known, (ones**2 - twos) / pairs, 0)
            mean: Floats = (count * square).sum(0) / (count * known).sum(0)
        return mean

    def _steps(self, confidence: Floats, correct: Flags) -> "_Steps":
        order = np.argsort(-confidence, kind="stable")
        score, wrong = confidence[order], ~correct[order]
        last = np.ones(len(score), np.bool_)
        last[:-1] = score[1:] != score[:-1]
        group: npt.NDArray[np.int64] = np.cumsum(last) - last  # run of equal confidences that each place belongs to
        ends = np.flatnonzero(last) + 1
        starts = np.concatenate([[0], ends[:-1]])
        with_error, first_wrong = np.unique(group[wrong], return_index=True)
        counts = self.counts[order]
        total = counts.sum(0, dtype=np.int32)
        if not len(with_error):
            nothing = np.zeros((0, len(total)), np.int32)
            return _Steps(nothing, nothing, nothing, total, np.zeros(0, np.bool_))
        # Groups without an error move no measure by themselves: stretches of them are one step each.
        cuts = np.unique(np.concatenate([[0], starts[with_error], ends[with_error]]))
        size = np.add.reduceat(counts, cuts[cuts < len(score)], axis=0, dtype=np.int32)
        at = np.searchsorted(cuts, starts[with_error])
        before = (np.cumsum(size, axis=0, dtype=np.int32) - size)[at]
        errors = np.add.reduceat(counts[wrong], first_wrong, axis=0, dtype=np.int32)
        mixed = np.bincount(group, ~wrong)[with_error] > 0
        return _Steps(before, size[at], errors, total, mixed)


@dataclass(frozen=True, eq=False)
class _Steps:
    """The groups with an error, surest first, in each resample."""

    before: Ints  # [G, R] examples surer than the group
    size: Ints  # [G, R] examples in it
    errors: Ints  # [G, R] of these, wrong
    total: Ints  # [R]
    mixed: Flags  # [G] whether it holds right answers too


@cache
def _fewest(bits: int) -> npt.NDArray[np.int64]:
    """`fewest_accepted` of all numbers below 2^bits."""
    return np.array([fewest_accepted(n) for n in range(1 << bits)])


@cache
def _poisson() -> Counts:
    """[65536]: a count for every 16 random bits."""
    below = np.ceil(np.cumsum([exp(-1) / factorial(k) for k in range(12)]) * _LEVELS)
    return np.searchsorted(below, np.arange(_LEVELS), side="right").astype(np.uint8)
