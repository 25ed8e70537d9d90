"""Fetching image bytes: every kind of address, every way to fail. No network: hosts are mocked."""

import base64
import contextlib
import errno
import os
import stat
import threading
import zlib
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend import images
from backend.addresses import is_metadata
from backend.errors import ImageUnavailable, LabelStudioUnavailable
from backend.image_cache import ImageCache
from backend.images import ImageFetcher

HOME = "http://label-studio:8080"
TOKEN = {"Authorization": "Token secret"}
PNG = b"\x89PNG not really"


class Net:
    """A network of one function; remembers requests, hands out a clock that sleeping and slow servers move."""

    def __init__(self, answer):
        self.answer = answer
        self.requests: list[httpx.Request] = []
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self, request):
        self.requests.append(request)
        found = self.answer(request)
        if isinstance(found, Exception):
            raise found
        return found

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    @property
    def last(self):
        return self.requests[-1]


@pytest.fixture
def make(tmp_path):
    fetchers = []

    def build(answer=lambda request: httpx.Response(200, content=PNG), **changes):
        net = Net(answer)
        values = {
            "label_studio_url": HOME,
            "ls_auth": lambda: TOKEN,
            "cache_dir": tmp_path / "cache",
            "max_bytes": 1000,
            "timeout_s": 10.0,
            "client": httpx.Client(transport=httpx.MockTransport(net)),
            "resolve": lambda host, port: ["93.184.216.34"],
            "sleep": net.sleep,
            "clock": lambda: net.now,
        }
        fetcher = ImageFetcher(**{**values, **changes})
        fetchers.append(fetcher)
        return fetcher, net

    yield build
    for fetcher in fetchers:
        fetcher.close()


def refused(fetcher, uri, task_id=5):
    with pytest.raises(ImageUnavailable) as caught:
        fetcher.fetch(uri, task_id)
    assert caught.value.task_id == task_id
    return caught.value


# ---- which request an address becomes, and who sees the token


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("/data/upload/3/0a1b2c3d-cat%20%C3%B6.png", f"{HOME}/data/upload/3/0a1b2c3d-cat%20%C3%B6.png"),
        ("/data/upload/3/cat ö.png", f"{HOME}/data/upload/3/cat%20%C3%B6.png"),
        ("upload/3/cat.png", f"{HOME}/data/upload/3/cat.png"),
        ("/upload/3/cat.png", f"{HOME}/data/upload/3/cat.png"),
        ("/data/local-files/?d=dir/f%201.png", f"{HOME}/data/local-files/?d=dir/f%201.png"),
        ("/data/local-files?d=dir/a%26b.png", f"{HOME}/data/local-files/?d=dir/a%26b.png"),
        ("/data/local-files/?d=dir/x/../f.png", f"{HOME}/data/local-files/?d=dir/f.png"),
        ("http://localhost:8080/data/local-files/?d=f.png", f"{HOME}/data/local-files/?d=f.png"),
        ("http://label-studio:8080/data/upload/3/cat.png", f"{HOME}/data/upload/3/cat.png"),
        ("https://label-studio:8080/data/upload/3/cat.png", f"{HOME}/data/upload/3/cat.png"),
        (
            "/storage-data/uploaded/?filepath=upload/3/c.png",
            f"{HOME}/storage-data/uploaded/?filepath=upload/3/c.png",
        ),
        ("/tasks/9/resolve/?fileuri=abc", f"{HOME}/tasks/9/resolve/?fileuri=abc"),
    ],
)
def test_addresses_of_label_studio_are_asked_there_with_the_token(make, uri, url):
    fetcher, net = make()
    assert fetcher.fetch(uri, 5) == PNG
    assert str(net.last.url) == url
    assert net.last.headers["Authorization"] == "Token secret"


@pytest.mark.parametrize("uri", ["s3://bucket/a b/ö.png", "gs://bucket/a.png", "azure-blob://container/a.png"])
def test_cloud_addresses_are_resolved_through_the_task(make, uri):
    fetcher, net = make()
    fetcher.fetch(uri, 5)
    assert net.last.url.path == "/tasks/5/presign/"
    assert base64.urlsafe_b64decode(net.last.url.params["fileuri"]).decode() == uri
    assert "Authorization" in net.last.headers


