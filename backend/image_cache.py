"""Downloaded image bytes on disk: bounded, shared by processes and threads, never half written.

Files are named by a hash of the address, written beside their place and renamed. Reading a file marks it as
used; when the folder outgrows its limit the longest unused files go first. Every process keeps its own rough
count and looks at the folder itself now and then, so several writers may exceed the limit by some percent for
a while. A cache that cannot write (full disk, read-only folder) is a slow cache, not an error.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

LOOK_AFTER_SHARE = 0.05  # part of the limit a process writes before it looks at the whole folder again
KEEP_SHARE = 0.9  # part of the limit that is left after making room, so that it is not made file by file
ABANDONED_S = 3600.0  # an unfinished file this old belongs to a process that died
_PART = ".part"


class ImageCache:
    """Bytes by address in `folder`, at most about `limit_bytes` in all."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._unseen: float = float("inf")  # bytes written since the folder was looked at; inf: never looked
        self._warned = False

    def get(self, address: str) -> bytes | None:
        """The bytes kept for an address; None when there are none."""
        path = self._path(address)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data or None  # an empty file is what a power cut leaves of an unsynced one

    def put(self, address: str, data: bytes) -> None:
        """Keep bytes for an address; larger than the whole cache or with no room on disk: not kept."""
        if not data or len(data) > self._limit * KEEP_SHARE:
            return
        path = self._path(address)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(data)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
            self._make_room(len(data))
        except OSError as error:
            if not self._warned:  # once: it will fail for each image of the pool
                self._warned = True
                log.warning("image cache cannot write", folder=str(self._folder), error=str(error))

    def _path(self, address: str) -> Path:
        name = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _make_room(self, written: int) -> None:
        with self._lock:
            self._unseen += written
            if self._unseen < self._limit * LOOK_AFTER_SHARE:
                return
            self._unseen = 0.0
            files = sorted(self._files())
            excess = sum(size for _, size, _ in files) - self._limit
            if excess <= 0:
                return
            excess += int(self._limit * (1 - KEEP_SHARE))
            for _, size, path in files:  # longest unused first
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                excess -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last use in unix seconds, bytes, path) of every finished file; clears away abandoned ones."""
        now = time.time()
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                try:
                    stat = path.stat()
                except OSError:  # removed by another process
                    continue
                if not name.endswith(_PART):
                    yield stat.st_mtime, stat.st_size, path
                elif now - stat.st_mtime > ABANDONED_S:
                    path.unlink(missing_ok=True)
