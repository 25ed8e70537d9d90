"""Checks on the arrays that enter this package. They refuse; they never repair or guess.

Axes, always in this order:
    B  examples in the batch (N for a whole pool)
    S  posterior samples (dropout passes, ensemble members, Laplace draws); S=1 if deterministic
    C  classes
    D  embedding width
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import NotADistributionError, ShapeError

# Half-precision log-probabilities of a thousand classes still sum to one within this.
SUM_TOLERANCE = 1e-3


def check_log_probs(log_probs: Tensor, *, min_classes: int = 1) -> Tensor:
    """Fail loudly unless `log_probs` is [B, S, C], S >= 1, C >= `min_classes`, and normalised over C.

    Returns:
        The probabilities, [B, S, C], in the precision given: they are needed for the check, and by most callers.

    Raises:
        ShapeError, NotADistributionError.
    """
    if log_probs.ndim != 3:
        raise ShapeError(f"expected log_probs of shape [B, S, C], got {list(log_probs.shape)}")
    if log_probs.shape[1] < 1 or log_probs.shape[2] < min_classes:
        raise ShapeError(
            f"expected log_probs of shape [B, S, C] with S >= 1 and C >= {min_classes}, got {list(log_probs.shape)}"
        )
    if not log_probs.is_floating_point():
        raise NotADistributionError(f"expected floating-point log-probabilities, got {log_probs.dtype}")
    probs = log_probs.exp()
    wide = log_probs.float().exp() if log_probs.dtype in (torch.float16, torch.bfloat16) else probs
    _check_sums(wide.sum(-1), "apply log_softmax to logits first")
    return probs


def check_probs(probs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`probs` as float64 [n, C]; refuses another shape, negative numbers and rows that do not sum to one.

    Raises:
        ShapeError, NotADistributionError.
    """
    array = np.asarray(probs, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 1:
        raise ShapeError(f"expected probabilities of shape [n, C], got {list(array.shape)}")
    if (array < 0).any():
        raise NotADistributionError(f"probabilities go down to {array.min():.3g}; apply softmax to logits first")
    _check_sums(torch.from_numpy(array.sum(1)), "apply softmax to logits first")
    return array


def check_labels(labels: npt.ArrayLike, *, n: int, classes: int) -> npt.NDArray[np.int64]:
    """`labels` as int64 [n], every one in [0, classes).

    Raises:
        ShapeError.
    """
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ShapeError(f"expected {n} labels of shape [{n}], got {list(array.shape)}")
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ShapeError(f"expected labels as class indices (integers), got {array.dtype}")
    if array.min() < 0 or array.max() >= classes:
        raise ShapeError(f"expected labels in [0, {classes}), got {array.min()}..{array.max()}")
    return array.astype(np.int64)


def check_mask(name: str, mask: Any, n: int) -> npt.NDArray[np.bool_]:
    """`mask` as bool [n]; integer lists are refused, since [3, 7] could mean rows as well as flags.

    Raises:
        ShapeError.
    """
    array = np.asarray(mask)
    if array.shape != (n,):
        raise ShapeError(f"expected {name} of shape [{n}], a flag per row of features, got {list(array.shape)}")
    if array.dtype != np.bool_:
        raise ShapeError(f"expected {name} as booleans, got {array.dtype}; turn row numbers into a mask")
    return array


def _check_sums(total: Tensor, advice: str) -> None:
    # abs() <= is False for NaN, which is what a guard wants.
    if total.numel() and not bool(((total - 1).abs() <= SUM_TOLERANCE).all()):
        raise NotADistributionError(
            f"class probabilities sum to {float(total.min()):.3g}..{float(total.max()):.3g}; {advice}"
        )