@pytest.mark.parametrize(
    "uri",
    [
        "https://images.example/a.png?size=2",
        "http://label-studio:9000/data/upload/1/a.png",
        "http://label-studio/a.png",
    ],
)
def test_other_hosts_and_other_ports_never_see_the_token(make, uri):
    fetcher, net = make()
    assert fetcher.fetch(uri, 5) == PNG
    assert str(net.last.url) == uri
    assert "Authorization" not in net.last.headers


def test_label_studio_below_a_path_is_asked_below_that_path(make):
    fetcher, net = make(label_studio_url="https://host/label-studio/")
    fetcher.fetch("/label-studio/data/upload/1/a.png", 5)
    fetcher.fetch("/data/upload/1/b.png", 5)
    paths = [request.url.path for request in net.requests]
    assert paths == ["/label-studio/data/upload/1/a.png", "/label-studio/data/upload/1/b.png"]


@pytest.mark.parametrize(
    "uri",
    ["/api/current-user/token", "/data/upload/../../api/projects/", "/data/upload/%2e%2e/%2e%2e/api/projects/",
     "/logout",
     "http://label-studio:8080/api/projects/", "/data/upload/..\\..\\api", "/data/local-files/?d=../../etc/passwd",
     "/data/local-files/?d=", "/data/local-files/", "/data/local-files/?d=%00", "/data/local-files/?d=a&d=../b"],
)  # fmt: skip
def test_our_token_opens_nothing_but_files(make, uri):
    fetcher, net = make()
    refused(fetcher, uri)
    assert net.requests == []


@pytest.mark.parametrize("uri", ["", "cat.png", "file:///etc/passwd", "ftp://h/a.png", "//h/a.png", "http://", "http://h:x/",
                                 "http://[::1", "http://h/\n", "javascript:1", "C:\\a", "s3://b/a.png"])  # fmt: skip
def test_what_is_no_address_is_refused_without_a_request(make, uri):
    fetcher, net = make()
    refused(fetcher, uri, None)
    assert net.requests == []


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.text("/.:?=%#@[]data-uploc", max_size=40))
def test_no_address_raises_anything_but_image_unavailable(tmp_path_factory, uri):
    net = Net(lambda request: httpx.Response(200, content=PNG))
    fetcher = ImageFetcher(
        label_studio_url=HOME, ls_auth=dict, cache_dir=tmp_path_factory.getbasetemp() / "fuzz", cache_bytes=0,
        client=httpx.Client(transport=httpx.MockTransport(net)), resolve=lambda host, port: [],
    )  # fmt: skip
    with contextlib.suppress(ImageUnavailable):
        assert fetcher.fetch(uri, 1)


# ---- redirects


def test_a_redirect_to_a_signed_url_is_followed_without_the_token(make):
    def answer(request):
        if request.url.host == "label-studio":
            return httpx.Response(303, headers={"Location": "https://bucket.s3.example/a.png?sig=1"})
        return httpx.Response(200, content=PNG)

    fetcher, net = make(answer)
    assert fetcher.fetch("s3://bucket/a.png", 5) == PNG
    assert "Authorization" in net.requests[0].headers
    assert "Authorization" not in net.requests[1].headers


def test_a_foreign_host_cannot_steer_our_token_to_label_studio(make):
    def answer(request):
        if request.url.host == "evil.example":
            return httpx.Response(302, headers={"Location": f"{HOME}/api/projects/1/export"})
        return httpx.Response(200, content=PNG)

    fetcher, net = make(answer)
    fetcher.fetch("http://evil.example/a.png", 5)
    assert all("Authorization" not in request.headers for request in net.requests)


def test_a_relative_redirect_within_label_studio_keeps_the_token(make):
    def answer(request):
        if request.url.path == "/static/a.png":
            return httpx.Response(301, headers={"Location": "/static/b.png"})
        return httpx.Response(200, content=PNG)

    fetcher, net = make(answer)
    fetcher.fetch("/static/a.png", 5)
    assert net.last.headers["Authorization"] == "Token secret"


def test_endless_redirects_end(make):
    fetcher, net = make(lambda request: httpx.Response(302, headers={"Location": str(request.url)}))
    assert "redirects" in refused(fetcher, "http://h.example/a").reason
    assert len(net.requests) == images.MAX_REDIRECTS + 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http:///x", "ftp://h/x"])
def test_a_redirect_out_of_the_web_is_refused(make, target):
    fetcher, _ = make(lambda request: httpx.Response(302, headers={"Location": target}))
    assert "redirects" in refused(fetcher, "http://h.example/a").reason


