"""Everything that can go wrong at the rim, as one tree.

    BackendError (status, retryable, code)
    ├── ConfigError              500  a setting cannot be used; raised while starting, names the setting
    ├── BadPayload               400  .path, e.g. "tasks[3].data.image"
    ├── PayloadTooLarge          413  .limit_bytes
    ├── Unauthorized             401
    ├── UnsupportedLabelConfig   422  the message shows XML that would work
    ├── UnknownProject           404  .project_id
    ├── ImageUnavailable         422  .task_id .reason; one task's trouble, counted; .retryable by its cause
    ├── LabelStudioUnavailable   502  retryable: time-out, 5xx, no connection
    ├── LabelStudioRejected      502  4xx: .label_studio_status .body; asking again does not help
    ├── StoreUnavailable         503  retryable: Redis does not answer
    ├── FineTuningRefused        409  a run cannot begin, or there is none to stop
    └── ProjectBusy              409  retryable: another process works on the same project

`status` is the HTTP status of our own answer, `retryable` says whether the same call may succeed later
without anybody doing anything, `code` is the stable word that clients and metrics see. An error carries
fields; its message is made from them and says what was wanted, what came, and what to do.
"""

from typing import Any, ClassVar

_EXCERPT_CHARS = 300  # enough to recognise a foreign error, too little to flood a log with a page of HTML


def excerpt(text: str, limit: int = _EXCERPT_CHARS) -> str:
    """`text` on one line and at most `limit` characters long, for use inside a message."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class BackendError(Exception):
    """Root of the tree; not raised itself."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "backend_error"
    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def as_body(self, request_id: str | None = None) -> dict[str, Any]:
        """The one shape in which clients see an error: `{"error": code, "message", "request_id"}`."""
        return {"error": self.code, "message": self.message, "request_id": request_id}


class ConfigError(BackendError):
    """A setting cannot be used. Raised while starting, before any port is opened; `setting` is its name."""

    code = "config_error"

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(f"{setting}: {message}" if setting and setting not in message else message)
        self.setting = setting


class BadPayload(BackendError):
    """A request body is not what the contract says; `path` points into it, e.g. "tasks[3].data.image"."""

    status = 400
    code = "bad_payload"

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class PayloadTooLarge(BackendError):
    """A request body, or an XML labelling config inside one, is larger than we are willing to read."""

    status = 413
    code = "payload_too_large"

    def __init__(self, what: str, limit_bytes: int, actual_bytes: int | None = None) -> None:
        came = "" if actual_bytes is None else f"; {actual_bytes} bytes came"
        super().__init__(f"{what} may have at most {limit_bytes} bytes{came}. Send it in smaller parts.")
        self.limit_bytes = limit_bytes
        self.actual_bytes = actual_bytes


class Unauthorized(BackendError):
    """No credentials, or wrong ones. The message never repeats what came."""

    status = 401
    code = "unauthorized"

    def __init__(
        self,
        message: str = "Credentials are missing or wrong; send those of BASIC_AUTH_USER and BASIC_AUTH_PASS.",
    ) -> None:
        super().__init__(message)


class UnsupportedLabelConfig(BackendError):
    """The labelling config asks for something that is not served; `example` is XML that works."""

    status = 422
    code = "unsupported_label_config"

    def __init__(self, reason: str, example: str) -> None:
        super().__init__(f"{reason}\nA labelling config that works:\n{example}")
        self.reason = reason
        self.example = example


class UnknownProject(BackendError):
    """Nothing is kept here of the project asked about."""

    status = 404
    code = "unknown_project"

    def __init__(self, project_id: int) -> None:
        super().__init__(
            f"Project {project_id} is not known here. Connect it, `askfirst connect --project {project_id}`, or ask "
            "without `project` for those of all projects."
        )
        self.project_id = project_id


class ImageUnavailable(BackendError):
    """The bytes of one task's image cannot be had. Belongs to that task alone: count it and go on.

    `retryable` is a property of the cause: a time-out may pass, a missing file will not come by itself.
    """

    status = 422
    code = "image_unavailable"

    def __init__(self, task_id: int | None, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason if task_id is None else f"image of task {task_id}: {reason}")
        self.task_id = task_id
        self.reason = reason
        self.retryable = retryable


class LabelStudioUnavailable(BackendError):
    """Label Studio did not answer, or answered 5xx. Worth asking again with growing delay."""

    status = 502
    code = "label_studio_unavailable"
    retryable = True

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(
            f"Label Studio did not {what}: {excerpt(cause)}. "
            "Check that it runs and that LABEL_STUDIO_URL is its address."
        )
        self.what = what
        self.cause = cause


class LabelStudioRejected(BackendError):
    """Label Studio said no (4xx). `label_studio_status` is its status, `body` the start of its answer."""

    status = 502
    code = "label_studio_rejected"

    def __init__(self, what: str, label_studio_status: int, body: str = "", hint: str = "") -> None:
        self.what = what
        self.label_studio_status = label_studio_status
        self.body = excerpt(body)
        parts = [f"Label Studio refused to {what} with status {label_studio_status}"]
        if self.body:
            parts[0] += f": {self.body}"
        hint = hint or _HINTS.get(label_studio_status, "")
        super().__init__(". ".join([*parts, hint]) if hint else parts[0])


_HINTS = {
    401: (
        "Set LABEL_STUDIO_API_KEY to a personal access token of Label Studio (Account & Settings), "
        "or to a legacy token if the organisation allows those."
    ),
    403: ("The user of LABEL_STUDIO_API_KEY lacks this right, or Label Studio's SSRF protection refused an address."),
    404: "It does not exist, or the user of LABEL_STUDIO_API_KEY may not see it.",
}


class StoreUnavailable(BackendError):
    """Redis does not answer. Nothing is lost: labels live in Label Studio, models on disk."""

    status = 503
    code = "store_unavailable"
    retryable = True

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"Redis does not answer: {excerpt(cause).rstrip('.')}. Check that it runs and that "
            "ASKFIRST_REDIS_URL is its address."
        )
        self.cause = cause


class FineTuningRefused(BackendError):
    """A fine-tuning run cannot begin, or there is none to stop; the message says what to do."""

    status = 409
    code = "fine_tuning_refused"


class ProjectBusy(BackendError):
    """Another process holds the project; the same call works once it is done."""

    status = 409
    code = "project_busy"
    retryable = True

    def __init__(self, project_id: int, holder: str) -> None:
        super().__init__(f"project {project_id} is busy: {holder}. Try again when that is done.")
        self.project_id = project_id
        self.holder = holder
