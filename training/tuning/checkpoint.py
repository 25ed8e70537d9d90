"""Where a run is, written whole after each epoch, so that a killed one goes on with what it would have done."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.backbones import Backbone
from training.files import write_bytes

from .batches import Teacher
from .events import Epoch
from .heads import Examples, HeadSpec
from .net import Untrained
from .settings import TuneSettings

_log = logging.getLogger(__name__)
_FILE = "checkpoint.pt"
_FORMAT = 2


@dataclass
class Progress:
    """Everything that changes from epoch to epoch."""

    epoch: int  # finished
    seconds: float  # spent
    net: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    updates: int  # of the average
    optimizer: Mapping[str, Any]
    part_size: int | None
    precision: str
    best: Mapping[str, Tensor]
    best_epoch: int
    start: Mapping[str, Tensor]  # what the run began with
    history: list[Epoch]
    finished: str | None  # why the run ended, if it did

    @classmethod
    def at_start(cls, weights: Mapping[str, Tensor], precision: str, first: Epoch) -> Progress:
        return cls(0, 0.0, {}, {}, 0, {}, None, precision, weights, 0, weights, [first], None)

    def is_best(self, found: Epoch) -> bool:
        """Whether an epoch is better than all before; always, where nothing is held out to tell."""
        before = [epoch.held_out for epoch in self.history if epoch.held_out is not None]
        return found.held_out is None or not before or found.held_out < min(before)


def save(folder: Path, key: str, progress: Progress) -> None:
    """Replace what is in `folder`, whole."""
    content = {name: getattr(progress, name) for name in progress.__dataclass_fields__}
    content["history"] = [asdict(epoch) for epoch in progress.history]
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "key": key, **content}, buffer)
    write_bytes(folder / _FILE, buffer.getbuffer())


def load(folder: Path, key: str) -> Progress | None:
    """What was saved by the same run; None if there is nothing, of another run, or damaged."""
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != _FORMAT or content.pop("key") != key:
            _log.info("%s is of another run, so this one starts anew", path)
            return None
        content["history"] = [Epoch(**epoch) for epoch in content["history"]]
        return Progress(**content)
    except Exception:  # damaged files make torch.load raise many types; starting anew costs time only
        _log.warning("%s cannot be read, so the run starts anew", path, exc_info=True)
        return None


def key_of(
    start: Backbone | Untrained,
    heads: Sequence[HeadSpec],
    labelled: Examples,
    pool: Examples | None,
    teacher: Teacher | None,
    settings: TuneSettings,
) -> str:
    """64 hex digits over everything that decides what a run computes; not how long it may, nor with how many hands."""
    digest = hashlib.sha256()
    digest.update(start.id.encode() if isinstance(start, Backbone) else repr(start).encode())
    digest.update(repr((tuple(heads), replace(settings, time_limit_s=None, threads=None, devices=1))).encode())
    for examples in (labelled, pool):
        if examples is not None:
            _add(
                digest, examples.ids, *(column for column in (examples.groups, examples.weights) if column is not None)
            )
            for values in (examples.answers, examples.inputs):
                for name in sorted(values):
                    digest.update(name.encode())
                    _add(digest, values[name])
    if teacher is not None:
        _add(digest, teacher.ids)
        for name in sorted(teacher.probabilities):
            digest.update(name.encode())
            _add(digest, teacher.probabilities[name])
    return digest.hexdigest()


def _add(digest: Any, *arrays: np.ndarray[Any, Any]) -> None:
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
