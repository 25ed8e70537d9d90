"""The few file habits that the package relies on: whole files only, synced, and one lock per decision."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import CheckpointCorrupt

_POLL_S = 0.1  # how often a waiting process looks whether it should stop


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` by write, sync and rename: readers see the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, for a JSON value."""
    write_bytes(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at `path`, or None if there is no file. Raises CheckpointCorrupt."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointCorrupt(str(path), "a JSON object", str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointCorrupt(str(path), "a JSON object", type(value).__name__)
    return value


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, should_stop: Callable[[], bool] | None = None) -> Iterator[bool]:
    """Hold the lock at `path` against other processes; the system frees it when the holder dies.

    Yields True while held. With `should_stop` the wait can end early, which yields False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        held = False
        while not held:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if should_stop else 0))
                held = True
            except BlockingIOError:
                if should_stop is not None and should_stop():
                    break
                time.sleep(_POLL_S)
        yield held
