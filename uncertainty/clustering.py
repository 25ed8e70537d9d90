"""Clusters of rows: k-means and average linkage, and choosing from clusters in turn.

Axes: n rows, K clusters, D width. Distances are Euclidean. They are computed as |x|^2 + |c|^2 - 2 x.c in float32,
which suits rows of about unit length; k-means holds nothing of size (n x K).
"""

from dataclasses import dataclass
from math import ceil, log

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from torch import Tensor

from .coverage import systematic_sample
from .errors import PoolError, ShapeError

Rows = npt.NDArray[np.int64]

# Centres are fitted to at most this many rows, or `_PER_CENTRE` rows a centre where that is more.
FIT_ROWS = 32_768
_PER_CENTRE = 16
# More clusters than this cost minutes; whoever needs more rows takes several of each cluster.
MOST_CENTRES = 2048
# Average linkage holds all pairs twice, 8 n^2 bytes: 0.13 GB at this size, and takes a second.
LINKED_ROWS = 4000
ITERATIONS = 20
_LEAST_PROGRESS = 1e-4  # share of the inertia an iteration must save to be followed by another; as scikit-learn's
# Seeds are drawn from at most this many rows, or `_PER_SEED` rows a seed where that is more.
_SEED_ROWS = 4096
_PER_SEED = 8
_PASSES = 128  # passes over these rows; more seeds than that are drawn several at a time
_BLOCK = 1024 * 1024  # numbers of a block of distances: 4 MB
_COPY = 2e-6  # squared distances below this share of the largest squared length are rounding


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of rows around centres.

    Attributes:
        labels: [n] cluster of each row, in [0, K); clusters may be empty where rows are copies.
        distances: [n] float32 >= 0, squared distance of each row to its centre.
        centres: [K, D] float32.
    """

    labels: Rows
    distances: npt.NDArray[np.float32]
    centres: Tensor


def k_means(
    x: Tensor,
    k: int,
    rng: np.random.Generator,
    *,
    weights: npt.NDArray[np.floating] | None = None,
    iterations: int = ITERATIONS,
) -> Clusters:
    """Split rows into k clusters of small (weighted) squared distance to their centres.

    Seeds are those of greedy k-means++, followed by Lloyd's iterations; a cluster that loses all rows starts again
    at the row that adds most to the inertia. Centres are fitted to a weighted sample of the rows where there are more
    than `FIT_ROWS`, and all rows then go to the nearest.

    Args:
        x: [n, D] float32.
        k: at least 1; no more than n clusters are made.
        weights: [n] >= 0 with a positive sum, or None for equal ones.
        iterations: at most so many of Lloyd's.

    Raises:
        ShapeError; PoolError: k < 1, no rows, or weights that are negative or sum to zero.

    Paper:
        Arthur & Vassilvitskii 2007 (k-means++).
    """
    n = x.shape[0]
    if x.ndim != 2 or (weights is not None and weights.shape != (n,)):
        raise ShapeError(
            f"expected x [n, D] and weights [n], got {list(x.shape)} and "
            f"{None if weights is None else list(weights.shape)}"
        )
    if k < 1 or n < 1:
        raise PoolError(f"expected at least one cluster and one row, got k={k} and {n} rows")
    weight = np.ones(n) if weights is None else weights.astype(np.float64)
    if not (weight >= 0).all() or not weight.sum() > 0:
        raise PoolError("expected weights >= 0 with a positive sum")
    k = min(k, n)
    fitted, represented = x, weight
    if n > max(FIT_ROWS, _PER_CENTRE * k):
        rows, shares = systematic_sample(weight, max(FIT_ROWS, _PER_CENTRE * k), rng)
        if len(rows) >= k:  # fewer when a few rows have nearly all weight
            fitted, represented = x[torch.from_numpy(rows)], shares
    # Weights of one on average, so that float32 sums neither vanish nor overflow.
    out = _lloyd(fitted, k, rng, represented / represented.mean(), iterations)
    return out if fitted is x else Clusters(*assign(x, out.centres), out.centres)


def assign(x: Tensor, centres: Tensor, lengths: Tensor | None = None) -> tuple[Rows, npt.NDArray[np.float32]]:
    """The nearest centre of each row, [n], and the squared distance to it, [n] float32 >= 0.

    Args:
        lengths: [n] squared lengths of the rows, for who has them already.
    """
    n = x.shape[0]
    labels, distances = torch.empty(n, dtype=torch.int64), torch.empty(n)
    turned, squares = centres.T.contiguous(), centres.square().sum(1)
    step = max(1, _BLOCK // centres.shape[0])
    for at in range(0, n, step):
        part = x[at : at + step]
        least, nearest = torch.addmm(squares, part, turned, alpha=-2).min(1)
        labels[at : at + step] = nearest
        own = part.square().sum(1) if lengths is None else lengths[at : at + step]
        distances[at : at + step] = (least + own).clamp_min_(0)
    return labels.numpy(), distances.numpy()


def average_linkage(x: Tensor, count: int) -> Rows:
    """At most `count` clusters by merging the two whose rows are closest on average, again and again.

    Holds all pairs of rows: for at most `LINKED_ROWS` of them.

    Args:
        x: [n, D] float32.
        count: at least 1; equal distances at the cut leave fewer clusters.

    Returns:
        [n] cluster of each row, numbered from 0.

    Raises:
        PoolError: count < 1, or more rows than `LINKED_ROWS`.
    """
    n = x.shape[0]
    if count < 1 or n > LINKED_ROWS:
        raise PoolError(f"expected count >= 1 and at most {LINKED_ROWS} rows, got {count} and {n}")
    if n < 2:
        return np.zeros(n, np.int64)
    pairs = np.empty(n * (n - 1) // 2)
    squares = x.square().sum(1)
    step, done = max(1, _BLOCK // n), 0
    for at in range(0, n, step):
        block = torch.addmm(squares, x[at : at + step], x.T, alpha=-2).add_(squares[at : at + step, None])
        for i, row in enumerate(block.clamp_min_(0).sqrt_().numpy(), start=at):
            pairs[done : done + n - i - 1] = row[i + 1 :]
            done += n - i - 1
    labels: npt.NDArray[np.int32] = fcluster(linkage(pairs, "average"), count, "maxclust")
    return labels.astype(np.int64) - 1


def in_turn(labels: Rows, values: npt.NDArray[np.floating], order: Rows) -> tuple[Rows, Rows]:
    """Rows in the order in which clusters supply them, one each a round, that of the smallest value first.

    Args:
        labels: [n] cluster of each row, in [0, K).
        values: [n], what rows of a cluster are sorted by; the earlier row of equals first.
        order: [K] clusters in the order of their turns.

    Returns:
        [n] places in `labels`, and [n] the round in which each of them is supplied, from 0.
    """
    n = len(labels)
    sizes = np.bincount(labels, minlength=len(order))
    by_cluster = np.lexsort((values, labels))
    turn = np.empty(n, np.int64)
    turn[by_cluster] = np.arange(n) - (np.cumsum(sizes) - sizes)[labels[by_cluster]]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    out = np.lexsort((place[labels], turn))
    return out, turn[out]


def _lloyd(x: Tensor, k: int, rng: np.random.Generator, weights: npt.NDArray[np.float64], iterations: int) -> Clusters:
    n = x.shape[0]
    lengths = x.square().sum(1)
    rounding = _COPY * float(lengths.max())
    rows, represented = systematic_sample(weights, max(_SEED_ROWS, _PER_SEED * k), rng)
    if len(rows) < k:  # too few rows have weight: the others are as good as any for what is left
        rows, represented = np.arange(n), weights
    seeds = rows[_seeds(x[torch.from_numpy(rows)], k, rng, represented, rounding)]
    centres = x[torch.from_numpy(seeds)]
    labels, distances = assign(x, centres, lengths)
    inertia = float(weights @ distances)
    for _ in range(iterations):
        mass = np.bincount(labels, weights, minlength=k)
        # A sparse product adds up in a fixed order, so the same seed gives the same centres.
        order = np.argsort(labels, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=k))])
        members = csr_array((weights[order].astype(np.float32), order, starts), shape=(k, n))
        filled = mass > 0
        moved = centres.numpy().copy()
        moved[filled] = (members @ x.numpy())[filled] / mass[filled, None]
        loss = np.where(distances > rounding, weights * distances, 0)
        empty = np.flatnonzero(~filled)
        if len(empty):
            far = np.argsort(-loss, kind="stable")[: len(empty)]
            far = far[loss[far] > 0]
            moved[empty[: len(far)]] = x[torch.from_numpy(far)].numpy()
        moved_centres = torch.from_numpy(moved)
        moved_labels, moved_distances = assign(x, moved_centres, lengths)
        before, inertia = inertia, float(weights @ moved_distances)
        if inertia > before:  # rounding, at the end of the way
            break
        centres, labels, distances = moved_centres, moved_labels, moved_distances
        if before - inertia <= _LEAST_PROGRESS * before:
            break
    return Clusters(labels, distances, centres)


def _seeds(x: Tensor, k: int, rng: np.random.Generator, weights: npt.NDArray[np.float64], rounding: float) -> Rows:
    """[k] different rows, each drawn in proportion to weight times squared distance to those before it.

    Up to `_PASSES` seeds: of a few drawn, the one that leaves the smallest inertia. More: several a pass, all kept.
    """
    greedy = k <= _PASSES
    draws = 2 + int(log(k)) if greedy else ceil(k / _PASSES)
    squares = x.square().sum(1)
    weight = torch.from_numpy(weights).float()
    closest = torch.full((x.shape[0],), torch.inf)
    loss = np.cumsum(weights)
    chosen: list[int] = []
    while len(chosen) < k:
        if not loss[-1] > 0:  # nothing but copies of seeds is left
            rest = np.setdiff1d(np.arange(len(x)), chosen)
            chosen += rng.permutation(rest)[: k - len(chosen)].tolist()
            break
        ticks = rng.random(draws if chosen else 1) * loss[-1]
        # Rounding may push a draw past the end, where rows may be seeds already.
        drawn = np.minimum(np.searchsorted(loss, ticks, side="right"), np.searchsorted(loss, loss[-1]))
        fresh = torch.from_numpy(np.unique(drawn))
        offered = torch.addmm(squares[fresh], x, x[fresh].T, alpha=-2).add_(squares[:, None])  # [n, draws]
        offered = torch.minimum(offered.clamp_min_(0), closest[:, None])
        if greedy:
            best = int((weight @ offered).argmin())
            fresh, offered = fresh[best : best + 1], offered[:, best : best + 1]
        chosen += fresh.tolist()
        closest = offered.amin(1)
        closest[closest <= rounding] = 0
        closest[fresh] = 0
        loss = np.cumsum(weights * closest.numpy())
    return np.array(chosen[:k])
