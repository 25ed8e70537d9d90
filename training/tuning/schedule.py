"""How the learning rate goes, and the average of the weights that is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def lr_factor(step: int, steps: int, warm_up: float) -> float:
    """Share of the full learning rate in one step: a linear rise, then half a cosine to nothing.

    Args:
        step: from 0.
        steps: of the whole run.
        warm_up: share of the steps that rise.
    Returns:
        In (0, 1]. Paper: Loshchilov, Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """
    rising = round(warm_up * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class AveragedWeights:
    """Exponential moving average of a network's weights; its other buffers (batch norm) are copied.

    While the run is young the average is shorter than asked for, or it would hold what the run began with:
    decay_t = min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in net.state_dict().items()}

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from an average that was kept."""
        for name, value in state.items():
            self.state[name].copy_(value)
        self.updates = updates

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged: list[Tensor] = []
        now: list[Tensor] = []
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        for name, value in net.state_dict().items():
            if name in trained:
                averaged.append(self.state[name])
                now.append(value)
            elif not value.is_floating_point() or "running" in name:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averaged, now, 1 - decay)
