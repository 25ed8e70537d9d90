"""Where posterior samples come from when a model gives one prediction only: a linear head on frozen features.

Axes: n labelled rows, B rows asked for, S samples, C classes, D feature width.
Functions return [B, S, C] log-probabilities, in float32 unless features come as float64.
"""

from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import NotADistributionError, PoolError, ShapeError
from .laplace import REGULARISATION, SAMPLES, SCALE, LinearPosterior, check_features, of_heads, single
from .linear_head import Doubles, LinearHead, fit_linear_head
from .pool import Pool, Posterior, Rows
from .shapes import check_labels, check_log_probs

MEMBERS = 5  # of a head ensemble; more changes little (Lakshminarayanan et al. 2017)
_KEPT = 0.5  # share of the features that one member of an ensemble sees; Ho 1998

_View = TypeVar("_View")


class _Linear(Protocol):
    """A linear head of any making."""

    @property
    def weight(self) -> Doubles: ...  # [D, C]

    @property
    def bias(self) -> Doubles: ...  # [C]


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """One prediction per row, softened by T > 1 or sharpened by T < 1: logits [B, C] -> [B, 1, C].

    Raises:
        ShapeError; NotADistributionError: T is not above 0.
    """
    if not temperature > 0:
        raise NotADistributionError(f"expected a temperature above 0, got {temperature}")
    return single(logits / temperature)


def mc_dropout(head: _Linear, features: Tensor, p: float = 0.5, count: int = SAMPLES, seed: int = 0) -> Tensor:
    """Predictions with features dropped at random, [B, D] -> [B, S, C].

    A sample drops the same features in every row, as one posterior sample is one function; what is kept grows by
    1 / (1 - p).

    Args:
        head: `weight` [D, C] and `bias` [C].
        p: chance that a feature is dropped, in [0, 1).

    Raises:
        ShapeError; PoolError: p or count out of range.

    Paper:
        Gal and Ghahramani 2016, arXiv:1506.02142.
    """
    if not 0 <= p < 1 or count < 1:
        raise PoolError(f"expected a share of dropped features in [0, 1) and a count above 0, got {p} and {count}")
    x = check_features(features, len(head.weight))
    kept = np.random.default_rng(seed).random((count, len(head.weight))) >= p
    weight = kept[:, :, None] * head.weight / (1 - p)
    return of_heads(x, weight, np.tile(head.bias, (count, 1))).log_softmax(-1)


def bootstrap_heads(
    features: npt.NDArray[Any],
    labels: npt.ArrayLike,
    classes: int,
    *,
    members: int = MEMBERS,
    seed: int = 0,
    regularisation: float = REGULARISATION,
) -> tuple[LinearHead, ...]:
    """Heads that each saw a bootstrap sample of the labels and a random half of the features; for `ensemble`.

    Each class is drawn from by itself, so none is lost.

    Args:
        features: [n, D], rows L2-normalised; labels: [n], in [0, C).

    Raises:
        ShapeError, PoolError as `fit_linear_head`.

    Paper:
        Ho 1998, The random subspace method; Lakshminarayanan et al. 2017, arXiv:1612.01474.
    """
    x = np.asarray(features, np.float64)
    y = check_labels(labels, n=len(x), classes=classes)
    if members < 1:
        raise PoolError(f"expected at least one member, got {members}")
    rng = np.random.default_rng(seed)
    width = x.shape[1]
    of_class = [rows for c in range(classes) if len(rows := np.flatnonzero(y == c))]
    # Rows keep their length on average, hence the prior its strength.
    scale = SCALE / sqrt(_KEPT)
    heads = []
    for _ in range(members):
        rows = np.concatenate([rng.choice(rows, len(rows)) for rows in of_class] or [np.empty(0, np.int64)])
        kept = np.sort(rng.permutation(width)[: max(1, round(_KEPT * width))])
        part = fit_linear_head(scale * x[np.ix_(rows, kept)], y[rows], classes, regularisation=regularisation)
        weight = np.zeros((width, classes))
        weight[kept] = scale * part.weight
        heads.append(LinearHead(weight, part.bias))
    return tuple(heads)


