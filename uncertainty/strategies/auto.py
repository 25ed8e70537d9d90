"""`auto`: coverage of what is uncertain and wanted, with every weight measured in the pool.

UHerding (Bae et al. 2024, arXiv:2412.20644) asks for examples that together represent the uncertain ones. That loses
where a few classes are most of the pool, where uncertainty means nothing yet, where copies crowd the candidates and
where strange examples attract it. Each of these is measured first and sets one number of the choice:

    imbalance    labels of each class: the fewer there are of a class, the more an example counts that may belong to it
    calibration  likelihood of the labels out of fold: while the model does no better than guessing, its doubts count
                 for nothing and coverage alone decides
    redundancy   share of the pool with a copy: the larger, the more candidates are looked at
    outliers     candidates farther from everything than nearly all of the pool: left to chance and to the probe
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..layers import distance_to_nearest
from ..linear_head import LinearHead, find_minimum, log_softmax
from ..pool import CHUNK, Pool, Rows
from ..selection import Selection, StrategyInfo, register_strategy
from .herding import CANDIDATES, PER_CHOICE, by_margin, herd, offered

Doubles = npt.NDArray[np.float64]

SAMPLE = 1024  # rows that outliers are measured by
_COPY = 0.98  # cosine from which two examples count as copies
_ASKED, _SCANNED = 512, 8_192  # rows whose copies are looked for, rows looked at in one step
_MOST_TIMES = 2  # as many candidates, when nearly everything is a copy; 4 chose no better (copies, six seeds each)
_FENCE = 3.0  # interquartile ranges above the third quartile: "far out" (Tukey 1977)
_NEED = 1.5  # how steeply a class counts by its labels; the best of 0, 0.5, 1, 1.5 and 2 on HAM10000 and CIFAR-10
_LOPSIDED = 0.5  # least need from which classes count as even, for what is said
_WORTH_SAYING = 0.05  # share of copies
_FOLDS = 5
_FEWEST_LABELS = 20  # before that nothing can be said out of fold
_MOST_LABELS = 400  # that competence is measured on
_LENGTH, _RIDGE = 8.0, 1.0  # of rows, and the regularisation that suits it: as in the product's head


@dataclass(frozen=True)
class Diagnosis:
    """What was measured in a pool.

    Attributes:
        need: [C] weight of each class, 1 for the one with the fewest labels.
        competence: 1 - NLL / log C of labels out of fold, at most 1, 0 is guessing; None with fewer than 20 labels.
        copies: share of the pool that has a copy, see `share_of_copies`.
        fence: distance above which a row is an outlier, see `layers.distance_to_nearest`.
    """

    need: Doubles
    competence: float | None
    copies: float
    fence: float


def diagnose(pool: Pool, sample: Rows, rng: np.random.Generator) -> Diagnosis:
    """Measure a pool by a random `sample` of its rows and by its labels."""
    far = distance_to_nearest(pool, sample, sample)
    low, high = np.quantile(far, [0.25, 0.75])
    return Diagnosis(
        need=class_need(pool),
        competence=competence(pool, rng),
        copies=share_of_copies(pool, sample),
        fence=float(high + _FENCE * (high - low)),
    )


def class_need(pool: Pool) -> Doubles:
    """[C] in (0, 1]: (labels of the class + 1)^-1.5 over its largest value."""
    labels = np.bincount(pool.labels_of_labelled, minlength=pool.classes)
    need: Doubles = np.power(labels + 1.0, -_NEED, dtype=np.float64)
    need /= need.max()
    return need


def competence(pool: Pool, rng: np.random.Generator) -> float | None:
    """What a linear model knows of labelled rows that it has not seen: 1 - NLL / log C, with a temperature fitted to
    the same rows so that over-confidence alone is not held against it."""
    rows = np.sort(rng.permutation(pool.known_rows)[:_MOST_LABELS])
    classes = pool.classes
    if len(rows) < _FEWEST_LABELS or classes < 2 or pool.labels is None:
        return None
    y = pool.labels[rows]
    x = pool.features[rows].astype(np.float32) * np.float32(_LENGTH)
    fold = rng.permutation(len(rows)) % _FOLDS
    logits = np.empty((len(rows), classes))
    for number in range(_FOLDS):
        seen = fold != number
        start = LinearHead.zero(x.shape[1], classes)
        weights = np.ones(int(seen.sum()))
        head = find_minimum(x[seen], y[seen], weights, classes, _RIDGE, start, gradient=1e-3, loss_change=1e-5).head
        logits[~seen] = head.logits(x[~seen])
    nll = min(-log_softmax(logits / t)[np.arange(len(y)), y].mean() for t in (0.5, 1.0, 2.0, 4.0, 8.0))
    return float(min(1.0, 1 - nll / np.log(classes)))


def share_of_copies(pool: Pool, sample: Rows) -> float:
    """Share of rows with a cosine above 0.98 to another one, in [0, 1], by up to 512 random rows: exact in that they
    are held against all rows of a pool of up to 65,536, a lower bound above."""
    some = sample[:_ASKED]
    others = np.flatnonzero(~pool.excluded)[:CHUNK]
    x = pool.rows(some)
    found = np.zeros(len(some), bool)
    for start in range(0, len(others), _SCANNED):
        part = others[start : start + _SCANNED]
        alike = (x @ pool.rows(part).T > _COPY).numpy()
        found |= (alike & (some[:, None] != part[None, :])).any(axis=1)
    return float(found.mean()) if len(some) else 0.0


def _auto(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    sample = rng.permutation(np.flatnonzero(~pool.excluded))[:SAMPLE]
    found = diagnose(pool, sample, rng)
    rows, margin = by_margin(pool, rng)
    trusted = found.competence is None or found.competence > 0
    weights = _expected(pool, rows, found.need) * (margin if trusted else 1)
    times = 1 / max(1 - found.copies, 1 / _MOST_TIMES)
    candidates = offered(rows, weights, round(times * max(CANDIDATES, PER_CHOICE * k)), rng)
    near = distance_to_nearest(pool, candidates, sample) <= found.fence
    if near.sum() < k:  # too few are left: then nothing is strange here
        near[:] = True
    chosen = herd(pool, k, rng, rows, weights, "uncertain", candidates[near])
    return replace(chosen, note=said(found, int((~near).sum()), len(near)))


def _expected(pool: Pool, rows: Rows, value: Doubles) -> Doubles:
    """[n] mean of a value of classes [C] under the averaged prediction of each row."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        probs = pool.predictions(rows[part]).exp().mean(1).double().numpy()
        out[part] = probs @ value[: probs.shape[1]]
    return out


