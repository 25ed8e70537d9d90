"""Batch norms that keep their statistics cost nothing: they are part of the convolution before them.

With frozen statistics a norm is a scale and a shift of each channel, so conv and norm together are one convolution
with weights W' = W g / s and bias b' = beta + (b - mean) g / s (g, beta: the norm's parameters, s: deviation). W' is
made anew in each pass, which costs as much as the weights and not as the pictures, so that W, g and beta are
trained exactly as they would be apart, under their own names.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_log = logging.getLogger(__name__)


class ConvWithNorm(nn.Conv2d):
    """A convolution that does its norm's work while that keeps its statistics."""

    following: list[FoldedNorm]  # in a list, so that it is not registered a second time

    def forward(self, x: Tensor) -> Tensor:
        norm = self.following[0]
        if norm.training:
            return super().forward(x)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # [channels]
        mean = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(
            x,
            weight,
            norm.bias - mean * scale,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


class FoldedNorm(nn.BatchNorm2d):
    """A norm whose work the convolution before it does while its statistics are kept."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


def fold_norms(net: nn.Module) -> int:
    """Let convolutions do the work of the norms right behind them; returns how many.

    The same function, names and gradients. A network that torch.fx cannot follow is left as it is.
    """
    pairs = list(_pairs(net))
    for conv, norm in pairs:
        norm.__class__ = FoldedNorm
        conv.__class__ = ConvWithNorm
        conv.following = [norm]  # type: ignore[assignment]
    return len(pairs)


def _pairs(net: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions whose result goes to one norm and nowhere else; each module used once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of networks that look at the shape of what they are given
            nodes = list(fx.Tracer().trace(net).nodes)
    except Exception as error:  # a network may do anything in Python that a trace cannot follow
        _log.info("norms of %s are not folded, its layers cannot be listed: %s", type(net).__name__, error)
        return
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        if calls.count(str(node.target)) != 1 or calls.count(str(before.target)) != 1:
            continue
        conv, norm = net.get_submodule(str(before.target)), net.get_submodule(str(node.target))
        if (
            type(conv) is nn.Conv2d
            and type(norm) is nn.BatchNorm2d
            and conv.padding_mode == "zeros"
            and norm.affine
            and norm.track_running_stats
        ):
            yield conv, norm
