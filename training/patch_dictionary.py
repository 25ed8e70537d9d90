"""Dictionaries of image patches, learnt without labels: what is left of an image when only its texture counts.

The first step of `training.pool_features`: contrast-normalised, whitened 6 x 6 patches, spherical k-means,
soft-thresholded responses of both signs, averaged over a grid and square-rooted (Coates, Lee, Ng 2011).

Axes:
    B  images        H = W  pixels        K  words of a dictionary        P  pooled responses
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PATCH = 6  # pixels; Coates et al. found 6 best on 32-pixel images
_SMALLEST_IN_USE = 32  # pixels; images are never shrunk below
_SMALLEST_OCTAVE = 16  # pixels; below, a patch is most of the image
_DETAIL = 0.005  # share of variance a finer octave must hold: HAM10000 at 64 px 0.011, enlarged digits 0.0006
_WORDS = 300  # filters per octave
_PATCHES = 40_000  # for each dictionary, and at most a hundred from an image
_CONTRAST_FLOOR = 10.0  # squared grey levels, keeps sensor noise on flat ground from being blown up
_WHITENING_FLOOR = 0.1  # of the variance 1 that a normalised patch has
_THRESHOLD = 0.25  # soft threshold on responses
_BATCH = 32  # images; keeps the response maps of a batch within tens of MB


@dataclass(frozen=True, eq=False)
class PatchDictionary:
    """One dictionary per octave, finest first."""

    grey: bool  # one channel, else RGB
    octave: int  # the finest in use: images are first shrunk by 2 ** octave
    filters: tuple[Tensor, ...]  # per octave: [K, channels, 6, 6]
    offsets: tuple[Tensor, ...]  # per octave: [K]

    @classmethod
    def learn(cls, sample: NDArray[np.uint8], grey: bool, rng: np.random.Generator) -> PatchDictionary:
        """Learn from [n, H, H, 3] uint8 images in random order, at octaves from the finest with detail to 16 pixels."""
        filters, offsets = [], []
        finest = finest_octave(sample, grey)
        for octave in range(finest, _octaves(sample.shape[1])):
            words, offset = learn_words(_patches(sample, grey, octave, rng), rng)
            channels = 1 if grey else 3
            filters.append(words.reshape(-1, channels, PATCH, PATCH))
            offsets.append(offset)
        return cls(grey, finest, tuple(filters), tuple(offsets))

    def pooled(self, images: NDArray[np.uint8]) -> Tensor:
        """[B, H, H, 3] uint8 -> [B, P] float32, >= 0; independent of how images are batched."""
        return torch.cat([self._pooled_batch(part) for part in batches(images)])

    def _pooled_batch(self, images: NDArray[np.uint8]) -> Tensor:
        x = F.avg_pool2d(to_tensor(images, self.grey), 2**self.octave)
        parts = []
        for level, (filters, offsets) in enumerate(zip(self.filters, self.offsets, strict=True)):
            x = F.avg_pool2d(x, 2) if level else x
            # About 20 positions a side at every octave: a quarter of the time that each position costs at
            # 32 pixels, for less than a point of accuracy, and a time that grows slowly with the input size.
            stride = max(1, round(x.shape[-1] / 20))
            mean = F.avg_pool2d(x.mean(1, keepdim=True), PATCH, stride)
            variance = F.avg_pool2d((x * x).mean(1, keepdim=True), PATCH, stride) - mean * mean
            response = F.conv2d(x, filters, stride=stride)
            response /= (variance.clamp_min_(0) + _CONTRAST_FLOOR).sqrt_()
            response -= offsets[:, None, None]
            grid = 3 if level else 4
            parts += [
                F.adaptive_avg_pool2d((sign * response - _THRESHOLD).relu_(), grid).flatten(1).sqrt_()
                for sign in (1, -1)
            ]
        return torch.cat(parts, 1)


def batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Consecutive slices of as many images as are worked on at a time."""
    return (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))


def _octaves(size: int) -> int:
    return 1 + max(0, int(math.log2(size / _SMALLEST_OCTAVE)))


def finest_octave(sample: NDArray[np.uint8], grey: bool) -> int:
    """The octave below which images hold next to nothing: enlarged or blurred pictures need no fine dictionary."""
    x, octave = to_tensor(sample[:200], grey), 0
    while x.shape[-1] >= 2 * _SMALLEST_IN_USE:
        half = F.avg_pool2d(x, 2)
        again = F.interpolate(half, size=list(x.shape[-2:]), mode="bilinear", align_corners=False)
        if (x - again).square().mean() > _DETAIL * x.var(dim=(1, 2, 3), correction=0).mean():
            break
        x, octave = half, octave + 1
    return octave


def to_tensor(images: NDArray[np.uint8], grey: bool) -> Tensor:
    """[B, H, H, 3] -> [B, channels, H, H] float32, about zero. A colour image among grey ones is made grey."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() - 128
    return x.mean(1, keepdim=True) if grey else x


def _patches(sample: NDArray[np.uint8], grey: bool, octave: int, rng: np.random.Generator) -> Tensor:
    """Random contrast-normalised patches [n, channels * 36] of an octave; flat ones are left out if others exist."""
    chosen = sample[: _PATCHES // 40]  # 50 MB as floats at 64 pixels
    count = min(_PATCHES, 100 * len(chosen))
    x = torch.cat([to_tensor(part, grey) for part in batches(chosen)])
    x = F.avg_pool2d(x, 2**octave) if octave else x
    windows = x.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [n, channels, rows, columns, 6, 6], a view
    image, row, column = (
        torch.from_numpy(rng.integers(0, stop, count)) for stop in (len(x), windows.shape[2], windows.shape[3])
    )
    patches = windows[image, :, row, column].flatten(1)
    variance = patches.var(1, correction=0, keepdim=True)
    textured = variance[:, 0] > 1
    patches = (patches - patches.mean(1, keepdim=True)) / (variance + _CONTRAST_FLOOR).sqrt()
    return patches[textured] if textured.sum() >= 10 * _WORDS else patches


def learn_words(patches: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Whitening and spherical k-means folded into filters on raw pixels: [n, d] -> weights [K, d], offsets [K]."""
    mean = patches.mean(0)
    centred = patches - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    whiten = (vectors / (values.clamp_min(0) + _WHITENING_FLOOR).sqrt()) @ vectors.T
    points = centred @ whiten
    words = F.normalize(points[torch.from_numpy(rng.integers(0, len(points), _WORDS))])
    for _ in range(8):
        total = torch.zeros_like(words)
        for chunk in points.split(10_000):
            dots = chunk @ words.T
            best = dots.abs().argmax(1, keepdim=True)
            total.index_add_(0, best[:, 0], dots.gather(1, best) * chunk)
        empty = total.norm(dim=1) < 1e-6
        total[empty] = points[torch.from_numpy(rng.integers(0, len(points), int(empty.sum())))]
        words = F.normalize(total)
    weights = words @ whiten
    offsets = weights @ mean
    # Filters see raw pixels. They ignore a patch's own mean because they sum to zero: exactly so after this line,
    # up to rounding before it, as the patches that made them have no mean.
    return weights - weights.mean(1, keepdim=True), offsets
