"""What each route answers, to whom, and that every error looks the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from backend import app
from backend.app import create_app
from backend.errors import BadPayload, LabelStudioUnavailable, StoreUnavailable, UnsupportedLabelConfig
from backend.fake_service import FakeService
from backend.ports import PredictRequest, SetupRequest, WebhookAnswer
from backend.settings import Settings

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
ALL_GET = ["/", "/health", "/ready", "/versions", "/metrics", "/status", "/openapi/openapi.json"]
ALL_POST = ["/setup", "/predict", "/webhook", "/job_status"]


@pytest.fixture(scope="module")
def app_and_service() -> tuple[Flask, FakeService]:
    service = FakeService()
    return create_app(Settings.from_env({"ASKFIRST_MAX_BODY_BYTES": "20000"}), service), service


@pytest.fixture
def service(app_and_service: tuple[Flask, FakeService]) -> FakeService:
    service = app_and_service[1]
    vars(service).clear()
    vars(service).update(vars(FakeService()))
    return service


@pytest.fixture
def client(app_and_service: tuple[Flask, FakeService], service: FakeService) -> FlaskClient:
    return app_and_service[0].test_client()


def assert_error(response: Any, status: int, code: str) -> None:
    assert response.status_code == status
    assert set(response.json) >= {"error", "message", "request_id"}
    assert response.json["error"] == code
    assert response.json["message"]
    assert response.json["request_id"] == response.headers["X-Request-ID"]


# --- probes


def test_health_answers_exactly_what_label_studio_backends_answer(client, service):
    response = client.get("/health")
    assert (response.status_code, response.json) == (200, {"model_class": "AskFirst", "status": "UP"})
    assert service.seen == []


def test_health_lives_on_while_everything_else_is_down(client, service):
    service.error = StoreUnavailable("connection refused")
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 200


def test_health_takes_a_body_with_get(client):
    assert client.get("/health", data=b"\xff{", content_type="application/json").status_code == 200


def test_ready_is_200_when_nothing_is_missing(client):
    assert client.get("/ready").json == {"status": "READY"}


def test_ready_names_every_problem_and_what_to_do(client, service):
    service.problems = {"redis": "does not answer; start it", "disk": "full; free some space"}
    response = client.get("/ready")
    assert_error(response, 503, "not_ready")
    assert response.json["problems"] == service.problems
    assert response.json["message"] == "disk: full; free some space; redis: does not answer; start it"


# --- the root is for people and for programs


@pytest.mark.parametrize("accept", ["*/*", "application/json", "", "nonsense", "application/json, text/html;q=0.9"])
def test_programs_get_a_sign_of_life_at_the_root(client, accept):
    response = client.get("/", headers={"Accept": accept})
    assert response.json == {"status": "UP", "model_class": "AskFirst"}


def test_browsers_get_the_page_at_the_root_and_at_status(client):
    for path in ("/", "/status"):
        response = client.get(path, headers={"Accept": BROWSER})
        assert response.mimetype == "text/html"
        assert "Ask First" in response.text
    assert "Accept" in client.get("/").headers["Vary"]


def test_page_has_a_policy_under_which_no_foreign_and_no_inline_code_runs(client):
    policy = client.get("/status").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy


def test_page_without_redis_says_what_to_do_instead_of_failing(client, service):
    service.error = StoreUnavailable("refused")
    response = client.get("/status")
    assert response.status_code == 503
    assert response.mimetype == "text/html"
    assert "Redis does not answer: refused" in response.text


def test_page_and_static_files_name_no_other_host(client):
    paths = ["/status", "/static/status.css", "/static/refresh.js"]
    for path in paths:
        with client.get(path) as response:
            assert response.status_code == 200
            assert "//" not in response.text.replace("http://localhost:8080", "").replace("// Fetches", "")


# --- setup


@pytest.mark.parametrize(
    ("project", "given"), [("1.1000000000", "1.1000000000"), ("42", "42"), (42, "42"), (1.5, "1.5")]
)
def test_setup_takes_a_project_in_every_form_label_studio_has_used(client, service, project, given):
    response = client.post("/setup", json={"project": project, "schema": "<View/>"})
    assert (response.status_code, response.json) == (200, {"model_version": "v7"})
    assert service.seen == [SetupRequest(given, "<View/>")]


@pytest.mark.parametrize(
    "body", [{"project": "1"}, {"project": "1", "schema": None, "hostname": None, "extra_params": None}]
)
def test_setup_without_a_schema_is_answered(client, service, body):
    assert client.post("/setup", json=body).status_code == 200
    assert service.seen == [SetupRequest("1", "")]


@pytest.mark.parametrize("project", [None, True, "", [], ["1"], {"id": 1}, "9" * 201])
def test_setup_refuses_what_names_no_project(client, service, project):
    assert_error(client.post("/setup", json={"project": project, "schema": "<View/>"}), 400, "bad_payload")
    assert service.seen == []


def test_setup_never_hands_on_the_access_token(client, service):
    client.post("/setup", json={"project": "1.5", "schema": "<View/>", "access_token": "abc", "new_key": 1})
    assert "abc" not in repr(service.seen)


def test_extra_params_are_text_whether_sent_as_text_or_as_object(client, service):
    client.post("/setup", json={"project": "1", "extra_params": '{"a":1}'})
    client.post("/setup", json={"project": "1", "extra_params": {"a": 1}})
    assert [json.loads(seen.extra_params) for seen in service.seen] == [{"a": 1}, {"a": 1}]


def test_unsupported_config_is_422_and_shows_one_that_works(client, service):
    service.error = UnsupportedLabelConfig("no Choices", "<View><Choices/></View>")
    response = client.post("/setup", json={"project": "1", "schema": "<View/>"})
    assert_error(response, 422, "unsupported_label_config")
    assert "<View><Choices/></View>" in response.json["message"]


# --- predict


def test_predict_answers_one_result_per_task_whatever_the_tasks_look_like(client, service):
    tasks = [{"id": 1, "data": {"image": "/x"}}, {}, None, "text", 3, [[]], {"id": "x", "data": None}]
    response = client.post("/predict", json={"tasks": tasks, "project": "1.5", "label_config": "<View/>", "params": {}})
    assert response.status_code == 200
    assert len(response.json["results"]) == len(tasks)
    assert service.seen == [PredictRequest(tasks, "1.5", "<View/>", None)]


@pytest.mark.parametrize("body", [{"tasks": []}, {"tasks": [], "project": None, "label_config": None, "params": None}])
def test_predict_needs_nothing_but_tasks(client, body):
    assert client.post("/predict", json=body).json == {"results": []}


def test_predict_hands_on_the_context_of_an_interactive_request_and_no_credentials(client, service):
    params = {"login": "me", "password": "hush", "context": {"result": []}}
    client.post("/predict", json={"tasks": [{}], "params": params})
    assert service.seen[0].context == {"result": []}
    assert "hush" not in repr(service.seen)


@pytest.mark.parametrize("tasks", [None, {}, "x", 3])
def test_predict_refuses_tasks_that_are_no_list(client, tasks):
    response = client.post("/predict", json={"tasks": tasks})
    assert_error(response, 400, "bad_payload")
    assert "tasks" in response.json["message"]


def test_an_answer_of_the_wrong_length_is_an_error_rather_than_a_batch_that_label_studio_drops(client, service):
    service.predict = lambda request: []
    assert_error(client.post("/predict", json={"tasks": [{}]}), 500, "internal_error")


# --- webhook


def test_minimal_event_is_answered_201_as_label_studio_users_expect(client, service):
    response = client.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 3}})
    assert (response.status_code, response.json) == (201, {"result": "recorded", "status": "ok"})
    assert service.seen == [{"action": "ANNOTATION_CREATED", "project": {"id": 3}}]


def test_unknown_action_is_answered_200(client, service):
    service.answer = WebhookAnswer("Unknown event", "ignored")
    response = client.post("/webhook", json={"action": "SOMETHING", "project": {"id": 3}})
    assert (response.status_code, response.json) == (200, {"status": "Unknown event"})


def test_job_is_at_top_level_only_when_the_button_asked_for_training(client, service):
    service.answer = WebhookAnswer("ok", "queued", job="refresh-3-1")
    pressed = client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 3}})
    labelled = client.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 3}})
    assert pressed.json == {"result": "queued", "status": "ok", "job": "refresh-3-1"}
    assert "job" not in labelled.json


def test_event_reaches_the_service_as_it_came_but_for_the_token_of_the_project(client, service):
    event = {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": 1, "result": [{}]},
        "task": {"id": 2},
        "more": [1.5],
    }
    client.post("/webhook", json=event | {"project": {"id": "3", "token": "hush", "title": "t"}})
    assert service.seen == [event | {"project": {"id": 3, "title": "t"}}]


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"action": None},
        {"action": 3},
        {"action": ""},
        {"action": "A" * 300},
        {"project": {"id": 1}},
        {"action": "A", "project": 3},
        {"action": "A", "project": {}},
        {"action": "A", "project": {"id": None}},
        {"action": "A", "project": {"id": True}},
        {"action": "A", "project": {"id": -1}},
        {"action": "A", "project": {"id": 2**63}},
        {"action": "A", "project": {"id": "../1"}},
    ],
)
def test_event_without_action_or_with_an_odd_project_is_refused(client, service, event):
    assert_error(client.post("/webhook", json=event), 400, "bad_payload")
    assert service.seen == []


def test_event_while_redis_is_down_is_503_with_a_time_to_come_back(client, service):
    service.error = StoreUnavailable("refused")
    response = client.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 3}})
    assert_error(response, 503, "store_unavailable")
    assert response.headers["Retry-After"] == "5"


# --- versions, jobs, pictures


def test_versions_are_listed_per_project(client, service):
    assert client.get("/versions?project=1.5").json == {"versions": ["v7", "v6"]}
    assert client.get("/versions").status_code == 200
    assert service.seen == [("versions", "1.5"), ("versions", None)]


def test_job_status_is_told_and_a_forgotten_job_is_410(client, service):
    service.jobs = {"j1": "started"}
    assert client.post("/job_status", json={"job": "j1"}).json == {"job_status": "started"}
    assert_error(client.post("/job_status", json={"job": "j2"}), 410, "job_unknown")


def test_thumbnail_is_a_jpeg_that_a_browser_may_keep_for_itself(client, service):
    service.thumbnails[(1, 2)] = b"\xff\xd8jpeg"
    response = client.get("/thumb/1/2")
    assert (response.data, response.mimetype) == (b"\xff\xd8jpeg", "image/jpeg")
    assert response.headers["Cache-Control"].startswith("private")
    assert_error(client.get("/thumb/1/3"), 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/thumb/x/1", "/thumb/1/-1", f"/thumb/1/{'9' * 5000}", "/thumb/1/%00", "/thumb/1/1e3"]
)
def test_thumbnail_of_no_number_is_refused(client, service, path):
    assert_error(client.get(path), 400, "bad_payload")
    assert service.seen == []


# --- what holds everywhere


@pytest.mark.parametrize("path", ["/train", "/validate", "/delete", "/duplicate_model"])
def test_routes_of_other_protocols_are_404_and_say_what_to_do(client, path):
    response = client.post(path, json={})
    assert_error(response, 404, "not_found")
    assert path in response.json["message"]


def test_unknown_address_is_404_in_our_shape(client):
    assert_error(client.get("/nowhere"), 404, "not_found")
    assert_error(client.get("/static/../app.py"), 404, "not_found")
    assert_error(client.get("/static/%00"), 404, "not_found")


@pytest.mark.parametrize("path", ALL_POST)
def test_wrong_method_is_405_and_names_the_right_one(client, path):
    response = client.get(path)
    assert_error(response, 405, "method_not_allowed")
    assert "POST" in response.headers["Allow"]


@pytest.mark.parametrize("path", ALL_GET)
def test_head_answers_like_get_without_a_body(client, path):
    response = client.head(path)
    assert (response.status_code, response.data) == (200, b"")


@pytest.mark.parametrize("path", ALL_GET + ALL_POST)
def test_options_names_the_methods(client, path):
    response = client.options(path)
    assert response.status_code == 200
    assert ("POST" if path in ALL_POST else "GET") in response.headers["Allow"]


@pytest.mark.parametrize("path", ["/setup/", "/webhook/", "/predict/"])
def test_a_slash_at_the_end_does_no_harm(client, path):
    body = {"project": {"id": 1}, "action": "A"} if "webhook" in path else {"project": "1", "tasks": []}
    assert client.post(path, json=body).status_code in (200, 201)


@pytest.mark.parametrize("path", ALL_POST)
def test_another_content_type_is_415(client, path):
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        None,
    ):
        assert_error(client.post(path, data=b"{}", content_type=content_type), 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ALL_POST)
def test_a_body_above_the_limit_is_413_whether_its_length_was_told_or_not(client, service, path):
    big = json.dumps({"project": "1", "action": "A", "tasks": ["x" * 30000], "job": "j"}).encode()
    assert_error(client.post(path, data=big, content_type="application/json"), 413, "payload_too_large")
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    response = client.post(path, data=big, content_type="application/json", environ_overrides=chunked)
    assert_error(response, 413, "payload_too_large")
    assert "20000 bytes" in response.json["message"]
    assert service.seen == []


@pytest.mark.parametrize("path", ["/setup", "/job_status"])
def test_a_body_that_never_is_large_is_refused_by_its_length_alone(monkeypatch, path):
    read, limit = [], 1_048_576
    monkeypatch.setattr(app, "read_json", lambda body: read.append(len(body)) or {})
    client = create_app(Settings.from_env({}), FakeService()).test_client()
    for length, status in ((limit, 400), (limit + 1, 413)):  # 400: an empty object is no body of theirs
        response = client.post(path, data=b" " * length, content_type="application/json")
        assert response.status_code == status
    assert f"{path} may have at most {limit} bytes; {limit + 1} bytes came" in response.json["message"]
    assert read == [limit]


def test_an_import_of_ten_thousand_tasks_is_one_event_and_taken(service):
    task = {"id": 1, "data": {"image": "/data/upload/1/747226c9-im00.png"}, "annotations": [], "file_upload": "x" * 400}
    body = {"action": "TASKS_CREATED", "project": {"id": 1}, "tasks": [task] * 10_000}
    client = create_app(Settings.from_env({}), service).test_client()
    assert client.post("/webhook", json=body).status_code == 201
    assert client.post("/predict", json={"tasks": body["tasks"]}).status_code == 200


def test_compressed_bodies_are_415(client):
    response = client.post("/setup", data=b"{}", content_type="application/json", headers={"Content-Encoding": "gzip"})
    assert_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("error", "status"), [(BadPayload("no", "task"), 400), (LabelStudioUnavailable("x", "y"), 502)]
)
def test_errors_of_our_own_carry_their_status_code_and_message(client, service, error, status):
    service.error = error
    assert_error(client.post("/webhook", json={"action": "A", "project": {"id": 1}}), status, error.code)


def test_a_surprise_is_500_without_any_detail_for_the_client(client, service):
    service.error = KeyError("secret detail of the inside")
    for response in (
        client.post("/setup", json={"project": "1"}),
        client.get("/versions"),
        client.get("/status"),
    ):
        assert_error(response, 500, "internal_error")
        assert "secret" not in response.text
        assert "Traceback" not in response.text


def test_request_id_is_taken_over_if_harmless_and_made_otherwise(client):
    assert client.get("/health", headers={"X-Request-ID": "abc-1.2_3"}).headers["X-Request-ID"] == "abc-1.2_3"
    for bad in ("a b", "x" * 65, "<script>", "é"):
        made = client.get("/health", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        assert made != bad
        assert len(made) == 32


def test_nothing_is_cached_and_no_type_is_guessed_unless_said_otherwise(client):
    headers = client.get("/versions").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_openapi_document_names_every_route_and_no_null_security(client):
    document = client.get("/openapi/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/",
        "/health",
        "/ready",
        "/metrics",
        "/setup",
        "/predict",
        "/webhook",
        "/versions",
        "/job_status",
        "/status",
        "/thumb/{project_id}/{task_id}",
    }
    assert document["components"]["securitySchemes"] == {}


def test_two_apps_in_one_process_share_nothing():
    first, second = FakeService(version="a"), FakeService(version="b")
    clients = [create_app(Settings.from_env({}), service).test_client() for service in (first, second)]
    answers = [client.post("/setup", json={"project": "1"}).json["model_version"] for client in clients]
    assert answers == ["a", "b"]
    assert b'route="/setup"' not in create_app(Settings.from_env({}), first).test_client().get("/metrics").data
