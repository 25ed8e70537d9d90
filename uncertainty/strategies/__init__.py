"""Choose which examples of a pool to ask for next. The one place where a strategy gets its public name.

A strategy sees a `Pool` and returns a `Selection`: at most k rows, best first. All of them keep these
promises: never a row that is labelled, pending or excluded; at most one row of a near-duplicate group, and
none of a group that is pending; the same seed gives the same answer; ties are broken by the seed. Without
predictions (no model yet, or a single class) those that need them choose by coverage alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from . import coverage
from .errors import EmptyPool, PoolError, PoolExhausted, UnknownMethodError
from .pool import Pool, Rows

__all__ = [
    "Pool",
    "Reason",
    "Selection",
    "Strategy",
    "StrategyInfo",
    "get_strategy",
    "interleave",
    "list_strategies",
    "register_strategy",
    "select",
]

Reason = Literal["uncertain", "diverse", "explore"]
Strategy = Callable[[Pool, int, np.random.Generator], "Selection"]

# Greedy coverage is exact on pools up to these sizes and works on samples of these sizes above. They grow
# with k, since a sample must stay large against the number of choices made from it. Measured on 10,000 MNIST
# digits, 0-2,000 labels, k = 200: 94-96 % of the coverage gained by the exact choice in 1/6 to 1/17 of its
# time (half the points: 86-92 %; a third more candidates: 1 % more).
CANDIDATES = 3072
POINTS = 4096
_PER_CHOICE = 8
_WIDTH_SAMPLE = 1024


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows to ask for, first to last.

    Attributes:
        indices: [m] rows of the pool, m <= k.
        gain: [m] >= 0. Coverage strategies: share of the (weighted) pool newly covered, in [0, 1];
            uncertainty strategies: the score in its own unit; random choices: 0.
        reason: [m] why each was chosen.
    """

    indices: Rows
    gain: npt.NDArray[np.float64]
    reason: tuple[Reason, ...]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class StrategyInfo:
    """What a caller may know about a strategy without reading its code."""

    name: str
    fn: Strategy
    summary: str  # one sentence for people who choose from a list
    needs_predictions: bool  # without them, maxherding takes its place
    paper: str


_STRATEGIES: dict[str, StrategyInfo] = {}


def register_strategy(info: StrategyInfo) -> None:
    """Make a strategy known under `info.name`; a name can be taken once.

    Raises:
        ValueError: the name is taken.
    """
    if info.name in _STRATEGIES:
        raise ValueError(f"strategy {info.name!r} is already registered")
    _STRATEGIES[info.name] = info


def get_strategy(name: str) -> StrategyInfo:
    """The strategy of that name.

    Raises:
        UnknownMethodError: lists the known names.
    """
    try:
        return _STRATEGIES[name]
    except KeyError:
        raise UnknownMethodError(name, _STRATEGIES) from None


def list_strategies() -> list[StrategyInfo]:
    """All strategies by name."""
    return [info for _, info in sorted(_STRATEGIES.items())]


def select(name: str, pool: Pool, k: int, *, seed: int) -> Selection:
    """Choose up to k examples by the strategy of that name.

    Returns:
        min(k, selectable) rows; fewer when near-duplicate groups leave no more. None for k = 0.

    Raises:
        UnknownMethodError; PoolError: k is negative; EmptyPool: no rows; PoolExhausted: none selectable;
        ShapeError, NotADistributionError, NonFiniteScoreError from the scores.
    """
    info = get_strategy(name)
    if k < 0:
        raise PoolError(f"expected k >= 0 examples to select, got {k}")
    if k == 0:
        return Selection(np.empty(0, dtype=np.int64), np.empty(0), ())
    if pool.size == 0:
        raise EmptyPool
    left = int(pool.selectable.sum())
    if not left:
        raise PoolExhausted(asked=k, left=left)
    if info.needs_predictions and not pool.has_predictions:
        info = get_strategy("maxherding")
    return info.fn(pool, min(k, left), np.random.default_rng(seed))


