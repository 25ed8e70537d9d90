"""The pool's embeddings: made once, by as many processes as there are, and read through memory maps.

    EmbeddingTable   reads what is there; follows what other processes write
    EmbeddingStore   adds what is missing, with anything that turns pixels into vectors

Work is cut by example id into pieces that are the same for every process, and a process claims a piece before
it works on it (`claims`). A finished piece is on disk (`shards`), so a killed process loses a few seconds of
work.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import shards
from .claims import BEAT_S, STALE_S, Claims
from .cores import usable_cores
from .embedding_table import EmbeddingTable, as_ids, merge
from .errors import UnreadableImage
from .images import decode

__all__ = ["EmbedReport", "Embedder", "EmbeddingStore", "EmbeddingTable"]

_log = logging.getLogger(__name__)

_PIECE = 512  # example ids per piece: a few seconds of work
_BATCH = 32  # images per call of the embedder; larger gains nothing on a few cores and costs memory
_PER_CORE = 8  # where there are many cores, each gets a slice of the batch
_AHEAD = 3  # batches that the decoding threads may be ahead of the embedder
_MERGED_ROWS = 16_384  # rows of a merged shard: few files to map for a pool of a million, 42 MB at width 1280
_MERGE_FROM = 32  # small shards that are worth a merge
_WAIT_S = 0.2  # how often to look whether another process has finished a piece that it holds
_FP16_MAX = float(np.finfo(np.float16).max)


class Embedder(Protocol):
    """Anything that turns pixels into vectors."""

    @property
    def id(self) -> str:
        """Names everything that changes a vector: equal ids mean comparable vectors."""

    @property
    def width(self) -> int:
        """D, numbers per image."""

    @property
    def input_size(self) -> int:
        """H, side of the square images it takes, pixels."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, H, H, 3] uint8 RGB -> [B, D] float32."""


class ExampleLike(Protocol):
    """What this module needs to know of an example."""

    @property
    def example_id(self) -> int: ...

    @property
    def uri(self) -> str: ...


E = TypeVar("E", bound=ExampleLike)
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class EmbedReport:
    """What one call of `EmbeddingStore.embed` did."""

    embedded: int  # by this call
    skipped: int  # known before, done by another process meanwhile, or not reached before a stop
    unreadable: dict[int, str]  # example id -> reason; found by this call
    seconds: float


