"""Nearest neighbours by blocks of matrix products: exact, in memory that does not grow with (queries x rows)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import PoolError, ShapeError

_TILE = 8192  # rows compared with a block of queries at once: 12 MB of float32 at a width of 384
_BLOCK = 512  # queries at once: 16 MB of distances
_GATHERED = 8 * 1024 * 1024  # numbers of neighbours' features held at once when distances are measured again


def nearest(
    queries: Tensor, among: Tensor | npt.NDArray[Any], k: int, skip: npt.NDArray[np.int64] | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `among` to each query by Euclidean distance, nearest first.

    Args:
        queries: [Q, D] float32.
        among: [n, D] float32 or float16, a tensor or an array that may be memory-mapped.
        k: at least 1; no more than n, or n - 1 with `skip`.
        skip: [Q] or None, for each query a row not to count: itself, when it is one of `among`.

    Returns:
        distances [Q, k] float32, ascending, and rows [Q, k] int64 of `among`. Distances to about 1e-7 of the
        length of a row; which of equally near rows comes first is not promised.

    Raises:
        ShapeError; PoolError: k is out of range.
    """
    n = len(among)
    if queries.ndim != 2 or among.ndim != 2 or queries.shape[1] != among.shape[1]:
        raise ShapeError(f"expected two arrays of equal width, got {list(queries.shape)} and {list(among.shape)}")
    if not 1 <= k <= n - (skip is not None):
        raise PoolError(f"expected 1 <= k <= {n - (skip is not None)} neighbours, got {k}")
    many = queries.shape[0]
    best = torch.full((many, k), torch.inf)
    rows = torch.zeros((many, k), dtype=torch.int64)
    not_counted = None if skip is None else torch.from_numpy(np.asarray(skip, np.int64))
    for start in range(0, n, _TILE):
        tile = _wide(among[start : start + _TILE])
        turned, squares = tile.T, tile.square().sum(1)
        for at in range(0, many, _BLOCK):
            block = slice(at, at + _BLOCK)
            # Without the query's own square, which moves no row before another.
            distance = torch.addmm(squares, queries[block], turned, alpha=-2)
            if not_counted is not None:
                own = not_counted[block] - start
                inside = torch.nonzero((own >= 0) & (own < len(tile))).flatten()
                distance[inside, own[inside]] = torch.inf
            value, where = distance.topk(min(k, len(tile)), largest=False)
            value, where = torch.cat([best[block], value], 1), torch.cat([rows[block], where + start], 1)
            best[block], order = value.topk(k, largest=False)
            rows[block] = where.gather(1, order)
    return _measured(queries, among, rows)


def _measured(queries: Tensor, among: Tensor | npt.NDArray[Any], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to `rows` [Q, k] as differences: the product form loses half the digits of small ones."""
    many, k = rows.shape
    out, order = torch.empty(many, k), torch.empty(many, k, dtype=torch.int64)
    step = max(1, _GATHERED // (k * queries.shape[1]))
    for at in range(0, many, step):
        block = slice(at, at + step)
        near = rows[block].flatten()
        gathered = _wide(among[near] if isinstance(among, Tensor) else among[near.numpy()])
        gathered = gathered.reshape(-1, k, queries.shape[1])
        out[block], order[block] = (gathered - queries[block, None]).square().sum(-1).sqrt().sort(dim=1, stable=True)
    return out, rows.gather(1, order)


def _wide(rows: Tensor | npt.NDArray[Any]) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.float()
    return torch.from_numpy(np.array(rows, dtype=np.float32))
