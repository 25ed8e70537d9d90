"""Make Label Studio serve our order: store predictions under a new version, then flip the project to it.

The flip is one PATCH and atomic for the queue. Where one import costs seconds (Label Studio without its
memory-efficient import flag recounts all tasks of the project on each), the scores of the few front tasks of the served
version are changed in place instead: dearer per task, independent of the project's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import structlog

from .errors import LabelStudioRejected
from .ls_client import LabelStudioClient, Project
from .state import State
from .wire import Answer, prediction_of

log = structlog.get_logger(__name__)

SAMPLING = "Uncertainty sampling"
VERSION_PREFIX = "askfirst"
ROW_S = 0.002  # what one prediction of an import costs by itself, amply
SLOW_IMPORT_S = 1.0  # an import that costs this much beyond its rows: change scores in place from then on
SLOW_CHUNK = 5_000  # rows of one import where each request costs seconds, whatever its size
FRONT_TASKS = 5  # tasks changed in place beside one for each annotator


@dataclass(frozen=True)
class Row:
    """One task of an order: its score and, where the model is sure enough, the answers shown to annotators."""

    task_id: int
    score: float
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Pushed:
    """The order that Label Studio serves, as remembered in the shared state."""

    version: str  # version string in Label Studio
    model: str | None  # model version that made it; None before the first label
    kind: str  # "sprint" or "full"
    ids: tuple[int, ...]  # tasks that carry it, in order
    pool: str  # state of the pool it was made from
    at: float  # unix seconds
    labels: int  # labels the order knew of


def read_pushed(state: State, project_id: int) -> Pushed | None:
    """What was pushed last; None when nothing was, or Redis forgot."""
    raw = state.get(project_id, "pushed")
    return None if raw is None else Pushed(**{**raw, "ids": tuple(raw["ids"])})


def write_pushed(state: State, project_id: int, pushed: Pushed) -> None:
    state.put(project_id, "pushed", {**pushed.__dict__, "ids": list(pushed.ids)})


def version_string(model: str | None, kind: str, now: float | None = None) -> str:
    """A string never used before that tells people what it is: `askfirst <model> <kind>-<milliseconds in base 36>`."""
    stamp = int((time.time() if now is None else now) * 1000)
    return f"{VERSION_PREFIX} {model or 'cold-start'} {kind}-{_base36(stamp)}"


def is_ours(version: str | None) -> bool:
    """Whether a version string in Label Studio was made by `version_string`."""
    return bool(version) and str(version).startswith(VERSION_PREFIX + " ")


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"


class QueuePusher:
    """Writes orders into one project of Label Studio."""

    def __init__(self, ls: LabelStudioClient, state: State, *, chunk: int = 500) -> None:
        self._ls = ls
        self._state = state
        self._chunk = chunk

    # ------------------------------------------------------------------ import and flip
    def store(
        self,
        project_id: int,
        rows: Sequence[Row],
        version: str,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[int]:
        """Import predictions; returns the tasks that carry them now (others were deleted in the meantime)."""
        kept: list[int] = []
        size, start = self._chunk, 0
        while start < len(rows):
            chunk = rows[start : start + size]
            started = time.monotonic()
            kept += self._store_chunk(project_id, chunk, version)
            beyond = time.monotonic() - started - ROW_S * len(chunk)
            if len(chunk) <= self._chunk:
                self._state.put(project_id, "import_s", round(max(0.0, beyond), 3))
            size = max(self._chunk, SLOW_CHUNK if beyond > SLOW_IMPORT_S else 0)
            start += len(chunk)
            if progress:
                progress(len(kept), len(rows))
        return kept

    def _store_chunk(self, project_id: int, rows: Sequence[Row], version: str) -> list[int]:
        """Import rows; when one names a task that is gone, Label Studio refuses all: halve until it is found."""
        try:
            created = self._ls.import_predictions(
                project_id, [prediction_of(r.task_id, r.answers, r.score, version) for r in rows]
            )
        except LabelStudioRejected as error:
            if error.label_studio_status != 400:
                raise
            self._state.record(project_id, text="a task of the order is gone; the list is read again", flags=["tasks"])
            if len(rows) == 1:
                log.warning("prediction refused", project=project_id, task=rows[0].task_id, answer=error.body)
                return []
            half = len(rows) // 2
            return self._store_chunk(project_id, rows[:half], version) + self._store_chunk(
                project_id, rows[half:], version
            )
        if created < len(rows):
            log.warning("Label Studio dropped predictions", project=project_id, sent=len(rows), kept=created)
        return [r.task_id for r in rows]

    def flip(self, project: Project, pushed: Pushed, *, sampling: bool = True) -> Project:
        """Serve a stored version; also sets the sampling that honours scores. Returns the project as it is then."""
        changes: dict[str, Any] = {"model_version": pushed.version}
        if sampling and project.sampling != SAMPLING:
            changes["sampling"] = SAMPLING
        # What we are about to set is written down first: the PROJECT_UPDATED that our own PATCH raises arrives
        # before the PATCH returns, and must not look like somebody's change.
        self._state.put(project.id, "expected_version", pushed.version)
        after = self._ls.patch_project(project.id, **changes)
        write_pushed(self._state, project.id, pushed)
        return after

    # ------------------------------------------------------------------ in place
    def prefers_in_place(self, project_id: int) -> bool:
        """True when a small import costs so much here that changing single scores is quicker."""
        return float(self._state.get(project_id, "import_s") or 0.0) > SLOW_IMPORT_S

    def reorder_front(self, project_id: int, pushed: Pushed, base: Mapping[int, float], front: Sequence[int]) -> bool:
        """Move `front` before all other tasks of the served version by changing scores in place, best first.

        Args:
            base: score under which each task that still wants an annotation was stored.
            front: tasks among these, in the order wanted.
        Returns:
            False when there is no room below the other tasks' scores: then import an order instead.
        """
        moved = {int(k): v for k, v in (self._state.get(project_id, "front") or {}).items()}
        if self._state.get(project_id, "front_of") != pushed.version:
            moved = {}
        chosen = set(front)
        rest = [s for t, s in base.items() if t not in chosen]
        ceiling = min(rest, default=1.0)
        if ceiling <= 0.0:
            return False
        wanted = {task: ceiling * (i + 1) / (len(front) + 1) for i, task in enumerate(front)}
        # Tasks that leave the front get their stored score back after the new front is in place.
        wanted |= {task: base[task] for task in moved if task not in wanted and task in base}
        for task, score in wanted.items():
            if moved.get(task, base.get(task)) == score:
                continue
            for prediction in self._ls.predictions_of_task(task):
                if prediction["model_version"] == pushed.version:
                    self._ls.patch_prediction(int(prediction["id"]), score)
            moved[task] = score
        self._state.put(project_id, "front", {str(t): s for t, s in moved.items() if s != base.get(t)})
        self._state.put(project_id, "front_of", pushed.version)
        return True

    # ------------------------------------------------------------------ old versions
    def delete_old(self, project_id: int, keep: Set[str | None], may_go_on: Callable[[], bool]) -> int:
        """Delete our stored versions but those in `keep`, smallest first, while `may_go_on()`; how many went.

        A big delete under load locks Label Studio's SQLite for minutes, so callers run this only while nobody labels.
        """
        deleted = 0
        versions = sorted(self._ls.prediction_versions(project_id).items(), key=lambda item: item[1])
        for version, _ in versions:
            if not is_ours(version) or version in keep:
                continue
            if not may_go_on():
                break
            self._ls.delete_prediction_version(project_id, version)
            deleted += 1
        return deleted
