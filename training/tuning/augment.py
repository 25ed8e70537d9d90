"""Random views of one picture: operations of torchvision and Pillow, with draws of our own.

torchvision draws from one generator for the whole process. Here every picture brings its own, so that a view depends on
seed, epoch and example alone: threads may make views in any order, and a resumed run sees what it would have seen.

Views are made as Pillow images, whose operations take a fifth of the time of the same ones on small tensors. A picture
is [H, H, 3] uint8, or [H, H, 4] with a mask that goes where the pixels go but keeps its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.backbones import Flips
from training.torchvision_ops import functional as T
from training.torchvision_ops import torchvision

Pixels = NDArray[np.uint8]

_OPERATIONS = 2  # of RandAugment, one after the other, as in its paper
_STRENGTH = 0.3  # of the largest change: the paper's 9 of 30
_RATIO = 4 / 3  # of a crop's sides, at most, as in torchvision
_GREY = 128  # what comes in at the edges; next to the mean of most pictures after scaling
_CUTOUT = 0.5  # side of the square that a strong view loses, of the picture's (Sohn et al. 2020, appendix D)
_BILINEAR = torchvision.transforms.InterpolationMode.BILINEAR
_MODES = {3: "RGB", 4: "CMYK"}  # the one mode of Pillow with four channels of which none is taken for opacity


def as_image(picture: Pixels) -> Image.Image:
    """[H, H, 3 or 4] as Pillow holds it."""
    mode = _MODES[picture.shape[2]]
    size = picture.shape[1], picture.shape[0]
    return Image.frombuffer(mode, size, np.ascontiguousarray(picture), "raw", mode, 0, 1)


def whole(picture: Tensor, size: int) -> Tensor:
    """The whole picture at another size, as it is seen when it is predicted."""
    if picture.shape[-1] == size:
        return picture
    small: Tensor = T.resize(picture, [size, size], antialias=True)
    return small


def light(picture: Image.Image, size: int, rng: np.random.Generator, flips: Flips, crop_scale: float) -> Image.Image:
    """A random crop of at least `crop_scale` of the area, squeezed to `size`, flipped or not."""
    side = picture.height
    area = rng.uniform(crop_scale, 1.0) * side**2
    ratio = math.exp(rng.uniform(-math.log(_RATIO), math.log(_RATIO)))
    height = min(side, max(1, round(math.sqrt(area / ratio))))
    width = min(side, max(1, round(math.sqrt(area * ratio))))
    top = int(rng.integers(0, side - height + 1))
    left = int(rng.integers(0, side - width + 1))
    box = (left, top, left + width, top + height)
    view = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    mirrored, upside_down = rng.uniform(size=2) < 0.5
    if flips != "none" and mirrored:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if flips == "both" and upside_down:
        view = view.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return view


def randaugment(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two random operations out of fourteen (Cubuk et al. 2020, arXiv:1909.13719, RandAugment with N = 2, M = 9)."""
    for index in rng.integers(0, len(_OPS), _OPERATIONS):
        sign = 1.0 if rng.uniform() < 0.5 else -1.0
        picture = _OPS[int(index)](picture, sign * _STRENGTH)
    return picture


def cutout(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """A grey square somewhere (DeVries, Taylor 2017, arXiv:1708.04552); the mask stays."""
    side = picture.shape[0]
    length = round(_CUTOUT * side)
    row, column = (int(x) for x in rng.integers(0, side, 2))
    picture = picture.copy()
    top, left = max(0, row - length // 2), max(0, column - length // 2)
    picture[top : row + length // 2, left : column + length // 2, :3] = _GREY
    return picture


def _moved(
    *, angle: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Callable[[Image.Image, float], Image.Image]:
    """An affine change: degrees, shares of the side, degrees, all at full strength."""

    def change(picture: Image.Image, amount: float) -> Image.Image:
        side = picture.height
        moved: Image.Image = T.affine(
            picture,
            angle=angle * amount,
            translate=[round(part * amount * side) for part in shift],
            scale=1.0,
            shear=[part * amount for part in shear],
            interpolation=_BILINEAR,
            fill=(_GREY, _GREY, _GREY, 0)[: len(picture.getbands())],
        )
        return moved

    return change


def _coloured(change: Callable[[Image.Image, float], Image.Image]) -> Callable[[Image.Image, float], Image.Image]:
    """A change of the pixels that leaves a mask alone."""

    def apply(picture: Image.Image, amount: float) -> Image.Image:
        if picture.mode == _MODES[3]:
            return change(picture, amount)
        *pixels, mask = picture.split()
        changed = change(Image.merge(_MODES[3], pixels), amount)
        return Image.merge(_MODES[4], (*changed.split(), mask))

    return apply


# Largest changes as in the paper's code and torchvision: 30 degrees, shear 0.3, shift 150/331 of the side, factor
# 0.9, four bits, everything solarised.
_OPS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
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
