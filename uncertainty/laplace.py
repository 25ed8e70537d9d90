"""The posterior of a linear head on frozen features: last-layer Laplace, updated at once by one more label.

Axes: n labelled rows, B rows asked for, S samples, C classes, D feature width, m one-label updates.
Functions return [B, S, C] log-probabilities, in float32 unless features come as float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor

from .errors import PoolError, ShapeError
from .linear_head import Doubles, check_weights, fit_linear_head, log_softmax
from .shapes import check_labels

SAMPLES = 20  # posterior samples where none are given; reports use 100
REGULARISATION = 1.0  # lambda of a head nobody tuned; the same as of `training`
SCALE = 8.0  # rows of length one are stretched by this, so that lambda = 1 is a weak prior

_NEGLIGIBLE = 1e-12  # eigenvalues below this share of the largest are rounding
_NUMBERS = 2**23  # numbers a temporary array may hold: 32 MiB in float32
_REMEMBERED = 2**22  # numbers of drawn weights kept between calls, or held at once: 32 MiB in float64


@dataclass(frozen=True, eq=False)
class _Updates:
    """Labels that came after the fit, as observations of the logits at x with precision root root'."""

    x: Doubles  # [m, D + 1]
    along: Doubles  # [m, r], x in the axes of the features
    root: Doubles  # [m, J, J]; root root' = diag(p) - p p' in the axes of the classes
    whiten: Doubles  # [m J, m J], inverse Cholesky factor of I + root' S root

    @property
    def middle(self) -> Doubles:
        """What takes covariance away: root (I + root' S root)^-1 root', [m, J, m, J]."""
        m, width = self.root.shape[:2]
        half = np.einsum("mjk,amk->amj", self.root, self.whiten.reshape(-1, m, width)).reshape(-1, m * width)
        middle: Doubles = (half.T @ half).reshape(m, width, m, width)
        return middle


