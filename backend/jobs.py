"""What workers run. Each job may be run twice, or be killed anywhere and run again.

refresh  seconds   labels -> refit -> order -> push           one per project at a time, one waiting
pool     hours     list of tasks -> embeddings                one per project at a time, one waiting
full     minutes   an order of all tasks, stored in the background
tune     hours     a network fine-tuned on the labels, and the gate  one per project at a time, one waiting
adopt    seconds   a project that was connected in Label Studio's own pages
tick     seconds   reconciliation: finds lost events, broken settings, dead jobs; cleans up while nobody labels
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from rq import get_current_job

from training import api as training

from . import connect as connection
from .dispatch import Dispatcher
from .errors import BackendError, LabelStudioRejected, LabelStudioUnavailable, UnsupportedLabelConfig
from .fine_tune import CANCEL, FineTuner, TuneFiles
from .fine_tune import due as fine_tuning_is_due
from .pool_sync import PoolSync
from .project import Workshop
from .queue_push import read_pushed
from .reconcile import reconcile, remember_connections
from .refresh import Refresher
from .tune_requests import ASKED
from .worker_context import context

log = structlog.get_logger(__name__)

REFRESHERS_IN_MEMORY = 8
FINISHED_ANYWAY = 1_000  # predictions; a second or two of Label Studio's time


def refresh(project_id: int, wake_number: int) -> str:
    """Bring one project's model and queue up to date."""
    return _once_per_project(project_id, "refresh", _refresh)


def pool(project_id: int, wake_number: int) -> str:
    """Bring one project's list of tasks and embeddings up to date."""
    return _once_per_project(project_id, "pool", _pool)


def full(project_id: int, wake_number: int) -> str:
    """Store an order of all tasks; serve it unless newer labels made a newer one meanwhile."""
    return _once_per_project(project_id, "full", _full)


def tune(project_id: int, wake_number: int) -> str:
    """Fine-tune the network on the labels there are, and let it take over if the gate lets it through."""
    return _once_per_project(project_id, "tune", _tune)


def adopt(project_id: int, wake_number: int) -> str:
    """Set up a project that somebody connected in Label Studio's settings."""
    workshop, dispatcher = context()
    workshop.state.clear_waiting(project_id, "adopt")
    try:
        url = connection.wait_for_entry(workshop, project_id)
    except LabelStudioRejected as error:
        if error.label_studio_status != 404:
            raise
        return "there is no such project, or it is not visible to the user of LABEL_STUDIO_API_KEY"
    if url is None:
        return "no backend entry of ours in the project: it was only being tried out"
    return "; ".join(connection.connect_project(workshop, dispatcher, project_id, url=url).done)


def tick() -> str:
    """Compare every known project with Label Studio."""
    workshop, dispatcher = context()
    results = []
    remember_connections(workshop)
    for project_id in workshop.state.projects():
        try:
            results.append(f"{project_id}: {reconcile(workshop, dispatcher, project_id)}")
        except BackendError as error:
            results.append(f"{project_id}: {error}")
            log.warning("reconciliation put off", project=project_id, cause=str(error))
    return "; ".join(results)


# ---------------------------------------------------------------------- one at a time
def _once_per_project(project_id: int, kind: str, work: Callable[[Workshop, Dispatcher, int], str]) -> str:
    """Run `work` under the project's lease; somebody else at it: leave word and go.

    The waiting mark goes first: an event from now on enqueues the next job. Word left after the holder looked its last
    is picked up by the second try, because the holder gives the lease up before it looks.
    """
    workshop, dispatcher = context()
    state = workshop.state
    state.clear_waiting(project_id, kind)
    for attempt in (1, 2):
        with state.lease(project_id, kind, workshop.settings.lease_s) as held:
            if held:
                state.take_again(project_id, kind)
                result = _guarded(workshop, dispatcher, project_id, kind, work)
                break
        if attempt == 1:
            state.ask_again(project_id, kind)
    else:
        return "another worker is at it and will look again"
    if state.take_again(project_id, kind):
        dispatcher.wake(project_id, kind, state.wake_number(project_id))
    return result