# ---- metadata services


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "100.100.100.200",
    ],
)
def test_metadata_and_link_local_addresses_are_known(address):
    assert is_metadata(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "93.184.216.34", "::1", "2606:2800::1", "name"]
)
def test_other_addresses_are_not_taken_for_metadata(address):
    assert not is_metadata(address)


@pytest.mark.parametrize("uri", ["http://169.254.169.254/latest", "http://[fe80::1]/x", "http://[::ffff:a9fe:a9fe]/x"])
def test_a_metadata_address_is_never_asked(make, uri):
    fetcher, net = make()
    assert "link-local" in refused(fetcher, uri).reason
    assert net.requests == []


def test_a_name_that_leads_to_metadata_is_never_asked_not_even_by_redirect(make):
    fetcher, net = make(
        lambda request: httpx.Response(302, headers={"Location": "http://inner.example/"}),
        resolve=lambda host, port: ["169.254.169.254"] if host == "inner.example" else ["93.184.216.34"],
    )
    assert "link-local" in refused(fetcher, "http://outer.example/a").reason
    assert [request.url.host for request in net.requests] == ["outer.example"]


def test_an_answer_from_metadata_is_not_read_even_if_the_name_looked_harmless(make):
    class Stream:
        def get_extra_info(self, name):
            return ("169.254.169.254", 80) if name == "server_addr" else None

    fetcher, _ = make(lambda request: httpx.Response(200, content=PNG, extensions={"network_stream": Stream()}))
    assert "link-local" in refused(fetcher, "http://rebinding.example/a").reason


# ---- limits


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not(make):
    fetcher, net = make(lambda request: httpx.Response(200, content=b"x" * int(request.url.path[1:])))
    assert len(fetcher.fetch("http://h.example/1000")) == 1000
    assert "ASKFIRST_IMAGE_MAX_BYTES" in refused(fetcher, "http://h.example/1001").reason
    assert len(net.requests) == 2


def test_reading_stops_at_the_limit_when_the_length_is_not_announced(make):
    sent = []

    def body():
        for _ in range(10_000):
            sent.append(1)
            yield b"x" * 500

    fetcher, _ = make(lambda request: httpx.Response(200, content=body()))
    refused(fetcher, "http://h.example/a")
    assert len(sent) < 200


def test_a_compressed_answer_counts_unpacked(make):
    packed = zlib.compress(b"x" * 5000)
    fetcher, _ = make(lambda request: httpx.Response(200, content=packed, headers={"Content-Encoding": "deflate"}))
    assert "bytes" in refused(fetcher, "http://h.example/a").reason


def test_a_server_that_drips_is_given_up_at_the_time_limit(make):
    def body():
        for _ in range(100):
            net.now += 3
            yield b"x" * 70_000

    fetcher, net = make(lambda request: httpx.Response(200, content=body()), max_bytes=10**8)
    error = refused(fetcher, "http://h.example/a")
    assert "10 s" in error.reason
    assert error.retryable
    assert net.now <= 15


def test_every_request_gets_what_is_left_of_the_time_limit(make):
    def answer(request):
        net.now += 4
        return httpx.Response(302, headers={"Location": "/next"})

    fetcher, net = make(answer)
    refused(fetcher, "http://h.example/a")
    assert [r.extensions["timeout"]["read"] for r in net.requests[:2]] == [10, 6]
    assert net.requests[0].extensions["timeout"]["connect"] == images.CONNECT_S


# ---- failures


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_failure_that_may_pass_is_tried_again_and_stays_retryable(make, status):
    fetcher, net = make(lambda request: httpx.Response(status))
    assert refused(fetcher, "http://h.example/a").retryable
    assert len(net.requests) == images.TRIES
    assert net.slept == [0.2, 0.4]


def test_a_second_try_may_succeed(make):
    answers = iter([httpx.ConnectError("refused"), httpx.Response(200, content=PNG)])
    fetcher, _ = make(lambda request: next(answers))
    assert fetcher.fetch("http://h.example/a") == PNG


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206])
def test_a_failure_that_stays_is_not_tried_again(make, status):
    fetcher, net = make(lambda request: httpx.Response(status))
    assert not refused(fetcher, "http://h.example/a").retryable
    assert len(net.requests) == 1