def interleave(selection: Selection, pool: Pool, share: float, rng: np.random.Generator) -> Selection:
    """Replace a share of a batch by uniform random examples, spread evenly through it.

    The random rows are drawn first, from everything selectable, and a chosen row that is drawn counts as
    random: so they remain a fair sample of the pool, whatever the strategy prefers.

    Args:
        share: in [0, 1]; above 0 at least one row is random.

    Returns:
        As many rows as `selection` (near-duplicate groups may leave fewer), the others in their order.

    Raises:
        PoolError: share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise PoolError(f"expected a share of random examples between 0 and 1, got {share}")
    length = len(selection)
    count = min(length, max(1, round(share * length))) if share > 0 and length else 0
    if not count:
        return selection
    drawn = _shuffled(pool, rng)[:count]
    count = len(drawn)
    taken = _one_per_group(pool, np.concatenate([drawn, selection.indices]))
    kept = np.isin(selection.indices, taken[count:]) & ~np.isin(selection.indices, drawn)
    exploit = np.flatnonzero(kept)[: length - count]
    total = count + len(exploit)
    # One random place in each of `count` equal stretches.
    edges = np.linspace(0, total, count + 1)
    places = np.floor(edges[:-1] + rng.random(count) * np.diff(edges)).astype(np.int64)
    is_random = np.zeros(total, dtype=bool)
    is_random[places] = True
    indices = np.empty(total, dtype=np.int64)
    gain = np.zeros(total)
    indices[is_random], indices[~is_random] = drawn, selection.indices[exploit]
    gain[~is_random] = selection.gain[exploit]
    reasons = iter([selection.reason[i] for i in exploit])
    return Selection(indices, gain, tuple("explore" if r else next(reasons) for r in is_random))


def _shuffled(pool: Pool, rng: np.random.Generator) -> Rows:
    """Selectable rows in random order, one of each group, none of a pending group."""
    return _one_per_group(pool, rng.permutation(np.flatnonzero(pool.selectable)))


def _one_per_group(pool: Pool, rows: Rows) -> Rows:
    """`rows` without those whose group came earlier or is pending."""
    if pool.groups is None:
        return rows
    group = pool.groups[rows]
    _, first = np.unique(group, return_index=True)
    keep = group < 0
    keep[first] = True
    keep &= (group < 0) | ~np.isin(group, pool.groups[pool.pending])
    return rows[keep]


def _reasons(reason: Reason, count: int) -> tuple[Reason, ...]:
    return (reason,) * count


def _random(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = _shuffled(pool, rng)[:k]
    return Selection(rows, np.zeros(len(rows)), _reasons("explore", len(rows)))


def _most_uncertain(method: str) -> Strategy:
    def choose(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        rows = rng.permutation(np.flatnonzero(pool.selectable))  # a stable sort leaves ties in this order
        uncertainty = pool.uncertainty(method, rows)
        order = np.argsort(-uncertainty, kind="stable")
        chosen = _one_per_group(pool, rows[order])[:k]
        by_row = dict(zip(rows[order].tolist(), uncertainty[order].tolist(), strict=True))
        gain = np.array([by_row[row] for row in chosen.tolist()], dtype=np.float64)
        return Selection(chosen, gain, _reasons("uncertain", len(chosen)))

    return choose


def _maxherding(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = rng.permutation(np.flatnonzero(pool.selectable))
    return _herd(pool, k, rng, rows, np.ones(len(rows)), "diverse")


def _uherding(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = rng.permutation(np.flatnonzero(pool.selectable))
    # In the order of the predicted class, so that samples hold each class by its share.
    likeliest = pool.likeliest_class(rows)
    rows = rows[np.argsort(likeliest, kind="stable")]
    weights = pool.uncertainty("margin", rows).astype(np.float64)
    if not weights.sum() > 0:  # sure of everything: nothing to weigh by
        weights = np.ones(len(rows))
    return _herd(pool, k, rng, rows, weights, "uncertain")


def _herd(
    pool: Pool, k: int, rng: np.random.Generator, rows: Rows, weights: npt.NDArray[np.float64], reason: Reason
) -> Selection:
    """Greedy weighted coverage of `rows` by k of them, given what is labelled or pending.

    Exact greedy when there are at most `CANDIDATES` and `POINTS` rows. Above, coverage is measured at points
    drawn in proportion to their weight, and candidates are drawn half so, half uniformly.
    """
    points, representing = coverage.systematic_sample(weights, max(POINTS, _PER_CHOICE * k), rng)
    even = np.full(len(rows), weights.mean())
    offered, _ = coverage.systematic_sample((weights + even) / 2, max(CANDIDATES, _PER_CHOICE * k), rng)
    candidates = _one_per_pending_group(pool, rng.permutation(rows[offered]))
    around = np.flatnonzero((pool.labelled | pool.pending) & ~pool.excluded)
    centres = pool.rows(around)
    sample = pool.rows(rng.permutation(np.flatnonzero(~pool.excluded))[:_WIDTH_SAMPLE])
    sigma = coverage.kernel_width(sample, centres, rng)
    at = pool.rows(rows[points])
    chosen = coverage.greedy_cover(
        pool.rows(candidates),
        at,
        torch.from_numpy(representing).float(),
        coverage.coverage(at, centres, sigma),
        sigma=sigma,
        k=k,
        groups=None if pool.groups is None else pool.groups[candidates],
    )
    picked = candidates[chosen.rows]
    # When nothing is left to cover (copies of what is labelled), the most uncertain ones follow.
    rest = rng.permutation(len(rows))
    rest = rows[rest[np.argsort(-weights[rest], kind="stable")]] if len(picked) < k else rows[:0]
    rest = rest[~np.isin(rest, picked)]
    indices = _one_per_group(pool, np.concatenate([picked, rest]))[:k]
    gain = np.zeros(len(indices))
    gain[: len(picked)] = np.array(chosen.gains) / representing.sum()
    return Selection(indices, gain, _reasons(reason, len(indices)))


def _one_per_pending_group(pool: Pool, rows: Rows) -> Rows:
    """`rows` without those whose group is pending."""
    if pool.groups is None:
        return rows
    group = pool.groups[rows]
    return rows[(group < 0) | ~np.isin(group, pool.groups[pool.pending])]


_SETTLES = "Settles 2009, Active Learning Literature Survey, sec. 3.1"
for _info in (
    StrategyInfo(
        "random",
        _random,
        "Uniform random: what every other strategy is measured against.",
        False,
        "",
    ),
    StrategyInfo(
        "margin",
        _most_uncertain("margin"),
        "The examples whose two likeliest classes are closest together.",
        True,
        _SETTLES,
    ),
    StrategyInfo(
        "entropy",
        _most_uncertain("entropy"),
        "The examples whose prediction is spread over most classes.",
        True,
        _SETTLES,
    ),
    StrategyInfo(
        "least_confidence",
        _most_uncertain("least_confidence"),
        "The examples whose likeliest class is least likely.",
        True,
        _SETTLES,
    ),
    StrategyInfo(
        "maxherding",
        _maxherding,
        "Examples that together represent the whole pool; needs no model, best for the very first labels.",
        False,
        "Bae et al. 2024, arXiv:2407.12212",
    ),
    StrategyInfo(
        "uherding",
        _uherding,
        "Examples that together represent the uncertain part of the pool: uncertain and diverse at once.",
        True,
        "Bae et al. 2024, arXiv:2412.20644",
    ),
):
    register_strategy(_info)
