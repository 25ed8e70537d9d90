"""Features learnt from the pool's own images, without labels, for users who have no pretrained weights.

Four closed-form steps; no gradient descent, so the same sample and seed give the same features:

1. **Patch dictionaries**: contrast-normalised, whitened 6 x 6 patches, spherical k-means, at octaves from the
   input size down to 16 pixels; soft-thresholded responses of both signs, averaged over a 4 x 4 or 3 x 3 grid and
   square-rooted (Coates, Lee, Ng 2011; Coates, Ng 2012).
2. **Nuisance whitening**: a few hundred images are warped and re-lit a little; directions that move under
   that are shrunk, directions that tell images apart are kept. Linear discriminant analysis with every image as
   its own class, or the closed form of what self-supervised nets with augmentations are trained for.
3. **Anchor graph**: coordinates of slow diffusion over the pool, through soft assignment to k-means anchors
   (Liu, He, Chang 2010); what hangs together in the pool comes close, so that few labels reach far.
4. Both parts side by side at unit length: comparable by Euclidean and by cosine distance. The graph's part weighs by
   how slowly its walk mixes: nearly as much as the other in pools that fall into groups (handwritten digits), little
   in pools that do not (photographs), where neighbours are of other classes too often.

Mirroring is not among the warps: labels may be about the side (left and right, letters, digits). What each step is
worth is measured in `benchmark/results/pool_features.md`.

Axes:
    B  images        H = W  `input_size` pixels        K  filters of a dictionary        P  pooled responses
    R  retained principal directions of P              A  anchors                        D  embedding width
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from training.errors import CheckpointCorrupt, DataError, RepresentationError
from training.patch_dictionary import PATCH, PatchDictionary, batches

INPUT_SIZES = (32, 64)
LEARN_FROM = 4_000  # images; the committed figures are made with so many, more cost time and memory

_FORMAT = "askfirst-pool-features-1"
_PCA_IMAGES, _DIRECTIONS = 2_000, 512
_VIEW_IMAGES, _VIEWS = 600, 3  # five views gained 0.002 on MNIST for two thirds more time
_NUISANCE_FLOOR = 0.5  # share of the mean nuisance variance added to every direction
_WIDTH = 256  # of the discriminant part
_ANCHORS, _IMAGES_PER_ANCHOR, _NEAREST = 600, 4, 6
_DIFFUSION_WIDTH, _DIFFUSION_TIME, _SLOWEST = 64, 3.0, 8


def choose_input_size(image_sizes: Sequence[tuple[int, int]]) -> int:
    """Input size for a pool: 32 pixels if its images are at most half larger than that, else 64.

    Args:
        image_sizes: (width, height) in pixels of some images of the pool; the median shorter side decides.
            `learn` goes down to 32 again by itself where large images hold no more than small ones would.
    Raises:
        DataError: no sizes given.
    """
    if not image_sizes:
        raise DataError("wanted the size of at least one image of the pool, got none: decode some images first")
    typical = float(np.median([min(size) for size in image_sizes]))
    return next((size for size in INPUT_SIZES if typical <= 1.5 * size), INPUT_SIZES[-1])


@dataclass(frozen=True, eq=False)
class PoolFeatures:
    """An embedding made by `learn`: immutable, deterministic, independent of how images are batched."""

    input_size: int
    grey: bool  # every image learnt from was grey: one channel is used
    octave: int  # the finest octave in use: images are first shrunk by 2 ** octave
    filters: tuple[Tensor, ...]  # per octave, finest first: [K, channels, 6, 6]
    offsets: tuple[Tensor, ...]  # per octave: [K]
    mean: Tensor  # [P]
    projection: Tensor  # [P, D1], discriminant directions
    anchors: Tensor  # [A, D1], of unit-length discriminant features; A = 0 in pools too small for a graph
    diffusion: Tensor  # [A, D2], anchor weights -> diffusion coordinates
    trust: float  # weight of the diffusion part against 1 of the other, in [0, 1]

    @property
    def width(self) -> int:
        """D, the length of an embedding; at most 320."""
        return int(self.projection.shape[1] + self.diffusion.shape[1])

    @property
    def id(self) -> str:
        """16 hex digits over everything that changes an embedding; equal ids mean comparable embeddings."""
        digest = hashlib.sha256(f"{_FORMAT} {self.input_size} {self.grey} {self.octave} {self.trust!r}".encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def learn(cls, sample: NDArray[np.uint8], seed: int) -> PoolFeatures:
        """Learn from images of the pool, without labels; the same sample and seed give the same features.

        Args:
            sample: [n, H, H, 3] uint8, RGB, a random sample of the pool; about `LEARN_FROM` images are enough.
            seed: of patches, warps and anchors.
        Raises:
            DataError: fewer than two images, or not square uint8 RGB of at least 12 pixels.
        """
        _check_images(sample)
        if len(sample) < 2:
            raise DataError(f"wanted at least 2 images to learn features from, got {len(sample)}: add images")
        rng = np.random.default_rng(seed)
        size = int(sample.shape[1])
        grey = bool((sample == sample[..., :1]).all())
        sample = sample[rng.permutation(len(sample))]  # callers may hand over images sorted by folder
        with torch.inference_mode():
            dictionary = PatchDictionary.learn(sample, grey, rng)
            pooled = dictionary.pooled(sample[:_PCA_IMAGES])
            mean = pooled.mean(0)
            pooled -= mean
            between, directions = _principal(pooled)
            basis = _Basis(dictionary, mean, directions)
            rows = torch.cat([pooled @ directions, basis.rows(sample[_PCA_IMAGES:])])
            del pooled  # the largest thing here: 120 MB at 32 pixels, 160 MB at 64
            discriminant = _discriminant(between, _nuisance_covariance(sample[:_VIEW_IMAGES], basis, rng))
            projection = directions @ discriminant
            anchors, diffusion, trust = _anchor_graph(F.normalize(rows @ discriminant, dim=1))
        # Copies leave inference mode, so that holders may use the tensors like any other.
        return cls(
            size,
            grey,
            dictionary.octave,
            tuple(f.clone() for f in dictionary.filters),
            tuple(o.clone() for o in dictionary.offsets),
            mean.clone(),
            projection.clone(),
            anchors.clone(),
            diffusion.clone(),
            trust,
        )

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, H, H, 3] uint8 at `input_size` -> [B, D] float32, unit length (zero for an image without any texture).

        Raises:
            DataError: another shape, size or type.
        """
        _check_images(images)
        if images.shape[1] != self.input_size:
            raise DataError(
                f"wanted images of {self.input_size} x {self.input_size} pixels, got {images.shape[2]} x "
                f"{images.shape[1]}: decode them at `input_size`"
            )
        with torch.inference_mode():
            basis = _Basis(
                PatchDictionary(self.grey, self.octave, self.filters, self.offsets), self.mean, self.projection
            )
            near = F.normalize(basis.rows(images), dim=1)
            if len(self.anchors):
                far = F.normalize(_anchor_weights(near, self.anchors) @ self.diffusion, dim=1)
                near = F.normalize(torch.cat([near, self.trust * far], 1), dim=1)
            rows: NDArray[np.float32] = near.numpy()
        return rows

    def save(self, path: Path) -> None:
        """Write a safetensors file atomically: readers see the old file or the whole new one."""
        values = {
            "input_size": self.input_size,
            "grey": self.grey,
            "octave": self.octave,
            "trust": self.trust,
            "id": self.id,
        }
        data = save_tensors(self._tensors(), {"format": _FORMAT, "values": json.dumps(values, sort_keys=True)})
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise

    @classmethod
    def load(cls, path: Path) -> PoolFeatures:
        """Read what `save` wrote.

        Raises:
            RepresentationError: there is no such file.
            CheckpointCorrupt: the file is damaged, or is of another format.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError as missing:
            raise RepresentationError(f"wanted pool features at {path}, found none: learn them first") from missing
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            tensors, values = load_tensors(data), json.loads(header["values"])
            if header["format"] != _FORMAT:
                raise CheckpointCorrupt(str(path), _FORMAT, header["format"])
            octaves = sum(name.startswith("filters.") for name in tensors)
            filters = tuple(tensors[f"filters.{i}"] for i in range(octaves))
            offsets = tuple(tensors[f"offsets.{i}"] for i in range(octaves))
            mean, projection, anchors, diffusion = (
                tensors[name] for name in ("mean", "projection", "anchors", "diffusion")
            )
            size, grey, octave = int(values["input_size"]), bool(values["grey"]), int(values["octave"])
            trust = float(values["trust"])
            features = cls(size, grey, octave, filters, offsets, mean, projection, anchors, diffusion, trust)
            expected = str(values["id"])
        except (SafetensorError, ValueError, KeyError, TypeError) as damage:
            raise CheckpointCorrupt(str(path), _FORMAT, f"{type(damage).__name__}: {damage}") from damage
        if features.id != expected:
            raise CheckpointCorrupt(str(path), expected, features.id)
        return features

    def _tensors(self) -> dict[str, Tensor]:
        octaves = {f"filters.{i}": f for i, f in enumerate(self.filters)}
        octaves |= {f"offsets.{i}": o for i, o in enumerate(self.offsets)}
        rest = {"mean": self.mean, "projection": self.projection}
        rest |= {"anchors": self.anchors, "diffusion": self.diffusion}
        return {name: tensor.contiguous() for name, tensor in (octaves | rest).items()}


@dataclass(frozen=True, eq=False)
class _Basis:
    """Pooled responses in fewer directions; pooled ones of one batch exist at a time, not of all images."""

    dictionary: PatchDictionary
    mean: Tensor  # [P]
    directions: Tensor  # [P, R]

    def rows(self, images: NDArray[np.uint8]) -> Tensor:  # [B, H, H, 3] -> [B, R]
        parts = [(self.dictionary.pooled(part) - self.mean) @ self.directions for part in batches(images)]
        return torch.cat(parts) if parts else torch.zeros(0, self.directions.shape[1])


def _check_images(images: NDArray[np.uint8]) -> None:
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if not square or images.dtype != np.uint8 or images.shape[1] < 2 * PATCH:
        raise DataError(
            f"wanted square RGB images, uint8 [B, H, H, 3] with H >= {2 * PATCH}, got {images.dtype} "
            f"{list(images.shape)}: use images.decode"
        )


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [R] and orthonormal directions [P, R] of the largest spread, through the n x n Gram matrix."""
    values, vectors = torch.linalg.eigh(centred @ centred.T / len(centred))
    keep = max(1, min(_DIRECTIONS, len(centred) - 1, centred.shape[1]))
    values, vectors = values.flip(0)[:keep].clamp_min(0), vectors.flip(1)[:, :keep]
    directions = centred.T @ vectors
    return values, directions / directions.norm(dim=0).clamp_min(1e-6)


