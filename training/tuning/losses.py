"""What is minimised: masked losses of several heads, weighed by what each can be known.

Axes:
    B  examples of a step        C  classes        W  outputs of a head (C, or 1 for a number)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .heads import Floats, HeadSpec, Targets
from .settings import Loss

TENSORS = ("shift", "class_weight", "to_labels", "to_uniform", "shares")  # of a `HeadLoss`
FEWEST_FOR_TEMPERATURE = 20  # answers: fewer say little about how sure a network should be
TEMPERATURES = tuple(
    float(t) for t in np.geomspace(0.25, 8, 41)
)  # steps of 9 %: finer ones change no digit that counts
_FEWEST = 0.5  # labels that a class without any counts as: its logarithm must be finite
_SURE = 1e-6  # a teacher's probability of 0 or 1 is brought this near: its logarithm must be finite


@dataclass(frozen=True, eq=False)
class HeadLoss:
    """How one head's outputs become a loss and probabilities.

    Training moves the outputs by `shift` or weighs classes by `class_weight`, so that the outputs alone belong to
    classes of other shares than the labels have. `to_labels` and `to_uniform` bring them back to the shares of the
    labels, or to equal shares (Menon et al. 2021, arXiv:2007.07314).
    """

    spec: HeadSpec
    shift: Tensor  # [W], added to outputs in the loss
    class_weight: Tensor  # [W]
    to_labels: Tensor  # [W], added to outputs for probabilities
    to_uniform: Tensor  # [W]
    # [W], of the labels. Smoothed targets go there: towards equal shares a class of 1 % of the labels would get as much
    # from smoothing as from its labels, in every picture, and no network could tell it from the others.
    shares: Tensor
    smoothing: float
    centre: float  # of a number's labels; outputs of a number are (label - centre) / spread
    spread: float

    @classmethod
    def of(cls, spec: HeadSpec, targets: Targets, loss: Loss, smoothing: float) -> HeadLoss:
        """`targets`: of the training examples, which say how frequent each class is."""
        values = targets.values[targets.answered].astype(np.float64)
        zero = torch.zeros(spec.width)
        one = torch.ones(spec.width)
        if spec.kind == "number":
            centre = float(values.mean()) if len(values) else 0.0
            spread = float(values.std()) if len(values) else 0.0
            return cls(spec, zero, one, zero, zero, one, 0.0, centre, spread or 1.0)
        counts = np.maximum(values.sum(axis=0), _FEWEST)
        if spec.kind == "multiple":
            absent = np.maximum(len(values) - values.sum(axis=0), _FEWEST)
            prior, weight = np.log(counts / absent), np.sqrt(absent / counts)
            share = counts / (counts + absent)
        else:
            share = counts / counts.sum()
            prior = np.log(share)
            weight = np.sqrt(counts.sum() / (len(counts) * counts))
            weight *= counts.sum() / (weight * counts).sum()  # one on average, so the learning rate keeps its meaning
        log_prior, shares = torch.from_numpy(prior).float(), torch.from_numpy(share).float()
        if loss == "balanced":
            return cls(spec, log_prior, one, log_prior, zero, shares, smoothing, 0.0, 1.0)
        if loss == "sqrt":
            half = log_prior / 2
            return cls(spec, zero, torch.from_numpy(weight).float(), half, -half, shares, smoothing, 0.0, 1.0)
        return cls(spec, zero, one, zero, -log_prior, shares, smoothing, 0.0, 1.0)

    def to(self, device: torch.device) -> HeadLoss:
        moved = {name: getattr(self, name).to(device) for name in TENSORS}
        return replace(self, **moved)

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example, [B, W] and [B, W] -> [B], nats. Targets may be soft. For a number half the square."""
        if self.spec.kind == "number":
            return 0.5 * (outputs - targets).square()[:, 0]
        z = outputs + self.shift
        soft = targets * (1 - self.smoothing) + self.smoothing * self.shares
        if self.spec.kind == "multiple":
            each = F.binary_cross_entropy_with_logits(z, soft, pos_weight=self.class_weight, reduction="none")
            return each.mean(1)
        return -(self.class_weight * soft * F.log_softmax(z, 1)).sum(1)

    def log_probabilities(self, outputs: Tensor, *, uniform: bool = False, temperature: float = 1.0) -> Tensor:
        """[B, C]; of each class by itself for kind "multiple". For classes as frequent as the labels, or `uniform`."""
        z = (outputs + (self.to_uniform if uniform else self.to_labels)) / temperature
        return F.logsigmoid(z) if self.spec.kind == "multiple" else F.log_softmax(z, 1)

    def surprise(self, outputs: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """What the answers cost under the stated probabilities, without weights and smoothing: [B], nats.

        Half the square for a number, in units of its spread.
        """
        if self.spec.kind == "number":
            return self.rows(outputs, targets)
        log_p = self.log_probabilities(outputs, temperature=temperature)
        if self.spec.kind != "multiple":
            return -(targets * log_p).sum(1)
        against = F.logsigmoid(-(outputs + self.to_labels) / temperature)
        return -(targets * log_p + (1 - targets) * against).mean(1)

    def divergence(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL from a teacher's probabilities to ours, both softened, times the square of the temperature: [B], nats.

        Paper: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, sec. 2.
        """
        z = (outputs + self.to_labels) / temperature
        teacher = teacher.clamp(_SURE, 1 - _SURE)
        if self.spec.kind == "multiple":
            theirs = torch.sigmoid(torch.logit(teacher) / temperature)
            each = F.binary_cross_entropy_with_logits(z, theirs, reduction="none").mean(1)
            entropy = F.binary_cross_entropy(theirs, theirs, reduction="none").mean(1)
            return temperature**2 * (each - entropy)
        theirs = F.softmax(teacher.log() / temperature, 1)
        return temperature**2 * F.kl_div(F.log_softmax(z, 1), theirs, reduction="none").sum(1)

    def best_temperature(self, outputs: Tensor, targets: Tensor, shares: Tensor) -> tuple[float, float]:
        """The temperature at which answers cost least, and what they cost; 1 for a number and for few answers.

        Args:
            shares: [B], weights of the examples, adding up to 1.
        """
        found = [(float((shares * self.surprise(outputs, targets)).sum()), 1.0)]
        if self.spec.kind != "number" and int((shares > 0).sum()) >= FEWEST_FOR_TEMPERATURE:
            found += [(float((shares * self.surprise(outputs, targets, t)).sum()), t) for t in TEMPERATURES]
        cost, temperature = min(found)
        return temperature, cost

    def standardised(self, values: Floats) -> NDArray[np.float32]:
        """Targets in the units of the outputs."""
        return (values - np.float32(self.centre)) / np.float32(self.spread)


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of all heads together.

        sum over heads of weight * (exp(-s) * loss + s / 2),    s = the head's learnt log-variance

    A head's loss is a weighted sum over the examples that answer it. The weights come with the examples and add up
    to one over a whole step, so that a step in parts has the gradient of the whole. Kendall, Gal, Cipolla 2018.
    """

    losses: tuple[HeadLoss, ...]
    temperature: float = 2.0  # of distillation

    def __call__(
        self,
        outputs: Sequence[Tensor],
        targets: Mapping[str, Tensor],
        shares: Mapping[str, Tensor],
        log_variance: Tensor,
        teacher: Mapping[str, Tensor] | None = None,
        teacher_shares: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go down, and the plain loss of each head by name.

        Args:
            outputs: of `TunedNet`, [B, W] a head.
            targets: by head, [B, W]; shares: by head, [B], weight of each example in the head's loss.
            log_variance: [heads].
            teacher: by head, [B, C] probabilities; teacher_shares: by head, [B].
        """
        total = outputs[0].new_zeros(())
        plain: dict[str, Tensor] = {}
        for index, (loss, output) in enumerate(zip(self.losses, outputs, strict=True)):
            name = loss.spec.name
            share = shares[name]
            value = (share * loss.rows(output, targets[name])).sum()
            weight = share.sum()
            if teacher is not None and teacher_shares is not None and name in teacher:
                taught = teacher_shares[name]
                value = value + (taught * loss.divergence(output, teacher[name], self.temperature)).sum()
                weight = weight + taught.sum()
            plain[name] = value.detach()
            s = log_variance[index]
            if len(self.losses) > 1:
                # An unanswered head has no weight here, so its variance stays where it is.
                value = torch.exp(-s) * value + weight * s / 2
            total = total + loss.spec.weight * value
        return total, plain
