"""One project's pool: which pictures are embedded, by what, and the facts beside them; networks of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .embedding_table import as_ids
from .errors import DataError, NoTrainableExamples
from .inputs import InputSchema, InputTable
from .pool_view import PoolView
from .representation import ModelSpec, Representation, Representations
from .targets import HeadLabels
from .tuning import OnEpoch, OnStep, TuneSettings
from .values import EmbedReport, Example

if TYPE_CHECKING:
    from .fine_tuning import FineTuned
    from .tuning import Teacher

Ids = NDArray[np.int64]


class ProjectPool:
    """What is known of a project's examples before anybody answered. Cheap to make; safe to use from threads."""

    def __init__(self, home: Path, spec: ModelSpec) -> None:
        self._representations = Representations(home, spec)
        self._home = home
        self._spec = spec
        self._views: dict[str, PoolView] = {}
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
        teach: Callable[[], Teacher] | None = None,
        masks: Path | None = None,
        on_step: OnStep = lambda step: None,
        on_epoch: OnEpoch = lambda epoch: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> FineTuned:
        """As `fine_tuning.fine_tune`; nothing in use changes, and what is made stays until `end_fine_tuning`."""
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
            teach=teach,
            masks=masks,
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

    def end_fine_tuning(self) -> None:
        """The network that `fine_tune` made was judged, or the run is over: it stays only if a version needs it."""
        self._representations.release()

    def drop_representation(self, representation: str) -> None:
        """Remove one that is not in use, with its embeddings."""
        with self._lock:
            self._views.pop(representation, None)
        self._representations.drop(representation)

    # ------------------------------------------------------------------ what is kept open
    def _facts(self) -> InputTable | None:
        """The facts kept now; read again only when the file is another one."""
        stamp = InputTable.stamp(self._home)
        with self._lock:
            if self._table is None or self._table[0] != stamp:
                self._table = (stamp, None if stamp is None else InputTable.load(self._home))
            return self._table[1]

    def _view(self, representation: str) -> PoolView:
        with self._lock:
            view = self._views.get(representation)
            if view is None:
                view = self._views[representation] = PoolView(self._representations.folder(representation))
            return view

    def _current_view(self) -> PoolView | None:
        current = self.representation()
        return None if current is None else self._view(current.id)
