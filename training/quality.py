"""How good the uncertainty of a version is, told from the audit slice alone: calibration, ranking of errors, sets.

n  audit examples    C  classes

Labels that a strategy chose would say nothing here: it chose them because the model was unsure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

FEWEST_FOR_BINS = 30  # two examples in each of the 15 bins, without which a bin cannot tell its gap from noise
FEWEST_FOR_RANKING = 20  # as `selective.coverage_at_accuracy`, which believes no accuracy of fewer
FEWEST_OF_EACH = 5  # right and wrong answers; with fewer, one error decides how well errors are found
FEWEST_FOR_SETS = 50  # the promise of 90 % then comes out at 90 +- 4 %
FEWEST_OF_CLASS = 20  # labels of a class below which its coverage is not told
MISSES = 0.1  # share of conformal sets that may miss the true class
ACCEPTED_ACCURACY = 0.95
_RESAMPLES = 400  # ends of intervals are known to a sixth of their half width, in a few milliseconds
_REFERENCE = 1_000  # labelled examples that agreement asks: 10 ms for 500 audit labels


def quality_metrics(probabilities: Floats, labels: Ints, *, intervals: bool = True) -> dict[str, float | None]:
    """Calibration and ranking of errors on held-out labels; every key is always there, None where nothing can be said.

    500 examples of ten classes take some 7 ms, 2 ms without intervals.

    Args:
        probabilities: [n, C] calibrated, of examples that were never trained on.
        labels: [n], in [0, C).
        intervals: False leaves out `*_low` and `*_high`.
    Returns:
        brier           squared distance to the truth, in [0, 2]
        ece_debiased    typical gap between confidence and accuracy (root mean square over 15 bins of equal mass, freed
                        of its noise), from 30 labels on; ece_low, ece_high: its 95 % bootstrap interval, from five
                        right and five wrong answers on: without errors every resample looks as good
        aurc, augrc     area under the risk-coverage curve, and the generalised one, from 20 labels on; low is good
        e_aurc          aurc above that of a perfect ranking of as many errors
        auroc           chance that a right answer is surer than a wrong one, from five of each on; with auroc_low and
                        auroc_high
        coverage_at_95  largest share of the examples, surest first, with 95 % accuracy among them, from 20 labels on;
                        with coverage_at_95_low and coverage_at_95_high, rough where the share is below a tenth, from
                        five of each on likewise
    """
    from uncertainty.calibration import brier_score, squared_calibration_error
    from uncertainty.intervals import reflected_interval
    from uncertainty.resamples import Resamples
    from uncertainty.selective import augrc, aurc, auroc, auroc_interval, coverage_at_accuracy, excess_aurc

    y = np.asarray(labels, np.int64)
    n = len(y)
    found: dict[str, float | None] = dict.fromkeys(
        (
            "brier",
            "ece_debiased",
            "aurc",
            "e_aurc",
            "augrc",
            "auroc",
            "coverage_at_95",
            *(f"{name}_{end}" for name in ("ece", "auroc", "coverage_at_95") for end in ("low", "high") if intervals),
        )
    )
    if not n:
        return found
    found["brier"] = brier_score(probabilities, y)
    if n < FEWEST_FOR_RANKING:
        return found
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == y
    enough = min(int(right.sum()), int((~right).sum())) >= FEWEST_OF_EACH
    found |= {
        "aurc": aurc(confidence, right),
        "e_aurc": excess_aurc(confidence, right),
        "augrc": augrc(confidence, right),
        "auroc": auroc(confidence, right) if enough else None,
        "coverage_at_95": coverage_at_accuracy(confidence, right, ACCEPTED_ACCURACY),
    }
    square = squared_calibration_error(probabilities, y)
    if n >= FEWEST_FOR_BINS:
        found["ece_debiased"] = None if np.isnan(square) else float(np.sqrt(max(0.0, square)))
    if not (intervals and enough):
        return found
    resamples = Resamples.draw(n, resamples=_RESAMPLES)
    found["auroc_low"], found["auroc_high"] = auroc_interval(confidence, right)
    draws = resamples.coverage_at_accuracy(confidence, right, ACCEPTED_ACCURACY)
    found["coverage_at_95_low"], found["coverage_at_95_high"] = map(float, np.nanquantile(draws, [0.025, 0.975]))
    if found["ece_debiased"] is not None:
        draws = resamples.squared_calibration_error(probabilities, y)
        # Copies of one example in a resample push its square up; roots are taken of the ends, as those of single draws
        # would crowd at 0.
        ends = reflected_interval(square, draws - (np.nanmean(draws) - square), bounds=(0, 1))
        found["ece_low"], found["ece_high"] = (float(np.sqrt(end)) for end in ends)
    return found


def set_metrics(probabilities: Floats, labels: Ints) -> dict[str, float | None]:
    """What conformal sets that miss the truth at most one time in ten are worth; None below 50 labels.

    Measured by leaving one out: each set is made with thresholds that the example took no part in. A set is never
    empty: the likeliest class is in it. So coverage lies above 90 % where the model is right more often than that;
    elsewhere it is 90 % by construction, and sizes and the class that fares worst are what is learnt.

    Args:
        probabilities, labels: as `quality_metrics`.
    Returns:
        set_size, set_coverage     mean number of classes in a set, share of sets with the true one
        set_worst                  that share in the class where it is lowest, of those with 20 labels
        class_set_size, ...        the same three where each class with 50 labels keeps the promise by itself; None
                                   while there is no such class
    """
    from uncertainty.conformal import MIN_PER_CLASS, evaluate, leave_one_out, never_empty

    y = np.asarray(labels, np.int64)
    found: dict[str, float | None] = dict.fromkeys(
        f"{kind}_{what}" for kind in ("set", "class_set") for what in ("size", "coverage", "worst")
    )
    if len(y) < FEWEST_FOR_SETS:
        return found
    count = np.bincount(y, minlength=probabilities.shape[1])
    for kind, per_class in (("set", False), ("class_set", True)):
        if per_class and count.max() < MIN_PER_CLASS:
            continue
        sets = leave_one_out(probabilities, y, alpha=MISSES, per_class=per_class)
        report = evaluate(never_empty(sets, probabilities), y)
        known = [share for share, k in zip(report.class_coverage, count, strict=True) if k >= FEWEST_OF_CLASS]
        found |= {
            f"{kind}_size": report.mean_size,
            f"{kind}_coverage": report.coverage,
            f"{kind}_worst": min((share for share in known if share is not None), default=None),
        }
    return found


@dataclass(frozen=True)
class ErrorRanking:
    """Which confidence ranks a version's errors best on the audit slice; plain values, kept with the version."""

    examples: int
    errors: int
    best: str  # "msp", the likeliest class's probability, unless another is better beyond luck
    gain: float  # fall of the AURC against "msp"; 0 for "msp"
    gain_low: float  # with gain_high, the 95 % interval, for all that were compared at once
    gain_high: float
    aurc: dict[str, float]  # of each confidence compared

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> ErrorRanking | None:
        """From what `record` gave; None of None."""
        return None if record is None else cls(**record)


