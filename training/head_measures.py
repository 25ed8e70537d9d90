"""What a head is worth on held-out answers, by kind; and heads as classes, which is what strategies know.

n  audit examples    N  examples of a pool    C  classes or labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import Amount, AnyOf, OneOf, Output, normal_cdf
from .evaluate import audit_metrics
from .quality import set_metrics
from .targets import HeadSpec, Target

Ids = NDArray[np.int64]
Floats = NDArray[np.floating]
Metrics = dict[str, float | None]

_BINS = 4  # of a number seen as classes: enough to cover its range, few enough to have labels in each
_NINETY = 1.6448536269514722  # standard deviations either side that hold 90 % of a normal distribution


def as_array(spec: HeadSpec, targets: Sequence[Target]) -> NDArray[Any]:
    """[n] class indices, [n, C] flags, or [n] numbers."""
    if spec.kind == "number":
        return np.array(targets, np.float64)
    if spec.kind == "multiple":
        flags = np.zeros((len(targets), len(spec.classes)), bool)
        for row, places in enumerate(targets):
            assert isinstance(places, tuple)
            flags[row, list(places)] = True
        return flags
    return np.array(targets, np.int64)


def metrics_of(output: Output, truth: NDArray[Any]) -> Metrics:
    """Metrics on held-out answers, None where nothing can be said.

    Args:
        truth: of `as_array`.
    Returns:
        audit_n, accuracy, accuracy_low, accuracy_high for every kind: the share of answers that are right, with its
        95 % Wilson interval. And
        single    all of `evaluate.audit_metrics` and `quality.set_metrics`
        ordered   these, and mae: how many classes off, on average
        multiple  of `label_metrics`
        number    of `number_metrics`
    """
    if isinstance(output, AnyOf):
        return label_metrics(output.probabilities, truth)
    if isinstance(output, Amount):
        return number_metrics(output, truth)
    assert isinstance(output, OneOf)
    probabilities = np.exp(output.log_probabilities)
    found = audit_metrics(probabilities, truth) | set_metrics(probabilities, truth)
    if output.spec.kind == "ordered":
        off = np.abs(output.answers().answer - truth)
        found |= _right(off == 0)
        found["mae"] = float(off.mean()) if len(truth) else None
    return found


def label_metrics(probabilities: Floats, truth: NDArray[np.bool_]) -> Metrics:
    """Of labels that are each on or off: [n, C] probabilities and flags.

    Returns:
        accuracy                all labels of an example right, with accuracy_low and accuracy_high
        label_accuracy          single labels right
        mean_average_precision  mean over the labels that apply somewhere of the area under precision and recall
        f1_macro                mean over the same labels of F1, "on" from 1/2
        nll                     nats per label
        ece                     of single labels, 15 bins of how sure each is
        brier                   squared distance to the truth of on and off, mean over labels, in [0, 2]
    """
    from uncertainty.calibration import expected_calibration_error

    n = len(truth)
    on = probabilities > 0.5
    found = _right((on == truth).all(axis=1)) | dict.fromkeys(
        ("label_accuracy", "mean_average_precision", "f1_macro", "nll", "ece", "brier")
    )
    if not n or not truth.shape[1]:
        return found
    p = np.asarray(probabilities, np.float64)
    occurs = np.flatnonzero(truth.any(axis=0))
    both = (on & truth).sum(axis=0)
    f1 = 2 * both[occurs] / (on.sum(axis=0) + truth.sum(axis=0))[occurs]
    own = np.clip(np.where(truth, p, 1 - p), 1e-12, 1)
    pairs = np.stack([1 - p.ravel(), p.ravel()], axis=1)
    return found | {
        "label_accuracy": float((on == truth).mean()),
        "mean_average_precision": float(np.mean([average_precision(p[:, c], truth[:, c]) for c in occurs]))
        if len(occurs)
        else None,
        "f1_macro": float(f1.mean()) if len(occurs) else None,
        "nll": float(-np.log(own).mean()),
        "ece": expected_calibration_error(pairs, truth.ravel().astype(np.int64)),
        "brier": float(2 * ((p - truth) ** 2).mean()),
    }


def average_precision(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Sum over thresholds of precision times the recall that each adds; scores that are equal count together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def number_metrics(output: Amount, truth: NDArray[np.float64]) -> Metrics:
    """Of numbers.

    Returns:
        accuracy     off by at most a twentieth of the range, with accuracy_low and accuracy_high
        mae, rmse    in units of the answer
        nll          nats, of the normal density
        coverage_90  share of answers inside the interval that is to hold 90 %
    """
    answer = output.answers().answer.astype(np.float64)
    off = np.abs(answer - truth)
    found = _right(off <= output.tolerance + 1e-9) | dict.fromkeys(("mae", "rmse", "nll", "coverage_90"))
    if not len(truth):
        return found
    z = (truth - output.mean) / output.sd
    return found | {
        "mae": float(off.mean()),
        "rmse": float(np.sqrt((off**2).mean())),
        "nll": float((0.5 * z**2 + np.log(output.sd * np.sqrt(2 * np.pi))).mean()),
        "coverage_90": float((np.abs(z) <= _NINETY).mean()),
    }


def _right(right: NDArray[np.bool_]) -> Metrics:
    """How many of n answers are right."""
    from uncertainty.calibration import wilson_interval

    n = len(right)
    if not n:
        return {"audit_n": 0.0, "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    low, high = wilson_interval(int(right.sum()), n)
    return {"audit_n": float(n), "accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


def distances(output: Output, truth: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of n answers: whether each is right, and how far what is stated is from the truth, in [0, 2].

    Args:
        truth: of `as_array`; a class index of -1 is one that the head does not know.
    """
    from .gate import squared_distances

    if isinstance(output, AnyOf):
        right = ((output.probabilities > 0.5) == truth).all(axis=1)
        return right, 2 * ((output.probabilities - truth) ** 2).mean(axis=1).astype(np.float64)
    if isinstance(output, Amount):
        off = np.abs(output.answers().answer - truth)
        return off <= output.tolerance + 1e-9, np.minimum(2 * (off / (output.high - output.low)) ** 2, 2)
    assert isinstance(output, OneOf)
    return output.answers().answer == truth, squared_distances(np.exp(output.log_probabilities), truth)


