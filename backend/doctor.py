"""Checks what must be right for the loop to run; each line is ok or says what to do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from training import api as training

from .connect import SECRET_HEADER, our_webhooks, webhook_secret
from .dispatch import Dispatcher
from .errors import BackendError, LabelStudioRejected, StoreUnavailable
from .labeling_config import parse
from .ls_client import LabelStudioClient
from .project import Workshop, model_spec
from .queue_push import SAMPLING, is_ours, read_pushed
from .settings import Settings
from .worker_context import build

LEAST_FREE_BYTES = 2 * 2**30
CONFIG = "labelling config"
SHOWN_CLASSES = 8  # of a labelling config; a line should stay a line
FLAG = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    message: str


def run(settings: Settings, project_id: int | None = None) -> list[Check]:
    """All checks, in the order in which they make sense; one that fails does not stop the others."""
    workshop, dispatcher = build(settings)
    try:
        return _all(settings, workshop, dispatcher, project_id)
    finally:
        workshop.close()


def _all(settings: Settings, workshop: Workshop, dispatcher: Dispatcher, project_id: int | None) -> list[Check]:
    checks = [_guarded(name, check) for name, check in _general(settings, workshop, dispatcher)]
    if project_id is not None:
        checks.append(_guarded("project", lambda: _project(workshop.ls, project_id)))
        if checks[-1].ok:  # of a project that is not there the same would be said five times
            for name, check in _of_project(settings, workshop, project_id):
                found = _guarded(name, check)
                checks.append(found)
                if name == CONFIG and not found.ok:
                    break  # what follows from it, an address "not reached" among it, would send people elsewhere
    return checks


def _guarded(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except _Bad as bad:
        return Check(name, False, str(bad))
    except StoreUnavailable as error:
        return Check(name, False, str(error) if name == "Redis" else "not looked at: it needs Redis")
    except BackendError as error:
        return Check(name, False, str(error))
    except OSError as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


class _Bad(Exception):
    """A check failed; the message says what to do."""


def _general(settings: Settings, workshop: Workshop, dispatcher: Dispatcher) -> Iterator[tuple[str, Callable[[], str]]]:
    ls = workshop.ls
    yield "Label Studio", lambda: f"{settings.label_studio_url} answers, version {ls.version()}"
    yield "token", lambda: _token(ls)
    yield "Redis", lambda: _redis(workshop)
    yield "workers", lambda: _workers(dispatcher)
    yield "web process", lambda: _web(settings)
    yield "disk", lambda: _disk(settings)
    yield "representation", lambda: _weights(settings)
    if (masks := settings.tune_masks) is not None:
        yield "masks", lambda: _masks(masks, settings.tune_mixing)
    if settings.tune and settings.tune_devices > 1:
        yield "devices", lambda: _devices(settings.tune_devices)
    yield "strategy", lambda: _strategy(settings)


def _of_project(settings: Settings, workshop: Workshop, project_id: int) -> Iterator[tuple[str, Callable[[], str]]]:
    yield CONFIG, lambda: _config(workshop.ls, project_id)
    yield "Label Studio to backend", lambda: _reaches_us(workshop, settings, project_id)
    yield "webhook", lambda: _webhook(workshop, settings, project_id)
    yield "sampling", lambda: _sampling(workshop.ls, project_id)
    yield "model version", lambda: _version(workshop, project_id)
    yield "import of predictions", lambda: _import(workshop, project_id)
    yield "data fields", lambda: _fields(workshop, project_id)


def _strategy(settings: Settings) -> str:
    try:
        return training.get_strategy(settings.strategy).summary
    except LookupError as error:
        raise _Bad(f"ASKFIRST_STRATEGY: {error}; `askfirst strategies` tells what each does") from error


def _token(ls: LabelStudioClient) -> str:
    if ls.token_kind == "no token":
        raise _Bad(
            "LABEL_STUDIO_API_KEY is not set: create a personal access token in Label Studio (Account & Settings)"
        )
    try:
        who = ls.whoami()
    except LabelStudioRejected as error:
        if ls.token_kind == "legacy token" and error.label_studio_status == 401:
            raise _Bad(
                "the legacy token is refused. New organisations have legacy tokens switched off: use a personal "
                "access token, or start Label Studio with LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true"
            ) from error
        raise _Bad(f"the {ls.token_kind} is refused: {error}") from error
    return f"{ls.token_kind} of {who.get('email') or who.get('username')}"


def _redis(workshop: Workshop) -> str:
    started = time.perf_counter()
    workshop.state.ping()
    return f"answers in {(time.perf_counter() - started) * 1000:.1f} ms; projects {workshop.state.projects() or 'none'}"


def _workers(dispatcher: Dispatcher) -> str:
    missing = dispatcher.queues_without_worker()
    if missing:
        raise _Bad(f"nobody works on {', '.join(missing)}: start `askfirst worker`")
    return "; ".join(dispatcher.workers())


def _web(settings: Settings) -> str:
    """Asked on this machine, and where Label Studio was told to find us: one of them must answer."""
    addresses = dict.fromkeys((f"http://127.0.0.1:{settings.port}", settings.url_for_label_studio))
    for number, address in enumerate(addresses, start=1):
        try:
            return _web_at(settings, f"{address}/health")
        except _Bad:
            if number == len(addresses):
                raise
    raise AssertionError("unreachable")


def _web_at(settings: Settings, url: str) -> str:
    auth = (settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()) if settings.basic_auth_user else None
    try:
        answer = httpx.get(url, timeout=3.0, auth=auth)
    except httpx.HTTPError as error:
        raise _Bad(
            f"{url} does not answer ({type(error).__name__}): start `askfirst serve` "
            "(or ignore this line where the web process runs on another host)"
        ) from error
    if answer.status_code != 200 or answer.json().get("status") != "UP":
        raise _Bad(f"{url} answers {answer.status_code}; is another program there?")
    return f"{url} is up"


def _disk(settings: Settings) -> str:
    settings.model_dir.mkdir(parents=True, exist_ok=True)
    probe = settings.model_dir / ".doctor"
    probe.write_text("ok")
    probe.unlink()
    free = shutil.disk_usage(settings.model_dir).free
    if free < LEAST_FREE_BYTES:
        raise _Bad(f"only {free / 2**30:.1f} GiB free in {settings.model_dir}: embeddings and versions need room")
    return f"{settings.model_dir} can be written, {free / 2**30:.1f} GiB free"


def _weights(settings: Settings) -> str:
    if not settings.weights:
        return (
            "no weights given: features are learnt from the pool itself, which works and is worth less than a "
            "pretrained network on photographs; set ASKFIRST_WEIGHTS to a file, a URL or 'torchvision'"
        )
    try:
        return training.check_weights(model_spec(settings))
    except training.RepresentationError as error:
        raise _Bad(f"{error}. See ASKFIRST_BACKBONE, ASKFIRST_WEIGHTS, ASKFIRST_WEIGHTS_MEAN, _STD") from error


def _devices(count: int) -> str:
    try:
        return training.check_devices(count)
    except training.DataError as error:
        raise _Bad(f"ASKFIRST_TUNE_DEVICES={count}: {error}") from error


def _masks(folder: Path, mixing: str) -> str:
    if not folder.is_dir():
        raise _Bad(f"ASKFIRST_TUNE_MASKS={str(folder)!r} is not a folder that this process can read")
    files = sum(1 for file in folder.iterdir() if file.suffix.lower() in training.MASK_SUFFIXES and file.is_file())
    if not files:
        raise _Bad(f"ASKFIRST_TUNE_MASKS={str(folder)!r} holds no image ({', '.join(training.MASK_SUFFIXES)})")
    if mixing not in training.WITH_MASKS:
        raise _Bad(
            f"ASKFIRST_TUNE_MASKS is set, and ASKFIRST_TUNE_MIXING={mixing} looks at no mask: set it to "
            f"{' or '.join(training.WITH_MASKS)}"
        )
    return f"{files:,} images in {folder}"


def _project(ls: LabelStudioClient, project_id: int) -> str:
    try:
        project = ls.project(project_id)
    except LabelStudioRejected as error:
        if error.label_studio_status == 404:
            raise _Bad(
                f"there is no project {project_id} in Label Studio, or the user of LABEL_STUDIO_API_KEY may not see it"
            ) from error
        raise
    return f"{project.title!r}, {project.task_count} tasks"


def _config(ls: LabelStudioClient, project_id: int) -> str:
    config = parse(ls.project(project_id).label_config)
    parts = []
    for control in config.controls:
        shown, rest = control.classes[:SHOWN_CLASSES], len(control.classes) - SHOWN_CLASSES
        names = ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
        name = f"{control.name}: " if len(config.controls) > 1 else ""
        parts.append(f"{name}{len(control.classes)} classes ({names})" if control.classes else f"{name}a number")
    return "; ".join((f"served: {', '.join(parts)}", *config.notes))


def _reaches_us(workshop: Workshop, settings: Settings, project_id: int) -> str:
    url = workshop.state.get(project_id, "url") or settings.url_for_label_studio
    mine = [b for b in workshop.ls.backends(project_id) if str(b.get("url", "")).rstrip("/") == url]
    if not mine:
        raise _Bad(f"{url} is not connected: run `askfirst connect --project {project_id}`")
    if mine[0].get("state") not in ("CO", "TR", "PR"):
        raise _Bad(
            f"Label Studio says {mine[0].get('readable_state')!r}: {mine[0].get('error_message')}. It must "
            f"reach {url}; private addresses need ML_BLOCK_LOCAL_IP=false on Label Studio"
        )
    return f"Label Studio reached {url}"


def _webhook(workshop: Workshop, settings: Settings, project_id: int) -> str:
    url = workshop.state.get(project_id, "url") or settings.url_for_label_studio
    hooks = our_webhooks(workshop.ls, project_id, url)
    if not hooks:
        raise _Bad(
            "no webhook points here: labels are found by the tick only, seconds late. Run `askfirst connect`; if that "
            "is refused, start Label Studio with SSRF_PROTECTION_ENABLED=false"
        )
    if not hooks[0].get("is_active", True):
        raise _Bad("the webhook is switched off in Label Studio (Settings, Webhooks)")
    if (hooks[0].get("headers") or {}).get(SECRET_HEADER) != webhook_secret(settings):
        raise _Bad(f"the webhook carries another secret than ours: run `askfirst connect --project {project_id}`")
    last = workshop.state.events(project_id)
    return (
        f"set up with our secret; last event {time.time() - last[0]['at']:.0f} s ago"
        if last
        else "set up; no event yet"
    )


def _sampling(ls: LabelStudioClient, project_id: int) -> str:
    project = ls.project(project_id)
    if project.sampling != SAMPLING:
        raise _Bad(
            f"sampling is {project.sampling!r}; the order needs {SAMPLING!r}: run "
            f"`askfirst connect --project {project_id}`"
        )
    return f"{project.sampling}; overlap {project.overlap}"


def _version(workshop: Workshop, project_id: int) -> str:
    project = workshop.ls.project(project_id)
    pushed = read_pushed(workshop.state, project_id)
    if pushed is None:
        raise _Bad("no order was pushed yet: see the jobs on the status page")
    if project.model_version != pushed.version:
        kind = "one of our older ones" if is_ours(project.model_version) else "not ours"
        raise _Bad(
            f"Label Studio serves {project.model_version!r} ({kind}), we pushed {pushed.version!r}: chosen by hand, or "
            f"about to be put right; `askfirst connect --project {project_id}` hands the queue back to the model"
        )
    return f"{pushed.version!r}: {len(pushed.ids)} tasks, made from {pushed.labels} labels"


def _fields(workshop: Workshop, project_id: int) -> str:
    tasks = workshop.desk(project_id).files.tasks()
    if empty := tasks.empty_inputs:
        raise _Bad(f"no task has a value for {', '.join(map(repr, empty))}, which the labelling config names")
    return f"{', '.join(tasks.inputs)} are found in the tasks" if tasks.inputs else "none beside the image is asked for"


def _import(workshop: Workshop, project_id: int) -> str:
    seconds = float(workshop.state.get(project_id, "import_s") or 0.0)
    if seconds > 1.0:
        raise _Bad(
            f"each import costs {seconds:.1f} s beyond its rows: start Label Studio with {FLAG}=true; until then the "
            "front of the queue is re-ordered in place where that is quicker (if it has that flag, the machine is busy)"
        )
    return f"an import costs {seconds:.2f} s beyond its rows"
