"""Find near-duplicates in a pool: exactly, in memory that grows with N and not with N^2."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .errors import PoolError, ShapeError

_TILE = 512  # rows compared with rows at once
_PROJECTION = 16  # axes in which tiles are kept apart
_CHUNK = 65_536  # rows handled at once in a pass over the pool
_SAMPLE = 4096  # rows that the axes are found from
_SLACK = 2e-3  # fp16 rows and float32 products move distances by less
_MOST_EDGES = 1_000_000  # pairs held before they are folded into a forest
_LEADERS = 256  # balls tried at once when a chain is cut


def near_duplicate_groups(features: npt.NDArray[Any], threshold: float = 0.98) -> npt.NDArray[np.int64]:
    """Group rows that are linked by cosines above `threshold`.

    Groups are the connected parts of the graph of all such pairs. A part that is a chain rather than a
    cluster (the frames of a film, each like the next and the last unlike the first) is cut into balls of
    twice the linking distance: one group supplies one example per batch, and a chain could swallow the pool.

    Args:
        features: [N, D] float, rows L2-normalised; a row of zeros is like no other.
        threshold: cosine in (0, 1).

    Returns:
        [N]: -1 for rows without a near-duplicate; groups are numbered from 0 by their first row.

    Raises:
        ShapeError; PoolError: NaN or infinity in `features`, or the threshold is out of range.
    """
    if features.ndim != 2:
        raise ShapeError(f"expected features of shape [N, D], got {list(features.shape)}")
    if not 0 < threshold < 1:
        raise PoolError(f"expected a cosine threshold between 0 and 1, got {threshold}")
    n = len(features)
    if n < 2:
        return np.full(n, -1, dtype=np.int64)
    _refuse_nan(features)
    projected = _project(features)
    order = np.concatenate(tiles := list(_tiles(projected)))
    starts = np.concatenate([[0], np.cumsum([len(t) for t in tiles])])
    low = np.stack([projected[t].min(0) for t in tiles])
    high = np.stack([projected[t].max(0) for t in tiles])
    arranged = features[order]  # tiles are contiguous in this copy, in the given precision
    reach = np.sqrt(2 - 2 * threshold) + _SLACK
    forest = _Forest(n)
    for a in range(len(tiles)):
        # Projected distances never exceed true ones, so tiles whose boxes lie apart hold no pair.
        apart = np.maximum(0, np.maximum(low[a] - high[a:], low[a:] - high[a]))
        near = a + np.flatnonzero(np.sqrt((apart * apart).sum(1)) <= reach)
        mine = _wide(arranged[starts[a] : starts[a + 1]])
        for b in near.tolist():
            cosine = mine @ _wide(arranged[starts[b] : starts[b + 1]]).T
            if b == a:
                cosine.fill_diagonal_(-1)
            if float(cosine.max()) <= threshold:
                continue
            left, right = torch.nonzero(cosine > threshold, as_tuple=True)
            forest.add(order[starts[a] + left.numpy()], order[starts[b] + right.numpy()])
    return _numbered(_cut_chains(forest.labels(), features, ball=4 * threshold - 3))


def _refuse_nan(features: npt.NDArray[Any]) -> None:
    for at in range(0, len(features), _CHUNK):
        finite = np.isfinite(features[at : at + _CHUNK]).all(1)
        if not finite.all():
            row = at + int(np.flatnonzero(~finite)[0])
            raise PoolError(f"features hold NaN or infinity, first in row {row}; leave it out or set it to 0")


def _wide(rows: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32))


def _project(features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """[N, D] -> [N, min(D, 16)]: coordinates along the axes of largest spread, an orthogonal projection."""
    n, width = features.shape
    sample = _wide(features[np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64)])
    sample -= sample.mean(0)
    if width <= _PROJECTION:
        axes = torch.eye(width)
    else:
        # A fixed start and two power iterations: the best subspace is not needed, an orthonormal one is.
        start = torch.randn(width, _PROJECTION, generator=torch.Generator().manual_seed(0))
        axes = torch.linalg.qr(sample.T @ (sample @ start)).Q
        axes = torch.linalg.qr(sample.T @ (sample @ axes)).Q
    out = np.empty((n, axes.shape[1]), dtype=np.float32)
    for at in range(0, n, _CHUNK):
        out[at : at + _CHUNK] = (_wide(features[at : at + _CHUNK]) @ axes).numpy()
    return out


def _tiles(projected: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.int64]]:
    """Halve at the median of the widest axis until no part has more than `_TILE` rows."""
    parts: list[npt.NDArray[np.int64]] = [np.arange(len(projected))]
    while parts:
        part = parts.pop()
        if len(part) <= _TILE:
            yield part
            continue
        rows = projected[part]
        halves = np.argpartition(rows[:, rows.var(0).argmax()], len(part) // 2)
        parts += [part[halves[: len(part) // 2]], part[halves[len(part) // 2 :]]]


class _Forest:
    """Connected parts of a graph given edge by edge; holds O(n) of them at any time."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._left: list[npt.NDArray[np.int64]] = []
        self._right: list[npt.NDArray[np.int64]] = []
        self._held = 0
        self._most = max(_MOST_EDGES, 2 * n)

    def add(self, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> None:
        self._left.append(left)
        self._right.append(right)
        self._held += len(left)
        if self._held > self._most:
            labels = self.labels()
            # One edge from each row to the first of its part says the same.
            first = np.unique(labels, return_index=True)[1]
            rows = np.flatnonzero(first[labels] != np.arange(self._n))
            self._left, self._right, self._held = [rows], [first[labels[rows]]], len(rows)

    def labels(self) -> npt.NDArray[np.int64]:
        if not self._left:
            return np.arange(self._n)
        left, right = np.concatenate(self._left), np.concatenate(self._right)
        graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self._n, self._n))
        parts: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
        return parts


def _cut_chains(labels: npt.NDArray[np.int64], features: npt.NDArray[Any], ball: float) -> npt.NDArray[np.int64]:
    """Split parts that do not fit into one ball: each piece lies within cosine `ball` of one of its rows."""
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))
    out = labels.copy()
    unused = int(labels.max()) + 1
    for end, size in zip(ends, np.bincount(labels), strict=True):
        if size <= 2:
            continue
        members = order[end - size : end]
        while len(members):
            x = _wide(features[members])
            central = int((x @ x.mean(0)).argmax())
            tried = np.linspace(0, len(members) - 1, min(len(members), _LEADERS)).astype(np.int64)
            tried = np.concatenate([[central], np.unique(tried[tried != central])])
            among = (x[tried] @ x[tried].T >= ball).numpy()
            kept: list[int] = []
            for i in range(len(tried)):
                if not among[i, kept].any():
                    kept.append(i)
                if kept == [0] and bool((x @ x[central] >= ball).all()):
                    break
            likeness, leader = (x @ x[tried[kept]].T).max(1)
            inside = (likeness >= ball).numpy()
            # A leader whose cosine with itself rounds below 1 must still leave with its own ball.
            inside[tried[kept]] = True
            out[members[inside]] = unused + leader.numpy()[inside]
            unused += len(kept)
            members = members[~inside]
    return out


def _numbered(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number groups by their first row; rows alone become -1."""
    _, first, inverse, count = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    number = np.full(len(first), -1, dtype=np.int64)
    shared = np.flatnonzero(count > 1)
    number[shared[np.argsort(first[shared])]] = np.arange(len(shared))
    return number[inverse]
