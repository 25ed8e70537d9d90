"""K-center greedy (core-set): each choice is the example farthest from all that is labelled or chosen."""

import numpy as np
import numpy.typing as npt

from ..pool import Pool, Rows
from ..selection import Selection, StrategyInfo, register_strategy, shuffled, thinned

# Cosines looked at in all: a million rows against 10,000 labelled and chosen ones, one to two minutes on two cores
# at 384 numbers a row. Pools that would need more are thinned to what fits.
PAIRS = 10_000_000_000
# Rows that are chosen among without a look at the others: 25 MB of float32 at 384 numbers a row. Grows up to the
# second size where it lasts for few choices only.
FRONT = 16_384
_LARGEST_FRONT = 131_072
_FEW = 32
# Tiles of a pass over the pool: 32 MB of cosines.
_ROWS_AT_ONCE = 8192
_CENTRES_AT_ONCE = 1024
_TAKEN = np.float32(np.inf)  # a "cosine" above all others: never the smallest again
_NOTHING_NEAR = np.float32(-1)


def _k_center(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    centres = np.flatnonzero((pool.labelled | pool.pending) & ~pool.excluded)
    offered = shuffled(pool, rng)
    k = min(k, len(offered))
    if not k:
        return Selection.empty()
    # In ascending order, since passes over a memory-mapped file want to be sequential; ties are drawn later.
    rows = np.sort(thinned(pool, offered, max(PAIRS // (len(centres) + k), k), rng))
    near = np.full(len(rows), _NOTHING_NEAR)  # [n] largest cosine with any centre
    chosen: list[int] = []
    cosines: list[float] = []
    chance = np.ones(k)
    if not len(centres):  # nothing is farther than anything else
        first = int(rng.integers(len(rows)))
        chosen, cosines, chance[0] = [first], [float(_NOTHING_NEAR)], 1 / len(offered)
        near[first] = _TAKEN
        centres = rows[chosen]
    size = FRONT
    while len(chosen) < k:
        _approach(pool, rows, centres, near)
        before = len(chosen)
        _choose_in_front(pool, rows, near, min(size, len(rows)), k, chosen, cosines, rng)
        centres = rows[chosen[before:]]
        if len(centres) < _FEW:
            size = min(2 * size, _LARGEST_FRONT)
    half_distance = np.sqrt(np.maximum(2 - 2 * np.array(cosines), 0)) / 2
    return Selection.of(rows[chosen], half_distance, "diverse", chance)


def _approach(pool: Pool, rows: Rows, centres: Rows, near: npt.NDArray[np.float32]) -> None:
    """Lift `near` to the largest cosine with any of `centres` (rows of the pool), in place."""
    for first in range(0, len(centres), _CENTRES_AT_ONCE):
        around = pool.rows(centres[first : first + _CENTRES_AT_ONCE]).T.contiguous()  # [D, m]
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            np.maximum(near[part], (pool.rows(rows[part]) @ around).amax(1).numpy(), out=near[part])


def _choose_in_front(
    pool: Pool,
    rows: Rows,
    near: npt.NDArray[np.float32],
    size: int,
    k: int,
    chosen: list[int],
    cosines: list[float],
    rng: np.random.Generator,
) -> None:
    """Choose among the `size` farthest rows for as long as the farthest of all is one of them.

    Cosines with the nearest centre only grow, so a row outside cannot become farther than it is now: while one in
    the front is at least as far as all outside were, the choice is that of a look at the whole pool.
    """
    shuffle = rng.permutation(len(rows))  # ties fall as the seed will have it
    if size < len(rows):
        split = np.argpartition(near[shuffle], size)
        front, outside = shuffle[split[:size]], near[shuffle[split[size]]]
    else:
        front, outside = shuffle, _TAKEN
    x = pool.rows(rows[front]).numpy()
    state = near[front]
    while len(chosen) < k:
        best = int(state.argmin())
        if state[best] > outside or state[best] == _TAKEN:
            break
        chosen.append(int(front[best]))
        cosines.append(float(state[best]))
        np.maximum(state, x @ x[best], out=state)
        state[best] = _TAKEN
    near[front] = state


register_strategy(
    StrategyInfo(
        "k_center",
        _k_center,
        "Each the farthest from all labelled and chosen so far: reaches the corners of the pool, junk included.",
        False,
        "Sener and Savarese 2018, arXiv:1708.00489",
        exactness=f"exact greedy up to {PAIRS:.0e} pairs of a row and a centre; above, among a random part of the "
        "pool, each predicted class by its share",
    )
)
