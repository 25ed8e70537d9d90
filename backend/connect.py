"""Connect a project of Label Studio: backend entry, webhook with a secret, sampling, first order.

Safe to repeat: what is there already is used or put right.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .dispatch import Dispatcher
from .errors import BackendError, LabelStudioRejected
from .labeling_config import parse
from .ls_client import LabelStudioClient, Project
from .project import Workshop
from .queue_push import SAMPLING
from .settings import Settings

SECRET_HEADER = "X-Ask-First-Secret"
TITLE = "Ask First"
ACTIONS = [
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
]


@dataclass
class ConnectReport:
    """What connecting did, as sentences for a person."""

    project: Project
    done: list[str] = field(default_factory=list)


class NotReachable(BackendError):
    """Label Studio cannot reach this backend, or refuses its address; the message says which setting helps."""

    status = 502
    code = "not_reachable"


def connect_project(
    workshop: Workshop,
    dispatcher: Dispatcher,
    project_id: int,
    *,
    url: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ConnectReport:
    """Make a project follow the model. `url`: this backend as Label Studio reaches it, if not as in the settings.

    Raises:
        UnsupportedLabelConfig: before anything is changed; its message shows a config that works.
        NotReachable: with the setting of Label Studio that allows this backend's address.
        LabelStudioUnavailable, LabelStudioRejected, StoreUnavailable
    """
    ls, state, settings = workshop.ls, workshop.state, workshop.settings
    project = ls.project(project_id)
    config = parse(project.label_config)
    report = ConnectReport(project)

    def done(line: str) -> None:
        report.done.append(line)
        say(line)

    asked = (
        f"classes {', '.join(config.classes)}"
        if len(config.controls) == 1 and config.classes
        else f"questions {', '.join(control.name for control in config.controls)}"
    )
    done(f"project {project_id} {project.title!r}: {project.task_count} tasks, {asked}")
    url = url or settings.url_for_label_studio
    # Known before Label Studio calls /setup, so that connecting here is not taken for a connection made in its pages.
    state.adopt(project_id)
    _ensure_backend(ls, settings, project_id, url, done)
    _ensure_webhook(ls, project_id, url, webhook_secret(settings), done)
    if project.sampling != SAMPLING:
        project = ls.patch_project(project_id, sampling=SAMPLING)
        done(f"sampling set to {SAMPLING!r}")
    workshop.remember(ls.project(project_id))
    desk = workshop.desk(project_id)
    # Whatever version is chosen there now was chosen before: the next order is pushed and served in any case.
    state.drop(project_id, "pushed")
    if desk.files.pin():
        desk.files.write_pin(None)
        done("the choice made by hand is lifted: the queue follows the model again")
    desk.files.write_connection({"id": project_id, "url": url})
    state.put(project_id, "connected", True)
    state.put(project_id, "url", url)
    wake = state.record(project_id, text="connected", flags=["tasks", "relist", "project", "all-labels"]).wake
    dispatcher.wake(project_id, "pool", wake)
    dispatcher.wake(project_id, "refresh", wake)
    done("workers are woken: list of tasks, embeddings, first order")
    return report


def wait_for_entry(workshop: Workshop, project_id: int, patience_s: float = 5.0) -> str | None:
    """Our address in the project's list of backends; None when it does not appear.

    Label Studio calls /setup before it saves the entry, so a first look may come too early. The address may differ from
    the settings' (localhost, 127.0.0.1, a service name): an entry with our port that we alone serve is ours.
    """
    wanted = workshop.settings.url_for_label_studio
    until = time.monotonic() + patience_s
    while True:
        urls = [str(b.get("url", "")).rstrip("/") for b in workshop.ls.backends(project_id)]
        if wanted in urls:
            return wanted
        same_port = [u for u in urls if urlsplit(u).port == workshop.settings.port]
        if len(same_port) == 1:
            return same_port[0]
        if time.monotonic() > until:
            return None
        time.sleep(0.5)


def webhook_secret(settings: Settings) -> str:
    """The secret that our webhook carries: the setting, or one made once and kept in MODEL_DIR (mode 600)."""
    given = settings.webhook_secret.get_secret_value()
    if given:
        return given
    path = settings.model_dir / "webhook-secret"
    settings.model_dir.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", opener=_private, encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
    except FileExistsError:
        pass
    return path.read_text(encoding="ascii").strip()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def our_webhooks(ls: LabelStudioClient, project_id: int, url: str) -> list[dict[str, Any]]:
    """Webhooks of the project that point at this backend."""
    return [h for h in ls.webhooks(project_id) if str(h.get("url", "")).rstrip("/") == f"{url}/webhook"]


def _ensure_backend(
    ls: LabelStudioClient, settings: Settings, project_id: int, url: str, done: Callable[[str], None]
) -> None:
    mine = [b for b in ls.backends(project_id) if str(b.get("url", "")).rstrip("/") == url]
    if mine:
        done(f"backend {url} was connected already")
        for double in mine[1:]:
            ls.delete_backend(int(double["id"]))
        return
    try:
        ls.add_backend(project_id, url, TITLE, settings.basic_auth_user, settings.basic_auth_pass.get_secret_value())
    except LabelStudioRejected as error:
        if error.label_studio_status == 403 or "reserved network" in error.body:
            raise NotReachable(
                f"Label Studio refuses the address {url}, because it is private. Start Label Studio with "
                "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false, then connect again."
            ) from error
        raise NotReachable(
            f"Label Studio cannot use {url}: {error.body or error}. Check that the backend runs, and that "
            "ASKFIRST_PUBLIC_URL is its address as Label Studio reaches it."
        ) from error
    done(f"backend {url} connected")


def _ensure_webhook(ls: LabelStudioClient, project_id: int, url: str, secret: str, done: Callable[[str], None]) -> None:
    body = {
        "url": f"{url}/webhook",
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": ACTIONS,
        "headers": {SECRET_HEADER: secret},
        "is_active": True,
    }
    mine = our_webhooks(ls, project_id, url)
    try:
        if mine:
            ls.patch_webhook(int(mine[0]["id"]), body)
            for double in mine[1:]:
                ls.delete_webhook(int(double["id"]))
        else:
            ls.add_webhook(project_id, body)
    except LabelStudioRejected as error:
        if "valid URL" in error.body:
            raise NotReachable(
                f"Label Studio refuses webhooks to {url}, because the host has no dot. Give the backend a name "
                "with one (backend.internal, say; a network alias will do) and set ASKFIRST_PUBLIC_URL to it."
            ) from error
        if "reserved network" in error.body or error.label_studio_status == 403:
            raise NotReachable(
                f"Label Studio refuses webhooks to {url}. Start it with SSRF_PROTECTION_ENABLED=false, then connect "
                "again; without the webhook it would show predictions but never learn."
            ) from error
        raise
    done("webhook set up with a secret header")
