"""Numbers that say how sure a model is of its answer; `confidence_comparison` tells which ranks its errors best.

Axes: n examples, C classes, D feature width. Every confidence is higher for a surer answer; its scale is its
own, so confidences of different names must not be compared. What they are for is ranking right before wrong
(`selective`), which a model's calibration does not change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import entr, softmax

from .errors import NonFiniteScoreError, NotADistributionError, NotFittedError, ShapeError
from .intervals import Floats
from .named import Registry
from .selective import aurc
from .shapes import check_labels, check_probs

NEIGHBOURS = 10  # labelled neighbours asked; more reach into other classes while labels are few
_BLOCK = 4 * 1024 * 1024  # cosines held at once: 32 MB of float64
_POWERS = (3, 4, 5, 6)  # p of the norm, as the paper found them useful
# Three classes at least: the centred logits of two are (a, -a), and any norm turns them into a constant.
_MIN_CLASSES_FOR_NORM = 3


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model says about n examples; what is None cannot be used by the confidences that need it.

    Attributes:
        probabilities: [n, C], rows sum to one; with a temperature, if one was fitted.
        logits: [n, C], before any temperature.
        probit: [n, C] predictive probabilities of a Laplace posterior, logits divided by their spread.
        agreement: [n] in [0, 1], from `label_agreement`.

    Raises:
        ShapeError, NotADistributionError; NonFiniteScoreError: a logit or an agreement is NaN or infinite.
    """

    probabilities: Floats
    logits: Floats | None = None
    probit: Floats | None = None
    agreement: Floats | None = None

    def __post_init__(self) -> None:
        p = check_probs(self.probabilities)
        object.__setattr__(self, "probabilities", p)
        if self.probit is not None:
            object.__setattr__(self, "probit", check_probs(self.probit))
        for name in ("logits", "agreement"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        for name, shape in (("logits", p.shape), ("probit", p.shape), ("agreement", p.shape[:1])):
            given: Floats | None = getattr(self, name)
            if given is None:
                continue
            if given.shape != shape:
                raise ShapeError(f"expected {name} of shape {list(shape)}, got {list(given.shape)}")
            bad = np.flatnonzero(~np.isfinite(given).all(axis=tuple(range(1, given.ndim))))
            if len(bad):
                raise NonFiniteScoreError(name, bad.tolist())

    @classmethod
    def of_logits(cls, logits: npt.ArrayLike, temperature: float = 1.0) -> "Outputs":
        """Outputs of logits [n, C] alone, their probabilities softened by `temperature` > 0.

        Raises:
            ShapeError, NotADistributionError.
        """
        given = np.asarray(logits, np.float64)
        if given.ndim != 2 or given.shape[1] < 1:
            raise ShapeError(f"expected logits of shape [n, C], got {list(given.shape)}")
        if not np.isfinite(given).all():
            raise NotADistributionError("some logits are NaN or infinite; look for NaN in what the head was given")
        return cls(softmax(given / temperature, axis=1), given)

    def __len__(self) -> int:
        return len(self.probabilities)

    def rows(self, rows: npt.NDArray[np.int64]) -> "Outputs":
        """Outputs of some examples."""

        def some(values: Floats | None) -> Floats | None:
            return None if values is None else values[rows]

        return Outputs(self.probabilities[rows], some(self.logits), some(self.probit), some(self.agreement))


Need = Literal["logits", "probit", "agreement"]


@dataclass(frozen=True)
class ConfidenceInfo:
    """What a caller may know about a confidence without reading its code."""

    name: str
    fn: Callable[[Outputs, int | None], Floats]  # outputs, parameter -> [n]
    summary: str  # completes "surest first by ..."
    paper: str
    needs: Need | None = None  # besides probabilities
    fit: Callable[[Outputs, npt.NDArray[np.bool_]], int | None] | None = None  # outputs, correct -> parameter
    min_classes: int = 1


@dataclass(frozen=True)
class Confidence:
    """A confidence ready for use: two plain values, to be kept with the model they were fitted with."""

    name: str
    parameter: int | None = None  # what was fitted; None: nothing, or nothing that helped

    def of(self, outputs: Outputs) -> Floats:
        """Confidence of each example, [n], higher means surer.

        Raises:
            UnknownMethodError; NotFittedError: the outputs lack what this confidence needs.
        """
        return _usable(self.name, outputs).fn(outputs, self.parameter)


_CONFIDENCES = Registry[ConfidenceInfo]("confidence")
register_confidence, get_confidence, list_confidences = _CONFIDENCES.register, _CONFIDENCES.get, _CONFIDENCES.list


def usable(info: ConfidenceInfo, outputs: Outputs) -> bool:
    """Whether the outputs hold what this confidence needs."""
    given = info.needs is None or getattr(outputs, info.needs) is not None
    return given and outputs.probabilities.shape[1] >= info.min_classes


def fit(name: str, outputs: Outputs, correct: npt.ArrayLike) -> Confidence:
    """The confidence of that name with its parameter fitted, if it has one.

    Args:
        outputs: of n calibration examples that the model did not train on.
        correct: [n] bool, whether the likeliest class was right.

    Raises:
        UnknownMethodError; NotFittedError: the outputs lack what it needs; ShapeError.
    """
    info = _usable(name, outputs)
    right = _flags(correct, len(outputs))
    return Confidence(name, None if info.fit is None else info.fit(outputs, right))


def label_agreement(
    features: npt.ArrayLike,
    predicted: npt.ArrayLike,
    reference: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    k: int = NEIGHBOURS,
    own: npt.ArrayLike | None = None,
) -> Floats:
    """Share of the k most similar labelled examples that carry the class predicted.

    Args:
        features: [n, D] of the examples asked about; rows L2-normalised.
        predicted: [n], class indices.
        reference: [m, D] of the labelled examples, likewise.
        labels: [m], class indices.
        k: neighbours; where fewer are labelled, all of them.
        own: [n] row of each example in `reference`, left out of its neighbours; -1 or None: it is not there.

    Returns:
        [n] in [0, 1]; equally similar ones at the edge of the k count by the share that still fits in.

    Raises:
        ShapeError; ValueError: k below one; NotFittedError: no labelled example is left to ask.

    Paper:
        Papernot and McDaniel 2018, arXiv:1803.04765 (k neighbours, there in every layer).
    """
    x, z = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    if x.ndim != 2 or z.ndim != 2 or x.shape[1] != z.shape[1]:
        raise ShapeError(f"expected features [n, D] and reference [m, D], got {list(x.shape)} and {list(z.shape)}")
    if not (np.isfinite(x).all() and np.isfinite(z).all()):
        raise ShapeError("some features are NaN or infinite; leave out the examples that could not be embedded")
    if k < 1:
        raise ValueError(f"expected k >= 1 neighbours, got {k}")
    most = np.iinfo(np.int64).max
    asked, known = check_labels(predicted, n=len(x), classes=most), check_labels(labels, n=len(z), classes=most)
    skip = np.full(len(x), -1) if own is None else np.asarray(own)
    if skip.shape != (len(x),) or skip.dtype.kind not in "iu" or (skip >= len(z)).any():
        raise ShapeError(
            f"expected own as integers below {len(z)} of shape [{len(x)}], got {skip.dtype} {list(skip.shape)}"
        )
    k = min(k, len(z) - bool((skip >= 0).any()))
    if len(x) and k < 1:
        raise NotFittedError("no labelled example to compare with; label some first")
    out = np.empty(len(x))
    step = max(1, _BLOCK // max(1, len(z)))
    for start in range(0, len(x), step):
        at = slice(start, start + step)
        cosine = x[at] @ z.T
        mine = np.flatnonzero(skip[at] >= 0)
        cosine[mine, skip[at][mine]] = -np.inf
        edge = np.partition(cosine, len(z) - k, axis=1)[:, [len(z) - k]]
        above, level = cosine > edge, cosine == edge
        agree = known == asked[at, None]
        # Copies of one example at the edge: each counts by the chance that a fair draw would take it.
        share = (k - above.sum(1)) / level.sum(1)
        out[at] = ((above & agree).sum(1) + share * (level & agree).sum(1)) / k
    return out


def _usable(name: str, outputs: Outputs) -> ConfidenceInfo:
    info = get_confidence(name)
    if not usable(info, outputs):
        needs = info.needs or "probabilities"
        raise NotFittedError(
            f"confidence {name!r} needs {needs} of at least {info.min_classes} class(es); "
            f"give Outputs({needs}=...) or choose another"
        )
    return info


def _flags(correct: npt.ArrayLike, n: int) -> npt.NDArray[np.bool_]:
    right = np.asarray(correct)
    if right.shape != (n,) or (right.dtype != np.bool_ and n):
        raise ShapeError(f"expected correct as booleans of shape [{n}], got {right.dtype} {list(right.shape)}")
    return right.astype(np.bool_)


def _given(values: Floats | None) -> Floats:
    if values is None:
        raise NotFittedError("the outputs lack what this confidence needs")
    return values


def _msp(outputs: Outputs, _: int | None) -> Floats:
    largest: Floats = outputs.probabilities.max(1)
    return largest


def _margin(outputs: Outputs, _: int | None) -> Floats:
    p = outputs.probabilities
    two = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    gap: Floats = two[:, 1] - two[:, 0]
    return gap


def _negative_entropy(outputs: Outputs, _: int | None) -> Floats:
    negative: Floats = -entr(outputs.probabilities).sum(1)
    return negative


def _max_logit(outputs: Outputs, _: int | None) -> Floats:
    largest: Floats = _given(outputs.logits).max(1)
    return largest


def _max_logit_norm(outputs: Outputs, p: int | None) -> Floats:
    if p is None:
        return _msp(outputs, None)
    logits = _given(outputs.logits)
    centred = logits - logits.mean(1, keepdims=True)
    largest = np.abs(centred).max(1)
    # In units of the largest, powers neither overflow nor vanish. Logits all equal: as unsure as can be.
    unit = centred / np.where(largest > 0, largest, 1)[:, None]
    norm = (np.abs(unit) ** p).sum(1) ** (1 / p)
    ratio: Floats = unit.max(1) / np.where(norm > 0, norm, 1)
    return ratio


def _choose_power(outputs: Outputs, correct: npt.NDArray[np.bool_]) -> int | None:
    """The p with the least AURC; None when none is better than the likeliest class's probability."""
    best, least = None, aurc(_msp(outputs, None), correct)
    for p in _POWERS:
        area = aurc(_max_logit_norm(outputs, p), correct)
        if area < least:
            best, least = p, area
    return best


def _doctor(outputs: Outputs, _: int | None) -> Floats:
    square = (outputs.probabilities**2).sum(1)
    odds: Floats = 1 - (1 - square) / square
    return odds


def _probit(outputs: Outputs, _: int | None) -> Floats:
    largest: Floats = _given(outputs.probit).max(1)
    return largest


def _agreement(outputs: Outputs, _: int | None) -> Floats:
    return _given(outputs.agreement)


for _info in (
    ConfidenceInfo(
        "msp", _msp, "the probability of the likeliest class", "Hendrycks and Gimpel 2017, arXiv:1610.02136"
    ),
    ConfidenceInfo(
        "margin",
        _margin,
        "the gap between the two likeliest classes",
        "Scheffer et al. 2001; Settles 2009, sec. 3.1",
        min_classes=2,
    ),
    ConfidenceInfo("negative_entropy", _negative_entropy, "how little the prediction is spread", "Shannon 1948"),
    ConfidenceInfo(
        "max_logit", _max_logit, "the largest logit", "Hendrycks et al. 2022, arXiv:1911.11132", needs="logits"
    ),
    ConfidenceInfo(
        "max_logit_pnorm",
        _max_logit_norm,
        "the largest logit over the norm of them all",
        "Cattelan and Silva 2024, arXiv:2305.15508",
        needs="logits",
        fit=_choose_power,
        min_classes=_MIN_CLASSES_FOR_NORM,
    ),
    ConfidenceInfo(
        "doctor",
        _doctor,
        "the chance that two answers drawn from the prediction agree",
        "Granese et al. 2021, arXiv:2106.02395",
    ),
    ConfidenceInfo(
        "laplace_probit",
        _probit,
        "the probability of the likeliest class, what is not known about the weights averaged out",
        "MacKay 1992, The evidence framework applied to classification networks",
        needs="probit",
    ),
    ConfidenceInfo(
        "label_agreement",
        _agreement,
        "the share of labelled neighbours that carry the class predicted",
        "Papernot and McDaniel 2018, arXiv:1803.04765",
        needs="agreement",
    ),
):
    register_confidence(_info)
