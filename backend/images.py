"""The bytes of a task's image, wherever the task says they are. See `addresses` for the kinds of address.

One fetch has one time limit (looked at between pieces) and one size limit over all redirects and tries.
Files of Label Studio are read straight from its folders when those are given and hold the file. What came
over HTTP goes into the disk cache and is not asked for again: Label Studio never reuses the name of an upload,
and other files that change under the same address need a new address.
"""

from __future__ import annotations

import base64
import binascii
import stat
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

import httpx

from .addresses import (
    Address,
    Foreign,
    InLabelStudio,
    Inline,
    Resolver,
    is_metadata,
    read_address,
    refuse_metadata,
    resolve_host,
    shown,
)
from .errors import BackendError, ImageUnavailable, excerpt
from .image_cache import ImageCache

TRIES = 3  # of a request that failed in a way that may pass
FIRST_PAUSE_S = 0.2  # before the second try; doubles
MAX_REDIRECTS = 5
CONNECT_S = 5.0
CONNECTIONS = 32
_CHUNK = 64 * 1024
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class ImageFetcher:
    """Fetches images for worker threads; safe to share between threads.

    Args:
        label_studio_url: address under which this process reaches Label Studio.
        ls_auth: headers that Label Studio accepts now; called per request, since access tokens live minutes.
        cache_dir, cache_bytes: disk cache for what came over HTTP; 0 bytes keeps none.
        max_bytes: largest image file that is read.
        timeout_s: longest time for one `fetch`, in seconds.
        document_root: LOCAL_FILES_DOCUMENT_ROOT of Label Studio as a folder here; None or "/": over HTTP.
        media_dir: `<data dir>/media` of Label Studio as a folder here; None: over HTTP.
        client, resolve, sleep, clock: for tests.
    """

    def __init__(
        self,
        *,
        label_studio_url: str,
        ls_auth: Callable[[], dict[str, str]],
        cache_dir: Path,
        cache_bytes: int = 2 * 2**30,
        max_bytes: int = 50 * 2**20,
        timeout_s: float = 20.0,
        document_root: Path | None = None,
        media_dir: Path | None = None,
        verify_ssl: bool = True,
        client: httpx.Client | None = None,
        resolve: Resolver = resolve_host,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = label_studio_url.rstrip("/")
        self._home_parts = urlsplit(self._home)
        self._ls_auth = ls_auth
        self._cache = ImageCache(cache_dir, cache_bytes)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        # The whole disk as a root would turn every readable file of this machine into an image.
        self._document_root = None if document_root in (None, Path("/")) else document_root
        self._media_dir = media_dir
        self._client = client or httpx.Client(
            verify=verify_ssl,
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            headers={"User-Agent": "ask-first", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )
        self._resolve = resolve
        self._sleep = sleep
        self._clock = clock

    def fetch(self, uri: str, task_id: int | None = None) -> bytes:
        """The image file, undecoded; 1 to `max_bytes` bytes.

        Raises:
            ImageUnavailable: says why and what to do; `retryable` if the cause may pass by itself.
        """
        address = read_address(uri, self._home, task_id)
        at_hand = self._at_hand(address, task_id)
        if at_hand is not None:
            return at_hand
        data = self._download(address, task_id)
        self._cache.put(self._key(address), data)
        return data

    def peek(self, uri: str, task_id: int | None = None) -> bytes | None:
        """The image file if it is at hand without any request; None otherwise."""
        try:
            return self._at_hand(read_address(uri, self._home, task_id), task_id)
        except ImageUnavailable:
            return None

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    # ---- without a request

    def _at_hand(self, address: Address, task_id: int | None) -> bytes | None:
        if isinstance(address, Inline):
            return self._inline(address.uri, task_id)
        root = self._folder_of(address) if isinstance(address, InLabelStudio) else None
        if root is not None and isinstance(address, InLabelStudio):
            found = self._from_disk(root, address.on_disk, task_id)
            if found is not None:
                return found
        return self._cache.get(self._key(address))

    def _folder_of(self, address: InLabelStudio) -> Path | None:
        if address.kind == "upload":
            return self._media_dir
        return self._document_root if address.kind == "local file" else None

    def _from_disk(self, root: Path, relative: str, task_id: int | None) -> bytes | None:
        """The file below `root`; None if it is not there or a link leads outside (Label Studio decides)."""
        try:
            path = (root / relative).resolve(strict=True)
            if not self._is_inside(path, root, Path(relative)) or not stat.S_ISREG(path.stat().st_mode):
                return None
            with path.open("rb") as file:
                data = file.read(self._max_bytes + 1)
        except (OSError, ValueError):
            return None
        if len(data) > self._max_bytes:
            raise self._too_large(task_id)
        if not data:
            raise ImageUnavailable(task_id, "the file is empty; replace it")
        return data

    @staticmethod
    def _is_inside(path: Path, root: Path, relative: Path) -> bool:
        """Below the root, or below a folder that is linked directly into it: that link is the operator's own."""
        if path.is_relative_to(root.resolve()):
            return True
        return (
            ".." not in relative.parts
            and len(relative.parts) > 1
            and path.is_relative_to((root / relative.parts[0]).resolve())
        )

    def _inline(self, uri: str, task_id: int | None) -> bytes:
        header, comma, body = uri.partition(",")
        if not comma:
            raise ImageUnavailable(task_id, "the data: address has no comma, so no data; import the image again")
        if len(body) > self._max_bytes * 4:  # three letters of percent-encoding per byte, and some for base64
            raise self._too_large(task_id)
        data = unquote_to_bytes(body)
        if header.lower().endswith(";base64"):
            data = b"".join(data.split()).translate(_URL_SAFE)
            try:
                data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
            except binascii.Error as error:
                raise ImageUnavailable(
                    task_id, f"the data: address is not valid base64 ({error}); import the image again"
                ) from None
        if len(data) > self._max_bytes:
            raise self._too_large(task_id)
        if not data:
            raise ImageUnavailable(task_id, "the data: address is empty; import the image again")
        return data

    def _key(self, address: Address) -> str:
        if isinstance(address, InLabelStudio):
            return f"{self._home} {address.cloud_uri or address.path}"
        return address.url if isinstance(address, Foreign) else address.uri

    # ---- over HTTP

    def _download(self, address: Address, task_id: int | None) -> bytes:
        deadline = self._clock() + self._timeout_s
        pause = FIRST_PAUSE_S
        for _ in range(TRIES - 1):
            try:
                return self._follow(address, task_id, deadline)
            except ImageUnavailable as error:
                if not error.retryable or self._clock() + pause >= deadline:
                    raise
            self._sleep(pause)
            pause *= 2
        return self._follow(address, task_id, deadline)

    def _follow(self, address: Address, task_id: int | None, deadline: float) -> bytes:
        """Request an address and whatever it redirects to; the token goes to Label Studio's own host only."""
        url = self._home + address.path if isinstance(address, InLabelStudio) else self._key(address)
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            ours = isinstance(address, InLabelStudio) and _origin(parts) == _origin(self._home_parts)
            headers = self._token(task_id) if ours else {}
            if not ours:
                refuse_metadata(parts.hostname or "", parts.port or 0, self._resolve, task_id)
            try:
                with self._client.stream(
                    "GET",
                    url,
                    headers=headers,
                    timeout=self._limits(deadline, task_id),
                    follow_redirects=False,
                ) as response:
                    if not ours:
                        _refuse_metadata_peer(response, task_id)
                    if not response.has_redirect_location:
                        return self._read(response, address if ours else Foreign(url), task_id, deadline)
                    url = _next(url, response, ours, task_id)
            except _FAILURES as error:
                raise _explained(error, parts, self._timeout_s, task_id) from error
        raise ImageUnavailable(task_id, f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _token(self, task_id: int | None) -> dict[str, str]:
        try:
            return self._ls_auth()
        except BackendError as error:
            raise ImageUnavailable(task_id, error.message, retryable=error.retryable) from error

    def _limits(self, deadline: float, task_id: int | None) -> httpx.Timeout:
        left = deadline - self._clock()
        if left <= 0:
            raise self._too_slow(task_id)
        return httpx.Timeout(left, connect=min(CONNECT_S, left))

    def _read(self, response: httpx.Response, source: Address, task_id: int | None, deadline: float) -> bytes:
        if response.status_code != 200:
            raise _refused(response, source, task_id)
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large(task_id)
        data = bytearray()
        for chunk in response.iter_bytes(_CHUNK):
            data += chunk
            if len(data) > self._max_bytes:
                raise self._too_large(task_id)
            if self._clock() > deadline:
                raise self._too_slow(task_id)
        if not data:
            raise ImageUnavailable(task_id, f"{response.url.host} sent an empty file; replace it")
        if "html" in response.headers.get("content-type", "") and data.lstrip()[:1] == b"<":
            raise ImageUnavailable(
                task_id, f"{response.url.host} sent a web page instead of an image; does it want a log-in?"
            )
        return bytes(data)

    def _too_large(self, task_id: int | None) -> ImageUnavailable:
        return ImageUnavailable(
            task_id,
            f"the file has more than {self._max_bytes} bytes; shrink it or raise ASKFIRST_IMAGE_MAX_BYTES",
        )

    def _too_slow(self, task_id: int | None) -> ImageUnavailable:
        return _slow(self._timeout_s, task_id)


_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# Everything httpx raises: HTTPError for the exchange, InvalidURL for the address, StreamError for misuse.
_FAILURES = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    scheme = parts.scheme.lower()
    return scheme, parts.hostname or "", parts.port or (443 if scheme == "https" else 80)


def _next(url: str, response: httpx.Response, ours: bool, task_id: int | None) -> str:
    target = urljoin(url, response.headers["location"])
    parts = urlsplit(target)
    if ours and parts.path.endswith("/user/login/"):
        raise ImageUnavailable(task_id, _NO_TOKEN)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ImageUnavailable(task_id, f"{shown(url)} redirects to {shown(target)}, which is no web address")
    return target


def _refuse_metadata_peer(response: httpx.Response, task_id: int | None) -> None:
    """The host may resolve to something else by the time we connect; what counts is who answered."""
    stream = response.extensions.get("network_stream")
    peer = stream.get_extra_info("server_addr") if stream is not None else None
    if isinstance(peer, tuple) and peer and is_metadata(str(peer[0])):
        raise ImageUnavailable(task_id, f"{response.url.host} is a link-local address ({peer[0]})")


def _slow(timeout_s: float, task_id: int | None) -> ImageUnavailable:
    return ImageUnavailable(
        task_id, f"the image took longer than ASKFIRST_IMAGE_TIMEOUT_S = {timeout_s:g} s", retryable=True
    )


def _explained(error: Exception, parts: SplitResult, timeout_s: float, task_id: int | None) -> ImageUnavailable:
    if isinstance(error, httpx.TimeoutException):
        return _slow(timeout_s, task_id)
    cause = f"{type(error).__name__}: {excerpt(str(error), 200)}"
    if "CERTIFICATE_VERIFY_FAILED" in cause:
        return ImageUnavailable(
            task_id,
            f"the certificate of {parts.hostname} is not trusted; install its authority, or VERIFY_SSL=false",
        )
    passing = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
    return ImageUnavailable(task_id, f"{parts.hostname} could not be read ({cause})", retryable=passing)


_NO_TOKEN = (
    "Label Studio does not accept the token; set LABEL_STUDIO_API_KEY to a personal access token "
    "(Account & Settings), or to a legacy token if the organisation allows those"
)
_MISSING = {
    "upload": "the upload is gone from Label Studio; import the image again",
    "local file": (
        "Label Studio does not serve this file; connect a Local Files storage whose path covers it to the "
        "project (Settings > Cloud Storage) and check that the file exists"
    ),
    "cloud file": (
        "no cloud storage of the project matches the address; connect one with read access under "
        "Settings > Cloud Storage"
    ),
    "file": "Label Studio has no such file",
}


def _refused(response: httpx.Response, source: Address, task_id: int | None) -> ImageUnavailable:
    status = response.status_code
    if not isinstance(source, InLabelStudio):
        hint = "; the address must open without a log-in" if status in (401, 403) else ""
        return ImageUnavailable(task_id, f"{response.url.host} answered {status}{hint}", retryable=status in _PASSING)
    if status == 401:
        return ImageUnavailable(task_id, _NO_TOKEN)
    if status == 403:
        hint = "; set LOCAL_FILES_SERVING_ENABLED=true on Label Studio" if source.kind == "local file" else ""
        return ImageUnavailable(task_id, f"Label Studio does not permit reading the {source.kind} (403){hint}")
    # Label Studio 1.23.2 answers 500 for an upload that it does not know: it asks nothing for permission.
    unknown_upload = source.kind == "upload" and status == 500 and b"has_permission" in _start_of(response)
    if status in (404, 410) or unknown_upload:
        return ImageUnavailable(task_id, _MISSING[source.kind])
    return ImageUnavailable(
        task_id, f"Label Studio answered {status} for the {source.kind}", retryable=status in _PASSING
    )


def _start_of(response: httpx.Response, size: int = 4096) -> bytes:
    data = b""
    for chunk in response.iter_bytes(size):
        data += chunk
        if len(data) >= size:
            break
    return data
