"""Uncertainty of pool rows under one name each: scores of log-probabilities, and those that need more than these.

`registry` knows functions of log-probabilities alone. This module adds those that look at features, labels or the
linear head, and is what strategies ask.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import registry
from .errors import NonFiniteScoreError, UnknownMethodError
from .pool import CHUNK, Pool, Rows
from .predictives import samples_of

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoreInfo:
    """What a caller may know about a score without reading its code."""

    name: str
    fn: Callable[[Pool, Rows], Scores]  # (pool, [n] rows) -> [n], growing with uncertainty
    summary: str  # completes "most uncertain first by ..."
    unit: str
    paper: str
    needs_predictions: bool = True
    needs_labels: bool = False


_SCORES: dict[str, ScoreInfo] = {}


def register_score(info: ScoreInfo) -> None:
    """Make a score known under `info.name`; a name can be taken once.

    Raises:
        ValueError: the name is taken.
    """
    if info.name in _SCORES:
        raise ValueError(f"score {info.name!r} is already registered")
    _SCORES[info.name] = info


def list_scores() -> list[ScoreInfo]:
    """All scores by name."""
    return [info for _, info in sorted(_SCORES.items())]


def get_score(name: str) -> ScoreInfo:
    """The score of that name.

    Raises:
        UnknownMethodError: lists the known names.
    """
    try:
        return _SCORES[name]
    except KeyError:
        raise UnknownMethodError(name, _SCORES) from None


def pool_score(name: str, pool: Pool, rows: Rows) -> Scores:
    """Scores of some rows, [n] float32, growing with uncertainty; refuses to hand on NaN or infinity.

    Raises:
        UnknownMethodError, NonFiniteScoreError, PoolError: the pool lacks what the score needs.
    """
    out = np.asarray(get_score(name).fn(pool, rows), np.float32)
    bad = np.flatnonzero(~np.isfinite(out))
    if len(bad):
        raise NonFiniteScoreError(name, rows[bad].tolist())
    return out


def _of_log_probs(method: registry.MethodInfo) -> Callable[[Pool, Rows], Scores]:
    def fn(pool: Pool, rows: Rows) -> Scores:
        out = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            log_probs = pool.predictions(part) if method.min_samples == 1 else samples_of(pool, part)
            out[start : start + len(part)] = registry.score(method.name, log_probs).float().numpy()
        return out

    return fn


for _method in registry.list_methods():
    register_score(
        ScoreInfo(
            _method.name,
            _of_log_probs(_method),
            _method.summary,
            _method.unit,
            _method.paper,
            # Those that need several samples draw them from the labels where predictions hold one.
            needs_predictions=_method.min_samples == 1,
            needs_labels=_method.min_samples > 1,
        )
    )
