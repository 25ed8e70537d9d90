"""Where an image is: every kind of address that Label Studio tasks hold, told apart. Pure.

An address comes from task data, which anybody who may import tasks writes. So our token goes to Label Studio
alone and there only to paths that serve files, no path leaves its folder, and the metadata service of a
cloud, which hands out credentials, is never asked.
"""

from __future__ import annotations

import base64
import ipaddress
import posixpath
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from .errors import ImageUnavailable

CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1", "0.0.0.0", "host.docker.internal")
# Paths of Label Studio that serve files; its token opens everything, so it is sent to nothing else.
_FILE_PATHS = re.compile(
    r"/(data/(upload|local-files)/|storage-data/uploaded/|static/|(tasks|projects)/[0-9]+/(presign|resolve)/"
    r"|api/projects/[0-9]+/file-proxy/)"
)
# Metadata services of clouds outside 169.254.0.0/16 and fe80::/10: AWS over IPv6, Alibaba, Oracle.
_METADATA = {ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")}

Resolver = Callable[[str, int], Iterable[str]]  # (host, port) -> IP addresses as text


@dataclass(frozen=True)
class Inline:
    """A data: URI."""

    uri: str


@dataclass(frozen=True)
class InLabelStudio:
    """A file that Label Studio serves to those who have a token."""

    path: str  # with query, percent-encoded, below the address of Label Studio
    kind: Literal["upload", "local file", "cloud file", "file"]
    on_disk: str = ""  # the same file below the media folder or document root, decoded; "" if in neither
    cloud_uri: str = ""  # s3://..., which says the same whatever the task


@dataclass(frozen=True)
class Foreign:
    """A file on another host; never sees our token."""

    url: str


Address = Inline | InLabelStudio | Foreign


def read_address(uri: str, label_studio_url: str, task_id: int | None) -> Address:
    """Which kind of address `uri` is.

    Raises:
        ImageUnavailable: none that can be fetched; says which ones can.
    """
    if any(ord(c) < 32 for c in uri):
        raise ImageUnavailable(task_id, "the address holds control characters; correct it in the task's data")
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018  raises where the port is no number
    except ValueError as error:
        raise ImageUnavailable(task_id, f"{shown(uri)} is not a valid address ({error})") from None
    scheme = parts.scheme.lower()
    if scheme == "data":
        return Inline(uri)
    if scheme in CLOUD_SCHEMES:
        if task_id is None:
            raise ImageUnavailable(task_id, f"{shown(uri)} is opened through a task of Label Studio; save it first")
        encoded = base64.urlsafe_b64encode(uri.encode()).decode()
        return InLabelStudio(f"/tasks/{task_id}/presign/?fileuri={encoded}", "cloud file", cloud_uri=uri)
    if scheme in ("http", "https"):
        if not parts.hostname:
            raise ImageUnavailable(task_id, f"{shown(uri)} names no host")
        if is_label_studio(parts, urlsplit(label_studio_url)):
            return _in_label_studio(parts, label_studio_url, task_id)
        return Foreign(uri)
    if not scheme and not parts.netloc:
        if parts.path.startswith(("upload/", "/upload/")):  # as old exports have it
            parts = parts._replace(path="/data/" + parts.path.lstrip("/"))
        if parts.path.startswith("/"):
            return _in_label_studio(parts, label_studio_url, task_id)
    raise ImageUnavailable(
        task_id,
        f"{shown(uri)} cannot be fetched. Use an upload, a Local Files or cloud storage of Label Studio, "
        "or an http(s):// or data: address",
    )


def is_label_studio(parts: SplitResult, home: SplitResult) -> bool:
    """Whether an http(s) address is on Label Studio.

    Besides the host we know it by, Label Studio writes its own idea of its address into tasks of a Local
    Files storage: http://localhost:8080 by default, which from another container is nobody.
    """
    if same_host(parts, home):
        return True
    return (parts.hostname or "") in _LOCAL_NAMES and parts.path.startswith(("/data/upload/", "/data/local-files"))


def same_host(a: SplitResult, b: SplitResult) -> bool:
    """Same host and port; http or https makes no difference, the request goes to `LABEL_STUDIO_URL`."""
    return a.hostname == b.hostname and (_port(a) == _port(b) or (a.port is None and b.port is None))


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme.lower() == "https" else 80)


def _in_label_studio(parts: SplitResult, label_studio_url: str, task_id: int | None) -> InLabelStudio:
    prefix = urlsplit(label_studio_url).path.rstrip("/")  # Label Studio below a path: https://host/label-studio
    path = parts.path
    if prefix and path.startswith(prefix + "/"):
        path = path[len(prefix) :]
    if path == "/data/local-files":
        path += "/"  # Label Studio answers a redirect or nothing without
    decoded = unquote(path)
    if ".." in decoded.split("/") or "\\" in decoded or not _FILE_PATHS.match(decoded):
        raise ImageUnavailable(task_id, f"{shown(parts.geturl())} is not an address at which Label Studio has files")
    if path.startswith("/data/local-files/"):
        return _local_file(parts, task_id)
    encoded = quote(decoded, safe="/")
    target = f"{encoded}?{parts.query}" if parts.query else encoded
    if decoded.startswith("/data/upload/"):
        return InLabelStudio(target, "upload", decoded.removeprefix("/data/"))
    return InLabelStudio(target, "file")


def _local_file(parts: SplitResult, task_id: int | None) -> InLabelStudio:
    values = parse_qs(parts.query, keep_blank_values=True).get("d", [])
    relative = posixpath.normpath(values[-1]).lstrip("/") if values else ""  # as Label Studio reads it
    if not relative or relative == "." or relative.split("/")[0] == ".." or "\0" in relative:
        raise ImageUnavailable(task_id, f"{shown(parts.geturl())} names no file below the document root")
    return InLabelStudio(f"/data/local-files/?d={quote(relative, safe='/')}", "local file", relative)


def refuse_metadata(host: str, port: int, resolve: Resolver, task_id: int | None) -> None:
    """Refuse a host that is, or resolves to, a link-local or metadata address.

    Raises:
        ImageUnavailable
    """
    try:
        found = [host.strip("[]")] if _ip(host.strip("[]")) else list(resolve(host, port))
    except (OSError, UnicodeError):
        return  # unknown here, but perhaps to a proxy; without one the request itself says what is wrong
    for text in found:
        if is_metadata(text):
            raise ImageUnavailable(task_id, f"{host} is a link-local address ({text}), where no images are")


def is_metadata(text: str) -> bool:
    """Whether an IP address is link-local or a cloud's metadata service."""
    address = _ip(text)
    if address is None:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return any(a.is_link_local or a in _METADATA for a in (address, mapped) if a is not None)


def resolve_host(host: str, port: int) -> list[str]:
    """IP addresses of a host by the system's resolver. Raises: OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])  # %eth0 is the scope of a link-local address
    except ValueError:
        return None


def shown(uri: str) -> str:
    """The address for a message: short, and without passwords or signatures that it may carry."""
    head = uri.partition("?")[0].partition(",")[0]
    bare = re.sub(r"//[^/@]*@", "//", head)
    return repr(bare if len(bare) <= 120 else bare[:119] + "…")
