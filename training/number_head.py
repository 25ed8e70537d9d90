"""A ridge regression on frozen embeddings with a normal distribution of the answer, calibrated out of fold.

    n  labelled examples     D  embedding width     R  coordinates of `Space`     r <= 64  directions kept

Answers are scaled to [0, 1] by their range. With rows z centred on the labelled ones, the weights minimise
sum_i w_i (t_i - z_i' v - b)^2 + lambda |v|^2; an answer at z has the variance s^2 (1 + 1/n + z' A^-1 z) with
A = Z' W Z + lambda I (Bishop 2006, eq. 3.59, for the prior s^2 / lambda). s^2 is fitted to answers that the weights
have not seen, so that their squares over what the formula says are 1 on average; lambda is the one that makes them
likeliest.

Of A the r longest directions are kept and the rest is taken as the prior, which makes far examples look a little less
known than they are, out of fold and afterwards alike. All that is needed then is linear in the embedding: the columns
of the head are the mean, 1/n + |z|^2 / lambda, and the r parts whose squares are taken off that. (Of encoded facts
beside the picture the squared length is not linear: whoever uses the head adds it over lambda to the second column.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import TrainingDiverged
from .head import (
    DEFAULT_REGULARISATION,
    FOLDS,
    MIN_LABELS_FOR_FOLDS,
    Doubles,
    Flags,
    HeadFit,
    Ints,
    Start,
    counted,
    grouped_folds,
)
from .linear import Floats, Head
from .space import Space
from .wide_space import WideSpace

REGULARISATIONS = (3000.0, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
_DIRECTIONS = 64
_SEARCH_ROWS = 1_000  # as for classes
_PRIOR_VARIANCE = 1 / 12  # of an answer somewhere in its range; weighs as much as one label while there are few
_LEAST_NOISE = 0.01  # share of the range; people's numbers are no better, and certainty would end all asking
_RANK = 1e-9  # share of the largest squared length below which a direction is rounding


@dataclass(frozen=True, eq=False)
class _Ridge:
    """What a fit knows, in coordinates."""

    weight: Doubles  # [R]
    centre: Doubles  # [R] of the labelled rows
    mean: float  # answer there
    directions: Doubles  # [R, r], each scaled so that the square of its product with a row is taken off
    lam: float
    labels: float  # sum of weights

    def predict(self, z: NDArray[np.floating]) -> tuple[Doubles, Doubles]:
        """[n, R] rows -> their answers [n], and by how much the variance of each is above that of noise, [n]."""
        rows = z.astype(np.float64) - self.centre
        grown = 1 / self.labels + ((rows**2).sum(axis=1) / self.lam) - ((rows @ self.directions) ** 2).sum(axis=1)
        return rows @ self.weight + self.mean, np.maximum(grown, 0)


def fit_number_head(
    features: NDArray[np.floating],
    answers: Sequence[float] | Doubles,
    bounds: tuple[float, float],
    space: Space | WideSpace,
    *,
    weights: Sequence[float] | Doubles | None = None,
    groups: Callable[[], Ints] | None = None,
    seen: Flags | None = None,
    start: Start | None = None,
    seed: int = 0,
) -> HeadFit:
    """Fit weights, and when the labels have grown enough, regularisation and noise, as `head.fit_head`.

    The temperature of the head is the standard deviation of the noise as a share of the range.

    Args:
        features: [n, D] raw embeddings; n may be 0, which gives the middle of the range.
        answers: [n].
        bounds: of the range, the lower first.
        weights, groups, seen, start, seed: as `head.fit_head`.
    Raises:
        TrainingDiverged: features, answers or weights are not finite.
    """
    low, high = bounds
    t = (np.asarray(answers, np.float64) - low) / (high - low)
    n = len(t)
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    z = space.coordinates(features) if n else np.empty((0, space.size), np.float32)
    if not (np.isfinite(z).all() and np.isfinite(w).all() and np.isfinite(t).all()):
        raise TrainingDiverged(0, float("nan"))
    lam = start.regularisation if start else DEFAULT_REGULARISATION
    lam_labels = start.regularisation_labels if start else 0
    noise = start.head.temperature if start else float(np.sqrt(_PRIOR_VARIANCE))
    noise_labels = start.temperature_labels if start else 0
    nll: float | None = None
    if n < MIN_LABELS_FOR_FOLDS or w.sum() <= 0:
        # Too few to tell what the pixels say: the smoothed mean, with the spread that was seen.
        total = float(w.sum())
        mean = float((w @ t + 0.5) / (total + 1))
        spread = (w @ (t - mean) ** 2 + _PRIOR_VARIANCE) / (total + 1)
        flat = np.zeros((z.shape[1], 2))
        noise = max(float(np.sqrt(spread)), _LEAST_NOISE)
        head = Head(*space.fold(flat, np.array([mean, 1 / (total + 1)])), noise)
        return HeadFit(head, DEFAULT_REGULARISATION, 0, 0, None)
    shrunk = n < 0.9 * noise_labels
    if shrunk or n >= 2 * lam_labels or n >= 1.1 * noise_labels:
        fold = grouped_folds(n, FOLDS, groups=groups() if groups else None, seed=seed)
        counts = counted(n, seen)
        if shrunk or n >= 2 * lam_labels:
            drawn = np.random.default_rng(seed).permutation(n)
            rows = np.sort(drawn[np.argsort(~counts[drawn], kind="stable")][:_SEARCH_ROWS])  # first those that count
            part = z[rows], t[rows], w[rows], fold[rows], counts[rows]
            lam = min(REGULARISATIONS, key=lambda at: _held_out(*part, at)[1])
            lam_labels = n
        variance, nll = _held_out(z, t, w, fold, counts, lam)
        noise, noise_labels = float(np.sqrt(variance)), n
    ridge = _solve(z, t, w, lam)
    return HeadFit(_head(ridge, space, noise), lam, lam_labels, noise_labels, nll)


def _head(ridge: _Ridge, space: Space | WideSpace, noise: float) -> Head:
    """The columns as weights for unit rows."""
    columns = np.column_stack([ridge.weight, -2 * ridge.centre / ridge.lam, ridge.directions])
    bias = np.concatenate(
        [
            [ridge.mean - ridge.centre @ ridge.weight],
            [1 / ridge.labels + ridge.centre @ ridge.centre / ridge.lam],
            -(ridge.centre @ ridge.directions),
        ]
    )
    weight, folded = space.fold(columns, bias)
    length, constant = space.squared_length()
    weight[:, 1] += (length / ridge.lam).astype(np.float32)
    folded[1] += np.float32(constant / ridge.lam)
    return Head(weight, folded, noise)


def _solve(z: Floats, t: Doubles, w: Doubles, lam: float) -> _Ridge:
    total = float(w.sum())
    exact = z.astype(np.float64)
    centre = w @ exact / total
    mean = float(w @ t / total)
    root = np.sqrt(w)[:, None]
    rows, out = (exact - centre) * root, (t - mean) * root[:, 0]
    if len(rows) < rows.shape[1]:
        squares, left = np.linalg.eigh(rows @ rows.T)
        keep = squares > _RANK * max(squares[-1], 1e-300)
        squares, axes = squares[keep], rows.T @ (left[:, keep] / np.sqrt(squares[keep]))
    else:
        squares, axes = np.linalg.eigh(rows.T @ rows)
        squares = np.maximum(squares, 0)
    weight = axes @ ((axes.T @ (rows.T @ out)) / (squares + lam))
    longest = np.argsort(-squares, kind="stable")[:_DIRECTIONS]
    directions = axes[:, longest] * np.sqrt(squares[longest] / (squares[longest] + lam) / lam)
    return _Ridge(weight, centre, mean, directions, lam, total)


def _held_out(z: Floats, t: Doubles, w: Doubles, fold: Ints, counts: Flags, lam: float) -> tuple[float, float]:
    """(variance of the noise, mean negative log-likelihood in nats) of answers that the weights have not seen.

    Args:
        counts: [n], see `head.counted`.
    """
    off: Doubles = np.empty(len(t))
    grown: Doubles = np.empty(len(t))
    for number in range(FOLDS):
        seen = fold != number
        if not seen.all() and w[seen].sum() > 0:
            found, grown[~seen] = _solve(z[seen], t[seen], w[seen], lam).predict(z[~seen])
            off[~seen] = t[~seen] - found
        elif not seen.all():
            off[~seen], grown[~seen] = t[~seen] - 0.5, 0.0
    off, grown = off[counts], grown[counts]
    square = off**2 / (1 + grown)
    # One label in n + 1 is taken as one of which the pixels tell nothing.
    variance = max(float((square.sum() + t.var()) / (len(off) + 1)), _LEAST_NOISE**2)
    scaled = variance * (1 + grown)
    return variance, float(np.mean(0.5 * np.log(2 * np.pi * scaled) + off**2 / (2 * scaled)))