class EmbeddingStore:
    """Makes embeddings with one embedder and keeps them in `pool/<embedder id>/`."""

    def __init__(
        self,
        pool: Path,
        embedder: Embedder,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
        stale_s: float = STALE_S,
        beat_s: float = BEAT_S,
    ) -> None:
        """
        Args:
            pool: folder of all representations of a project.
            batch_size: images per call of the embedder.
            threads: threads that load and decode; by default twice the cores, since loading waits.
            stale_s: seconds without a heart-beat after which another process's piece is taken over.
            beat_s: seconds between two heart-beats of this process.
        """
        self.folder = representation_folder(pool, embedder.id)
        self.embedder = embedder
        self.table = EmbeddingTable(self.folder)
        self.batch_size = batch_size or max(_BATCH, _PER_CORE * usable_cores())
        self.threads = threads or max(4, 2 * usable_cores())
        self._stale_s = stale_s
        self._beat_s = beat_s

    def embed(
        self,
        examples: Sequence[E],
        load: Callable[[E], bytes],
        *,
        progress: Callable[[int, int], None] = lambda settled, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EmbedReport:
        """Embed what is not embedded yet. Any number of processes may run this at once.

        Returns when every example is settled, by this process or another, or when `should_stop` says so; then
        what was finished is kept. Pictures that cannot be decoded are remembered and not tried again until
        their address changes. An example whose bytes could not be loaded is reported and tried again by the
        next call, because servers come back.

        Args:
            load: bytes of an example; called from several threads. What it raises is the reason shown.
            progress: (settled, all that were open at the start); called from this thread.
            should_stop: asked between batches.
        """
        start = time.monotonic()
        self.table.refresh()
        ids = as_ids([example.example_id for example in examples])
        digests = np.asarray([shards.uri_digest(example.uri) for example in examples], np.uint64)
        settled = self.table.settled(ids, digests).tolist()
        todo = {e.example_id: e for e, done in zip(examples, settled, strict=True) if not done}
        if not todo:
            return EmbedReport(0, len(examples), {}, time.monotonic() - start)
        with Claims(self.folder, stale_s=self._stale_s, beat_s=self._beat_s) as claims:
            run = _Run(self, claims, list(todo.values()), load)
            run.go(progress, should_stop)
            self._compact(claims)
        skipped = len(examples) - run.embedded - len(run.unreadable)
        return EmbedReport(run.embedded, skipped, run.unreadable, time.monotonic() - start)

    def compact(self) -> int:
        """Merge small shards; returns how many went away. Others may read and write meanwhile."""
        with Claims(self.folder, stale_s=self._stale_s, beat_s=self._beat_s) as claims:
            return self._compact(claims)

    def _compact(self, claims: Claims) -> int:
        gone = 0
        if claims.take("merge"):
            shards.remove_leftovers(self.folder, claims.now())
            self.table.refresh()
            small = [part for part in self.table.parts() if len(part.example_ids) < _MERGED_ROWS // 2]
            if len(small) >= _MERGE_FROM:
                gone = sum(count - 1 for count in _merge_small(self.folder, small).values())
            claims.free("merge")
        self.table.refresh()
        return gone


def representation_folder(pool: Path, representation: str) -> Path:
    """Where the shards of a representation are. Raises ValueError for an id that cannot name a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", representation):
        raise ValueError(f"an embedder id names a folder (letters, digits, . _ -), got {representation!r}")
    return pool / representation


def _merge_small(folder: Path, small: Sequence[shards.Shard]) -> dict[str, int]:
    """Merge shards into as few as fit; new name -> how many it stands for. Needs the claim "merge"."""
    made: dict[str, int] = {}
    group: list[shards.Shard] = []
    rows = 0
    for part in sorted(small, key=lambda part: part.stamp):
        if group and rows + len(part.example_ids) > _MERGED_ROWS:
            made[merge(folder, group)] = len(group)
            group, rows = [], 0
        group.append(part)
        rows += len(part.example_ids)
    if len(group) > 1:
        made[merge(folder, group)] = len(group)
    return made


@dataclass
class _Piece:
    """A claimed piece of work on its way through the pipeline."""

    name: str
    left: int  # examples that are not embedded, refused or given up yet
    entries: list[shards.Entry] = field(default_factory=list)


class _Run:
    """One call of `EmbeddingStore.embed`: claim pieces, load and decode in threads, embed, write."""

    def __init__(
        self, store: EmbeddingStore, claims: Claims, todo: Sequence[ExampleLike], load: Callable[[Any], bytes]
    ) -> None:
        self.embedded = 0
        self.unreadable: dict[int, str] = {}
        self._folder = store.folder
        self._embedder = store.embedder
        self._batch_size = store.batch_size
        self._threads = store.threads
        self._claims = claims
        self._load = load
        self._pieces: dict[str, list[ExampleLike]] = {}
        for example in todo:
            self._pieces.setdefault(f"piece-{example.example_id // _PIECE}", []).append(example)
        self._total = len(todo)
        self._settled = 0
        self._seen = {part.name for part in store.table.parts()}
        self._newest = max((part.stamp for part in store.table.parts()), default=0)
        self._others: dict[int, int] = {}  # example id -> digest: settled by other processes since the start
        self._open: dict[str, _Piece] = {}
        self._written: list[str] = []  # shards of this run that were not merged yet

    def go(self, progress: Callable[[int, int], None], should_stop: Callable[[], bool]) -> None:
        progress(0, self._total)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            self._pump(pool, progress, should_stop)
        finally:
            # After a stop or an error too: what is finished is kept, what is not is free for others.
            pool.shutdown(wait=True, cancel_futures=True)
            for piece in list(self._open.values()):
                self._close(piece)

    def _pump(
        self, pool: ThreadPoolExecutor, progress: Callable[[int, int], None], should_stop: Callable[[], bool]
    ) -> None:
        """Keep the threads ahead of the embedder by a bounded number of images."""
        size = self._embedder.input_size
        waiting: deque[tuple[_Piece, ExampleLike, Future[Pixels | _Refused]]] = deque()
        work = self._work()
        more = True
        while not should_stop():
            while more and len(waiting) < (_AHEAD + 1) * self._batch_size:
                try:
                    item = next(work)
                except StopIteration:
                    more = False
                    break
                if item is None:
                    break
                piece, example = item
                waiting.append((piece, example, pool.submit(_fetch, self._load, example, size)))
            if waiting:
                self._batch([waiting.popleft() for _ in range(min(self._batch_size, len(waiting)))])
            elif more:
                time.sleep(_WAIT_S)  # the rest is in the hands of other processes
            else:
                return
            progress(self._settled, self._total)

    def _work(self) -> Iterator[tuple[_Piece, ExampleLike] | None]:
        """Open examples, each piece claimed just before. None: nothing to be had at the moment."""
        while self._pieces:
            for name in list(self._pieces):
                if self._claims.take(name):
                    left = self._still_open(self._pieces.pop(name))
                    if not left:
                        self._claims.free(name)
                        continue
                    piece = self._open[name] = _Piece(name, len(left))
                    for example in left:
                        yield piece, example
                else:
                    self._pieces[name] = self._still_open(self._pieces[name])
                    if not self._pieces[name]:
                        del self._pieces[name]
            yield None

    def _still_open(self, examples: list[ExampleLike]) -> list[ExampleLike]:
        """Without those that other processes have settled meanwhile."""
        for name in shards.names(self._folder) - self._seen:
            self._seen.add(name)
            if (part := shards.read(self._folder, name)) is not None:
                self._newest = max(self._newest, part.stamp)
                self._others.update(zip(part.example_ids.tolist(), part.digests.tolist(), strict=True))
        left = [e for e in examples if self._others.get(e.example_id) != shards.uri_digest(e.uri)]
        self._settled += len(examples) - len(left)
        return left

    def _batch(self, items: list[tuple[_Piece, ExampleLike, Future[Pixels | _Refused]]]) -> None:
        fetched = [(piece, example, future.result()) for piece, example, future in items]
        pictures = [pixels for _, _, pixels in fetched if not isinstance(pixels, _Refused)]
        vectors = iter(list(self._vectors(np.stack(pictures))) if pictures else [])
        for piece, example, came in fetched:
            digest = shards.uri_digest(example.uri)
            refused = came if isinstance(came, _Refused) else None
            if refused is None:
                row = next(vectors)
                if np.isfinite(row).all():
                    piece.entries.append(shards.Entry(example.example_id, digest, row))
                else:
                    refused = _Refused("its features are not finite numbers", lasting=True)
            if refused is not None:
                self.unreadable[example.example_id] = refused.reason
                if refused.lasting:
                    piece.entries.append(shards.Entry(example.example_id, digest, error=refused.reason))
            else:
                self.embedded += 1
            self._settled += 1
            piece.left -= 1
            if not piece.left:
                self._close(piece)

    def _vectors(self, images: Pixels) -> NDArray[np.float16]:
        vectors = self._embedder.embed(images)
        wanted = (len(images), self._embedder.width)
        if vectors.shape != wanted:
            raise ValueError(f"embedder {self._embedder.id} gave {vectors.shape}, wanted {wanted}")
        # Infinity stays infinity, to be noticed; a finite number beyond half precision becomes the largest.
        return np.where(np.isfinite(vectors), vectors.clip(-_FP16_MAX, _FP16_MAX), vectors).astype(np.float16)

    def _close(self, piece: _Piece) -> None:
        """Write what a piece has given and let it go."""
        if piece.entries:
            stamp = self._newest = shards.next_stamp(self._newest)
            stamps = list(itertools.repeat(stamp, len(piece.entries)))
            name = shards.write(self._folder, self._embedder.width, piece.entries, stamps)
            self._seen.add(name)
            self._written.append(name)
        del self._open[piece.name]
        self._claims.free(piece.name)
        if len(self._written) >= _MERGE_FROM and self._claims.take("merge"):
            # Now rather than at the end: a pool of a million would be thousands of files by then.
            mine = [part for name in self._written if (part := shards.read(self._folder, name)) is not None]
            self._seen |= _merge_small(self._folder, mine).keys()
            self._written = []
            self._claims.free("merge")


@dataclass(frozen=True)
class _Refused:
    """Why an example has no pixels."""

    reason: str
    lasting: bool  # False: trying again may help


def _fetch(load: Callable[[Any], bytes], example: ExampleLike, size: int) -> Pixels | _Refused:
    """One example's pixels; runs in a thread. Any error of `load` concerns this example only."""
    try:
        data = load(example)
    except Exception as error:  # whatever the network or the caller's storage can raise
        _log.info("example %d could not be loaded", example.example_id, exc_info=True)
        return _Refused(str(error) or type(error).__name__, lasting=False)
    try:
        return decode(data, size)
    except UnreadableImage as error:
        return _Refused(error.reason, lasting=True)
