"""What `benchmark.peers` gives to every library, and the yardsticks by which choices are compared.

Axes: N rows, D = 384 features, S = 20 posterior samples, C = 10 classes. The last `LABELLED` rows have a label.
Yardsticks are plain float64 numpy and share no code with any of the libraries, ours included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uncertainty.coverage import kernel_width
from uncertainty.predictives import LinearPosterior

WIDTH, CLASSES, SAMPLES, LABELLED = 384, 10, 20, 100
_CLUSTERS, _LATENT = 120, 32
_PART = 32_768  # rows at once
_RADIUS_ROWS = 20_000
_NARROWED = 0.25

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Given:
    """One pool. Every library gets these arrays, in the layout it asks for."""

    x: Array  # [N, D] float32, rows of length 1
    log_probs: Array  # [N, C] float32, of a logistic head
    samples: Array  # [N, S, C] float32 log-probabilities of heads drawn from its posterior
    labels: Array  # [N] int64, -1 for rows without a label
    weight: Array  # [D, C] float64, of the head
    bias: Array  # [C]
    radius: float  # of ProbCover's balls
    sigma: float  # of MaxHerding's kernel, exp(-|x - z|^2 / sigma^2)

    @property
    def free(self) -> int:
        """Rows without a label; they come first."""
        return len(self.x) - LABELLED

    @property
    def labelled(self) -> Array:
        """[N] bool."""
        return self.labels >= 0

    @property
    def probs(self) -> Array:
        """[N, C] float32."""
        return np.exp(self.log_probs)

    def first(self, free: int) -> Given:
        """The first `free` rows without a label, and those with one."""
        rows = np.concatenate([np.arange(free), np.arange(self.free, len(self.x))])
        cut = {name: getattr(self, name)[rows] for name in ("x", "log_probs", "samples", "labels")}
        return replace(self, **cut)


def load(folder: Path, n: int, *, sampled: bool) -> Given:
    """The pool of n rows, made if it is not there; posterior samples only if wanted, else [N, 0, 0]."""
    at = folder / str(n)
    if not (at / "scalars.npy").exists():
        _make(at, n)
    radius, sigma = np.load(at / "scalars.npy").tolist()
    arrays = {name: np.load(at / f"{name}.npy") for name in ("x", "log_probs", "labels", "weight", "bias")}
    samples = np.load(at / "samples.npy") if sampled else np.empty((n, 0, 0), np.float32)
    return Given(**arrays, samples=samples, radius=radius, sigma=sigma)


def _make(at: Path, n: int) -> None:
    """Clusters of uneven size in 32 dimensions, turned into 384 with a little noise; each cluster has one class."""
    at.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    centres = rng.normal(size=(_CLUSTERS, _LATENT))
    spread = rng.uniform(0.2, 0.6, size=_CLUSTERS)
    turn = rng.normal(size=(_LATENT, WIDTH)) / np.sqrt(_LATENT)
    share = 1 / np.arange(1, _CLUSTERS + 1) ** 0.7
    cluster = rng.choice(_CLUSTERS, size=n, p=share / share.sum())
    # Ten labels of each class, so that the head knows all.
    cluster[-LABELLED:] = CLASSES * rng.integers(0, _CLUSTERS // CLASSES, LABELLED) + np.arange(LABELLED) % CLASSES
    x = np.empty((n, WIDTH), np.float32)
    for part in _parts(n):
        of = cluster[part]
        latent = centres[of] + spread[of, None] * rng.normal(size=(len(of), _LATENT))
        rows = latent @ turn + 0.1 * rng.normal(size=(len(of), WIDTH))
        x[part] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.full(n, -1, np.int64)
    labels[-LABELLED:] = cluster[-LABELLED:] % CLASSES
    head = LinearPosterior.fit(x[-LABELLED:], labels[-LABELLED:], CLASSES)
    log_probs, samples = np.empty((n, CLASSES), np.float32), np.empty((n, SAMPLES, CLASSES), np.float32)
    for part in _parts(n):
        rows = torch.from_numpy(x[part]).double()
        log_probs[part] = head.log_probs(rows)[:, 0].numpy()
        # Of ten labels a class the posterior is so wide that any ten rows tell all samples apart: drawn in.
        middle = head.logits(rows)[:, None]
        samples[part] = (middle + _NARROWED * (head.samples(rows, SAMPLES) - middle)).log_softmax(-1).numpy()
    made: dict[str, Array] = {
        "x": x,
        "log_probs": log_probs,
        "samples": samples,
        "labels": labels,
        "weight": head.weight,
        "bias": head.bias,
    }
    for name, array in made.items():
        np.save(at / f"{name}.npy", array)
    sample = torch.from_numpy(x[rng.permutation(n - LABELLED)[:1024]])
    sigma = kernel_width(sample, torch.from_numpy(x[-LABELLED:]), rng)
    np.save(at / "scalars.npy", np.array([_ball_radius(x, rng), sigma]))  # last: all is there


def _ball_radius(x: Array, rng: np.random.Generator) -> float:
    """The radius at which the median ball holds half a per cent of the rows: a hundred can cover half the pool."""
    rows = rng.permutation(len(x) - LABELLED)[:_RADIUS_ROWS]
    cosine = x[rows[:512]].astype(np.float64) @ x[rows].T.astype(np.float64)
    return float(np.sqrt(2 - 2 * np.median(np.quantile(cosine, 0.995, axis=1))))


def _parts(n: int) -> Iterator[slice]:
    for start in range(0, n, _PART):
        yield slice(start, min(start + _PART, n))


# ---------------------------------------------------------------------- yardsticks
def _nearest_squared(d: Given, centres: Array) -> Array:
    """[free] squared distance of each row without a label to the nearest of some rows."""
    around = d.x[centres].astype(np.float64)
    out = np.empty(d.free)
    for part in _parts(d.free):
        rows = d.x[part].astype(np.float64)
        squares = (rows**2).sum(1)[:, None] + (around**2).sum(1)
        out[part] = (squares - 2 * rows @ around.T).min(1)
    return np.maximum(out, 0)


def _and_labelled(d: Given, picks: Array) -> Array:
    return np.concatenate([picks, np.arange(d.free, len(d.x))])


def _entropy(p: Array) -> Array:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def _of_probs(score: Callable[[Array], Array]) -> Callable[[Given, Array], dict[str, float]]:
    def fn(d: Given, picks: Array) -> dict[str, float]:
        p = np.exp(d.log_probs[picks].astype(np.float64))
        return {"mean score": float(score(p).mean())}

    return fn


def _margin(p: Array) -> Array:
    two = np.sort(p, axis=-1)[:, -2:]
    gap: Array = two[:, 1] - two[:, 0]
    return 1 - gap


def _mutual_information(d: Given, picks: Array) -> dict[str, float]:
    p = np.exp(d.samples[picks].astype(np.float64))
    return {"mean score": float((_entropy(p.mean(1)) - _entropy(p).mean(1)).mean())}


def _outvoted(d: Given, picks: Array) -> dict[str, float]:
    votes = d.samples[picks].argmax(-1)  # [m, S]
    most = np.array([np.bincount(row).max() for row in votes])
    return {"mean score": float((1 - most / SAMPLES).mean())}


def _information_about_others(d: Given, picks: Array) -> dict[str, float]:
    # EPIG about a hundred random rows; the libraries were given others.
    p = np.exp(d.samples[picks].astype(np.float64))
    others = np.exp(d.samples[np.random.default_rng(1).permutation(d.free)[:100]].astype(np.float64))
    joint = np.einsum("nsc,tse->ntce", p, others) / SAMPLES
    together = -(joint * np.log(np.maximum(joint, 1e-300))).sum((2, 3)).mean(1)
    return {"mean score": float((_entropy(p.mean(1)) + _entropy(others.mean(1)).mean() - together).mean())}


def _joint_information(d: Given, picks: Array, draws: int = 200_000) -> dict[str, float]:
    """I(labels of the picks; posterior sample) = E log p(y | s) / p(y), in nats; labels y are drawn, 200,000 times."""
    p = np.exp(d.samples[picks].astype(np.float64))  # [m, S, C]
    rng = np.random.default_rng(0)
    told_by = np.arange(draws) % SAMPLES
    log_joint = np.zeros((draws, SAMPLES))
    for row in p:
        cumulated = row.cumsum(1)
        ticks = rng.random(draws) * cumulated[told_by, -1]
        label = np.minimum((cumulated[told_by] <= ticks[:, None]).sum(1), CLASSES - 1)
        log_joint += np.log(np.maximum(row[:, label].T, 1e-300))
    top = log_joint.max(1)
    log_any = np.log(np.exp(log_joint - top[:, None]).mean(1)) + top
    return {"joint information": float((log_joint[np.arange(draws), told_by] - log_any).mean())}


def _radius(d: Given, picks: Array) -> dict[str, float]:
    return {"radius": float(np.sqrt(_nearest_squared(d, _and_labelled(d, picks)).max()))}


def _gradient_potential(d: Given, picks: Array) -> dict[str, float]:
    """Mean over rows of the least squared distance between gradients, (p - e) (x) x, and that of a pick."""
    p = np.exp(d.log_probs.astype(np.float64))
    p[np.arange(len(p)), p.argmax(1)] -= 1
    length = (p**2).sum(1)  # rows of x have length 1
    around, total = d.x[picks].astype(np.float64), 0.0
    for part in _parts(d.free):
        products = (p[part] @ p[picks].T) * (d.x[part].astype(np.float64) @ around.T)
        total += float(np.maximum(length[part, None] + length[picks] - 2 * products, 0).min(1).sum())
    return {"potential": total / d.free}


def _typicality(d: Given, picks: Array) -> dict[str, float]:
    squared: Array = np.full((len(picks), 21), np.inf)  # the row itself and its 20 nearest
    around = d.x[picks].astype(np.float64)
    for part in _parts(len(d.x)):
        fresh = np.maximum(2 - 2 * around @ d.x[part].T.astype(np.float64), 0)
        squared = np.partition(np.concatenate([squared, fresh], 1), 20, axis=1)[:, :21]
    distance = np.sqrt(np.sort(squared, 1)[:, 1:]).mean(1)
    spread = np.sqrt(_nearest_squared(d, _and_labelled(d, picks))).mean()
    return {"typicality": float((1 / distance).mean()), "distance": float(spread)}


def _covered(d: Given, picks: Array) -> dict[str, float]:
    return {"covered": float((_nearest_squared(d, _and_labelled(d, picks)) < d.radius**2).mean())}


def _kernel_coverage(d: Given, picks: Array) -> dict[str, float]:
    return {"coverage": float(np.exp(-_nearest_squared(d, _and_labelled(d, picks)) / d.sigma**2).mean())}


def _weighted_inertia(d: Given, picks: Array) -> dict[str, float]:
    weight = _entropy(np.exp(d.log_probs[: d.free].astype(np.float64)))
    return {"inertia": float(weight @ _nearest_squared(d, picks) / weight.sum())}


def _flips(d: Given, picks: Array) -> dict[str, float]:
    """Share of predictions that change under dropout of three quarters of the features (the rest scaled up)."""
    rng = np.random.default_rng(0)
    x = d.x[picks].astype(np.float64)
    said = (x @ d.weight + d.bias).argmax(1)
    other = [((x * (rng.random(x.shape) >= 0.75) * 4) @ d.weight + d.bias).argmax(1) != said for _ in range(100)]
    return {"flips": float(np.mean(other)), "distance": float(np.sqrt(_nearest_squared(d, picks)).mean())}


# Yardsticks of each algorithm, and of each number whether more is better.
YARDSTICKS: dict[str, Callable[[Given, Array], dict[str, float]]] = {
    "entropy": _of_probs(_entropy),
    "margin": _of_probs(_margin),
    "least_confidence": _of_probs(lambda p: 1 - p.max(-1)),
    "bald": _mutual_information,
    "power_bald": _mutual_information,
    "variation_ratio": _outvoted,
    "epig": _information_about_others,
    "batchbald": _joint_information,
    "k_center": _radius,
    "badge": _gradient_potential,
    "typiclust": _typicality,
    "probcover": _covered,
    "maxherding": _kernel_coverage,
    "clue": _weighted_inertia,
    "dropquery": _flips,
}
MORE_IS_BETTER = {
    "mean score": True,
    "joint information": True,
    "radius": False,
    "potential": False,
    "typicality": True,
    "distance": False,
    "covered": True,
    "coverage": True,
    "inertia": False,
    "flips": True,
}
