"""Calls to Label Studio: tokens of both kinds, time limits, retries, pages. Maps every foreign error to ours.

Facts about what Label Studio answers were observed on 1.23.2; the two that shape this file: personal access
tokens must be exchanged for access tokens that live five minutes, and `import/predictions` answers 201 with a
smaller `created` when it dropped rows.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from .errors import LabelStudioRejected, LabelStudioUnavailable

ACCESS_TOKEN_MARGIN_S = 60.0  # renew this long before the token's own end
PAGE_SIZE = 1000  # 0.2-0.5 s per page when only id and data are asked for
IMPORT_TIMEOUT_FACTOR = 10  # an import of 100,000 rows takes a minute


@dataclass(frozen=True)
class Project:
    """What we use of Label Studio's project."""

    id: int
    created_at: int  # unix seconds; with the id it names a project for ever
    title: str
    label_config: str
    model_version: str | None
    sampling: str
    overlap: int
    min_annotations: int  # labels before the first training; 0: no such limit
    task_count: int
    annotation_count: int
    annotated_count: int  # tasks with at least one annotation that is not cancelled
    skipped_count: int
    show_predictions: bool

    @property
    def settings_digest(self) -> str:
        """Names those settings that a refresh depends on."""
        return settings_digest(self.label_config, self.min_annotations, self.overlap)

    @property
    def key(self) -> str:
        """Folder name of the project: ids are given anew by a fresh Label Studio, so the birth date belongs to it."""
        return f"{self.id}-{self.created_at}"


def settings_digest(label_config: str, min_annotations: int, overlap: int) -> str:
    """Names the settings of a project that a refresh depends on: equal if and only if all of them are."""
    return hashlib.sha256(f"{min_annotations}/{overlap}/{label_config}".encode()).hexdigest()[:16]


def parse_project(data: dict[str, Any]) -> Project:
    """A project from Label Studio's JSON, complete (API) or partial (webhook, `include`)."""
    return Project(
        id=int(data["id"]),
        created_at=unix_seconds(data.get("created_at")),
        title=str(data.get("title") or ""),
        label_config=str(data.get("label_config") or ""),
        model_version=data.get("model_version"),
        sampling=str(data.get("sampling") or ""),
        overlap=int(data.get("maximum_annotations") or 1),
        min_annotations=int(data.get("min_annotations_to_start_training") or 0),
        task_count=int(data.get("task_number") or 0),
        annotation_count=int(data.get("total_annotations_number") or 0),
        annotated_count=int(data.get("num_tasks_with_annotations") or 0),
        skipped_count=int(data.get("skipped_annotations_number") or 0),
        show_predictions=bool(data.get("show_collab_predictions", True)),
    )


def unix_seconds(stamp: str | None) -> int:
    """Unix seconds of an ISO time as Label Studio writes it; 0 when absent."""
    if not stamp:
        return 0
    from datetime import datetime

    return int(datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp())


def is_personal_access_token(token: str) -> bool:
    """True for a JWT (personal access token), False for a 40-digit legacy token."""
    return token.count(".") == 2


