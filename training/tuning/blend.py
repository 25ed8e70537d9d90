"""Weights between a trained start and what fine-tuning made of it.

What is learnt from a few hundred labels has its price: classes with a handful of pictures are learnt by heart, and the
features that told new ones apart are forgotten. A network part of the way back often knows both (WiSE-FT; Wortsman et
al. 2022, arXiv:2109.01903), at the cost of one network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from .judge import Judge
from .net import TunedNet, load_weights

State = Mapping[str, Tensor]


def between(start: State, tuned: State, share: float) -> dict[str, Tensor]:
    """`share` of the start and the rest of what was tuned; counters and the like as they were tuned."""
    return {
        name: value.lerp(start[name].to(value), share) if value.is_floating_point() else value
        for name, value in tuned.items()
    }


def best_between(judge: Judge, net: TunedNet, start: State, tuned: State, shares: Sequence[float]) -> float:
    """The share of the start, 0 or one of `shares`, with the least loss on the held-out examples; 0 if equal.

    Args:
        judge: with held-out examples; net: holds weights while they are measured, any afterwards.
    """
    losses: dict[float, float] = {}
    for share in (0.0, *shares):
        load_weights(net, between(start, tuned, share))
        found = judge(net, epoch=0, epochs=0, loss=None).held_out
        losses[share] = math.inf if found is None or math.isnan(found) else found
    return min(losses, key=lambda share: losses[share])  # the first of equals
