"""Weights between a trained start and what fine-tuning made of it.

What is learnt from a few hundred labels has its price: classes with a handful of pictures are learnt by heart, and the
features that told new ones apart are forgotten. A network part of the way back knows more of both (WiSE-FT; Wortsman et
al. 2022, arXiv:2109.01903), at the cost of one network.

The share is fixed. The held-out loss of the network's own heads would often choose none, where a head that is fitted
anew, as that of what is served is, does better with a quarter: heads suffer most from being blended.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]


def between(start: State, tuned: State, share: float) -> dict[str, Tensor]:
    """`share` of the start and the rest of what was tuned, by name; counters and the like as they were tuned."""
    return {
        name: value.lerp(start[name].to(value), share) if value.is_floating_point() else value
        for name, value in tuned.items()
    }
