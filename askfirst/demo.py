"""`askfirst demo`: from nothing to a project that asks the most informative image first, in one command.

Label Studio, Redis, the web process and the workers run as children on 127.0.0.1; everything they write lies in the
data folder, so a second start finds the first one's project, labels and models.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import label_studio as ls
from .bots import BotError, Job, Record, email_of, enter, run_bots
from .digits import COUNT, make_digits
from .errors import DataProblem, LabelStudioProblem, OrderMissing, ProcessFailed
from .files import explained_disk_errors, only_user, require_free_space
from .home import Home
from .outcome import Outcome, announcement
from .processes import Supervisor, require_free_port, unexplained
from .progress import Phase, Progress
from .services import Services
from .signals import Interrupted, turned_into_exceptions
from .sources import Dataset, read_folder, with_labels
from .stats import CurvePoint, learning_curve

if TYPE_CHECKING:
    from backend.dispatch import Dispatcher
    from backend.project import Workshop

SETTLE_S = 20.0  # after the last label, idle workers have this long to notice it: more than one tick
SETTLE_WITHIN_S = 900.0  # and this long in all
POOL_WITHIN_S = 300.0  # for an order made from all images; ten thousand are embedded in one or two minutes
ORDER_WITHIN_S = 3600.0  # a hundred thousand images are embedded in less
MOST_RESTARTS = 6  # of one child before the first order; then something is broken for good
LOOK_EVERY_S = 0.25
SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    images: Path | None = None  # None: handwritten digits
    labels: Path | None = None
    bots: int = 0
    labels_per_bot: int = 20
    think_s: float = 0.0
    port: int = 8080
    backend_port: int = 9090
    data_dir: Path = Path(".demo")
    json: Path | None = None
    exit: bool = False
    seed: int | None = None
    strategy: str | None = None


def run(options: Options) -> int:
    """The whole demo; returns the exit status.

    Raises: AskFirstError with a message for the user; Interrupted when it was stopped before it was ready.
    """
    home = Home(options.data_dir.expanduser().absolute())
    progress = Progress()
    with explained_disk_errors(home.root), ExitStack() as stack:
        # Mistakes in the arguments are told before anything is made.
        data = None if options.images is None else _user_images(options)
        home.prepare()
        stack.enter_context(only_user(home.root))
        require_free_space(home.root)
        require_free_port(options.port, "--port")
        require_free_port(options.backend_port, "--backend-port")
        executable = ls.find_executable()
        supervisor = Supervisor(on_death=lambda death: progress.note(f"! {death}; it is started again"))
        stack.enter_context(turned_into_exceptions(on_second=supervisor.hurry))
        stack.enter_context(supervisor)
        return Demo(options, home, supervisor, progress).run(executable, data)


def _user_images(options: Options) -> Dataset:
    assert options.images is not None
    data = read_folder(options.images)
    data = data if options.labels is None else with_labels(data, options.labels)
    if len(data.classes) == 1:
        raise DataProblem(
            f"{options.labels or options.images} knows one label only, {data.classes[0]!r}: there is nothing to tell "
            "apart. Give two labels or more."
        )
    return data


class Demo:
    """One run of the demo inside a supervisor."""

    def __init__(self, options: Options, home: Home, supervisor: Supervisor, progress: Progress) -> None:
        self.options = options
        self.home = home
        self.supervisor = supervisor
        self.progress = progress
        self.services = Services(supervisor, home, port=options.port, backend_port=options.backend_port)
        self.memory = home.recall()

    def run(self, executable: Path, data: Dataset | None) -> int:
        """Bring everything up, let the bots work, and wait for Ctrl-C unless told to exit."""
        from backend.settings import settings_table

        begun = time.monotonic()
        # Label Studio takes the longest of all, so it starts first; pictures are drawn meanwhile.
        self.services.start_label_studio(self.memory, executable)
        data = self._images(data)
        self._servers()
        session = self._login()
        environment = self._environment()
        self.services.start_backend(environment)
        # What the backend was given by hand belongs to it too: another shell knows nothing of it.
        ours = {name for row in settings_table() for name in row["names"].split(", ")}
        self.home.write_backend_env({n: v for n, v in environment.items() if n in ours or os.environ.get(n) != v})
        project, link, new = self._project(session, data)
        project_id = int(project["id"])
        self._backend()
        self._connect(project_id)
        self._first_order(session, project_id, from_images=new)
        self.progress.seconds["ready"] = round(time.monotonic() - begun, 3)
        outcome = Outcome(
            self.services.url,
            self.services.backend_url,
            project_id,
            self.memory.username,
            self.memory.password,
            self.memory.api_key,
            self.progress.seconds,
            self.home.backend_env,
        )
        self.progress.note(announcement(outcome, len(data.files)))
        self._write(outcome)
        if self.options.bots:
            self._bots(session, project, data, link, outcome)
        status = self._conclude(outcome)
        if not self.options.exit:
            self.progress.note("  Ctrl-C stops it; labels and models stay.")
            with suppress(Interrupted):
                threading.Event().wait()
        return status

    # ------------------------------------------------------------------ phases up to the first order
    def _images(self, data: Dataset | None) -> Dataset:
        with self.progress.phase("images", "Images") as phase:
            if data is None:
                phase.say(f"drawing {COUNT:,} handwritten digits")
                truth = make_digits(self.home.files / "digits")
                data = with_labels(read_folder(self.home.files / "digits"), self.options.labels or truth)
                phase.done(f"{len(data.files):,} handwritten digits")
            else:
                known = f"{len(data.classes)} classes" if data.classes else "classes unknown"
                phase.done(f"{len(data.files):,} in {data.folder}, {known}")
        for note in data.notes:
            self.progress.note(f"  {note}")
        return data

    def _servers(self) -> None:
        with self.progress.phase("redis", "Redis") as phase:
            self.services.start_redis(_saying(phase, "starting"))
            phase.done("on 127.0.0.1")
        with self.progress.phase("label_studio", "Label Studio") as phase:
            self.services.await_label_studio(_saying(phase, "starting; the first time it sets up its data base"))
            phase.done(f"{ls.VERSION} on {self.services.url}")

    def _login(self) -> ls.BrowserSession:
        with self.progress.phase("login", "Login") as phase:
            session = ls.BrowserSession(self.services.url)
            try:
                session.login(self.memory.username, self.memory.password)
            except LabelStudioProblem as error:
                if error.status != 200:
                    raise
                raise LabelStudioProblem(
                    f"log in {self.memory.username}",
                    200,
                    "the password in demo.json is not right any more. Put the "
                    "present one there, or start with another --data-dir DIR.",
                ) from None
            # A token that somebody revoked is replaced.
            if not self.memory.api_key or not ls.token_works(self.services.url, self.memory.api_key):
                self.memory = replace(self.memory, api_key=ls.make_token(session))
                self.home.remember(self.memory)
            phase.done(self.memory.username)
        return session

    def _project(self, session: ls.BrowserSession, data: Dataset) -> tuple[dict[str, Any], str, bool]:
        """(Label Studio's project, name of the folder of images in its addresses, whether it was made just now)."""
        with self.progress.phase("import", "Project") as phase:
            link = self.home.link(data.folder)
            key = f"{data.folder.resolve()}#{data.control}"
            found = ls.find_project(session, self.memory.projects.get(key))
            project = found or ls.create_project(session, self._title(data), data)
            project_id = int(project["id"])
            if found is None:
                self.memory = self.memory.with_project(key, project_id)
                self.home.remember(self.memory)
            ls.choices_of(project, data)  # a contradiction is told before anything is imported
            ls.allow_folder(session, project_id, self.home.files / link)
            known = [] if found is None else [file for file in self._files(project_id, link).values() if file]
            made = ls.import_tasks(
                session,
                project_id,
                link,
                data.files,
                known,
                lambda done, total: phase.say(f"importing {done:,} of {total:,} images"),
            )
            phase.done(
                f"number {project_id}, {made:,} images"
                if found is None
                else f"number {project_id} of an earlier start: {_labelled(found):,} labelled, {made:,} new images"
            )
        if not data.classes:
            self.progress.note("  Nobody told the classes: write yours into Settings > Labeling Interface.")
        return project, link, found is None

    def _title(self, data: Dataset) -> str:
        return "Handwritten digits" if self.options.images is None else data.folder.name or "Images"

    def _backend(self) -> None:
        with self.progress.phase("backend", "Backend") as phase:
            self.services.await_web(_saying(phase, "starting the web process"))
            self.services.await_workers(_saying(phase, "starting the workers"))
            phase.done(f"on {self.services.backend_url}, with its workers")

    def _connect(self, project_id: int) -> None:
        from backend.connect import connect_project

        with self.progress.phase("connect", "Connection") as phase:
            workshop, dispatcher = self._tools
            connect_project(workshop, dispatcher, project_id, say=phase.say)
            phase.done("Label Studio and the backend know each other")

    def _first_order(self, session: ls.BrowserSession, project_id: int, *, from_images: bool) -> None:
        """Wait until Label Studio serves an order of ours.

        Args:
            from_images: wait for one that was made from the images. Until they are embedded the order of a new
                project is by number; a large pool goes on being embedded in the background.
        """
        from backend.queue_push import SAMPLING, is_ours

        with self.progress.phase("first_order", "First order") as phase:
            begun = time.monotonic()
            while True:
                project = ls.find_project(session, project_id)
                if project is None:
                    raise OrderMissing(f"Project {project_id} was deleted in Label Studio. Start again.")
                waited, total = time.monotonic() - begun, int(project.get("task_number") or 0)
                at_work = self._at_work(project_id)
                if (
                    is_ours(project.get("model_version"))
                    and project.get("sampling") == SAMPLING
                    and (not at_work or not from_images or waited > POOL_WITHIN_S)
                ):
                    later = f"; still at work: {at_work}" if at_work and from_images else ""
                    phase.done(project["model_version"] + later)
                    return
                if total and _labelled(project) >= total:
                    phase.done("nothing to order: every task is labelled")
                    return
                self._give_up_when_hopeless(waited)
                phase.say(self._problem(project_id) or at_work or "the workers read tasks and images")
                time.sleep(LOOK_EVERY_S)

    def _give_up_when_hopeless(self, waited_s: float) -> None:
        for name, count in self.supervisor.restarts().items():
            if count >= MOST_RESTARTS:
                what = f"died {count} times before the first order came"
                raise ProcessFailed(name, what, *self.services.log_of(name))
        if waited_s > ORDER_WITHIN_S:
            raise OrderMissing(
                f"No order after {waited_s:.0f} s. Look into {self.home.root / 'logs'}, and at "
                f"{self.services.backend_url}/status for what is wrong."
            )

    def _at_work(self, project_id: int) -> str:
        """What workers do, or will do at once, towards the order of the project; empty when they are idle."""
        from backend.errors import StoreUnavailable

        try:
            jobs = [
                job
                for job in self._tools[1].jobs(project_id)
                if job.state in ("started", "queued") and job.id.startswith(("pool-", "refresh-"))
            ]
        except StoreUnavailable:
            return "Redis is away"  # it is started again in a moment
        return f"{jobs[0].what} {jobs[0].progress}".strip() if jobs else ""

    def _problem(self, project_id: int) -> str:
        """What hinders the workers, in one line."""
        from backend.errors import StoreUnavailable

        with suppress(StoreUnavailable):
            state = self._tools[0].state
            hinders = state.get(project_id, "problem") or state.get(project_id, "no_features")
            return (str(hinders or "").splitlines() or [""])[0]
        return ""

    # ------------------------------------------------------------------ bots
    def _bots(
        self, session: ls.BrowserSession, project: Mapping[str, Any], data: Dataset, link: str, outcome: Outcome
    ) -> None:
        options = self.options
        control, image_control, _ = ls.choices_of(project, data)
        job = Job(
            outcome.project_id,
            control,
            image_control,
            link,
            data.truth,
            options.labels_per_bot,
            options.think_s,
            options.bots,
        )
        record = outcome.record = Record()
        with self.progress.phase("bots", "Bots") as phase:
            phase.say(f"{options.bots} sign up")
            invite = ls.invite_path(session)
            browsers = {
                f"bot-{i}": enter(self.services.url, invite, email_of(i), self.memory.bot_password)
                for i in range(1, options.bots + 1)
            }
            goal = options.bots * options.labels_per_bot

            def tick() -> None:
                errors = len(record.errors)
                phase.say(
                    f"{record.labels():,} of {goal:,} labels by {options.bots} bots"
                    + (f", {errors} errors" if errors else "")
                )

            run_bots(browsers, job, record, stop=threading.Event(), tick=tick)
        with self.progress.phase("curve", "Curve") as phase:
            phase.say("waiting for the model that knows the last label")
            outcome.curve = tuple(self._curve(outcome.project_id, data, link, record))
            phase.done(
                f"{outcome.curve[-1].accuracy:.1%} right on what is not labelled, after "
                f"{outcome.curve[-1].labels:,} labels"
                if outcome.curve
                else "there is no model version yet"
            )

    def _curve(self, project_id: int, data: Dataset, link: str, record: Record) -> list[CurvePoint]:
        workshop, _ = self._tools
        model = workshop.desk(project_id, fresh=True).model
        last = max((s.at for s in record.served if s.label is not None), default=0.0)
        begun = busy = time.monotonic()
        while last and not any(v.created_at > last for v in model.versions()):
            now = time.monotonic()
            busy = now if self._at_work(project_id) else busy
            if now - busy > SETTLE_S or now - begun > SETTLE_WITHIN_S:
                break
            time.sleep(LOOK_EVERY_S)
        model.refresh_pool()
        truth = {
            task: data.truth[file]
            for task, file in self._files(project_id, link).items()
            if file is not None and file in data.truth
        }
        return learning_curve(model, truth, first_label_times(workshop.ls.annotated_tasks(project_id)))

    # ------------------------------------------------------------------ the end
    def _conclude(self, outcome: Outcome) -> int:
        """Tell and write what happened; the status is 0 only when nothing went wrong."""
        outcome.troubles = tuple(
            BotError(d.at, "-", f"run {d.name}", None, str(d)) for d in unexplained(self.supervisor.deaths)
        )
        outcome.restarts = self.supervisor.restarts()
        self._write(outcome)
        for name, count in outcome.restarts.items():
            self.progress.note(f"! {name} was started again {count} time{'s' if count > 1 else ''}")
        errors = outcome.errors
        for error in errors[:SHOWN_ERRORS]:
            self.progress.note(f"! {error.bot}: {error.what}: {error.detail}")
        if len(errors) > SHOWN_ERRORS:
            where = f"all are in {self.options.json}" if self.options.json else "--json FILE keeps them all"
            self.progress.note(f"! {len(errors) - SHOWN_ERRORS} more errors; {where}")
        return 1 if errors else 0

    def _write(self, outcome: Outcome) -> None:
        if self.options.json is not None:
            outcome.write(self.options.json.expanduser().absolute())

    # ------------------------------------------------------------------ the backend's own tools
    def _environment(self) -> dict[str, str]:
        return self.services.backend_environment(
            os.environ, api_key=self.memory.api_key, seed=self.options.seed, strategy=self.options.strategy
        )

    @cached_property
    def _tools(self) -> tuple[Workshop, Dispatcher]:
        """The backend's tools under the settings of the children."""
        from backend.settings import Settings
        from backend.worker_context import build

        return build(Settings.from_env(self._environment()))

    def _files(self, project_id: int, link: str) -> dict[int, str | None]:
        """Task -> its file in the folder of images; None for tasks about something else."""
        return {
            int(task["id"]): ls.file_of(task["data"].get(ls.IMAGE_KEY), link)
            for task in self._tools[0].ls.tasks(project_id)
        }


def _labelled(project: Mapping[str, Any]) -> int:
    return int(project.get("num_tasks_with_annotations") or 0)


def _saying(phase: Phase, text: str) -> Callable[[float], None]:
    return lambda waited_s: phase.say(text)


def first_label_times(tasks: list[dict[str, Any]]) -> dict[int, float]:
    """Task -> unix seconds of its first annotation that is not a skip, from Label Studio's export."""
    first: dict[int, float] = {}
    for task in tasks:
        times = [
            datetime.fromisoformat(a["created_at"].replace("Z", "+00:00")).timestamp()
            for a in task.get("annotations", ())
            if not a.get("was_cancelled")
        ]
        if times:
            first[int(task["id"])] = min(times)
    return first
