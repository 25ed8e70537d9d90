"""With what chance each labelled task was asked for: what estimates from a queue that is not uniform need.

    picks.jsonl     one line for each task that was labelled after our queue had asked for it; only ever added to
    offered.json    picks of tasks that may be open in a browser and that the order served now tells nothing (or
                    something later) of: handed out before it was made, or moved to the front in place; a few hundred

Everything else about what could be asked for is in the file of the order served. Both are files of the project, so an
emptied Redis loses no pick. A line is written before the next order is served, under the lease of the refresh: a worker
killed before it leaves the work to the next, one killed after it has done it. Nothing is written twice, since a line
names task and order.

A label is put down to the newest order that offered the task, but for tasks that were open when a newer one took its
place: those whose label was on its way, and as many of the next ones as people are at work. Who opened a task further
down, and sends it after a newer order placed it elsewhere, is put down to that.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from training import api as training

from .order import Order, read_order

LOG_FILE, OFFERED_FILE = "picks.jsonl", "offered.json"
OFFERED_KEPT = 200  # tasks; far more than people have open
FRONT_KEPT = 200  # leading places of an order that may have been opened when the next one is served
_PENDING = training.REASONS.index("pending")


@dataclass(frozen=True)
class Pick:
    """How a task came to be asked for; the numbers as in `training.Odds`."""

    order: str  # version string in Label Studio
    model: str  # model version ("" before the first label)
    place: int  # in the order, from 1
    reason: str
    propensity: float
    share: float
    left: int
    strategy: str
    explore: float  # share of the places that the settings gave to chance
    question: str = ""  # whose answer was worth most, where there are several


@dataclass(frozen=True)
class LabelledPick:
    """One line of the log."""

    task: int
    at: float  # unix seconds at which the label was noticed
    pick: Pick


class PickLog:
    """The picks of one project, as one worker has them open. Used under the lease of the refresh."""

    def __init__(self, home: Path, served: Path) -> None:
        self._home = home
        self._served = served  # file of the order that is served
        self._served_stamp: tuple[int, int] | None = None
        self._order: Order | None = None
        self._rows: dict[int, int] = {}  # task -> row of the order served, where something was chosen
        self._logged: dict[int, str] = {}  # task -> order of its last line
        self._told: set[int] | None = None  # tasks whose present label has its line
        self._read_to = 0  # bytes of the log that are known

    # ------------------------------------------------------------------ what was labelled
    def note(self, annotated: Collection[int], at: float) -> int:
        """Write a line for each task that was offered and is annotated now; how many lines.

        Args:
            annotated: tasks with an annotation, skips among them; membership must be quick.
            at: unix seconds.
        """
        offered = self._offered()
        self._look_at_served()
        self._read_on()
        # A label has one line, however many orders still list its task; taken back and given again it has another.
        if self._told is None or not self._logged:  # a new process, or a log that is gone
            self._told = {task for task in self._logged if task in annotated}
        self._told = {task for task in self._told if task in annotated}
        served = "" if self._order is None else self._order.version
        found = [
            LabelledPick(t, at, p)
            for t, p in offered.items()
            if t in annotated and t not in self._told and self._logged.get(t) != p.order
        ]
        # The shorter of the two: a full order holds a hundred thousand tasks, a long project as many labels.
        short, long = (annotated, self._rows) if len(annotated) < len(self._rows) else (self._rows, annotated)
        for task in short:
            if task in long and task not in offered and task not in self._told and self._logged.get(task) != served:
                assert self._order is not None
                found.append(LabelledPick(task, at, _pick(self._order, self._rows[task], served)))
        self._append(found)
        self._told.update(line.task for line in found)
        left = {task: pick for task, pick in offered.items() if task not in annotated}
        if len(left) < len(offered):
            self._write_offered(left)
        return len(found)

    # ------------------------------------------------------------------ what is offered
    def before_serving(self, order: Order, sent: Collection[int] = (), people: int = 0) -> None:
        """Keep the picks that `order`, about to be served, must not change: of tasks that it calls pending, of those at
        the front of the present one that it leaves out, and of those that are open now.

        Args:
            sent: tasks with a label, or with word of one that nobody has read yet.
            people: at work; each has one of the tasks open that come next in the present order.
        """
        self._look_at_served()
        self._keep(order, sent, people)

    def after_serving(self, order: Order, sent: Collection[int] = (), people: int = 0) -> None:
        """The same once more when `order` is served: people go on while Label Studio changes over."""
        self._keep(order, sent, people)

    def _keep(self, order: Order, sent: Collection[int], people: int) -> None:
        offered = self._offered()
        on_the_way, front = self._present(offered, sent)
        open_now = {*on_the_way, *front[:people]}
        chosen = ~np.isnan(order.propensity)
        told = set(order.ids[chosen].tolist()) - open_now
        kept = {}
        # A task that came back, after its label was deleted, has a line already and keeps no pick.
        for task in [*offered, *front, *order.ids[order.reason == _PENDING].tolist(), *on_the_way]:
            pick = None if task in told else self._resolve(task, offered)
            if pick is not None and self._logged.get(task) != pick.order:
                kept[task] = pick
        self._write_offered(kept)

    def moved(
        self, order: Order, front: Sequence[int], version: str, sent: Collection[int] = (), people: int = 0
    ) -> None:
        """Note that `front` was put before all other tasks of the served `version`, as `order` has them; those pending
        or open keep their picks, those moved earlier stand again where the version has them.

        Args:
            sent, people: as `before_serving`.
        """
        offered = self._offered()
        self._look_at_served()
        on_the_way, waiting = self._present(offered, sent)
        open_now = {*on_the_way, *waiting[:people]}
        rows = np.flatnonzero(np.isin(order.ids, np.asarray(front, np.int64)))
        row_of = dict(zip(order.ids[rows].tolist(), rows.tolist(), strict=True))
        kept = {
            task: pick
            for task, pick in offered.items()
            if pick.order != version or task not in self._rows or task in open_now
        }
        for task in front:
            row = row_of.get(task)
            if row is not None and not np.isnan(order.propensity[row]) and task not in open_now:
                kept[task] = _pick(order, row, version)
            elif (pick := self._resolve(task, offered)) is not None:
                kept[task] = pick
        self._write_offered(kept)

    def _present(self, offered: dict[int, Pick], sent: Collection[int]) -> tuple[list[int], list[int]]:
        """Tasks of the present order: those labelled under it without a line yet, and the next ones that wait."""
        if self._order is None:
            return [], []
        moved = [task for task, pick in offered.items() if pick.order == self._order.version]
        on_the_way: list[int] = []
        waiting: list[int] = []
        for task in dict.fromkeys([*moved, *self._order.ids.tolist()]):
            if task not in sent:
                if len(waiting) < FRONT_KEPT:
                    waiting.append(task)
            elif self._logged.get(task) != self._order.version:
                on_the_way.append(task)
        return on_the_way, waiting

    # ------------------------------------------------------------------ files
    def _resolve(self, task: int, offered: dict[int, Pick]) -> Pick | None:
        if task in offered:
            return offered[task]
        row = self._rows.get(task)
        return None if row is None or self._order is None else _pick(self._order, row, self._order.version)

    def _look_at_served(self) -> None:
        try:
            stat = self._served.stat()
            stamp: tuple[int, int] | None = (stat.st_ino, stat.st_mtime_ns)
        except FileNotFoundError:
            stamp = None
        if stamp != self._served_stamp:
            self._order = read_order(self._served) if stamp else None
            self._rows = {}
            if self._order is not None:
                rows = np.flatnonzero(~np.isnan(self._order.propensity))
                self._rows = dict(zip(self._order.ids[rows].tolist(), rows.tolist(), strict=True))
            self._served_stamp = stamp

    def _offered(self) -> dict[int, Pick]:
        try:
            raw = json.loads((self._home / OFFERED_FILE).read_text(encoding="utf-8"))
            return {int(task): Pick(**pick) for task, pick in raw.items()}
        except (FileNotFoundError, ValueError, TypeError):  # none yet, or another release's: a few picks are not told
            return {}

    def _write_offered(self, offered: dict[int, Pick]) -> None:
        """The newest of them; whole, then renamed."""
        newest = list(offered.items())[-OFFERED_KEPT:]
        if not newest and not (self._home / OFFERED_FILE).exists():
            return
        self._home.mkdir(parents=True, exist_ok=True)
        part = self._home / f".{OFFERED_FILE}.{uuid.uuid4().hex}"
        part.write_text(json.dumps({str(task): _record(pick) for task, pick in newest}), encoding="utf-8")
        os.replace(part, self._home / OFFERED_FILE)

    def _append(self, found: Sequence[LabelledPick]) -> None:
        if not found:
            return
        self._home.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"task": f.task, "at": round(f.at, 3), **_record(f.pick)}) + "\n" for f in found)
        with (self._home / LOG_FILE).open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a writer was killed in the middle of a line: it stands alone
                    lines = "\n" + lines
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self._read_on()

    def _read_on(self) -> None:
        """Take in the lines that were added since, by whomever."""
        path = self._home / LOG_FILE
        size = path.stat().st_size if path.exists() else 0
        if size < self._read_to:  # somebody moved it away
            self._logged, self._read_to = {}, 0
        if size == self._read_to:
            return
        with path.open("rb") as file:
            file.seek(self._read_to)
            data = file.read()
        whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        for raw in _lines(whole):
            self._logged[raw["task"]] = raw["order"]
        self._read_to += len(whole)


def read_picks(home: Path) -> Iterator[LabelledPick]:
    """The log of a project, oldest first; a line that was cut off is left out."""
    path = home / LOG_FILE
    if path.exists():
        yield from _parsed(path.read_bytes())


def _parsed(data: bytes) -> Iterator[LabelledPick]:
    names = [field.name for field in fields(Pick)]
    for raw in _lines(data):
        yield LabelledPick(raw["task"], raw["at"], Pick(**{name: raw[name] for name in names if name in raw}))


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Lines that are whole."""
    for line in data.splitlines():
        try:
            raw = json.loads(line)
        except ValueError:
            continue
        if isinstance(raw, dict) and "task" in raw:
            yield raw


def _record(pick: Pick) -> dict[str, Any]:
    """As JSON values; the question is told where there are several."""
    return {name: value for name, value in vars(pick).items() if name != "question" or value}


def _pick(order: Order, row: int, version: str) -> Pick:
    return Pick(
        order=version,
        model=order.model,
        place=row + 1,
        reason=training.REASONS[int(order.reason[row])],
        propensity=float(order.propensity[row]),
        share=float(order.share[row]),
        left=int(order.left[row]),
        strategy=order.strategy,
        explore=order.explore,
        question=order.question(row),
    )
