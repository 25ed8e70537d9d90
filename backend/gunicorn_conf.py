"""Gunicorn's configuration, made from our settings: `gunicorn -c backend/gunicorn_conf.py MODULE:APP`.

Threads, not processes, carry the load: routes wait for Redis and hand work to RQ, they do not compute. The
application is loaded before forking, so that workers share its memory and a mistake stops the start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from backend import logs
from backend.errors import ConfigError
from backend.settings import Settings

try:
    _settings = Settings.from_env()
except ConfigError as error:
    raise SystemExit(f"Ask First cannot start: {error}") from None

logs.configure(_settings.log_level, secrets=logs.secrets_of(_settings))

_MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
_OURS = "askfirst-metrics-"  # folders that we made, also before a reload, and therefore remove
if _settings.workers > 1 and not os.environ.get(_MULTIPROC):
    # Must be set before anything imports prometheus_client, which looks at it once, while being imported.
    os.environ[_MULTIPROC] = tempfile.mkdtemp(prefix=_OURS)


class PlainLogger(Logger):
    """Gunicorn's own lines go the way of all others: one format, masked."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        logs.adopt("gunicorn.error")


_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host  # IPv6
bind = f"{_host}:{_settings.port}"
workers = _settings.workers
threads = _settings.threads
worker_class = "gthread"
preload_app = True
timeout = 120  # above the 100 s that Label Studio waits for /predict
graceful_timeout = 10
keepalive = 5
logger_class = PlainLogger
accesslog = None  # the app writes its own, with request ids
loglevel = _settings.log_level.lower()
proc_name = "askfirst"
# A socket that could stop the server, in a place that two servers of one user would share: not wanted.
control_socket_disable = True
if Path("/dev/shm").is_dir():  # heart-beats of workers must not wait for a disk
    worker_tmp_dir = "/dev/shm"


def on_starting(server: Any) -> None:
    """Master, before the first worker: an empty place for the metrics of the workers."""
    directory = os.environ.get(_MULTIPROC)
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        for left_over in Path(directory).glob("*.db"):  # counts of an earlier run would be added to ours
            left_over.unlink(missing_ok=True)


def child_exit(server: Any, worker: Any) -> None:
    """Master, after a worker ended: its live gauges go, its counters stay."""
    if os.environ.get(_MULTIPROC):
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Master, at the very end."""
    directory = Path(os.environ.get(_MULTIPROC, ""))
    if directory.name.startswith(_OURS):
        shutil.rmtree(directory, ignore_errors=True)
