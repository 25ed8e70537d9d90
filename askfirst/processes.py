"""A small supervisor: starts children, waits until they are ready, starts them again when they die, stops them all.

Every child gets a session and a log file of its own. One thread starts all children and lives as long as the
supervisor: on Linux a child is told of its parent's death when the *thread* that started it ends. A guard process
(`askfirst.guard`) ends whatever is left, also after `kill -9` of the demo.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import psutil

from .errors import PortTaken, ProcessFailed
from .guard import MARK_VARIABLE, PATIENCE_S

POLL_S = 0.1
LOG_LIMIT_BYTES = 20 * 2**20  # of the run before; a longer log is not kept twice
KILLED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
CONSEQUENCE_S = 60.0  # a death this soon after a kill from outside is taken for its consequence
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Command:
    """A child to run."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]  # the whole environment, not additions to ours
    cwd: Path
    log: Path | None  # None: our own standard output
    stop_within_s: float = 10.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Death:
    """An end that we did not ask for."""

    name: str
    at: float  # unix seconds
    returncode: int  # negative: the signal
    uptime_s: float

    @property
    def from_outside(self) -> bool:
        """Somebody killed it; it did not fail by itself."""
        return self.returncode in KILLED_FROM_OUTSIDE

    def __str__(self) -> str:
        if self.returncode < 0:
            with contextlib.suppress(ValueError):
                return f"{self.name} was ended by {signal.Signals(-self.returncode).name}"
        return f"{self.name} ended with status {self.returncode}"


@dataclass(frozen=True)
class Backoff:
    """Delay before the n-th start in a row: at once, then doubling; forgotten after a calm time."""

    first_s: float = 0.1
    most_s: float = 10.0
    calm_s: float = 20.0

    def delay_s(self, deaths_in_a_row: int) -> float:
        """Seconds to wait after so many deaths in a row (1 = the first)."""
        return float(min(self.most_s, self.first_s * 2.0 ** min(deaths_in_a_row - 1, 30)))


def unexplained(deaths: Sequence[Death]) -> list[Death]:
    """Deaths that were neither a kill from outside nor soon after one (a worker may end because Redis was killed)."""
    kills = [d.at for d in deaths if d.from_outside]
    return [d for d in deaths if not d.from_outside and not any(0 <= d.at - kill <= CONSEQUENCE_S for kill in kills)]


@dataclass
class _Child:
    command: Command
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  # monotonic seconds
    deaths_in_a_row: int = 0
    next_start: float = 0.0
    ready: bool = False
    died_early: int | None = None  # status, when it ended before it was ready
    trouble: OSError | None = None  # it could not be started at all
    up: threading.Event = field(default_factory=threading.Event)


