"""A Label Studio 1.23.2 of the demo's own: how it is started, the first login, the project, the images.

Images are not uploaded. Label Studio reads them where they are, as "local files": one storage entry that allows the
folder, and tasks that name the files, imported as JSON. Measured on the same busy two-core machine, 1,797 PNGs of 8 kB:
2.4 s this way, 45 s uploaded in requests of 100 files, 44 s by synchronising the storage; 10,015 JPEGs: 7.4 s against
226 s uploaded. Nothing is stored twice, and the worker reads the same files straight from disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import quoteattr

import httpx

from .errors import DataProblem, EnvironmentMissing, LabelStudioProblem
from .files import write_atomic
from .home import Home, Memory
from .processes import Command, tail
from .sources import Dataset

VERSION = "1.23.2"
START_WITHIN_S = 600.0  # the first start migrates its data base: 27 s on two idle cores, minutes on busy ones
FRESH_DATABASE = Path("share") / "askfirst" / "label_studio.sqlite3"  # below Label Studio's environment
IMAGE_KEY = "image"  # of the task data
IMAGE_CONTROL = "picture"  # name of the Image tag
IMPORT_CHUNK = 5000  # tasks per request; ten thousand take 3-7 s
HOTKEYS = "1234567890qwertyuiopasdfghjklzxcvbnm"
UNKNOWN_CLASSES = ("yes", "no")  # choices of a project whose classes nobody told us; changed in Label Studio
# What a child of ours may inherit. Settings that a user keeps for another Label Studio would change this one.
_INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SYSTEMROOT", "USER")
# Recounts only the tasks touched by an import of predictions: 0.1 s instead of 2.4 s in a project of 10,000 tasks.
_FAST_IMPORT = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"


# ---------------------------------------------------------------------- starting
def find_executable(root: Path | None = None) -> Path:
    """Label Studio's command: that of .venv-label-studio beside our package, else the one on PATH.

    Raises: EnvironmentMissing.
    """
    root = root or Path(__file__).resolve().parents[1]
    ours = root / ".venv-label-studio" / "bin" / "label-studio"
    if ours.is_file() and os.access(ours, os.X_OK):
        return ours
    found = shutil.which("label-studio")
    if found:
        return Path(found)
    raise EnvironmentMissing(
        f"Label Studio is not installed: there is no {ours}. Run `make env` in {root}; it needs an environment of its "
        "own, since its requirements contradict ours."
    )


def server_environment(home: Home, inherited: Mapping[str, str]) -> dict[str, str]:
    """Environment under which Label Studio works with a local backend and calls nobody on the internet."""
    kept = {k: v for k, v in inherited.items() if k in _INHERITED or k.startswith("LC_")}
    return {
        **kept,
        "LABEL_STUDIO_BASE_DATA_DIR": str(home.label_studio),
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(home.files),
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        # Backends and webhooks at a local address are refused otherwise; the second one is for webhooks.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        _FAST_IMPORT: "true",
        "PYTHONPATH": str(Path(__file__).resolve().parent / "label_studio_site"),
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
    }


def prepare_database(home: Home, executable: Path) -> None:
    """Give a new data folder an empty data base that is migrated already: half a minute less at the first start.

    `make env` leaves one beside Label Studio. Without it, or when it cannot be copied, Label Studio makes its own.
    """
    template = executable.parent.parent / FRESH_DATABASE
    target = home.label_studio / template.name
    if template.is_file() and not target.exists():
        with contextlib.suppress(OSError):
            write_atomic(target, template.read_bytes(), mode=0o600)


def server_command(home: Home, memory: Memory, port: int, executable: Path) -> Command:
    """Label Studio on 127.0.0.1:port. The user is made at the first start and left alone later."""
    argv = [
        str(executable),
        "start",
        "--no-browser",
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
        "--username",
        memory.username,
    ]
    # By environment, not by argument: arguments can be read by every user of the machine.
    env = {**server_environment(home, os.environ), "LABEL_STUDIO_PASSWORD": memory.password}
    return Command("label-studio", argv, env, home.label_studio, home.log("label-studio"))


def is_up(url: str, log: Path) -> bool:
    """True when the Label Studio whose log this is answers at `url`.

    Raises: LabelStudioProblem when it took another port than the one it was told.
    """
    if "is in use." in tail(log, lines=400, limit_bytes=2**18):
        raise LabelStudioProblem(
            f"listen at {url}",
            None,
            "the port was taken meanwhile, and Label Studio moved to "
            "the next one. Start again, or choose another port with --port NUMBER.",
        )
    try:
        return local_get(f"{url}/health").json() == {"status": "UP"}
    except (httpx.HTTPError, ValueError):
        return False


def local_get(url: str) -> httpx.Response:
    """GET from a server on this machine: plain HTTP past all proxies. Raises: httpx.HTTPError."""
    # Without `verify=False` each call would load all certificates first, which takes longer than the answer.
    return httpx.get(url, timeout=2.0, trust_env=False, verify=False)


# ---------------------------------------------------------------------- a person's browser
class BrowserSession:
    """What a browser does: cookies and the CSRF token of Label Studio's own pages. One per user and thread."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(120.0, connect=5.0),
            trust_env=False,
            verify=not self.url.startswith("http://"),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def login(self, email: str, password: str) -> None:
        """Raises: LabelStudioProblem, with status 200 when the password is wrong."""
        self._form("log in", "/user/login/", {"email": email, "password": password, "persist_session": "on"})

    def sign_up(self, invite_path: str, email: str, password: str) -> None:
        """Make a user through an invite link and stay logged in as that user."""
        self._form("sign up", invite_path, {"email": email, "password": password, "allow_newsletters": "false"})

    def _form(self, what: str, path: str, fields: dict[str, str]) -> None:
        self._request(what, "GET", path)
        answer = self._request(what, "POST", path, data={**fields, "csrfmiddlewaretoken": self._csrf()})
        if answer.status_code != 302:  # the form is shown again, with a remark
            raise LabelStudioProblem(f"{what} {fields['email']}", answer.status_code, "the form was not accepted")

    def call(self, what: str, method: str, path: str, json: Any = None, *, params: dict[str, Any] | None = None) -> Any:
        """JSON of the answer of a call as the page's script makes it.

        Raises: LabelStudioProblem for every answer but 2xx; `status` None when there was none.
        """
        answer = self._request(what, method, path, json=json, params=params)
        if not 200 <= answer.status_code < 300:
            raise LabelStudioProblem(what, answer.status_code, answer.text)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise LabelStudioProblem(what, answer.status_code, f"not JSON: {answer.text}") from None

    def _request(self, what: str, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"Referer": self.url + "/"} | ({"X-CSRFToken": self._csrf()} if self._csrf() else {})
        try:
            return self._http.request(method, path, headers=headers, **kwargs)
        except httpx.HTTPError as error:
            raise LabelStudioProblem(what, None, f"{type(error).__name__}: {error}") from error

    def _csrf(self) -> str:
        return self._http.cookies.get("csrftoken") or ""