def ensemble(heads: Sequence[_Linear], features: Tensor) -> Tensor:
    """Predictions of several heads, [B, D] -> [B, S, C]; same shapes in all.

    Raises:
        PoolError: no head; ShapeError.
    """
    if not heads:
        raise PoolError("expected at least one head")
    x = check_features(features, len(heads[0].weight))
    weight, bias = np.stack([head.weight for head in heads]), np.stack([head.bias for head in heads])
    return of_heads(x, weight, bias).log_softmax(-1)


def stack_members(members: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of several models for the same rows, each [B, C] or [B, S, C] -> [B, sum of S, C].

    For whatever makes members: networks of a deep ensemble (Lakshminarayanan et al. 2017, arXiv:1612.01474), minima
    of one cyclic run (Huang et al. 2017, arXiv:1704.00109), views of one image.

    Raises:
        PoolError: no member; ShapeError: B or C differ; NotADistributionError.
    """
    if not members:
        raise PoolError("expected at least one member")
    wide = [member[:, None] if member.ndim == 2 else member for member in members]
    for member in wide:
        check_log_probs(member)
        if (member.shape[0], member.shape[2]) != (wide[0].shape[0], wide[0].shape[2]):
            raise ShapeError(f"expected members for the same rows and classes, got {[list(m.shape) for m in members]}")
    return torch.cat(wide, dim=1)


def test_time_augmentation(predict: Callable[[_View], Tensor], views: Iterable[_View]) -> Tensor:
    """Predictions for several views of the same examples: V views -> [B, V, C].

    Args:
        predict: a view of all B examples -> [B, C] or [B, S, C] log-probabilities.
        views: e.g. the images, mirrored, cropped.

    Raises:
        As `stack_members`.
    """
    return stack_members([predict(view) for view in views])


MEANING: dict[Posterior, tuple[str, str]] = {  # what samples are, paper
    "laplace": (
        f"{SAMPLES} heads drawn from a Gaussian around the fitted one, as wide as the labels leave it",
        "Daxberger et al. 2021, arXiv:2106.14806",
    ),
    "bootstrap": (
        f"{MEMBERS} heads, each fitted to a draw of the labels and half of the features",
        "Ho 1998; Lakshminarayanan et al. 2017, arXiv:1612.01474",
    ),
    "dropout": (
        f"the fitted head, {SAMPLES} times with half of the features dropped at random",
        "Gal and Ghahramani 2016, arXiv:1506.02142",
    ),
}
_POSTERIORS: WeakKeyDictionary[Pool, LinearPosterior] = WeakKeyDictionary()
_HEADS: WeakKeyDictionary[Pool, tuple[LinearHead, ...]] = WeakKeyDictionary()


def posterior_of(pool: Pool) -> LinearPosterior:
    """Posterior of a linear head fitted to the known labels, in the space of the pool's features; fitted once a pool.

    Raises:
        PoolError: fewer than two classes are known.
    """
    found = _POSTERIORS.get(pool)
    if found is None:
        found = _POSTERIORS[pool] = LinearPosterior.fit(*_known(pool), pool.classes)
    return found


def _heads_of(pool: Pool) -> tuple[LinearHead, ...]:
    found = _HEADS.get(pool)
    if found is None:
        found = _HEADS[pool] = bootstrap_heads(*_known(pool), pool.classes)
    return found


def _known(pool: Pool) -> tuple[npt.NDArray[Any], Rows]:
    """Features and labels of what is known."""
    if not pool.tells_classes:
        raise PoolError(
            "posterior samples need log_probs with several samples, or labels of at least two classes; give "
            "Pool(labels=...) or choose a strategy that does without"
        )
    return pool.rows(pool.known_rows).numpy(), pool.labels_of_labelled


def samples_of(pool: Pool, rows: Rows, count: int = SAMPLES) -> Tensor:
    """Posterior samples of some rows, [len(rows), S, C] log-probabilities: those given if there are several, else
    those of the pool's posterior (`MEANING`), the same heads for all rows; `count` of them, but for bootstrap heads.

    Raises:
        PoolError: neither several samples nor labels of two classes are known.
    """
    if pool.log_probs is not None and pool.log_probs.shape[1] > 1:
        return pool.predictions(rows)
    features = pool.rows(rows)
    if pool.posterior == "bootstrap":
        return ensemble(_heads_of(pool), features)
    if pool.posterior == "dropout":
        return mc_dropout(posterior_of(pool), features, count=count)
    return posterior_of(pool).samples(features, count)
