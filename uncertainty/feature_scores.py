"""Scores that look at features, labels or the linear head. Importing this module registers them in `pool_scores`.

All grow with uncertainty; the geometric margin and the energy are negative. Chunked: memory does not grow with the
pool. C classes, D feature width, S samples, T targets.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import PoolError
from .neighbours import nearest
from .pool import Pool, Rows
from .pool_scores import ScoreInfo, Scores, register_score
from .predictives import posterior_of, samples_of

NEIGHBOURS = 20
TARGETS = 100  # Bickford Smith et al. 2023 take as many
_OFFERED = 4096  # rows whose predicted class is looked up before balanced targets are drawn
_CHUNK = 16_384  # rows at once: 64 MiB at D = 1024
_JOINT = 2**22  # probabilities of pairs held at once by EPIG: 16 MiB
_SEED = 0  # of the targets: every chunk and every call must meet the same ones
_TINY = 1e-12
_TINIEST = 1e-38  # about the smallest normal float32

_Doubles = npt.NDArray[np.float64]


def geometric_margin(pool: Pool, rows: Rows) -> Scores:
    """Minus the distance to the nearest boundary of the linear head, min over c of (f_y - f_c) / |w_y - w_c|.

    Returns:
        [n] <= 0, in units of the features, whose rows have length 1; 0 on the boundary.

    Raises:
        PoolError: fewer than two classes are labelled.

    Paper:
        Tong and Koller 2001; Ducoffe and Precioso 2018, arXiv:1802.09841, in closed form.
    """
    head = posterior_of(pool)
    squares = (head.weight**2).sum(0)
    between = np.sqrt(np.maximum(squares[:, None] + squares - 2 * head.weight.T @ head.weight, 0))
    # Classes without examples have equal weights: no boundary lies between them.
    apart = torch.from_numpy(np.where(between > _TINY, between, _TINY)).float()
    out = np.empty(len(rows), np.float32)
    for part, x in _chunks(pool, rows):
        logits = head.logits(x)
        first, where = logits.max(1, keepdim=True)
        distance = (first - logits) / apart[where[:, 0]]
        out[part] = -distance.scatter(1, where, torch.inf).amin(1).numpy()
    return out


def energy(pool: Pool, rows: Rows, temperature: float = 1.0) -> Scores:
    """Energy of the linear head, -T logsumexp(f / T): high for what resembles no class.

    Returns:
        [n], in units of logits, at most -T log C since the logits of all classes sum to zero.

    Raises:
        PoolError: fewer than two classes are labelled.

    Paper:
        Liu et al. 2020, arXiv:2010.03759.
    """
    head = posterior_of(pool)
    out = np.empty(len(rows), np.float32)
    for part, x in _chunks(pool, rows):
        out[part] = (-temperature * (head.logits(x) / temperature).logsumexp(1)).numpy()
    return out


def knn_distance(pool: Pool, rows: Rows) -> Scores:
    """Mean cosine distance to the 20 nearest labelled rows (or to all, when there are fewer).

    Returns:
        [n], in [0, 2].

    Raises:
        PoolError: nothing is labelled.

    Paper:
        Sun et al. 2022, arXiv:2204.06507, with the mean in place of the k-th.
    """
    known = np.flatnonzero(pool.labelled & ~pool.excluded)
    if not len(known):
        raise PoolError("distances to labelled rows need at least one; label one, or choose by coverage")
    among = pool.features[known]
    out = np.empty(len(rows), np.float32)
    for part, x in _chunks(pool, rows):
        distance, _ = nearest(x, among, min(NEIGHBOURS, len(known)))
        # Between rows of length one, the cosine distance is half the squared Euclidean one.
        out[part] = (distance.square().mean(1) / 2).numpy()
    return out


def mahalanobis(pool: Pool, rows: Rows) -> Scores:
    """Squared Mahalanobis distance to the nearest class mean of the labelled rows, one covariance for all classes.

    Returns:
        [n] >= 0, in squared standard deviations; about D for what is like the labelled rows, if these are many.

    Raises:
        PoolError: no class is known.

    Paper:
        Lee et al. 2018, arXiv:1807.03888.
    """
    known, label = pool.known_rows, pool.labels_of_labelled
    if not len(known):
        raise PoolError("class means need labels; give Pool(labels=...)")
    x = pool.rows(known).numpy().astype(np.float64)
    _, of_class = np.unique(label, return_inverse=True)
    means = np.zeros((int(of_class.max()) + 1, x.shape[1]))
    np.add.at(means, of_class, x)
    means /= np.bincount(of_class)[:, None]
    size, axes = np.linalg.eigh(shrunk_covariance(x - means[of_class]))
    whiten = axes / np.sqrt(size)
    centre = means.mean(0)  # taken off first: distances by products lose digits far from zero
    at = torch.from_numpy((means - centre) @ whiten).float()
    turn, shift = torch.from_numpy(whiten).float(), torch.from_numpy(centre @ whiten).float()
    out = np.empty(len(rows), np.float32)
    for part, chunk in _chunks(pool, rows):
        turned = chunk @ turn - shift
        squared = turned.square().sum(1, keepdim=True) + at.square().sum(1) - 2 * turned @ at.T
        out[part] = squared.amin(1).clamp_min(0).numpy()
    return out


def shrunk_covariance(residuals: _Doubles) -> _Doubles:
    """Covariance of residuals [n, D] around known means, drawn towards a sphere; positive definite.

    The weight of the sphere is that of least expected error, but at least 1 / (n + 1): two residuals of one class
    are each other's mirror image and would otherwise be believed.

    Paper:
        Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices.
    """
    n, width = residuals.shape
    covariance = residuals.T @ residuals / n
    variance = float(np.trace(covariance)) / width
    if not variance > _TINY**2:  # one example a class, or copies: nothing is known but the means
        return np.eye(width)
    spread = float((covariance**2).sum()) / width - variance**2
    noise = (float(((residuals**2).sum(1) ** 2).sum()) / n - float((covariance**2).sum())) / (n * width)
    share = max(min(noise / spread, 1.0) if spread > 0 else 1.0, 1 / (n + 1))
    shrunk: _Doubles = (1 - share) * covariance + share * variance * np.eye(width)
    return shrunk


def epig(
    pool: Pool, rows: Rows, *, targets: int = TARGETS, balanced: bool = True, samples: Tensor | None = None
) -> Scores:
    """Expected information that the label of a row gives about the predictions for other rows of the pool.

    H[p] + mean_t H[p_t] - mean_t H[p, p_t] over T targets, from the posterior samples of both.

    Args:
        targets: T, drawn from what is neither labelled nor excluded; all of it when there is less.
        balanced: draw each predicted class equally often, as wanted when all classes count alike; with targets as
            the pool has them, a long tail of rare classes is not asked about.
        samples: [T, S, C] log-probabilities of targets to take instead, from the same posterior samples.

    Returns:
        [n], nats, in [0, log C].

    Raises:
        PoolError: no posterior samples (`samples_of`), or no row that could be a target.

    Paper:
        Bickford Smith et al. 2023, arXiv:2304.08151, eq. 4.
    """
    if samples is None:
        samples = samples_of(pool, target_rows(pool, targets, balanced=balanced))
    about = samples.exp().float()
    count, _, classes = about.shape
    target_entropy = _entropy(about.mean(1)).mean()
    at_targets = max(1, min(count, _JOINT // classes**2))
    at_rows = max(1, _JOINT // (at_targets * classes**2))
    out = np.empty(len(rows), np.float32)
    for part, log_probs in _sample_chunks(pool, rows, about.shape[1] * classes):
        probs = log_probs.exp().float()
        joint = torch.zeros(len(probs))
        for first in range(0, count, at_targets):
            some = about[first : first + at_targets]
            turned = some.transpose(0, 1).flatten(1)  # [S, T C]
            for start in range(0, len(probs), at_rows):
                block = probs[start : start + at_rows]
                both = block.transpose(1, 2).flatten(0, 1) @ turned / about.shape[1]  # [b C, T C]
                joint[start : start + at_rows] += _entropy(both).view(len(block), classes).sum(1)
        gain = _entropy(probs.mean(1)) + target_entropy - joint / count
        out[part] = gain.clamp_min(0).numpy()
    return out


def target_rows(pool: Pool, count: int, *, balanced: bool) -> Rows:
    """Rows that EPIG asks about, at most `count`; the same for the same pool.

    Raises:
        PoolError: everything is labelled or excluded.
    """
    rng = np.random.default_rng(_SEED)
    offered = rng.permutation(np.flatnonzero(~(pool.labelled | pool.excluded)))
    if not len(offered):
        raise PoolError("every row is labelled or excluded: nothing is left to learn about")
    if not balanced or len(offered) <= count:
        return offered[:count]
    offered = offered[:_OFFERED]
    predicted = samples_of(pool, offered).exp().mean(1).argmax(1).numpy()
    # In turn one of each class, until there are enough; rare classes give all they have.
    order = np.argsort(predicted, kind="stable")
    _, first, size = np.unique(predicted[order], return_index=True, return_counts=True)
    turn = np.empty(len(offered), np.int64)
    turn[order] = np.arange(len(offered)) - np.repeat(first, size)
    return offered[np.argsort(turn, kind="stable")[:count]]


def _entropy(probs: Tensor) -> Tensor:  # [..., C] -> [...], nats
    # Several times faster than special.entr on a CPU; p = 0 gives 0.
    return probs.clamp_min(_TINIEST).log_().mul_(probs).sum(-1).neg_()


def _chunks(pool: Pool, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(rows)))
        yield part, pool.rows(rows[part])


def _sample_chunks(pool: Pool, rows: Rows, per_row: int) -> Iterator[tuple[slice, Tensor]]:
    step = max(1, min(_CHUNK, _JOINT // per_row))
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        yield part, samples_of(pool, rows[part])


for _info in (
    ScoreInfo(
        "geometric_margin",
        geometric_margin,
        "how near the linear head's closest boundary is",
        "1",
        "Ducoffe and Precioso 2018, arXiv:1802.09841",
        needs_predictions=False,
        needs_labels=True,
    ),
    ScoreInfo(
        "energy",
        energy,
        "how little it resembles any class",
        "1",
        "Liu et al. 2020, arXiv:2010.03759",
        needs_predictions=False,
        needs_labels=True,
    ),
    ScoreInfo(
        "knn_distance",
        knn_distance,
        "the distance to the nearest labelled examples",
        "1",
        "Sun et al. 2022, arXiv:2204.06507",
        needs_predictions=False,
        needs_labels=True,  # without labels it would be blind, where coverage is not
    ),
    ScoreInfo(
        "mahalanobis",
        mahalanobis,
        "the distance to the nearest class mean, in standard deviations",
        "1",
        "Lee et al. 2018, arXiv:1807.03888",
        needs_predictions=False,
        needs_labels=True,
    ),
    ScoreInfo(
        "epig",
        epig,
        "what its label tells about the rest of the pool",
        "nats",
        "Bickford Smith et al. 2023, arXiv:2304.08151",
        needs_predictions=False,
        needs_labels=True,
        needs_samples=True,
    ),
):
    register_score(_info)
