"""A multinomial logistic head on frozen features: the objective, its minimiser and the fitted weights. No torch.

    n  labelled examples     D  feature width     C  classes

Minimises  sum_i w_i CE(softmax(W' z_i + b), y_i) + lambda/2 |W|^2 + (one pseudo-example at z = 0, shared by all
classes). The last term is what keeps the bias finite when a class, or every class but one, has no example yet; its
weight is one label in total. Everything is convex: starts change time, never results.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from .errors import PoolError, ShapeError

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Stop when no partial derivative exceeds this times sqrt(n), in preconditioned coordinates: what derivatives of the
# solution (Laplace, one-label updates) need; predictions alone are content with far less.
_GRADIENT = 1e-6
_STEPS = 1_000


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Weights of a linear classifier."""

    weight: Doubles  # [D, C]
    bias: Doubles  # [C]

    @classmethod
    def zero(cls, width: int, classes: int) -> "LinearHead":
        """The head that tells nothing apart."""
        return cls(np.zeros((width, classes)), np.zeros(classes))

    def logits(self, z: npt.NDArray[Any]) -> Doubles:
        """[n, D] -> [n, C]; the product runs in the precision of `z`."""
        product: Doubles = (z @ self.weight.astype(z.dtype)).astype(np.float64) + self.bias
        return product


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a search ended."""

    head: LinearHead
    loss: float  # nats, summed over examples; not finite when the data were not
    steps: int


def fit_linear_head(
    features: npt.NDArray[Any],
    labels: npt.ArrayLike,
    classes: int,
    *,
    regularisation: float,
    weights: npt.ArrayLike | None = None,
    start: LinearHead | None = None,
) -> LinearHead:
    """The head of the least regularised loss, in float64.

    Args:
        features: [n, D], n >= 0; their scale matters to the regularisation.
        labels: [n], in [0, C). Classes without examples are allowed.
        regularisation: lambda > 0.
        weights: [n] >= 0, of the examples; None means 1.
        start: of the same shape; saves time.

    Raises:
        ShapeError: shapes disagree or a label is out of range.
        PoolError: features or weights are not finite, a weight is negative or lambda not positive.
    """
    from .shapes import check_labels  # brings torch, which `find_minimum` does without

    z = np.asarray(features, np.float64)
    if z.ndim != 2:
        raise ShapeError(f"expected features of shape [n, D], got {list(z.shape)}")
    y = check_labels(labels, n=len(z), classes=classes)
    w = check_weights(weights, len(z))
    if not np.isfinite(z).all():
        raise PoolError("some features are NaN or infinite; fit on rows that have an embedding")
    if not regularisation > 0:
        raise PoolError(f"expected a regularisation above 0, got {regularisation}")
    first = LinearHead.zero(z.shape[1], classes) if start is None else start
    return find_minimum(z, y, w, classes, regularisation, first).head


def check_weights(weights: npt.ArrayLike | None, n: int) -> Doubles:
    """Weights of n examples as float64 [n]; ones for None.

    Raises:
        ShapeError: another length; PoolError: negative or not finite.
    """
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if w.shape != (n,):
        raise ShapeError(f"expected weights of shape [{n}], got {list(w.shape)}")
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise PoolError("expected example weights that are finite and not negative")
    return w


def find_minimum(
    z: npt.NDArray[Any],
    y: Ints,
    w: Doubles,
    classes: int,
    lam: float,
    start: LinearHead,
    *,
    gradient: float = _GRADIENT,
    loss_change: float = 1e-15,
    steps: int = _STEPS,
) -> Minimum:
    """The minimiser for one lambda by L-BFGS, preconditioned by the diagonal of a bound on the curvature.

    Products run in the precision of `z`, sums in float64. Nothing is checked.

    Args:
        z: [n, D] float32 or float64; y: [n]; w: [n].
        gradient: stops when no partial derivative exceeds this times sqrt(n), in preconditioned coordinates.
        loss_change: stops when a step changes the loss by a smaller share.
    """
    n, width = z.shape
    precision = z.dtype
    # Softmax curvature is at most p(1-p) <= 1/4 per class, and about 1/(2C) when the classes are alike.
    curvature = 1 / (2 * classes)
    squares = (z * z).T @ w.astype(precision)  # [D]
    step = 1 / np.sqrt(curvature * squares.astype(np.float64) + lam)  # [D]
    bias_step = 1 / np.sqrt(curvature * (w.sum() + 1))
    scaled = z * step.astype(precision)
    ridge = (lam * step**2)[:, None]
    rows = np.arange(n)
    prior = 1 / classes

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        point = flat.reshape(width + 1, classes)
        bias = point[width] * bias_step
        log_p = log_softmax((scaled @ point[:width].astype(precision)).astype(np.float64) + bias)
        log_prior = log_softmax(bias)
        value = -(w @ log_p[rows, y]) - prior * log_prior.sum() + 0.5 * float((ridge * point[:width] ** 2).sum())
        error = np.exp(log_p)
        error[rows, y] -= 1
        error *= w[:, None]
        slope = np.empty_like(point)
        slope[:width] = scaled.T @ error.astype(precision)
        slope[:width] += ridge * point[:width]
        slope[width] = (error.sum(0) + np.exp(log_prior) - prior) * bias_step
        return float(value), slope.ravel()

    first = np.vstack([start.weight / step[:, None], start.bias / bias_step])
    options = {"maxiter": steps, "maxcor": 10, "gtol": gradient * np.sqrt(n + 1), "ftol": loss_change}
    result = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    point = result.x.reshape(width + 1, classes)
    head = LinearHead(point[:width] * step[:, None], point[width] * bias_step)
    return Minimum(head, float(result.fun), int(result.nit))


def log_softmax(logits: Doubles) -> Doubles:
    """[..., C] -> [..., C] log-probabilities. SciPy's has more overhead per call, and a fit makes thousands."""
    shifted: Doubles = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
