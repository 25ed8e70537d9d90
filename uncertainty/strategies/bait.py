"""BAIT in its binary form: examples that leave the model least unsure about the pool as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..pool import CHUNK, Pool, Rows
from ..selection import Selection, StrategyInfo, register_strategy, shuffled, thinned
from ..shapes import check_log_probs

CANDIDATES = 10_000
_PER_CHOICE = 20  # candidates for each choice, so that 2 k of them are still a choice
# The linear head sees [8 h; 1]: rows of length one leave a weight penalty of one more to say than the labels.
_FEATURE_SCALE = 8.0
_PRIOR = 1.0  # lambda: precision of the weights before any label
_OVERSAMPLE = 2  # chosen forward for each one kept

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fishers:
    """What greedy choice starts from.

    Attributes:
        candidates: [n, D] float32, v = sqrt(u) x: the Fisher information of a candidate is v v^T.
        precision: [D, D], M: the prior plus the information of what is labelled or handed out.
        pool: [D, D], I_U: information of the pool, averaged over its rows.
    """

    candidates: npt.NDArray[np.float32]
    precision: Doubles
    pool: Doubles


class _Precision:
    """tr(M^-1 I_U) as examples come and go: by Sherman and Morrison, without a second inverse.

    For every candidate v two numbers are kept up to date, a = v^T M^-1 v and t = v^T M^-1 I_U M^-1 v. Adding v to M
    lowers the trace by t / (1 + a), taking it away raises it by t / (1 - a).
    """

    def __init__(self, fishers: Fishers) -> None:
        self._fishers = fishers
        self._inverse = np.linalg.inv(fishers.precision)
        self._outer = np.empty_like(self._inverse)
        v = fishers.candidates
        middle = self._inverse @ fishers.pool @ self._inverse
        self.start = float(np.einsum("de,ed->", self._inverse, fishers.pool))
        self.a = np.einsum("nd,nd->n", v @ self._inverse.astype(np.float32), v).astype(np.float64)
        self.t = np.einsum("nd,nd->n", v @ middle.astype(np.float32), v).astype(np.float64)

    def change(self, row: int, sign: int, rows: slice | list[int]) -> None:
        """Add (sign 1) or take away (-1) a candidate; a and t are kept for `rows`."""
        v = self._fishers.candidates
        z = self._inverse @ v[row].astype(np.float64)
        step = sign / (1 + sign * float(v[row] @ z))  # M'^-1 = M^-1 - step z z^T
        towards = self._fishers.pool @ z
        w = self._inverse @ towards
        some = v[rows]
        # Two products with a vector take half the time of one with two columns.
        vz = (some @ z.astype(np.float32)).astype(np.float64)
        vw = (some @ w.astype(np.float32)).astype(np.float64)
        self.a[rows] -= step * vz**2
        self.t[rows] += step * vz * (step * float(z @ towards) * vz - 2 * vw)
        self._inverse -= np.multiply(step * z[:, None], z, out=self._outer)


def forward_backward(fishers: Fishers, k: int) -> tuple[list[int], list[float]]:
    """Greedily lower tr(M^-1 I_U) by twice as many candidates as asked, then drop those whose loss raises it least.

    Returns:
        min(k, n) candidates in the order in which they came, the first of equal ones first; share of the trace that
        each took away when it came, in [0, 1].

    Paper:
        Ash et al. 2021, arXiv:2106.09675, alg. 1; Huseljic et al. 2024, arXiv:2404.08981 (binary form).
    """
    state = _Precision(fishers)
    n = len(fishers.candidates)
    chosen: list[int] = []
    shares: list[float] = []
    free = np.ones(n, bool)
    for _ in range(min(_OVERSAMPLE * k, n)):
        drop = np.where(free, state.t / (1 + state.a), -np.inf)
        row = int(drop.argmax())
        free[row] = False
        chosen.append(row)
        shares.append(min(1.0, max(0.0, float(drop[row])) / state.start) if state.start > 0 else 0.0)
        state.change(row, 1, slice(None))
    keep = dict(zip(chosen, shares, strict=True))
    while len(keep) > k:
        rows = list(keep)
        # a < 1 for what is part of M; rounding may not turn the sign.
        rise = state.t[rows] / np.maximum(1 - state.a[rows], 1e-9)
        row = rows[int(rise.argmin())]
        del keep[row]
        state.change(row, -1, list(keep))
    return list(keep), list(keep.values())


def _bait(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = thinned(pool, shuffled(pool, rng), max(CANDIDATES, _PER_CHOICE * k), rng)
    if not len(rows):
        return Selection.empty()
    width = pool.features.shape[1] + 1
    everything, known = np.zeros((2, width, width))
    inside = np.flatnonzero(~pool.excluded)
    for part, v in _information(pool, inside):
        everything += v.T @ v
        v = v[(pool.labelled | pool.pending)[part]]
        known += v.T @ v
    candidates = np.concatenate([v for _, v in _information(pool, rows)])
    chosen, shares = forward_backward(
        Fishers(candidates, _PRIOR * np.eye(width) + known, everything / len(inside)), min(k, len(rows))
    )
    return Selection.of(rows[chosen], shares, "uncertain")


def _information(pool: Pool, rows: Rows) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
    """Some rows at a time with their v = sqrt(u) x, [n, D + 1]; u = p (1 - p) of the likeliest class.

    Raises:
        ShapeError, NotADistributionError.
    """
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        log_probs = pool.predictions(part)
        check_log_probs(log_probs, min_classes=2)
        probs = log_probs.double().exp().mean(1)
        p, where = probs.max(1)
        # 1 - p as the sum of the others, which does not cancel.
        u = p * probs.scatter(1, where[:, None], 0.0).sum(1)
        v = np.ones((len(part), pool.features.shape[1] + 1), np.float32)
        np.multiply(pool.rows(part).numpy(), np.float32(_FEATURE_SCALE), out=v[:, :-1])
        v *= u.sqrt().float().numpy()[:, None]
        yield part, v


register_strategy(
    StrategyInfo(
        "bait",
        _bait,
        "Examples whose labels would leave the model least unsure about the whole pool.",
        True,
        "Ash et al. 2021, arXiv:2106.09675; Huseljic et al. 2024, arXiv:2404.08981",
        exactness="binary Fisher information of the likeliest class, of the whole pool; among "
        f"max({CANDIDATES}, {_PER_CHOICE} k) candidates on larger pools, each predicted class by its share",
    )
)
