"""One project's versions: fitted on answers, judged before they go live, and what they say of examples."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .answers import HeadAnswers, Output, outputs_of
from .embedding_table import as_ids
from .errors import LabelSpaceChanged, NoTrainableExamples, VersionMissing
from .gate import ANCHOR_EACH, Comparison, Verdict, decide
from .head_comparison import Measured, compare_sides, measure_answers, same_question
from .inputs import InputSchema
from .pool_view import PoolView
from .project_pool import ProjectPool
from .representation import ModelSpec
from .targets import HeadLabels, HeadSpec
from .values import LabelledSet, Predictions
from .version_values import StoredHead, StoredVersion, VersionContent, VersionInfo
from .versions import VersionStore

if TYPE_CHECKING:
    from .tuning import Teacher

Ids = NDArray[np.int64]
_HEADS_IN_MEMORY = 4


class ProjectVersions(ProjectPool):
    """A pool, and the models of it."""

    def __init__(self, home: Path, spec: ModelSpec) -> None:
        super().__init__(home, spec)
        self._versions = VersionStore(home)
        self._heads: OrderedDict[str, StoredVersion] = OrderedDict()

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
        return compare_sides([labels.spec.name for labels in heads], sides[0], sides[1])

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
        anchor = self._versions.anchor()
        if verdict.promoted and anchor is not None and live is not None and anchor.id not in (live.id, candidate):
            # Many small steps, each within chance of the one before, must not lead down.
            from_afar = decide(self.compare_heads(candidate, anchor.id, heads), anchor.id)
            if not from_afar.promoted:
                words = from_afar.words.replace("the live version", "an earlier version")
                verdict = replace(from_afar, live=live.id, words=words)
        if promote or not verdict.promoted:
            self._versions.write_verdict(candidate, verdict)
        if promote and verdict.promoted:
            self._made_live(self._versions.promote(candidate))
            self._drop_anchor(candidate, anchor)
        return verdict

    def _drop_anchor(self, version: str, anchor: VersionInfo | None) -> None:
        labels = self._versions.info(version).labels_used
        if anchor is None or labels >= ANCHOR_EACH * anchor.labels_used or labels * ANCHOR_EACH <= anchor.labels_used:
            self._versions.drop_anchor(version)

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

    def teacher(self, version: str, example_ids: Sequence[int] | Ids) -> Teacher:
        """What a version says of examples, for `fine_tune` to teach; those that are not embedded are left out.

        Raises:
            VersionMissing, CheckpointCorrupt.
        """
        from .fine_tuning import teacher_of

        ids = as_ids(example_ids)
        known, outputs = self._outputs(self._load(version), ids)
        return teacher_of(ids[known], outputs)

    def _outputs(self, stored: StoredVersion, ids: Ids) -> tuple[NDArray[np.bool_], list[Output]]:
        """Which of n ids are embedded, [n], and what each head says of those."""
        view, known = self._known(stored, ids)
        rows = view.rows(ids[known]) if known.any() else np.empty((0, stored.joint.weight.shape[0]), np.float32)
        return known, outputs_of(stored, stored.joint.logits(rows), self._encoded(stored, ids[known]))

    def _encoded(self, stored: StoredVersion, ids: Ids) -> list[NDArray[np.float32]]:
        """Facts of n examples as each head of a version looks at them, [n, E]."""
        facts = self._facts() if any(head.info.schema.fields for head in stored.heads) else None
        return [head.info.schema.encode(facts, ids) for head in stored.heads]

    def _known(self, stored: StoredVersion, ids: Ids) -> tuple[PoolView, NDArray[np.bool_]]:
        """The pool a version stands on, and which of the ids are in it."""
        view = self._view(stored.info.representation)
        known = view.table.known(ids)
        if not known.all() and view.refresh():
            known = view.table.known(ids)
        return view, known

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
        info = self._made_live(self._versions.promote(version))
        self._versions.drop_anchor(version)  # somebody chose it: it is what later ones are held against
        return info

    def roll_back(self) -> VersionInfo:
        """Make the version before the live one live. Raises VersionMissing if there is none."""
        info = self._made_live(self._versions.roll_back())
        self._versions.drop_anchor(info.id)
        return info

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

    def facts_changed(self, version: str) -> bool:
        """Whether facts are known now that a version would encode otherwise: other values, or any at all."""
        heads = [head for head in self._versions.info(version).heads if head.spec.inputs]
        facts = self._facts() if heads else None
        return any(not InputSchema.learn(facts, head.spec.inputs).tells_as(head.schema) for head in heads)

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
