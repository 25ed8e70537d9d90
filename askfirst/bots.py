"""Simulated annotators. Each is a Label Studio user of its own, signs up through an invite link, and then does what a
person's browser does after a press on "Label All Tasks": ask for the next task, look, submit, ask again.

They know nothing of Ask First: the order they get is the order that Label Studio serves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from .errors import LabelStudioProblem
from .label_studio import IMAGE_KEY, BrowserSession, file_of
from .stats import Waits

RETRIES = 5  # presses on "try again" before a bot gives up
RETRY_S = 1.0


class Browser(Protocol):
    """What a bot needs of a browser; label_studio.BrowserSession in earnest."""

    def call(
        self, what: str, method: str, path: str, json: Any = None, *, params: dict[str, Any] | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class Job:
    """The same for all bots of a run."""

    project_id: int
    control: str
    image_control: str
    link: str  # folder of images as Label Studio names it
    truth: Mapping[str, str]  # file -> label
    labels_per_bot: int
    think_s: float = 0.0  # time a bot looks at an image
    bots: int = 1


@dataclass(frozen=True)
class Served:
    """One task that a bot got, with the prediction that Label Studio held for it at that moment."""

    at: float  # unix seconds, when the answer came
    bot: str
    task: int
    score: float | None  # None: the task had no prediction of the project's current version
    version: str | None
    label: str | None  # None: skipped, the truth is not known
    asked: float = 0.0  # unix seconds, when the task was asked for


@dataclass(frozen=True)
class BotError:
    """Something a person would have seen going wrong."""

    at: float  # unix seconds
    bot: str
    what: str
    status: int | None  # of HTTP; None: no answer
    detail: str


@dataclass
class Record:
    """What all bots met; threads add to it."""

    served: list[Served] = field(default_factory=list)
    errors: list[BotError] = field(default_factory=list)
    next_task: Waits = field(default_factory=Waits)
    submit: Waits = field(default_factory=Waits)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, entry: Served | BotError) -> None:
        with self._lock:
            if isinstance(entry, Served):
                self.served.append(entry)
            else:
                self.errors.append(entry)

    def labels(self) -> int:
        """Labels given so far, without skips."""
        with self._lock:
            return sum(1 for s in self.served if s.label is not None)

    def in_time_order(self) -> tuple[list[Served], list[BotError]]:
        with self._lock:
            return sorted(self.served, key=lambda s: s.at), sorted(self.errors, key=lambda e: e.at)


def current_prediction(task: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """(score, version) that put this task where it came in the queue.

    Label Studio's answer holds the predictions of the project's version of that moment only; of several the
    lowest counts, as in its own order. One without a score counts only when there is no other.
    """
    predictions = [p for p in task.get("predictions") or () if isinstance(p, Mapping)]
    if not predictions:
        return None, None
    best = min(predictions, key=lambda p: float("inf") if p.get("score") is None else float(p["score"]))
    score = best.get("score")
    return (None if score is None else float(score)), best.get("model_version")


def answer(job: Job, label: str | None, seconds: float, started: float) -> dict[str, Any]:
    """Body of the browser's submit (or skip, when the label is None)."""
    result = (
        []
        if label is None
        else [
            {
                "id": "askfirstbot",
                "from_name": job.control,
                "to_name": job.image_control,
                "type": "choices",
                "origin": "manual",
                "value": {"choices": [label]},
            }
        ]
    )
    body = {
        "lead_time": round(seconds, 3),
        "result": result,
        "draft_id": 0,
        "parent_prediction": None,
        "parent_annotation": None,
        "project": job.project_id,
        "started_at": datetime.fromtimestamp(started, UTC).isoformat(),
    }
    return body | ({"was_cancelled": True} if label is None else {})


