"""The labels of a project, kept in step with Label Studio.

Label Studio is the source of truth: a webhook only says which tasks to read again. The annotations read are cached in
the shared state (so that another worker, or this one after a restart, need not read all), and reduced to labels in
memory, only those that changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from training import api as training

from .controls import Control
from .labeling_config import LabelingConfig
from .labels import Label, answers_all, reduce_all, targets_of
from .ls_client import LabelStudioClient
from .state import State

READ_TOGETHER = 4  # Label Studio's built-in server gains nothing beyond
FULL_READ_ABOVE = 80  # single reads cost 25 ms each; the export of a thousand tasks about a second
ACTIVE_S = 15 * 60.0  # an annotator counts as present this long after a submit
_KEPT = ("id", "was_cancelled", "ground_truth", "updated_at", "created_at")
_KEPT_OF_RESULT = ("id", "from_name", "to_name", "type", "value")


@dataclass(frozen=True)
class LabelSummary:
    """Counts for the status page."""

    labelled: int  # tasks with an answer to some question
    ties: int
    skipped: int
    unknown: int
    empty: int
    half: int = 0  # tasks that lack an answer which must be given


class LabelBook:
    """Annotations and labels of one project, for the length of a process."""

    def __init__(self, project_id: int) -> None:
        self.project_id = project_id
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        self.labels: dict[int, tuple[Label, ...]] = {}  # to each question of the config, in its order
        self._required: tuple[Control, ...] = ()
        self._rev: int | None = None  # state's labels_rev that the memory stands for
        self._config_digest = ""

    # ------------------------------------------------------------------ in step with Label Studio
    def sync(self, state: State, ls: LabelStudioClient, config: LabelingConfig) -> None:
        """Read from Label Studio whatever events said changed, and nothing else.

        Events are taken off the list only after their annotations are stored, and only if no later event touched the
        same task, so a worker killed anywhere in between loses nothing.
        """
        dirty, flags, gone = state.dirty(self.project_id), state.flags(self.project_id), state.gone(self.project_id)
        self._load(state)
        full = self._rev is None or "all-labels" in flags
        wanted = set(dirty) | self._tasks_of(gone)
        if full or len(wanted) > FULL_READ_ABOVE:
            rows = {int(t["id"]): slim(t["annotations"]) for t in ls.annotated_tasks(self.project_id)}
            self._store(state, rows, replace=True)
        elif wanted:
            with ThreadPoolExecutor(min(READ_TOGETHER, len(wanted))) as pool:
                read = list(pool.map(lambda t: (t, slim(ls.task_annotations(t) or [])), sorted(wanted)))
            self._store(state, dict(read))
        state.clean(self.project_id, "dirty", dirty)
        state.clean(self.project_id, "gone", gone)
        if "all-labels" in flags:
            state.clean(self.project_id, "flags", {"all-labels": flags["all-labels"]})
        if config.digest != self._config_digest:
            self._config_digest = config.digest
            self._required = tuple(control for control in config.controls if control.required)
            self.labels = {t: reduce_all(a, config) for t, a in self.annotations.items()}
        else:
            for task in self.annotations if full else wanted:
                if task in self.annotations:
                    self.labels[task] = reduce_all(self.annotations[task], config)
            for task in [t for t in self.labels if t not in self.annotations]:
                del self.labels[task]

    def _load(self, state: State) -> None:
        rev = state.get(self.project_id, "labels_rev")
        if rev is not None and rev == self._rev:
            return
        cached = state.annotations(self.project_id)
        if cached is None:
            self._rev = None
            return
        self.annotations, self._rev = cached, rev
        self.labels, self._config_digest = {}, ""

    def _store(self, state: State, changed: Mapping[int, list[dict[str, Any]]], *, replace: bool = False) -> None:
        rev = state.put_annotations(self.project_id, changed, replace=replace)
        if replace:
            self.annotations, self.labels, self._config_digest = {t: a for t, a in changed.items() if a}, {}, ""
        else:
            for task, annotations in changed.items():
                if annotations:
                    self.annotations[task] = annotations
                else:
                    self.annotations.pop(task, None)
        # Another process may have stored something in between: then the number is not the next one, and the
        # memory is loaded again.
        self._rev = rev if replace or self._rev is None or rev == self._rev + 1 else None

    def _tasks_of(self, annotation_ids: Iterable[int]) -> set[int]:
        ids = set(annotation_ids)
        if not ids:
            return set()
        return {t for t, rows in self.annotations.items() if any(a.get("id") in ids for a in rows)}

    # ------------------------------------------------------------------ what the loop asks
    def targets(self, config: LabelingConfig) -> list[dict[int, training.Target]]:
        """Of each question of the config: task -> its agreed answer."""
        return [
            targets_of({t: labels[place] for t, labels in self.labels.items()}, control)
            for place, control in enumerate(config.controls)
        ]

    def count(self) -> int:
        """Tasks with an agreed answer to some question."""
        return sum(any(label.kind == "agreed" for label in labels) for labels in self.labels.values())

    def skipped(self) -> list[int]:
        """Tasks that everybody who opened them skipped, ascending."""
        return sorted(task for task, labels in self.labels.items() if labels[0].kind == "skipped")

    def annotators_of(self, task_id: int) -> int:
        """Different people whose annotation of the task counts: no skip, and every answer that must be given is."""
        return len(
            {
                a.get("completed_by")
                for a in self.annotations.get(task_id, ())
                if not a.get("was_cancelled") and answers_all(a, self._required)
            }
        )

    def active_annotators(self, now: float | None = None) -> int:
        """People who submitted within the last quarter of an hour; at least one."""
        since = datetime.fromtimestamp((time.time() if now is None else now) - ACTIVE_S, UTC)
        stamp = since.strftime("%Y-%m-%dT%H:%M:%S")  # Label Studio's times are UTC in this form: they sort as text
        recent = {
            a.get("completed_by")
            for rows in self.annotations.values()
            for a in rows
            if str(a.get("updated_at", "")) >= stamp
        }
        return max(1, len(recent))

    def summary(self) -> LabelSummary:
        kinds = [{label.kind for label in labels} for labels in self.labels.values()]
        return LabelSummary(
            labelled=self.count(),
            ties=sum("tie" in found for found in kinds),
            skipped=sum("skipped" in found for found in kinds),
            unknown=sum("unknown" in found for found in kinds),
            empty=sum(found == {"empty"} for found in kinds),
            half=sum(
                bool(found - {"skipped"}) and not self.annotators_of(task)
                for task, found in zip(self.labels, kinds, strict=True)
            )
            if self._required
            else 0,
        )


def slim(annotations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Annotations with only the keys that labels are made of; `completed_by` as a number."""
    rows = []
    for annotation in annotations:
        by = annotation.get("completed_by")
        rows.append(
            {
                **{k: annotation[k] for k in _KEPT if annotation.get(k) is not None},
                "completed_by": by.get("id") if isinstance(by, dict) else by,
                "result": [
                    {k: r[k] for k in _KEPT_OF_RESULT if k in r}
                    for r in annotation.get("result") or []
                    if isinstance(r, dict)
                ],
            }
        )
    return rows
