"""The narrow door to everything that learns: one project's embeddings, versions, predictions and order.

Signatures speak numpy and plain Python. Importing this module, and predicting for examples that are embedded, loads
neither torch nor scipy; embedding, fitting and ranking load them when they are called.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .answers import HeadAnswers, Output, outputs_of
from .embedding_table import as_ids
from .errors import DataError, LabelSpaceChanged, NoTrainableExamples, TrainingError, UnreadableImage, VersionMissing
from .evaluate import audit_is_enough
from .gate import Comparison, Verdict, decide
from .head_comparison import Measured, compare_sides, measure_answers, same_question
from .head_measures import as_classes
from .inputs import InputSchema, InputTable
from .joint import Asking, Shown, as_log_probabilities, join, ranking_of_heads
from .pool_labels import audit_mask, rows_of_labels
from .pool_view import PoolView
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
from .representation import ModelSpec, Representation, Representations
from .run_record import RunRecord, read_record
from .targets import HeadLabels, HeadSpec, Kind, Target
from .tuning import Epoch, OnEpoch, OnStep, Step, TuneSettings
from .values import EmbedReport, Example, LabelledSet, PossibleLabels, Predictions
from .version_values import HeadInfo, StoredHead, StoredVersion, VersionContent, VersionInfo
from .versions import VersionStore

if TYPE_CHECKING:
    from .fine_tuning import FineTuned

__all__ = [
    "REASONS",
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
    "ProjectModel",
    "Ranked",
    "Ranking",
    "Representation",
    "RunRecord",
    "Shares",
    "Shown",
    "Step",
    "StrategyInfo",
    "Target",
    "TrainingError",
    "TuneSettings",
    "UnreadableImage",
    "Verdict",
    "VersionInfo",
    "VersionMissing",
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


class ProjectModel:
    """One project's pool and versions, as one process has them open. Cheap to make; safe to use from threads.

    Args:
        home: folder of the project; made when something is written.
        spec: which representation to make. One that is there stays in use until the wanted one is complete.
    """

    def __init__(self, home: Path, spec: ModelSpec) -> None:
        self._representations = Representations(home, spec)
        self._home = home
        self._spec = spec
        self._versions = VersionStore(home)
        self._views: dict[str, PoolView] = {}
        self._heads: OrderedDict[str, StoredVersion] = OrderedDict()
        self._table: tuple[tuple[int, int] | None, InputTable | None] | None = None
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ the pool
    def representation(self) -> Representation | None:
        """The representation in use, or None before anything was embedded."""
        return self._representations.current()

    def embed(
        self,
        examples: Sequence[Example],
        load: Callable[[Example], bytes],
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EmbedReport:
        """Embed what is not embedded yet. Resumable; several processes may do it at once.

        Without weights, the first call learns features from a sample of `examples`. When the pool has grown to four
        times what they were learnt on (and that was less than 2,000), better ones are learnt and everything is
        embedded again, while the old ones stay in use.

        Args:
            examples: the whole pool; what is embedded already is skipped at little cost.
            load: bytes of an example, called from several threads. What it raises is the reason shown.
            progress: (settled, open at the start).
            should_stop: asked between batches; what was finished is kept.
        Raises:
            RepresentationError: the weights cannot be used.
        """
        from .embeddings import EmbeddingStore

        start = time.monotonic()
        if not examples:
            return EmbedReport(0, 0, {}, 0.0)
        embedder, unreadable = self._representations.open(examples, load, should_stop)
        if embedder is None:
            # Nothing to learn from yet: fewer than two pictures that can be read, or no time to look.
            skipped = len(examples) - len(unreadable)
            return EmbedReport(0, skipped, unreadable, time.monotonic() - start)
        store = EmbeddingStore(self._home / "pool", embedder)
        report = store.embed(examples, load, progress=progress, should_stop=should_stop)
        current = self.representation()
        if current is not None and current.id != embedder.id and not should_stop():
            # A call with a few new examples only must not hide the many that were embedded before.
            before = len(self._view(current.id).ids)
            if len(store.table) >= before / 2:
                self._representations.finish(embedder.id)
        self.refresh_pool()
        return EmbedReport(report.embedded, report.skipped, report.unreadable, time.monotonic() - start)

    def embedded_ids(self) -> Ids:
        """Sorted ids of the examples embedded in the representation in use."""
        view = self._current_view()
        return np.empty(0, np.int64) if view is None else view.ids

    def unreadable(self) -> dict[int, str]:
        """Why examples have no embedding, by id."""
        view = self._current_view()
        return {} if view is None else view.table.unreadable()

    def features(self, example_ids: Sequence[int] | Ids) -> NDArray[np.float32]:
        """[n, D] raw embeddings in the representation in use. Raises DataError if one is not embedded."""
        view = self._current_view()
        if view is None:
            raise DataError("nothing is embedded yet")
        return view.rows(as_ids(example_ids))

    def write_inputs(self, example_ids: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep facts about examples beside their picture, in place of those kept before.

        Args:
            columns: by name, one value for each id: a number, a text or None. A field all of whose values are numbers
                is one, any other a category.
        """
        InputTable.of(example_ids, columns).save(self._home)

    def encoded_inputs(
        self, names: Sequence[str], example_ids: Sequence[int] | Ids
    ) -> tuple[NDArray[np.float32], InputSchema]:
        """[n, E] encoded facts of examples and how they are encoded; what is missing says so in a column of its own."""
        facts = self._facts()
        schema = InputSchema.learn(facts, names)
        return schema.encode(facts, as_ids(example_ids)), schema

    def facts_changed(self, version: str) -> bool:
        """Whether facts are known now that a version would encode otherwise: other values, or any at all."""
        heads = [head for head in self._versions.info(version).heads if head.spec.inputs]
        facts = self._facts() if heads else None
        return any(not InputSchema.learn(facts, head.spec.inputs).tells_as(head.schema) for head in heads)

    def refresh_pool(self) -> None:
        """Notice what other processes embedded."""
        view = self._current_view()
        if view is not None:
            view.refresh()

    # ------------------------------------------------------------------ a network of its own
    def can_fine_tune(self) -> bool:
        """Whether there are trained weights to start from."""
        return self._spec.weights is not None

    def fine_tune(
        self,
        heads: Sequence[HeadLabels],
        examples: Sequence[Example],
        load: Callable[[Example], bytes],
        settings: TuneSettings,
        folder: Path,
        *,
        groups: Mapping[int, str] | None = None,
        on_step: OnStep = lambda step: None,
        on_epoch: OnEpoch = lambda epoch: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FineTuned:
        """As `fine_tuning.fine_tune`; nothing that is in use changes."""
        from .fine_tuning import fine_tune

        view = self._current_view()
        if view is None:
            raise NoTrainableExamples(labelled=len({i for labels in heads for i in labels.train}), embedded=0)
        return fine_tune(
            self._representations,
            view,
            heads,
            examples,
            load,
            settings,
            folder,
            facts=self._facts() if any(labels.spec.inputs for labels in heads) else None,
            groups=groups,
            on_step=on_step,
            on_epoch=on_epoch,
            should_stop=should_stop,
        )

    def embed_in(
        self,
        representation: str,
        examples: Sequence[Example],
        load: Callable[[Example], bytes],
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EmbedReport:
        """As `embed`, with a fine-tuned network that is not in use yet."""
        from .embeddings import EmbeddingStore

        store = EmbeddingStore(self._home / "pool", self._representations.embedder(representation))
        report = store.embed(examples, load, progress=progress, should_stop=should_stop)
        self._view(representation).refresh()
        return EmbedReport(report.embedded, report.skipped, report.unreadable, report.seconds)

    def drop_representation(self, representation: str) -> None:
        """Remove one that is not in use, with its embeddings."""
        with self._lock:
            self._views.pop(representation, None)
        self._representations.drop(representation)

    # ------------------------------------------------------------------ learning
    def fit(self, labelled: LabelledSet, audit: LabelledSet, *, generation: int, source: dict[str, Any]) -> VersionInfo:
        """Fit a head, measure it on the audit labels, store it as a candidate version.

        Labels of examples that are not embedded are left out, and so is every example of `audit` from training.

        Args:
            labelled: labels to train on.
            audit: labels to measure with, for the same classes.
            generation: number of this fit in the project; goes into the version's id.
            source: JSON values to remember with the version.
        Raises:
            NoTrainableExamples, LabelSpaceChanged: the two sets are for different classes;
            DataError: a label is not in `classes`; TrainingDiverged.
        """
        if audit.classes != labelled.classes:
            raise LabelSpaceChanged(
                set(labelled.classes) - set(audit.classes), set(audit.classes) - set(labelled.classes)
            )
        spec = HeadSpec(classes=labelled.classes)
        heads = [HeadLabels(spec, labelled.labels, audit.labels, labelled.weights)]
        return self.fit_heads(heads, generation=generation, source=source)

    def fit_heads(
        self,
        heads: Sequence[HeadLabels],
        *,
        generation: int,
        source: dict[str, Any],
        representation: str | None = None,
    ) -> VersionInfo:
        """Fit a head for each question, measure each on its own audit labels, store them as one candidate version.

        An example that one question knows nothing of is left out there alone.

        Args:
            heads: at least one; names are distinct.
            generation, source: as `fit`.
            representation: id; None: the one in use.
        Raises:
            NoTrainableExamples: no question has a label of an embedded example; DataError: a target that is no answer
            to its question; TrainingDiverged.
        """
        from .blas import one_thread
        from .head_fits import embedded, fit_heads

        if representation is None:
            current = self.representation()
            representation = None if current is None else current.id
        view = None if representation is None else self._view(representation)
        known = [embedded(view, labels) for labels in heads]
        if view is None or representation is None or not any(labels.train for labels in known):
            raise NoTrainableExamples(labelled=len({i for labels in heads for i in labels.train}), embedded=0)
        starts = self._starts(representation, [labels.spec for labels in known])
        with one_thread():
            fitted = fit_heads(view, known, starts, self._facts())
        return self._versions.write(
            VersionContent.of(fitted, generation=generation, representation=representation, source=source)
        )

    def compare(self, candidate: str, live: str, audit: LabelledSet) -> Comparison:
        """Paired test of two versions on audit labels that both can predict; their classes may differ.

        Raises: VersionMissing, CheckpointCorrupt.
        """
        return self.compare_heads(candidate, live, [HeadLabels(HeadSpec(classes=audit.classes), {}, audit.labels)])

    def compare_heads(self, candidate: str, live: str, heads: Sequence[HeadLabels]) -> Comparison:
        """Paired test of two versions on the audit answers that both can predict, example by example: whether all of
        its answers are right, and the mean distance of what is stated from the truth.

        Questions that one of the versions is not asked are left out.

        Raises: VersionMissing, CheckpointCorrupt.
        """
        ids = as_ids(sorted({i for labels in heads for i in labels.audit}))
        sides = [self._side(version, ids, heads) for version in (candidate, live)]
        return compare_sides(sides[0], sides[1])

    def _side(self, version: str, ids: Ids, heads: Sequence[HeadLabels]) -> list[Measured | None]:
        """What a version makes of the audit answers to each question."""
        stored = self._load(version)
        known, outputs = self._outputs(stored, ids)
        found: list[Measured | None] = []
        for labels in heads:
            place = same_question(labels.spec, stored.info.specs)
            found.append(None if place is None else measure_answers(outputs[place], labels, ids, known))
        return found

    def judge(self, candidate: str, audit: LabelledSet) -> Verdict:
        """The gate: promote `candidate` unless it is worse than the live version beyond chance; keeps the verdict.

        Args:
            audit: held-out labels of now, which neither was trained on.
        Raises: VersionMissing, CheckpointCorrupt.
        """
        return self.judge_heads(candidate, [HeadLabels(HeadSpec(classes=audit.classes), {}, audit.labels)])

    def judge_heads(
        self, candidate: str, heads: Sequence[HeadLabels], *, must_gain: bool = False, promote: bool = True
    ) -> Verdict:
        """As `judge`, by the audit answers to several questions.

        Args:
            must_gain: promote only what is ahead by one measure at least.
            promote: False only looks: what passes is kept as a candidate, for another look later.
        """
        live = self._versions.live()
        if live is not None and live.id == candidate:
            return self._versions.verdict(candidate) or decide(None, candidate)
        compared = None if live is None else self.compare_heads(candidate, live.id, heads)
        verdict = decide(compared, None if live is None else live.id, must_gain=must_gain)
        if promote or not verdict.promoted:
            self._versions.write_verdict(candidate, verdict)
        if promote and verdict.promoted:
            self.promote(candidate)
        return verdict

    def undecided(self) -> str | None:
        """The newest version, if a worker was killed between its fit and the gate. A network that is only just being
        tuned has versions in a representation of its own, which wait for their pool."""
        newest, live, representation = self.newest(), self._versions.live(), self.representation()
        if newest is None or representation is None or newest.representation != representation.id:
            return None
        return None if newest == live or self._versions.verdict(newest.id) is not None else newest.id

    def verdict(self, version: str) -> Verdict | None:
        """What the gate decided on a version; None if it was never asked."""
        return self._versions.verdict(version)

    # ------------------------------------------------------------------ predicting
    def predict(self, version: str, example_ids: Sequence[int] | Ids) -> Predictions:
        """Calibrated class probabilities of embedded examples, by the first head.

        Raises:
            VersionMissing, CheckpointCorrupt.
        """
        stored = self._load(version)
        ids = as_ids(example_ids)
        view, known = self._known(stored, ids)
        probabilities = np.zeros((len(ids), stored.head.classes), np.float32)
        if known.any():
            columns = stored.head.logits(view.rows(ids[known]))
            if stored.info.schema.fields:
                columns = stored.heads[0].with_inputs(columns, self._encoded(stored, ids[known])[0])
            probabilities[known] = np.exp(stored.head.log_probabilities(columns))
        return Predictions(ids, probabilities, known)

    def predict_heads(self, version: str, example_ids: Sequence[int] | Ids) -> tuple[HeadAnswers, ...]:
        """What each head of a version answers, in the order asked for; none where an example is not embedded.

        Raises:
            VersionMissing, CheckpointCorrupt.
        """
        ids = as_ids(example_ids)
        known, outputs = self._outputs(self._load(version), ids)
        return tuple(output.answers().scattered(np.flatnonzero(known), len(ids)) for output in outputs)

    def _outputs(self, stored: StoredVersion, ids: Ids) -> tuple[NDArray[np.bool_], list[Output]]:
        """Which of n ids are embedded, [n], and what each head says of those."""
        view, known = self._known(stored, ids)
        rows = view.rows(ids[known]) if known.any() else np.empty((0, stored.joint.weight.shape[0]), np.float32)
        return known, outputs_of(stored, stored.joint.logits(rows), self._encoded(stored, ids[known]))

    def _encoded(self, stored: StoredVersion, ids: Ids) -> list[NDArray[np.float32]]:
        """Facts of n examples as each head of a version looks at them, [n, E]."""
        facts = self._facts() if any(head.info.schema.fields for head in stored.heads) else None
        return [head.info.schema.encode(facts, ids) for head in stored.heads]

    def _facts(self) -> InputTable | None:
        """The facts kept now; read again only when the file is another one."""
        stamp = InputTable.stamp(self._home)
        with self._lock:
            if self._table is None or self._table[0] != stamp:
                self._table = (stamp, None if stamp is None else InputTable.load(self._home))
            return self._table[1]

    def _known(self, stored: StoredVersion, ids: Ids) -> tuple[PoolView, NDArray[np.bool_]]:
        """The pool a version stands on, and which of the ids are in it."""
        view = self._view(stored.info.representation)
        known = view.table.known(ids)
        if not known.all() and view.refresh():
            known = view.table.known(ids)
        return view, known

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
            audit_share=0.0 if audit_is_enough(audited, accuracy) else _AUDIT_SHARE,
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

    # ------------------------------------------------------------------ versions
    def versions(self) -> list[VersionInfo]:
        """All readable versions, newest first."""
        return self._versions.all()

    def newest(self) -> VersionInfo | None:
        """The version fitted last, live or not."""
        return next(self._versions.newest_first(), None)

    def labels_of(self, version: str) -> dict[int, str]:
        """Every label the first head of a version knew, trained on or measured with: example id -> class name."""
        spec = self._versions.info(version).specs[0]
        return {i: spec.said(target) for i, target in self._versions.labels(version).items()}

    def answers_of(self, version: str) -> dict[int, dict[str, Any]]:
        """Every label a version knew: example id -> name of the head -> answer, in names where it has classes."""
        found: dict[int, dict[str, Any]] = {}
        of_heads = zip(self._versions.info(version).specs, self._versions.labels_of_heads(version), strict=True)
        for spec, targets in of_heads:
            for i, target in targets.items():
                found.setdefault(i, {})[spec.name] = spec.said(target)
        return found

    def live(self) -> VersionInfo | None:
        """The live version, or None before the first promotion."""
        return self._versions.live()

    def promote(self, version: str) -> VersionInfo:
        """Make a version live; atomic. Raises VersionMissing, CheckpointCorrupt."""
        return self._made_live(self._versions.promote(version))

    def roll_back(self) -> VersionInfo:
        """Make the version before the live one live. Raises VersionMissing if there is none."""
        return self._made_live(self._versions.roll_back())

    def _made_live(self, info: VersionInfo) -> VersionInfo:
        """What is fitted and embedded next is in the representation of the live version. Its predictions are anyway:
        a version names its own, so that what is served changes with one rename."""
        current = self.representation()
        if current is not None and current.id != info.representation:
            with suppress(VersionMissing):  # of an older release, whose folder is gone: it is made anew
                self._representations.use(info.representation)
        return info

    def prune(self, keep: int) -> list[str]:
        """Remove old versions (never the live or previous one) and representations no version needs."""
        removed = self._versions.prune(keep)
        gone = self._representations.prune(info.representation for info in self._versions.all())
        with self._lock:
            for representation in gone:
                self._views.pop(representation, None)
        return removed

    # ------------------------------------------------------------------ what is kept open
    def _load(self, version: str) -> StoredVersion:
        with self._lock:
            found = self._heads.get(version)
            if found is None:
                found = self._heads[version] = self._versions.load(version)
                while len(self._heads) > _HEADS_IN_MEMORY:
                    self._heads.popitem(last=False)
            self._heads.move_to_end(version)
            return found

    def _view(self, representation: str) -> PoolView:
        with self._lock:
            view = self._views.get(representation)
            if view is None:
                view = self._views[representation] = PoolView(self._representations.folder(representation))
            return view

    def _current_view(self) -> PoolView | None:
        current = self.representation()
        return None if current is None else self._view(current.id)

    def _starts(self, representation: str, specs: Sequence[HeadSpec]) -> list[StoredHead | None]:
        """Of each head, where the newest version ended that was asked the same."""
        for info in self._versions.newest_first():
            if info.representation != representation:
                continue
            found = [same_question(spec, info.specs, same_answers=True) for spec in specs]
            if any(place is not None for place in found):
                heads = self._load(info.id).heads
                return [None if place is None else heads[place] for place in found]
        return [None] * len(specs)
