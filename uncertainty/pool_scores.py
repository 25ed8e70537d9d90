"""Uncertainty of pool rows under one name each: scores of log-probabilities, and those that need more than these.

`registry` knows functions of log-probabilities alone. This module adds those that look at features, labels or the
linear head, and is what strategies ask.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import registry
from .errors import NonFiniteScoreError
from .named import Registry
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
    needs_samples: bool = False  # of the pool's posterior


_SCORES = Registry[ScoreInfo]("score")
register_score, get_score, list_scores = _SCORES.register, _SCORES.get, _SCORES.list


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
            needs_samples=_method.min_samples > 1,
        )
    )
