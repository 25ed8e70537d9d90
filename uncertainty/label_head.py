"""A logistic head for labels that are each on or off, on frozen features: the objective and its minimiser. No torch.

    n  labelled examples     D  feature width     L  labels

Minimises for each label by itself what `linear_head` minimises for two classes: with the difference d = z' v + b of the
two logits  sum_i w_i CE(sigmoid(d_i), y_il) + lambda/4 |v|^2 + (one pseudo-example at z = 0, half on and half off). The
halved lambda is exact: at the minimum the weights of two classes are v/2 and -v/2. All labels are found in one search,
whose products are as large as those of L classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from .linear_head import Doubles, LinearHead, Minimum

Flags = npt.NDArray[np.bool_]

_GRADIENT = 1e-6  # as in `linear_head`
_STEPS = 1_000


def find_label_minimum(
    z: npt.NDArray[Any],
    y: Flags,
    w: Doubles,
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
        z: [n, D] float32 or float64; y: [n, L]; w: [n].
        start: weights [D, L] of the differences; gradient, loss_change: as `linear_head.find_minimum`.
    """
    n, width = z.shape
    labels = y.shape[1]
    precision = z.dtype
    squares = (z * z).T @ w.astype(precision)  # [D]
    step = 1 / np.sqrt(0.25 * squares.astype(np.float64) + lam / 2)  # [D]; p(1-p) <= 1/4
    bias_step = 1 / np.sqrt(0.25 * (w.sum() + 1))
    scaled = z * step.astype(precision)
    ridge = (lam / 2 * step**2)[:, None]
    on = y.astype(np.float64)

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        point = flat.reshape(width + 1, labels)
        bias = point[width] * bias_step
        d = (scaled @ point[:width].astype(precision)).astype(np.float64) + bias
        prior = np.logaddexp(0, bias) - 0.5 * bias
        value = float(w @ (np.logaddexp(0, d) - on * d).sum(axis=1)) + float(prior.sum())
        value += 0.5 * float((ridge * point[:width] ** 2).sum())
        error = (sigmoid(d) - on) * w[:, None]
        slope = np.empty_like(point)
        slope[:width] = scaled.T @ error.astype(precision)
        slope[:width] += ridge * point[:width]
        slope[width] = (error.sum(0) + sigmoid(bias) - 0.5) * bias_step
        return value, slope.ravel()

    first = np.vstack([start.weight / step[:, None], start.bias / bias_step])
    options = {"maxiter": steps, "maxcor": 10, "gtol": gradient * np.sqrt(n + 1), "ftol": loss_change}
    result = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    point = result.x.reshape(width + 1, labels)
    head = LinearHead(point[:width] * step[:, None], point[width] * bias_step)
    return Minimum(head, float(result.fun), int(result.nit))


def sigmoid(logits: Doubles) -> Doubles:
    """[...] log-odds -> [...] probabilities; no overflow at any size."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))
