"""Several heads as one: what a strategy sees of them, and which question is worth asking about an example.

    N  embedded examples    H  heads    C  classes

Strategies know one distribution over classes. They get that of the lead head, the one of most weight, seen as classes,
with the two likeliest moved so far apart that their gap says how uncertain all heads are together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .answers import HeadAnswers, Output
from .linear import Floats
from .ranking import Ranking

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
_REST = 1e-6  # probability that the other classes share: none is impossible, and margins do not notice


@dataclass(frozen=True)
class Shown:
    """A question is asked only where another one was answered in a certain way."""

    parent: str  # name of the other head
    classes: tuple[int, ...]  # indices in its classes
    chosen: bool = True  # shown where one of them was chosen; False: where none was


@dataclass(frozen=True)
class Asking:
    """What people want of the heads, by name; a head without an entry is as any other."""

    weights: Mapping[str, float] = field(default_factory=dict)  # > 0; others then count 1. None at all: by what lacks
    shown: Mapping[str, tuple[Shown, ...]] = field(default_factory=dict)  # all must hold


@dataclass(frozen=True, eq=False)
class Joint:
    """What all heads say together of N examples."""

    uncertainty: NDArray[np.float64]  # [N] in [0, 1]
    confidence: Floats  # [N] expected share of the questions that are answered right, in [0, 1]
    worth: NDArray[np.int8]  # [N] place of the head whose answer is worth most, -1: nothing is asked
    weights: dict[str, float]  # of the heads in the order, by name; sum to one
    lead: int  # place of the head whose classes strategies see

    @property
    def note(self) -> str:
        """The weights, for people."""
        parts = (f"{name} {share:.0%}" for name, share in self.weights.items())
        return f"questions count {', '.join(parts)}" if len(self.weights) > 1 else ""


def join(outputs: Sequence[Output], answers: Sequence[HeadAnswers], known: Sequence[Mask], asking: Asking) -> Joint:
    """Combine heads by the mean of their uncertainties, by weight and by how likely each question is asked at all.

    The mean of margins, not of their ranks (`uncertainty.multihead.combine`): ranks forget whether anything is in doubt
    at all, and with two questions each about HAM10000 and MNIST they do no better (`benchmark.heads`).

    Args:
        outputs, answers: of each head, N examples each; names are distinct.
        known: [N] of each head, where its answer is known: nothing is to be gained there. What a head lacks is its
            weight where people gave none.
    """
    from uncertainty.multihead import head_weights

    names = [output.spec.name for output in outputs]
    given = asking.weights.keys() & set(names)
    weights = (
        head_weights({name: 1 for name in names}, {name: asking.weights.get(name, 1.0) for name in names})
        if given
        else head_weights({name: int((~there).sum()) for name, there in zip(names, known, strict=True)})
    )
    asked = np.stack([_chance_asked(name, outputs, asking) for name in names])  # [H, N]
    open_ = ~np.stack(list(known))
    share = np.array([weights[name] for name in names])[:, None]
    weighed = share * np.stack([output.uncertainty() for output in outputs]).astype(np.float64) * asked * open_
    confidence = np.stack([answer.confidence for answer in answers])
    total = asked.sum(axis=0)
    # A mean of chances is the expected share of right answers whatever the heads have to do with each other.
    mean = (confidence * asked).sum(axis=0) / np.maximum(total, 1e-12)
    return Joint(
        np.minimum(weighed.sum(axis=0), 1),
        np.where(total > 0, mean, confidence[0]).astype(np.float32),
        np.where(open_.any(axis=0), np.where(open_, weighed, -1.0).argmax(axis=0), -1).astype(np.int8),
        weights,
        max(range(len(names)), key=lambda place: weights[names[place]]),
    )


def _chance_asked(name: str, outputs: Sequence[Output], asking: Asking) -> Floats:
    """[N] chance that a question is shown, its conditions taken as independent."""
    by_name = {output.spec.name: output for output in outputs}
    chance = np.ones(len(outputs[0].uncertainty()), np.float32)
    for shown in asking.shown.get(name, ()):
        if shown.parent in by_name:
            yes = by_name[shown.parent].chance_of(shown.classes)
            chance *= np.clip(yes if shown.chosen else 1 - yes, 0, 1)
    return chance


def as_log_probabilities(uncertainty: NDArray[np.float64], lead: Floats) -> Floats:
    """[N] uncertainty in [0, 1] -> [N, C] log-probabilities whose margin uncertainty it is, up to 1e-6.

    The likeliest two classes are those of `lead`, [N, C].
    """
    n, classes = lead.shape
    if classes < 2:
        return np.zeros((n, 1), np.float32)
    rest = _REST if classes > 2 else 0.0
    out = np.full(lead.shape, rest / max(classes - 2, 1), np.float64)
    rows, order = np.arange(n), np.argsort(lead, axis=1, kind="stable")
    less = np.clip(uncertainty, 1e-9, 1) / 2
    out[rows, order[:, -1]] = (1 - rest) * (1 - less)
    out[rows, order[:, -2]] = (1 - rest) * less
    return np.log(out).astype(np.float32)


def ranking_of_heads(ranking: Ranking, joint: Joint, answers: Sequence[HeadAnswers], rows: Ids) -> Ranking:
    """The ranking with what each head answers; `rows` are the leading ones of it, those that are embedded."""
    n, m = len(ranking), len(rows)
    confidence, worth = np.zeros(n, np.float32), np.full(n, -1, np.int8)
    confidence[:m], worth[:m] = joint.confidence[rows], joint.worth[rows]
    confidence[m:] = confidence[:m].max(initial=0)
    places = np.arange(m)
    placed = tuple(answer.take(rows).scattered(places, n) for answer in answers)
    classes = placed[0].spec.kind in ("single", "ordered")
    label = placed[0].answer if classes else np.full(n, -1, np.int32)
    note = "; ".join(part for part in (joint.note, ranking.note) if part)
    return replace(ranking, confidence=confidence, label=label, answers=placed, worth=worth, note=note)