def every_httpx_error():
    found, todo = [], [httpx.HTTPError, httpx.InvalidURL, httpx.StreamError]
    while todo:
        kind = todo.pop()
        todo.extend(kind.__subclasses__())
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", every_httpx_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_httpx_becomes_image_unavailable(make, kind):
    def answer(request):
        if kind is httpx.HTTPStatusError:
            return kind("boom", request=request, response=httpx.Response(500))
        if kind in (httpx.StreamConsumed, httpx.ResponseNotRead, httpx.RequestNotRead, httpx.StreamClosed):
            return kind()
        return kind("boom")

    fetcher, _ = make(answer)
    assert refused(fetcher, "http://h.example/a").reason


@pytest.mark.parametrize(
    ("uri", "status", "body", "words"),
    [
        ("/data/upload/1/a.png", 401, b"", "LABEL_STUDIO_API_KEY"),
        ("/data/upload/1/a.png", 404, b"", "import the image again"),
        # as recorded from Label Studio 1.23.2 for an upload that was deleted
        (
            "/data/upload/1/a.png",
            500,
            b"{\"detail\":\"'NoneType' object has no attribute 'has_permission'\"}",
            "gone",
        ),
        ("/data/local-files/?d=a.png", 404, b"", "Local Files storage"),
        ("/data/local-files/?d=a.png", 403, b"", "LOCAL_FILES_SERVING_ENABLED"),
        ("s3://b/a.png", 404, b"", "Cloud Storage"),
        ("s3://b/a.png", 403, b"", "403"),
    ],
)
def test_refusals_of_label_studio_say_what_to_do(make, uri, status, body, words):
    fetcher, net = make(lambda request: httpx.Response(status, content=body))
    error = refused(fetcher, uri)
    assert words in error.reason
    assert not error.retryable
    assert len(net.requests) == 1


def test_a_busy_label_studio_is_asked_again_for_an_upload(make):
    fetcher, net = make(lambda request: httpx.Response(500, content=b"database is locked"))
    assert refused(fetcher, "/data/upload/1/a.png").retryable
    assert len(net.requests) == images.TRIES


def test_a_redirect_to_the_log_in_page_means_a_wrong_token(make):
    fetcher, _ = make(lambda request: httpx.Response(302, headers={"Location": "/user/login/?next=/x"}))
    assert "LABEL_STUDIO_API_KEY" in refused(fetcher, "/data/upload/1/a.png").reason


def test_a_web_page_in_place_of_an_image_is_not_taken_for_one(make):
    fetcher, _ = make(lambda request: httpx.Response(200, html="  <html>sign in</html>"))
    assert "web page" in refused(fetcher, "http://h.example/a.png").reason


def test_an_empty_file_is_refused(make):
    fetcher, _ = make(lambda request: httpx.Response(200, content=b""))
    assert "empty" in refused(fetcher, "http://h.example/a.png").reason


def test_a_token_that_cannot_be_renewed_now_is_worth_another_try(make):
    def no_token():
        raise LabelStudioUnavailable("renew the access token", "timed out")

    fetcher, _ = make(ls_auth=no_token)
    assert refused(fetcher, "/data/upload/1/a.png").retryable


def test_an_untrusted_certificate_names_the_setting(make):
    fetcher, _ = make(lambda request: httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"))
    error = refused(fetcher, "https://h.example/a")
    assert "VERIFY_SSL" in error.reason
    assert not error.retryable


@pytest.mark.parametrize(
    "uri", ["http://user:passw0rd@h.example:x/a.png?sig=s3cret", "ftp://user:passw0rd@h/a?sig=s3cret"]
)
def test_messages_repeat_no_passwords_and_signatures(make, uri):
    fetcher, _ = make()
    message = str(refused(fetcher, uri))
    assert "passw0rd" not in message
    assert "s3cret" not in message


# ---- data: addresses


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        ("data:image/png;base64," + base64.b64encode(PNG).decode(), PNG),
        ("data:image/png;BASE64,iVBO Rw", b"\x89PNG"),
        ("data:image/png;base64,_-8", b"\xff\xef"),
        ("data:image/png;base64,iVBORw%3D%3D", b"\x89PNG"),
        ("data:image/svg+xml,%3Csvg/%3E", b"<svg/>"),
    ],
)
def test_data_addresses_are_decoded(make, uri, data):
    fetcher, net = make()
    assert fetcher.fetch(uri) == data
    assert net.requests == []


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64,@@@", "data:", "data:image/png;base64", "data:image/png;base64,", "data:,"]
)
def test_broken_data_addresses_are_refused(make, uri):
    refused(make()[0], uri)


