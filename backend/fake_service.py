"""A service with chosen answers: routes and page can be tried without Redis, models or Label Studio.

It also holds the web layer to its word: what a real service may rely on (see `bodies.py`) is asserted on
every call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .ports import Overview, PredictRequest, SetupRequest, WebhookAnswer


@dataclass
class FakeService:
    """Answers are attributes; requests are kept in `seen`; `error`, if set, is raised by every method."""

    problems: dict[str, str] = field(default_factory=dict)
    version: str = "v7"
    answer: WebhookAnswer = field(default_factory=lambda: WebhookAnswer("ok", "recorded"))
    known_versions: list[str] = field(default_factory=lambda: ["v7", "v6"])
    jobs: dict[str, str] = field(default_factory=dict)
    page: Overview = field(default_factory=lambda: Overview("http://localhost:8080"))
    thumbnails: dict[tuple[int, int], bytes] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None
    seen: list[Any] = field(default_factory=list)

    def ready(self) -> dict[str, str]:
        self._enter("ready")
        return self.problems

    def setup(self, request: SetupRequest) -> str:
        self._enter(request)
        _assert_texts(request.project, request.schema, request.hostname, request.extra_params or "")
        return self.version

    def predict(self, request: PredictRequest) -> list[dict[str, Any]]:
        self._enter(request)
        _assert_texts(request.project, request.label_config)
        _assert_storable([list(request.tasks), request.context])
        return [{"result": [], "score": 0.5, "model_version": self.version} for _ in request.tasks]

    def webhook(self, payload: dict[str, Any]) -> WebhookAnswer:
        self._enter(payload)
        _assert_texts(payload["action"])
        _assert_storable(payload)
        project = payload.get("project")
        if project is not None and (type(project["id"]) is not int or "token" in project):
            raise AssertionError("a project has a whole number as id, and no token")
        return self.answer

    def versions(self, project: str | None) -> list[str]:
        self._enter(("versions", project))
        return self.known_versions

    def job_status(self, job: str) -> str | None:
        self._enter(("job", job))
        _assert_texts(job)
        return self.jobs.get(job)

    def overview(self) -> Overview:
        self._enter("overview")
        return self.page

    def thumbnail(self, project_id: int, task_id: int) -> bytes | None:
        self._enter(("thumbnail", project_id, task_id))
        return self.thumbnails.get((project_id, task_id))

    def metrics(self) -> dict[str, float]:
        self._enter("metrics")
        return self.gauges

    def _enter(self, request: Any) -> None:
        self.seen.append(request)
        if self.error is not None:
            raise self.error


def _assert_texts(*values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise AssertionError(f"{value!r} is not a text")
        _assert_storable(value)


def _assert_storable(value: Any) -> None:
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")  # raises on half a surrogate pair
    if "\\u0000" in text.replace("\\\\", ""):
        raise AssertionError("a NUL character came through")
