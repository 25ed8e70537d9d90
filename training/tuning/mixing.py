"""Pasting a box of one picture into another, with a label in proportion to what is left to be seen of each.

Axes:
    B  pictures        H = W  pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .settings import Mixing

_LEAST_OBJECT = 0.01  # share of the pixels; with less of both objects in sight, areas decide the label

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """Rows `top` to `bottom` and columns `left` to `right`, ends excluded, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def area_share(self, side: int) -> float:
        return (self.bottom - self.top) * (self.right - self.left) / side**2


def cut_box(side: int, rng: np.random.Generator, centre: tuple[int, int] | None = None) -> Box:
    """A box whose area is 1 - lam of the picture before it is clipped, lam ~ Beta(1, 1).

    `centre`: (row, column); anywhere by default. Paper: Yun et al. 2019, arXiv:1905.04899, eq. 2.
    """
    length = round(side * float(np.sqrt(rng.uniform())))
    row, column = (int(x) for x in rng.integers(0, side, 2)) if centre is None else centre
    top, left = row - length // 2, column - length // 2
    return Box(max(0, top), min(side, top + length), max(0, left), min(side, left + length))


def object_share(below: Pixels, pasted: Pixels, box: Box) -> float:
    """Share of the label that the pasted picture gets: its visible object of both visible objects.

    Args:
        below: [H, W] mask of the picture that is pasted into, 0 to 255; pasted: of the other.
    Returns:
        In [0, 1]; the box's share of the area where next to nothing is visible of either object.
    """
    inside = (slice(box.top, box.bottom), slice(box.left, box.right))
    b = int(pasted[inside].sum(dtype=np.int64))
    a = int(below.sum(dtype=np.int64)) - int(below[inside].sum(dtype=np.int64))
    if a + b < _LEAST_OBJECT * 255 * below.size:
        return box.area_share(len(below))
    return b / (a + b)


def partners(groups: NDArray[np.int64], rng: np.random.Generator, probability: float) -> NDArray[np.intp]:
    """For each picture the one to paste into it, or itself for none; never one of the same group. [B]"""
    n = len(groups)
    own = np.arange(n)
    other = rng.permutation(n)
    mixed = (rng.uniform(size=n) < probability) & (groups[other] != groups)
    return np.where(mixed, other, own)


def mix(
    images: Pixels,
    masks: Pixels | None,
    other: NDArray[np.intp],
    how: Mixing,
    rng: np.random.Generator,
) -> tuple[Pixels, NDArray[np.float32]]:
    """Paste a box of `images[other]` into `images`, at the place where it was.

    "cutmix": the box anywhere, labels by area. "cutmix-object": the same box, labels by visible object. "saliency": the
    box around the most salient pixel of the pasted picture, labels by area (Uddin et al. 2020, arXiv:2006.01791).

    Args:
        images: [B, H, H, 3] uint8.
        masks: [B, H, H] uint8, 0 to 255; not needed by "cutmix".
        other: [B], see `partners`.
    Returns:
        New images, and the share of the label [B] that belongs to the pasted picture.
    """
    shares = np.zeros(len(images), np.float32)
    if how == "none":
        return images, shares
    side = images.shape[1]
    mixed = images.copy()
    for row in np.flatnonzero(other != np.arange(len(images))):
        source = int(other[row])
        centre = None
        if how == "saliency":
            assert masks is not None
            peak = int(masks[source].argmax())
            centre = (peak // side, peak % side)
        box = cut_box(side, rng, centre)
        inside = (slice(box.top, box.bottom), slice(box.left, box.right))
        mixed[row][inside] = images[source][inside]
        if how == "cutmix-object":
            assert masks is not None
            shares[row] = object_share(masks[row], masks[source], box)
        else:
            shares[row] = box.area_share(side)
    return mixed, shares
