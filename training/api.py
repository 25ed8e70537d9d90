"""The narrow door to everything that learns: one project's embeddings, versions, predictions and order.

Signatures speak numpy and plain Python. Importing this module, and predicting for examples that are embedded, loads
neither torch nor scipy; embedding, fitting and ranking load them when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .answers import HeadAnswers, outputs_of
from .embedding_table import as_ids
from .errors import (
    DataError,
    NoTrainableExamples,
    ProcessKilled,
    RepresentationError,
    TrainingError,
    TrainingStopped,
    UnreadableImage,
    VersionMissing,
)
from .evaluate import audit_is_enough
from .fine_tuning import TAUGHT, check_devices
from .gate import Comparison, Verdict
from .head_measures import as_classes
from .inputs import InputSchema
from .joint import Asking, Shown, as_log_probabilities, join, ranking_of_heads
from .pool_labels import audit_mask, rows_of_labels
from .project_versions import ProjectVersions
from .quality import FEWEST_FOR_SETS, MISSES, ErrorRanking
from .ranking import (
    REASONS,
    AuditStream,
    Candidates,
    Odds,
    Ranked,
    Ranking,
    Shares,
    order_candidates,
    to_ranking,
    unread_only,
)
from .representation import ModelSpec, Representation, check_weights
from .run_record import RunRecord, read_record
from .targets import HeadLabels, HeadSpec, Kind, Target
from .tuning import MASK_SUFFIXES, WITH_MASKS, Epoch, Step, TuneSettings
from .values import EmbedReport, Example, LabelledSet, PossibleLabels, Predictions
from .version_values import HeadInfo, VersionInfo

if TYPE_CHECKING:
    pass

__all__ = [
    "MASK_SUFFIXES",
    "REASONS",
    "TAUGHT",
    "WITH_MASKS",
    "Asking",
    "AuditStream",
    "Comparison",
    "DataError",
    "EmbedReport",
    "Epoch",
    "ErrorRanking",
    "Example",
    "HeadAnswers",
    "HeadInfo",
    "HeadLabels",
    "HeadSpec",
    "InputSchema",
    "Kind",
    "LabelledSet",
    "ModelSpec",
    "NoTrainableExamples",
    "Odds",
    "PossibleLabels",
    "Predictions",
    "ProcessKilled",
    "ProjectModel",
    "Ranked",
    "Ranking",
    "Representation",
    "RepresentationError",
    "RunRecord",
    "Shares",
    "Shown",
    "Step",
    "StrategyInfo",
    "Target",
    "TrainingError",
    "TrainingStopped",
    "TuneSettings",
    "UnreadableImage",
    "Verdict",
    "VersionInfo",
    "VersionMissing",
    "check_devices",
    "check_weights",
    "get_strategy",
    "list_strategies",
    "read_record",
    "warm_up",
]

Ids = NDArray[np.int64]
_AUDIT_SHARE = 0.1  # of all places in the order, while the audit slice is too small to say much
_HEADS_IN_MEMORY = 4
_AS_ANY = Asking()


class StrategyInfo(Protocol):
    """What may be known of a strategy without running it."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def paper(self) -> str: ...


def list_strategies() -> Sequence[StrategyInfo]:
    """All strategies by name."""
    from uncertainty import strategies

    return strategies.list_strategies()


def get_strategy(name: str) -> StrategyInfo:
    """The strategy of that name, or of one with its posterior, "bald@dropout".

    Raises:
        LookupError: lists the known names.
    """
    from uncertainty import strategies

    return strategies.get_strategy(name)


def warm_up() -> None:
    """Load what embedding, fitting and ranking need, so that the first call does not wait for imports."""
    import scipy.stats
    import torch

    from uncertainty import calibration, duplicates, strategies

    from . import head, pool_features

    del scipy, torch, calibration, duplicates, strategies, head, pool_features


