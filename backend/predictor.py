"""Answers /predict from what workers wrote: the newest order and the heads. No network, no torch, no Redis."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from training import api as training

from .heads import shown_answers
from .labeling_config import LabelingConfig
from .order import Order, read_order, said
from .project import ProjectFiles, model_spec
from .settings import Settings
from .wire import no_answer, parse_task, prediction_of

log = structlog.get_logger(__name__)

NO_MODEL = "askfirst cold-start"
HOMES_IN_MEMORY = 8


@dataclass
class _Home:
    """One project's files as the web process has them open; each goes stale when its file is another one."""

    model: training.ProjectModel
    files: ProjectFiles
    order_stamp: tuple[int, int] | None = None
    order: Order | None = None
    rows: dict[int, int] | None = None
    uris_of: tuple[int, dict[int, str]] | None = None


class Predictor:
    """Predictions for tasks of any project. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._homes: OrderedDict[Path, _Home] = OrderedDict()
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ files
    def _open(self, home: Path) -> _Home:
        with self._lock:
            found = self._homes.get(home)
            if found is None:
                found = self._homes[home] = _Home(
                    training.ProjectModel(home, model_spec(self._settings)), ProjectFiles(home)
                )
                while len(self._homes) > HOMES_IN_MEMORY:
                    self._homes.popitem(last=False)
            self._homes.move_to_end(home)
            path = home / "served.npz"
            try:
                stat = path.stat()
                stamp: tuple[int, int] | None = (stat.st_ino, stat.st_mtime_ns)
            except FileNotFoundError:
                stamp = None
            if stamp != found.order_stamp:
                found.order = read_order(path) if stamp else None
                found.rows = {int(t): i for i, t in enumerate(found.order.ids)} if found.order else None
                found.order_stamp = stamp
            return found

    def order(self, home: Path) -> Order | None:
        """The order served now."""
        return self._open(home).order

    def model_version(self, home: Path | None) -> str:
        """Version string for Label Studio when nothing is known from Redis."""
        order = self.order(home) if home else None
        return order.version if order and order.version else NO_MODEL

    def versions(self, home: Path) -> list[str]:
        """Model versions of a project, newest first."""
        return [v.id for v in self._open(home).model.versions()]

    def uri_of(self, home: Path, task_id: int) -> str | None:
        found = self._open(home)
        tasks = found.files.tasks()
        if found.uris_of is None or found.uris_of[0] != id(tasks):
            found.uris_of = (id(tasks), dict(zip(tasks.ids, tasks.uris, strict=True)))
        return found.uris_of[1].get(task_id)

    # ------------------------------------------------------------------ predicting
    def predict(
        self, home: Path | None, tasks: Sequence[Any], config: LabelingConfig | None, *, interactive: bool
    ) -> list[dict[str, Any]]:
        """One result per task, same order, whatever happens.

        A task of the served order gets the score it was pushed with. Any other embedded task gets its calibrated
        confidence (of several answers the mean); one that is not embedded, the confidence of guessing. An interactive
        request shows the model's answer however unsure: somebody asked for it.
        """
        version = self.model_version(home)
        if home is None or config is None:
            return [no_answer(version) for _ in tasks]
        try:
            return self._predict(self._open(home), version, tasks, config, interactive)
        except (training.TrainingError, OSError) as error:
            log.warning("predicting without a model", home=home.name, cause=str(error))
            return [no_answer(version) for _ in tasks]

    def _predict(
        self, found: _Home, version: str, tasks: Sequence[Any], config: LabelingConfig, interactive: bool
    ) -> list[dict[str, Any]]:
        ids = [parse_task(t, config.image_key).task_id for t in tasks]
        above = (
            self._settings.prelabel_above if config.options.prelabel_above is None else config.options.prelabel_above
        )
        rows = found.rows or {}
        live = found.model.live()
        others = [t for t in ids if t is not None and (t not in rows or interactive)]
        known = _known(found.model, live, others) if live is not None and others else {}
        answers = []
        for task in ids:
            if task is not None and task in rows and found.order is not None:
                score, said = float(found.order.scores[rows[task]]), found.order.said(rows[task])
                if interactive and task in known:
                    said = known[task]
            elif task is not None and task in known:
                said = known[task]
                score = sum(confidence for _, _, confidence in said) / len(said)
            else:
                score, said = 1 / max(2, len(config.classes)), []
            shown = shown_answers(said, config, above, all_of_them=interactive)
            answers.append(prediction_of(None, shown, min(max(score, 0.0), 1.0), version))
        return answers


def _known(
    model: training.ProjectModel, live: training.VersionInfo, tasks: list[int]
) -> dict[int, list[tuple[str, Any, float]]]:
    """What the live version answers to the tasks that are embedded, as `Order.said`."""
    if not live.is_plain:
        answers = model.predict_heads(live.id, tasks)
        return {t: found for i, t in enumerate(tasks) if (found := said(answers, i))}
    predictions = model.predict(live.id, tasks)
    best = predictions.probabilities.argmax(axis=1)
    return {
        t: [("", live.classes[int(best[i])], float(predictions.probabilities[i, best[i]]))]
        for i, t in enumerate(tasks)
        if predictions.known[i]
    }
