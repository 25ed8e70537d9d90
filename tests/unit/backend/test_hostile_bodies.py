"""More than a thousand hostile requests against the real app: no 5xx, no traceback, always our error shape.

The service behind it asserts on every call what a real one relies on (storable texts, 64-bit numbers, no
tokens), so a promise that the web layer breaks is a 500 here, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backend.app import create_app
from backend.fake_service import FakeService
from backend.settings import Settings

POSTS = ["/setup", "/predict", "/webhook", "/job_status"]
APP = create_app(Settings.from_env({"ASKFIRST_MAX_BODY_BYTES": "1000000"}), FakeService(jobs={"j": "started"}))
CLIENT = APP.test_client()
FAST = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=200
)

NASTY_TEXTS = [
    "",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "😀",
    "‮",
    "\r\nX-Evil: 1",
    "../../etc/passwd",
    "%00",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "' OR 1=1 --",
    "1.1795211221",
    "42",
    "1." * 500,
    "9" * 400,
    "-1",
    "1e309",
    "NaN",
    "A" * 10_000,
    "<!DOCTYPE x [<!ENTITY a 'b'>]><View>&a;</View>",
    "$undefined$",
    "null",
    "\ufeff",
    "\uff21\uff22",
    "٣",
]
NASTY_NUMBERS = [
    0,
    -1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    10**400,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
]
scalars = (
    st.none() | st.booleans() | st.sampled_from(NASTY_NUMBERS) | st.sampled_from(NASTY_TEXTS) | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(autouse=True, scope="module")
def quiet_log() -> Iterator[None]:
    """Thousands of lines about refused requests would only cost time."""
    with structlog.testing.capture_logs():
        yield


def deep(levels: int, leaf: Any = None) -> Any:
    value = leaf
    for _ in range(levels):
        value = [value]
    return value


def check(response: Any) -> None:
    """Never a 5xx, never a traceback; what is refused has our one shape."""
    assert response.status_code < 500, response.text
    assert "Traceback" not in response.text
    assert 'File "' not in response.text
    assert response.headers["X-Request-ID"]
    if response.status_code >= 400:
        assert set(response.json) == {"error", "message", "request_id"}


def send(path: str, body: bytes, **changes: Any) -> None:
    check(CLIENT.post(path, **({"data": body, "content_type": "application/json"} | changes)))


bodies = {
    "/setup": st.fixed_dictionaries(
        {}, optional={k: values for k in ("project", "schema", "hostname", "access_token", "extra_params")}
    ),
    "/predict": st.fixed_dictionaries(
        {},
        optional={
            "tasks": st.lists(values, max_size=4) | values,
            "project": values,
            "label_config": values,
            "params": st.fixed_dictionaries({}, optional={"context": values}) | values,
        },
    ),
    "/webhook": st.fixed_dictionaries(
        {},
        optional={
            "action": st.sampled_from(["ANNOTATION_CREATED", "START_TRAINING", "TASKS_CREATED"]) | values,
            "project": st.fixed_dictionaries({}, optional={"id": values, "token": values}) | values,
            "annotation": values,
            "task": values,
            "tasks": values,
            "annotations": values,
        },
    ),
    "/job_status": st.fixed_dictionaries({}, optional={"job": values}),
}


@pytest.mark.parametrize("path", POSTS)
@FAST
@given(data=st.data())
def test_nearly_right_bodies_with_nasty_values_are_answered_or_refused(path: str, data: st.DataObject):
    body = data.draw(bodies[path])
    ascii_only = data.draw(st.booleans())
    send(path, json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@FAST
@given(st.sampled_from(POSTS), st.binary(max_size=80) | values.map(lambda v: json.dumps(v).encode()))
def test_bodies_that_are_nothing_in_particular_are_refused(path: str, body: bytes):
    send(path, body)


@FAST
@given(
    st.sampled_from([*POSTS, "/", "/health", "/versions", "/metrics", "/thumb/1/1", "/nowhere"]),
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "BREW"]),
    st.dictionaries(
        st.sampled_from(
            [
                "Accept",
                "Authorization",
                "X-Request-ID",
                "X-Ask-First-Secret",
                "Content-Type",
                "Content-Encoding",
                "Content-Length",
                "If-Modified-Since",
                "Range",
                "X-Forwarded-For",
                "Cookie",
                "Expect",
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
        | st.sampled_from(["application/json", "text/html", "Basic Og==", "Basic =", "bytes=-1", "-1", "1" * 30]),
        max_size=4,
    ),
)
def test_any_method_with_any_headers_is_answered_or_refused(path: str, method: str, headers: dict[str, str]):
    response = CLIENT.open(path, method=method, headers=headers, data=b"{}")
    assert response.status_code < 500
    assert "Traceback" not in response.text


@FAST
@given(st.text(max_size=40) | st.sampled_from(NASTY_TEXTS), st.text(max_size=20) | st.sampled_from(NASTY_TEXTS))
def test_any_address_and_query_is_answered_or_refused(path: str, query: str):
    tail, value = quote(path, errors="replace"), quote(query, errors="replace")
    for place in ("/", "/static/", "/thumb/1/", "/versions?"):
        response = CLIENT.get(f"{place}{tail}?project={value}" if "?" not in place else f"{place}project={value}")
        assert response.status_code < 500


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("levels", [50, 99, 200, 900])
def test_deep_nesting_in_every_place_is_no_surprise(path: str, levels: int):
    for key in ("project", "schema", "extra_params", "tasks", "params", "action", "annotation", "job"):
        body = {"project": {"id": 1} if path == "/webhook" else "1", "action": "A", "tasks": [], "job": "j"}
        send(path, json.dumps(body | {key: deep(levels)}).encode())
    send(path, b'{"a":' * levels + b"1" + b"}" * levels)


@pytest.mark.parametrize("path", POSTS)
def test_nesting_of_a_hundred_thousand_levels_is_refused(path: str):
    response = CLIENT.post(path, data=b"[" * 100_000 + b"]" * 100_000, content_type="application/json")
    check(response)
    assert response.status_code == 400


schema = schemathesis.openapi.from_wsgi("/openapi/openapi.json", APP)


@schema.parametrize()
@settings(FAST, max_examples=25)
def test_every_route_does_what_its_openapi_document_says(case):
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ]
    )
