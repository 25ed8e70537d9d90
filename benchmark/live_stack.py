"""A real Label Studio, Redis, web process and workers on loopback, for measurements and for integration tests."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from askfirst import label_studio as label_studio_server
from askfirst.digits import make_digits
from askfirst.home import Home
from askfirst.label_studio import BrowserSession, make_token
from askfirst.processes import Supervisor, free_port
from askfirst.services import Services
from backend.connect import connect_project
from backend.dispatch import Dispatcher
from backend.errors import LabelStudioRejected, LabelStudioUnavailable
from backend.ls_client import LabelStudioClient
from backend.project import Workshop
from backend.queue_push import Pushed, read_pushed
from backend.settings import Settings
from backend.worker_context import build

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="digit" toName="image" choice="single">{}</Choices></View>'
)


def config(classes: tuple[str, ...] = tuple("0123456789")) -> str:
    return CONFIG.format("".join(f'<Choice value="{c}"/>' for c in classes))


@dataclass
class Stack:
    """Everything that runs, and what tests do with it over and over."""

    home: Home
    services: Services
    supervisor: Supervisor
    env: dict[str, str]
    ls: LabelStudioClient
    session: BrowserSession
    workshop: Workshop
    dispatcher: Dispatcher
    images: Path
    truth: dict[str, str]
    sessions: list[BrowserSession] = field(default_factory=list)  # of further annotators

    # ------------------------------------------------------------------ projects
    def make_project(
        self, count: int, *, classes: tuple[str, ...] = tuple("0123456789"), start: int = 0, **settings: Any
    ) -> int:
        """A project of `count` digits, not connected."""
        project = self.call(
            "POST", "/api/projects/", {"title": f"digits {count}", "label_config": config(classes), **settings}
        )
        self.add_tasks(project["id"], count, start)
        return int(project["id"])

    def add_tasks(self, project_id: int, count: int, start: int = 0) -> None:
        """Import `count` digits, in the order of their names, from number `start` on."""
        label_studio_server.allow_folder(self.session, project_id, self.home.files / self.home.link(self.images))
        self.add_named(project_id, sorted(self.truth)[start : start + count])

    def add_named(self, project_id: int, names: Sequence[str]) -> None:
        """Import digits by name; a name may come more than once."""
        if names:
            self.call("POST", f"/api/projects/{project_id}/import", [{"data": {"image": self.uri(n)}} for n in names])

    def uri(self, name: str) -> str:
        return label_studio_server.image_url(self.home.link(self.images), name)

    def connect(self, project_id: int) -> None:
        connect_project(self.workshop, self.dispatcher, project_id)

    def remove_project(self, project_id: int) -> None:
        """Delete a project and forget it. Label Studio answers 500 (a foreign key is violated) when an import of
        predictions commits while it deletes, and the same request a moment later works."""
        for attempt in Retrying(
            stop=stop_after_delay(60),
            wait=wait_fixed(0.5),
            reraise=True,
            retry=retry_if_exception_type(LabelStudioUnavailable),
        ):
            with attempt, suppress(LabelStudioRejected):  # refused: a first try had deleted it after all
                self.ls._send("delete the project", "DELETE", f"/api/projects/{project_id}/")
        self.workshop.state.forget(project_id)

    def settle(self, project_id: int) -> None:
        """Wait until nothing is marked, waiting or running for the project, and a full order is served."""
        state, calm_since = self.workshop.state, time.monotonic()

        def busy() -> bool:
            pushed = read_pushed(state, project_id)
            return bool(
                state.dirty(project_id)
                or state.flags(project_id)
                or pushed is None
                or any(state.waiting(project_id, k) or state.holder(project_id, k) for k in ("refresh", "pool", "full"))
            )

        def calm() -> bool:
            nonlocal calm_since
            if busy():
                calm_since = time.monotonic()
            return time.monotonic() - calm_since > 1.0

        self.wait(calm, "calm")

    def ready_project(self, count: int, **settings: Any) -> int:
        """A connected project with a first order."""
        project_id = self.make_project(count, **settings)
        self.connect(project_id)
        self.settle(project_id)
        return project_id

    # ------------------------------------------------------------------ what an annotator does
    def call(
        self, method: str, path: str, body: Any = None, *, ok: bool = True, session: BrowserSession | None = None
    ) -> Any:
        return (session or self.session).call("test", method, path, body)

    def next_task(self, project_id: int, session: BrowserSession | None = None) -> dict[str, Any]:
        return dict(self.call("POST", f"/api/dm/actions?id=next_task&project={project_id}", {}, session=session))

    def label_of(self, task: dict[str, Any]) -> str:
        return self.truth[Path(task["data"]["image"]).name]

    def submit(self, task: dict[str, Any], label: str | None = None, session: BrowserSession | None = None) -> int:
        result = [
            {
                "from_name": "digit",
                "to_name": "image",
                "type": "choices",
                "value": {"choices": [label or self.label_of(task)]},
            }
        ]
        body = {"result": result, "lead_time": 1.0, "draft_id": 0}
        return int(self.call("POST", f"/api/tasks/{task['id']}/annotations/", body, session=session)["id"])

    def label_next(self, project_id: int, session: BrowserSession | None = None) -> dict[str, Any]:
        task = self.next_task(project_id, session)
        self.submit(task, session=session)
        return task

    def say_goodbye(self) -> None:
        """Close the sessions of further annotators."""
        while self.sessions:
            self.sessions.pop().close()

    def another_annotator(self, number: int) -> BrowserSession:
        session = BrowserSession(self.services.url)
        self.sessions.append(session)
        session.sign_up(
            label_studio_server.invite_path(self.session), f"annotator{number}@example.com", "annotate-me-123"
        )
        return session

    # ------------------------------------------------------------------ what the loop did
    def served(self, project_id: int) -> Pushed | None:
        """What we pushed last, once Label Studio serves it."""
        pushed = read_pushed(self.workshop.state, project_id)
        if pushed is None or self.ls.project(project_id).model_version != pushed.version:
            return None
        return pushed

    def labels_used(self, project_id: int) -> int:
        """Labels (audit ones among them) that the newest model knows of."""
        newest = self.workshop.desk(project_id).model.newest()
        return 0 if newest is None else len(self.workshop.desk(project_id).model.labels_of(newest.id))

    def wait(self, condition: Callable[[], Any], what: str, within_s: float = 60.0) -> Any:
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            found = condition()
            if found:
                return found
            time.sleep(0.1)
        logs = "\n".join(
            f"--- {name}\n{self.services.log_of(name)[1]}" for name in ("web", "worker-fast", "worker-slow")
        )
        raise AssertionError(f"no {what} within {within_s:.0f} s\n{logs}")

    def backend(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.request(
            method, self.services.backend_url + path, timeout=30.0, trust_env=False, verify=False, **kwargs
        )


@contextmanager
def running_stack(
    root: Path, settings: Mapping[str, str] | None = None, *, label_studio: Mapping[str, str] | None = None
) -> Iterator[Stack]:
    """Everything up in `root`; ends with the context.

    Args:
        settings: environment of web process and workers besides what connects them.
        label_studio: environment of Label Studio besides the demo's own (a feature flag, say).
    """
    home = Home(root)
    home.prepare()
    memory = home.recall()
    with ExitStack() as exits:
        supervisor = exits.enter_context(Supervisor())
        port = free_port()
        services = Services(supervisor, home, port=port, backend_port=free_port())
        executable = label_studio_server.find_executable()
        label_studio_server.prepare_database(home, executable)
        command = label_studio_server.server_command(home, memory, port, executable)
        supervisor.spawn(replace(command, env={**command.env, **(label_studio or {})}))
        with make_digits(root / "digits").open(newline="") as file:
            truth = {row["image"]: row["digit"] for row in csv.DictReader(file)}
        services.start_redis(lambda waited: None)
        services.await_label_studio(lambda waited: None)
        session = BrowserSession(services.url)
        session.login(memory.username, memory.password)
        if not memory.api_key:
            memory = replace(memory, api_key=make_token(session))
            home.remember(memory)
        env = services.backend_environment({**os.environ, **(settings or {})}, api_key=memory.api_key)
        services.start_backend(env)
        services.await_web(lambda waited: None)
        services.await_workers(lambda waited: None)
        workshop, dispatcher = build(Settings.from_env(env))
        exits.callback(workshop.close)
        exits.callback(session.close)
        stack = Stack(
            home, services, supervisor, env, workshop.ls, session, workshop, dispatcher, root / "digits", truth
        )
        yield stack
        stack.say_goodbye()