class ProjectModel(ProjectVersions):
    """One project's pool, versions and order, as one process has them open. Cheap to make; safe to use from threads.

    Args:
        home: folder of the project; made when something is written.
        spec: which representation to make. One that is there stays in use until the wanted one is complete.
    """

    def possible_labels(
        self, version: str, example_ids: Sequence[int] | Ids, *, misses: float = MISSES, per_class: bool = False
    ) -> PossibleLabels | None:
        """The classes each example may have, at least one, so that a share `misses` of the sets lacks the true one at
        most.

        The promise is on average over examples drawn as the audit slice was, so over all of a project, not over those
        that a strategy left. The thresholds come from the version's own audit labels.

        Args:
            per_class: keep the promise in each class with 50 audit labels by itself.
        Returns:
            Those of the first head. None with fewer than 50 audit labels, or fewer than `misses` needs: nothing can be
            promised; nor where it does not choose one class.
        Raises:
            VersionMissing, CheckpointCorrupt; ValueError: `misses` not between 0 and 1.
        """
        from uncertainty.conformal import fit as fit_sets
        from uncertainty.conformal import never_empty

        audit = self._versions.audit_labels(version)
        if len(audit) < FEWEST_FOR_SETS or self._load(version).info.specs[0].kind not in ("single", "ordered"):
            return None
        measured = self.predict(version, list(audit))
        truth = np.array(list(audit.values()), np.int64)[measured.known]
        fitted = fit_sets(measured.probabilities[measured.known], truth, alpha=misses, per_class=per_class)
        if fitted.missing:
            return None
        asked = self.predict(version, example_ids)
        sets = np.zeros(asked.probabilities.shape, bool)
        known = asked.probabilities[asked.known]
        sets[asked.known] = never_empty(fitted.sets(known), known)
        return PossibleLabels(asked.example_ids, sets, asked.known, misses, len(truth))

    def rank(
        self,
        version: str | None,
        unlabelled: Sequence[int],
        labelled: Sequence[int],
        *,
        pending: Sequence[int] = (),
        audit: Callable[[int], bool],
        strategy: str,
        front: int,
        layers: Shares,
        seed: int,
        last: Sequence[int] = (),
        skipped: Sequence[int] = (),
        asking: Asking = _AS_ANY,
    ) -> Ranking:
        """Order all unlabelled examples.

        First those pending, then `front` places filled by the strategy (with random and audit examples among them),
        then the rest by uncertainty, then `last`, and what is not embedded at the end.

        Args:
            version: whose predictions to use; None before the first one.
            unlabelled: distinct ids.
            labelled: ids with a label, audit ones included.
            pending: ids handed out and not answered; those that are also unlabelled keep their place in front.
            audit: whether an id belongs to the audit slice. An `AuditStream` is asked for all ids at once.
            strategy: a name of `list_strategies`.
            front: places; layers: shares of them that go to chance, to rare classes, and to the veto.
            last: ids to ask after all others, ranked too.
            skipped: those of `labelled` that annotators skipped instead: what looks like them is asked last.
            asking: what people want of a version with several heads.
        Raises:
            VersionMissing, CheckpointCorrupt; uncertainty.errors.UnknownMethodError.
        """
        stored = None if version is None else self._load(version)
        view = self._current_view() if stored is None else self._view(stored.info.representation)
        late = as_ids(last)
        wanted = as_ids(unlabelled)
        wanted = wanted[~np.isin(wanted, late)]
        ids = np.empty(0, np.int64) if view is None else view.ids
        if view is None or not len(ids):
            return unread_only(version, np.concatenate([wanted, late]))
        log_p, joint, labels = None, None, None
        answers: tuple[HeadAnswers, ...] = ()
        if stored is not None:
            logits = view.logits(stored.info.id, stored.joint)
            known: Mapping[int, Target]
            if stored.info.is_plain:
                log_p = stored.head.log_probabilities(logits)
                known = self._versions.labels(stored.info.id)
            else:
                outputs = outputs_of(stored, logits, self._encoded(stored, ids))
                answers = tuple(output.answers() for output in outputs)
                targets = self._versions.labels_of_heads(stored.info.id)
                joint = join(outputs, answers, [np.isin(ids, as_ids(list(of_head))) for of_head in targets], asking)
                seen, known = as_classes(outputs[joint.lead], targets[joint.lead])
                log_p = as_log_probabilities(joint.uncertainty, seen)
            labels = rows_of_labels(known, ids)
        is_labelled = np.isin(ids, as_ids(labelled))
        is_open = np.isin(ids, wanted)
        is_audit = audit_mask(audit, ids, is_labelled | is_open)
        audited = int((is_labelled & is_audit).sum())
        share = audit.share if isinstance(audit, AuditStream) else _AUDIT_SHARE
        accuracy = None if stored is None else stored.info.metrics.get("accuracy")
        order = order_candidates(
            Candidates(
                example_ids=ids,
                features=view.reduced(),
                log_probabilities=log_p,
                labelled=is_labelled,
                pending=np.isin(ids, as_ids(pending)),
                audit=is_audit,
                open=is_open,
                labels=labels,
                rejected=is_labelled & np.isin(ids, as_ids(skipped)),
            ),
            strategy=strategy,
            front=front,
            layers=layers,
            audit_share=0.0 if audit_is_enough(audited, accuracy) else share,
            seed=seed,
        )
        late_rows = np.flatnonzero(np.isin(ids, late))
        if log_p is not None:
            sure = log_p.max(axis=1) if joint is None else joint.confidence
            late_rows = late_rows[np.argsort(sure[late_rows], kind="stable")]
        rows = np.concatenate([order.rows, late_rows])
        reasons = np.concatenate([order.reasons, np.full(len(late_rows), REASONS.index("uncertain"), np.int8)])
        unread = np.concatenate([wanted, late])
        unread = unread[~np.isin(unread, ids)]
        ranking = replace(to_ranking(version, ids, log_p, rows, reasons, unread, order.odds), note=order.note)
        return ranking if joint is None else ranking_of_heads(ranking, joint, answers, rows)