def as_classes(output: Output, targets: Mapping[int, Target]) -> tuple[NDArray[np.float32], dict[int, int]]:
    """A head seen as one distribution over classes: log-probabilities [N, C], and the class of each target.

    Of labels that may all apply the class is the rarest that does, or none of them, labels taken as independent: so
    what a class lacks is what a rare label lacks. Numbers fall into quarters of those known.
    """
    if isinstance(output, AnyOf):
        return _rarest(output, targets)
    if isinstance(output, Amount):
        return _quarters(output, targets)
    assert isinstance(output, OneOf)
    return output.log_probabilities, {i: int(target) for i, target in targets.items() if isinstance(target, int)}


def _rarest(output: AnyOf, targets: Mapping[int, Target]) -> tuple[NDArray[np.float32], dict[int, int]]:
    known = {i: target for i, target in targets.items() if isinstance(target, tuple)}
    labels = output.probabilities.shape[1]
    count = np.zeros(labels, np.int64)
    for places in known.values():
        count[list(places)] += 1
    rarest = np.argsort(count, kind="stable")
    rank = np.argsort(rarest, kind="stable")
    p = np.empty((len(output.probabilities), labels + 1))
    left = np.ones(len(p))
    for label in rarest.tolist():
        p[:, label] = left * output.probabilities[:, label]
        left -= p[:, label]
    p[:, labels] = left
    np.maximum(p, 1e-9, out=p)
    log_p = np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    return log_p, {i: min(places, key=lambda c: rank[c], default=labels) for i, places in known.items()}


def _quarters(output: Amount, targets: Mapping[int, Target]) -> tuple[NDArray[np.float32], dict[int, int]]:
    known = {i: float(target) for i, target in targets.items() if isinstance(target, float)}
    answers = list(known.values()) or [output.low, output.high]
    edges = np.unique(np.quantile(answers, np.arange(1, _BINS) / _BINS))
    below = np.stack([normal_cdf((edge - output.mean) / output.sd) for edge in edges], axis=1)
    ends = np.ones((len(below), 1))
    p = np.maximum(np.diff(np.hstack([0 * ends, below, ends]), axis=1), 1e-9)
    log_p = np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    return log_p, {i: int(np.searchsorted(edges, value)) for i, value in known.items()}
