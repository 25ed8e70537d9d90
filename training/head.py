"""A convex logistic head on frozen embeddings: fitted in well under a second, calibrated out of fold.

    n  labelled examples     D  embedding width     R  coordinates of `Space`     C  classes, or labels on or off

The objectives and their minimisers are those of `uncertainty.linear_head` (one of C classes) and
`uncertainty.label_head` (any of C labels), in the coordinates of `Space`: the pseudo-example lies at the centre of the
pool. Here: regularisation, temperature and what the next fit takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from uncertainty.label_head import find_label_minimum
from uncertainty.linear_head import LinearHead as _Solution
from uncertainty.linear_head import Minimum, find_minimum

from .errors import TrainingDiverged
from .linear import Floats, Head, log_softmax
from .space import Space
from .wide_space import WideSpace

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Targets = NDArray[Any]  # [n] or [n, C], see the families

# lambda, strong to weak: the best lay well inside on HAM10000 and MNIST at 50 to 2,000 labels.
REGULARISATIONS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
DEFAULT_REGULARISATION = 1.0  # until there are labels enough to search
FOLDS = 5
MIN_LABELS_FOR_FOLDS = 20  # below, T is fixed (algorithms: T=2) and lambda is the default
_SEARCH_ROWS = 1_000  # labels that the search for lambda looks at; the curve is flat long before
_WORSE_STEPS = 2  # the search stops after so many lambdas without a better one
_ROUGH = 1e-3  # the same while searching for lambda: its likelihood moves by 0.1 % (HAM10000, MNIST)
_GRADIENT = 1e-4  # stop when no partial derivative exceeds this times sqrt(n), in preconditioned coordinates
_LOSS_CHANGE = 1e-10  # relative, of one step; float32 products tell no smaller ones
_STEPS = 300
_RANK = 1e-9  # share of the largest squared length below which a direction is rounding of float32 rows


@dataclass(frozen=True, eq=False)
class Start:
    """Where the last fit ended, and how many labels it knew when it last searched."""

    head: Head
    regularisation: float
    regularisation_labels: int
    temperature_labels: int


@dataclass(frozen=True, eq=False)
class HeadFit:
    """A fitted head and what the next fit may take over."""

    head: Head
    regularisation: float
    regularisation_labels: int
    temperature_labels: int
    nll_out_of_fold: float | None  # nats, calibrated; None when no folds were fitted this time


def fit_head(
    features: NDArray[np.floating],
    labels: Sequence[int] | Ints,
    classes: int,
    space: Space | WideSpace,
    *,
    weights: Sequence[float] | Doubles | None = None,
    groups: Callable[[], Ints] | None = None,
    seen: Flags | None = None,
    start: Start | None = None,
    seed: int = 0,
) -> HeadFit:
    """Fit weights, and when the labels have grown enough, regularisation and temperature.

    Regularisation is searched again when labels have doubled, the temperature when they have grown by 10 %.

    Args:
        features: [n, D] raw embeddings; n may be 0, which gives the uniform prediction.
        labels: [n], in [0, C).
        space: coordinates of the representation.
        weights: [n] >= 0, of the examples; None means 1.
        groups: gives [n] when folds are needed; examples of one group (>= 0) stay in one fold, -1 is none.
        seen: [n], whether the features were learnt from an example: it is fitted on, and does not count in how well a
            fit does, see `counted`.
        start: the last fit for the same classes and representation; saves time.
        seed: of the folds.
    Raises:
        TrainingDiverged: features or weights are not finite.
    """
    y = np.asarray(labels, np.int64)
    return _fit(_OneOf(classes), features, y, space, weights=weights, groups=groups, seen=seen, start=start, seed=seed)


def fit_label_head(
    features: NDArray[np.floating],
    labels: Flags,
    space: Space | WideSpace,
    *,
    weights: Sequence[float] | Doubles | None = None,
    groups: Callable[[], Ints] | None = None,
    seen: Flags | None = None,
    start: Start | None = None,
    seed: int = 0,
) -> HeadFit:
    """As `fit_head` for labels that are each on or off; the columns of the head are log-odds of "on".

    One regularisation and one temperature for all labels: most are too rare for their own.

    Args:
        labels: [n, C] bool.
    """
    y = np.asarray(labels, bool)
    return _fit(
        _AnyOf(y.shape[1]), features, y, space, weights=weights, groups=groups, seen=seen, start=start, seed=seed
    )


class _Family(Protocol):
    """What tells the two kinds of head apart."""

    columns: int

    def varies(self, y: Targets) -> bool:
        """Whether there is anything to tell apart."""

    def solve(self, z: Floats, y: Targets, w: Doubles, lam: float, start: _Solution, gradient: float) -> _Solution:
        """The minimiser for one lambda. Raises TrainingDiverged."""

    def temperature(self, logits: Doubles, y: Targets) -> float:
        """That calibrates held-out logits."""

    def nll(self, logits: Doubles, y: Targets) -> float:
        """Nats per example (and label)."""


class _OneOf:
    """One of C classes; y: [n] class index."""

    def __init__(self, classes: int) -> None:
        self.columns = classes

    def varies(self, y: Targets) -> bool:
        return len(np.unique(y)) >= 2

    def solve(self, z: Floats, y: Targets, w: Doubles, lam: float, start: _Solution, gradient: float) -> _Solution:
        return solve(z, y, w, self.columns, lam, start, gradient)

    def temperature(self, logits: Doubles, y: Targets) -> float:
        return _fit_temperature(logits, y)

    def nll(self, logits: Doubles, y: Targets) -> float:
        return _nll(logits, y)


class _AnyOf:
    """Any of C labels; y: [n, C] bool. Each label is a question with two answers, off and on."""

    def __init__(self, labels: int) -> None:
        self.columns = labels

    def varies(self, y: Targets) -> bool:
        return bool((y.any(axis=0) & ~y.all(axis=0)).any())

    def solve(self, z: Floats, y: Targets, w: Doubles, lam: float, start: _Solution, gradient: float) -> _Solution:
        found = find_label_minimum(z, y, w, lam, start, gradient=gradient, loss_change=_LOSS_CHANGE, steps=_STEPS)
        return _finite(found)

    def temperature(self, logits: Doubles, y: Targets) -> float:
        return _fit_temperature(_pairs(logits), y.ravel().astype(np.int64), len(y))

    def nll(self, logits: Doubles, y: Targets) -> float:
        return _nll(_pairs(logits), y.ravel().astype(np.int64))


def _pairs(logits: Doubles) -> Doubles:
    """[n, C] log-odds -> [n C, 2] logits of off and on."""
    flat = logits.ravel()
    return np.stack([np.zeros_like(flat), flat], axis=1)


def _fit(
    family: _Family,
    features: NDArray[np.floating],
    y: Targets,
    space: Space | WideSpace,
    *,
    weights: Sequence[float] | Doubles | None,
    groups: Callable[[], Ints] | None,
    seen: Flags | None,
    start: Start | None,
    seed: int,
) -> HeadFit:
    n = len(y)
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    z = space.coordinates(features) if n else np.empty((0, space.size), np.float32)
    if not (np.isfinite(z).all() and np.isfinite(w).all()):
        raise TrainingDiverged(0, float("nan"))

    lam = start.regularisation if start else DEFAULT_REGULARISATION
    lam_labels = start.regularisation_labels if start else 0
    temperature = start.head.temperature if start else cold_temperature()
    temperature_labels = start.temperature_labels if start else 0
    nll: float | None = None

    varies = family.varies(y)
    axes: Doubles | None = None
    if varies and n < z.shape[1]:
        z, axes = _span(z)
    shrunk = n < 0.9 * temperature_labels  # labels were taken back: what was fitted then no longer holds
    if not varies:
        # Nothing tells classes apart yet. What is left is how often each was seen, smoothed: no calibration needed.
        z = np.zeros_like(z)
        lam, lam_labels, temperature, temperature_labels = DEFAULT_REGULARISATION, 0, 1.0, 0
    elif n < MIN_LABELS_FOR_FOLDS:
        lam, lam_labels, temperature, temperature_labels = DEFAULT_REGULARISATION, 0, cold_temperature(), 0
    elif shrunk or n >= 2 * lam_labels or n >= 1.1 * temperature_labels:
        fold = grouped_folds(n, FOLDS, groups=groups() if groups else None, seed=seed)
        counts = counted(n, seen)
        if shrunk or n >= 2 * lam_labels:
            lam, lam_labels = _search(family, z, y, w, fold, counts, seed, around=lam if lam_labels else None), n
        # As exact as the head that T is for: a fold that stops early is flatter, and T would come out too low.
        logits = _held_out(z, fold, family.columns, _fold_solutions(family, z, y, w, lam, fold, gradient=_GRADIENT))
        temperature, temperature_labels = family.temperature(logits[counts], y[counts]), n
        nll = family.nll(logits[counts] / temperature, y[counts])

    solution = _Solution.zero(z.shape[1], family.columns)
    if start is not None and varies:
        weight, bias = space.unfold(start.head.weight, start.head.bias)
        solution = _Solution(weight if axes is None else axes.T @ weight, bias)
    solution = family.solve(z, y, w, lam, solution, _GRADIENT)
    weight = solution.weight if axes is None else axes @ solution.weight
    head = Head(*space.fold(weight, solution.bias), temperature)
    return HeadFit(head, lam, lam_labels, temperature_labels, nll)


def _span(z: Floats) -> tuple[Floats, Doubles]:
    """[n, R] rows in r <= n coordinates, and the axes [R, r] that these belong to: orthonormal, z = result @ axes.T.

    The weights of the minimum are sums of the rows (Kimeldorf and Wahba 1971), so nothing is lost. The coordinates are
    uncorrelated over the labels, which is what the minimiser's diagonal preconditioner is good at.
    """
    exact = z.astype(np.float64)
    squares, directions = np.linalg.eigh(exact @ exact.T)
    keep = squares > _RANK * squares[-1]
    length = np.sqrt(squares[keep])
    axes: Doubles = exact.T @ (directions[:, keep] / length)
    return (directions[:, keep] * length).astype(np.float32), axes


def solve(
    z: Floats, y: Ints, w: Doubles, classes: int, lam: float, start: _Solution, gradient: float = _GRADIENT
) -> _Solution:
    """The minimiser for one lambda; z: [n, R] coordinates; y: [n]; w: [n]. Products run in float32, sums in float64.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    found = find_minimum(z, y, w, classes, lam, start, gradient=gradient, loss_change=_LOSS_CHANGE, steps=_STEPS)
    return _finite(found)


