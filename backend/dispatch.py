"""The only door to the job queue: what web and workers put into RQ.

One refresh per project runs and at most one waits, however many events arrive: the first event claims the waiting
mark and enqueues, the others find it claimed. The wake number is part of the job id, because RQ keeps an id taken
while the job's record lives.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from rq import Queue, Worker
from rq.exceptions import NoSuchJobError
from rq.job import Job

from .errors import StoreUnavailable
from .state import State

FAST, SLOW, TRAIN, TICK = "askfirst-fast", "askfirst-slow", "askfirst-train", "askfirst-tick"
TIMEOUT_S = {"refresh": 600, "pool": 24 * 3600, "full": 3600, "adopt": 600, "tune": 7 * 24 * 3600}
QUEUE_OF = {"refresh": FAST, "adopt": FAST, "pool": SLOW, "full": SLOW, "tune": TRAIN}
SHOWN = {"tune": "fine-tuning"}  # kinds by another word, for people
RESULT_TTL_S = 600  # long enough for Label Studio's /job_status
FAILURE_TTL_S = 7 * 86400


@dataclass(frozen=True)
class JobView:
    """A job as the status page shows it."""

    id: str
    what: str
    state: str
    progress: str
    since: float


class Dispatcher:
    """Puts jobs into RQ and looks at them. Arguments are ids only; workers read the rest."""

    def __init__(self, connection: redis.Redis, state: State) -> None:
        self._redis = connection
        self._state = state
        self._queues = {name: Queue(name, connection=connection) for name in (FAST, SLOW, TRAIN)}

    def wake(self, project_id: int, kind: str, wake_number: int) -> str | None:
        """Make sure a job of this kind will run after now; its id, or None when one waits already.

        Raises:
            StoreUnavailable
        """
        job_id = f"{kind}-{project_id}-{wake_number}-{uuid.uuid4().hex[:6]}"
        if not self._state.claim_waiting(project_id, kind, job_id):
            return None
        try:
            self._queues[QUEUE_OF[kind]].enqueue(
                f"backend.jobs.{kind}",
                project_id,
                wake_number,
                job_id=job_id,
                job_timeout=TIMEOUT_S[kind],
                result_ttl=RESULT_TTL_S,
                failure_ttl=FAILURE_TTL_S,
                description=f"{SHOWN.get(kind, kind)} of project {project_id}",
            )
        except redis.RedisError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        return job_id

    def waiting_job_lost(self, project_id: int, kind: str) -> bool:
        """True when the waiting mark stands for a job that no queue holds any more."""
        job_id = self._state.waiting(project_id, kind)
        if job_id is None:
            return False
        try:
            return job_id not in self._queues[QUEUE_OF[kind]].get_job_ids()
        except redis.RedisError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    def status(self, job_id: str) -> str | None:
        """queued, started, finished, failed, stopped, canceled, scheduled; None when unknown or forgotten."""
        try:
            return str(Job.fetch(job_id, connection=self._redis).get_status(refresh=True).value)
        except NoSuchJobError:
            return None
        except redis.RedisError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    def jobs(self, project_id: int, limit: int = 8) -> list[JobView]:
        """Running, waiting and recently ended jobs of a project, in this order."""
        views: list[JobView] = []
        marker = f"-{project_id}-"
        try:
            for queue in self._queues.values():
                ids = [
                    *queue.started_job_registry.get_job_ids(cleanup=False),
                    *queue.get_job_ids(0, 50),
                    *reversed(queue.failed_job_registry.get_job_ids(cleanup=False)[-20:]),
                    *reversed(queue.finished_job_registry.get_job_ids(cleanup=False)[-20:]),
                ]
                mine = [i for i in dict.fromkeys(ids) if marker in i][:limit]
                views += [_view(job) for job in Job.fetch_many(mine, connection=self._redis) if job is not None]
        except redis.RedisError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        order = {"started": 0, "queued": 1}
        return sorted(views, key=lambda v: (order.get(v.state, 2), -v.since))[:limit]

    def workers(self) -> list[str]:
        """A line per living worker: name, queues, state."""
        try:
            return [
                f"{w.hostname}:{w.pid} {', '.join(w.queue_names())} {w.get_state()}"
                for w in Worker.all(connection=self._redis)
            ]
        except redis.RedisError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    def queues_without_worker(self) -> list[str]:
        """Names of queues that nobody listens on and that annotators would notice: fine-tuning can wait."""
        try:
            served = {name for w in Worker.all(connection=self._redis) for name in w.queue_names()}
        except redis.RedisError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        return [name for name in (FAST, SLOW, TICK) if name not in served]

    def depth(self) -> dict[str, int]:
        """Waiting jobs by queue."""
        try:
            return {name: queue.count for name, queue in self._queues.items()}
        except redis.RedisError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def _view(job: Job) -> JobView:
    meta: dict[str, Any] = job.get_meta(refresh=False)
    stamp: datetime | None = job.ended_at or job.started_at or job.enqueued_at
    return JobView(
        id=job.id,
        what=job.description or job.id,
        state=str(job.get_status(refresh=False).value),
        progress=str(meta.get("progress", "")),
        since=stamp.timestamp() if stamp else 0.0,
    )