def test_a_data_address_obeys_the_size_limit(make):
    fetcher, _ = make()
    assert len(fetcher.fetch("data:;base64," + base64.b64encode(b"x" * 1000).decode())) == 1000
    refused(fetcher, "data:;base64," + base64.b64encode(b"x" * 1001).decode())
    refused(fetcher, "data:," + "x" * 10_000)


# ---- files at hand


@pytest.fixture
def folders(tmp_path):
    root, media = tmp_path / "files", tmp_path / "media"
    (root / "dir").mkdir(parents=True)
    (media / "upload" / "3").mkdir(parents=True)
    (root / "dir" / "f 1.png").write_bytes(b"local")
    (media / "upload" / "3" / "cat ö.png").write_bytes(b"upload")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return {"document_root": root, "media_dir": media}


@pytest.mark.parametrize(
    ("uri", "data"),
    [("/data/local-files/?d=dir/f%201.png", b"local"), ("/data/upload/3/cat%20%C3%B6.png", b"upload")],
)
def test_files_of_label_studio_are_read_from_its_folders(make, folders, uri, data):
    fetcher, net = make(**folders)
    assert fetcher.fetch(uri, 5) == fetcher.peek(uri) == data
    assert net.requests == []


def test_a_file_that_is_not_in_the_folder_is_asked_of_label_studio(make, folders):
    fetcher, net = make(**folders)
    assert fetcher.fetch("/data/local-files/?d=dir/other.png") == PNG
    assert fetcher.fetch("/data/local-files/?d=dir") == PNG
    assert len(net.requests) == 2


@pytest.mark.parametrize(
    "uri",
    [
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=dir/../../secret.png",
        "/data/upload/../../secret.png",
    ],
)
def test_paths_do_not_leave_their_folder(make, folders, uri):
    fetcher, net = make(**folders)
    refused(fetcher, uri)
    assert net.requests == []


def test_an_absolute_path_stays_below_the_document_root(make, folders):
    fetcher, net = make(**folders)
    fetcher.fetch("/data/local-files/?d=/dir/f%201.png")
    assert net.requests == []
    fetcher.fetch(f"/data/local-files/?d={folders['document_root'].parent}/secret.png")
    assert len(net.requests) == 1


def test_a_folder_linked_directly_into_the_root_is_read_from_disk(make, folders, tmp_path):
    outside = tmp_path / "elsewhere"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "a.png").write_bytes(b"linked")
    (outside / "out.png").symlink_to(tmp_path / "secret.png")
    (folders["document_root"] / "mine").symlink_to(outside)
    fetcher, net = make(**folders)
    assert fetcher.fetch("/data/local-files/?d=mine/deep/a.png") == b"linked"
    assert net.requests == []
    assert fetcher.fetch("/data/local-files/?d=mine/out.png") == PNG
    assert len(net.requests) == 1


def test_a_link_that_leads_outside_is_left_to_label_studio_to_permit(make, folders, tmp_path):
    (folders["document_root"] / "link.png").symlink_to(tmp_path / "secret.png")
    fetcher, net = make(**folders)
    assert fetcher.fetch("/data/local-files/?d=link.png") == PNG
    assert unquote(str(net.last.url)).endswith("?d=link.png")


def test_the_whole_disk_is_not_accepted_as_document_root(make, tmp_path):
    (tmp_path / "x.png").write_bytes(b"local")
    fetcher, net = make(document_root=Path("/"))
    assert fetcher.fetch(f"/data/local-files/?d={tmp_path}/x.png") == PNG
    assert len(net.requests) == 1


def test_what_is_no_regular_file_is_not_opened(make, folders):
    os.mkfifo(folders["document_root"] / "pipe.png")
    fetcher, _ = make(**folders)
    assert fetcher.fetch("/data/local-files/?d=pipe.png") == PNG


def test_files_on_disk_obey_the_size_limit(make, folders):
    (folders["document_root"] / "big.png").write_bytes(b"x" * 1001)
    (folders["document_root"] / "none.png").write_bytes(b"")
    fetcher, _ = make(**folders)
    refused(fetcher, "/data/local-files/?d=big.png")
    refused(fetcher, "/data/local-files/?d=none.png")


# ---- cache