def _finite(found: Minimum) -> _Solution:
    if not np.isfinite(found.loss):
        raise TrainingDiverged(found.steps, found.loss)
    return found.head


def grouped_folds(n: int, folds: int, *, groups: Ints | None = None, seed: int = 0) -> Ints:
    """Fold of each of n examples, in [0, folds): drawn at random, groups kept whole, folds as equal as these allow.

    Not stratified by class: folds that all have the class shares of these labels hold out rows that are more like the
    rest than new ones will be. With 90 labels of CIFAR-10 that is 46 % right out of fold where new images give 41 %,
    and a temperature that is too low by as much; drawn at random both are 41 %.
    """
    rng = np.random.default_rng(seed)
    unit: Ints = np.arange(n, dtype=np.int64)
    if groups is not None:
        grouped = groups >= 0
        unit[grouped] = n + groups[grouped]
    unit = np.unique(unit, return_inverse=True)[1].astype(np.int64)
    size = np.bincount(unit, minlength=1)
    # In random order, the large ones first, each to the smallest fold: equal sizes, and no say of the classes.
    order = rng.permutation(len(size))
    filled = np.zeros(folds, np.int64)
    chosen = np.zeros(len(size), np.int64)
    for index in order[np.argsort(-size[order], kind="stable")].tolist():
        fold = int(filled.argmin())
        chosen[index] = fold
        filled[fold] += size[index]
    return chosen[unit]


