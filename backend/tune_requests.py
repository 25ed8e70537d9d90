"""Fine-tuning at somebody's word: begin a run now, or stop the one that runs, waits or was asked for."""

from __future__ import annotations

from .dispatch import Dispatcher
from .errors import FineTuningRefused
from .fine_tune import CANCEL, TuneFiles
from .project import ProjectDesk, Workshop
from .triggers import FEWEST_TO_JUDGE

ASKED = "tune"  # flag of a project: a run is to begin, whether or not it is due


def ask(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> str:
    """Have a run begin without waiting for the labels to double; says what happens now.

    Raises: FineTuningRefused: with what is missing, or what is at it already.
    """
    desk, state = workshop.desk(project_id), workshop.state
    busy = at_hand(workshop, desk)
    if busy:
        raise FineTuningRefused(
            f"{busy}; `askfirst tune --project {project_id} --cancel` stops it, and a run of today's labels can be "
            "asked for when it is over"
        )
    missing = lacks(workshop, desk)
    if missing:
        raise FineTuningRefused(missing)
    state.drop(project_id, CANCEL)
    wake = state.record(project_id, text="fine-tuning was asked for by command", flags=[ASKED]).wake
    dispatcher.wake(project_id, "tune", wake)
    return f"asked; `askfirst status --project {project_id}` and the status page show how far it is"


def cancel(workshop: Workshop, dispatcher: Dispatcher, project_id: int) -> str:
    """Stop the run of a project, wherever it is; says what happens now. What is served does not change.

    Raises: FineTuningRefused: there is none.
    """
    desk, state = workshop.desk(project_id), workshop.state
    busy = at_hand(workshop, desk)
    if not busy:
        raise FineTuningRefused(f"project {project_id} is not being fine-tuned")
    state.put(project_id, CANCEL, True)
    if state.holder(project_id, "tune") is not None:
        return "the run ends at its next step, within a minute or so; what is served does not change"
    dispatcher.wake(project_id, "tune", state.wake_number(project_id))  # who finds the word, and takes the run away
    return f"{busy}: it will not go on; what is served does not change"


def at_hand(workshop: Workshop, desk: ProjectDesk) -> str:
    """Where the run of a project is, in words; "" when there is none."""
    state = workshop.state
    if state.holder(desk.id, "tune") is not None:
        return f"project {desk.id} is being fine-tuned"
    if TuneFiles(desk.home).begun() is not None:
        return f"a fine-tuning run of project {desk.id} was begun, and waits for its worker"
    if ASKED in state.flags(desk.id):
        return f"a fine-tuning run of project {desk.id} was asked for, and waits for its worker"
    return ""


def lacks(workshop: Workshop, desk: ProjectDesk) -> str:
    """What a run wants that is not there, and what to do; "" when all is."""
    if not desk.model.can_fine_tune():
        return "there are no trained weights to start from: set ASKFIRST_WEIGHTS to a file, URL or torchvision"
    live = desk.model.live()
    if live is None:
        return f"project {desk.id} has no model version yet; one comes with the first label"
    if desk.files.pin() is not None:
        return (
            "a version was chosen by hand, and no other would take over: `askfirst connect --project "
            f"{desk.id}` lifts the choice"
        )
    audit = int(live.metrics.get("audit_n") or 0)
    if audit < FEWEST_TO_JUDGE:
        return (
            f"{audit} audit labels cannot tell whether a new network is better: label on, until there are "
            f"{FEWEST_TO_JUDGE} ({workshop.settings.audit_share:.0%} of the labels go there, chosen by chance)"
        )
    return ""
