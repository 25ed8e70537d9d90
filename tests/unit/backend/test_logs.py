"""No secret reaches a log, at any level, in any format, from any library."""

from __future__ import annotations

import io
import json
import logging
from base64 import b64encode
from collections.abc import Iterator

import pytest
import structlog

from backend import logs
from backend.app import create_app
from backend.auth import SECRET_HEADER
from backend.errors import StoreUnavailable
from backend.fake_service import FakeService
from backend.settings import Settings

PASSWORD = "correct-horse-battery"
HOOK = "hook-secret-value-77"
API_KEY = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"
LEGACY = "0123456789abcdef0123456789abcdef01234567"
PROJECT_TOKEN = "invite-me-2f81"
SETTINGS = Settings.from_env(
    {
        "BASIC_AUTH_USER": "ann",
        "BASIC_AUTH_PASS": PASSWORD,
        "LABEL_STUDIO_API_KEY": API_KEY,
        "ASKFIRST_WEBHOOK_SECRET": HOOK,
        "LOG_LEVEL": "DEBUG",
    }
)
BASIC = b64encode(f"ann:{PASSWORD}".encode()).decode()
SECRETS = (PASSWORD, HOOK, API_KEY, LEGACY, PROJECT_TOKEN, BASIC)
FORMATS = ("json", "console")


@pytest.fixture(params=FORMATS)
def stream(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    chatty = {name: logging.getLogger(name).level for name in logs._CHATTY}
    stream = io.StringIO()
    logs.configure("DEBUG", secrets=logs.secrets_of(SETTINGS), fmt=request.param, stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)
    for name, old in chatty.items():
        logging.getLogger(name).setLevel(old)


def assert_clean(text: str) -> None:
    assert text, "nothing was logged, so nothing was tested"
    for secret in SECRETS:
        assert secret not in text


def test_no_request_whatever_its_outcome_leaves_a_secret_in_the_log(stream):
    service = FakeService()
    client = create_app(SETTINGS, service).test_client()
    auth = {"Authorization": f"Basic {BASIC}"}
    setup = {"project": "1.5", "schema": "<View/>", "access_token": LEGACY, "hostname": "http://x"}
    event = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": 1, "token": PROJECT_TOKEN},
        "access_token": LEGACY,
    }
    predict = {"tasks": [{}], "params": {"login": "ann", "password": PASSWORD}}
    crash = RuntimeError(f"could not send {setup} with {{'Authorization': 'Token {LEGACY}'}} to {event!r}")
    for service.error in (None, StoreUnavailable(f"redis://:{PASSWORD}@host refused"), crash):
        for headers in ({}, auth, {"Authorization": f"Token {LEGACY}"}, {SECRET_HEADER: HOOK}):
            client.post("/setup", json=setup, headers=headers)
            client.post("/setup", json=setup | {"project": [LEGACY]}, headers=headers)
            client.post("/predict", json=predict, headers=headers)
            client.post("/webhook", json=event, headers=headers)
            client.post("/webhook", json=event | {"project": {"id": LEGACY, "token": PROJECT_TOKEN}}, headers=headers)
            client.post("/webhook", data=json.dumps(event)[:-1], content_type="application/json", headers=headers)
            client.get(f"/versions?access_token={LEGACY}&project=1", headers=headers)
            client.get("/status", headers=headers)
    text = stream.getvalue()
    assert_clean(text)
    assert "Traceback" in text  # crashes are told in full, but for the secrets
    assert "could not send" in text


@pytest.mark.parametrize(
    "line",
    [
        f"access_token={LEGACY}",
        f"GET http://ls/api?token={PROJECT_TOKEN}&x=1",
        f'{{"token": "{PROJECT_TOKEN}"}}',
        f"{{'token': '{PROJECT_TOKEN}', 'id': 1}}",
        f"Authorization: Basic {BASIC}",
        f"Authorization: Token {LEGACY}",
        f"sent Bearer {API_KEY}",
        f"key {API_KEY} expired",
        f"legacy {LEGACY}",
        f"redis://:{PASSWORD}@host:6379/0",
        f"redis://user:{PROJECT_TOKEN}@host",
        f"{SECRET_HEADER}: {HOOK}",
        f"payload {json.dumps(json.dumps({'token': PROJECT_TOKEN}))}",
        f"api_key = {PROJECT_TOKEN}",
        f"Cookie: sessionid={PROJECT_TOKEN}",
        f"user gave {PASSWORD} and {HOOK}",
        f"TOKEN={PROJECT_TOKEN}",
        f"password: '{PROJECT_TOKEN}'",
    ],
)
def test_lines_of_libraries_are_masked_wherever_the_secret_stands(stream, line):
    logging.getLogger("some.library").debug("%s", line)
    structlog.get_logger("ours").debug(line)
    structlog.get_logger("ours").debug("event", detail=line)
    assert_clean(stream.getvalue())
    assert logs.MASK in stream.getvalue()


