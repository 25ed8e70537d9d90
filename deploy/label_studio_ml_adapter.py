"""Ask First as a model class of the package label-studio-ml (2.x, from git), for those who run that package already.

    gunicorn --bind :9090 --threads 8 'deploy.label_studio_ml_adapter:create_app()'

takes the place of `askfirst serve`; Redis and `askfirst worker` stay as they are. What the package cannot do is
listed in docs/label_studio_ml.md. Nothing of Ask First imports this module, and CI does not need the package.
"""

from __future__ import annotations

import json
from typing import Any

from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse

from backend.ports import PredictRequest, Service, SetupRequest
from backend.schemas import EventBody


def make_model_class(service: Service) -> type[LabelStudioMLBase]:
    """A model class that hands everything to `service`.

    The package makes one instance per request, so an instance keeps nothing; and it serves one class per process.
    """

    class AskFirst(LabelStudioMLBase):  # type: ignore[misc]  # the package is not typed
        def setup(self) -> None:
            """Ask for the version that predictions carry now; the package answers /setup with what is stored here."""
            extra = self.get("extra_params")
            version = service.setup(
                SetupRequest(project=str(self.project_id), schema=self.label_config or "", extra_params=_as_text(extra))
            )
            # The store is a data base on disk: it is only written when there is something new.
            if str(self.get("model_version")) != version:
                self.set("model_version", version)

        def set_extra_params(self, extra_params: Any) -> None:
            """Comes after `setup`, in the same request: hand it on at once."""
            super().set_extra_params(extra_params)
            self.setup()

        def predict(
            self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **unused: Any
        ) -> ModelResponse:
            """One prediction per task, in the same order. `unused`: the credentials that come with every request."""
            rows = service.predict(
                PredictRequest(
                    tasks=tasks or [],
                    project=str(self.project_id),
                    label_config=self.label_config or "",
                    context=context or None,
                )
            )  # the package says {} where nobody clicked anywhere
            return ModelResponse(model_version=str(self.get("model_version")), predictions=rows)

        def fit(self, event: str, data: dict[str, Any], **unused: Any) -> dict[str, Any]:
            """Record the event and wake a worker: the annotator waits for this answer.

            Raises: BadPayload, StoreUnavailable, pydantic.ValidationError.
            """
            payload = {**data, "action": event}
            body = EventBody.model_validate(payload)
            if body.project is not None:
                # As a whole number, and without the invite token, which lets strangers into the project.
                payload["project"] = {**data["project"], "id": int(body.project.id)}
                payload["project"].pop("token", None)
            answer = service.webhook(payload)
            return {"status": answer.status, "result": answer.result} | ({"job": answer.job} if answer.job else {})

    return AskFirst


def _as_text(extra_params: Any) -> str | None:
    """The package's store holds texts; Label Studio may send an object."""
    if extra_params is None or isinstance(extra_params, str):
        return extra_params
    return json.dumps(extra_params)


def create_app(service: Service | None = None) -> Any:
    """The package's Flask app, serving `service`; by default the one that `askfirst serve` has.

    Raises: ConfigError.
    """
    from label_studio_ml.api import init_app

    if service is None:
        from backend.service import BackendService
        from backend.settings import Settings
        from backend.worker_context import build

        service = BackendService(*build(Settings.from_env()))
    return init_app(make_model_class(service))
