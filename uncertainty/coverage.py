"""Covering a pool with few of its members: kernel, greedy choice, sampling.

The kernel is k(x, z) = exp(-|x - z|^2 / sigma^2) on L2-normalised rows, so |x - z|^2 = 2 - 2 x.z and one
matrix product gives a block of it. Blocks are small enough to stay in the processor's cache. A whole table of
(candidates x points) is held only where it is small; nothing of size (pool x pool) ever is.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Numbers of a kernel block: 2 MB of float32, about the second-level cache of one core.
_BLOCK = 512 * 1024
# Numbers of a kernel table that is kept for re-use: 64 MB of float32. Larger ones are computed row by row.
_TABLE = 16 * 1024 * 1024
# Labels whose nearest other label is looked up; the median of so many is known to a few per cent.
_WIDTH_SAMPLE = 1024
# Below a quarter of its starting width the kernel sees hardly any pair of examples: at half the median
# distance it is exp(-16). Stops one close pair of labels from turning coverage into arbitrary picks.
_WIDTH_FLOOR_SHARE = 0.25
# Gains below this share of all weight are rounding of float32 kernel values, not coverage.
_SMALLEST_GAIN_SHARE = 2e-7
_SMALLEST_WIDTH = 1e-3  # a pool of identical rows has distance 0


def kernel_width(sample: Tensor, covered: Tensor, rng: np.random.Generator) -> float:
    """Width sigma of the kernel: wide before any label, narrowing as labels fill the space.

    The published rule, the smallest distance between two labelled examples, collapses to 0 with the first
    near-duplicate pair. The median of nearest-neighbour distances does not; it is clipped to
    [sigma_0 / 4, sigma_0], where sigma_0 is half the median distance between examples of the pool.

    Args:
        sample: [n, D] float32, L2-normalised, drawn uniformly from the pool; a thousand rows are plenty.
        covered: [L, D] float32, labelled or handed-out examples; L may be 0.
        rng: pairs the rows up.

    Returns:
        sigma > 0, in units of distance on the unit sphere (at most 1: half the diameter).

    Paper:
        Bae et al. 2024, arXiv:2407.12212 and 2412.20644 (the rule replaced here).
    """
    n = sample.shape[0]
    start = _SMALLEST_WIDTH
    if n >= 2:
        # An offset in 1..n-1 never pairs a row with itself.
        partner = torch.from_numpy((np.arange(n) + rng.integers(1, n, size=n)) % n)
        cosine = (sample * sample[partner]).sum(1)
        start = max(0.5 * float(_distance(cosine).median()), _SMALLEST_WIDTH)
    if covered.shape[0] < 2:
        return start
    many = covered.shape[0]
    query = torch.from_numpy(rng.permutation(many)[:_WIDTH_SAMPLE])
    nearest = _distance(_nearest_cosine(covered[query], covered, skip=query)).median()
    return min(max(float(nearest), _WIDTH_FLOOR_SHARE * start), start)


def coverage(points: Tensor, centres: Tensor, sigma: float) -> Tensor:
    """How well each point is covered: its largest kernel value with any centre, max_l k(z, l).

    Args:
        points: [E, D] float32, L2-normalised.
        centres: [L, D] float32, L2-normalised; with none, nothing is covered.

    Returns:
        [E], in [0, 1].
    """
    if not centres.shape[0]:
        return torch.zeros(points.shape[0])
    # The kernel grows with the cosine, so the exponential is needed once per point, not once per pair.
    # Rounding of a cosine above one may not exceed full coverage.
    return _nearest_cosine(points, centres).sub_(1).clamp_(max=0).mul_(2 / sigma**2).exp_()


def systematic_sample(
    weights: npt.NDArray[np.floating], size: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """About `size` rows drawn with chance proportional to weight, and what each of them stands for.

    Rows are read in the order given and hit at equal steps of cumulated weight, so an order with meaning
    (by class, by cluster) gives each stretch its fair share. Sums are estimated without bias:
    E[sum_i r_i f_i] = sum_i w_i f_i over the rows i returned, r being the second result.

    Args:
        weights: [n] >= 0, with a positive sum.
        size: largest number of rows returned; a row worth several steps is returned once.

    Returns:
        rows [m] ascending, m <= size; representing [m], summing to the sum of weights. With at most
        `size` rows of positive weight: these, each representing its own weight.
    """
    positive = np.flatnonzero(weights > 0)
    if len(positive) <= size:
        return positive, weights[positive].astype(np.float64)
    cumulated = np.cumsum(weights, dtype=np.float64)
    step = cumulated[-1] / size
    ticks = (np.arange(size) + rng.random()) * step
    # Rounding may push the last tick past the end; rows of weight 0 at the end must not be hit by it.
    hits = np.minimum(np.searchsorted(cumulated, ticks, side="right"), positive[-1])
    rows, count = np.unique(hits, return_counts=True)
    return rows, count * step


@dataclass(frozen=True)
class Cover:
    """Rows in the order in which they were chosen, with the weight of the points each newly covered."""

    rows: list[int]
    gains: list[float]


def greedy_cover(
    candidates: Tensor,
    points: Tensor,
    weights: Tensor,
    covered: Tensor,
    *,
    sigma: float,
    k: int,
    groups: npt.NDArray[np.int64] | None = None,
) -> Cover:
    """Choose up to k candidates one by one, each adding the most weighted coverage.

    The gain of x is sum_z w(z) max(0, k(x, z) - m(z)), m(z) being the coverage so far. It can only shrink as
    others are chosen, so an old gain is an upper bound and only candidates near the top need a fresh one
    (lazy greedy): the choice is the exact greedy one, up to rounding of float32.

    Args:
        candidates: [M, D] float32, L2-normalised; the first of equal ones wins, so shuffle them.
        points: [E, D] float32, where coverage is measured.
        weights: [E] >= 0.
        covered: [E] in [0, 1], coverage before the first choice.
        groups: [M] or None; at most one candidate of a group is chosen, -1 belongs to none.

    Returns:
        At most k rows of `candidates`; fewer when groups run out or when nothing is left to gain.

    Paper:
        Minoux 1978 (lazy greedy); Bae et al. 2024, arXiv:2407.12212, alg. 1 (MaxHerding).
    """
    kernel = _Kernel(candidates, points, sigma)
    state = covered.numpy().copy()
    weight = weights.numpy()

    # numpy, since the many small steps that follow are slower in several threads than in one.
    def gains_of(rows: slice | list[int]) -> list[float]:
        gap = kernel[rows] - state
        out: list[float] = (np.maximum(gap, 0, out=gap) @ weight).tolist()
        return out

    bounds = [gain for block in _blocks(candidates.shape[0], points.shape[0]) for gain in gains_of(block)]
    # Heap entries: (-upper bound, candidate, number of choices made when the bound was computed).
    heap = [(-bound, row, 0) for row, bound in enumerate(bounds)]
    heapq.heapify(heap)
    used: set[int] = set()
    rows: list[int] = []
    gains: list[float] = []
    least = _SMALLEST_GAIN_SHARE * float(weights.sum())
    batch = 8  # stale candidates refreshed together; adapts to how many a choice has lately needed
    while heap and len(rows) < k:
        top, row, stamp = heap[0]
        if groups is not None and groups[row] >= 0 and groups[row] in used:
            heapq.heappop(heap)
            continue
        if -top <= least:
            break
        if stamp == len(rows):
            heapq.heappop(heap)
            rows.append(row)
            gains.append(-top)
            if groups is not None:
                used.add(int(groups[row]))
            np.maximum(state, kernel[row : row + 1][0], out=state)
            batch = max(8, batch // 2)
            continue
        stale: list[int] = []
        while heap and len(stale) < batch and heap[0][2] < len(rows):
            stale.append(heapq.heappop(heap)[1])
        for candidate, gain in zip(stale, gains_of(stale), strict=True):
            heapq.heappush(heap, (-gain, candidate, len(rows)))
        batch = min(2 * batch, 64)
    return Cover(rows, gains)


class _Kernel:
    """k(candidate, point) by rows: kept when the table is small, computed again when it is not."""

    def __init__(self, candidates: Tensor, points: Tensor, sigma: float) -> None:
        self._x = candidates
        steepness = 2 / sigma**2  # k(x, z) = exp(steepness * (x.z - 1)), the factor moved into z saves a pass
        self._steep_t = (points.T * steepness).contiguous()  # [D, E]
        self._bias = torch.tensor(-steepness)
        self._table: npt.NDArray[np.float32] | None = None
        if candidates.shape[0] * points.shape[0] <= _TABLE:
            table = torch.empty(candidates.shape[0], points.shape[0])
            for block in _blocks(*table.shape):
                torch.addmm(self._bias, self._x[block], self._steep_t, out=table[block]).exp_()
            self._table = table.numpy()

    def __getitem__(self, rows: slice | list[int]) -> npt.NDArray[np.float32]:  # [m, E], to be read only
        if self._table is not None:
            return self._table[rows]
        return torch.addmm(self._bias, self._x[rows], self._steep_t).exp_().numpy()


def _nearest_cosine(x: Tensor, centres: Tensor, skip: Tensor | None = None) -> Tensor:
    """[n, D], [L, D] -> [n]: the largest cosine with any centre; `skip` [n] is one not to count."""
    best = torch.full((x.shape[0],), -1.0)
    centres_t = centres.T
    for block in _blocks(x.shape[0], centres.shape[0]):
        cosine = x[block] @ centres_t
        if skip is not None:
            cosine.scatter_(1, skip[block, None], -1.0)
        best[block] = cosine.amax(1)
    return best


def _distance(cosine: Tensor) -> Tensor:
    return (2 - 2 * cosine).clamp_min(0).sqrt()


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Cut `rows` so that a block of them times `columns` has about `_BLOCK` numbers."""
    step = max(1, min(rows, _BLOCK // max(columns, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