def test_values_under_telling_keys_are_masked_however_deep(stream):
    structlog.get_logger("ours").info(
        "event", token=PROJECT_TOKEN, headers={"Authorization": "short", "x": [{"password": PASSWORD}]}
    )
    assert_clean(stream.getvalue())
    assert "short" not in stream.getvalue()


def test_a_secret_with_spaces_is_masked_to_its_end(stream):
    structlog.get_logger("ours").info("event", password="two words", nested={"token": "more, words"})
    assert "words" not in stream.getvalue()


def test_tracebacks_show_no_local_variables(stream):
    def fail() -> None:
        local_value = "only-in-a-local-" + "variable"
        raise ValueError(len(local_value))

    try:
        fail()
    except ValueError:
        structlog.get_logger("ours").exception("failed")
        logging.getLogger("some.library").exception("failed")
    text = stream.getvalue()
    assert text.count("ValueError: 24") == 2
    assert "only-in-a-local-variable" not in text


def test_ordinary_words_stay_readable(stream):
    sentence = "12 tokens read; authorisation ok; basic auth is on; see http://localhost:8080/projects/7 at 10:30:00"
    logging.getLogger("some.library").info(sentence)
    assert sentence in stream.getvalue()
    assert logs.MASK not in stream.getvalue()


def test_health_and_webhook_are_quiet_above_debug_unless_something_is_wrong(stream):
    logging.getLogger().setLevel("INFO")
    service = FakeService()
    client = create_app(Settings.from_env({}), service).test_client()
    client.get("/health")
    client.post("/webhook", json={"action": "A", "project": {"id": 1}})
    assert stream.getvalue() == ""
    client.post("/setup", json={"project": "1"})
    assert stream.getvalue().count("/setup") == 1
    service.error = StoreUnavailable("down")
    client.post("/webhook", json={"action": "A", "project": {"id": 1}})
    assert "warning" in stream.getvalue()
    assert "store_unavailable" in stream.getvalue()


def test_control_characters_in_addresses_forge_neither_lines_nor_colours(stream):
    create_app(Settings.from_env({}), FakeService()).test_client().get("/x%0aERROR%1b[31m%e2%80%aeforged")
    assert len(stream.getvalue().splitlines()) == 1
    assert "forged" in stream.getvalue()
    assert not {"\x1b", "\u202e"} & set(stream.getvalue())


@pytest.mark.parametrize("stream", ["json"], indirect=True)
def test_json_lines_can_be_read_by_programs_also_after_masking(stream):
    logging.getLogger("some.library").warning("{\"token\": \"%s\"} and {'token': '%s'}", PROJECT_TOKEN, PROJECT_TOKEN)
    try:
        raise ValueError(f'{{"access_token": "{LEGACY}"}}')
    except ValueError:
        structlog.get_logger("ours").exception("failed", request_id="r1")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["logger"]) == ("warning", "some.library")
    assert (second["event"], second["request_id"]) == ("failed", "r1")
    assert "ValueError" in second["exception"]


@pytest.mark.parametrize("stream", ["json"], indirect=True)
def test_every_line_of_a_request_carries_its_id(stream):
    class Talking(FakeService):
        def setup(self, request: object) -> str:
            structlog.get_logger("inside").info("thinking")
            return "v"

    client = create_app(Settings.from_env({}), Talking()).test_client()
    client.post("/setup", json={"project": "1"}, headers={"X-Request-ID": "abc"})
    assert [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()] == ["abc", "abc"]


def test_configuring_twice_logs_once(stream):
    logs.configure("INFO", fmt="json", stream=stream)
    logging.getLogger("some.library").warning("once")
    assert stream.getvalue().count("once") == 1


def test_every_secret_setting_is_known_to_the_mask():
    assert set(logs.secrets_of(SETTINGS)) == {PASSWORD, HOOK, API_KEY}
