"""What a strategy is: its contract, the registry of names, and `select`, the one way to run one.

A strategy sees a `Pool` and returns a `Selection`: at most k rows, best first. All of them keep these
promises: never a row that is labelled, pending or excluded; at most one row of a near-duplicate group, and
none of a group that is pending; the same seed gives the same answer; ties are broken by the seed. Without
predictions (no model yet, or a single class) those that need them choose by coverage alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .coverage import systematic_sample
from .errors import EmptyPool, PoolError, PoolExhausted, UnknownMethodError
from .named import Registry
from .pool import POSTERIORS, Pool, Rows

Reason = Literal["uncertain", "diverse", "explore", "probe"]
REASONS: tuple[Reason, ...] = get_args(Reason)
Strategy = Callable[[Pool, int, np.random.Generator], "Selection"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows to ask for, first to last.

    Attributes:
        indices: [m] rows of the pool, m <= k.
        gain: [m] >= 0. Coverage strategies: share of the (weighted) pool newly covered, in [0, 1];
            uncertainty strategies: the score in its own unit; random choices: 0.
        reason: [m] why each was chosen.
        propensity: [m] in (0, 1], probability with which this row was taken, given who filled the place (the
            strategy, chance, the quota, the probe) and the rows that the same one took before it: 1 for a choice
            without chance, 1/(rows left) for a uniform one. What estimates from a queue that is not uniform divide
            by (Farquhar et al. 2021, arXiv:2101.11665). Whoever wants the chance before it was known who fills the
            place multiplies by the share of the places that `reason` has; the quota's count as the strategy's.
        note: what a strategy that adapts to the pool measured, and what it did about it; for people.
    """

    indices: Rows
    gain: npt.NDArray[np.float64]
    reason: tuple[Reason, ...]
    propensity: npt.NDArray[np.float64]
    note: str = ""

    @classmethod
    def of(
        cls,
        rows: Rows,
        gain: npt.ArrayLike,
        reason: Reason,
        propensity: npt.ArrayLike | None = None,
    ) -> "Selection":
        """A selection with one reason for all rows; `propensity` None: chosen without chance."""
        m = len(rows)
        sure = np.ones(m) if propensity is None else np.asarray(propensity, np.float64)
        return cls(np.asarray(rows, np.int64), np.asarray(gain, np.float64), (reason,) * m, sure)

    @classmethod
    def empty(cls) -> "Selection":
        """Nothing chosen."""
        return cls.of(np.empty(0, np.int64), np.empty(0), "explore")

    def take(self, places: npt.NDArray[np.int64]) -> "Selection":
        """Some places of the selection, in the order given."""
        return Selection(
            self.indices[places],
            self.gain[places],
            tuple(self.reason[place] for place in places.tolist()),
            self.propensity[places],
            self.note,
        )

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
    needs_labels: bool = False  # uses `Pool.labels` (itself, or for posterior samples); without two classes, maxherding
    exactness: str = "exact"  # what is given up on large pools
    needs_samples: bool = False  # uses posterior samples: "name@posterior" says which, one of `pool.POSTERIORS`


_STRATEGIES = Registry[StrategyInfo]("strategy")
register_strategy, list_strategies = _STRATEGIES.register, _STRATEGIES.list


def get_strategy(name: str) -> StrategyInfo:
    """The strategy of that name; "bald@dropout" is bald with samples of the dropout posterior (`predictives.MEANING`).

    Raises:
        UnknownMethodError: lists the known names; no such posterior, or a strategy that draws no samples.
    """
    base, at, wanted = name.partition("@")
    info = _STRATEGIES.get(base)
    if not at:
        return info
    posterior = next((known for known in POSTERIORS if known == wanted), None)
    if posterior is None or not info.needs_samples:
        drawing = [other.name for other in _STRATEGIES.list() if other.needs_samples]
        raise UnknownMethodError(name, [f"{other}@{'|'.join(POSTERIORS)}" for other in drawing])

    def fn(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        return info.fn(replace(pool, posterior=posterior), k, rng)

    return replace(info, name=name, fn=fn)


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
        return Selection.empty()
    if pool.size == 0:
        raise EmptyPool
    left = int(pool.selectable.sum())
    if not left:
        raise PoolExhausted(asked=k, left=left)
    if (info.needs_predictions and not pool.has_predictions) or (info.needs_labels and not pool.tells_classes):
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
    drawn = shuffled(pool, rng)[:count]
    count = len(drawn)
    taken = one_per_group(pool, np.concatenate([drawn, selection.indices]))
    kept = np.isin(selection.indices, taken[count:]) & ~np.isin(selection.indices, drawn)
    exploit = np.flatnonzero(kept)[: length - count]
    total = count + len(exploit)
    is_random = spread(count, total, rng)
    order = np.empty(total, dtype=np.int64)  # places in the two lists put one after the other
    order[is_random], order[~is_random] = np.arange(count), count + exploit
    left = int(pool.selectable.sum())
    random = Selection.of(drawn, np.zeros(count), "explore", 1 / (left - np.arange(count)))
    return concatenate(random, selection).take(order)


def spread(count: int, total: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """[total] bool: one random place in each of `count` stretches of whole places, as equal as they can be."""
    edges = np.floor(np.linspace(0, total, count + 1)).astype(np.int64)
    mask = np.zeros(total, dtype=bool)
    mask[rng.integers(edges[:-1], edges[1:])] = True
    return mask


def concatenate(first: Selection, second: Selection) -> Selection:
    """One selection after the other."""
    return Selection(
        np.concatenate([first.indices, second.indices]),
        np.concatenate([first.gain, second.gain]),
        first.reason + second.reason,
        np.concatenate([first.propensity, second.propensity]),
        first.note or second.note,
    )


def shuffled(pool: Pool, rng: np.random.Generator) -> Rows:
    """Selectable rows in random order, one of each group, none of a pending group."""
    return one_per_group(pool, rng.permutation(np.flatnonzero(pool.selectable)))


def thinned(pool: Pool, rows: Rows, size: int, rng: np.random.Generator) -> Rows:
    """`rows` in random order, or `size` of them where there are more: each with the same chance, and where there are
    predictions each predicted class by its share.
    """
    rows = rng.permutation(rows)
    if len(rows) <= size:
        return rows
    if not pool.has_predictions:
        return rows[:size]
    rows = rows[np.argsort(pool.likeliest_class(rows), kind="stable")]
    drawn, _ = systematic_sample(np.ones(len(rows)), size, rng)
    return rng.permutation(rows[drawn])


def one_per_group(pool: Pool, rows: Rows) -> Rows:
    """`rows` without those whose group came earlier or is pending."""
    if pool.groups is None:
        return rows
    group = pool.groups[rows]
    _, first = np.unique(group, return_index=True)
    keep = group < 0
    keep[first] = True
    keep &= (group < 0) | ~np.isin(group, pool.groups[pool.pending])
    return rows[keep]


def one_per_pending_group(pool: Pool, rows: Rows) -> Rows:
    """`rows` without those whose group is pending."""
    if pool.groups is None:
        return rows
    group = pool.groups[rows]
    return rows[(group < 0) | ~np.isin(group, pool.groups[pool.pending])]
