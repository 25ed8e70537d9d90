"""Bodies and answers of the HTTP interface as pydantic models, which check and make the OpenAPI document.

Permissive where Label Studio is odd: unknown keys are allowed; `project` may be "1.1795211221", "42" or 42.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from .errors import BadPayload
from .ports import PredictRequest, SetupRequest

MAX_ID = 2**63 - 1  # what a database id can be
_MAX_NAME_CHARS = 200


def _text_of_number(value: Any) -> Any:
    """42 as "42". Label Studio sends texts; "1.1795211220" as a number would lose its last digit."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _none_is_empty(value: Any) -> Any:
    return "" if value is None else value


def _json_text(value: Any) -> Any:
    """Extra params as text: Label Studio stores a text, scripts often send the object itself."""
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("holds a NUL character")
    return value


def _object_or_none(value: Any) -> Any:
    return value if isinstance(value, dict) else None


ShortText = Annotated[StrictStr, Field(min_length=1, max_length=_MAX_NAME_CHARS)]
IdText = Annotated[
    ShortText, BeforeValidator(_text_of_number, json_schema_input_type=ShortText | StrictInt | StrictFloat)
]
DatabaseId = Annotated[StrictInt, Field(ge=0, le=MAX_ID)] | Annotated[StrictStr, Field(pattern=r"^[0-9]{1,18}$")]
Text = Annotated[StrictStr, BeforeValidator(_none_is_empty, json_schema_input_type=str | None)]
ParamsText = Annotated[
    StrictStr | None,
    BeforeValidator(_json_text, json_schema_input_type=str | dict[str, Any] | list[Any] | None),
]
Ignored = Annotated[dict[str, Any] | None, BeforeValidator(_object_or_none, json_schema_input_type=Any)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class SetupBody(_Body):
    """POST /setup. `access_token` is documented and never read: it has the power of an administrator."""

    project: IdText = Field(description='"<id>.<unix created_at>", or the id alone')
    label_config: Text = Field("", alias="schema", description="labelling config, XML")
    hostname: Text = Field("", description="where Label Studio believes to be; a hint at most")
    extra_params: ParamsText = Field(
        None, description="JSON text typed by the user at the backend's settings in Label Studio"
    )

    def request(self) -> SetupRequest:
        """What the service gets of it."""
        return SetupRequest(self.project, self.label_config, self.hostname, self.extra_params)


class PredictBody(_Body):
    """POST /predict."""

    tasks: list[Any] = Field(description="tasks of Label Studio; each one is answered, whatever its shape")
    project: IdText | None = Field(None, description='"<id>.<unix created_at>", or the id alone')
    label_config: Text = Field("", description="labelling config, XML")
    params: Ignored = Field(None, description="`context`: of an interactive request; the rest is not read")

    def request(self) -> PredictRequest:
        """What the service gets of it."""
        context = (self.params or {}).get("context")
        return PredictRequest(
            self.tasks, self.project or "", self.label_config, context if isinstance(context, dict) else None
        )


class EventProject(_Body):
    """The project of an event. Real events carry some forty more keys."""

    id: DatabaseId


class EventBody(_Body):
    """POST /webhook: the keys that every event needs; the rest is handed on as it came."""

    action: ShortText = Field(description="ANNOTATION_CREATED, TASKS_CREATED, START_TRAINING, ...")
    project: EventProject | None = None


class JobBody(_Body):
    """POST /job_status."""

    job: IdText = Field(description="id that START_TRAINING answered with")


class VersionsQuery(_Body):
    """GET /versions."""

    project: Annotated[str, Field(max_length=_MAX_NAME_CHARS), AfterValidator(_no_nul)] | None = None


class ThumbPath(_Body):
    """GET /thumb/<project_id>/<task_id>."""

    project_id: int = Field(ge=0, le=MAX_ID)
    task_id: int = Field(ge=0, le=MAX_ID)


class ErrorAnswer(BaseModel):
    """Every error has this shape."""

    error: str = Field(description="stable word for the kind of error")
    message: str = Field(description="what was wanted, what came, what to do")
    request_id: str | None = Field(description="the request in the log; also in the header X-Request-ID")


class HealthAnswer(BaseModel):
    """The process lives."""

    model_class: str
    status: str


class SetupAnswer(BaseModel):
    """The version under which predictions are stored in Label Studio."""

    model_version: str


class PredictAnswer(BaseModel):
    """One item per task, in the order of the tasks."""

    results: list[dict[str, Any]]


class EventAnswer(BaseModel):
    """What was decided about an event."""

    result: str
    status: str
    job: str | None = None


class UnknownEventAnswer(BaseModel):
    """The action is none that concerns this backend."""

    status: str


class VersionsAnswer(BaseModel):
    """Model versions, newest first."""

    versions: list[str]


class JobAnswer(BaseModel):
    """queued, started, finished, failed or stopped."""

    job_status: str


class ReadyAnswer(BaseModel):
    """Everything that is needed answers."""

    status: str


class NotReadyAnswer(ErrorAnswer):
    """`problems`: what to do, by part."""

    problems: dict[str, str]


def bad_payload(error: ValidationError) -> BadPayload:
    """The first finding of pydantic in our own shape; what came is not repeated, as it may hold a secret."""
    finding = error.errors(include_input=False, include_url=False)[0]
    path = ""
    for part in finding["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():  # pydantic names union branches, "constrained-int", in the path
            path += f".{part}" if path else part
    return BadPayload(finding["msg"], path=path)
