"""What web and worker processes share through Redis: events that arrived, locks, counters, caches.

Everything here can be rebuilt: labels and tasks from Label Studio, models and embeddings from MODEL_DIR. A verb's
docstring says whether it is atomic and what an empty answer is. Foreign errors become StoreUnavailable here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .errors import StoreUnavailable

EVENTS_KEPT = 50
# A waiting mark outlives the job it stands for only when Redis lost the job; then this ends the wait.
WAITING_TTL_S = 60
RATE_WINDOW_S = 60.0
BURST_S = 2


def connect(url: str, *, timeout_s: float = 5.0) -> redis.Redis:
    """A Redis connection that fails fast: a webhook must be answered while Redis is away."""
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, 1.0),
        retry=Retry(NoBackoff(), 1),
        health_check_interval=15,
    )


@dataclass(frozen=True)
class Noted:
    """What became of an event."""

    adopted: bool  # the project is one of ours; otherwise a call that asked for it noted nothing
    wake: int  # running number of the project's events
    burst: int  # events of the project in the present span of two seconds and the one before
    waiting: frozenset[str]  # kinds of jobs that wait and will see what was noted
    refreshed_at: float  # unix seconds at which the last refresh began; 0.0 when there was none


class State:
    """Shared state of all projects. Thread-safe."""

    def __init__(self, connection: redis.Redis, *, now: Callable[[], float] = time.time) -> None:
        self._redis: Any = connection  # redis-py types every answer as bytes, text or a coroutine
        self._now = now
        self._forget_dirty = connection.register_script(_FORGET_DIRTY)
        self._release = connection.register_script(_RELEASE)
        self._record = connection.register_script(_RECORD)
        self._renew = connection.register_script(_RENEW)

    # ------------------------------------------------------------------ projects
    def adopt(self, project_id: int) -> bool:
        """Remember a project; True the first time. Atomic."""
        with _mapped():
            return bool(self._redis.sadd("askfirst:projects", project_id))

    def forget(self, project_id: int) -> None:
        """Drop everything known about a project."""
        with _mapped():
            self._redis.srem("askfirst:projects", project_id)
            keys = list(self._redis.scan_iter(f"askfirst:{project_id}:*", count=1000))
            if keys:
                self._redis.delete(*keys)

    def projects(self) -> list[int]:
        with _mapped():
            return sorted(int(p) for p in self._redis.smembers("askfirst:projects"))

    def knows(self, project_id: int) -> bool:
        with _mapped():
            return bool(self._redis.sismember("askfirst:projects", project_id))

    # ------------------------------------------------------------------ events
    def record(
        self,
        project_id: int,
        *,
        text: str,
        dirty: Iterable[int] = (),
        gone: Iterable[int] = (),
        flags: Iterable[str] = (),
        annotations: int = 0,
        adopted_only: bool = False,
    ) -> Noted:
        """Note an event: tasks to look at again, flags to raise. Atomic, one round trip.

        `gone`: ids of deleted annotations. `flags`: "all-labels", "tasks", "project", "train". `adopted_only`: note
        nothing for a project that was not adopted.
        """
        now = self._now()
        marks: list[tuple[str, int | str]] = [
            *(("dirty", t) for t in dirty),
            *(("gone", a) for a in gone),
            *(("flags", f) for f in flags),
        ]
        event = json.dumps({"at": round(now, 3), "what": text})
        args: list[str | int | float] = [now, event, annotations, EVENTS_KEPT, RATE_WINDOW_S, BURST_S]
        args += (project_id, int(adopted_only))
        for name, item in marks:
            args += (name, item)
        with _mapped():
            answer = self._record(keys=[f"askfirst:{project_id}", "askfirst:projects"], args=args)
        adopted, wake, burst, refreshed, *waiting = answer
        return Noted(
            adopted=bool(adopted),
            wake=int(wake),
            burst=int(burst),
            waiting=frozenset(kind.decode() for kind in waiting),
            refreshed_at=float(refreshed or 0.0),
        )

    def events(self, project_id: int) -> list[dict[str, Any]]:
        """Newest first."""
        with _mapped():
            return [json.loads(e) for e in self._redis.lrange(f"askfirst:{project_id}:events", 0, -1)]

    def note(self, project_id: int, text: str) -> None:
        """Add a line to the list of events without waking anybody."""
        with _mapped():
            key = f"askfirst:{project_id}:events"
            self._redis.lpush(key, json.dumps({"at": round(self._now(), 3), "what": text}))
            self._redis.ltrim(key, 0, EVENTS_KEPT - 1)

    def dirty(self, project_id: int) -> dict[int, int]:
        """Task -> wake number of the last event that touched it."""
        with _mapped():
            return {int(k): int(v) for k, v in self._redis.hgetall(f"askfirst:{project_id}:dirty").items()}

    def gone(self, project_id: int) -> dict[int, int]:
        """Deleted annotation -> wake number; only our own map knows their tasks."""
        with _mapped():
            return {int(k): int(v) for k, v in self._redis.hgetall(f"askfirst:{project_id}:gone").items()}

    def flags(self, project_id: int) -> dict[str, int]:
        """Flag -> wake number of the last event that raised it."""
        with _mapped():
            return {k.decode(): int(v) for k, v in self._redis.hgetall(f"askfirst:{project_id}:flags").items()}

    def clean(self, project_id: int, what: str, seen: Mapping[Any, int]) -> None:
        """Take back entries of "dirty", "gone" or "flags", but only those that no event touched since. Atomic."""
        if seen:
            with _mapped():
                args = [part for k, v in seen.items() for part in (str(k), str(v))]
                self._forget_dirty(keys=[f"askfirst:{project_id}:{what}"], args=args)

    def wake_number(self, project_id: int) -> int:
        with _mapped():
            return int(self._redis.get(f"askfirst:{project_id}:wake") or 0)

    def last_annotation(self, project_id: int) -> float:
        """Unix seconds of the last annotation event; 0.0 when none was seen."""
        with _mapped():
            return float(self._redis.get(f"askfirst:{project_id}:last_annotation") or 0.0)

    def annotations_per_second(self, project_id: int) -> float:
        """Mean rate over the seconds with annotations in the last minute."""
        with _mapped():
            rows = self._redis.zrangebyscore(
                f"askfirst:{project_id}:rate", self._now() - RATE_WINDOW_S, "+inf", withscores=True
            )
        if len(rows) < 3:
            return 0.0
        count = sum(int(member.decode().rpartition(":")[2]) for member, _ in rows)
        return count / max(self._now() - rows[0][1], 1.0)

    # ------------------------------------------------------------------ coalescing
    def claim_waiting(self, project_id: int, kind: str, job_id: str) -> bool:
        """Become the one waiting job of this kind; False when there is one already. Atomic."""
        with _mapped():
            return bool(self._redis.set(f"askfirst:{project_id}:waiting:{kind}", job_id, nx=True, ex=WAITING_TTL_S))

    def waiting(self, project_id: int, kind: str) -> str | None:
        with _mapped():
            value = self._redis.get(f"askfirst:{project_id}:waiting:{kind}")
            return value.decode() if value else None

    def clear_waiting(self, project_id: int, kind: str) -> None:
        with _mapped():
            self._redis.delete(f"askfirst:{project_id}:waiting:{kind}")

    def ask_again(self, project_id: int, kind: str) -> None:
        """Leave word for the job that runs now: look again before you go."""
        with _mapped():
            self._redis.set(f"askfirst:{project_id}:again:{kind}", 1, ex=3600)

    def take_again(self, project_id: int, kind: str) -> bool:
        """True once if word was left. Atomic."""
        with _mapped():
            return bool(self._redis.delete(f"askfirst:{project_id}:again:{kind}"))

    # ------------------------------------------------------------------ leases
    @contextlib.contextmanager
    def lease(self, project_id: int, kind: str, ttl_s: float) -> Iterator[bool]:
        """Hold the project for one kind of work; yields False when somebody else does.

        A heart-beat thread renews it; a killed holder loses it after `ttl_s`, at once if it ran on this host.
        """
        key = f"askfirst:{project_id}:lease:{kind}"
        token = _holder()
        with _mapped():
            held = bool(self._redis.set(key, token, nx=True, px=int(ttl_s * 1000)))
            if not held:
                current = self._redis.get(key)
                if current and _is_dead(current.decode()):
                    self._release(keys=[key], args=[current])
                    held = bool(self._redis.set(key, token, nx=True, px=int(ttl_s * 1000)))
        if not held:
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(key, token, ttl_s, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            with contextlib.suppress(redis.RedisError):  # Redis away: the lease ends by itself
                self._release(keys=[key], args=[token])

    def _beat(self, key: str, token: str, ttl_s: float, stop: threading.Event) -> None:
        while not stop.wait(ttl_s / 3):
            with contextlib.suppress(redis.RedisError):
                self._renew(keys=[key], args=[token, int(ttl_s * 1000)])

    def holder(self, project_id: int, kind: str) -> str | None:
        """Who holds the lease, or None; a dead holder of this host counts as nobody."""
        with _mapped():
            value = self._redis.get(f"askfirst:{project_id}:lease:{kind}")
        return None if value is None or _is_dead(value.decode()) else value.decode()

    # ------------------------------------------------------------------ cached annotations
    def annotations(self, project_id: int) -> dict[int, list[dict[str, Any]]] | None:
        """Task -> its annotations, reduced to what labels need; None when never read (or Redis was emptied)."""
        with _mapped():
            raw = self._redis.hgetall(f"askfirst:{project_id}:annotations")
        if b"complete" not in raw:
            return None
        return {int(k): json.loads(v) for k, v in raw.items() if k != b"complete"}

    def annotations_of(self, project_id: int, task_ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Cached annotations of single tasks; an empty list where there are none."""
        if not task_ids:
            return {}
        with _mapped():
            raw = self._redis.hmget(f"askfirst:{project_id}:annotations", [str(t) for t in task_ids])
        return {t: json.loads(value) if value else [] for t, value in zip(task_ids, raw, strict=True)}

    def annotated_ids(self, project_id: int) -> set[int]:
        """Tasks whose annotations are cached."""
        with _mapped():
            return {int(k) for k in self._redis.hkeys(f"askfirst:{project_id}:annotations") if k != b"complete"}

    def put_annotations(
        self, project_id: int, changed: Mapping[int, list[dict[str, Any]]], *, replace: bool = False
    ) -> int:
        """Store the annotations of tasks (an empty list removes one); `replace` starts anew. Atomic.

        Returns the revision, which grows by one with every call.
        """
        key = f"askfirst:{project_id}:annotations"
        with _mapped():
            pipe = self._redis.pipeline(transaction=True)
            if replace:
                pipe.delete(key)
                pipe.hset(key, "complete", self._now())
            full = {str(t): json.dumps(a) for t, a in changed.items() if a}
            gone = [str(t) for t, a in changed.items() if not a]
            if full:
                pipe.hset(key, mapping=full)
            if gone and not replace:
                pipe.hdel(key, *gone)
            pipe.incr(f"askfirst:{project_id}:labels_rev")
            return int(pipe.execute()[-1])

    # ------------------------------------------------------------------ small records
    def put(self, project_id: int, name: str, value: Any) -> None:
        """Keep a small JSON value under a name."""
        with _mapped():
            self._redis.set(f"askfirst:{project_id}:{name}", json.dumps(value))

    def get(self, project_id: int, name: str) -> Any:
        """The value kept under a name; None when there is none."""
        with _mapped():
            raw = self._redis.get(f"askfirst:{project_id}:{name}")
        return None if raw is None else json.loads(raw)

    def drop(self, project_id: int, name: str) -> None:
        with _mapped():
            self._redis.delete(f"askfirst:{project_id}:{name}")

    def close(self) -> None:
        self._redis.close()

    def ping(self) -> None:
        """Raises StoreUnavailable when Redis does not answer."""
        with _mapped():
            self._redis.ping()


