"""What a network is worth on examples that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .events import Epoch
from .heads import Examples, targets_of
from .losses import HeadLoss, Objective
from .net import TunedNet
from .pictures import Pictures
from .result import encoded_inputs, frozen_features

_Known = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]  # features [n, D]; targets [n, W] and shares [n] by head


class Judge:
    """Looks at whole pictures, in eval mode, without smoothing."""

    def __init__(
        self,
        losses: Sequence[HeadLoss],
        train: Examples,
        held_out: Examples,
        pictures: Pictures,
        input_size: int,
        inputs: Mapping[str, int],
        threads: int,
    ) -> None:
        """`inputs`: width of each extra input; `threads`: that resize pictures ahead."""
        self._losses = tuple(replace(loss, smoothing=0.0) for loss in losses)
        self._train, self._held_out = train, held_out
        self._pictures, self._size, self._inputs, self._threads = pictures, input_size, inputs, threads

    def __call__(self, net: TunedNet, *, epoch: int, epochs: int, loss: float | None) -> Epoch:
        """The event of an epoch: the loss on the held-out examples and, by head, the share right or the mean error."""
        if not len(self._held_out):
            return Epoch(epoch, epochs, loss, None)
        outputs, targets, shares = self._answers(net, self._held_out)
        total, _ = Objective(self._losses)(outputs, targets, shares, torch.zeros(len(self._losses)))
        metrics = {
            head.spec.name: _right(head, output, targets[head.spec.name], shares[head.spec.name])
            for head, output in zip(self._losses, outputs, strict=True)
            if shares[head.spec.name].any()
        }
        return Epoch(epoch, epochs, loss, float(total), metrics)

    def training_features(self, trunk: torch.nn.Module) -> _Known:
        """Features, targets and shares of the training examples, for `probe.fit_heads`."""
        return self._known(trunk, self._train)

    def held_out_features(self, trunk: torch.nn.Module) -> _Known | None:
        """As `training_features`, of the held-out examples; None if there are none."""
        return self._known(trunk, self._held_out) if len(self._held_out) else None

    def number_errors(self, net: TunedNet) -> dict[str, float]:
        """Root mean square error of heads of kind "number": on the held-out examples, or the training ones."""
        if all(head.spec.kind != "number" for head in self._losses):
            return {}
        outputs, targets, shares = self._answers(net, self._held_out if len(self._held_out) else self._train)
        return {
            head.spec.name: _right(head, output, targets[head.spec.name], shares[head.spec.name])
            for head, output in zip(self._losses, outputs, strict=True)
            if head.spec.kind == "number"
        }

    def _known(self, trunk: torch.nn.Module, examples: Examples) -> _Known:
        device = next(trunk.parameters()).device
        trunk.eval()
        features = frozen_features(trunk, self._pictures, examples.ids, self._size, self._threads, device)
        targets, shares = {}, {}
        for loss in self._losses:
            found = targets_of(loss.spec, examples)
            targets[loss.spec.name] = torch.from_numpy(loss.standardised(found.values))
            weights = found.answered.astype(np.float32)
            if examples.weights is not None:
                weights = weights * examples.weights
            shares[loss.spec.name] = torch.from_numpy(weights / max(float(weights.sum()), 1e-12))
        return features, targets, shares

    def _answers(self, net: TunedNet, examples: Examples) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
        net.eval()
        features, targets, shares = self._known(net.trunk, examples)
        device = next(net.parameters()).device
        inputs = encoded_inputs(self._inputs, examples.inputs, len(examples))
        with torch.inference_mode():
            outputs = net.answer(features.to(device), {name: value.to(device) for name, value in inputs.items()})
        return [output.cpu() for output in outputs], targets, shares


def _right(loss: HeadLoss, outputs: Tensor, targets: Tensor, shares: Tensor) -> float:
    """Share of answers that are right, of each class by itself for "multiple"; a number's root mean square error."""
    if loss.spec.kind == "number":
        return float((shares * (outputs - targets)[:, 0].square()).sum().sqrt()) * loss.spread
    found = loss.log_probabilities(outputs)
    if loss.spec.kind == "multiple":
        right = ((found.exp() > 0.5) == (targets > 0.5)).float().mean(1)
    else:
        right = (found.argmax(1) == targets.argmax(1)).float()
    return float((shares * right).sum())
