"""How good a version's uncertainty is, in a few plain sentences. Pure: the version's record in, texts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training import api as training

# What people call the confidences of the comparison.
CONFIDENCES = {
    "msp": "the probability of the likeliest class",
    "margin": "the gap between the two likeliest classes",
    "negative_entropy": "the entropy of the prediction",
    "max_logit": "the largest logit",
    "max_logit_pnorm": "the largest logit over the norm of them all",
    "doctor": "the chance that two drawn answers agree (DOCTOR)",
    "laplace_probit": "the averaged (probit) probability",
    "label_agreement": "the agreement with labelled neighbours",
}


@dataclass(frozen=True)
class PossibleSummary:
    """What conformal sets of a sample of the unlabelled images look like."""

    version: str  # model version that made them
    images: int  # images looked at
    one: int  # of these, with one possible label
    mean: float  # possible labels per image
    misses: float  # share of sets that may lack the true label
    labels: int  # audit labels that the promise rests on

    @classmethod
    def of(cls, version: str, found: training.PossibleLabels) -> PossibleSummary:
        size = found.sets[found.known].sum(axis=1)
        return cls(
            version,
            len(size),
            int((size == 1).sum()),
            float(np.mean(size)) if len(size) else 0.0,
            found.misses,
            found.labels,
        )

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def quality_sentences(
    live: training.VersionInfo | None, possible: Mapping[str, Any] | None
) -> tuple[tuple[str, str], ...]:
    """(what it is about, sentence) of the live version; nothing where too few audit labels are there to tell.

    Args:
        possible: what `PossibleSummary.record` gave, of any version; of another than the live one it is left out.
    """
    if live is None:
        return ()
    m = live.metrics
    labels = int(m.get("audit_n") or 0)
    said: list[tuple[str, str]] = []
    gap, low, high = (m.get(name) for name in ("ece_debiased", "ece_low", "ece_high"))
    if gap is not None and low is not None and high is not None:
        said.append(
            (
                "calibration",
                f"stated confidence is typically {gap:.1%} off (95 % interval {low:.1%} to {high:.1%}, {labels} audit "
                "labels)",
            )
        )
    errors = _errors(m, labels, live.error_ranking)
    if errors:
        said.append(("errors", errors))
    if possible is not None and possible["version"] == live.id and possible["images"]:
        said.append(("labels left", _possible(PossibleSummary(**possible), m)))
    return tuple(said)


def _errors(m: Mapping[str, float | None], labels: int, ranking: training.ErrorRanking | None) -> str:
    parts = []
    auroc, low, high = (m.get(name) for name in ("auroc", "auroc_low", "auroc_high"))
    accuracy = m.get("accuracy")
    if auroc is not None and low is not None and high is not None and accuracy is not None:
        right = round(accuracy * labels)
        parts.append(
            f"a right answer is surer than a wrong one in {auroc:.0%} of pairs (95 % interval {low:.0%} to {high:.0%}, "
            f"{right} right and {labels - right} wrong audit labels)"
        )
    share, low, high = (m.get(f"coverage_at_95{end}") for end in ("", "_low", "_high"))
    if share is not None and low is not None and high is not None:
        parts.append(
            f"95 % of the surest {share:.0%} are right (95 % interval of that share {low:.0%} to {high:.0%}, {labels} "
            "audit labels; a description, not a promise)"
            if share
            else f"no share of the surest is 95 % right ({labels} audit labels)"
        )
    if ranking is not None:
        if ranking.best == "msp":
            parts.append(
                f"of {len(ranking.aurc)} confidences none ranks errors better than {CONFIDENCES['msp']} beyond chance"
            )
        else:
            parts.append(
                f"{CONFIDENCES.get(ranking.best, ranking.best)} ranks errors best of {len(ranking.aurc)}: AURC "
                f"{ranking.aurc[ranking.best]:.3f} instead of {ranking.aurc['msp']:.3f} (gain {ranking.gain:.3f}, 95 % "
                f"interval {ranking.gain_low:.3f} to {ranking.gain_high:.3f})"
            )
    return "; ".join(parts)


def _possible(found: PossibleSummary, m: Mapping[str, float | None]) -> str:
    text = (
        f"of 100 unlabelled images {_of_hundred(found.one, found.images)} have one possible label at "
        f"{1 - found.misses:.0%}, {found.mean:.1f} on average ({found.labels} audit labels; promised over all images, "
        "not over those that are left)"
    )
    worst = m.get("set_worst")
    if worst is not None and worst < 1 - found.misses:
        text += f"; in the class that fares worst {worst:.0%} of the sets hold the truth"
    return text


def _of_hundred(count: int, images: int) -> str:
    share = 100 * count / images
    if 0 < share < 1:
        return "fewer than 1"
    return "more than 99" if 99 < share < 100 else f"{share:.0f}"
