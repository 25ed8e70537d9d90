"""What routes call: events in, predictions and status out. Runs in the web process and never loads a network."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import structlog

from . import events
from .dispatch import Dispatcher
from .errors import BackendError, ImageUnavailable, StoreUnavailable, UnknownProject
from .labeling_config import LabelingConfig, parse
from .ls_client import settings_digest
from .overview import project_overview
from .ports import Overview, PredictRequest, SetupRequest, WebhookAnswer
from .predictor import Predictor
from .project import Workshop
from .queue_push import SAMPLING, read_pushed
from .wire import ProjectRef, parse_project

log = structlog.get_logger(__name__)

FLOOD = 100  # events in two to four seconds: a script at work, not people who wait for the next task
FLOOD_REST_S = 10.0
MOST_VERSIONS = 100  # listed in one answer


class BackendService:
    """Implements `ports.Service` over Redis, the queue and the files that workers write."""

    def __init__(self, workshop: Workshop, dispatcher: Dispatcher) -> None:
        self._workshop = workshop
        self._dispatcher = dispatcher
        self._predictor = Predictor(workshop.settings)

    # ------------------------------------------------------------------ health
    def ready(self) -> dict[str, str]:
        problems: dict[str, str] = {}
        try:
            self._workshop.state.ping()
            missing = self._dispatcher.queues_without_worker()
            if missing:
                problems["workers"] = f"no worker listens on {', '.join(missing)}: start `askfirst worker`"
        except StoreUnavailable as error:
            problems["redis"] = str(error)
        try:
            self._workshop.settings.model_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problems["model_dir"] = f"MODEL_DIR cannot be written: {error}"
        if not self._workshop.settings.label_studio_api_key.get_secret_value():
            problems["label_studio"] = "LABEL_STUDIO_API_KEY is not set: labels cannot be read, orders cannot be pushed"
        return problems

    # ------------------------------------------------------------------ setup
    def setup(self, request: SetupRequest) -> str:
        project = _project(request.project)
        if request.schema:
            parse(request.schema)  # a config that is not served is refused here, where Label Studio shows the reason
        if project is None:
            return self._predictor.model_version(None)
        try:
            state, number = self._workshop.state, project.project_id
            if not state.knows(number):
                self._dispatcher.wake(number, "adopt", state.wake_number(number))
            elif request.extra_params != state.get(number, "extra_params"):
                state.put(number, "extra_params", request.extra_params)
            pushed = read_pushed(state, number)
        except StoreUnavailable as error:
            log.warning("setup without Redis", project=project.project_id, cause=str(error))
            pushed = None
        return pushed.version if pushed else self._predictor.model_version(self._home(project))

    def _home(self, project: ProjectRef) -> Path | None:
        """The project's folder: by its key when the request has one, else the newest of that id."""
        base = self._workshop.settings.model_dir / "projects"
        if project.key is not None and (base / project.key).is_dir():
            return base / project.key
        found = sorted(base.glob(f"{project.project_id}-*"), key=lambda p: p.stat().st_mtime, reverse=True)
        return found[0] if found else None

    # ------------------------------------------------------------------ predict
    def predict(self, request: PredictRequest) -> list[dict[str, Any]]:
        project = _project(request.project)
        home = self._home(project) if project else None
        config = _config_or_none(request.label_config)
        return self._predictor.predict(home, request.tasks, config, interactive=request.context is not None)

    # ------------------------------------------------------------------ webhook
    def webhook(self, payload: dict[str, Any]) -> WebhookAnswer:
        event = events.parse(payload)
        if event is None:
            return WebhookAnswer("Unknown event", "nothing to do")
        state, project_id = self._workshop.state, event.project_id
        if event.action == "PROJECT_UPDATED" and self._is_our_own_change(event):
            return WebhookAnswer("ok", "our own change")
        flags = [
            f
            for wake, f in (
                (events.Wake.TASKS, "tasks"),
                (events.Wake.PROJECT, "project"),
                (events.Wake.TRAIN, "train"),
            )
            if wake in event.wakes
        ]
        if event.action == "TASKS_DELETED":
            flags.append("relist")
        if event.all_tasks:
            flags.append("all-labels")
        submitted = len(event.task_ids) if event.action.startswith("ANNOTATION") else 0
        noted = state.record(
            project_id,
            text=_say(event),
            dirty=event.task_ids,
            gone=event.annotation_ids,
            flags=flags,
            annotations=submitted,
            adopted_only=True,
        )
        asked = event.action == "START_TRAINING"
        if not noted.adopted:
            # A webhook of ours fires: the project was connected, by somebody else's hands or before Redis was emptied.
            job = self._dispatcher.wake(project_id, "adopt", noted.wake)
            return WebhookAnswer("ok", "project will be set up", job if asked else None)
        # What is noted in a flood is taken up by a later event or by the tick.
        if noted.burst > FLOOD and not asked and time.time() - noted.refreshed_at < FLOOD_REST_S:
            return WebhookAnswer("ok", "noted; in a flood of events orders are made every few seconds")
        kind = "pool" if "tasks" in flags and events.Wake.LABELS not in event.wakes else "refresh"
        job = None if kind in noted.waiting else self._dispatcher.wake(project_id, kind, noted.wake)
        if asked:
            return WebhookAnswer("ok", "training is on its way", job or state.waiting(project_id, kind))
        return WebhookAnswer("ok", "queued" if job else "joined a waiting job")

    def _is_our_own_change(self, event: events.Event) -> bool:
        """Whether a PROJECT_UPDATED tells nothing that we did not set or know."""
        state, project = self._workshop.state, event.project or {}
        if "label_config" not in project:
            return False
        try:
            digest = settings_digest(
                str(project["label_config"]),
                int(project.get("min_annotations_to_start_training") or 0),
                int(project.get("maximum_annotations") or 1),
            )
        except (TypeError, ValueError):
            return False  # nothing that Label Studio sends
        return (
            project.get("model_version") == state.get(event.project_id, "expected_version")
            and project.get("sampling") == SAMPLING
            and digest == state.get(event.project_id, "settings_used")
        )

    # ------------------------------------------------------------------ versions and jobs
    def versions(self, project: str | None) -> list[str]:
        if project is None:
            base = self._workshop.settings.model_dir / "projects"
            homes = sorted(p for p in base.glob("*-*") if p.is_dir())
            return [v for home in homes for v in self._predictor.versions(home)][:MOST_VERSIONS]
        parsed = parse_project(project)
        home = self._home(parsed)
        if home is None:
            raise UnknownProject(parsed.project_id)
        return self._predictor.versions(home)[:MOST_VERSIONS]

    def job_status(self, job: str) -> str | None:
        return self._dispatcher.status(job)

    # ------------------------------------------------------------------ status page
    def overview(self) -> Overview:
        settings = self._workshop.settings
        warnings = list(self.ready().values())
        try:
            workers = self._dispatcher.workers()
            projects = tuple(
                project_overview(self._workshop, self._dispatcher, p) for p in self._workshop.state.projects()
            )
        except StoreUnavailable:
            workers, projects = [], ()
        return Overview(
            label_studio_url=settings.label_studio_url, workers=workers, warnings=warnings, projects=projects
        )

    def thumbnail(self, project_id: int, task_id: int) -> bytes | None:
        from PIL import Image, UnidentifiedImageError

        home = self._home(ProjectRef(project_id))
        uri = self._predictor.uri_of(home, task_id) if home else None
        if not uri:
            return None
        try:
            data = self._workshop.fetcher.fetch(uri, task_id)
            with Image.open(io.BytesIO(data)) as image:
                image.draft("RGB", (96, 96))
                image.thumbnail((96, 96))
                out = io.BytesIO()
                image.convert("RGB").save(out, "JPEG", quality=80)
        except (ImageUnavailable, UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            return None
        return out.getvalue()

    def metrics(self) -> dict[str, float]:
        try:
            depth = self._dispatcher.depth()
            projects = self._workshop.state.projects()
        except StoreUnavailable:
            return {"redis_up": 0.0}
        return {
            "redis_up": 1.0,
            "projects": float(len(projects)),
            **{f"queue_waiting_{name.rpartition('-')[2]}": float(n) for name, n in depth.items()},
        }


def _project(value: Any) -> ProjectRef | None:
    """The project a request names; None when it names none: routes that can answer without one do."""
    try:
        return parse_project(value)
    except BackendError:
        return None


def _config_or_none(xml: str) -> LabelingConfig | None:
    try:
        return parse(xml)
    except BackendError:
        return None


def _say(event: events.Event) -> str:
    """The event as a line on the status page."""
    ids = event.task_ids
    where = f" task {ids[0]}" if len(ids) == 1 else f" {len(ids)} tasks" if ids else ""
    return event.action.replace("_", " ").lower() + where
