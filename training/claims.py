"""Which process works on which piece, kept in files: processes on several machines can share a folder.

A claim is a file made with O_EXCL whose modification time is the holder's heart-beat. A claim is free to take
when its holder is known to be dead, or when its heart has not beaten for `stale_s`. Should two processes hold
one claim after all (a holder that was suspended and wakes up), a piece is worked on twice and nothing is
lost: whoever uses claims must write results that may be written twice.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

BEAT_S = 5.0
STALE_S = 60.0  # a dozen missed beats: a machine may stall, and taking over early only wastes work


class Claims:
    """The claims that one run holds in `folder`. Use as a context: leaving it frees all of them."""

    def __init__(self, folder: Path, *, stale_s: float = STALE_S, beat_s: float = BEAT_S) -> None:
        self._folder = folder
        self._stale_s = stale_s
        self._beat_s = beat_s
        self._token = uuid.uuid4().hex
        self._held: set[str] = set()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._heart.join()
        for name in list(self._held):
            self.free(name)
        self._clock.unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Claim `name`; False while another run holds it. Atomic."""
        path = self._path(name)
        if self._create(path):
            self._held.add(name)
            return True
        token = self._dead_holder(path)
        if token is not None and self._clear(path, token) and self._create(path):
            self._held.add(name)
            return True
        return False

    def free(self, name: str) -> None:
        """Give `name` back; a claim that was taken over meanwhile is left to its new holder."""
        self._held.discard(name)
        path = self._path(name)
        if _holder(path).get("token") == self._token:
            path.unlink(missing_ok=True)

    def now(self) -> float:
        """Unix seconds by the clock that stamps files in this folder, which may be another machine's."""
        self._clock.touch()
        return self._clock.stat().st_mtime

    @property
    def _clock(self) -> Path:
        return self._folder / f".clock-{self._token}"

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.claim"

    def _create(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump({"token": self._token, "place": _place(), "pid": os.getpid()}, file)
        return True

    def _dead_holder(self, path: Path) -> str | None:
        """Token of a holder that is gone ("" if it died before writing one), or None if it may be alive."""
        try:
            age = self.now() - path.stat().st_mtime
        except FileNotFoundError:
            return None  # freed this moment; the next `take` gets it
        holder = _holder(path)
        if age > self._stale_s:
            return str(holder.get("token", ""))
        if holder.get("place") == _place() and not _is_alive(int(holder["pid"])):
            return str(holder["token"])
        return None

    def _clear(self, path: Path, token: str) -> bool:
        """Put a dead claim aside; False if somebody else was faster."""
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        ours = _holder(aside).get("token", "") == token
        if not ours:  # a new holder had come between looking and moving: put its claim back
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        return ours

    def _beat(self) -> None:
        while not self._over.wait(self._beat_s):
            for name in tuple(self._held):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(self._path(name))


def _holder(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@functools.cache
def _place() -> str:
    """Where a process id means something: the machine and its namespace (containers have their own)."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