class Bot:
    """One annotator at work."""

    def __init__(
        self,
        name: str,
        browser: Browser,
        job: Job,
        record: Record,
        *,
        stop: threading.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._browser = browser
        self._job = job
        self._record = record
        self._stop = stop
        self._now = now

    def work(self) -> None:
        """Label until the share is done, no task is left, the bot is stopped, or Label Studio keeps failing."""
        done = 0
        while done < self._job.labels_per_bot and not self._stop.is_set():
            asked = self._now()
            task = self._next()
            if task is None:
                return
            label = self._label(task)
            got = self._now()
            # A skip is an answer too: Label Studio does not show the task to this bot again.
            if self._stop.wait(self._job.think_s) or not self._submit(task, label, asked, got):
                return
            done += label is not None

    # ------------------------------------------------------------------ asking
    def _next(self) -> Mapping[str, Any] | None:
        for attempt in range(RETRIES):
            if attempt and self._stop.wait(RETRY_S):
                return None
            begun = time.monotonic()
            try:
                task = self._browser.call(
                    "serve the next task",
                    "POST",
                    "/api/dm/actions",
                    {},
                    params={"id": "next_task", "project": self._job.project_id},
                )
            except LabelStudioProblem as problem:
                if problem.status == 404 and self._nothing_left():
                    return None
                self._fail("next task", problem)
                continue
            self._record.next_task.add(time.monotonic() - begun)
            return dict(task)
        return None

    def _nothing_left(self) -> bool:
        """Whether "no more tasks" is true. It is not when tasks without a prediction are hidden from annotators."""
        try:
            project = self._browser.call("show the project", "GET", f"/api/projects/{self._job.project_id}/")
        except LabelStudioProblem:
            return False
        left = int(project.get("task_number") or 0) - int(project.get("num_tasks_with_annotations") or 0)
        # The last few may be open at other bots, and skipped ones do not come back to who skipped them.
        skipped = sum(1 for s in list(self._record.served) if s.label is None and s.bot == self.name)
        return left - skipped < self._job.bots

    # ------------------------------------------------------------------ answering
    def _label(self, task: Mapping[str, Any]) -> str | None:
        file = file_of((task.get("data") or {}).get(IMAGE_KEY), self._job.link)
        return self._job.truth.get(file) if file is not None else None

    def _submit(self, task: Mapping[str, Any], label: str | None, asked: float, got: float) -> bool:
        body = answer(self._job, label, self._now() - got, got)
        score, version = current_prediction(task)
        for attempt in range(RETRIES):
            if attempt and self._stop.wait(RETRY_S):
                return False
            begun = time.monotonic()
            try:
                self._browser.call(
                    "take an annotation",
                    "POST",
                    f"/api/tasks/{task['id']}/annotations/",
                    body,
                    params={"project": self._job.project_id},
                )
            except LabelStudioProblem as problem:
                self._fail(f"submit task {task['id']}", problem)
                continue
            self._record.submit.add(time.monotonic() - begun)
            self._record.add(Served(got, self.name, int(task["id"]), score, version, label, asked))
            return True
        return False

    def _fail(self, what: str, problem: LabelStudioProblem) -> None:
        self._record.add(BotError(self._now(), self.name, what, problem.status, str(problem)))


def enter(url: str, invite: str, email: str, password: str) -> BrowserSession:
    """A browser in which the bot is logged in; signs up at the first visit."""
    browser = BrowserSession(url)
    try:
        browser.login(email, password)
    except LabelStudioProblem as problem:
        if problem.status != 200:
            raise
        browser.sign_up(invite, email, password)
    return browser


def email_of(number: int) -> str:
    return f"bot-{number}@example.com"


def run_bots(
    browsers: Mapping[str, Browser],
    job: Job,
    record: Record,
    *,
    stop: threading.Event,
    tick: Callable[[], None] = lambda: None,
    every_s: float = 0.2,
) -> None:
    """Let all bots work at once; returns when the last one is done. `tick` is called meanwhile.

    An exception in `tick` (Ctrl-C among them) stops the bots and goes on up.
    """
    bots = [Bot(name, browser, job, record, stop=stop) for name, browser in browsers.items()]
    threads = [threading.Thread(target=_guarded, args=(bot, record), name=bot.name, daemon=True) for bot in bots]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            tick()
            _first_alive(threads).join(every_s)
    except BaseException:
        stop.set()
        raise
    tick()


def _guarded(bot: Bot, record: Record) -> None:
    try:
        bot.work()
    except Exception as error:  # a bot that vanishes silently would look like one that is done
        record.add(BotError(time.time(), bot.name, "bot", None, f"{type(error).__name__}: {error}"))


def _first_alive(threads: Sequence[threading.Thread]) -> threading.Thread:
    return next((t for t in threads if t.is_alive()), threads[0])
