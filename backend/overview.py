"""A project's state in words and numbers, for the status page and `askfirst status`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from training import api as training

from .dispatch import Dispatcher
from .errors import BackendError, UnsupportedLabelConfig
from .fine_tune import tuning_sentence
from .heads import in_words
from .order import Order, read_order
from .ports import ProjectOverview, QueueEntry
from .project import ProjectDesk, Workshop
from .quality_words import quality_sentences
from .queue_push import read_pushed
from .refresh import SERVED_FILE
from .tune_requests import at_hand

HEAD = 12
NO_AUDIT = "no audit label yet (a random share of the labels measures accuracy and is never trained on)"
_MEANT: dict[training.Kind, str] = {
    "single": "",
    "multiple": " with every label right",
    "ordered": "",
    "number": " off by at most a twentieth of the range",
}


def project_overview(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> ProjectOverview:
    """What is known here about a project; asks Label Studio nothing, so it answers while Label Studio is away.

    Raises: StoreUnavailable.
    """
    state = workshop.state
    cached = state.get(project_id, "project")
    if cached is None:
        return ProjectOverview(
            project_id,
            "",
            "waiting for Label Studio to describe the project",
            None,
            None,
            0,
            0,
            0,
            "not known yet",
            "not known yet",
            workshop.settings.strategy,
            warnings=_warnings(workshop, project_id, None),
            events=state.events(project_id),
        )
    desk = workshop.desk(project_id)
    desk.model.refresh_pool()
    live = desk.model.live()
    tasks = desk.files.tasks()
    pushed = read_pushed(state, project_id)
    order = read_order(desk.home / SERVED_FILE)
    annotated = state.annotated_ids(project_id)
    unlabelled = sum(t not in annotated for t in tasks.ids)
    try:
        strategy = desk.options.strategy or workshop.settings.strategy
    except UnsupportedLabelConfig:
        strategy = workshop.settings.strategy
    note = state.get(project_id, "strategy_note")
    jobs = _jobs(workshop, dispatcher, project_id)
    return ProjectOverview(
        project_id=project_id,
        title=desk.project.title,
        state=_sentence(workshop, desk, jobs, unlabelled, pushed is not None),
        version=live.id if live else None,
        pushed=pushed.version if pushed else None,
        labels_used=max((head.labels_used for head in live.heads), default=0) if live else 0,
        tasks=len(tasks.ids),
        unlabelled=unlabelled,
        accuracy=accuracy_sentence(live),
        representation=_representation(workshop, desk),
        strategy=f"{strategy}: {note}" if note else strategy,
        warnings=_warnings(workshop, project_id, desk),
        queue=_queue(order, annotated) if order else (),
        events=state.events(project_id)[:10],
        jobs=jobs,
        quality=quality_sentences(live, state.get(project_id, "possible_labels")),
        questions=question_sentences(live),
    )


def _representation(workshop: Workshop, desk: ProjectDesk) -> str:
    representation = desk.model.representation()
    if representation is None:
        return "nothing is embedded yet"
    start = workshop.settings.tune_from if workshop.settings.tune and desk.model.can_fine_tune() else None
    live = desk.model.live()
    audit = int(live.metrics.get("audit_n") or 0) if live else 0
    return f"{representation.note} {tuning_sentence(desk.home, start, audit)}".strip()


def label_sentences(summary: Mapping[str, int]) -> list[str]:
    """What people should know of annotations that are not trained on; `summary` as of `LabelSummary`."""
    found = []
    if summary.get("ties"):
        found.append(
            f"{summary['ties']} task(s) have a tie between annotators and are not trained on; one more vote settles it"
        )
    if summary.get("unknown"):
        found.append(
            f"{summary['unknown']} task(s) have an answer that the labelling config does not allow (a label that it "
            "does not list, two where it asks for one, a number off its scale); they count again when it does"
        )
    if summary.get("half"):
        found.append(
            f"{summary['half']} task(s) lack an answer that the labelling config requires; they are asked again last"
        )
    return found


def accuracy_sentence(live: training.VersionInfo | None) -> str:
    """Audit accuracy with its interval, or why there is none; of several questions their mean."""
    if live is None:
        return "no model yet: the first tasks are chosen to cover the pool"
    if not live.others:
        return _accuracy(live.heads[0])
    known = [accuracy for head in live.heads if (accuracy := head.metrics.get("accuracy")) is not None]
    if not known:
        return NO_AUDIT
    return f"{sum(known) / len(known):.1%} on average over {len(known)} of {len(live.heads)} questions, see there"


def question_sentences(live: training.VersionInfo | None) -> tuple[tuple[str, str], ...]:
    """(name, how well it is answered) of each question, where there are several."""
    if live is None or not live.others:
        return ()
    return tuple((head.spec.name, f"{_accuracy(head)}; {head.labels_used} labels learnt from") for head in live.heads)


def _accuracy(head: training.HeadInfo) -> str:
    m = head.metrics
    n = int(m.get("audit_n") or 0)
    accuracy, low, high = (m.get(k) for k in ("accuracy", "accuracy_low", "accuracy_high"))
    if not n or accuracy is None or low is None or high is None:
        return NO_AUDIT
    return f"{accuracy:.1%}{_MEANT[head.spec.kind]} (95 % interval {low:.1%} to {high:.1%}, {n} audit labels){_more(m)}"


def _more(m: Mapping[str, float | None]) -> str:
    """What else is known of answers that are not one class, for people."""
    precision, f1, off, covered = (m.get(k) for k in ("mean_average_precision", "f1_macro", "mae", "coverage_90"))
    parts = []
    if precision is not None and f1 is not None:
        parts.append(f"mean average precision {precision:.2f}, F1 {f1:.2f}")
    if off is not None:
        parts.append(f"off by {off:.2g} on average")
    if covered is not None:
        parts.append(f"{covered:.0%} inside the interval that is to hold 90 %")
    return "".join(f"; {part}" for part in parts)


def _sentence(workshop: Workshop, desk: ProjectDesk, jobs: list[dict[str, Any]], unlabelled: int, pushed: bool) -> str:
    running = [f"{j['what']} {j['progress']}".strip() for j in jobs if j["state"] == "started"]
    pin = desk.files.pin()
    if pin:
        return "; ".join(
            [
                f"held: {pin['kind']} {pin['version']!r} was chosen by hand; "
                f"`askfirst connect --project {desk.id}` hands the queue back to the model",
                *running[:1],
            ]
        )
    if running:
        return running[0]
    if not pushed:
        return "preparing the first order"
    if not unlabelled:
        return "every task has an annotation"
    waiting = at_hand(workshop, desk)
    return "in step: the queue follows the model" + (f"; {waiting}" if waiting else "")


def _warnings(workshop: Workshop, project_id: int, desk: ProjectDesk | None) -> list[str]:
    state = workshop.state
    found = [str(text) for name in ("problem", "trouble", "unknown_strategy") if (text := state.get(project_id, name))]
    unusable = state.get(project_id, "no_features")
    if unusable:
        found.append(
            f"new images are not embedded, and are asked last: {unusable}. Put ASKFIRST_BACKBONE and ASKFIRST_WEIGHTS "
            "right and start the workers again; `askfirst doctor` tells whether they are"
        )
    kept_back = state.get(project_id, "kept_back")
    if kept_back:
        found.append(
            f"the newest model version {kept_back['version']} is kept back: {kept_back['words']}. The order stays with "
            f"the live one; `askfirst promote {kept_back['version']} --project {project_id}` overrules this"
        )
    found += label_sentences(state.get(project_id, "label_summary") or {})
    unreadable = state.get(project_id, "unreadable_count")
    if unreadable:
        examples = list((state.get(project_id, "unreadable") or {}).items())[:3]
        found.append(
            f"{unreadable} image(s) cannot be read; these tasks are asked last. "
            + "; ".join(f"task {t}: {reason}" for t, reason in examples)
        )
    if desk is not None:
        found += [
            f"no task has a value for the data field {name!r} that the labelling config names; is it spelt like this?"
            for name in desk.files.tasks().empty_inputs
        ]
        try:
            found += desk.config.notes
        except BackendError as error:
            found.append(str(error))  # a job may have said the same
        if desk.project.min_annotations == 1:
            found.append(
                "'Start model training on annotation submission' is on in Label Studio (Settings, Model): each submit "
                "then waits for one more call to this backend, and gains nothing, since labels are learnt anyway"
            )
        if float(state.get(project_id, "import_s") or 0) > 1.0:
            found.append(
                "importing predictions is slow here: start Label Studio with "
                "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short=true; if it has that, the "
                "machine is busy with other things"
            )
    return list(dict.fromkeys(found))


def _queue(order: Order, annotated: set[int]) -> list[QueueEntry]:
    entries = []
    for row in range(len(order)):
        task = int(order.ids[row])
        if task in annotated:
            continue
        label = int(order.label[row])
        entries.append(
            QueueEntry(
                task,
                float(order.scores[row]),
                float(order.confidence[row]),
                order.classes[label] if 0 <= label < len(order.classes) else None,
                training.REASONS[int(order.reason[row])],
                tuple((name, in_words(value), sure) for name, value, sure in order.said(row)) if order.answers else (),
                order.question(row),
            )
        )
        if len(entries) == HEAD:
            break
    return entries


def _jobs(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> list[dict[str, Any]]:
    rows = []
    for job in dispatcher.jobs(project_id):
        state = job.state
        kind = job.id.partition("-")[0]
        if (
            state == "started"
            and kind != "adopt"
            and time.time() - job.since > 2
            and workshop.state.holder(project_id, kind) is None
        ):
            state = "lost"  # its worker was killed; RQ finds out later, the tick has woken another
        rows.append({"id": job.id, "what": job.what, "state": state, "progress": job.progress, "since": job.since})
    return rows