def counted(n: int, seen: Flags | None) -> Flags:
    """[n], which examples count in how well a fit does: all, or those that the features were not learnt from.

    A tuned network tells the examples it learnt from apart far better than new ones, held out of the head or not: with
    800 labels of HAM10000 a temperature by all of them left an ECE of .094, one by those it had not seen .051. With too
    few of these, all count.
    """
    if seen is None or n - int(seen.sum()) < MIN_LABELS_FOR_FOLDS:
        return np.ones(n, bool)
    return ~seen


def _search(
    family: _Family, z: Floats, y: Targets, w: Doubles, fold: Ints, counts: Flags, seed: int, around: float | None
) -> float:
    """The lambda whose calibrated out-of-fold likelihood is best; walks from strong to weak, and stops when it worsens.

    Once one was found, only its neighbours are looked at: a doubling of the labels moves it by a step at most.
    """
    grid: tuple[float, ...] = REGULARISATIONS
    if around in grid:
        at = grid.index(around)
        grid = grid[max(0, at - 1) : at + 2]
    if len(y) > _SEARCH_ROWS:
        drawn = np.random.default_rng(seed).permutation(len(y))
        rows = np.sort(drawn[np.argsort(~counts[drawn], kind="stable")][:_SEARCH_ROWS])  # first those that count
        z, y, w, fold, counts = z[rows], y[rows], w[rows], fold[rows], counts[rows]
    best, best_nll, worse = grid[0], np.inf, 0
    starts: list[_Solution] | None = None
    for lam in grid:
        starts = _fold_solutions(family, z, y, w, lam, fold, starts)
        logits = _held_out(z, fold, family.columns, starts)
        logits, truth = logits[counts], y[counts]
        nll = family.nll(logits / family.temperature(logits, truth), truth)
        if nll < best_nll:
            best, best_nll, worse = lam, nll, 0
        else:
            worse += 1
            if worse == _WORSE_STEPS:
                break
    return best


