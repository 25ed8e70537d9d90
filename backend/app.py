"""The web application: `create_app` puts gate, routes, errors, metrics and the access log together.

No globals: everything an app knows hangs on the app, so tests make as many as they like. Rules that hold for
every answer are kept here; what single routes do is in `routes.py`.
"""

from __future__ import annotations

import logging
import time
import traceback
import uuid
from string import ascii_letters, digits
from typing import Any

import structlog
from flask import Flask, Request, Response, g, json, request
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, UnsupportedMediaType

from .auth import CHALLENGE, SECRET_HEADER, Gate
from .bodies import read_json
from .errors import BackendError, PayloadTooLarge, Unauthorized
from .metrics import Metrics
from .ports import Service
from .routes import BODY_LIMITS, RETIRED, add_routes, error_body, refers_to
from .schemas import ErrorAnswer, bad_payload
from .settings import Settings

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID_CHARS = frozenset(ascii_letters + digits + "-_.:")
_MAX_REQUEST_ID_CHARS = 64
_RETRY_AFTER_S = 5
# Programs call these all day long (Label Studio, Prometheus, an open status page): one line each would bury
# all other lines.
_QUIET_ROUTES = frozenset({
    "/health", "/webhook", "/metrics", "/", "/status",
    "/thumb/<project_id>/<task_id>", "/static/<path:filename>",
})  # fmt: skip
_SECURITY_HEADERS = {
    # Task data is hostile: nothing inline runs, nothing is loaded from elsewhere, nobody frames us.
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_log = structlog.get_logger("backend.app")


class _StrictRequest(Request):
    """A request whose JSON is read by `bodies.read_json`, wherever Flask or flask-openapi3 asks for it."""

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The body as an object; 415: another content type, 413: too large, 400: no JSON that we take."""
        if not (force or self.is_json):
            raise UnsupportedMediaType(
                f"Send JSON with the header Content-Type: application/json; {self.mimetype or 'no content type'} came."
            )
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise UnsupportedMediaType("Send the body without Content-Encoding.")
        known = getattr(self, "_strict_json", None)
        if known is None:
            body = self.get_data(cache=False)
            limit = self.max_content_length
            if self.content_length is None and limit is not None and len(body) >= limit:
                raise RequestEntityTooLarge  # werkzeug cuts a body whose length was not told, without a word
            known = self._strict_json = read_json(body)
        return known


def create_app(settings: Settings, service: Service, *, webhook_secret: str = "") -> Flask:
    """The WSGI application.

    Args:
        settings: of this process; size limit, credentials and addresses are read here.
        service: answers the routes.
        webhook_secret: what opens /webhook in the header X-Ask-First-Secret; empty: that of the settings.
    Raises:
        ConfigError: credentials are half set.
    """
    gate = Gate.from_settings(settings, webhook_secret)
    metrics = Metrics()
    app = OpenAPI(
        "backend",
        info=Info(title="Ask First", version="1", description="Active-learning backend for Label Studio"),
        # Without this the document says `null`, which tools refuse.
        security_schemes={"basic": {"type": "http", "scheme": "basic"}} if gate.basic else {},
        openapi_extensions={"security": [{"basic": []}]} if gate.basic else {},
        responses={status: refers_to(ErrorAnswer) for status in (400, 401, 413, 415, 500, 503)},
        validation_error_status=400,
        validation_error_model=ErrorAnswer,
        validation_error_callback=_refuse_invalid,
        doc_ui=False,
        static_folder="static",
        template_folder=None,
    )
    app.request_class = _StrictRequest
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = 300
    app.url_map.strict_slashes = False
    _add_hooks(app, gate, metrics)
    _add_error_handlers(app)
    add_routes(app, service, metrics)
    return app


def _refuse_invalid(error: Any) -> Response:
    raise bad_payload(error) from None


def _add_hooks(app: Flask, gate: Gate, metrics: Metrics) -> None:
    @app.before_request
    def enter() -> None:
        g.started = time.perf_counter()
        g.request_id = _request_id(request.headers.get(REQUEST_ID_HEADER))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)
        headers = request.headers
        gate.check(request.path.rstrip("/"), headers.get("Authorization"), headers.get(SECRET_HEADER))
        limit = BODY_LIMITS.get(request.url_rule.rule if request.url_rule else "")
        if limit is not None:
            request.max_content_length = min(limit, app.config["MAX_CONTENT_LENGTH"])

    @app.teardown_request
    def forget(_error: BaseException | None) -> None:
        structlog.contextvars.clear_contextvars()

    @app.after_request
    def leave(response: Response) -> Response:
        seconds = time.perf_counter() - g.started
        route = request.url_rule.rule if request.url_rule else "unmatched"
        response.headers[REQUEST_ID_HEADER] = g.request_id
        for name, value in _SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        metrics.request(route, _method(), response.status_code, seconds)
        _log.log(
            _level(route, response.status_code),
            "request",
            method=_method(),
            path=request.path[:200],  # not the query, which may hold anything
            status=response.status_code,
            ms=round(seconds * 1000, 1),
            **g.get("failure", {}),
        )
        return response


def _level(route: str, status: int) -> int:
    """How loud a request is in the log. A refused one is heard, but for pictures that are not at hand."""
    if status >= 500:
        return logging.WARNING
    quiet = route in _QUIET_ROUTES and (status < 400 or (status == 404 and route.startswith("/thumb")))
    return logging.DEBUG if quiet else logging.INFO


def _method() -> str:
    """The method, or OTHER for invented ones: it becomes a label of a metric."""
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return request.method if request.method in known else "OTHER"


def _request_id(came: str | None) -> str:
    """The caller's id if it is harmless in a log and a header, else a new one."""
    if came and len(came) <= _MAX_REQUEST_ID_CHARS and _REQUEST_ID_CHARS.issuperset(came):
        return came
    return uuid.uuid4().hex


def _add_error_handlers(app: Flask) -> None:
    @app.errorhandler(BackendError)
    def on_backend_error(error: BackendError) -> Response:
        response = _error_response(error.status, error.as_body(g.request_id))
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = CHALLENGE
        if error.retryable:
            response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        g.failure = {"error": error.code, "message": error.message}  # for the access log
        return response

    @app.errorhandler(HTTPException)
    def on_http_exception(error: HTTPException) -> Any:
        if isinstance(error, RequestEntityTooLarge):
            what, limit = f"The body of {request.path}", request.max_content_length or 0
            return on_backend_error(PayloadTooLarge(what, limit, request.content_length))
        if error.code is None or error.code < 400:  # a redirect
            return error
        message = error.description or error.name
        if error.code == 404:
            message = RETIRED.get(request.path.rstrip("/"), message)
        code = error.name.lower().replace(" ", "_")
        response = _error_response(error.code, error_body(code, message))
        for name, value in error.get_headers(request.environ):
            if name not in ("Content-Type", "Content-Length"):
                response.headers[name] = value  # Allow of a 405
        return response

    @app.errorhandler(Exception)
    def on_surprise(error: Exception) -> Response:
        # As a text: renderers of `exc_info` may show local variables, and those hold payloads.
        _log.error("unexpected error", exception="".join(traceback.format_exception(error)))
        message = "Something went wrong on our side. The log tells more under this request id."
        return _error_response(500, error_body("internal_error", message))


def _error_response(status: int, body: dict[str, Any]) -> Response:
    return Response(json.dumps(body), status, mimetype="application/json")
