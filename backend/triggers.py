"""Decide whether to refit and whether to push. Pure: no clock, no Redis, no Label Studio."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a refit did not start. Values are written to logs and to the status page."""

    NO_LABELS = "there is no label of an embedded image yet"
    NOTHING_NEW = "nothing new since the last refit"
    PAUSED = "START_TRAINING_EACH_N_UPDATES is 0: only the Start Training button refits"
    TOO_FEW = "fewer labels than the project's minimum"
    TOO_FEW_NEW = "fewer new labels than START_TRAINING_EACH_N_UPDATES"


@dataclass(frozen=True)
class LabelFacts:
    """What is known about labels now and in the newest fitted version."""

    count: int  # labels that may be trained on
    changed: int  # tasks whose label differs from the one the newest version was fitted on
    outdated: bool  # the newest version knows other classes, or stands on another representation
    fitted: bool  # there is a fitted version


@dataclass(frozen=True)
class FitPolicy:
    each_n: int = 1  # START_TRAINING_EACH_N_UPDATES; 0: only when asked
    min_annotations: int = 0  # Label Studio's min_annotations_to_start_training: labels before the first refit


@dataclass(frozen=True)
class Fit:
    """Refit now."""


@dataclass(frozen=True)
class Wait:
    """Do not refit, and why."""

    reason: Reason


def decide_fit(facts: LabelFacts, policy: FitPolicy, *, asked: bool) -> Fit | Wait:
    """Refit or wait. `asked`: somebody pressed Start Training, which overrides thresholds but not common sense."""
    if facts.count == 0:
        return Wait(Reason.NO_LABELS)
    if facts.fitted and facts.changed == 0 and not facts.outdated:
        return Wait(Reason.NOTHING_NEW)
    if asked:
        return Fit()
    if facts.fitted and facts.outdated:
        return Fit()
    if policy.each_n == 0:
        return Wait(Reason.PAUSED)
    if facts.count < policy.min_annotations:
        return Wait(Reason.TOO_FEW)
    if facts.fitted and facts.changed < policy.each_n:
        return Wait(Reason.TOO_FEW_NEW)
    return Fit()


FEWEST_TO_JUDGE = 20  # audit labels; with fewer a network that is wrong twice as often passes for chance


@dataclass(frozen=True)
class TuneFacts:
    """What is known about labels now and when the network was last fine-tuned."""

    labels: int  # that may be trained on
    labels_before: int  # of the last run that came to an end; 0: there was none
    audit: int  # labels to judge the outcome by
    live: bool  # there is a version to compare with
    held: bool  # somebody chose a version by hand


def tune_is_due(facts: TuneFacts, *, start: int) -> bool:
    """From `start` labels on, then at each doubling: what a run gains grows with the logarithm of the labels."""
    if facts.held or not facts.live or facts.audit < FEWEST_TO_JUDGE:
        return False
    return facts.labels >= max(start, 2 * facts.labels_before)


class Push(StrEnum):
    """What to send to Label Studio."""

    NOTHING = "nothing"
    SPRINT = "sprint"  # the next K tasks, under their own version
    EVERYTHING = "everything"  # all unlabelled tasks at once: as cheap as a sprint in a small project


@dataclass(frozen=True)
class QueueFacts:
    """What is served now against what should be."""

    unlabelled: int  # tasks that still want an annotation
    remaining: int  # of these, how many carry the version that is served
    sprint_size: int  # K
    stale: bool  # the served order comes from another model version or another state of the pool
    pushed: bool  # an order of ours was pushed before
    held: bool  # somebody chose another version by hand
    ready: bool = True  # there is something to order by: embeddings, or the certainty that there are none


def decide_push(facts: QueueFacts) -> Push:
    """Send nothing, a sprint, or everything.

    A sprint is renewed at half its size, long before it can run dry: tasks without a prediction of the served
    version are invisible to annotators.
    """
    if facts.held or facts.unlabelled == 0 or not facts.ready:
        return Push.NOTHING
    wanted = (
        facts.stale
        or not facts.pushed
        or (facts.remaining < facts.unlabelled and facts.remaining < facts.sprint_size / 2)
    )
    if not wanted:
        return Push.NOTHING
    return Push.EVERYTHING if facts.unlabelled <= 2 * facts.sprint_size else Push.SPRINT


def sprint_size(annotators: int, labels_per_second: float, least: int) -> int:
    """K: twenty tasks per annotator, at least `least`, and enough for 45 s at the observed pace, so that a
    worker that dies and comes back leaves nobody without a task."""
    return max(least, 20 * annotators, int(45 * labels_per_second))


@dataclass(frozen=True)
class Standing:
    """How the project's settings in Label Studio compare with what we set."""

    reassert_version: bool = False
    reassert_sampling: bool = False
    hold: str | None = None  # version chosen by hand, to be respected


def judge_settings(
    *,
    model_version: str | None,
    sampling: str,
    wanted_sampling: str,
    pushed: str | None,
    backend_titles: frozenset[str],
    held: str | None,
) -> Standing:
    """Tell a broken setting (put right) from one changed on purpose (respected).

    The backend's title, an empty version or none make Label Studio serve tasks at random: broken. Another version of
    stored predictions can only have been picked by hand. A hold ends when the version is ours again or broken.
    """
    broken = not model_version or model_version in backend_titles
    by_hand = pushed is not None and not broken and model_version != pushed
    if held is not None and model_version == held:
        by_hand = True
    return Standing(
        reassert_version=pushed is not None and broken,
        reassert_sampling=sampling != wanted_sampling,
        hold=model_version if by_hand else None,
    )