def _fold_solutions(
    family: _Family,
    z: Floats,
    y: Targets,
    w: Doubles,
    lam: float,
    fold: Ints,
    starts: list[_Solution] | None = None,
    gradient: float = _ROUGH,
) -> list[_Solution]:
    # A fold never starts from a solution that saw what it holds out: stopping early would leak it.
    solutions = []
    for number in range(FOLDS):
        seen = fold != number
        start = starts[number] if starts else _Solution.zero(z.shape[1], family.columns)
        solutions.append(family.solve(z[seen], y[seen], w[seen], lam, start, gradient))
    return solutions


def _held_out(z: Floats, fold: Ints, columns: int, solutions: list[_Solution]) -> Doubles:
    logits = np.empty((len(z), columns))
    for number, solution in enumerate(solutions):
        logits[fold == number] = solution.logits(z[fold == number])
    return logits


def _nll(logits: Doubles, y: Ints) -> float:
    return float(-log_softmax(logits)[np.arange(len(y)), y].mean())


def cold_temperature() -> float:
    """T before it can be fitted."""
    from uncertainty.temperature import COLD_TEMPERATURE

    return COLD_TEMPERATURE


def _fit_temperature(logits: Doubles, y: Ints, examples: int | None = None) -> float:
    """T of the least negative log-likelihood, with one label in n + 1 taken as noise spread over all classes.

    Few labels are often told apart without an error. Their likelihood alone would then want T = 0, so every
    confidence would be 1 and nothing would be left to order by; with the noise, confidence stops near n / (n + 1),
    as in the rule of succession.
    """
    from uncertainty.temperature import LOG_TEMPERATURE_RANGE

    noise = 1 / ((len(y) if examples is None else examples) + 1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = (1 - noise) * shifted[np.arange(len(y)), y].mean() + noise * shifted.mean()

    def nll(log_t: float) -> float:
        beta = float(np.exp(-log_t))
        return float(np.log(np.exp(shifted * beta).sum(axis=1)).mean() - own * beta)

    found = minimize_scalar(nll, bounds=LOG_TEMPERATURE_RANGE, method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))
