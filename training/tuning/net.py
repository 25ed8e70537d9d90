"""One trunk, several heads; extra inputs condition the features that a head sees.

Axes:
    B  pictures        H  side in pixels        D  features        C  classes of a head        E  width of an input
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones import Backbone, Triple, feature_extractor, scaled
from training.errors import DataError

from .heads import HeadSpec
from .norms import fold_norms

_HALF: Triple = (0.5, 0.5, 0.5)
_CONDITION_WIDTH = 64  # hidden units from the extra inputs to the modulation: they are few
_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Untrained:
    """A network that starts from nothing."""

    name: str  # as in torchvision.models.list_models()
    input_size: int  # pixels
    mean: Triple = _HALF
    std: Triple = _HALF


def trunk_of(start: Backbone | Untrained) -> nn.Module:
    """[B, H, H, 3] uint8 -> [B, D]: trained weights where there are some, and everything may be trained.

    Raises:
        UnknownBackbone, WeightsUnusable.
    """
    if isinstance(start, Untrained):
        trunk = scaled(feature_extractor(start.name), start.mean, start.std)
    else:
        trunk = as_trained(start).build()
    model = cast("Any", trunk.model)
    if hasattr(model, "aux_logits"):
        model.aux_logits = False  # GoogLeNet and Inception give a second answer in training, which nobody reads
    fold_norms(model)
    trunk.requires_grad_(True)
    return trunk


def as_trained(start: Backbone) -> Backbone:
    """The same function of the pixels, with all scaling in mean and std.

    What torchvision calls transform_input brings ImageNet's scale to a mean and deviation of a half. Weights that are
    saved again carry mean and std only.
    """
    if not start.transform_input:
        return start
    return replace(start, mean=_HALF, std=_HALF, transform_input=False)


class OrdinalHead(nn.Module):
    """Proportional odds (McCullagh 1980): P(y <= k) = sigmoid(threshold_k - w.h), thresholds always in order."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.slope = nn.Linear(width, 1, bias=False)
        # Begin with equal probabilities for h = 0.
        cuts = torch.logit(torch.arange(1, classes) / classes)
        self.first = nn.Parameter(cuts[:1].clone())
        gaps = cuts.diff()
        self.gaps = nn.Parameter(gaps + torch.log(-torch.expm1(-gaps)))  # the inverse of softplus

    def forward(self, features: Tensor) -> Tensor:  # [B, D] -> [B, C] log-probabilities
        thresholds = torch.cat([self.first, self.first + F.softplus(self.gaps).cumsum(0)])
        x = thresholds - self.slope(features)  # [B, C - 1], rising
        low, high = F.logsigmoid(x), F.logsigmoid(-x)  # log P(y <= k), log P(y > k)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no difference of near-equal numbers
        between = low[:, 1:] + high[:, :-1] + torch.log(-torch.expm1(x[:, :-1] - x[:, 1:]))
        return torch.cat([low[:, :1], between, high[:, -1:]], 1)


