"""Heads fitted on frozen features: what a run starts from, and what it must beat.

A fresh head on a trained trunk sends large, aimless gradients back in its first steps. Fitting it first keeps what the
trunk knows (linear probing, then fine-tuning: Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .losses import HeadLoss
from .net import OrdinalHead, TunedNet

_RIDGES = (1e-3, 1e-2, 1e-1)  # penalties on standardised features, tried on the held-out examples
_RIDGE = 1e-2  # where nothing is held out
# Least spread of a feature, of the median one. One that hardly varies among few examples would be stretched until a
# picture in which it does say something is answered by it alone: 20 of 1,280 were the same in 77 faces.
_LEAST_SPREAD = 0.1
_ITERATIONS = 60  # of L-BFGS; the loss moves in the third digit after that


def fit_heads(
    net: TunedNet,
    losses: Sequence[HeadLoss],
    features: Tensor,
    targets: Mapping[str, Tensor],
    shares: Mapping[str, Tensor],
    held_out: tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]] | None,
) -> None:
    """Fit each head of `net` in place, by its own loss and a penalty on the squared weights.

    Args:
        features: [n, D]; targets: by head, [n, W]; shares: by head, [n], adding up to 1.
        held_out: features, targets and shares to choose the penalty by.
    """
    centre = features.mean(0)
    spread = features.std(0, correction=0)
    spread = spread.clamp_min(max(_LEAST_SPREAD * float(spread.median()), 1e-6))
    x = (features - centre) / spread
    for head, loss in zip(net.heads, losses, strict=True):
        name = loss.spec.name
        if shares[name].sum() == 0:
            continue
        start = {key: value.clone() for key, value in head.state_dict().items()}
        best: tuple[float, dict[str, Tensor]] | None = None
        for ridge in _RIDGES if held_out is not None else (_RIDGE,):
            head.load_state_dict(start)
            _fit(head, loss, x, targets[name], shares[name], ridge)
            error = 0.0
            if held_out is not None:
                theirs, wanted, weight = held_out
                with torch.no_grad():
                    _, error = loss.best_temperature(head((theirs - centre) / spread), wanted[name], weight[name])
            if best is None or error < best[0]:
                best = error, {key: value.clone() for key, value in head.state_dict().items()}
        assert best is not None
        head.load_state_dict(best[1])
        _take_raw_features(head, centre, spread)


def _fit(head: nn.Module, loss: HeadLoss, x: Tensor, targets: Tensor, shares: Tensor, ridge: float) -> None:
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")
    weight = _weight(head)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (shares * loss.rows(head(x), targets)).sum() + ridge / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    head.zero_grad(set_to_none=True)


def _weight(head: nn.Module) -> Tensor:
    return cast("Tensor", (head.slope if isinstance(head, OrdinalHead) else head).weight)


@torch.no_grad()
def _take_raw_features(head: nn.Module, centre: Tensor, spread: Tensor) -> None:
    """Put the standardising of features into the head: w.(x - c) / s = (w / s).x - (w / s).c"""
    weight = _weight(head)
    weight /= spread
    moved = weight @ centre  # [W]
    if isinstance(head, OrdinalHead):
        head.first.add_(moved)  # thresholds are compared with w.x, so they move the other way
    else:
        cast("Tensor", head.bias).sub_(moved)
