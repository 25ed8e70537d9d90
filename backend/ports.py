"""What the web layer asks of the rest of the backend, so that routes can be tested without Redis, models or
Label Studio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class SetupRequest:
    """Label Studio's POST /setup; it comes dozens of times an hour, not only at connecting."""

    project: str  # "<id>.<unix created_at>", "<id>", or something odd
    schema: str  # labelling config XML
    hostname: str = ""
    extra_params: str | None = None  # JSON text typed by the user in Label Studio


@dataclass(frozen=True)
class PredictRequest:
    """Label Studio's POST /predict."""

    tasks: Sequence[Any]  # as they came: odd shapes are answered too
    project: str
    label_config: str
    context: dict[str, Any] | None  # interactive request, when not None


@dataclass(frozen=True)
class WebhookAnswer:
    """What was decided about an event. `status` "ok" or "Unknown event"."""

    status: str
    result: str
    job: str | None = None  # Label Studio asks /job_status about this id


@dataclass(frozen=True)
class QueueEntry:
    """One row of the queue head on the status page."""

    task_id: int
    score: float
    confidence: float
    label: str | None
    reason: str
    answers: Sequence[tuple[str, str, float]] = ()  # (question, guess, confidence), where there are several questions
    question: str = ""  # of these, whose answer is worth most


@dataclass(frozen=True)
class ProjectOverview:
    """What the status page and `askfirst status` show of a project."""

    project_id: int
    title: str
    state: str  # one sentence: what is happening, or what to do
    version: str | None  # live model version
    pushed: str | None  # version string in Label Studio
    labels_used: int
    tasks: int
    unlabelled: int
    accuracy: str  # audit accuracy with interval, or why there is none
    representation: str  # which representation is in use and what it is worth
    strategy: str
    warnings: Sequence[str] = ()
    queue: Sequence[QueueEntry] = ()
    events: Sequence[dict[str, Any]] = ()  # newest first: {"at": unix seconds, "what": text}
    jobs: Sequence[dict[str, Any]] = ()  # {"id", "what", "state", "progress": "3/10" | "", "since": unix seconds}
    quality: Sequence[tuple[str, str]] = ()  # (what it is about, sentence): calibration, ranking of errors, sets
    questions: Sequence[tuple[str, str]] = ()  # (name, how well it is answered), where there are several


@dataclass(frozen=True)
class Overview:
    label_studio_url: str
    workers: Sequence[str] = ()
    warnings: Sequence[str] = ()
    projects: Sequence[ProjectOverview] = field(default_factory=tuple)


class Service(Protocol):
    """Everything a route may call. Each method answers within the time limits of Label Studio."""

    def ready(self) -> dict[str, str]:
        """Problem by part name ("redis": "..."); empty when all is well."""

    def setup(self, request: SetupRequest) -> str:
        """Model version string for Label Studio; at most 50 ms; an unknown project is adopted in the background.

        Raises: UnsupportedLabelConfig.
        """

    def predict(self, request: PredictRequest) -> list[dict[str, Any]]:
        """One result dict per task, same order, whatever happens to single tasks."""

    def webhook(self, payload: dict[str, Any]) -> WebhookAnswer:
        """Record an event and wake a worker; milliseconds. Raises: BadPayload, StoreUnavailable."""

    def versions(self, project: str | None) -> list[str]:
        """Model versions, newest first; without a project those of all.

        Raises: BadPayload: no id of a project; UnknownProject.
        """

    def job_status(self, job: str) -> str | None:
        """queued, started, finished, failed, stopped; None when unknown."""

    def overview(self) -> Overview: ...

    def thumbnail(self, project_id: int, task_id: int) -> bytes | None:
        """JPEG of at most 96 px, from the image cache; None when not at hand."""

    def metrics(self) -> dict[str, float]:
        """Gauges read at scrape time: name without prefix -> value."""
