"""Whether the process of this container does its work: `python healthcheck.py web|fast|slow|train|tick`.

Status 0: it does; 1: it does not, with one line that says why. The web process is asked over HTTP; workers and clock
are looked up, under this container's host name, in the registers that they keep in Redis.
"""

from __future__ import annotations

import base64
import socket
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

import psutil

from backend.errors import BackendError
from backend.settings import Settings

HEALTH_ROUTE = "/health"
TIMEOUT_S = 3.0
TICKS_MISSED = 4  # how many beats the clock may be silent
LEAST_SILENCE_S = 120.0
CLOCK_ERROR_S = 2.0  # between the start of a process as the kernel counts it and the wall clock


class Unhealthy(Exception):
    """The process does not do its work; the message says why."""


def check_web(settings: Settings) -> None:
    """Raises: Unhealthy."""
    request = urllib.request.Request(f"http://127.0.0.1:{settings.port}{HEALTH_ROUTE}")
    if settings.basic_auth_user:
        pair = f"{settings.basic_auth_user}:{settings.basic_auth_pass.get_secret_value()}"
        request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode("ascii"))
    # No proxy of the environment stands between us and ourselves.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise Unhealthy(f"{request.full_url}: {error}") from None


def check_worker(settings: Settings, role: str, host: str) -> None:
    """Raises: Unhealthy."""
    import redis
    from rq import Worker

    from backend.dispatch import FAST, SLOW, TRAIN
    from backend.state import connect

    queue = {"fast": FAST, "slow": SLOW, "train": TRAIN}[role]
    try:
        found = Worker.all(connection=connect(settings.redis_url, timeout_s=TIMEOUT_S))
    except redis.RedisError as error:
        raise Unhealthy(f"Redis does not answer: {error}") from None
    if not any(w.hostname == host and queue in w.queue_names() and _runs(w) for w in found):
        raise Unhealthy(f"no running worker of {host} is registered for {queue}")


def _runs(worker: Any) -> bool:
    """Whether this is a process of now. Redis keeps a worker that was killed for minutes, and a container that was
    started again has the same host name and often the same process ids."""
    try:
        started = psutil.Process(worker.pid).create_time()
    except psutil.NoSuchProcess:
        return False
    return bool(worker.birth_date.replace(tzinfo=UTC).timestamp() >= started - CLOCK_ERROR_S)


def check_tick(settings: Settings, host: str) -> None:
    """Raises: Unhealthy."""
    import redis
    from rq.cron import CronScheduler

    from backend.state import connect

    patience_s = max(LEAST_SILENCE_S, TICKS_MISSED * settings.tick_s)
    try:
        mine = [
            s
            for s in CronScheduler.all(connect(settings.redis_url, timeout_s=TIMEOUT_S), cleanup=False)
            if s.hostname == host
        ]
        beats = [beat for beat in (s.last_heartbeat for s in mine) if beat is not None]
    except redis.RedisError as error:
        raise Unhealthy(f"Redis does not answer: {error}") from None
    if not beats:
        raise Unhealthy(f"no clock of {host} is registered")
    silence_s = (datetime.now(UTC) - max(beats)).total_seconds()
    if silence_s > patience_s:
        raise Unhealthy(f"the clock of {host} is silent for {silence_s:.0f} s")


CHECKS = {
    "web": lambda settings: check_web(settings),
    "fast": lambda settings: check_worker(settings, "fast", socket.gethostname()),
    "slow": lambda settings: check_worker(settings, "slow", socket.gethostname()),
    "train": lambda settings: check_worker(settings, "train", socket.gethostname()),
    "tick": lambda settings: check_tick(settings, socket.gethostname()),
}


def main(argv: list[str]) -> int:
    """Status for the container engine."""
    if len(argv) != 1 or argv[0] not in CHECKS:
        print(f"usage: python healthcheck.py {'|'.join(CHECKS)}", file=sys.stderr)
        return 2
    try:
        CHECKS[argv[0]](Settings.from_env())
    except (Unhealthy, BackendError) as problem:
        print(f"unhealthy: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