def test_an_image_is_fetched_once(make):
    fetcher, net = make()
    assert fetcher.peek("http://h.example/a") is None
    assert [fetcher.fetch("http://h.example/a") for _ in range(3)] == [PNG] * 3
    assert fetcher.peek("http://h.example/a") == PNG
    assert len(net.requests) == 1


def test_a_cloud_file_is_fetched_once_for_all_its_tasks(make):
    fetcher, net = make()
    fetcher.fetch("s3://b/a.png", 1)
    fetcher.fetch("s3://b/a.png", 2)
    assert len(net.requests) == 1


def test_two_installations_of_label_studio_do_not_share_uploads(make):
    fetcher, _ = make()
    other, net = make(label_studio_url="http://other:8080")
    fetcher.fetch("/data/upload/1/a.png")
    other.fetch("/data/upload/1/a.png")
    assert len(net.requests) == 1


def test_failures_are_not_kept(make):
    answers = iter([httpx.Response(404), httpx.Response(200, content=PNG)])
    fetcher, _ = make(lambda request: next(answers))
    refused(fetcher, "http://h.example/a")
    assert fetcher.fetch("http://h.example/a") == PNG


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def size(folder):
    return sum(p.stat().st_size for p in files(folder))


def test_the_cache_stays_within_its_limit_and_drops_the_longest_unused_first(tmp_path):
    cache = ImageCache(tmp_path, 1000)
    for i in range(9):
        cache.put(f"a{i}", b"x" * 100)
    for i in range(9):
        os.utime(cache._path(f"a{i}"), (i, i))  # older than any real use
    assert cache.get("a0")
    cache.put("b", b"y" * 200)
    kept = {name for name in ("a0", "a1", "a2", "a3", "a8", "b") if cache.get(name)}
    assert kept == {"a0", "a3", "a8", "b"}
    assert size(tmp_path) <= 1000


def test_the_cache_counts_what_other_processes_wrote(tmp_path):
    first, second = ImageCache(tmp_path, 1000), ImageCache(tmp_path, 1000)
    for i in range(40):
        (first if i % 2 else second).put(f"a{i}", b"x" * 100)
    assert size(tmp_path) <= 1000


def test_a_cache_of_zero_bytes_keeps_nothing(tmp_path):
    cache = ImageCache(tmp_path, 0)
    cache.put("a", PNG)
    assert cache.get("a") is None
    assert files(tmp_path) == []


def test_an_image_larger_than_the_cache_does_not_empty_it(tmp_path):
    cache = ImageCache(tmp_path, 1000)
    cache.put("a", b"x" * 100)
    cache.put("big", b"x" * 5000)
    assert cache.get("a")
    assert cache.get("big") is None


def test_half_written_files_are_never_seen_and_cleared_away_when_old(tmp_path):
    cache = ImageCache(tmp_path, 1000)
    (tmp_path / "ab").mkdir()
    old, young = tmp_path / "ab" / ".x.part", tmp_path / "ab" / ".y.part"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.put("a", PNG)
    assert not old.exists()
    assert young.exists()


def test_a_truncated_cache_file_is_a_miss(tmp_path):
    cache = ImageCache(tmp_path, 1000)
    cache.put("a", PNG)
    files(tmp_path)[0].write_bytes(b"")
    assert cache.get("a") is None


def test_a_full_disk_makes_the_cache_slow_and_not_the_fetch_fail(make, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    fetcher, net = make()
    monkeypatch.setattr(Path, "write_bytes", full)
    assert [fetcher.fetch("http://h.example/a") for _ in range(2)] == [PNG, PNG]
    assert len(net.requests) == 2


def test_threads_share_a_fetcher_and_its_cache(make, tmp_path):
    fetcher, _ = make(lambda request: httpx.Response(200, content=request.url.path.encode() * 20), cache_bytes=3000)
    wrong = []

    def work(start):
        for i in range(start, start + 60):
            name = f"/{i % 40}"
            if fetcher.fetch(f"http://h.example{name}") != name.encode() * 20:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(k * 7,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert size(tmp_path / "cache") <= 3000 * 1.2


def test_cache_files_are_regular_files_below_the_folder_whatever_the_address(tmp_path):
    cache = ImageCache(tmp_path / "c", 10_000)
    for address in ["../../x", "a" * 5000, "\ud800", "http://h/\0"]:
        cache.put(address, PNG)
        assert cache.get(address) == PNG
    assert len(files(tmp_path / "c")) == 4
    assert all(stat.S_ISREG(p.stat().st_mode) for p in files(tmp_path))