@dataclass(frozen=True, eq=False)
class LinearPosterior:
    """Gaussian around the weights of a linear head: last-layer Laplace with a Kronecker-factored curvature.

    Precision of the weights: n A (x) G + lambda I, with A = mean of x x' over x = [8 h; 1] and G = mean of
    diag(p) - p p'; the pseudo-example that keeps the bias finite (`linear_head`) counts as an example. What is
    common to the logits of all classes changes no probability and is left out: J = C - 1 axes for C classes. Of
    A, those r <= n + 1 eigenvectors are kept that the examples span; elsewhere the prior holds.

    Attributes:
        weight: [D, C] for the features as they come.
        bias: [C].

    Paper:
        Ritter et al. 2018, ICLR (Kronecker factors); Daxberger et al. 2021, arXiv:2106.14806 (last layer).
    """

    weight: Doubles
    bias: Doubles
    _axes: Doubles  # [D + 1, r]
    _class_axes: Doubles  # [C, J]
    _spanned: Doubles  # [r, J], variance along each pair of axes, 1 / (n a g + lambda)
    _prior: float  # 1 / lambda, variance elsewhere
    _updates: _Updates | None = None
    _drawn: dict[tuple[int, int], Doubles] = field(default_factory=dict)  # (count, seed) -> [S, D + 1, C]

    @classmethod
    def fit(
        cls,
        features: npt.NDArray[Any],
        labels: npt.ArrayLike,
        classes: int,
        *,
        regularisation: float = REGULARISATION,
        weights: npt.ArrayLike | None = None,
    ) -> "LinearPosterior":
        """Fit the head and its curvature.

        Args:
            features: [n, D], n >= 1, rows L2-normalised.
            labels: [n], in [0, C). Classes without examples are allowed.
            regularisation: lambda > 0, precision of the prior; of all settings BALD depends on it most.
            weights: [n] >= 0, of the examples; None means 1.

        Raises:
            ShapeError, PoolError as `fit_linear_head`.
        """
        scaled = SCALE * np.asarray(features, np.float64)
        head = fit_linear_head(scaled, labels, classes, regularisation=regularisation, weights=weights)
        n, width = scaled.shape
        w = np.append(check_weights(weights, n), 1.0)  # the last row is the pseudo-example
        rows = np.zeros((n + 1, width + 1))
        rows[:n, :width] = scaled
        rows[:, width] = 1
        probs = np.exp(log_softmax(rows @ np.vstack([head.weight, head.bias])))
        g, class_axes = _class_eigen(np.diag(w @ probs) - (probs * w[:, None]).T @ probs)
        a, axes = _feature_eigen(rows * np.sqrt(w)[:, None])
        # a and g are of sums over the examples; the product of two means is wanted n times.
        spanned = 1 / (np.outer(a, g) / w.sum() + regularisation)
        return cls(SCALE * head.weight, head.bias, axes, class_axes, spanned, 1 / regularisation)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.bias)

    def logits(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C] of the likeliest weights."""
        x = check_features(features, len(self.weight))
        return torch.addmm(_like(self.bias, x), x, _like(self.weight, x))

    def log_probs(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, 1, C] of the likeliest weights."""
        return single(self.logits(features))

    def variance(self, features: Tensor) -> Tensor:
        """Posterior variance of the logits, [B, D] -> [B, C] >= 0, without what is common to all classes."""
        features = check_features(features, len(self.weight))
        known = self._updates
        middle = None if known is None else _like(known.middle, features)  # [m, J, m, J]
        extra = 0 if known is None else self.classes**2 + self.classes * known.root.shape[0] * self.classes
        step = max(1, _NUMBERS // (len(self.weight) + self._axes.shape[1] + self.classes + extra))
        class_axes, axes, spanned = (_like(a, features) for a in (self._class_axes, self._axes, self._spanned))
        out = features.new_empty(len(features), self.classes)
        for start in range(0, len(features), step):
            x = _extended(features[start : start + step])
            along = x @ axes  # [b, r]
            outside = (x.square().sum(1) - along.square().sum(1)).clamp_min(0)[:, None]
            if self._axes.shape[0] == self._axes.shape[1]:
                outside = torch.zeros_like(outside)  # nothing but rounding
            v = self._prior * outside + along.square() @ spanned  # [b, J]
            here = v @ class_axes.square().T
            if known is not None:
                at, at_along = _like(known.x, x), _like(known.along, x)
                both = (at_along.T[:, :, None] * spanned[:, None]).flatten(1)  # [r, m J]
                cross = self._prior * (x @ at.T - along @ at_along.T)[:, :, None]
                cross = cross + (along @ both).view(len(x), *known.root.shape[:2])  # [b, m, J]
                gone = torch.einsum("bnl,mjnl->blmj", cross, middle)
                gone = torch.einsum("bmj,blmj->bjl", cross, gone)
                here -= ((gone @ class_axes.T) * class_axes.T).sum(1)
            out[start : start + step] = here.clamp_min(0)
        return out

    def probit(self, features: Tensor) -> Tensor:
        """Prediction averaged over the posterior in closed form, [B, D] -> [B, 1, C].

        softmax of f_c / sqrt(1 + pi/8 v_c), with v_c = S_cc C / (C - 1): the variance of logits that are independent
        and have S_cc left without what is common to them. On synthetic classes, two to fifty, it came within 0.01 to
        0.06 of the average over samples (mean largest difference); with the common part left in, up to 0.19.

        Paper:
            MacKay 1992, The evidence framework applied to classification networks; Gibbs 1997, thesis.
        """
        widened = self.variance(features) * (self.classes / max(1, self.classes - 1))
        return single(self.logits(features) / (1 + pi / 8 * widened).sqrt())

    def samples(self, features: Tensor, count: int = SAMPLES, seed: int = 0) -> Tensor:
        """Predictions of `count` heads drawn from the posterior, [B, D] -> [B, S, C].

        The same heads for every row, and in every call with the same seed; more of them begin with the same ones.

        Raises:
            PoolError: count < 1; ShapeError.
        """
        if count < 1:
            raise PoolError(f"expected at least one posterior sample, got {count}")
        x = check_features(features, len(self.weight))
        out = x.new_empty(len(x), count, self.classes)
        at = 0
        for drawn in self._draws(count, seed):
            logits = of_heads(x, drawn[:, :-1], drawn[:, -1])
            out[:, at : at + len(drawn)] = logits.log_softmax(-1)
            at += len(drawn)
        return out

    def update(self, features: Tensor | npt.NDArray[Any], label: int) -> "LinearPosterior":
        """The posterior after one more label: a Newton step with the curvature of that label, without a refit.

        Takes milliseconds. Fit again after some ten updates: the curvature at the old labels stays as it was.

        Args:
            features: [D] of the new example, L2-normalised.
            label: in [0, C).

        Raises:
            ShapeError.

        Paper:
            after Huseljic et al. 2022, arXiv:2210.06112; here with the curvature between classes.
        """
        row = np.asarray(features, np.float64)
        if row.shape != (len(self.weight),):
            raise ShapeError(f"expected features of shape [{len(self.weight)}], got {list(row.shape)}")
        check_labels([label], n=1, classes=self.classes)
        x = np.append(SCALE * row, 1.0)[None]
        along = x @ self._axes
        probs = np.exp(log_softmax(row @ self.weight + self.bias))
        size, axes = np.linalg.eigh(self._class_axes.T @ (np.diag(probs) - np.outer(probs, probs)) @ self._class_axes)
        root = (axes * np.sqrt(np.maximum(size, 0)))[None]
        updates = self._observe(x, along, root)
        error = probs.copy()
        error[label] -= 1
        # Newton: the new covariance times the gradient x (x) error; at the old labels the gradient is zero.
        slope = self._spread(x, along, (error @ self._class_axes)[None, None])
        step = self._condition(slope, updates, np.zeros((1, len(updates.whiten))))[0] @ self._class_axes.T
        return replace(
            self,
            weight=self.weight - SCALE * step[:-1],
            bias=self.bias - step[-1],
            _updates=updates,
            _drawn={},
        )

    def _draws(self, count: int, seed: int) -> Iterator[Doubles]:
        """Heads from the posterior, in groups [s, D + 1, C] that add up to `count`."""
        if (count, seed) in self._drawn:
            yield self._drawn[count, seed]
            return
        height, width = len(self._axes), self._class_axes.shape[1]
        at_once = max(1, _REMEMBERED // (height * self.classes))
        normal, noise = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        mean = np.vstack([self.weight / SCALE, self.bias])
        unscale = np.append(np.full(height - 1, SCALE), 1.0)[:, None]
        bend = np.sqrt(self._spanned) - sqrt(self._prior)  # [r, J]
        for start in range(0, count, at_once):
            group = min(at_once, count - start)
            z = normal.standard_normal((group, height, width))
            delta = sqrt(self._prior) * z + self._axes @ (bend * (self._axes.T @ z))
            if self._updates is not None:
                further = noise.standard_normal((group, len(self._updates.whiten)))
                delta = self._condition(delta, self._updates, further)
            drawn: Doubles = (mean + delta @ self._class_axes.T) * unscale
            if group == count:
                self._drawn.clear()
                self._drawn[count, seed] = drawn
            yield drawn

    def _spread(self, x: Doubles, along: Doubles, pull: Doubles) -> Doubles:
        """Covariance before updates times sum_m x_m (x) pull_m: [m, D + 1], [m, r], [s, m, J] -> [s, D + 1, J]."""
        inside = np.einsum("mr,smj->srj", along, pull)
        everywhere = np.einsum("md,smj->sdj", x, pull)
        spread: Doubles = self._prior * everywhere + self._axes @ ((self._spanned - self._prior) * inside)
        return spread

    def _observe(self, x: Doubles, along: Doubles, root: Doubles) -> _Updates:
        """The updates so far and one more ([1, D + 1], [1, r], [1, J, J]); the Cholesky factor grows by a block."""
        known, width = self._updates, root.shape[1]
        if known is not None:
            x, along = np.vstack([known.x, x]), np.vstack([known.along, along])
            root = np.concatenate([known.root, root])
        shared = (self._spanned - self._prior) * along[-1][:, None]  # [r, J]
        cross = self._prior * (x @ x[-1])[:, None] + along @ shared  # [m, J], covariances with the new one
        gram = root[-1].T @ (cross[:, :, None] * root)  # [m, J, J]
        corner = np.eye(width) + gram[-1]
        if known is None:
            return _Updates(x, along, root, _whitening(corner))
        below = gram[:-1].transpose(1, 0, 2).reshape(width, -1) @ known.whiten.T
        last = _whitening(corner - below @ below.T)
        above = np.zeros((len(known.whiten), width))
        return _Updates(x, along, root, np.block([[known.whiten, above], [-last @ below @ known.whiten, last]]))

    def _condition(self, delta: Doubles, updates: _Updates, noise: Doubles) -> Doubles:
        """Move draws from before the updates [s, D + 1, J] to after them (Matheron's rule); noise is [s, m J].

        Without noise: the covariance after updates times what `delta` is the covariance before them times of.
        """
        m, width = updates.root.shape[:2]
        seen = np.einsum("md,sdj,mjk->smk", updates.x, delta, updates.root, optimize=True).reshape(len(delta), -1)
        answer = (seen + noise) @ updates.whiten.T @ updates.whiten
        pull = np.einsum("mjk,smk->smj", updates.root, answer.reshape(-1, m, width))
        return delta - self._spread(updates.x, updates.along, pull)


def single(logits: Tensor) -> Tensor:
    """One prediction per row: logits [B, C] -> [B, 1, C].

    Raises:
        ShapeError.
    """
    if logits.ndim != 2:
        raise ShapeError(f"expected logits of shape [B, C], got {list(logits.shape)}")
    return logits.log_softmax(-1)[:, None]


def _class_eigen(curvature: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues [J] >= 0 and axes [C, J] of a [C, C] matrix without the direction (1, ..., 1), which it maps to 0."""
    basis = scipy.linalg.helmert(len(curvature)).T
    g, axes = np.linalg.eigh(basis.T @ curvature @ basis)
    return np.maximum(g, 0), basis @ axes


def _feature_eigen(rows: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues [r] > 0 and axes [D + 1, r] of rows' rows."""
    if rows.shape[0] < rows.shape[1]:
        _, singular, turned = np.linalg.svd(rows, full_matrices=False)
        a, axes = singular**2, turned.T
    else:
        a, axes = np.linalg.eigh(rows.T @ rows)
    kept = a > _NEGLIGIBLE * a.max()
    return a[kept], axes[:, kept]


def _whitening(matrix: Doubles) -> Doubles:
    """Inverse of the lower Cholesky factor."""
    whiten: Doubles = scipy.linalg.solve_triangular(np.linalg.cholesky(matrix), np.eye(len(matrix)), lower=True)
    return whiten


def check_features(features: Tensor, width: int) -> Tensor:
    """Features [B, D] in a type to reckon with. Raises: ShapeError: D is not `width`."""
    if features.ndim != 2 or features.shape[1] != width:
        raise ShapeError(f"expected features of shape [B, {width}], got {list(features.shape)}")
    return features if features.dtype == torch.float64 else features.float()


def _like(array: Doubles, x: Tensor) -> Tensor:
    return torch.from_numpy(array).to(x)


def _extended(features: Tensor) -> Tensor:  # [b, D] -> [b, D + 1]
    return torch.cat([SCALE * features, features.new_ones(len(features), 1)], 1)


def of_heads(x: Tensor, weight: Doubles, bias: Doubles) -> Tensor:
    """[B, D] through heads [S, D, C] and [S, C] -> logits [B, S, C]."""
    heads, width, classes = weight.shape
    side_by_side = _like(np.ascontiguousarray(weight.transpose(1, 0, 2)).reshape(width, heads * classes), x)
    return torch.addmm(_like(bias.reshape(-1), x), x, side_by_side).view(len(x), heads, classes)
