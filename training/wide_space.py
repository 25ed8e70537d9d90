"""The coordinates of a representation with encoded facts beside them, so that heads are fitted to both at once.

n  rows    D  embedding width    E  encoded columns    R  coordinates of the representation
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .linear import Floats
from .space import Space


@dataclass(frozen=True, eq=False)
class WideSpace:
    """As `Space`, for rows of an embedding and E encoded columns."""

    space: Space
    extra: int  # E

    @property
    def size(self) -> int:
        """R + E."""
        return self.space.size + self.extra

    def coordinates(self, features: NDArray[np.floating]) -> Floats:
        """[n, D + E] -> [n, R + E]; encoded columns are coordinates as they are."""
        width = self.space.width
        return np.concatenate(
            [self.space.coordinates(features[:, :width]), features[:, width:].astype(np.float32)], axis=1
        )

    def fold(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Weights for coordinates [R + E, C] -> weights for unit rows and encoded columns [D + E, C], with the bias."""
        picture, folded = self.space.fold(weight[: self.space.size], bias)
        return np.concatenate([picture, weight[self.space.size :].astype(np.float32)]), folded

    def unfold(self, weight: Floats, bias: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Inverse of `fold`, up to what lies outside the axes."""
        width = self.space.width
        picture, unfolded = self.space.unfold(weight[:width], bias)
        return np.concatenate([picture, weight[width:].astype(np.float64)]), unfolded

    def squared_length(self) -> tuple[NDArray[np.float64], float]:
        """As `Space`, of the picture's coordinates alone: that of encoded columns is not linear in them."""
        weight, bias = self.space.squared_length()
        return np.concatenate([weight, np.zeros(self.extra)]), bias
