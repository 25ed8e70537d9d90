"""The one place where a scoring method gets its public name; strategies, which choose sets, have another."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from . import scores
from .errors import NonFiniteScoreError, ShapeError
from .named import Registry


@dataclass(frozen=True)
class MethodInfo:
    """What a caller may know about a method without reading its code."""

    name: str
    fn: Callable[[Tensor], Tensor]  # [B, S, C] log-probs -> [B]
    upper: Callable[[int, int], float]  # (S, C) -> largest possible value
    unit: str  # "nats" or "1"
    min_samples: int  # 1: works on a single forward pass
    paper: str
    summary: str  # completes "most uncertain first by ..."


_METHODS = Registry[MethodInfo]("method")
register, get_method = _METHODS.register, _METHODS.get


def list_methods(max_samples: int | None = None) -> list[MethodInfo]:
    """All methods by name; with `max_samples`, those that work with so few posterior samples."""
    return [m for m in _METHODS.list() if max_samples is None or m.min_samples <= max_samples]


def score(name: str, log_probs: Tensor) -> Tensor:
    """Run a method by name and refuse to hand on NaN or infinity.

    Args:
        log_probs: [B, S, C], normalised over C.

    Returns:
        [B], growing with uncertainty, in [0, upper(S, C)] of the method, in its unit.

    Raises:
        UnknownMethodError, ShapeError, NotADistributionError, NonFiniteScoreError.
    """
    method = get_method(name)
    if log_probs.ndim == 3 and log_probs.shape[1] < method.min_samples:
        raise ShapeError(
            f"method {name!r} needs at least {method.min_samples} posterior samples, got log_probs of shape "
            f"[B, S, C] = {list(log_probs.shape)}"
        )
    out = method.fn(log_probs)
    bad = torch.nonzero(~torch.isfinite(out)).flatten().tolist()
    if bad:
        raise NonFiniteScoreError(name, bad)
    return out


_SETTLES = "Settles 2009, Active Learning Literature Survey, sec. 3.1"
register(
    MethodInfo(
        "entropy", scores.predictive_entropy, lambda S, C: log(C), "nats", 1, _SETTLES, "the entropy of the prediction"
    )
)
register(
    MethodInfo(
        "margin",
        scores.margin_uncertainty,
        lambda S, C: 1.0,
        "1",
        1,
        _SETTLES,
        "the gap between the two likeliest classes",
    )
)
register(
    MethodInfo(
        "least_confidence",
        scores.least_confidence,
        lambda S, C: 1 - 1 / C,
        "1",
        1,
        _SETTLES,
        "how unlikely the likeliest class is",
    )
)
register(
    MethodInfo(
        "ratio",
        scores.ratio,
        lambda S, C: 1.0,
        "1",
        1,
        "Monarch 2021, Human-in-the-Loop Machine Learning, sec. 3.2",
        "the second likeliest class over the likeliest",
    )
)
# One sample says nothing about any of these, or the same as entropy.
_HOULSBY = "Houlsby et al. 2011, arXiv:1112.5745"
_GAL = "Gal et al. 2017, arXiv:1703.02910"
register(
    MethodInfo(
        "expected_entropy",
        scores.expected_entropy,
        lambda S, C: log(C),
        "nats",
        2,
        _HOULSBY,
        "the doubt that the posterior samples share",
    )
)
register(
    MethodInfo(
        "bald",
        scores.mutual_information,
        lambda S, C: log(min(S, C)),
        "nats",
        2,
        _HOULSBY,
        "what the posterior samples disagree about",
    )
)
register(
    MethodInfo(
        "variation_ratio",
        scores.variation_ratio,
        lambda S, C: 1 - 1 / C,
        "1",
        2,
        _GAL,
        "the share of posterior samples outvoted by the others",
    )
)
register(
    MethodInfo(
        "mean_std",
        scores.mean_std,
        lambda S, C: sqrt((1 - 1 / min(S, C)) / C),
        "1",
        2,
        _GAL,
        "how much the probabilities vary between posterior samples",
    )
)
