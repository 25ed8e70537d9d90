"""The last one out: ends every process of a demo when the demo itself is gone, however it went.

Run as `python -m askfirst.guard MARK` with a pipe as standard input that only the demo holds open. The pipe
closes when the demo ends or is killed; then everything that carries MARK in its environment is ended, wherever
it moved in the tree of processes (an RQ work-horse leaves its parent's session, a gunicorn worker outlives its
master for a second).
"""

from __future__ import annotations

import os
import signal
import sys

import psutil

MARK_VARIABLE = "_ASKFIRST_DEMO_RUN"
PATIENCE_S = 5.0  # between asking politely and killing; RQ and gunicorn need about one second


def marked(mark: str) -> list[psutil.Process]:
    """Processes that were started for the run `mark`, except this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK_VARIABLE) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone, or somebody else's
    return found


def sweep(mark: str, *, patience_s: float = PATIENCE_S) -> int:
    """End all processes of the run; returns how many there were. Returns when they are gone."""
    left = marked(mark)
    count = len(left)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            try:
                process.send_signal(number)
            except psutil.Error:
                continue
        _, left = psutil.wait_procs(left, timeout=patience_s)
        left = marked(mark)  # also those that were born meanwhile
        if not left:
            break
    return count


def main() -> None:
    """Wait for the end of standard input, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1024):
        pass
    sweep(sys.argv[1])


if __name__ == "__main__":
    main()
