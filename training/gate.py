"""The gate before the queue: a paired test of a candidate against the live version on the same held-out labels.

n  audit examples    C  classes

Of candidates as good as the live version at most `LEVEL` are refused, by two tests that share it (Bonferroni): by
answers that are right or wrong (McNemar 1947, exact form), and by the squared distance of the stated
probabilities to the truth (Brier 1950), which notices with a few dozen labels what answers show with hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

LEVEL = 0.05  # chance that a candidate as good as the live version is refused, at most
# Brier score, in [0, 2]. A temperature that moved makes all examples a little better or worse: with any number of
# labels that is beyond chance, and of no account.
MARGIN = 0.01
FEWEST_FOR_BRIER = (
    10  # below, a t-test of such skewed differences is not believed; at 10 it keeps its level (benchmark.gate)
)


@dataclass(frozen=True)
class Comparison:
    """Two versions on the same held-out examples."""

    examples: int
    candidate_accuracy: float | None  # None without examples
    live_accuracy: float | None
    candidate_only: int  # right by the candidate alone
    live_only: int  # right by the live version alone
    chance: float  # of so few or fewer wins of the candidate, were the two equally good; in (0, 1]
    brier_difference: float | None = None  # candidate minus live; below 0 the candidate is better; None: not compared
    # Of such a difference or a larger one, were the candidate worse by `MARGIN` only; None: too few examples to test.
    brier_chance: float | None = None
    # Of several questions each: its name, and the examples that the candidate, and the live version, alone has right.
    questions: tuple[tuple[str, int, int], ...] = ()

    @property
    def worse(self) -> bool:
        """Whether the candidate is worse beyond chance: then it should not go live."""
        tests = [self.chance] if self.brier_chance is None else [self.chance, self.brier_chance]
        return min(tests) < LEVEL / len(tests)

    @property
    def better(self) -> bool:
        """Whether the candidate is ahead by either measure, be it by chance."""
        gains = self.brier_difference is not None and self.brier_difference < 0
        return gains or self.candidate_only > self.live_only

    def words(self) -> str:
        """The outcome in one sentence, for people."""
        if not self.examples:
            return "there are no audit labels to compare on"
        what, right = ("labels", "right") if not self.questions else ("tasks", "right in all answers")
        text = (
            f"on {self.examples} audit {what} it alone is {right} {self.candidate_only} times, "
            f"the live version alone {self.live_only} times"
        )
        if self.brier_difference is not None:
            text += f", and its Brier score is {abs(self.brier_difference):.3f} "
            text += "higher (worse)" if self.brier_difference > 0 else "lower (better)"
        if self.questions:
            each = (f"{name} {candidate} times (the live version {live})" for name, candidate, live in self.questions)
            text += f"; question by question it alone is right: {', '.join(each)}"
        return text


@dataclass(frozen=True)
class Verdict:
    """What the gate decided on a version, kept with it."""

    promoted: bool
    live: str | None  # the version that was live then; None: there was none to compare with
    words: str  # why, for people
    comparison: Comparison | None


ANCHOR_EACH = 2  # times the labels: then the version that goes live is what later ones are held against, too


def decide(comparison: Comparison | None, live: str | None, *, must_gain: bool = False) -> Verdict:
    """Promote unless the candidate is worse beyond chance; without a live version there is nothing to lose.

    Args:
        must_gain: promote only what is ahead by one measure at least, too: for a change that costs much.
    """
    if comparison is None:
        return Verdict(True, live, "there was no live version to compare with", None)
    if comparison.worse:
        return Verdict(
            False, live, f"worse than the live version {live} beyond chance: {comparison.words()}", comparison
        )
    if must_gain and not comparison.better:
        words = f"ahead of the live version {live} by no measure: {comparison.words()}"
        return Verdict(False, live, words, comparison)
    return Verdict(True, live, f"not worse than {live} beyond chance: {comparison.words()}", comparison)


def compare(
    candidate_right: Flags,
    live_right: Flags,
    candidate_brier: Floats | None = None,
    live_brier: Floats | None = None,
) -> Comparison:
    """Paired one-sided tests of whether the candidate is worse.

    Args:
        candidate_right, live_right: [n], whether each was right on the same examples.
        candidate_brier, live_brier: [n] in [0, 2], squared distance of each's probabilities to the truth; without them
            only answers are compared.
    Raises:
        DataError: different lengths.
    """
    lengths = {
        len(column) for column in (candidate_right, live_right, candidate_brier, live_brier) if column is not None
    }
    if len(lengths) > 1:
        raise DataError(
            f"a paired test needs the same examples, got {sorted(lengths)}: predict with both versions on one list of "
            "examples"
        )
    from scipy.stats import binom

    n = len(live_right)
    candidate_only = int((candidate_right & ~live_right).sum())
    live_only = int((live_right & ~candidate_right).sum())
    difference: float | None = None
    brier_chance: float | None = None
    if candidate_brier is not None and live_brier is not None and n:
        paired = np.asarray(candidate_brier, np.float64) - np.asarray(live_brier, np.float64)
        difference = float(paired.mean())
        brier_chance = _chance_above_margin(paired) if n >= FEWEST_FOR_BRIER else None
    return Comparison(
        examples=n,
        candidate_accuracy=float(candidate_right.mean()) if n else None,
        live_accuracy=float(live_right.mean()) if n else None,
        candidate_only=candidate_only,
        live_only=live_only,
        chance=float(binom.cdf(candidate_only, candidate_only + live_only, 0.5)),
        brier_difference=difference,
        brier_chance=brier_chance,
    )


def squared_distances(probabilities: Floats, truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """[n] in [0, 2]: sum over classes of (p_c - 1[y = c])^2 for [n, C] probabilities.

    Args:
        truth: [n] column of the true class, -1 where the probabilities have none for it.
    """
    p = np.asarray(probabilities, np.float64)
    own = np.where(truth >= 0, p[np.arange(len(p)), np.maximum(truth, 0)], 0.0)
    result: NDArray[np.float64] = (p**2).sum(axis=1) - 2 * own + 1
    return result


def _chance_above_margin(paired: NDArray[np.float64]) -> float:
    """One-sided p-value of the t-test that the mean is above `MARGIN`."""
    from scipy.stats import t

    n = len(paired)
    error = float(paired.std(ddof=1)) / np.sqrt(n)
    above = float(paired.mean()) - MARGIN
    if error < 1e-12:  # the same difference everywhere: no chance in it
        return 0.0 if above > 0 else 1.0
    return float(t.sf(above / error, n - 1))
