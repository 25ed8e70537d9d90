"""What a run tells while it goes on. Plain values, cheap to make and to send; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Reasons why a run ended, or how they begin.
CANCELLED = "stopped from outside"
TIME_LIMIT = "the time limit"


@dataclass(frozen=True)
class Step:
    """One update of the weights."""

    epoch: int  # from 1
    step: int  # of the epoch, from 1
    steps: int  # in the epoch
    loss: float
    losses: Mapping[str, float]  # by head, before the heads are weighed
    lr: float  # of the trunk's last layer
    images_per_s: float  # of this step, pictures of the pool included
    seconds: float  # since the run began, resumed parts included


@dataclass(frozen=True)
class Epoch:
    """One pass, and what the averaged weights are worth after it."""

    epoch: int  # from 1; 0: before the first step
    epochs: int
    loss: float | None  # mean over the steps; None before the first
    held_out: float | None  # loss on the held-out examples at the best temperatures, smaller is better; None without
    metrics: Mapping[str, float] = field(default_factory=dict)  # by head: share right, or root mean square error
    best: bool = False  # the best so far
    images_per_s: float = 0.0
    seconds: float = 0.0  # since the run began, resumed parts included


OnStep = Callable[[Step], None]
OnEpoch = Callable[[Epoch], None]