def _guarded(
    workshop: Workshop,
    dispatcher: Dispatcher,
    project_id: int,
    kind: str,
    work: Callable[[Workshop, Dispatcher, int], str],
) -> str:
    started = time.monotonic()
    try:
        result = work(workshop, dispatcher, project_id)
    except UnsupportedLabelConfig as error:
        workshop.state.put(project_id, "problem", str(error))
        result = "the labelling config is not served"
    except LabelStudioRejected as error:
        if error.label_studio_status == 404:
            workshop.state.put(project_id, "problem", f"{error}")
        else:
            workshop.state.put(project_id, "trouble", str(error))
            raise
        result = "the project is gone, or not visible to the user of LABEL_STUDIO_API_KEY"
    except LabelStudioUnavailable as error:
        # The order served stays; the tick brings us back when Label Studio is there again.
        workshop.state.put(project_id, "trouble", str(error))
        raise
    else:
        workshop.state.drop(project_id, "trouble")
    log.info("job done", kind=kind, project=project_id, seconds=round(time.monotonic() - started, 3), result=result)
    return result


def show_progress(done: int, total: int, what: str = "") -> None:
    """Write progress where the status page and Label Studio's job status find it."""
    job = get_current_job()
    if job is not None:
        job.meta["progress"] = f"{done}/{total}{' ' + what if what else ''}"
        job.save_meta()


# ---------------------------------------------------------------------- the work
class _PutOff(Exception):
    """A full order was left for a quieter time; the message says how far it came."""


_refreshers: dict[str, Refresher] = {}


def _refresher(workshop: Workshop, project_id: int) -> Refresher:
    desk = workshop.desk(project_id)
    refresher = _refreshers.get(desk.project.key)
    if refresher is None or refresher.desk is not desk:
        if len(_refreshers) >= REFRESHERS_IN_MEMORY:
            _refreshers.clear()
        refresher = _refreshers[desk.project.key] = Refresher(desk)
    return refresher


