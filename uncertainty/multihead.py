"""Uncertainty of examples that want more than one answer: several heads, or several labels that may all apply.

n examples, B examples in a batch, S posterior samples, L labels, each on or off.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor

from . import scores
from .errors import NonFiniteScoreError, NotADistributionError, PoolError, ShapeError, UnknownMethodError
from .shapes import check_log_probs, check_mask

Doubles = npt.NDArray[np.float64]
Over = Literal["sum", "mean", "max"]
_OVER: tuple[Over, ...] = get_args(Over)
LABEL_SCORES = {
    "entropy": scores.predictive_entropy,
    "margin": scores.margin_uncertainty,
    "bald": scores.mutual_information,
}


def combine(
    uncertainties: Mapping[str, npt.ArrayLike],
    weights: Mapping[str, float] | None = None,
    missing: Mapping[str, npt.ArrayLike] | None = None,
) -> tuple[Doubles, npt.NDArray[np.int64]]:
    """One uncertainty from those of several heads, by ranks, and the head worth asking for: sum_t a_t rank_t / n_t.

    Ranks, because units differ between heads; equal values share the average rank. A head ranks only the examples
    whose answer it lacks, and an answer already given adds nothing.

    Args:
        uncertainties: [n] of each head, growing with uncertainty.
        weights: a_t >= 0 of each head, not all zero; None: `head_weights` of what is missing.
        missing: [n] bool of each head, whether its answer is lacking; None: all are.

    Returns:
        [n] in [0, 1], and [n] place of a head in `uncertainties`, -1 where nothing is missing. Of equal heads, the
        first.

    Raises:
        ShapeError: lengths disagree; PoolError: no head, other names, or weights that make no sense;
        NonFiniteScoreError: NaN or infinity where an answer is missing.
    """
    names = list(uncertainties)
    if not names:
        raise PoolError("expected the uncertainties of at least one head")
    columns = {name: np.asarray(uncertainties[name], np.float64) for name in names}
    n = len(np.atleast_1d(columns[names[0]]))
    for name, column in columns.items():
        if column.shape != (n,):
            raise ShapeError(f"expected uncertainties of shape [{n}] for each head, got {list(column.shape)}: {name!r}")
    lacks: dict[str, npt.NDArray[np.bool_]] = {name: np.ones(n, dtype=bool) for name in names}
    if missing is not None:
        _same_names("missing", missing, names)
        lacks = {name: check_mask(name, missing[name], n) for name in names}
    if weights is None:
        shares = head_weights({name: int(lacks[name].sum()) for name in names})
    else:
        _same_names("weights", weights, names)
        shares = _normalised(weights)
    part = np.zeros((n, len(names)))
    for place, name in enumerate(names):
        rows = np.flatnonzero(lacks[name])
        bad = rows[~np.isfinite(columns[name][rows])]
        if len(bad):
            raise NonFiniteScoreError(name, bad.tolist())
        if len(rows):
            part[rows, place] = shares[name] * rankdata(columns[name][rows]) / len(rows)
    wanted = np.stack([lacks[name] for name in names], axis=1)
    # A head of weight zero is asked for only where no other one is missing.
    head = np.where(wanted.any(1), np.where(wanted, part, -1.0).argmax(1), -1)
    return np.minimum(part.sum(1), 1.0), head.astype(np.int64)


def head_weights(missing: Mapping[str, int], nll: Mapping[str, float] | None = None) -> dict[str, float]:
    """How much each head counts: in proportion to answers still missing, times its loss where known.

    Args:
        missing: answers each head lacks, >= 0.
        nll: >= 0, negative log-likelihood of each head out of fold, nats.

    Returns:
        Weights that sum to one; equal ones when nothing is missing or nothing is lost.

    Raises:
        PoolError: no head, other names, negative or not finite numbers.
    """
    if not missing:
        raise PoolError("expected at least one head")
    if nll is not None:
        _same_names("nll", nll, list(missing))
    wanted = {name: float(count) * (1.0 if nll is None else float(nll[name])) for name, count in missing.items()}
    if not any(wanted.values()):
        return dict.fromkeys(missing, 1 / len(missing))
    return _normalised(wanted)


def multi_label(name: str, predictions: Tensor, over: Over = "mean") -> Tensor:
    """Uncertainty of examples whose L labels are each on or off.

    Args:
        name: "entropy", "margin" or "bald"; of each label as a question with two answers.
        predictions: [B, S, L] probabilities of "on", or [B, S, L, 2] log-probabilities of off and on.
        over: how labels are put together: "sum" prefers examples with many doubtful labels, "max" those with one.

    Returns:
        [B], nats for entropy and bald (at most log 2 a label), else in [0, 1] a label.

    Raises:
        UnknownMethodError; ShapeError: other axes or no label; NotADistributionError: no probabilities.
    """
    if name not in LABEL_SCORES:
        raise UnknownMethodError(name, LABEL_SCORES)
    if over not in _OVER:
        raise UnknownMethodError(over, _OVER)
    log_probs = _binary_log_probs(predictions)
    batch, samples, labels = log_probs.shape[:3]
    flat = log_probs.transpose(1, 2).reshape(batch * labels, samples, 2)
    each = LABEL_SCORES[name](flat).view(batch, labels)
    if over == "max":
        return each.amax(1)
    return each.sum(1) if over == "sum" else each.mean(1)


def _binary_log_probs(predictions: Tensor) -> Tensor:  # -> [B, S, L, 2]
    shape = list(predictions.shape)
    if predictions.ndim not in (3, 4) or shape[1] < 1 or shape[2] < 1 or (predictions.ndim == 4 and shape[3] != 2):
        raise ShapeError(f"expected probabilities [B, S, L] or log-probabilities [B, S, L, 2], got {shape}")
    if predictions.ndim == 4:
        check_log_probs(predictions.flatten(1, 2))
        return predictions
    # all() of comparisons is False for NaN, which is what a guard wants.
    if not bool(((predictions >= 0) & (predictions <= 1)).all()):
        raise NotADistributionError("expected probabilities of each label in [0, 1]; apply sigmoid to logits first")
    return torch.stack([torch.log1p(-predictions), predictions.log()], dim=-1)


def _same_names(what: str, given: Mapping[str, object], names: list[str]) -> None:
    if set(given) != set(names):
        raise PoolError(f"expected {what} for the heads {sorted(names)}, got {sorted(given)}")


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    values = np.array(list(weights.values()), np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise PoolError(f"expected finite weights, none negative and not all zero, got {dict(weights)}")
    return dict(zip(weights, (values / values.sum()).tolist(), strict=True))
