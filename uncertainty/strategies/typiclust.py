"""TypiClust: the most typical example of each cluster that has no label yet."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .. import clustering
from ..neighbours import nearest
from ..pool import Pool, Rows
from ..selection import Selection, StrategyInfo, register_strategy, shuffled
from .cluster_margin import MOST_ROWS, topped_up

MOST_CLUSTERS = 500  # as published
_TOO_SMALL = 5  # clusters of so few rows are outliers, as published
_NEIGHBOURS = 20  # nearest neighbours that typicality looks at, as published
_ROWS = 20_000  # selectable rows clustered, and as many labelled or pending ones
_PER_CHOICE = 16
_COMPARED = 2048  # rows of a cluster compared with each other
_LEAST_DISTANCE = 1e-5  # added to distances, so that copies are very typical and not infinitely so; as published


def _typiclust(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = shuffled(pool, rng)[: min(max(_ROWS, _PER_CHOICE * k), MOST_ROWS)]
    known = rng.permutation(np.flatnonzero((pool.labelled | pool.pending) & ~pool.excluded))
    count = min(len(known) + k, MOST_CLUSTERS)
    known = known[:_ROWS]
    x = pool.rows(np.concatenate([rows, known]))
    cluster = clustering.k_means(x, count, rng).labels
    sizes = np.bincount(cluster, minlength=count)
    known_in = np.bincount(cluster[len(rows) :], minlength=count)
    order = np.lexsort((rng.random(count), -sizes, known_in))
    order = order[sizes[order] > known_in[order]]  # with a row to choose
    large = order[sizes[order] > _TOO_SMALL]
    picked, first = _most_typical(x, cluster[: len(rows)], large if len(large) else order, k)
    gain = np.where(first, sizes[cluster[picked]] / len(x), 0)
    return topped_up(pool, Selection.of(rows[picked], gain, "diverse"), k, rng)


def _most_typical(x: Tensor, cluster: Rows, order: Rows, k: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Up to k rows, each the most typical left in its cluster, clusters taking turns; and whether it was the first."""
    by_cluster = np.argsort(cluster, kind="stable")
    ends = np.cumsum(np.bincount(cluster, minlength=order.max(initial=-1) + 1))
    starts = np.concatenate([[0], ends[:-1]])
    left = [by_cluster[starts[c] : ends[c]] for c in order.tolist()]
    picked: list[int] = []
    firsts = len(left)
    while left and len(picked) < k:
        for turn, members in enumerate(left[: k - len(picked)]):
            # Rows come shuffled, so the first of a large cluster are a fair sample of it.
            best = int(typicality(x[members[:_COMPARED]]).argmax())
            picked.append(int(members[best]))
            left[turn] = np.delete(members, best)
        left = [members for members in left if len(members)]
    return np.array(picked, np.int64), np.arange(len(picked)) < firsts


def typicality(x: Tensor) -> Tensor:
    """How near each row is to its neighbours: 1 / mean distance to the min(20, n / 2) nearest.

    Args:
        x: [n, D] float32, the rows of one cluster.

    Returns:
        [n] >= 0; a row alone has 0.

    Paper:
        Hacohen et al. 2022, arXiv:2202.02794.
    """
    n = x.shape[0]
    if n < 2:
        return x.new_zeros(n)
    distances, _ = nearest(x, x, min(_NEIGHBOURS, max(1, n // 2)), np.arange(n))
    return 1 / (distances.mean(1) + _LEAST_DISTANCE)


register_strategy(
    StrategyInfo(
        "typiclust",
        _typiclust,
        "The most typical example of each cluster without a label; needs no model, good for the very first labels.",
        False,
        "Hacohen et al. 2022, arXiv:2202.02794",
        exactness=f"all rows up to {_ROWS}; a sample of that size, or {_PER_CHOICE} rows a choice, above; "
        f"typicality among at most {_COMPARED} rows of a cluster",
    )
)
