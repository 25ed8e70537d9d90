"""What each address answers. A route parses, calls one function of the service, and encodes; no decisions.

Label Studio's calls and their time limits: GET /health 1 s, POST /setup 3 s, POST /predict 100 s, POST
/webhook 1 s, GET /versions 3 s. Everything else is for people, scripts and Prometheus.
"""

from __future__ import annotations

import json
import time
from typing import Any

from flask import Response, g, request
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel

from . import status_page
from .errors import BackendError
from .metrics import CONTENT_TYPE, Metrics
from .ports import Service
from .schemas import (
    ErrorAnswer,
    EventAnswer,
    EventBody,
    HealthAnswer,
    JobAnswer,
    JobBody,
    NotReadyAnswer,
    PredictAnswer,
    PredictBody,
    ReadyAnswer,
    SetupAnswer,
    SetupBody,
    ThumbPath,
    UnknownEventAnswer,
    VersionsAnswer,
    VersionsQuery,
)

MODEL_CLASS = "AskFirst"
# Addresses of other times and tools, and what to use instead; answered with 404.
RETIRED = {
    "/train": "POST /train belongs to the old protocol. Training starts by itself; POST /webhook with "
    '{"action": "START_TRAINING", "project": {"id": 1}} starts it by hand.',
    "/validate": "POST /validate is not served. POST /setup checks a labelling config and says what is wrong with it.",
    "/delete": "POST /delete is not served. Delete the backend in the project's settings, section Model; "
    "`askfirst versions` manages what is kept here.",
    "/duplicate_model": "POST /duplicate_model is not served. Every project learns a model of its own.",
}
# Bytes that a body of these may have: a labelling config of ten thousand choices fits. The others take lists of tasks,
# 0.5 kB each, and as much as the settings allow. Reading JSON takes time; a length that was told takes none.
BODY_LIMITS = {"/setup": 2**20, "/job_status": 2**20}
_HEALTH = json.dumps({"model_class": MODEL_CLASS, "status": "UP"})
_THUMB_MAX_AGE_S = 300


def add_routes(app: OpenAPI, service: Service, metrics: Metrics) -> None:
    """Hang all routes into `app`."""
    _add_probes(app, service, metrics)
    _add_protocol(app, service, metrics)
    _add_pages(app, service)
    document = json.dumps(app.api_doc)  # made now: making it lazily would not be thread-safe

    @app.get("/openapi/openapi.json", doc_ui=False)
    def openapi_document() -> Response:
        return Response(document, mimetype="application/json")


