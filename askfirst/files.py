"""Small things about files and disks that the demo needs in several places."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from .errors import DataDirProblem

LEAST_FREE_BYTES = 500 * 2**20  # a Label Studio data base, embeddings and logs of ten thousand images, with room


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Write a file whole or not at all. `mode` holds from the first byte on."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which "image 9" comes before "image 10"."""
    return tuple(
        (1, int(part), part) if part.isdigit() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text)
        if part
    )


def require_free_space(folder: Path, least_bytes: int = LEAST_FREE_BYTES) -> None:
    """Raises: DataDirProblem when the disk of `folder` is nearly full."""
    free = shutil.disk_usage(folder).free
    if free < least_bytes:
        raise DataDirProblem(
            f"The disk of {folder} has {free // 2**20} MiB left; the demo wants {least_bytes // 2**20} MiB. "
            "Make room, or choose a folder on another disk with --data-dir DIR."
        )


@contextlib.contextmanager
def explained_disk_errors(folder: Path) -> Iterator[None]:
    """Turn "no space left" and "may not write" into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataDirProblem(
                f"The disk of {folder} is full ({error}). Make room and start again: nothing that "
                "was labelled is lost. Or choose another disk with --data-dir DIR."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataDirProblem(
                f"{error.filename or folder} cannot be written ({error.strerror}). "
                "Choose another folder with --data-dir DIR."
            ) from error
        raise


@contextlib.contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Hold `folder` alone as long as the block lasts; the hold ends with the process, however it ends.

    Raises: DataDirProblem when another demo holds it.
    """
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            raise DataDirProblem(
                f"Another demo{f' (process {holder})' if holder else ''} uses {folder}. "
                "Stop it, or start this one with another --data-dir DIR."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
