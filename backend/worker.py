"""Worker processes: fast (refreshes, stays warm), slow (embeddings, forks for each job), train (fine-tuning, forks for
each job), tick (the clock).

`python -m backend.worker fast|slow|train|tick`; `askfirst worker` runs all four and starts again the one that dies.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any

import structlog
from rq import SimpleWorker, Worker
from rq.cron import CronScheduler

from .dispatch import FAST, SLOW, TICK, TRAIN
from .logs import configure, secrets_of
from .settings import Settings
from .state import connect

log = structlog.get_logger(__name__)

ROLES = ("fast", "slow", "train", "tick")
# An idle worker says that it lives every 15 s (RQ: time to live less 15 s), so that a dead one is noticed soon.
WORKER_TTL_S = 30
# Fine-tuning takes what the others leave: a run of an hour may take two, a refresh may not take longer.
TRAIN_NICER = 10
# A blocking wait for jobs must outlive RQ's own.
WAIT_FOR_JOBS_S = 60.0


class _Registered:
    """Registers again after Redis was emptied: RQ registers a worker once, at its start."""

    max_connection_wait_time = 2.0

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        worker: Any = self
        if pipeline is None and not worker.connection.hexists(worker.key, "birth"):
            worker.connection.delete(worker.key)
            worker.register_birth()
        super().heartbeat(timeout, pipeline)  # type: ignore[misc]


class _FastWorker(_Registered, SimpleWorker):
    """Runs jobs in its own process: embeddings, heads and connections stay warm between refreshes."""


class _SlowWorker(_Registered, Worker):
    """Forks for each job: memory of a large embedding run is given back, a crash takes one job along."""


def run(role: str, settings: Settings) -> None:
    """Work until told to stop (SIGINT, SIGTERM end the job at hand first)."""
    configure(settings.log_level, secrets=secrets_of(settings))
    with contextlib.suppress(OSError):
        os.nice(settings.nice + (TRAIN_NICER if role == "train" else 0))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(settings.worker_threads))
    redis = connect(settings.redis_url, timeout_s=WAIT_FOR_JOBS_S)
    if role == "fast":
        _warm_up()
        _FastWorker([FAST], connection=redis, worker_ttl=WORKER_TTL_S).work(
            logging_level="WARNING", with_scheduler=False
        )
    elif role == "slow":
        _warm_up()  # loaded, not used: a fork before the first parallel region is safe, and saves each job the imports
        _SlowWorker([SLOW], connection=redis, worker_ttl=WORKER_TTL_S).work(
            logging_level="WARNING", with_scheduler=False
        )
    elif role == "train":
        # Nothing is loaded ahead: runs are rare, and what waits for them should cost no memory.
        _SlowWorker([TRAIN], connection=redis, worker_ttl=WORKER_TTL_S).work(
            logging_level="WARNING", with_scheduler=False
        )
    elif role == "tick":
        _clock(redis, settings)
    else:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")


def _clock(redis: Any, settings: Settings) -> None:
    """Enqueue a tick every `tick_s` and run it here: a look at Label Studio must not stand before a refresh."""
    from .jobs import tick

    scheduler = CronScheduler(connection=redis, logging_level=30)
    # A tick that could not run before the next one is due is dropped: ticks must not pile up.
    scheduler.register(
        tick, queue_name=TICK, interval=settings.tick_s, ttl=settings.tick_s, result_ttl=60, failure_ttl=600
    )
    threading.Thread(target=_beat, args=(scheduler,), daemon=True).start()
    _FastWorker([TICK], connection=redis, worker_ttl=WORKER_TTL_S).work(logging_level="WARNING", with_scheduler=False)


def _beat(scheduler: CronScheduler) -> None:
    """RQ's own loop (`CronScheduler.start`) without its signal handlers, which belong to the worker beside it."""
    try:
        scheduler.register_birth()
        while True:
            if scheduler.enqueue_jobs():
                scheduler.save()
            scheduler.heartbeat()
            time.sleep(max(0.1, scheduler.calculate_sleep_interval()))
    except Exception:
        # Redis went away, most likely. A process without its clock is of no use: whoever supervises starts another.
        log.exception("the clock stopped")
        os._exit(1)


def _warm_up() -> None:
    """Load jobs and numerics now, so that the first label does not wait for imports."""
    from training import api as training

    from . import jobs  # noqa: F401  what it imports is wanted

    training.warm_up()


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in ROLES:
        sys.exit(f"usage: python -m backend.worker {'|'.join(ROLES)}")
    run(sys.argv[1], Settings.from_env())


if __name__ == "__main__":
    main()
