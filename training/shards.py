"""Embeddings on disk: shards that are either whole or absent.

    shard-<id>.npy     [m, D] float16
    shard-<id>.json    which example each row belongs to, and which examples could not be read

The JSON file is written last: without it the rows do not count. A shard is never changed; a later one (larger
stamp) says something newer about the same example. Stamps grow over all processes, because a writer takes one
larger than all it has seen. A shard that cannot be read counts as absent, so that its examples are done
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import write_bytes

_log = logging.getLogger(__name__)
_FORMAT = "askfirst-embeddings-1"
_LEFTOVER_S = 3600.0  # files of killed writers are removed after this; no write takes nearly as long


def uri_digest(uri: str) -> int:
    """64 bits that stand for an address: another address means another picture."""
    return int.from_bytes(hashlib.sha256(uri.encode("utf-8", "surrogatepass")).digest()[:8], "little")


@dataclass(frozen=True)
class Entry:
    """What is known about one example: its row, or why there is none."""

    example_id: int
    digest: int  # uri_digest of the address it was read from
    row: NDArray[np.float16] | None = None  # [D]
    error: str = ""


@dataclass(frozen=True)
class Shard:
    """One shard's list of contents. Rows come first, then the unreadable examples (row == -1)."""

    name: str
    width: int
    example_ids: NDArray[np.int64]
    digests: NDArray[np.uint64]
    stamps: NDArray[np.int64]
    rows: NDArray[np.int32]
    errors: dict[int, str]
    data: NDArray[np.float16]  # [m, D], mapped from the file

    @property
    def stamp(self) -> int:
        """The newest stamp in it."""
        return int(self.stamps.max(initial=0))


def write(folder: Path, width: int, entries: Sequence[Entry], stamps: Sequence[int]) -> str:
    """Write one shard; returns its name. `stamps` holds one number per entry."""
    order = sorted(range(len(entries)), key=lambda i: entries[i].row is None)
    kept = [entries[i] for i in order]
    rows = [entry.row for entry in kept if entry.row is not None]
    data = np.stack(rows).astype(np.float16) if rows else np.empty((0, width), np.float16)
    name = f"shard-{uuid.uuid4().hex}"
    buffer = io.BytesIO()
    np.save(buffer, data)
    write_bytes(folder / f"{name}.npy", buffer.getvalue())
    about = {
        "format": _FORMAT,
        "width": width,
        "example_ids": [entry.example_id for entry in kept],
        "uri_digests": [f"{entry.digest:016x}" for entry in kept],
        "stamps": [int(stamps[i]) for i in order],
        "errors": [entry.error for entry in kept if entry.row is None],
        "bytes": len(buffer.getbuffer()),
    }
    write_bytes(folder / f"{name}.json", json.dumps(about, separators=(",", ":")).encode())
    return name


def next_stamp(newest: int) -> int:
    """A stamp for something newer than all that was seen, in nanoseconds where clocks agree."""
    return max(time.time_ns(), newest + 1)


def names(folder: Path) -> set[str]:
    """Names of the shards that are there in full."""
    return {path.stem for path in folder.glob("shard-*.json")}


def read(folder: Path, name: str) -> Shard | None:
    """One shard, or None if it is gone or damaged (which is logged)."""
    try:
        about = json.loads((folder / f"{name}.json").read_bytes())
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']!r}, wanted {_FORMAT!r}")
        file = folder / f"{name}.npy"
        if file.stat().st_size != about["bytes"]:
            raise ValueError(f"{file.stat().st_size} bytes, wanted {about['bytes']}")
        ids = np.asarray(about["example_ids"], np.int64)
        count = len(ids) - len(about["errors"])
        # A mapping of an empty array is refused by the system; a shard of errors only has no rows to map.
        data = np.load(file, mmap_mode="r" if count else None, allow_pickle=False)
        if data.shape != (count, about["width"]) or data.dtype != np.float16:
            raise ValueError(f"rows of shape {data.shape} {data.dtype}, wanted {(count, about['width'])} float16")
        digests = np.asarray([int(text, 16) for text in about["uri_digests"]], np.uint64)
        stamps = np.asarray(about["stamps"], np.int64)
        if not len(digests) == len(stamps) == len(ids):
            raise ValueError("lists of different lengths")
    except FileNotFoundError:
        return None  # merged into another one meanwhile
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        _log.warning("embedding shard %s is damaged and its examples are embedded again: %s", folder / name, error)
        return None
    rows = np.concatenate([np.arange(count, dtype=np.int32), np.full(len(ids) - count, -1, np.int32)])
    errors = dict(zip(ids[count:].tolist(), about["errors"], strict=True))
    return Shard(name, int(about["width"]), ids, digests, stamps, rows, errors, data)


def remove(folder: Path, shard_names: Iterable[str]) -> None:
    """Remove shards, the list of contents first: half a shard is no shard."""
    for name in shard_names:
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.npy").unlink(missing_ok=True)


def remove_leftovers(folder: Path, now: float) -> None:
    """Remove what killed writers left: drafts and rows without a list of contents, once they are old enough.

    `now`: unix seconds by the clock that stamps files in `folder`.
    """
    whole = names(folder)
    for path in folder.glob("*"):
        unfinished = path.suffix == ".npy" and path.stem not in whole
        with contextlib.suppress(FileNotFoundError):
            if (path.name.startswith(".") or unfinished) and now - path.stat().st_mtime > _LEFTOVER_S:
                path.unlink()
