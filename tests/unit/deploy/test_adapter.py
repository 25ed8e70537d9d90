"""The optional adapter, run through a stand-in of the package's server (tests/fixtures/label_studio_ml)."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from backend.fake_service import FakeService
from backend.ports import PredictRequest, SetupRequest, WebhookAnswer

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RECORDED = FIXTURES / "label_studio" / "1.23.2"
CONFIG = '<View><Image name="img" value="$image"/><Choices name="c" toName="img"><Choice value="cat"/></Choices></View>'


def recorded(name):
    """Body of a request that Label Studio made."""
    return json.loads((RECORDED / name).read_text())["body"]


@pytest.fixture
def service():
    return FakeService(version="g7-al")


@pytest.fixture
def client(service, monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES / "label_studio_ml"))
    before = set(sys.modules)
    importlib.import_module("label_studio_ml.model").STORE.clear()
    adapter = importlib.import_module("deploy.label_studio_ml_adapter")
    yield adapter.create_app(service).test_client()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "label_studio_ml" or name == adapter.__name__:
            del sys.modules[name]


def seen(service, kind):
    return [request for request in service.seen if isinstance(request, kind)]


def test_health_names_the_model_class(client):
    assert client.get("/health").json == {"status": "UP", "model_class": "AskFirst"}


def test_setup_answers_the_version_of_the_service(client, service):
    answer = client.post("/setup", json={"project": "7.1795211221", "schema": CONFIG})
    assert answer.json == {"model_version": "g7-al"}
    assert seen(service, SetupRequest)[0] == SetupRequest("7", CONFIG, extra_params=None)


def test_a_new_version_is_answered_at_the_next_setup(client, service):
    client.post("/setup", json={"project": "7.1", "schema": CONFIG})
    service.version = "g8-al"
    assert client.post("/setup", json={"project": "7.1", "schema": CONFIG}).json == {"model_version": "g8-al"}


@pytest.mark.parametrize("extra", ['{"model_strategy": "margin"}', {"model_strategy": "margin"}])
def test_extra_params_reach_the_service_as_text_in_the_same_request(client, service, extra):
    client.post("/setup", json={"project": "7.1", "schema": CONFIG, "extra_params": extra})
    assert json.loads(seen(service, SetupRequest)[-1].extra_params) == {"model_strategy": "margin"}


def test_predict_answers_one_row_per_task_in_order(client, service):
    rows = [
        {"result": [], "score": 0.25, "model_version": "g7-al"},
        {
            "result": [{"from_name": "c", "to_name": "img", "type": "choices", "value": {"choices": ["cat"]}}],
            "score": 0.75,
            "model_version": "g7-al",
        },
    ]
    service.predict = lambda request: rows
    body = {
        "tasks": [{"id": 1}, {"id": 2}],
        "project": "7.1",
        "label_config": CONFIG,
        "params": {"login": "u", "password": "secret", "context": None},
    }
    found = client.post("/predict", json=body).json["results"]
    assert [(r["score"], r["result"], r["model_version"]) for r in found] == [
        (r["score"], r["result"], r["model_version"]) for r in rows
    ]


def test_predict_keeps_credentials_from_the_service_and_tells_interactive_requests_apart(client, service):
    body = {
        "tasks": [{"id": 1}],
        "project": "7.1",
        "label_config": CONFIG,
        "params": {"login": "u", "password": "secret", "context": {}},
    }
    client.post("/predict", json=body)
    body["params"]["context"] = {"result": [{"x": 1}]}
    client.post("/predict", json=body)
    assert seen(service, PredictRequest) == [
        PredictRequest([{"id": 1}], "7", CONFIG, None),
        PredictRequest([{"id": 1}], "7", CONFIG, {"result": [{"x": 1}]}),
    ]
    assert "secret" not in repr(service.seen)


def test_an_annotation_is_recorded_with_its_project_and_without_the_invite_token(client, service):
    body = recorded("webhook_ANNOTATION_CREATED.json")
    body["project"]["token"] = "lets strangers in"
    answer = client.post("/webhook", json=body)
    assert answer.status_code == 201
    assert answer.json == {"status": "ok", "result": {"status": "ok", "result": "recorded"}}
    [event] = [request for request in service.seen if isinstance(request, dict)]
    assert event["action"] == "ANNOTATION_CREATED"
    assert event["annotation"] == body["annotation"]
    assert event["project"]["id"] == body["project"]["id"]
    assert "token" not in event["project"]


def test_start_training_tells_the_job(client, service):
    service.answer = WebhookAnswer("ok", "training is on its way", "refresh-1-1")
    body = recorded("ls_to_backend_START_TRAINING_webhook_POST.json")
    assert client.post("/webhook", json=body).json["result"]["job"] == "refresh-1-1"


def test_a_project_without_a_number_is_refused(client, service):
    body = {"action": "START_TRAINING", "project": {"id": "seven", "label_config": CONFIG}}
    client.application.config["PROPAGATE_EXCEPTIONS"] = False
    assert client.post("/webhook", json=body).status_code == 500
    assert not [request for request in service.seen if isinstance(request, dict)]


def test_without_a_service_the_adapter_serves_the_one_of_askfirst_serve(client, tmp_path, monkeypatch):
    # `client` has brought the stand-in; nothing is contacted before the first request that needs it.
    adapter = sys.modules["deploy.label_studio_ml_adapter"]
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    assert adapter.create_app().test_client().get("/health").json["model_class"] == "AskFirst"
