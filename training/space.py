"""One fixed coordinate system per representation: unit rows, centred, principal axes of the pool first.

    n  rows        D  embedding width        R <= D  axes along which the pool varies at all

Fitting in these coordinates is the same problem as in the raw ones (a rotation), but its axes are nearly
independent, so that L-BFGS needs about 25 steps instead of 170 (measured on HAM10000, mobilenet_v2, D=1280). The
leading axes are what selection works in. Pure numpy: the web process may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .errors import CheckpointCorrupt, NoTrainableExamples
from .files import write_bytes
from .linear import Floats, unit_rows

SAMPLE = 5_000  # rows from which the axes are learnt; more change the leading ones by less than their noise
_LENGTH = 8.0  # root mean square length of coordinates: puts useful regularisation between 0.03 and 30
_NULL = 1e-7  # share of the variance below which an axis is rounding error (fp16 rows)


@dataclass(frozen=True, eq=False)
class Space:
    """Affine map between unit embeddings and coordinates."""

    mean: Floats  # [D], of the unit rows
    axes: Floats  # [D, R], orthonormal, by falling variance
    scale: float  # coordinates have root mean square length 8
    learnt_on: int  # rows

    @classmethod
    def learn(cls, features: NDArray[np.floating]) -> Space:
        """From [n, D] raw embeddings of a sample of the pool, n >= 1. Deterministic."""
        if not len(features):
            raise NoTrainableExamples(labelled=0, embedded=0)
        rows = unit_rows(features)
        mean = rows.mean(0, dtype=np.float64).astype(np.float32)
        rows -= mean
        variance, axes = np.linalg.eigh((rows.T @ rows).astype(np.float64) / len(rows))
        variance, axes = np.maximum(variance[::-1], 0), axes[:, ::-1]
        total = float(variance.sum())
        # One axis at least: a pool of identical pictures has no variance, and still a shape.
        keep = max(1, int((variance > _NULL * total).sum())) if total > 1e-10 else 1
        scale = _LENGTH / np.sqrt(total) if total > 1e-10 else 1.0
        return cls(mean, np.ascontiguousarray(axes[:, :keep], np.float32), float(scale), len(rows))

    @property
    def width(self) -> int:
        """D."""
        return int(self.axes.shape[0])

    @property
    def size(self) -> int:
        """R."""
        return int(self.axes.shape[1])

    def squared_length(self) -> tuple[NDArray[np.float64], float]:
        """(weight [D], bias) with u @ weight + bias = |coordinates of u|^2 for unit rows u, up to what lies outside the
        axes: |u - m|^2 = 1 - 2 u'm + |m|^2."""
        mean = self.mean.astype(np.float64)
        return -2 * self.scale**2 * mean, self.scale**2 * (1 + float(mean @ mean))

    def coordinates(self, features: NDArray[np.floating]) -> Floats:
        """[n, D] raw embeddings -> [n, R]."""
        rows = unit_rows(features)
        rows -= self.mean
        coordinates: Floats = rows @ self.axes
        coordinates *= np.float32(self.scale)
        return coordinates

    def reduced(self, features: NDArray[np.floating], dims: int) -> Floats:
        """[n, D] raw embeddings -> [n, min(dims, R)] leading coordinates, rows of length one."""
        rows = unit_rows(features)
        rows -= self.mean
        rows = unit_rows(rows @ self.axes[:, :dims])
        # A picture exactly at the centre has no direction; any will do, and length one is what is promised.
        rows[~rows.any(axis=1), 0] = 1.0
        return rows

    def fold(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Weights for coordinates [R, C] -> weights for unit rows [D, C], with the bias to match."""
        raw = (self.axes @ np.asarray(weight, np.float64)) * self.scale
        return raw.astype(np.float32), (bias - self.mean @ raw).astype(np.float32)

    def unfold(self, weight: Floats, bias: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Inverse of `fold`, up to what lies outside the axes."""
        raw = weight.astype(np.float64)
        return (self.axes.T @ raw) / self.scale, bias + self.mean @ raw

    def save(self, path: Path) -> None:
        """Write atomically."""
        numbers = np.array([self.scale, self.learnt_on], np.float64)
        write_bytes(path, save_arrays({"mean": self.mean, "axes": self.axes, "numbers": numbers}))

    @classmethod
    def load(cls, path: Path) -> Space | None:
        """What `save` wrote, or None if there is nothing. Raises CheckpointCorrupt."""
        try:
            arrays = load_arrays(path.read_bytes())
            scale, learnt_on = arrays["numbers"].tolist()
            return cls(arrays["mean"], arrays["axes"], scale, int(learnt_on))
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointCorrupt(str(path), "tensors mean, axes and numbers", str(error)) from error
