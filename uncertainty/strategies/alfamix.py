"""ALFA-Mix: examples whose predicted class flips when a little of a labelled class is mixed into them."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..clustering import MOST_CENTRES, in_turn, k_means
from ..pool import CHUNK, Pool
from ..predictives import posterior_of
from ..selection import Selection, StrategyInfo, register_strategy, shuffled, thinned

REACH = 0.2  # share of the way to a class anchor that counts as a little (eps of the paper)
CANDIDATES = 10_000  # flipping examples that are clustered; more bring no other clusters
_PER_CHOICE = 20


def flip_shares(
    features: Tensor, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], anchors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Smallest eps at which the predicted class changes on h + alpha * (z - h), for the best of the anchors z.

    The paper's alpha follows the gradient g of the loss at the predicted class in closed form, so that the step is
    alpha * (z - h) = eps |z - h| g / |g|. Along it the logits of a linear head are straight lines, and where the
    first of them crosses that of the predicted class is known without a search: no alpha is ever built.

    Args:
        features: [n, D]; weight: [D, C]; bias: [C]; anchors: [A, D], mean features of the labelled classes.

    Returns:
        [n] >= 0, infinite where no step along g changes the class.

    Paper:
        Parvaneh et al. 2022, arXiv:2203.07034, sec. 3.2.
    """
    both = torch.from_numpy(np.concatenate([weight, anchors.T], axis=1)).float()
    products = (features @ both).double().numpy()
    classes = weight.shape[1]
    logits = products[:, :classes] + bias  # [n, C]
    squares = (features * features).sum(1).double().numpy()[:, None] + (anchors**2).sum(1)  # [n, A]
    farthest = np.sqrt(np.maximum(squares - 2 * products[:, classes:], 0)).max(1)  # [n]
    first = logits.argmax(1)[:, None]
    gap = np.take_along_axis(logits, first, 1) - logits  # [n, C] >= 0
    # Gradient of -log p by the logits, p - e; minus the sum of the others does not cancel as p - 1 does.
    residual = np.exp(-gap)
    residual /= residual.sum(1, keepdims=True)
    np.put_along_axis(residual, first, 0.0, 1)
    np.put_along_axis(residual, first, -residual.sum(1, keepdims=True), 1)
    slope = residual @ (weight.T @ weight)  # [n, C] change of the logits along W (p - e)
    norm = np.sqrt(np.maximum((slope * residual).sum(1), 0))  # [n] |g|
    closing = slope - np.take_along_axis(slope, first, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(closing > 0, gap / closing, np.inf).min(1) * norm
        share: npt.NDArray[np.float64] = step / farthest
    return np.where(np.isfinite(share), share, np.inf)


def _alfa_mix(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = shuffled(pool, rng)
    k = min(k, len(rows))
    if not k:
        return Selection.empty()
    head = posterior_of(pool)
    anchors = _anchors(pool)
    share = np.concatenate(
        [
            flip_shares(pool.rows(rows[start : start + CHUNK]), head.weight, head.bias, anchors)
            for start in range(0, len(rows), CHUNK)
        ]
    )
    order = np.argsort(share, kind="stable")  # rows are in random order: so are ties
    # With fewer flips than asked for, the mix reaches as far as it must.
    flipping = order[: max(k, int((share <= REACH).sum()))]
    offered = thinned(pool, rows[flipping], max(CANDIDATES, _PER_CHOICE * k), rng)
    clusters = k_means(pool.rows(offered), min(k, MOST_CENTRES), rng)
    sizes = np.bincount(clusters.labels, minlength=len(clusters.centres))
    # The example nearest to each centre, large clusters first; further ones where copies leave clusters empty.
    supplied, _ = in_turn(clusters.labels, clusters.distances, np.argsort(-sizes, kind="stable"))
    chosen = offered[supplied[:k]]
    share_of = np.empty(pool.size)
    share_of[rows] = share
    return Selection.of(chosen, 1 - np.minimum(share_of[chosen], 1), "uncertain")


def _anchors(pool: Pool) -> npt.NDArray[np.float64]:  # [A, D] mean features of each class with labels
    known, label = pool.known_rows, pool.labels_of_labelled
    classes, of_class = np.unique(label, return_inverse=True)
    total = np.zeros((len(classes), pool.features.shape[1]))
    for start in range(0, len(known), CHUNK):
        part = slice(start, start + CHUNK)
        np.add.at(total, of_class[part], pool.rows(known[part]).numpy())
    return total / np.bincount(of_class)[:, None]


register_strategy(
    StrategyInfo(
        "alfa_mix",
        _alfa_mix,
        "Examples whose predicted class flips when a little of another class is mixed in, one of each kind.",
        False,
        "Parvaneh et al. 2022, arXiv:2203.07034",
        needs_labels=True,
        exactness=f"flips of all rows, in closed form for a linear head; clusters of max({CANDIDATES}, "
        f"{_PER_CHOICE} k) of them on larger pools, and at most {MOST_CENTRES} clusters",
    )
)
