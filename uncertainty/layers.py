"""What is laid around every strategy: room for rare classes, a veto for what looks like junk, and the dial that
gives a share of the places to chance. The same for all strategies, so that they can be compared and swapped.

Nobody waits for whole batches: in the live loop the first place is taken and the order made anew. So the places of
each layer are drawn at random, evenly through the batch, and every layer gets its share of the labels whether one
row or all of them are taken.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from .errors import PoolError
from .pool import CHUNK, Pool, Rows
from .pool_scores import pool_score
from .rejection import like_rejected
from .selection import Selection, concatenate, interleave, one_per_group, select, spread

_ANCHORS = 2048  # rows that typicality is measured against: a pass over 100,000 rows of 128 takes a second
_NEIGHBOURS = 20
LOPSIDED = 10  # most predicted class over least: from here on classes get places of their own


@dataclass(frozen=True)
class Layers:
    """How much of a batch each layer may take. All zero: the strategy alone.

    Attributes:
        explore: the dial from 0 (the strategy alone) to 1 (uniform random alone): share of the places that chance
            fills, from everything selectable. Means the same for every strategy.
        quota: share of the places that classes get by how few labels they have, most uncertain first, while the
            predicted classes are lopsided.
        veto: share of the pool, the least like anything else, that is not asked for: out of distribution, junk.

        skips: whether what looks like rows that annotators rejected is not asked for either.

    One place a batch asks for a vetoed row, as a probe. Random order has no layers: it is uniform.

    Raises:
        PoolError: a share outside [0, 1].
    """

    explore: float = 0.1
    quota: float = 0.3
    veto: float = 0.01
    skips: bool = True

    def __post_init__(self) -> None:
        for name in ("explore", "quota", "veto"):
            if not 0 <= getattr(self, name) <= 1:
                raise PoolError(f"expected {name} between 0 and 1, got {getattr(self, name)}")


def select_in_layers(
    name: str,
    pool: Pool,
    k: int,
    *,
    seed: int,
    layers: Layers,
    vetoed: Rows | None = None,
) -> Selection:
    """Choose up to k rows by a strategy inside its layers.

    Args:
        vetoed: what `vetoed_rows` gave for the same pool; None: found here.

    Raises:
        As `selection.select`.
    """
    if name == "random":
        return select(name, pool, k, seed=seed)
    rng = np.random.default_rng([seed, 1, int(pool.labelled.sum())])
    if vetoed is None:
        vetoed = vetoed_rows(pool, layers, seed)
    trusted = pool
    if len(vetoed):
        excluded = pool.excluded.copy()
        excluded[vetoed] = True
        trusted = replace(pool, excluded=excluded)
    chosen = select(name, trusted, k, seed=seed)
    if layers.quota:
        chosen = _mix(_by_quota(trusted, round(layers.quota * len(chosen))), chosen, trusted, rng)
    chosen = interleave(chosen, pool, layers.explore, rng)
    if len(vetoed) and len(chosen) and layers.explore < 1:
        row = rng.permutation(vetoed)[:1]
        probe = Selection.of(row, np.zeros(1), "probe", np.full(1, 1 / len(vetoed)))
        chosen = _mix(probe, chosen, pool, rng)
    return chosen


def outlyingness(pool: Pool, seed: int) -> npt.NDArray[np.float32]:
    """How far each row is from anything else: mean cosine distance to the nearest 20 of 2,048 random rows, [N] in
    [0, 2]; 0 for excluded rows.

    Exact up to 2,048 rows; above, distances to a sample, whose order is that of the density all the same.
    """
    out = np.zeros(pool.size, np.float32)
    known = np.flatnonzero(~pool.excluded)
    out[known] = distance_to_nearest(pool, known, np.random.default_rng(seed).permutation(known)[:_ANCHORS])
    return out


def distance_to_nearest(pool: Pool, rows: Rows, anchors: Rows) -> npt.NDArray[np.float32]:
    """Mean cosine distance of each of `rows` to the nearest 20 of `anchors` that are other rows, [n] in [0, 2]; 0
    where there is no other."""
    out = np.zeros(len(rows), np.float32)
    anchors = np.sort(anchors)
    near = min(_NEIGHBOURS, len(anchors) - 1)
    if near < 1:
        return out
    at = pool.rows(anchors).T.contiguous()
    step = CHUNK // 8
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        cosine = pool.rows(part) @ at
        place = np.searchsorted(anchors, part)
        place[place == len(anchors)] = 0
        own = np.flatnonzero(anchors[place] == part)  # a row is not its own neighbour
        cosine[torch.from_numpy(own), torch.from_numpy(place[own])] = -torch.inf
        out[start : start + step] = 1 - cosine.topk(near, dim=1, sorted=False).values.mean(1).numpy()
    return out


def vetoed_rows(pool: Pool, layers: Layers, seed: int) -> Rows:
    """Selectable rows that are not asked for: like those annotators rejected, or among the most outlying share of the
    pool; ascending. None if that would leave nothing to select."""
    known = np.flatnonzero(~pool.excluded)
    count = int(layers.veto * len(known))
    out = like_rejected(pool, seed) if layers.skips else np.empty(0, np.int64)
    if count:
        far = outlyingness(pool, seed)
        worst = known[np.argpartition(-far[known], count - 1)[:count]]
        out = np.union1d(out, worst[pool.selectable[worst]])
    return out if len(out) < pool.selectable.sum() else np.empty(0, np.int64)


def _by_quota(pool: Pool, k: int) -> Selection:
    """Up to k rows, of each predicted class in proportion to (labels + 1)^-1/2, its most uncertain first; none while
    the predicted classes are not lopsided."""
    if k < 1 or not pool.has_predictions:
        return Selection.empty()
    rows = np.flatnonzero(pool.selectable)
    likeliest = pool.likeliest_class(rows)
    predicted = np.bincount(likeliest, minlength=pool.classes)
    if predicted.max() <= LOPSIDED * max(1, int(predicted.min())):
        return Selection.empty()
    labels = np.bincount(pool.labels_of_labelled, minlength=pool.classes)
    want = np.where(predicted > 0, (labels + 1.0) ** -0.5, 0.0)
    seats = _seats(want, predicted, k)
    uncertainty = pool_score("margin", pool, rows)
    order = np.argsort(-uncertainty, kind="stable")
    rows, likeliest, uncertainty = rows[order], likeliest[order], uncertainty[order]
    # The first of each class come first, then the second ones, rarest class first.
    turn = np.empty(len(rows), np.int64)
    for c in range(pool.classes):
        mine = np.flatnonzero(likeliest == c)
        turn[mine] = np.where(np.arange(len(mine)) < seats[c], np.arange(len(mine)), len(rows))
    taken = np.flatnonzero(turn < len(rows))
    taken = taken[np.lexsort((predicted[likeliest[taken]], turn[taken]))]
    by_row = dict(zip(rows[taken].tolist(), uncertainty[taken].tolist(), strict=True))
    distinct = one_per_group(pool, rows[taken])
    return Selection.of(distinct, [by_row[row] for row in distinct.tolist()], "uncertain")


def _seats(want: npt.NDArray[np.float64], most: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """k seats in proportion to `want`, none more than `most`; the largest remainders get what is left over."""
    exact = k * want / want.sum()
    seats = np.minimum(np.floor(exact).astype(np.int64), most)
    for c in np.argsort(-(exact - np.floor(exact)), kind="stable").tolist():
        if seats.sum() >= k:
            break
        seats[c] += seats[c] < most[c] and want[c] > 0
    return seats


def _mix(some: Selection, others: Selection, pool: Pool, rng: np.random.Generator) -> Selection:
    """`some` at random places, evenly spread, among `others`; as many rows as `others` has, at most one of a group."""
    length, count = len(others), len(some)
    if not count or not length:
        return others
    both = concatenate(some, others)
    kept = one_per_group(
        pool, np.concatenate([both.indices[:count], both.indices[count:][~np.isin(others.indices, some.indices)]])
    )
    by_row = {row: place for place, row in reversed(list(enumerate(both.indices.tolist())))}
    first = [by_row[row] for row in kept.tolist() if by_row[row] < count]
    rest = [by_row[row] for row in kept.tolist() if by_row[row] >= count][: length - len(first)]
    total = len(first) + len(rest)
    is_first = spread(len(first), total, rng)
    places = np.empty(total, np.int64)
    places[is_first], places[~is_first] = first, rest
    return both.take(places)
