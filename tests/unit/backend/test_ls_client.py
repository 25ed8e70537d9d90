"""Tokens of both kinds, retries, and how every foreign error becomes one of ours."""

import base64
import json
import time

import httpx
import pytest

from backend.errors import LabelStudioRejected, LabelStudioUnavailable
from backend.ls_client import LabelStudioClient, parse_project

LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"


def access_token(lives_s):
    payload = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + lives_s}).encode()).decode().rstrip("=")
    return f"head.{payload}.tail"


class FakeLabelStudio:
    """Answers by path; remembers what was asked."""

    def __init__(self, answers, access_lives_s=300):
        self.answers = answers
        self.asked = []
        self.access_lives_s = access_lives_s

    def __call__(self, request):
        self.asked.append(request)
        if request.url.path == "/api/token/refresh/":
            assert json.loads(request.content) == {"refresh": PERSONAL}
            return httpx.Response(200, json={"access": access_token(self.access_lives_s)})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, key=LEGACY):
        return LabelStudioClient("http://ls", key, transport=httpx.MockTransport(self))


def headers_of(fake, path):
    return [r.headers.get("Authorization", "") for r in fake.asked if r.url.path == path]


def test_a_legacy_token_is_sent_as_it_is():
    fake = FakeLabelStudio([httpx.Response(200, json=[])])
    fake.client().backends(1)
    assert headers_of(fake, "/api/ml") == [f"Token {LEGACY}"]


def test_a_personal_access_token_is_exchanged_once_and_never_sent_itself():
    fake = FakeLabelStudio([httpx.Response(200, json=[]), httpx.Response(200, json=[])])
    client = fake.client(PERSONAL)
    client.backends(1), client.backends(1)
    sent = headers_of(fake, "/api/ml")
    assert len(sent) == 2 and all(h.startswith("Bearer head.") for h in sent)
    assert len(headers_of(fake, "/api/token/refresh/")) == 1


def test_an_access_token_about_to_end_is_renewed():
    fake = FakeLabelStudio([httpx.Response(200, json=[]), httpx.Response(200, json=[])], access_lives_s=30)
    client = fake.client(PERSONAL)
    client.backends(1), client.backends(1)
    assert len(headers_of(fake, "/api/token/refresh/")) == 2


def test_reading_is_tried_again_when_there_is_no_answer():
    fake = FakeLabelStudio([httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(200, json=[{"id": 1}])])
    assert fake.client().backends(1) == [{"id": 1}]


def test_an_import_is_not_repeated_because_it_may_have_happened():
    fake = FakeLabelStudio([httpx.ReadTimeout("slow")])
    with pytest.raises(LabelStudioUnavailable):
        fake.client().import_predictions(1, [])
    assert len(fake.asked) == 1


def all_http_errors(cls=httpx.HTTPError):
    for sub in cls.__subclasses__():
        yield sub
        yield from all_http_errors(sub)


@pytest.mark.parametrize("error", sorted(set(all_http_errors()), key=lambda e: e.__name__), ids=lambda e: e.__name__)
def test_every_error_of_the_http_library_becomes_unavailable(error):
    made = error("x", request=None, response=None) if error is httpx.HTTPStatusError else error("x")
    fake = FakeLabelStudio([made])
    with pytest.raises(LabelStudioUnavailable, match="LABEL_STUDIO_URL"):
        fake.client().import_predictions(1, [])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 302])
def test_a_no_is_not_asked_again_and_says_the_status(status):
    fake = FakeLabelStudio([httpx.Response(status, text="because")])
    with pytest.raises(LabelStudioRejected, match=str(status)) as caught:
        fake.client().project(1)
    assert caught.value.label_studio_status == status and len(fake.asked) == 1


def test_an_answer_that_is_no_json_asks_whether_the_address_is_right():
    fake = FakeLabelStudio([httpx.Response(200, text="<html>")] * 3)
    with pytest.raises(LabelStudioUnavailable, match="is LABEL_STUDIO_URL a Label Studio"):
        fake.client().project(1)


def test_pages_end_at_a_short_page_or_at_the_404_past_the_end():
    full = httpx.Response(200, json={"tasks": [{"id": i} for i in range(1000)]})
    assert len(list(FakeLabelStudio([full, httpx.Response(404)]).client().tasks(1))) == 1000
    short = httpx.Response(200, json={"tasks": [{"id": 1}]})
    assert len(list(FakeLabelStudio([full, short]).client().tasks(1))) == 1001


def test_where_nobody_answered_the_skips_are_read_from_the_whole_task():
    skip = {"id": 7, "was_cancelled": True}
    fake = FakeLabelStudio([httpx.Response(200, json=[]), httpx.Response(200, json={"id": 5, "annotations": [skip]})])
    assert fake.client().task_annotations(5) == [skip]
    answered = FakeLabelStudio([httpx.Response(200, json=[{"id": 8, "was_cancelled": False}])])
    assert [a["id"] for a in answered.client().task_annotations(5)] == [8] and len(answered.asked) == 1


def test_annotations_of_a_task_that_is_gone_are_none_not_an_error():
    assert FakeLabelStudio([httpx.Response(404)]).client().task_annotations(5) is None


def test_the_token_is_in_no_message_and_no_repr():
    fake = FakeLabelStudio([httpx.Response(401, text="no")])
    client = fake.client()
    with pytest.raises(LabelStudioRejected) as caught:
        client.project(1)
    assert LEGACY not in str(caught.value) + repr(client)


def test_a_project_is_named_by_id_and_birth():
    project = parse_project({"id": 3, "created_at": "2026-11-20T21:47:02.078876Z"})
    assert project.key == f"3-{project.created_at}" and project.created_at == 1795211222