def rank_errors(
    logits: Floats, temperature: float, labels: Ints, agreement: NDArray[np.float64] | None = None
) -> ErrorRanking | None:
    """Compare confidences on held-out labels; None with too few labels or errors to tell (50 and 5).

    Args:
        logits: [n, C] before the temperature, of examples that were never trained on.
        labels: [n], in [0, C).
        agreement: [n] of `label_agreement`, or None.
    """
    from dataclasses import replace

    from uncertainty.confidence import Outputs
    from uncertainty.confidence_comparison import MIN_EXAMPLES, compare

    if len(labels) < MIN_EXAMPLES:
        return None
    # In float64: in float32 the surest are all 1, and whatever breaks such ties would look better than it is.
    outputs = replace(Outputs.of_logits(logits, temperature), agreement=agreement)
    found = compare(outputs, outputs.probabilities.argmax(axis=1) == labels)
    if found is None:
        return None
    won = found.rivals.get(found.best)
    return ErrorRanking(
        found.examples,
        found.errors,
        found.best,
        *((0.0, 0.0, 0.0) if won is None else (won.gain, won.low, won.high)),
        {"msp": found.base_aurc, **{name: rival.aurc for name, rival in found.rivals.items()}},
    )


def agreement(asked: Floats, predicted: Ints, known: Floats, labels: Ints) -> NDArray[np.float64]:
    """[n] share of the ten most similar labelled examples that carry the class predicted.

    Args:
        asked: [n, D] rows of length one; predicted: [n] class of each.
        known: [m, D] of the labelled examples, m >= 1; labels: [m].
    """
    from uncertainty.confidence import label_agreement

    return label_agreement(asked, predicted, known, labels)


def reference_rows(m: int) -> Ints:
    """At most 1,000 of m labelled examples for `agreement`, the same ones for the same m, sorted."""
    return np.sort(np.random.default_rng(0).permutation(m)[:_REFERENCE])
