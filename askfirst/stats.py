"""Waiting times of annotators, and the learning curve of a run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Waits:
    """Seconds that calls took; several threads may add."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self._seconds.append(seconds)

    def summary(self) -> dict[str, float | int | None]:
        """Count, median, 95th percentile and longest, in seconds; None where nothing was measured."""
        with self._lock:
            values = np.array(self._seconds)
        if not len(values):
            return {"count": 0, "median_s": None, "p95_s": None, "longest_s": None}
        median, p95 = np.percentile(values, [50, 95])
        return {
            "count": len(values),
            "median_s": round(float(median), 3),
            "p95_s": round(float(p95), 3),
            "longest_s": round(float(values.max()), 3),
        }


class Version(Protocol):
    """The part of training.api.VersionInfo that a curve needs."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> float: ...  # unix seconds
    @property
    def classes(self) -> tuple[str, ...]: ...


class Model(Protocol):
    """The part of training.api.ProjectModel that a curve needs."""

    def versions(self) -> Sequence[Any]: ...
    def predict(self, version: str, example_ids: Sequence[int]) -> Any: ...


@dataclass(frozen=True)
class CurvePoint:
    """What one model version knew about the tasks that nobody had labelled yet."""

    labels: int  # tasks labelled when the version was made
    accuracy: float
    version: str


def learning_curve(model: Model, truth: Mapping[int, str], labelled_at: Mapping[int, float]) -> list[CurvePoint]:
    """Accuracy of each model version on all tasks that were unlabelled when it was made and whose truth is known.

    Args:
        truth: task -> label.
        labelled_at: task -> unix seconds of its first annotation; tasks without one are absent.

    Tasks that the model never saw (an unreadable image, say) do not count. A version for which no task is left
    has no point.
    """
    tasks = np.array(sorted(truth), dtype=np.int64)
    when = np.array([labelled_at.get(int(task), np.inf) for task in tasks])
    points = []
    for version in sorted(model.versions(), key=lambda v: v.created_at):
        left = tasks[when > version.created_at]
        if not len(left):
            continue
        predictions = model.predict(version.id, left)
        known = np.asarray(predictions.known, dtype=bool)
        if not known.any():
            continue
        ids = np.asarray(predictions.example_ids)[known]
        best = np.asarray(predictions.probabilities)[known].argmax(axis=1)
        right = [version.classes[b] == truth[int(i)] for i, b in zip(ids, best, strict=True)]
        labels = sum(1 for at in labelled_at.values() if at <= version.created_at)
        points.append(CurvePoint(labels, float(np.mean(right)), version.id))
    return points
