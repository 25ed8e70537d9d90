"""Who may come in: basic auth everywhere, the webhook secret at /webhook alone."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from typing import Any

import pytest

from backend.app import create_app
from backend.auth import SECRET_HEADER, Gate
from backend.errors import ConfigError, Unauthorized
from backend.fake_service import FakeService
from backend.settings import Settings

EVENT: dict[str, Any] = {"action": "ANNOTATION_CREATED", "project": {"id": 1}}
PATHS = [
    "/",
    "/health",
    "/ready",
    "/setup",
    "/predict",
    "/webhook",
    "/versions",
    "/job_status",
    "/metrics",
    "/status",
    "/thumb/1/1",
    "/openapi/openapi.json",
    "/static/status.css",
    "/nowhere",
    "/train",
]


def basic(user: str, password: str, encoding: str = "utf-8") -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode(encoding)).decode()}


@cache
def client(secret: str = "", **env: str):
    return create_app(Settings.from_env(env), FakeService(), webhook_secret=secret).test_client()


def guarded(secret: str = "s3cret-of-the-hook"):
    return client(secret, BASIC_AUTH_USER="ann", BASIC_AUTH_PASS="correct horse")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_no_route_is_open_without_credentials(path, method):
    response = guarded().open(path, method=method)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Basic realm=")
    if method != "HEAD":
        assert response.json["error"] == "unauthorized"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("ann", "wrong"),
        basic("bob", "correct horse"),
        basic("", ""),
        basic("ann", "correct horse "),
        {"Authorization": ""},
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + b64encode(b"ann").decode()},
        {"Authorization": "Bearer correct horse"},
        {"Authorization": "Basic \xff\xfe"},
        {"Authorization": "Digest username=ann"},
    ],
)
def test_wrong_credentials_are_refused_and_never_repeated(headers):
    response = guarded().get("/health", headers=headers)
    assert response.status_code == 401
    assert "horse" not in response.text


@pytest.mark.parametrize("path", ["/", "/health", "/status", "/metrics", "/static/status.css", "/openapi/openapi.json"])
def test_right_credentials_open_every_route(path):
    with guarded().get(path, headers=basic("ann", "correct horse")) as response:
        assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_credentials_with_umlauts_work_from_browsers_and_from_python_requests(encoding):
    guarded = client(BASIC_AUTH_USER="jörg", BASIC_AUTH_PASS="schlüssel")
    assert guarded.get("/health", headers=basic("jörg", "schlüssel", encoding)).status_code == 200


def test_credentials_beyond_latin_work():
    guarded = client(BASIC_AUTH_USER="аня", BASIC_AUTH_PASS="ключ-от-двери")
    assert guarded.get("/health", headers=basic("аня", "ключ-от-двери")).status_code == 200


def test_secret_opens_the_webhook_to_label_studio_which_sends_no_basic_auth_there():
    assert guarded().post("/webhook", json=EVENT, headers={SECRET_HEADER: "s3cret-of-the-hook"}).status_code == 201


@pytest.mark.parametrize("path", [p for p in PATHS if p != "/webhook"] + ["/webhook/x", "/x/webhook"])
def test_secret_opens_nothing_else(path):
    assert guarded().post(path, json=EVENT, headers={SECRET_HEADER: "s3cret-of-the-hook"}).status_code == 401


@pytest.mark.parametrize("wrong", ["", "s3cret", "s3cret-of-the-hook ", "S3CRET-OF-THE-HOOK", "\xe9"])
def test_wrong_secret_is_refused_even_with_right_basic_auth_and_even_where_no_auth_is_set(wrong):
    headers = {SECRET_HEADER: wrong}
    both = headers | basic("ann", "correct horse")
    assert guarded().post("/webhook", json=EVENT, headers=both).status_code == 401
    assert client("s3cret-of-the-hook").post("/webhook", json=EVENT, headers=headers).status_code == 401


def test_start_training_comes_with_basic_auth_and_passes():
    event = EVENT | {"action": "START_TRAINING"}
    assert guarded().post("/webhook", json=event, headers=basic("ann", "correct horse")).status_code == 201


def test_everything_is_open_when_nothing_is_set():
    assert client().post("/webhook", json=EVENT).status_code == 201
    assert client("s3cret-of-the-hook").post("/webhook", json=EVENT).status_code == 201


@pytest.mark.parametrize("header", ["", "x"])
def test_an_empty_secret_of_ours_is_no_key(header):
    guarded = client("", BASIC_AUTH_USER="ann", BASIC_AUTH_PASS="pw")
    assert guarded.post("/webhook", json=EVENT, headers={SECRET_HEADER: header}).status_code == 401


def test_secret_of_the_settings_counts_unless_another_is_given():
    env = {"ASKFIRST_WEBHOOK_SECRET": "from-settings", "BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "pw"}
    assert client(**env).post("/webhook", json=EVENT, headers={SECRET_HEADER: "from-settings"}).status_code == 201
    assert client("given", **env).post("/webhook", json=EVENT, headers={SECRET_HEADER: "given"}).status_code == 201
    other = client("given", **env).post("/webhook", json=EVENT, headers={SECRET_HEADER: "from-settings"})
    assert other.status_code == 401


@pytest.mark.parametrize("env", [{"BASIC_AUTH_USER": "ann"}, {"BASIC_AUTH_PASS": "pw"}])
def test_half_set_credentials_stop_the_start_instead_of_leaving_the_door_open(env):
    with pytest.raises(ConfigError, match="BASIC_AUTH_"):
        client(**env)


def test_user_with_a_colon_cannot_be_told_from_its_password_and_stops_the_start():
    with pytest.raises(ConfigError, match="colon"):
        client(BASIC_AUTH_USER="a:b", BASIC_AUTH_PASS="pw")


def test_gate_shows_no_secret_when_printed():
    gate = Gate.from_settings(Settings.from_env({"BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "pw"}), "s3cret")
    assert repr(gate) == "Gate()"


def test_every_comparison_goes_through_the_constant_time_function(monkeypatch):
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("backend.auth.hmac.compare_digest", compare)
    gate = Gate.from_settings(Settings.from_env({"BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "pw"}), "s3cret")
    gate.check("/webhook", None, "s3cret")
    gate.check("/health", basic("ann", "pw")["Authorization"], None)
    with pytest.raises(Unauthorized):
        gate.check("/health", basic("ann", "p")["Authorization"], None)
    assert len(compared) == 3
    assert set(compared) == {(32, 32)}  # digests: neither length tells anything about a secret


def test_openapi_document_says_that_credentials_are_needed():
    document = guarded().get("/openapi/openapi.json", headers=basic("ann", "correct horse")).json
    assert document["components"]["securitySchemes"] == {"basic": {"type": "http", "scheme": "basic"}}
    assert document["security"] == [{"basic": []}]
