"""The slow path: which tasks exist, and one embedding for each of their images."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from training import api as training

from .errors import ImageUnavailable
from .heads import fields_of
from .project import ProjectDesk, Tasks
from .wire import fact, image_uri

log = structlog.get_logger(__name__)

FIRST_CHECKPOINT = 2_000  # images after which a first order is worth making in a large pool


class PoolSync:
    """Brings the list of tasks and their embeddings in step with Label Studio."""

    def __init__(self, desk: ProjectDesk) -> None:
        self.desk = desk

    def list_tasks(self, *, all_again: bool) -> Tasks:
        """Read the tasks from Label Studio (only new ones unless `all_again`) and keep the list.

        Raises: LabelStudioUnavailable, LabelStudioRejected, UnsupportedLabelConfig.
        """
        desk = self.desk
        key, names = desk.config.image_key, fields_of(desk.config)
        known = desk.files.tasks()
        if all_again or (known.image_key, known.inputs) != (key, names):
            known = Tasks(key, (), (), names, ((),) * len(names))
        ids, uris, facts = list(known.ids), list(known.uris), [list(column) for column in known.facts]
        for row in desk.workshop.ls.tasks(desk.id, after_id=known.last_id):
            ids.append(int(row["id"]))
            uris.append(image_uri(row.get("data"), key) or "")
            for name, column in zip(names, facts, strict=True):
                column.append(fact(row.get("data"), name))
        order = sorted(range(len(ids)), key=ids.__getitem__)
        tasks = Tasks(
            key,
            tuple(ids[i] for i in order),
            tuple(uris[i] for i in order),
            names,
            tuple(tuple(column[i] for i in order) for column in facts),
        )
        desk.files.write_tasks(tasks)
        if names:
            desk.model.write_inputs(tasks.ids, dict(zip(names, tasks.facts, strict=True)))
        return tasks

    def embed(
        self,
        tasks: Tasks,
        *,
        progress: Callable[[int, int], None],
        checkpoint: Callable[[], None],
        should_stop: Callable[[], bool],
    ) -> training.EmbedReport:
        """Embed what is not embedded yet. `checkpoint` is called at 2,000 images, 4,000, 8,000, ... of a large pool, so
        that annotators get a first order long before the last image is read."""
        examples = [training.Example(i, u) for i, u in zip(tasks.ids, tasks.uris, strict=True)]
        next_checkpoint = FIRST_CHECKPOINT
        shown = time.monotonic()

        def on_progress(done: int, total: int) -> None:
            nonlocal next_checkpoint, shown
            if time.monotonic() - shown > 0.5 or done == total:
                shown = time.monotonic()
                progress(done, total)
            if next_checkpoint <= done < total:
                next_checkpoint *= 2
                checkpoint()

        return self.desk.model.embed(examples, self.load, progress=on_progress, should_stop=should_stop)

    def load(self, example: training.Example) -> bytes:
        """Bytes of one image. Raises training.UnreadableImage, which costs this task alone its embedding."""
        if not example.uri:
            raise training.UnreadableImage(
                f"the task has no text under data key {self.desk.config.image_key!r}, which the labelling config shows"
            )
        try:
            return self.desk.workshop.fetcher.fetch(example.uri, example.example_id)
        except ImageUnavailable as error:
            raise training.UnreadableImage(error.reason) from error
