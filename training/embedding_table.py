"""Reading embeddings: one consistent view of all shards, rows on disk until they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import shards
from .errors import DataError


@dataclass(frozen=True)
class _Index:
    """One consistent view of all shards. Examples are sorted by id."""

    parts: tuple[shards.Shard, ...] = ()
    example_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    shard: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    row: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))  # -1: unreadable

    @classmethod
    def of(cls, parts: Sequence[shards.Shard]) -> _Index:
        if not parts:
            return cls()
        ids = np.concatenate([part.example_ids for part in parts])
        stamps = np.concatenate([part.stamps for part in parts])
        order = np.lexsort((stamps, ids))
        newest = np.append(ids[order][1:] != ids[order][:-1], True)[: len(ids)]
        keep = order[newest]
        where = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.example_ids) for part in parts])
        return cls(
            parts=tuple(parts),
            example_ids=ids[keep],
            digests=np.concatenate([part.digests for part in parts])[keep],
            shard=where[keep],
            row=np.concatenate([part.rows for part in parts])[keep],
        )

    def find(self, example_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of each id in this index, -1 where it is not there."""
        if not len(self.example_ids):
            return np.full(len(example_ids), -1, np.int64)
        at = np.searchsorted(self.example_ids, example_ids).clip(max=len(self.example_ids) - 1)
        return np.where(self.example_ids[at] == example_ids, at, -1)


class EmbeddingTable:
    """Read access to the embeddings of one representation. Safe to use from several threads.

    What other processes write is seen after `refresh`. Rows stay on disk until they are asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = _Index()
        self._bad: set[str] = set()
        self._lock = threading.Lock()
        self.refresh()

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the embedded examples, sorted."""
        index = self._index
        return index.example_ids[index.row >= 0]

    @property
    def width(self) -> int | None:
        """D, or None before anything is embedded."""
        parts = self._index.parts
        return parts[0].width if parts else None

    def __len__(self) -> int:
        return int((self._index.row >= 0).sum())

    def known(self, example_ids: ArrayLike) -> NDArray[np.bool_]:
        """Which of these have an embedding; [n]."""
        index = self._index
        at = index.find(as_ids(example_ids))
        return (at >= 0) & (np.append(index.row, np.int32(-1))[at] >= 0)

    def settled(self, example_ids: ArrayLike, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these were done already, well or badly, from the address with this digest; [n]."""
        index = self._index
        at = index.find(as_ids(example_ids))
        same: NDArray[np.bool_] = np.append(index.digests, np.uint64(0))[at] == digests
        return (at >= 0) & same

    def unreadable(self) -> dict[int, str]:
        """Why examples have no embedding, by example id."""
        index = self._index
        return {
            int(index.example_ids[i]): index.parts[index.shard[i]].errors[int(index.example_ids[i])]
            for i in np.flatnonzero(index.row < 0)
        }

    def rows(self, example_ids: ArrayLike, dtype: DTypeLike = np.float32) -> NDArray[np.float32]:
        """Embeddings in the order asked for; [n, D].

        Raises:
            DataError: an example has no embedding.
        """
        wanted = as_ids(example_ids)
        index = self._index
        at = index.find(wanted)
        row = np.append(index.row, np.int32(-1))[at]
        if (row < 0).any():
            missing = wanted[row < 0]
            raise DataError(
                f"{len(missing)} of {len(wanted)} examples have no embedding (the first is {missing[0]}); "
                "embed them, or ask `known` first"
            )
        out = np.empty((len(wanted), self.width or 0), dtype)
        where = index.shard[at]
        for number in np.unique(where):
            mine = np.flatnonzero(where == number)
            out[mine] = index.parts[number].data[row[mine]]
        return out

    def refresh(self) -> bool:
        """Take in what was written since; True if anything changed."""
        with self._lock:
            old = self._index.parts
            have = {part.name: part for part in old}
            listed: set[str] | None = None
            while (there := shards.names(self._folder)) != listed:
                # Once more, until nothing moves: a merge during the listing can hide rows from it.
                listed = there
                for name in sorted(there - have.keys() - self._bad):
                    part = shards.read(self._folder, name)
                    if part is None:
                        self._bad.add(name)  # shards never change, so it stays unusable
                    else:
                        have[name] = part
            parts = [part for name, part in have.items() if name in there]
            if [part.name for part in parts] == [part.name for part in old]:
                return False
            self._index = _Index.of(parts)
            return True

    def parts(self) -> tuple[shards.Shard, ...]:
        """The shards in use."""
        return self._index.parts


def merge(folder: Path, group: Sequence[shards.Shard]) -> str:
    """One shard for many; returns its name. Readers and writers may be at work meanwhile.

    Each row keeps its stamp, so it makes no difference which of two copies of it a reader meets.
    """
    index = _Index.of(group)
    entries, stamps = [], []
    for example_id, digest, number, row in zip(
        index.example_ids.tolist(),
        index.digests.tolist(),
        index.shard.tolist(),
        index.row.tolist(),
        strict=True,
    ):
        part = group[number]
        at = row if row >= 0 else int(np.flatnonzero(part.example_ids == example_id)[-1])  # rows come first
        stamps.append(int(part.stamps[at]))
        if row >= 0:
            entries.append(shards.Entry(example_id, digest, part.data[row]))
        else:
            entries.append(shards.Entry(example_id, digest, error=part.errors[example_id]))
    name = shards.write(folder, group[0].width, entries, stamps)
    shards.remove(folder, [part.name for part in group])
    return name


def as_ids(example_ids: ArrayLike) -> NDArray[np.int64]:
    """Example ids as one flat int64 array; an empty list is fine."""
    return np.asarray(example_ids, np.int64).reshape(-1)
