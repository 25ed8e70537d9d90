"""What a network is worth on examples that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .events import Epoch
from .heads import Examples, targets_of
from .losses import HeadLoss
from .net import TunedNet
from .pictures import Pictures
from .result import encoded_inputs, frozen_features

_Known = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]  # features [n, D]; targets [n, W] and shares [n] by head


class Judge:
    """Looks at whole pictures, in eval mode.

    The loss is what the answers cost at each head's best temperature: a network grows too sure long before it stops to
    learn, and that is mended afterwards by one number (Berta et al. 2025, arXiv:2501.19195).
    """

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
        self._losses = tuple(losses)
        self._train, self._held_out = train, held_out
        self._pictures, self._size, self._inputs, self._threads = pictures, input_size, inputs, threads

    def __call__(self, net: TunedNet, *, epoch: int, epochs: int, loss: float | None) -> Epoch:
        """The event of an epoch: the loss on the held-out examples and, by head, the share right or the mean error."""
        if not len(self._held_out):
            return Epoch(epoch, epochs, loss, None)
        outputs, targets, shares = self._answers(net, self._held_out)
        total = sum(
            head.spec.weight * head.best_temperature(output, targets[head.spec.name], shares[head.spec.name])[1]
            for head, output in zip(self._losses, outputs, strict=True)
        )
        metrics = {
            head.spec.name: _right(head, output, targets[head.spec.name], shares[head.spec.name])
            for head, output in zip(self._losses, outputs, strict=True)
            if shares[head.spec.name].any()
        }
        return Epoch(epoch, epochs, loss, float(total), metrics)

    def training_features(self, trunk: torch.nn.Module, should_stop: Callable[[], bool]) -> _Known:
        """Features, targets and shares of the training examples, for `probe.fit_heads`.

        Raises:
            TrainingStopped: by `should_stop`.
        """
        return self._known(trunk, self._train, should_stop)

    def held_out_features(self, trunk: torch.nn.Module, should_stop: Callable[[], bool]) -> _Known | None:
        """As `training_features`, of the held-out examples; None if there are none."""
        return self._known(trunk, self._held_out, should_stop) if len(self._held_out) else None

    def temperatures_and_errors(self, net: TunedNet) -> tuple[dict[str, float], dict[str, float]]:
        """By head: the best temperature on the held-out examples, 1 without; and a number's root mean square error.

        The errors are those of the training examples where nothing is held out.
        """
        numbers = any(head.spec.kind == "number" for head in self._losses)
        temperatures = {head.spec.name: 1.0 for head in self._losses if head.spec.kind != "number"}
        if not len(self._held_out) and not numbers:
            return temperatures, {}
        outputs, targets, shares = self._answers(net, self._held_out if len(self._held_out) else self._train)
        errors = {}
        for head, output in zip(self._losses, outputs, strict=True):
            name = head.spec.name
            if head.spec.kind == "number":
                errors[name] = _right(head, output, targets[name], shares[name])
            elif len(self._held_out):
                temperatures[name], _ = head.best_temperature(output, targets[name], shares[name])
        return temperatures, errors

    def _known(
        self, trunk: torch.nn.Module, examples: Examples, should_stop: Callable[[], bool] = lambda: False
    ) -> _Known:
        device = next(trunk.parameters()).device
        trunk.eval()
        features = frozen_features(trunk, self._pictures, examples.ids, self._size, self._threads, device, should_stop)
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
