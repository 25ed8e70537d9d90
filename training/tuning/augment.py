"""Random views of one picture: torchvision's operations on uint8, with draws of our own.

torchvision draws from one generator for the whole process. Here every picture brings its own, so that a view depends on
seed, epoch and example alone: threads may make views in any order, and a resumed run sees what it would have seen.

A picture is [3, H, H] uint8, or [4, H, H] with a mask that goes where the pixels go but keeps its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from training.torchvision_ops import functional as T
from training.torchvision_ops import torchvision

from .settings import Flips

_OPERATIONS = 2  # of RandAugment, one after the other, as in its paper
_STRENGTH = 0.3  # of the largest change: the paper's 9 of 30
_RATIO = 4 / 3  # of a crop's sides, at most, as in torchvision
_GREY = 128.0  # what comes in at the edges; next to the mean of most pictures after scaling
_CUTOUT = 0.5  # side of the square that a strong view loses, of the picture's (Sohn et al. 2020, appendix D)
_BILINEAR = torchvision.transforms.InterpolationMode.BILINEAR


def whole(picture: Tensor, size: int) -> Tensor:
    """The whole picture at another size, as it is seen when it is predicted."""
    if picture.shape[-1] == size:
        return picture
    small: Tensor = T.resize(picture, [size, size], antialias=True)
    return small


def light(picture: Tensor, size: int, rng: np.random.Generator, flips: Flips, crop_scale: float) -> Tensor:
    """A random crop of at least `crop_scale` of the area, squeezed to `size`, flipped or not."""
    side = picture.shape[-1]
    area = rng.uniform(crop_scale, 1.0) * side**2
    ratio = math.exp(rng.uniform(-math.log(_RATIO), math.log(_RATIO)))
    height = min(side, max(1, round(math.sqrt(area / ratio))))
    width = min(side, max(1, round(math.sqrt(area * ratio))))
    top = int(rng.integers(0, side - height + 1))
    left = int(rng.integers(0, side - width + 1))
    view: Tensor = T.resized_crop(picture, top, left, height, width, [size, size], antialias=True)
    mirrored, upside_down = rng.uniform(size=2) < 0.5
    if flips != "none" and mirrored:
        view = T.horizontal_flip(view)
    if flips == "both" and upside_down:
        view = T.vertical_flip(view)
    return view


def randaugment(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Two random operations out of fourteen (Cubuk et al. 2020, arXiv:1909.13719, RandAugment with N = 2, M = 9)."""
    for index in rng.integers(0, len(_OPS), _OPERATIONS):
        sign = 1.0 if rng.uniform() < 0.5 else -1.0
        picture = _OPS[int(index)](picture, sign * _STRENGTH)
    return picture


def cutout(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A grey square somewhere (DeVries, Taylor 2017, arXiv:1708.04552)."""
    side = picture.shape[-1]
    length = round(_CUTOUT * side)
    row, column = (int(x) for x in rng.integers(0, side, 2))
    picture = picture.clone()
    top, left = max(0, row - length // 2), max(0, column - length // 2)
    picture[:3, top : row + length // 2, left : column + length // 2] = int(_GREY)
    return picture


def _moved(
    *, angle: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Callable[[Tensor, float], Tensor]:
    """An affine change: degrees, shares of the side, degrees, all at full strength."""

    def change(picture: Tensor, amount: float) -> Tensor:
        side = picture.shape[-1]
        fill = [_GREY] * 3 + [0.0] * (picture.shape[0] - 3)
        moved: Tensor = T.affine(
            picture,
            angle=angle * amount,
            translate=[round(part * amount * side) for part in shift],
            scale=1.0,
            shear=[part * amount for part in shear],
            interpolation=_BILINEAR,
            fill=fill,
        )
        return moved

    return change


def _coloured(change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """A change of the pixels that leaves a mask alone."""

    def apply(picture: Tensor, amount: float) -> Tensor:
        if picture.shape[0] == 3:
            return change(picture, amount)
        return torch.cat([change(picture[:3], amount), picture[3:]])

    return apply


# Largest changes as in the paper's code and torchvision: 30 degrees, shear 0.3, shift 150/331 of the side, factor
# 0.9, four bits, everything solarised.
_OPS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda picture, amount: picture,
    _moved(shear=(math.degrees(math.atan(0.3)), 0)),
    _moved(shear=(0, math.degrees(math.atan(0.3)))),
    _moved(shift=(150 / 331, 0)),
    _moved(shift=(0, 150 / 331)),
    _moved(angle=30.0),
    _coloured(lambda pixels, amount: T.adjust_brightness(pixels, 1 + 0.9 * amount)),
    _coloured(lambda pixels, amount: T.adjust_saturation(pixels, 1 + 0.9 * amount)),
    _coloured(lambda pixels, amount: T.adjust_contrast(pixels, 1 + 0.9 * amount)),
    _coloured(lambda pixels, amount: T.adjust_sharpness(pixels, 1 + 0.9 * amount)),
    _coloured(lambda pixels, amount: T.posterize(pixels, 8 - round(4 * abs(amount)))),
    _coloured(lambda pixels, amount: T.solarize(pixels, 255.0 * (1 - abs(amount)))),
    _coloured(lambda pixels, amount: T.autocontrast(pixels)),
    _coloured(lambda pixels, amount: T.equalize(pixels)),
)
