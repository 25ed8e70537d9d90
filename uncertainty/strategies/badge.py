"""BADGE: k-means++ seeding among the gradients that examples would give, were the model right about them."""

import numpy as np
import numpy.typing as npt
import torch

from ..pool import CHUNK, Pool, Rows
from ..selection import Selection, StrategyInfo, concatenate, register_strategy, shuffled, thinned
from ..shapes import check_log_probs

CANDIDATES = 50_000  # a step looks at all of them: 77 MB at 384 numbers a row, about 10 ms
# Above so many classes only the likeliest of each example count: the others hardly move a gradient.
_MANY_CLASSES = 100
_LIKELIEST = 10
# Squared distances below this share of the two squared lengths are rounding of float32: the same gradient.
_ROUNDING = 1e-6

Floats = npt.NDArray[np.float32]


class _Residuals:
    """a_i = p_i - e(likeliest class of i), by the few classes where it is not zero."""

    def __init__(self, pool: Pool, rows: Rows) -> None:
        """Raises: ShapeError, NotADistributionError."""
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        for start in range(0, len(rows), CHUNK):
            log_probs = pool.predictions(rows[start : start + CHUNK])
            check_log_probs(log_probs, min_classes=2)
            # Doubles: of a sure example 1 - p is far below the rounding of a float32 near one.
            parts.append(_residual(log_probs.double().exp().mean(1)))
        self.classes = int(pool.predictions(rows[:0]).shape[2])
        self.value = torch.cat([value for value, _ in parts]).float().numpy()  # [n, m]
        dense = self.value.shape[1] == self.classes
        self.of_class = None if dense else torch.cat([of_class for _, of_class in parts]).numpy()  # [n, m]

    def products(self, row: int) -> Floats:  # [n]: a_i . a_row
        if self.of_class is None:
            return self.value @ self.value[row]
        spread = np.zeros(self.classes, np.float32)
        spread[self.of_class[row]] = self.value[row]
        return np.einsum("nm,nm->n", self.value, spread[self.of_class])


def _residual(probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, C] -> values [n, m], their classes [n, m]; m = C, or the likeliest ones, renormalised, of many classes."""
    if probs.shape[1] <= _MANY_CLASSES:
        value, of_class = probs.clone(), torch.arange(probs.shape[1]).expand_as(probs)
        first = value.argmax(1, keepdim=True)
    else:
        value, of_class = probs.topk(_LIKELIEST, dim=1)
        first = torch.zeros(len(probs), 1, dtype=torch.int64)
    value.scatter_(1, first, 0.0)
    others = value.sum(1, keepdim=True)
    # p - 1 of the likeliest is minus the sum of the others, without the cancellation.
    if probs.shape[1] > _MANY_CLASSES:
        total = others + probs.gather(1, of_class[:, :1])
        value, others = value / total, others / total
    return value.scatter_(1, first, -others), of_class


def seeds(
    x: Floats, residuals: _Residuals, k: int, rng: np.random.Generator
) -> tuple[list[int], list[float], list[float]]:
    """k-means++ among g_i = a_i (x) x_i: the longest first, then each with chance in proportion to its squared
    distance to the nearest one chosen, d_i^2. The gradients [n, C * D] are never built:
    d^2(i, j) = s_i + s_j - 2 (a_i . a_j)(x_i . x_j) with s_i = |a_i|^2 |x_i|^2.

    Args:
        x: [n, D].

    Returns:
        rows of `x` (the first of equal ones leads, so shuffle them), fewer than k when the rest coincide with them;
        squared distance of each when chosen, |g|^2 for the first; probability of each, 1 for the first.
    """
    length = np.einsum("nm,nm->n", residuals.value, residuals.value) * np.einsum("nd,nd->n", x, x)  # [n] s_i
    chosen: list[int] = []
    squared: list[float] = []
    chance: list[float] = []
    nearest = np.full(len(x), np.inf, np.float32)  # [n] d_i^2
    while len(chosen) < min(k, len(x)):
        if not chosen:
            row, of_row, probability = int(length.argmax()), float(length.max()), 1.0
        else:
            cumulated = np.cumsum(nearest, dtype=np.float64)
            if not cumulated[-1] > 0:
                break
            # The smaller of the two: rounding must not push a draw past the last row that can be drawn.
            draw = min(rng.random() * cumulated[-1], np.nextafter(cumulated[-1], 0))
            row = int(np.searchsorted(cumulated, draw, side="right"))
            of_row, probability = float(nearest[row]), float(nearest[row] / cumulated[-1])
        chosen.append(row)
        squared.append(of_row)
        chance.append(probability)
        both = length + length[row]
        distance = both - 2 * residuals.products(row) * (x @ x[row])
        distance[distance < _ROUNDING * both] = 0
        np.minimum(nearest, distance, out=nearest)
        nearest[row] = 0
    return chosen, squared, chance


def _badge(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    offered = shuffled(pool, rng)
    rows = thinned(pool, offered, max(CANDIDATES, k), rng)
    if not len(rows):
        return Selection.empty()
    chosen, squared, chance = seeds(pool.rows(rows).numpy(), _Residuals(pool, rows), k, rng)
    # What was thinned out could not be drawn: the chance of being a candidate is part of the chance.
    share = len(rows) / len(offered)
    drawn = Selection.of(rows[chosen], squared, "uncertain", np.array(chance) * share)
    rest = np.delete(rows, chosen)[: k - len(chosen)]  # in random order; all of them copies of those chosen
    left = len(rows) - len(chosen) - np.arange(len(rest))
    return concatenate(drawn, Selection.of(rest, np.zeros(len(rest)), "explore", share / left))


register_strategy(
    StrategyInfo(
        "badge",
        _badge,
        "Examples whose labels would pull the model far and in different directions: unsure and diverse at once.",
        True,
        "Ash et al. 2020, arXiv:1906.03671",
        exactness=f"among {CANDIDATES} candidates on larger pools, each predicted class by its share; "
        f"above {_MANY_CLASSES} classes the {_LIKELIEST} likeliest of each example count",
    )
)