class LabelStudioClient:
    """One Label Studio, one user. Thread-safe; keep one per process.

    Every method raises LabelStudioUnavailable (no answer, 5xx: asking again may help) or
    LabelStudioRejected (4xx: it will not).
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float = 60.0,
        verify_ssl: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=self.url,
            verify=verify_ssl,
            transport=transport,
            follow_redirects=False,
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            limits=httpx.Limits(max_keepalive_connections=8, keepalive_expiry=20.0),
        )
        self._lock = threading.Lock()
        self._access = ""
        self._access_until = 0.0

    def close(self) -> None:
        self._http.close()

    def __repr__(self) -> str:
        return f"LabelStudioClient({self.url!r}, {self.token_kind})"

    @property
    def token_kind(self) -> str:
        if not self._api_key:
            return "no token"
        return "personal access token" if is_personal_access_token(self._api_key) else "legacy token"

    # ------------------------------------------------------------------ tokens
    def auth_headers(self) -> dict[str, str]:
        """Header that Label Studio accepts now; renews a short-lived access token when needed."""
        if not self._api_key:
            return {}
        if not is_personal_access_token(self._api_key):
            return {"Authorization": f"Token {self._api_key}"}
        with self._lock:
            if time.time() > self._access_until - ACCESS_TOKEN_MARGIN_S:
                answer = self._send(
                    "renew the access token", "POST", "/api/token/refresh/", json={"refresh": self._api_key}, auth=False
                )
                self._access = str(answer["access"])
                self._access_until = _expiry(self._access)
            return {"Authorization": f"Bearer {self._access}"}

    # ------------------------------------------------------------------ the one door
    def _send(
        self,
        what: str,
        method: str,
        path: str,
        *,
        auth: bool = True,
        timeout_s: float | None = None,
        again: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """JSON of the answer. GETs are tried three times when there is no answer."""
        attempts = 3 if (again if again is not None else method == "GET") else 1
        for attempt in Retrying(
            stop=stop_after_attempt(attempts),
            reraise=True,
            wait=wait_exponential_jitter(multiplier=0.2, max=2.0),
            retry=retry_if_exception_type(LabelStudioUnavailable),
        ):
            with attempt:
                return self._send_once(what, method, path, auth, timeout_s, kwargs)
        raise AssertionError("unreachable")

    def _send_once(
        self, what: str, method: str, path: str, auth: bool, timeout_s: float | None, kwargs: dict[str, Any]
    ) -> Any:
        headers = self.auth_headers() if auth else {}
        try:
            response = self._http.request(
                method,
                path,
                headers=headers,
                timeout=httpx.Timeout(timeout_s or self._timeout_s, connect=5.0),
                **kwargs,
            )
        except httpx.HTTPError as error:
            raise LabelStudioUnavailable(what, f"{type(error).__name__}: {error}") from error
        if response.status_code >= 500:
            raise LabelStudioUnavailable(what, f"status {response.status_code}: {response.text}")
        if response.status_code >= 300:
            raise LabelStudioRejected(what, response.status_code, response.text)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise LabelStudioUnavailable(what, "the answer is not JSON; is LABEL_STUDIO_URL a Label Studio?") from error

    # ------------------------------------------------------------------ reading
    def version(self) -> str:
        """Release of the Label Studio, e.g. "1.23.2"."""
        answer = self._send("tell its version", "GET", "/api/version", auth=False)
        return str(answer.get("release") or answer.get("label-studio-os-package", {}).get("version") or "unknown")

    def whoami(self) -> dict[str, Any]:
        return dict(self._send("tell who we are", "GET", "/api/current-user/whoami"))

    def project(self, project_id: int) -> Project:
        return parse_project(self._send("show the project", "GET", f"/api/projects/{project_id}/"))

    def tasks(self, project_id: int, after_id: int = 0) -> Iterator[dict[str, Any]]:
        """Tasks with an id above `after_id`: id, data, is_labeled, total and cancelled annotations."""
        query = {
            "filters": {
                "conjunction": "and",
                "items": [{"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after_id}],
            }
        }
        return self._pages(
            project_id, "id,data,is_labeled,total_annotations,cancelled_annotations", query if after_id else None
        )

    def _pages(self, project_id: int, include: str, query: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        params: dict[str, Any] = {
            "project": project_id,
            "page_size": PAGE_SIZE,
            "resolve_uri": "false",
            "include": include,
        }
        if query:
            params["query"] = json.dumps(query)
        page = 1
        while True:
            try:
                answer = self._send("list tasks", "GET", "/api/tasks", params={**params, "page": page})
            except LabelStudioRejected as error:
                if error.label_studio_status == 404 and page > 1:  # the page past the end
                    return
                raise
            rows = answer["tasks"]
            yield from rows
            if len(rows) < PAGE_SIZE:
                return
            page += 1

    def touched_since(self, project_id: int, stamp: str) -> list[dict[str, Any]]:
        """Tasks changed after an ISO time: id, updated_at, total and cancelled annotations.

        Label Studio moves a task's `updated_at` when an annotation is created, changed, skipped or deleted, and leaves
        it alone when predictions are imported (observed on 1.23.2).
        """
        query = {
            "filters": {
                "conjunction": "and",
                "items": [
                    {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": stamp}
                ],
            }
        }
        return list(self._pages(project_id, "id,updated_at,total_annotations,cancelled_annotations", query))

    def newest_change(self, project_id: int) -> str | None:
        """ISO time of the project's last change of a task; None without tasks."""
        answer = self._send(
            "find the last change",
            "GET",
            "/api/tasks",
            params={
                "project": project_id,
                "page": 1,
                "page_size": 1,
                "include": "id,updated_at",
                "resolve_uri": "false",
                "query": json.dumps({"ordering": ["-tasks:updated_at"]}),
            },
        )
        rows = answer["tasks"]
        return str(rows[0]["updated_at"]) if rows else None

    def task_annotations(self, task_id: int) -> list[dict[str, Any]] | None:
        """Annotations of a task, or its skips where nobody answered it; None when the task is gone.

        Label Studio's list leaves skips out; the whole task has them, at twice the cost (observed on 1.23.2).
        """
        try:
            answers = list(self._send("list annotations", "GET", f"/api/tasks/{task_id}/annotations/"))
            return answers or list(self._send("show a task", "GET", f"/api/tasks/{task_id}/").get("annotations") or ())
        except LabelStudioRejected as error:
            if error.label_studio_status == 404:
                return None
            raise

    def annotated_tasks(self, project_id: int) -> list[dict[str, Any]]:
        """Every task with at least one annotation, skips among them, with its annotations."""
        return list(
            self._send(
                "export annotations",
                "GET",
                f"/api/projects/{project_id}/export",
                params={"exportType": "JSON"},
                timeout_s=IMPORT_TIMEOUT_FACTOR * self._timeout_s,
            )
        )

    def annotator_count(self) -> int:
        """Users who may label: in Community everybody of the organisation."""
        return len(self._send("list users", "GET", "/api/users"))

    # ------------------------------------------------------------------ the queue
    def patch_project(self, project_id: int, **changes: Any) -> Project:
        return parse_project(
            self._send("change the project", "PATCH", f"/api/projects/{project_id}/", json=changes, again=True)
        )

    def import_predictions(self, project_id: int, predictions: Sequence[dict[str, Any]]) -> int:
        """Store predictions in one transaction; returns how many Label Studio kept.

        Raises:
            LabelStudioRejected: a task is gone (nothing was stored).
        """
        answer = self._send(
            "import predictions",
            "POST",
            f"/api/projects/{project_id}/import/predictions",
            json=list(predictions),
            timeout_s=IMPORT_TIMEOUT_FACTOR * self._timeout_s,
        )
        return int(answer["created"])

    def patch_prediction(self, prediction_id: int, score: float) -> None:
        self._send("change a score", "PATCH", f"/api/predictions/{prediction_id}/", json={"score": score}, again=True)

    def predictions_of_task(self, task_id: int) -> list[dict[str, Any]]:
        return list(self._send("list predictions", "GET", "/api/predictions/", params={"task": task_id}))

    def prediction_versions(self, project_id: int) -> dict[str, int]:
        """Number of stored predictions by version string."""
        answer = self._send("list model versions", "GET", f"/api/projects/{project_id}/model-versions/")
        if isinstance(answer, dict):
            versions = answer.get("static", answer)
            return (
                {str(v["model_version"]): int(v.get("count", 0)) for v in versions}
                if isinstance(versions, list)
                else {str(k): int(v) for k, v in versions.items()}
            )
        return {str(v): 0 for v in answer}

    def delete_prediction_version(self, project_id: int, version: str) -> None:
        self._send(
            "delete a model version",
            "DELETE",
            f"/api/projects/{project_id}/model-versions/",
            json={"model_version": version},
            timeout_s=IMPORT_TIMEOUT_FACTOR * self._timeout_s,
        )

    # ------------------------------------------------------------------ connection
    def backends(self, project_id: int) -> list[dict[str, Any]]:
        return list(self._send("list ML backends", "GET", "/api/ml", params={"project": project_id}))

    def add_backend(self, project_id: int, url: str, title: str, user: str = "", password: str = "") -> dict[str, Any]:
        body: dict[str, Any] = {"project": project_id, "url": url, "title": title}
        if user:
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
        return dict(self._send("connect the ML backend", "POST", "/api/ml", json=body))

    def webhooks(self, project_id: int) -> list[dict[str, Any]]:
        return list(self._send("list webhooks", "GET", "/api/webhooks/", params={"project": project_id}))

    def add_webhook(self, project_id: int, body: dict[str, Any]) -> dict[str, Any]:
        return dict(self._send("create the webhook", "POST", "/api/webhooks/", json={"project": project_id, **body}))

    def patch_webhook(self, webhook_id: int, body: dict[str, Any]) -> dict[str, Any]:
        return dict(self._send("change the webhook", "PATCH", f"/api/webhooks/{webhook_id}/", json=body, again=True))

    def delete_webhook(self, webhook_id: int) -> None:
        with contextlib.suppress(_Gone):
            self._delete(f"/api/webhooks/{webhook_id}/", "delete the webhook")

    def delete_backend(self, backend_id: int) -> None:
        with contextlib.suppress(_Gone):
            self._delete(f"/api/ml/{backend_id}", "delete the ML backend")

    def _delete(self, path: str, what: str) -> None:
        try:
            self._send(what, "DELETE", path)
        except LabelStudioRejected as error:
            if error.label_studio_status == 404:
                raise _Gone from error
            raise


class _Gone(Exception):
    """What was to be deleted does not exist."""


def _expiry(access_token: str) -> float:
    """Unix seconds in the `exp` claim; five minutes from now when it cannot be read."""
    try:
        payload = access_token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (ValueError, KeyError, IndexError):
        return time.time() + 300.0