def _add_probes(app: OpenAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/health", responses={200: HealthAnswer}, summary="The process lives")
    def health() -> Response:
        """Asks nobody, neither Redis nor disk: Label Studio waits for this answer all the time."""
        return Response(_HEALTH, mimetype="application/json")

    @app.get("/ready", responses={200: ReadyAnswer, 503: NotReadyAnswer}, summary="All needed parts answer")
    def ready() -> Response:
        """503 names every part that does not, with what to do."""
        problems = service.ready()
        if not problems:
            return _json({"status": "READY"})
        message = "; ".join(f"{part}: {problem}" for part, problem in sorted(problems.items()))
        return _json({**error_body("not_ready", message), "problems": problems}, 503)

    @app.get("/metrics", responses={200: _content("text/plain", "string")}, summary="Prometheus text")
    def metrics_text() -> Response:
        """Counters of this app, and gauges read now."""
        return Response(metrics.render(service.metrics), content_type=CONTENT_TYPE)


def _add_protocol(app: OpenAPI, service: Service, metrics: Metrics) -> None:
    @app.post(
        "/setup",
        responses={200: SetupAnswer, 422: refers_to(ErrorAnswer)},
        summary="Version of the predictions",
    )
    def setup(body: SetupBody) -> Response:
        """Comes with every look at a project's settings; 422 shows a labelling config that would work."""
        return _json({"model_version": service.setup(body.request())})

    @app.post("/predict", responses={200: PredictAnswer}, summary="Predictions for tasks")
    def predict(body: PredictBody) -> Response:
        """One result per task, in the same order; one that cannot be predicted has an empty result."""
        results = service.predict(body.request())
        if len(results) != len(body.tasks):  # Label Studio would drop the whole batch without a word
            raise RuntimeError(f"the service answered {len(results)} results to {len(body.tasks)} tasks")
        return _json({"results": results})

    @app.post(
        "/webhook",
        responses={200: UnknownEventAnswer, 201: EventAnswer},
        summary="Events of Label Studio",
    )
    def webhook(body: EventBody) -> Response:
        """Recorded and answered in milliseconds; work is done elsewhere. 503: events cannot be recorded."""
        payload = request.get_json()
        metrics.event(body.action)
        if body.project is not None:
            payload["project"]["id"] = int(body.project.id)
            # Lets strangers into the project: nobody behind this line sees it.
            payload["project"].pop("token", None)
        answer = service.webhook(payload)
        if answer.status != "ok":
            return _json({"status": answer.status})
        said = {"result": answer.result, "status": answer.status}
        if answer.job is not None and body.action == "START_TRAINING":
            said["job"] = answer.job  # Label Studio takes a top-level `job` for one that its button started
        return _json(said, 201)

    @app.get(
        "/versions",
        responses={200: VersionsAnswer, 404: refers_to(ErrorAnswer)},
        summary="Model versions of a project",
    )
    def versions(query: VersionsQuery) -> Response:
        """Newest first; without `project`, as Label Studio asks, those of all projects. 404: it is not known here."""
        return _json({"versions": service.versions(query.project or None)})

    @app.post(
        "/job_status",
        responses={200: JobAnswer, 410: refers_to(ErrorAnswer)},
        summary="How a job stands",
    )
    def job_status(body: JobBody) -> Response:
        """410 once a job is forgotten, as Label Studio expects."""
        status = service.job_status(body.job)
        if status is None:
            return _json(error_body("job_unknown", "No such job, or it ended too long ago."), 410)
        return _json({"job_status": status})


def _add_pages(app: OpenAPI, service: Service) -> None:
    @app.get(
        "/",
        responses={200: _content("application/json", "object", also="text/html")},
        summary="The status page for browsers, a sign of life for programs",
    )
    def index() -> Response:
        """HTML where the caller prefers it to JSON."""
        wants = request.accept_mimetypes.best_match(["application/json", "text/html"])
        response = page() if wants == "text/html" else Response(_HEALTH, mimetype="application/json")
        response.vary.add("Accept")
        return response

    @app.get(
        "/status",
        responses={200: _content("text/html", "string"), 503: _content("text/html", "string")},
        summary="The status page",
    )
    def status() -> Response:
        """What the backend does for each project, and what to do where it cannot go on."""
        return page()

    @app.get(
        "/thumb/<project_id>/<task_id>",
        responses={200: _content("image/jpeg", "string"), 404: refers_to(ErrorAnswer)},
        summary="Small picture of a task",
    )
    def thumb(path: ThumbPath) -> Response:
        """JPEG of at most 96 px from the image cache; 404 when it is not at hand."""
        data = service.thumbnail(path.project_id, path.task_id)
        if data is None:
            return _json(error_body("not_found", "No picture of this task is at hand."), 404)
        response = Response(data, mimetype="image/jpeg")
        response.headers["Cache-Control"] = f"private, max-age={_THUMB_MAX_AGE_S}"
        return response

    def page() -> Response:
        base = request.script_root
        try:
            html, code = status_page.render(service.overview(), now=time.time(), base=base), 200
        except BackendError as error:
            html, code = status_page.render_problem(error.message, base=base), error.status
        return Response(html, code, mimetype="text/html")


def _json(body: dict[str, Any], status: int = 200) -> Response:
    # NaN is no JSON, and Label Studio would drop the answer: better a 500 that is logged.
    return Response(json.dumps(body, allow_nan=False), status, mimetype="application/json")


def error_body(code: str, message: str) -> dict[str, Any]:
    """The one shape of an error, for those that are not exceptions of our own."""
    return {"error": code, "message": message, "request_id": g.request_id}


def refers_to(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI description of an answer whose model is described already; saves doing so for every route."""
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}}


def _content(mimetype: str, kind: str, *, also: str | None = None) -> dict[str, Any]:
    """OpenAPI description of an answer that is not one of our models."""
    content: dict[str, Any] = {mimetype: {"schema": {"type": kind}}}
    if also:
        content[also] = {"schema": {"type": "string"}}
    return {"content": content}
