"""`askfirst worker`: the backend's worker processes under one supervisor, for a terminal or a container."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .processes import Command, Supervisor, package_path
from .signals import Interrupted, turned_into_exceptions

STOP_WITHIN_S = 30.0  # a worker ends the job at hand first; longer ones are taken up again by the next worker


def roles(*, fast: bool, slow: bool) -> tuple[str, ...]:
    """Roles of backend.worker; the clock belongs to the fast side."""
    return (("fast", "tick") if fast else ()) + (("slow", "train") if slow else ())


def run_workers(names: Sequence[str]) -> None:
    """Run these roles until SIGINT or SIGTERM; one that dies is started again with growing delay."""
    env = {**os.environ, "PYTHONPATH": package_path(os.environ.get("PYTHONPATH", ""))}
    supervisor = Supervisor(on_death=lambda death: print(f"askfirst: {death}; it is started again", file=sys.stderr))
    with suppress(Interrupted), turned_into_exceptions(on_second=supervisor.hurry), supervisor:
        for name in names:
            argv = (sys.executable, "-m", "backend.worker", name)
            supervisor.spawn(Command(name, argv, env, Path.cwd(), log=None, stop_within_s=STOP_WITHIN_S))
            # Nothing to wait for: a worker whose Redis is away tries again by itself.
            supervisor.wait_ready(name, lambda: True, 1.0)
        threading.Event().wait()