class Supervisor:
    """Children of one run; a context manager that stops them in reverse order."""

    def __init__(
        self, *, on_death: Callable[[Death], None] = lambda death: None, backoff: Backoff | None = None
    ) -> None:
        self._backoff = backoff or Backoff()
        self._on_death = on_death
        self._mark = uuid.uuid4().hex
        self._children: dict[str, _Child] = {}
        self._deaths: list[Death] = []
        self._orders: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._guard: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    # ------------------------------------------------------------------ life
    def __enter__(self) -> Supervisor:
        # In a session of its own, so that neither Ctrl-C nor a kill of our group reaches it.
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "askfirst.guard", self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=_with_package_path(),
        )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all children, the last started first; then whatever they left behind. Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            guard.wait(timeout=4 * PATIENCE_S)

    def hurry(self) -> None:
        """Stop waiting for polite ends: a second Ctrl-C."""
        self._hurry.set()

    # ------------------------------------------------------------------ children
    def spawn(self, command: Command) -> None:
        """Start a child; returns when it runs, not when it is ready.

        Raises: ProcessFailed when it cannot be started.
        """
        child = _Child(command)
        self._children[command.name] = child
        self._orders.put(child)
        child.up.wait()
        if child.trouble is not None:
            raise self._failed(child, f"could not be started: {child.trouble}")

    def wait_ready(
        self,
        name: str,
        ready: Callable[[], bool],
        within_s: float,
        tick: Callable[[float], None] = lambda waited_s: None,
    ) -> None:
        """Ask `ready` until it says yes; from then on the child is started again whenever it dies.

        Args:
            ready: asked every 0.1 s; may raise OSError for "not yet".
            tick: called with the seconds waited so far.

        Raises: ProcessFailed when the child ended or the time is over.
        """
        child = self._children[name]
        begun = time.monotonic()
        while True:
            if child.died_early is not None:
                status = child.died_early
                raise self._failed(child, f"ended with status {status} before it was ready")
            with contextlib.suppress(OSError):
                if ready():
                    child.ready = True
                    return
            waited = time.monotonic() - begun
            if waited > within_s:
                raise self._failed(child, f"was not ready after {within_s:.0f} s")
            tick(waited)
            time.sleep(POLL_S)

    def pid(self, name: str) -> int | None:
        """Process id of a child, None while it is down."""
        process = self._children[name].process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def deaths(self) -> tuple[Death, ...]:
        """Every end that was not asked for, in time order."""
        return tuple(self._deaths)

    def restarts(self) -> dict[str, int]:
        """How often each child had to be started again; children that never died are absent."""
        counts: dict[str, int] = {}
        for death in self._deaths:
            counts[death.name] = counts.get(death.name, 0) + 1
        return counts

    def _failed(self, child: _Child, what: str) -> ProcessFailed:
        log = child.command.log
        return ProcessFailed(child.command.name, what, str(log or ""), tail(log) if log else "")

    # ------------------------------------------------------------------ the one thread
    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Empty):
                child = self._orders.get(timeout=POLL_S)
                if child.command.log is not None:
                    _rotate(child.command.log)
                self._start(child)
                child.up.set()
            for child in list(self._children.values()):
                self._look_after(child)
        # Here, not in stop(): when this thread ends, the system tells all its children at once.
        for child in reversed(list(self._children.values())):
            self._end(child)

    def _start(self, child: _Child) -> None:
        command = child.command
        try:
            with _output(command.log) as log:
                child.process = subprocess.Popen(
                    list(command.argv),
                    env={**command.env, MARK_VARIABLE: self._mark},
                    cwd=command.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=None if log is None else subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_die_with_parent if _LIBC is not None else None,
                )
        except OSError as error:
            child.trouble = error
            child.process = None
        else:
            child.trouble = None
            child.started = time.monotonic()

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if child.ready and now >= child.next_start:
                self._start(child)
                if child.trouble is not None:
                    self._plan_start(child, now)
            return
        status = child.process.poll()
        if status is None:
            return
        # What it left behind may still hold its port: gunicorn's workers live a second longer than their master.
        _signal_group(child.process, signal.SIGKILL)
        child.process = None
        if not child.ready:
            child.died_early = status
            return
        death = Death(child.command.name, time.time(), status, now - child.started)
        self._deaths.append(death)
        if death.uptime_s > self._backoff.calm_s:
            child.deaths_in_a_row = 0
        self._plan_start(child, now)
        self._on_death(death)

    def _plan_start(self, child: _Child, now: float) -> None:
        child.deaths_in_a_row += 1
        child.next_start = now + self._backoff.delay_s(child.deaths_in_a_row)

    def _end(self, child: _Child) -> None:
        process = child.process
        if process is None or process.poll() is not None:
            return
        family = _descendants(process.pid)  # some leave the group: an RQ work-horse has a session of its own
        _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + child.command.stop_within_s
        while process.poll() is None and time.monotonic() < deadline and not self._hurry.is_set():
            time.sleep(0.02)
        if process.poll() is None:
            _signal_group(process, signal.SIGKILL)
        process.wait()
        for left in family:
            with contextlib.suppress(psutil.Error):
                left.kill()


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[BinaryIO | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        yield file


def _die_with_parent() -> None:
    # Between fork and exec: nothing here but one call into a library that is already loaded.
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _with_package_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": package_path(os.environ.get("PYTHONPATH", ""))}


def package_path(given: str = "") -> str:
    """PYTHONPATH under which children import this very package, installed or not."""
    root = str(Path(__file__).resolve().parents[1])
    parts = [p for p in given.split(os.pathsep) if p]
    return os.pathsep.join([root, *[p for p in parts if p != root]])


def _rotate(log: Path) -> None:
    """Keep the log of the run before as NAME.log.1."""
    with contextlib.suppress(OSError):
        if log.exists() and log.stat().st_size <= LOG_LIMIT_BYTES:
            log.replace(log.with_name(log.name + ".1"))
        elif log.exists():
            log.unlink()


def tail(path: Path, lines: int = 15, limit_bytes: int = 16_384) -> str:
    """The last lines of a text file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit_bytes))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free_port(port: int, option: str) -> None:
    """Raises: PortTaken, naming the option that chooses another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise PortTaken(port, option, "the system, which keeps low numbers for itself") from None
        except OSError:
            raise PortTaken(port, option, _listener(port)) from None


def _listener(port: int) -> str:
    """Name and process id of who listens on the port, as far as the system tells us."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if (
                connection.laddr
                and connection.laddr.port == port
                and connection.status == psutil.CONN_LISTEN
                and connection.pid
            ):
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