def _refresh(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> str:
    flags = workshop.state.flags(project_id)
    if "project" in flags:
        workshop.desk(project_id, fresh=True)
    refresher = _refresher(workshop, project_id)
    outcome = refresher.run()
    pushed = read_pushed(workshop.state, project_id)
    # Whoever is at it already looks at the flags before it goes.
    if "tasks" in workshop.state.flags(project_id) and workshop.state.holder(project_id, "pool") is None:
        dispatcher.wake(project_id, "pool", workshop.state.wake_number(project_id))
    if (
        pushed is not None
        and pushed.kind == "sprint"
        and not workshop.state.get(project_id, "full_version")
        and workshop.state.holder(project_id, "full") is None
        # While people label it would be begun and put off at every label; the tick finds the quiet time.
        and (workshop.is_quiet(project_id) or refresher.imports_are_slow())
    ):
        dispatcher.wake(project_id, "full", workshop.state.wake_number(project_id))
    if workshop.state.holder(project_id, "tune") is None and fine_tuning_is_due(refresher):
        dispatcher.wake(project_id, "tune", workshop.state.wake_number(project_id))
    return (
        f"{outcome.labels} labels; "
        + (f"fitted {outcome.fitted}" if outcome.fitted else f"no refit: {outcome.waited}")
        + (f"; pushed {outcome.pushed!r}" if outcome.pushed else "")
        + f"; {outcome.seconds}"
    )


def _tune(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> str:
    flags = workshop.state.flags(project_id)
    refresher = _refresher(workshop, project_id)
    refresher.desk.model.refresh_pool()
    refresher.book.sync(workshop.state, workshop.ls, refresher.desk.config)  # this process may know no label yet
    files = TuneFiles(refresher.desk.home)
    asked = {f: n for f, n in flags.items() if f == ASKED}
    if files.begun() is None and workshop.state.get(project_id, CANCEL) is not None:
        workshop.state.clean(project_id, "flags", asked)
        workshop.state.drop(project_id, CANCEL)
        return "the run was cancelled before it began"
    if files.begun() is None and not asked and not fine_tuning_is_due(refresher):
        return "no fine-tuning is due"
    workshop.state.clean(project_id, "flags", asked)
    return FineTuner(refresher, dispatcher, show_progress).run()


def _pool(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> str:
    state = workshop.state
    flags = state.flags(project_id)
    desk = workshop.desk(project_id, fresh=True)
    sync = PoolSync(desk)
    show_progress(0, desk.project.task_count, "listing tasks")
    before = desk.files.tasks()
    tasks = sync.list_tasks(all_again="relist" in flags or not desk.files.tasks().ids)
    if desk.model.representation() is None:
        show_progress(0, len(tasks.ids), "images; first the features are made ready")

    def wake_refresh() -> None:
        dispatcher.wake(project_id, "refresh", state.wake_number(project_id))

    def more_is_known() -> None:
        state.drop(project_id, "full_version")  # a full order of a smaller pool, or of fewer images
        wake_refresh()

    try:
        report = sync.embed(
            tasks,
            progress=lambda done, total: show_progress(done, total, "images"),
            checkpoint=more_is_known,
            should_stop=lambda: False,
        )
    except training.RepresentationError as error:  # what is embedded keeps its order; the tick tries again
        state.put(project_id, "no_features", str(error))
        log.warning("images cannot be embedded", project=project_id, cause=str(error))
        wake_refresh()
        return f"images cannot be embedded: {error}"
    state.drop(project_id, "no_features")
    state.put(project_id, "unreadable", {str(t): reason for t, reason in list(report.unreadable.items())[:1000]})
    state.put(project_id, "unreadable_count", len(report.unreadable))
    state.put(project_id, "pool_at", time.time())
    state.clean(project_id, "flags", {f: n for f, n in flags.items() if f in ("tasks", "relist")})
    # A job that found nothing new must not have ten thousand predictions written again while people label.
    if report.embedded or tasks.ids != before.ids:
        more_is_known()
    else:
        wake_refresh()
    if "tasks" in state.flags(project_id):  # raised while we were at it
        dispatcher.wake(project_id, "pool", state.wake_number(project_id))
    return f"{len(tasks.ids)} tasks, {report.embedded} images embedded, {len(report.unreadable)} unreadable"


def _full(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> str:
    refresher = _refresher(workshop, project_id)
    desk, state = refresher.desk, workshop.state
    refresher.desk.model.refresh_pool()
    refresher.book.sync(state, workshop.ls, desk.config)
    before = state.last_annotation(project_id)
    tasks = desk.files.tasks()
    if refresher.serves_all_there_is():
        return "the full order that is served knows all there is"
    order = refresher.rank(workshop.settings.sprint_min, pending=[])
    if not len(order):
        return "nothing is left to label"

    def progress(done: int, total: int) -> None:
        show_progress(done, total)
        # Label Studio writes or serves. While people label a sprint is what they get, and quiet times come.
        if (
            total - done > FINISHED_ANYWAY
            and state.last_annotation(project_id) != before
            and not refresher.imports_are_slow()
        ):
            raise _PutOff(f"{done} of {total} predictions stored; put off while people label")

    try:
        version = refresher.send(order, "full", tasks, flip=False, progress=progress)
    except _PutOff as put_off:
        return str(put_off)
    state.put(project_id, "full_version", version)
    served = False
    with state.lease(project_id, "refresh", workshop.settings.lease_s) as held:
        quiet = state.last_annotation(project_id) == before
        # Where imports are slow the next refresh moves the front of this order in place: better than a newer sprint.
        in_place = not quiet and refresher.imports_are_slow()
        if held and (quiet or in_place) and (desk.files.pin() or {}).get("kind") != "version in Label Studio":
            refresher.serve_stored(order, version, tasks)
            served = True
    if state.take_again(project_id, "refresh") or (served and in_place):
        dispatcher.wake(project_id, "refresh", state.wake_number(project_id))
    if served:
        return f"{len(order)} tasks stored and served as {version!r}"
    return f"{len(order)} tasks stored as {version!r}; a newer sprint is served"