_RECORD = """
local key, now, annotations = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[3])
local adopted = redis.call('SISMEMBER', KEYS[2], ARGV[7])
if adopted == 0 and ARGV[8] == '1' then return {0, tonumber(redis.call('GET', key .. ':wake') or 0), 0, ''} end
local wake = redis.call('INCR', key .. ':wake')
for i = 9, #ARGV, 2 do redis.call('HSET', key .. ':' .. ARGV[i], ARGV[i + 1], wake) end
redis.call('LPUSH', key .. ':events', ARGV[2])
redis.call('LTRIM', key .. ':events', 0, ARGV[4] - 1)
if annotations > 0 then
  redis.call('SET', key .. ':last_annotation', ARGV[1])
  redis.call('ZADD', key .. ':rate', ARGV[1], wake .. ':' .. annotations)
  redis.call('ZREMRANGEBYSCORE', key .. ':rate', '-inf', now - tonumber(ARGV[5]))
end
local span = math.floor(now / tonumber(ARGV[6]))
local burst = redis.call('INCR', key .. ':burst:' .. span)
redis.call('EXPIRE', key .. ':burst:' .. span, 10)
burst = burst + tonumber(redis.call('GET', key .. ':burst:' .. (span - 1)) or 0)
local answer = {adopted, wake, burst, redis.call('GET', key .. ':refresh_began') or ''}
for _, kind in ipairs({'refresh', 'pool'}) do
  if redis.call('EXISTS', key .. ':waiting:' .. kind) == 1 then table.insert(answer, kind) end
end
return answer
"""
_FORGET_DIRTY = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
# A missing key is taken back too: an emptied Redis must not let a second worker in beside a running one.
_RENEW = """
local current = redis.call('GET', KEYS[1])
if current == ARGV[1] or not current then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def _holder() -> str:
    """host|pid|start of process|thread: enough to see later whether the holder still lives."""
    return f"{socket.gethostname()}|{os.getpid()}|{psutil.Process().create_time():.2f}|{threading.get_ident()}"


def _is_dead(token: str) -> bool:
    """True only when the holder certainly is gone: same host, and no process of that number and birth."""
    host, _, rest = token.partition("|")
    if host != socket.gethostname():
        return False
    pid, started, *_ = rest.split("|")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
