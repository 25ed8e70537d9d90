"""One representation of a pool as one process sees it: rows, the space they live in, and what was computed from them.

Everything cached goes stale together, when `refresh` finds that the table changed.

    N  embedded examples    D  embedding width    C  classes
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .embedding_table import EmbeddingTable
from .errors import NoTrainableExamples
from .files import locked
from .linear import Floats, Head
from .space import SAMPLE, Space

Ids = NDArray[np.int64]

SELECTION_DIMS = 128  # leading axes that selection works in
_CHUNK = 4_096  # rows read at once
_BLOCK = 256  # rows widened from fp16 at once: 1.3 MB at D=1280 stays in the cache, four times as fast as more
LEARNT_FROM = "learnt_from.npy"  # [m] ids of the labelled examples that the representation was trained on, if any
_GROWTH = 4  # a pool so many times the size that the space was learnt on deserves axes of its own


class PoolView:
    """Reads a representation's folder. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.table = EmbeddingTable(folder)
        self._lock = threading.RLock()
        self._space: Space | None = None
        self._reduced: Floats | None = None
        self._learnt_from: Ids | None = None  # does not change: another network is another representation
        self._logits: tuple[str, Floats] | None = None

    @property
    def ids(self) -> Ids:
        """[N] ids of the embedded examples, sorted."""
        return self.table.ids

    def refresh(self) -> bool:
        """Take in what other processes wrote; True if anything changed."""
        with self._lock:
            changed = self.table.refresh()
            if changed:
                self._reduced = self._logits = None
            return changed

    def rows(self, example_ids: Ids) -> Floats:
        """[n, D] raw embeddings. Raises DataError if one is not embedded."""
        return self.table.rows(example_ids)

    def learnt_from(self) -> Ids:
        """[m] ids of the labelled examples that the network of this representation was trained on."""
        path = self._folder / LEARNT_FROM
        if self._learnt_from is None:
            self._learnt_from = np.load(path, allow_pickle=False) if path.exists() else np.empty(0, np.int64)
        return self._learnt_from

    def space(self) -> Space:
        """The space of this representation, learnt at first use; learnt again once the pool has grown a lot.

        Raises:
            NoTrainableExamples: nothing is embedded.
        """
        with self._lock:
            count = len(self.table)
            if self._space is None or _outgrown(self._space, count):
                self._space, self._reduced = self._stored_space(count), None
            return self._space

    def reduced(self) -> Floats:
        """[N, at most 128] leading coordinates of all rows, of length one, in the order of `ids`."""
        from .blas import one_thread

        with self._lock:
            space = self.space()
            if self._reduced is None:
                ids = self.ids
                with one_thread():
                    parts = [
                        space.reduced(self.table.rows(ids[at : at + _CHUNK]), SELECTION_DIMS)
                        for at in range(0, len(ids), _CHUNK)
                    ]
                self._reduced = np.concatenate(parts)
            return self._reduced

    def reduced_rows(self, example_ids: Ids) -> Floats:
        """[n, at most 128] rows of `reduced` of examples that are embedded."""
        with self._lock:
            return self.reduced()[np.searchsorted(self.ids, example_ids)]

    def logits(self, name: str, head: Head) -> Floats:
        """[N, C] logits of all rows by the head called `name`; those of the last head are kept."""
        from .blas import one_thread

        with self._lock:
            if self._logits is None or self._logits[0] != name:
                with one_thread():
                    self._logits = (name, self._compute_logits(head))
            return self._logits[1]

    def _compute_logits(self, head: Head) -> Floats:
        import torch  # widens fp16 several times as fast as numpy

        ids = self.ids
        out = np.empty((len(ids), head.classes), np.float32)
        wide = torch.empty((_BLOCK, self.table.width or 0))
        for at in range(0, len(ids), _CHUNK):
            half = torch.from_numpy(self.table.rows(ids[at : at + _CHUNK], dtype=np.float16))
            for start in range(0, len(half), _BLOCK):
                block = wide[: min(_BLOCK, len(half) - start)]
                block.copy_(half[start : start + _BLOCK])
                rows = block.numpy()
                norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
                place = out[at + start : at + start + len(rows)]
                np.matmul(rows, head.weight, out=place)
                place /= np.maximum(norms, 1e-12)[:, None]
                place += head.bias
        return out

    def _stored_space(self, count: int) -> Space:
        from .blas import one_thread

        if not count:
            raise NoTrainableExamples(labelled=0, embedded=0)
        path = self._folder / "space.safetensors"
        space = Space.load(path)
        if space is None or _outgrown(space, count):
            with locked(self._folder / ".space.lock"):
                space = Space.load(path)  # another process may have been first
                if space is None or _outgrown(space, count):
                    ids = self.ids
                    sample = np.random.default_rng(0).permutation(len(ids))[:SAMPLE]
                    with one_thread():
                        space = Space.learn(self.table.rows(ids[np.sort(sample)]))
                    space.save(path)
        return space


def _outgrown(space: Space, count: int) -> bool:
    return space.learnt_on < SAMPLE and count >= _GROWTH * space.learnt_on