def make_token(session: BrowserSession) -> str:
    """A personal access token of the user who is logged in; Label Studio shows it this once."""
    try:
        return str(session.call("make a personal access token", "POST", "/api/token/", {})["token"])
    except LabelStudioProblem as error:
        if error.status == 409:
            raise LabelStudioProblem(
                "make a personal access token",
                409,
                "there is one already, but demo.json does not hold it. Revoke it "
                "in Label Studio (Account & Settings > Personal Access Token) and start again.",
            ) from None
        raise


def token_works(url: str, token: str) -> bool:
    """Whether Label Studio exchanges this personal access token for an access token."""
    try:
        answer = httpx.post(
            f"{url}/api/token/refresh/",
            json={"refresh": token},
            timeout=30.0,
            trust_env=False,
            verify=not url.startswith("http://"),
        )
    except httpx.HTTPError as error:
        raise LabelStudioProblem("check the personal access token", None, str(error)) from error
    return answer.status_code == 200


# ---------------------------------------------------------------------- the project
def label_config(control: str, classes: Sequence[str]) -> str:
    """Labelling interface: the picture as large as the screen allows, one choice per class, a key for each."""
    lines = [
        "<View>",
        f"  <Header value={quoteattr('Which ' + control + '?')}/>",
        f'  <Choices name={quoteattr(control)} toName="{IMAGE_CONTROL}" choice="single" required="true"'
        ' showInLine="true">',
    ]
    for index, name in enumerate(classes):
        hotkey = f" hotkey={quoteattr(_hotkey(index, classes))}" if len(classes) <= len(HOTKEYS) else ""
        lines.append(f"    <Choice value={quoteattr(name)}{hotkey}/>")
    lines += [
        "  </Choices>",
        f'  <Image name="{IMAGE_CONTROL}" value="${IMAGE_KEY}" zoom="true" zoomControl="true" defaultZoom="fit"/>',
        "</View>",
    ]
    return "\n".join(lines)


def _hotkey(index: int, classes: Sequence[str]) -> str:
    """The digit itself where all classes are digits, else the keys of a keyboard in their order."""
    if all(len(name) == 1 and name.isascii() and name.isdigit() for name in classes):
        return classes[index]
    return HOTKEYS[index]


