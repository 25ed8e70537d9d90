"""Fine-tuning: pictures and answers in, a better network out. Pure: no projects, no Label Studio, no queue.

    tune(start, heads, labelled, pictures, settings) -> Tuned        predict(tuned, pictures, ids) -> Answers

Settings, heads and events load neither torch nor scipy; everything else does when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .events import CANCELLED, Epoch, OnEpoch, OnStep, Step
from .heads import Examples, HeadSpec
from .settings import MASK_SUFFIXES, WITH_MASKS, TuneSettings

if TYPE_CHECKING:
    from .batches import Teacher
    from .devices import kind_of_several
    from .loop import tune
    from .mask_folder import MaskFolder
    from .masks import MaskSource, centre_prior, spectral_residual
    from .net import Untrained
    from .pictures import BUDGET_BYTES, Pictures, side_for
    from .result import Answers, Tuned, ensemble_probabilities, load, predict

_HEAVY = {
    "Teacher": "batches",
    "tune": "loop",
    "BUDGET_BYTES": "pictures",
    "MaskFolder": "mask_folder",
    "MaskSource": "masks",
    "centre_prior": "masks",
    "spectral_residual": "masks",
    "Untrained": "net",
    "Pictures": "pictures",
    "side_for": "pictures",
    "Answers": "result",
    "Tuned": "result",
    "ensemble_probabilities": "result",
    "kind_of_several": "devices",
    "load": "result",
    "predict": "result",
}

__all__ = [
    "BUDGET_BYTES",
    "CANCELLED",
    "MASK_SUFFIXES",
    "WITH_MASKS",
    "Answers",
    "Epoch",
    "Examples",
    "HeadSpec",
    "MaskFolder",
    "MaskSource",
    "OnEpoch",
    "OnStep",
    "Pictures",
    "Step",
    "Teacher",
    "TuneSettings",
    "Tuned",
    "Untrained",
    "centre_prior",
    "ensemble_probabilities",
    "kind_of_several",
    "load",
    "predict",
    "side_for",
    "spectral_residual",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(import_module(f".{_HEAVY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
