"""`auto`: look at the pool, let strategies that suit it filter candidates, and let coverage of the uncertain choose.

After REFINE (Huseljic et al., arXiv:2511.22344): several strategies each propose from random subsets, what they
propose is the new, smaller pool, and UHerding picks from it. Nothing is trained for it and nothing is tuned per data
set. What is ours: two levels instead of five, and which strategies propose depends on what was measured, and is said.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..layers import LOPSIDED
from ..pool import Pool, Rows
from ..selection import Selection, StrategyInfo, register_strategy, select
from .herding import by_margin, herd

_SAMPLE = 2048  # rows that redundancy is measured on
_COPY = 0.98  # cosine from which two examples count as copies
_REDUNDANT = 0.2  # share of copies from which strategies that look at single examples may not propose
_SUBSET = 2_000  # rows of a random subset at the first level
_SHARE = 0.4  # of what is left, at the second level
_TIMES = 4  # proposals a place, each level
_ROUNDS = (4, 2)  # subsets a strategy sees at each level


@dataclass(frozen=True)
class Diagnosis:
    """What was measured in a pool, and which strategies propose because of it.

    Attributes:
        copies: share of rows with a copy among 2,048 random ones, scaled to the pool's size where that is larger.
        lopsided: most predicted class over least.
        proposers: names of strategies.
        why: one sentence.
    """

    copies: float
    lopsided: float
    proposers: tuple[str, ...]
    why: str


def diagnose(pool: Pool, rng: np.random.Generator) -> Diagnosis:
    """Measure redundancy and imbalance of the selectable rows, and choose who proposes."""
    rows = rng.permutation(np.flatnonzero(pool.selectable))[:_SAMPLE]
    x = pool.rows(rows)
    cosine = x @ x.T
    cosine.fill_diagonal_(-1)
    copies = float((cosine.amax(1) > _COPY).float().mean()) if len(rows) > 1 else 0.0
    predicted = np.bincount(pool.likeliest_class(rows), minlength=pool.classes)
    lopsided = float(predicted.max() / max(1, predicted.min()))
    proposers = ["uherding", "badge", "kmeans_margin", "maxherding"]
    said = []
    if copies <= _REDUNDANT:
        proposers += ["margin", "power_margin"]
    else:
        said.append(f"{copies:.0%} of the examples have a copy: no choice by single scores")
    if lopsided > LOPSIDED and pool.tells_classes:
        proposers.append("galaxy")
        said.append(f"the most predicted class is {lopsided:.0f} times the least: one proposer aims at equal classes")
    why = "; ".join(said) or "neither copies nor lopsided classes: all propose"
    return Diagnosis(copies, lopsided, tuple(proposers), why)


def _auto(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    found = diagnose(pool, rng)
    candidates = np.flatnonzero(pool.selectable)
    for level, rounds in enumerate(_ROUNDS):
        size = _SUBSET if level == 0 else max(_TIMES * k, int(_SHARE * len(candidates)))
        if len(candidates) <= max(size, _TIMES * k):
            continue
        candidates = _proposed(pool, candidates, max(size, 2 * k), k, rounds, found.proposers, rng)
    chosen = herd(pool, k, rng, *by_margin(pool, rng), "uncertain", candidates)
    return replace(chosen, note=found.why)


def _proposed(
    pool: Pool, candidates: Rows, size: int, k: int, rounds: int, proposers: tuple[str, ...], rng: np.random.Generator
) -> Rows:
    """The union of what each strategy picks from its own random subsets, sorted; at least k rows."""
    each = max(1, -(-_TIMES * k // (rounds * len(proposers))))
    picked: list[Rows] = []
    for name in proposers:
        for _ in range(rounds):
            subset = np.sort(rng.permutation(candidates)[:size])
            picked.append(subset[_select_within(pool, subset, name, each, rng)])
    union = np.unique(np.concatenate(picked))
    if len(union) < k:
        rest = np.setdiff1d(candidates, union)
        union = np.union1d(union, rng.permutation(rest)[: k - len(union)])
    return union


def _select_within(pool: Pool, subset: Rows, name: str, k: int, rng: np.random.Generator) -> Rows:
    """Places in `subset` that a strategy picks, given everything that is labelled or pending in the whole pool."""
    around = np.flatnonzero((pool.labelled | pool.pending) & ~pool.excluded)
    rows = np.concatenate([subset, around])
    small = Pool(
        features=pool.features[rows],
        log_probs=None if pool.log_probs is None else pool.log_probs[rows],
        labelled=pool.labelled[rows],
        pending=pool.pending[rows],
        excluded=np.zeros(len(rows), bool),
        groups=None if pool.groups is None else pool.groups[rows],
        labels=None if pool.labels is None else pool.labels[rows],
    )
    return select(name, small, k, seed=int(rng.integers(2**31))).indices


register_strategy(
    StrategyInfo(
        "auto",
        _auto,
        "Strategies that suit the pool propose, coverage of its uncertain part chooses among them.",
        True,
        "after Huseljic et al. 2025, arXiv:2511.22344",
        exactness="proposals from random subsets of 2,000 rows; the choice as uherding",
    )
)
