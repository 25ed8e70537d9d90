"""Find by looking what no event told: the tick's work for one project.

A webhook is sent once, with a time limit of one second, and never again. So the tick asks Label Studio which tasks
changed since it last asked, compares counts, re-reads the settings, sees whether the backend is still connected, and
wakes work that a dead worker or an emptied Redis left undone.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from .connect import our_webhooks
from .dispatch import Dispatcher
from .errors import LabelStudioRejected
from .project import ProjectDesk, Workshop, connected_projects
from .queue_push import SAMPLING, QueuePusher, read_pushed
from .tune_requests import ASKED, at_hand

OVERLAP = timedelta(seconds=10)  # a transaction may commit after a later one: look a little further back
SAME_CHANGE = timedelta(seconds=2)
CLEAN_UP_S = 60.0
LOOK_AGAIN_S = 600.0
IDLE_S = 600.0
REST_TICKS = 4


def reconcile(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> str:
    """Bring our knowledge of a project in step with Label Studio and wake whoever has work to do.

    Raises: LabelStudioUnavailable, StoreUnavailable.
    """
    state = workshop.state
    if _may_rest(workshop, project_id):
        return "resting"
    pushed = read_pushed(state, project_id)
    try:
        desk = workshop.desk(project_id, fresh=True)
    except LabelStudioRejected as error:
        if error.label_studio_status != 404:
            raise
        _forget(workshop, project_id)
        return "the project is gone from Label Studio (or not visible): forgotten here, its models are kept"
    if _was_disconnected(workshop, desk):
        return "the backend was removed from the project: webhook cleaned up, project left alone"
    found: list[str] = []
    touched = _touched_tasks(workshop, desk)
    if touched:
        state.record(project_id, text=f"{len(touched)} changed task(s) found by looking", dirty=touched)
        found.append(f"{len(touched)} changed tasks")
    if desk.project.task_count != len(desk.files.tasks().ids):
        listed = len(desk.files.tasks().ids)
        flags = ["tasks"] if desk.project.task_count > listed else ["tasks", "relist"]
        if state.get(project_id, "mismatch") == desk.project.task_count:
            flags = ["tasks", "relist"]  # reading the new ones did not explain the difference
        state.put(project_id, "mismatch", desk.project.task_count)
        state.record(project_id, text=f"{desk.project.task_count} tasks in Label Studio, {listed} here", flags=flags)
        found.append("the list of tasks differs")
    elif state.get(project_id, "mismatch") is not None:
        state.drop(project_id, "mismatch")
    differs = pushed is not None and (desk.project.model_version != pushed.version or desk.project.sampling != SAMPLING)
    # Saved in the same moment in which we flipped: the event was taken for that of our own change.
    used = state.get(project_id, "settings_used")
    unseen = used is not None and used != desk.project.settings_digest
    # A refresh may have flipped between our two looks: then the difference is our own.
    if (differs or unseen) and read_pushed(state, project_id) == pushed:
        state.record(project_id, text="settings differ from ours", flags=["project"])
        found.append("settings differ")
    _wake(workshop, dispatcher, desk)
    state.put(project_id, "looked", {"at": time.time(), "in_step": not found})
    return "; ".join(found) or "in step"


def _may_rest(workshop: Workshop, project_id: int) -> bool:
    """An idle project that was in step is looked at every fourth tick only: many must not load Label Studio."""
    state, now = workshop.state, time.time()
    looked = state.get(project_id, "looked")
    if looked is None or not looked["in_step"] or state.flags(project_id) or state.dirty(project_id):
        return False
    idle = now - state.last_annotation(project_id) > IDLE_S
    return bool(idle and now - looked["at"] < REST_TICKS * workshop.settings.tick_s - 1)


def _touched_tasks(workshop: Workshop, desk: ProjectDesk) -> list[int]:
    """Annotated tasks that changed since the last look and that no event named."""
    state, now = workshop.state, time.time()
    seen: dict[str, str] = state.get(desk.id, "seen") or {}
    mark = state.get(desk.id, "watermark")
    if mark is None:
        # First look (or Redis was emptied): everything is read anyway, only the starting point is needed.
        newest = workshop.ls.newest_change(desk.id)
        if newest is not None:
            state.put(desk.id, "watermark", {"stamp": newest, "since": now, "settled": True})
        if state.annotations(desk.id) is None:
            state.record(desk.id, text="labels are read anew", flags=["all-labels"])
        return []
    # Until a stamp is old enough for everything before it to be committed, a look begins before it, one last time
    # when it just is. After that it begins at it: an import gives a hundred thousand tasks nearly the same stamp, and
    # reading them again at every tick would keep Label Studio busy for good.
    settled = now - mark["since"] > OVERLAP.total_seconds()
    begin = _moment(mark["stamp"]) - (timedelta() if mark["settled"] else OVERLAP)
    rows = workshop.ls.touched_since(desk.id, begin.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    stamps = {str(r["id"]): str(r["updated_at"]) for r in rows}
    newest = max([mark["stamp"], *stamps.values()])
    if newest != mark["stamp"]:
        state.put(desk.id, "watermark", {"stamp": newest, "since": now, "settled": False})
    elif settled and not mark["settled"]:
        state.put(desk.id, "watermark", {**mark, "settled": True})
    state.put(desk.id, "seen", stamps)
    changed = [r for r in rows if seen.get(str(r["id"])) != str(r["updated_at"])]
    cached = state.annotations_of(desk.id, [int(r["id"]) for r in changed])
    return [int(row["id"]) for row in changed if not _is_known(row, cached[int(row["id"])])]


def _is_known(row: dict[str, Any], annotations: list[dict[str, Any]]) -> bool:
    """Whether what we have of a task is what Label Studio has: the same counts, and no later change.

    Label Studio moves the task's time a few milliseconds after that of the annotation that moved it.
    """
    skipped = sum(bool(a.get("was_cancelled")) for a in annotations)
    answered = int(row.get("total_annotations") or 0)
    # Of a task that somebody answered its skips are not read: they would change nothing.
    if answered != len(annotations) - skipped or (
        not answered and int(row.get("cancelled_annotations") or 0) != skipped
    ):
        return False
    if not annotations:
        return True
    newest = max(str(a.get("updated_at") or "") for a in annotations)
    return bool(newest) and _moment(str(row["updated_at"])) - _moment(newest) < SAME_CHANGE


def _moment(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00"))


def _was_disconnected(workshop: Workshop, desk: ProjectDesk) -> bool:
    """True when somebody removed the backend in Label Studio; its webhook stays behind there and is cleaned up."""
    state, ls = workshop.state, workshop.ls
    # Listing backends makes Label Studio call /health and /setup of each: not at every tick.
    asked = float(state.get(desk.id, "backends_asked") or 0)
    if time.time() - asked < REST_TICKS * workshop.settings.tick_s:
        return False
    state.put(desk.id, "backends_asked", time.time())
    url = state.get(desk.id, "url") or workshop.settings.url_for_label_studio
    connected = any(str(b.get("url", "")).rstrip("/") == url for b in ls.backends(desk.id))
    if connected:
        state.put(desk.id, "connected", True)
        return False
    if not state.get(desk.id, "connected"):
        return False  # never seen connected: `askfirst connect` is just about to, or the address differs
    for hook in our_webhooks(ls, desk.id, url):
        ls.delete_webhook(int(hook["id"]))
    desk.files.write_connection(None)
    state.forget(desk.id)
    return True


def remember_connections(workshop: Workshop) -> None:
    """Take up projects that are connected according to disk and unknown to Redis (it was emptied)."""
    known = set(workshop.state.projects())
    for connection in connected_projects(workshop.settings):
        if connection["id"] not in known:
            workshop.state.adopt(connection["id"])
            workshop.state.put(connection["id"], "url", connection["url"])
            workshop.state.put(connection["id"], "connected", True)
            workshop.state.record(
                connection["id"],
                text="taken up again after Redis was emptied",
                flags=["tasks", "project", "all-labels"],
            )


def _forget(workshop: Workshop, project_id: int) -> None:
    for path in (workshop.settings.model_dir / "projects").glob(f"{project_id}-*/connection.json"):
        path.unlink(missing_ok=True)
    workshop.state.forget(project_id)


def _order_is_behind(desk: ProjectDesk, model: str | None) -> bool:
    """Whether the order served is not that of the live version, or a worker was killed before the newest was judged."""
    live = desk.model.live()
    if live is None:
        return desk.model.newest() is not None
    return live.id != model or desk.model.undecided() is not None


def _wake(workshop: Workshop, dispatcher: Dispatcher, desk: ProjectDesk) -> None:
    """Enqueue what is due: events nobody works on, jobs that vanished, the full order and clean-up in quiet times."""
    state, settings = workshop.state, workshop.settings
    for kind in ("refresh", "pool", "full", "tune"):
        if dispatcher.waiting_job_lost(desk.id, kind):
            state.clear_waiting(desk.id, kind)
    wake = state.wake_number(desk.id)
    flags = state.flags(desk.id)
    pushed = read_pushed(state, desk.id)
    at_it = state.holder(desk.id, "pool") is not None
    if not at_it and ("tasks" in flags or not desk.files.tasks().ids or desk.model.representation() is None):
        dispatcher.wake(desk.id, "pool", wake)
    behind = pushed is None or (desk.files.pin() is None and _order_is_behind(desk, pushed.model))
    waits = flags.keys() - {ASKED}  # a fine-tuning run that was asked for may wait for hours
    if state.dirty(desk.id) or state.gone(desk.id) or waits or behind or state.take_again(desk.id, "refresh"):
        dispatcher.wake(desk.id, "refresh", wake)
    if at_hand(workshop, desk) and state.holder(desk.id, "tune") is None:
        dispatcher.wake(desk.id, "tune", wake)  # a run that was killed goes on, one that was asked for is not lost
    # Images that could not be loaded may only have been away: a server restarted, a disk was not mounted.
    if state.take_again(desk.id, "pool") or (
        state.get(desk.id, "unreadable_count")
        and time.time() - float(state.get(desk.id, "pool_at") or 0) > LOOK_AGAIN_S
    ):
        dispatcher.wake(desk.id, "pool", wake)
    if (
        not workshop.is_quiet(desk.id)
        or pushed is None
        or state.holder(desk.id, "refresh")
        or state.holder(desk.id, "full")
    ):
        return
    if pushed.kind == "sprint" or state.get(desk.id, "front_of") == pushed.version:
        dispatcher.wake(desk.id, "full", wake)
        return
    started = time.time()
    QueuePusher(workshop.ls, state).delete_old(
        desk.id,
        {pushed.version, state.get(desk.id, "full_version")},
        lambda: state.last_annotation(desk.id) < started - settings.quiet_s and time.time() - started < CLEAN_UP_S,
    )
    desk.model.prune(settings.keep_versions)