def said(found: Diagnosis, outliers: int, looked_at: int) -> str:
    """What was measured and what follows, for people."""
    parts = []
    least = float(found.need.min())
    if least < _LOPSIDED:
        parts.append(f"a class with few labels counts up to {1 / least:.0f} times as much as the one with most")
    else:
        parts.append("labels are even: all classes count alike")
    if found.competence is None:
        parts.append(f"fewer than {_FEWEST_LABELS} labels: how far doubts can be trusted is not known yet")
    elif found.competence > 0:
        parts.append(f"out of fold the model knows {found.competence:.0%} of the class: the doubtful ones come first")
    else:
        parts.append("out of fold the model does no better than guessing: coverage decides alone")
    if found.copies > _WORTH_SAYING:
        parts.append(f"{found.copies:.0%} have a copy: more candidates are looked at")
    if outliers:
        parts.append(f"{outliers:,} of {looked_at:,} candidates are like nothing else: left to chance")
    return "; ".join(parts)


register_strategy(
    StrategyInfo(
        "auto",
        _auto,
        "Coverage of what is uncertain and of classes with few labels, weighed by what is measured in the pool.",
        True,
        "ours, on Bae et al. 2024, arXiv:2412.20644",
        needs_labels=True,
        exactness="as uherding, with up to twice the candidates; copies and outliers by random samples",
    )
)