def find_project(session: BrowserSession, project_id: int | None) -> dict[str, Any] | None:
    """Label Studio's project; None when there is none of that number any more."""
    if project_id is None:
        return None
    try:
        return dict(session.call("show the project", "GET", f"/api/projects/{project_id}/"))
    except LabelStudioProblem as error:
        if error.status == 404:
            return None
        raise


def create_project(session: BrowserSession, title: str, data: Dataset) -> dict[str, Any]:
    """A new project that asks for one of the classes of `data`."""
    return dict(
        session.call(
            "create a project",
            "POST",
            "/api/projects/",
            {
                "title": title[:50],  # Label Studio's limit
                "description": "Made by `askfirst demo`. Press Label All Tasks: the most useful image comes first.",
                "label_config": label_config(data.control, data.classes or UNKNOWN_CLASSES),
            },
        )
    )


def choices_of(project: Mapping[str, Any], data: Dataset) -> tuple[str, str, tuple[str, ...]]:
    """(control, image tag, labels) that annotations of this project use.

    Raises: DataProblem when the project cannot take the truth of `data`.
    """
    controls = {name: c for name, c in (project.get("parsed_label_config") or {}).items() if c.get("type") == "Choices"}
    if not controls:
        raise DataProblem(
            f"Project {project['id']} has no Choices in its labelling interface. Put them back in Label "
            "Studio (Settings > Labeling Interface), or start with another --data-dir DIR."
        )
    name = data.control if data.control in controls else next(iter(controls))
    if data.truth and name != data.control:
        raise DataProblem(
            f"Project {project['id']} asks for {', '.join(controls)}, the truth is about "
            f"{data.control!r}. Rename the control in Label Studio (Settings > Labeling Interface) or "
            "the column of the CSV."
        )
    labels = tuple(str(label) for label in controls[name].get("labels", ()))
    unknown = [c for c in data.classes if c not in labels]
    if unknown:
        lines = " ".join(f"<Choice value={quoteattr(c)}/>" for c in unknown[:3])
        raise DataProblem(
            f"{len(unknown)} labels of the truth are not choices of project {project['id']}: {', '.join(unknown[:3])}. "
            f"Add {lines} in Label Studio (Settings > Labeling Interface), correct the truth, or start with another "
            "--data-dir DIR."
        )
    return name, str((controls[name].get("to_name") or [IMAGE_CONTROL])[0]), labels


# ---------------------------------------------------------------------- the images
def image_url(link: str, file: str) -> str:
    """Task value under which Label Studio serves a file of a linked folder."""
    return f"/data/local-files/?d={quote(f'{link}/{file}')}"


def file_of(url: object, link: str) -> str | None:
    """File inside the linked folder that a task value names; None for anything else."""
    if not isinstance(url, str):
        return None
    parts = urlsplit(url)
    if not parts.path.rstrip("/").endswith("/data/local-files"):
        return None
    path = parse_qs(parts.query).get("d", [""])[0]
    return path.removeprefix(f"{link}/") if path.startswith(f"{link}/") else None


def allow_folder(session: BrowserSession, project_id: int, folder: Path) -> None:
    """Let Label Studio serve the files of a folder under its document root to the people of this project."""
    storages = session.call("list storages", "GET", "/api/storages/localfiles", params={"project": project_id})
    if not any(storage["path"] == str(folder) for storage in storages):
        session.call(
            "allow the folder of images",
            "POST",
            "/api/storages/localfiles",
            {"project": project_id, "title": "Images", "path": str(folder), "use_blob_urls": True},
        )


def import_tasks(
    session: BrowserSession,
    project_id: int,
    link: str,
    files: Sequence[str],
    known: Iterable[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """One task per file that has none yet; returns how many were made."""
    have = set(known)
    new = [file for file in files if file not in have]
    for start in range(0, len(new), IMPORT_CHUNK):
        progress(start, len(new))
        chunk = [{"data": {IMAGE_KEY: image_url(link, file)}} for file in new[start : start + IMPORT_CHUNK]]
        made = session.call("import tasks", "POST", f"/api/projects/{project_id}/import", chunk)["task_count"]
        if made != len(chunk):
            raise LabelStudioProblem("import tasks", 201, f"{made} of {len(chunk)} were made. Look at its log.")
    progress(len(new), len(new))
    return len(new)


def invite_path(session: BrowserSession) -> str:
    """Path of the link through which more people sign up."""
    return str(session.call("make an invite link", "GET", "/api/invite")["invite_url"])