def _views(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One slightly turned (12 deg), sheared, scaled (12 %), shifted (8 %) and re-lit version of each image."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    draw = torch.from_numpy(rng.uniform(-1, 1, (8, len(images))).astype(np.float32))
    angle, scale, aspect = draw[0] * math.pi * 12 / 180, torch.exp(0.12 * draw[1]), torch.exp(0.08 * draw[2])
    shear, right, down = 0.1 * draw[3], 0.16 * draw[4], 0.16 * draw[5]  # affine_grid spans [-1, 1]: 0.16 is 8 %
    first = torch.stack([angle.cos() * scale * aspect, shear - angle.sin() * scale, right], 1)
    second = torch.stack([angle.sin() * scale, angle.cos() * scale / aspect, down], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)
    y = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast, light = torch.exp(0.2 * draw[6]), 8 * draw[7]
    level = y.mean((1, 2, 3), keepdim=True)
    y = (y - level) * contrast[:, None, None, None] + level + light[:, None, None, None]
    warped: NDArray[np.uint8] = y.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return warped


def _nuisance_covariance(images: NDArray[np.uint8], basis: _Basis, rng: np.random.Generator) -> Tensor:
    """[R, R]: how an image's features spread when nothing about it changed that a label would be about."""
    views = torch.stack([basis.rows(_views(images, rng)) for _ in range(_VIEWS)])  # [V, n, R]
    spread = (views - views.mean(0)).flatten(0, 1)
    return spread.T @ spread / (len(images) * (_VIEWS - 1))


def _discriminant(between: Tensor, nuisance: Tensor) -> Tensor:
    """[R, D1]: directions in which images differ most for the nuisance they have; nuisance has unit variance there.

    Args:
        between: [R] variances of the pool along the (uncorrelated) directions that `nuisance` [R, R] is given in.
    """
    floor = _NUISANCE_FLOOR * nuisance.trace() / len(nuisance) + 1e-8
    values, vectors = torch.linalg.eigh(nuisance + floor * torch.eye(len(nuisance)))
    whiten = vectors / values.sqrt()
    _, directions = torch.linalg.eigh(whiten.T @ (between[:, None] * whiten))
    return whiten @ directions.flip(1)[:, :_WIDTH]


def _anchor_graph(points: Tensor) -> tuple[Tensor, Tensor, float]:
    """Anchors [A, D1] by k-means, the map [A, D2] from anchor weights to diffusion coordinates, and its weight.

    With Z [n, A] the weights, images i and j are joined by (Z diag(Z^T 1)^-1 Z^T)_ij, a random walk by way of anchors.
    Its eigenvectors come from an A x A problem; each is scaled by its eigenvalue to the power of the time.
    The weight is what is left of the squared lengths of the slowest eight: 1 if the pool falls into nine
    groups or more.
    """
    count = min(_ANCHORS, len(points) // _IMAGES_PER_ANCHOR)
    if count < 2 * _NEAREST:
        return torch.zeros(0, points.shape[1]), torch.zeros(0, 0), 0.0
    anchors = points[:count].clone()  # the sample is shuffled
    for _ in range(8):
        nearest = _squared_distances(points, anchors).argmin(1)
        size = torch.bincount(nearest, minlength=count)
        total = torch.zeros_like(anchors).index_add_(0, nearest, points)
        anchors = torch.where(size[:, None] > 0, total / size.clamp_min(1)[:, None], anchors)
    weights = _anchor_weights(points, anchors)
    mass = weights.sum(0).clamp_min(1e-6).sqrt()
    joined = weights / mass
    constant = F.normalize(mass, dim=0)  # eigenvalue 1, says nothing; taken out by name as 1 may be a repeated value
    values, vectors = torch.linalg.eigh(joined.T @ joined - torch.outer(constant, constant))
    keep = min(_DIFFUSION_WIDTH, count - 1)
    values, vectors = values.flip(0)[:keep].clamp(1e-6, 1), vectors.flip(1)[:, :keep]
    # Measured: MNIST and digits 0.7-0.8, CIFAR-10 0.25.
    trust = float((values[:_SLOWEST] ** (2 * _DIFFUSION_TIME)).mean())
    return anchors, vectors / mass[:, None] * values ** (_DIFFUSION_TIME - 0.5) * math.sqrt(len(points)), trust


def _anchor_weights(points: Tensor, anchors: Tensor) -> Tensor:
    """[B, A]: Gaussian weights of the nearest anchors, summing to one; the width follows the local distance."""
    near, which = _squared_distances(points, anchors).topk(_NEAREST, largest=False)
    kernel = torch.exp(-2 * near / near[:, -1:].clamp_min(1e-9))
    kernel /= kernel.sum(1, keepdim=True)
    return torch.zeros(len(points), len(anchors)).scatter_(1, which, kernel)


def _squared_distances(points: Tensor, anchors: Tensor) -> Tensor:  # [B, D1], [A, D1] -> [B, A]
    squares = points.square().sum(1, keepdim=True) - 2 * points @ anchors.T + anchors.square().sum(1)
    return squares.clamp_min_(0)
