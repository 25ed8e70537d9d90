"""ProbCover: the fewest balls of one radius that cover the most of the pool."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import clustering
from ..pool import Pool, Rows
from ..selection import Selection, StrategyInfo, one_per_group, one_per_pending_group, register_strategy
from .cluster_margin import topped_up

POINTS = 20_000  # rows that are covered and cover; the table of all their pairs has 0.4 GB at this size
_ANCHORS = 2048  # balls whose purity is looked at: the radius is a quantile known to half a per cent
_PURITY = 0.95  # share of balls that hold one pseudo-class only; the usual setting, not verified in the paper
_PSEUDO_CLASSES = 10  # clusters that stand for classes while no class is known
_BLOCK = 4 * 1024 * 1024  # numbers of a block of cosines: 16 MB
_DIAMETER = 2.0  # of the unit sphere
_ROUNDING = 1e-6  # of a cosine in float32; a row exactly at the radius, as the one that sets it, is outside


def _probcover(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = one_per_pending_group(pool, rng.permutation(np.flatnonzero(pool.selectable)))[:POINTS]
    if not len(rows):
        return Selection.empty()
    x = normalize(pool.rows(rows))
    classes = pool.classes if pool.classes >= 2 else _PSEUDO_CLASSES
    reach = radius(x, clustering.k_means(x, classes, rng).labels)
    known = np.flatnonzero((pool.labelled | pool.pending) & ~pool.excluded)
    places, newly = cover(x, _within_any(x, pool, known, reach), reach, k, np.isin(rows, one_per_group(pool, rows)))
    return topped_up(pool, Selection.of(rows[places], newly / len(rows), "diverse"), k, rng)


def radius(x: Tensor, labels: Rows) -> float:
    """The largest radius at which 95 % of balls around rows hold rows of one label only.

    A ball is pure up to the distance of the nearest row with another label, so the radius is a quantile of these
    distances. On more than 2,048 rows, that of the first 2,048.

    Args:
        x: [n, D] float32, of length 1, in random order.
        labels: [n], pseudo-labels.

    Returns:
        In [0, 2]; 2, the diameter of the sphere, when there is one label only.

    Paper:
        Yehuda et al. 2022, arXiv:2205.11320.
    """
    label = torch.from_numpy(labels)
    anchors = min(_ANCHORS, len(x))
    nearest = torch.empty(anchors)
    step = max(1, _BLOCK // len(x))
    for at in range(0, anchors, step):
        block = slice(at, min(at + step, anchors))
        cosine = x[block] @ x.T
        cosine[label[block, None] == label] = -1
        nearest[block] = cosine.amax(1)
    # As many impure balls as may be: those whose nearest stranger is nearer than the radius.
    impure = int((1 - _PURITY) * anchors + 1e-9)
    return min(float((2 - 2 * nearest).clamp_min(0).sqrt().sort().values[impure]), _DIAMETER)


def cover(
    x: Tensor, covered: npt.NDArray[np.bool_], reach: float, k: int, allowed: npt.NDArray[np.bool_]
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Choose up to k rows one by one, each having the most uncovered rows nearer than `reach`.

    Args:
        x: [n, D] float32, of length 1; the first of equal ones wins, so shuffle them.
        covered: [n] bool, rows that need no covering.
        allowed: [n] bool, rows that may be chosen.

    Returns:
        Rows in the order chosen, and how many rows each newly covered; fewer than k when all that can be is covered.

    Paper:
        Yehuda et al. 2022, arXiv:2205.11320.
    """
    table = _pairs_within(x, reach)
    # Uncovered rows within reach of each; -1 for rows that may not be chosen.
    open_rows = torch.from_numpy(~covered)
    degree = _count(table, torch.nonzero(open_rows).flatten())
    barred = torch.from_numpy(~allowed)
    chosen: list[int] = []
    newly: list[int] = []
    while len(chosen) < k:
        best = int(degree.masked_fill(barred, -1).argmax())
        gain = int(degree[best])
        if barred[best] or gain <= 0:
            break
        fresh = torch.nonzero((table[best] != 0) & open_rows).flatten()
        chosen.append(best)
        newly.append(gain)
        open_rows[fresh] = False
        degree -= _count(table, fresh)
    return np.array(chosen, np.int64), np.array(newly, np.float64)


def _pairs_within(x: Tensor, reach: float) -> Tensor:
    """[n, n] uint8: 1 for rows nearer than `reach`; each row is within reach of itself."""
    n, bar = len(x), _least_cosine(reach)
    out = torch.empty((n, n), dtype=torch.uint8)
    step = max(1, _BLOCK // n)
    turned = x.T.contiguous()
    for at in range(0, n, step):
        within = x[at : at + step] @ turned[:, at:] > bar
        out[at : at + step, at:] = within
        out[at:, at : at + step] = within.T
    return out.fill_diagonal_(1)


def _least_cosine(reach: float) -> float:
    return 1 - reach**2 / 2 + _ROUNDING  # |x - y|^2 = 2 - 2 x.y


def _count(table: Tensor, rows: Tensor) -> Tensor:
    """[n] int32: in how many of some rows of the table each column is set."""
    out = torch.zeros(table.shape[1], dtype=torch.int32)
    step = max(1, _BLOCK // table.shape[1])
    for at in range(0, len(rows), step):
        out += table[rows[at : at + step]].sum(0, dtype=torch.int32)
    return out


def _within_any(x: Tensor, pool: Pool, centres: Rows, reach: float) -> npt.NDArray[np.bool_]:
    """[n] bool: rows nearer than `reach` to any of the pool's rows `centres`."""
    bar = _least_cosine(reach)
    out = torch.zeros(len(x), dtype=torch.bool)
    step = max(1, _BLOCK // len(x))
    for at in range(0, len(centres), step):
        out |= (normalize(pool.rows(centres[at : at + step])) @ x.T > bar).any(0)
    return out.numpy()


register_strategy(
    StrategyInfo(
        "probcover",
        _probcover,
        "Balls of one radius that cover most of the pool; needs no model. A baseline: maxherding does it softly.",
        False,
        "Yehuda et al. 2022, arXiv:2205.11320",
        exactness=f"exact greedy up to {POINTS} rows; on a sample of that size above; radius from {_ANCHORS} balls",
    )
)