class Modulation(nn.Module):
    """Feature-wise scale and shift from extra inputs (FiLM; Perez et al. 2018, arXiv:1709.07871), nothing at first.

    Each value comes with a sign that says whether it is missing, so that zero and unknown differ.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, _CONDITION_WIDTH)
        self.out = nn.Linear(_CONDITION_WIDTH, 2 * width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.out(F.relu(self.hidden(condition))).chunk(2, 1)
        return features * (1 + scale) + shift


class TunedNet(nn.Module):
    """Trunk and heads. Heads are numbered inside, since their names may hold any character."""

    def __init__(self, trunk: nn.Module, width: int, heads: Sequence[HeadSpec], inputs: Mapping[str, int]) -> None:
        """`inputs`: width of each extra input by name."""
        super().__init__()
        self.specs = tuple(heads)
        self.trunk = trunk
        self.heads = nn.ModuleList(
            OrdinalHead(width, head.width) if head.kind == "ordinal" else _linear(width, head.width) for head in heads
        )
        self.conditions = nn.ModuleDict(
            {
                str(index): Modulation(sum(inputs[name] + 1 for name in head.inputs), width)
                for index, head in enumerate(heads)
                if head.inputs
            }
        )
        # Of each head's loss, learnt (Kendall et al. 2018, arXiv:1705.07115); one head needs no weighing.
        self.log_variance = nn.Parameter(torch.zeros(len(heads)), requires_grad=len(heads) > 1)

    def forward(self, images: Tensor, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """[B, H, H, 3] uint8 and [B, E + 1] an input (see `condition`) -> outputs [B, W] of each head in order."""
        return self.answer(self.trunk(images), inputs)

    def answer(self, features: Tensor, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """As `forward`, from features [B, D]."""
        outputs = []
        for index, (spec, head) in enumerate(zip(self.specs, self.heads, strict=True)):
            seen = features
            if spec.inputs:
                seen = self.conditions[str(index)](features, torch.cat([inputs[name] for name in spec.inputs], 1))
            outputs.append(cast("Tensor", head(seen)))
        return outputs

    def training_mode(self, *, frozen_norms: bool) -> None:
        """Train; with `frozen_norms` batch norms use the statistics that they came with."""
        self.train()
        if frozen_norms:
            for module in self.modules():
                if isinstance(module, _NORMS):
                    module.eval()


def condition(values: Tensor) -> Tensor:
    """[B, E] with NaN rows for missing -> [B, E + 1]: zeros and a one in the last column where missing."""
    missing = values.isnan().any(1, keepdim=True)
    return torch.cat([values.masked_fill(missing, 0.0), missing.to(values.dtype)], 1)


@torch.no_grad()
def feature_width(trunk: nn.Module, input_size: int) -> int:
    """D, found by looking at one black picture."""
    trunk.eval()
    return int(trunk(torch.zeros((1, input_size, input_size, 3), dtype=torch.uint8)).shape[1])


@torch.no_grad()
def load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers of the same names. Raises DataError if names differ.

    Not `load_state_dict`, which in some networks (MNASNet) wants to know which version of torchvision wrote them.
    """
    own = net.state_dict()
    if own.keys() != state.keys():
        raise DataError(f"weights for other layers: {sorted(own.keys() ^ state.keys())[:5]} are on one side only")
    for name, value in own.items():
        value.copy_(state[name])


def freeze_first(net: TunedNet, share: float) -> None:
    """Keep the first layers of the trunk as they are: `share` of all that have weights, by their place."""
    layers = _layers(net)
    for layer in layers[: round(share * len(layers))]:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(False)


def _layers(net: TunedNet) -> list[nn.Module]:
    return [m for m in net.trunk.modules() if any(True for _ in m.parameters(recurse=False))]


def parameter_groups(
    net: TunedNet, lr_head: float, lr_trunk: float, layer_decay: float, weight_decay: float
) -> list[Any]:
    """Parameters for AdamW, with a learning rate that falls towards the first layer.

    A layer at depth d in [0, 1], by its place among the trunk's layers, gets `lr_trunk * layer_decay ** (1 - d)`.
    Biases, norms and other vectors are not decayed. Frozen ones are left out.
    """
    layers = _layers(net)
    rate = {id(p): lr_head for p in net.parameters()}
    for place, layer in enumerate(layers):
        # Twelve levels, so that the optimizer works on few, long lists of tensors.
        depth = round(12 * place / max(1, len(layers) - 1)) / 12
        for parameter in layer.parameters(recurse=False):
            rate[id(parameter)] = lr_trunk * layer_decay ** (1 - depth)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in net.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate[id(parameter)], decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _linear(width: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(width, outputs)
    nn.init.normal_(layer.weight, std=0.01)  # as torchvision's own heads: every answer is open at first
    nn.init.zeros_(layer.bias)
    return layer
