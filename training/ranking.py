"""The order in which examples are asked for, as a function of values: no files, no clock.

    pending      already handed out: kept in front, where they are
    front        chosen by the strategy, with a share of random ones, one of each near-duplicate group
    rest         by uncertainty
    audit        a share of the places until the audit slice is large enough, in hash order, blind to every score
    unread       without an embedding: last

N  embedded examples    D  dimensions for selection    C  classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .answers import HeadAnswers
from .linear import Floats

if TYPE_CHECKING:
    from uncertainty.layers import Layers
    from uncertainty.pool import Pool

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Reason = Literal["uncertain", "diverse", "explore", "audit", "pending", "unread", "probe"]
REASONS: tuple[Reason, ...] = get_args(Reason)
_CODE = {reason: np.int8(code) for code, reason in enumerate(REASONS)}
# Who fills a place: a strategy may give either of two reasons.
_LAYER = {reason: int(_CODE["uncertain" if reason == "diverse" else reason]) for reason in REASONS}

# Strategies whose own score also orders what follows the front; the others are followed by margin.
_SCORE_OF = {"entropy": "entropy", "least_confidence": "least_confidence"}
_SPARE = 0.25  # more choices than needed, because some turn out to be near-duplicates
_DUPLICATE = 0.98  # cosine
_AUDIT_SHARE = 0.1


@dataclass(frozen=True)
class AuditStream:
    """Which examples belong to the audit slice: a fixed share, by hash of the id alone.

    Decided before any score exists and never changed by one, which is what makes the numbers measured on it honest.
    """

    share: float = _AUDIT_SHARE
    salt: int = 0

    def __call__(self, example_id: int) -> bool:
        return bool(self.mask(np.array([example_id], np.int64))[0])

    def mask(self, example_ids: Ids) -> Mask:
        """[n] ids -> [n], whether each is in the slice."""
        # The leading 53 bits as a number in [0, 1): exact in float64.
        mask: Mask = (hash_ids(example_ids, self.salt) >> np.uint64(11)) * 2.0**-53 < self.share
        return mask


def hash_ids(example_ids: Ids, salt: int = 0) -> NDArray[np.uint64]:
    """[n] ids -> [n] well-mixed 64-bit numbers, the same on every machine (SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = example_ids.astype(np.uint64) + np.uint64(salt % 2**64) * np.uint64(0xD1342543DE82EF95)
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Shares:
    """Shares of the front that are not the strategy's own; see `uncertainty.layers.Layers`."""

    explore: float = 0.1
    quota: float = 0.0
    veto: float = 0.0
    skips: bool = True  # what looks like skipped examples comes last


@dataclass(frozen=True, eq=False)
class Candidates:
    """All embedded examples of a project, and what is known of each. A row may be none of the four."""

    example_ids: Ids  # [N], distinct
    features: Floats  # [N, D], rows of length one
    log_probabilities: Floats | None  # [N, C] calibrated; None before the first version
    labelled: Mask  # [N] trained on
    pending: Mask  # [N] handed out, not answered
    audit: Mask  # [N] of the audit slice, labelled or not
    open: Mask  # [N] still to be labelled, pending and audit ones included
    labels: Ids | None = None  # [N] class index of what was trained on, -1 elsewhere; None: not known
    rejected: Mask | None = None  # [N] skipped by annotators: none of the classes; labelled, or not open


@dataclass(frozen=True, eq=False)
class Odds:
    """With what chance each place was filled as it was; arrays of one length n.

    A place goes to a layer: the audit slice, chance, a probe, or the strategy (its quota included). `share` is what the
    layer gets of the places, `propensity` is given the layer and what the same layer took before. So their product is
    the chance of the place as it was filled. Estimates without bias need a layer that may take any example: chance, or
    a strategy that draws; what chance drew in one order is a plain random sample of what was left. NaN where nothing
    was chosen: pending examples keep the odds they had, those asked last have none.
    """

    propensity: NDArray[np.float64]  # in (0, 1]
    share: NDArray[np.float64]  # in (0, 1]
    left: NDArray[np.int32]  # examples that the layer could take from when the order was made; 0: nothing was chosen

    @classmethod
    def unknown(cls, n: int) -> Odds:
        """Nothing was chosen at any of n places."""
        return cls(np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.int32))

    @classmethod
    def joined(cls, *parts: Odds) -> Odds:
        """Places of one after those of the other."""
        return cls(
            np.concatenate([part.propensity for part in parts]),
            np.concatenate([part.share for part in parts]),
            np.concatenate([part.left for part in parts]),
        )

    def take(self, places: Ids) -> Odds:
        """Some places, in the order given."""
        return Odds(self.propensity[places], self.share[places], self.left[places])


@dataclass(frozen=True)
class Order:
    """Rows of `Candidates` from first to last, each row that is open exactly once."""

    rows: Ids
    reasons: NDArray[np.int8]  # index in REASONS
    odds: Odds
    note: str = ""  # what the strategy measured in the pool, for people


@dataclass(frozen=True)
class Ranked:
    """One place in the order."""

    example_id: int
    confidence: float
    label: int | None
    reason: Reason


@dataclass(frozen=True, eq=False)
class Ranking:
    """All unlabelled examples, the one to ask for next first; arrays of one length n."""

    version: str | None
    example_ids: Ids
    confidence: NDArray[np.float32]  # calibrated chance that the answer is right, of several the mean; 0: no version
    label: NDArray[np.int32]  # index in the classes of the first head, -1 for none
    reason: NDArray[np.int8]  # index in REASONS
    odds: Odds
    note: str = ""  # what the strategy measured in the pool, for people
    answers: tuple[HeadAnswers, ...] = ()  # of each head of a version that asks more than one single choice
    worth: NDArray[np.int8] | None = None  # place in `answers` of the question whose answer is worth most, -1 for none

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, place: int) -> Ranked:
        label = int(self.label[place])
        return Ranked(
            int(self.example_ids[place]),
            float(self.confidence[place]),
            None if label < 0 else label,
            REASONS[int(self.reason[place])],
        )


def order_candidates(
    pool: Candidates, *, strategy: str, front: int, layers: Shares, audit_share: float, seed: int
) -> Order:
    """Order every open row.

    Args:
        strategy: name from `uncertainty.strategies`.
        front: places chosen by the strategy, random and audit ones among them.
        layers: shares of those that go to chance, to rare classes, and to the veto.
        audit_share: share of all places that audit examples get while there are any; 0 puts them last.
    Raises:
        uncertainty.errors.UnknownMethodError, PoolError.
    """
    from uncertainty.layers import Layers, vetoed_rows

    pending = np.flatnonzero(pool.open & pool.pending)
    audit = np.flatnonzero(pool.open & ~pool.pending & pool.audit)
    audit = audit[np.argsort(hash_ids(pool.example_ids[audit], salt=1), kind="stable")]
    view, wrap = _view(pool), Layers(layers.explore, layers.quota, layers.veto, layers.skips)
    places = front - min(len(audit), round(front * audit_share))
    vetoed = np.empty(0, np.int64) if strategy == "random" else vetoed_rows(view, wrap, seed)
    chosen, why, by_strategy, note = _front(pool, view, vetoed, strategy, places, wrap, seed)
    left = pool.open & ~pool.pending & ~pool.audit
    left[chosen] = False
    rest = _by_uncertainty(pool, np.flatnonzero(left), strategy, seed)
    doubtful = np.isin(rest, vetoed)
    rest = np.concatenate([rest[~doubtful], rest[doubtful]])
    # Without predictions the rest is in random order, as for the strategy that wants just that.
    blind = strategy == "random" or not _has_predictions(pool)
    rest_why = _CODE["explore" if blind else "uncertain"]
    given = pool.labelled | (pool.open & pool.pending)
    place = _audit_places(
        len(chosen) + len(rest),
        len(audit),
        audit_share,
        given=int(given.sum()),
        audited=int((given & pool.audit).sum()),
    )
    turn = np.empty(len(chosen) + len(rest) + len(audit), np.int64)  # which of the three lists stands at each place
    others = np.ones(len(turn), bool)
    others[place] = False
    turn[others], turn[place] = np.arange(others.sum()), others.sum() + np.arange(len(audit))
    rows = np.concatenate([chosen, rest, audit])[turn]
    reasons = np.concatenate([why, np.full(len(rest), rest_why), np.full(len(audit), _CODE["audit"])])[turn]
    even = np.concatenate([_uniform(int((~doubtful).sum())), _uniform(int(doubtful.sum()))])
    odds = _odds(by_strategy, even if blind else np.ones(len(rest)), len(audit), audit_share).take(turn)
    return Order(
        rows=np.concatenate([pending, rows]),
        reasons=np.concatenate([np.full(len(pending), _CODE["pending"]), reasons]),
        odds=Odds.joined(Odds.unknown(len(pending)), odds),
        note="; ".join(part for part in (note, _said_of(vetoed)) if part),
    )


def _said_of(vetoed: Ids) -> str:
    return f"{len(vetoed)} look like what was skipped or like nothing else, and are asked last" if len(vetoed) else ""


def _odds(by_strategy: Odds, by_rest: NDArray[np.float64], audit: int, audit_share: float) -> Odds:
    """Of the front, what follows it with its propensities, and the audit examples, one after the other."""
    gets, rest = audit_share if audit else 0.0, len(by_rest)
    main = len(by_strategy.left) + rest
    return Odds.joined(
        Odds(by_strategy.propensity, by_strategy.share * (1 - gets), by_strategy.left),
        Odds(by_rest, np.full(rest, 1 - gets), np.full(rest, main, np.int32)),
        # The hash that orders the audit examples knows nothing of them: each that is left is as likely.
        Odds(_uniform(audit), np.full(audit, audit_share or 1.0), np.full(audit, audit, np.int32)),
    )


def _uniform(n: int) -> NDArray[np.float64]:
    """[n] propensities of n examples in random order."""
    return 1 / np.arange(n, 0, -1)


def _view(pool: Candidates) -> Pool:
    """What strategies see of it: nothing of the audit slice."""
    from uncertainty.strategies import Pool

    return Pool(
        features=pool.features,
        log_probs=None if pool.log_probabilities is None else pool.log_probabilities[:, None, :],
        labelled=pool.labelled & ~pool.audit,
        pending=pool.pending,
        excluded=(pool.audit | ~(pool.labelled | pool.open)) & ~pool.pending,
        labels=pool.labels,
        rejected=None if pool.rejected is None else pool.rejected & ~pool.audit,
    )


def _front(
    pool: Candidates, view: Pool, vetoed: Ids, strategy: str, k: int, layers: Layers, seed: int
) -> tuple[Ids, NDArray[np.int8], Odds, str]:
    """Up to k rows by the strategy, why, with what odds, and what it noted; fewer where near-duplicates leave no more.

    Shares of the layers are those in the whole selection: near-duplicates are left out whoever chose them.
    """
    from uncertainty import strategies
    from uncertainty.layers import select_in_layers

    strategies.get_strategy(strategy)  # a wrong name is an error even when nothing is left to choose
    left = int(view.selectable.sum()) if view.size else 0
    k = min(k, left)
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int8), Odds.unknown(0), ""
    wanted = k
    while True:
        wanted = min(left, wanted + int(_SPARE * wanted) + 8)
        selection = select_in_layers(strategy, view, wanted, seed=seed, layers=layers, vetoed=vetoed)
        distinct = _distinct(pool, selection.indices)
        if len(distinct) >= k or wanted == left:
            break
        wanted *= 2
    by_layer = np.array([_LAYER[reason] for reason in selection.reason])
    share = (np.bincount(by_layer, minlength=len(REASONS)) / max(len(selection), 1))[by_layer]
    chosen = selection.take(distinct[:k])
    odds = Odds(chosen.propensity, share[distinct[:k]], np.full(len(chosen), left, np.int32))
    return chosen.indices, np.array([_CODE[reason] for reason in chosen.reason], np.int8), odds, chosen.note


def _distinct(pool: Candidates, rows: Ids) -> Ids:
    """Positions in `rows` that are not a near-duplicate of an earlier one or of a pending example."""
    from uncertainty.duplicates import near_duplicate_groups

    handed_out = np.flatnonzero(pool.pending)
    group = near_duplicate_groups(pool.features[np.concatenate([handed_out, rows])], _DUPLICATE)
    first = np.zeros(len(group), bool)
    first[np.unique(group, return_index=True)[1]] = True
    return np.flatnonzero((first | (group < 0))[len(handed_out) :])


def _by_uncertainty(pool: Candidates, rows: Ids, strategy: str, seed: int) -> Ids:
    """`rows` from most to least uncertain; ties, and everything without predictions, in random order."""
    rows = np.random.default_rng([seed, 2]).permutation(rows)
    if strategy == "random" or not _has_predictions(pool) or not len(rows):
        return rows
    import torch

    from uncertainty.registry import score

    assert pool.log_probabilities is not None
    log_p = torch.from_numpy(pool.log_probabilities[rows])[:, None, :]
    uncertainty = score(_SCORE_OF.get(strategy, "margin"), log_p).numpy()
    return rows[np.argsort(-uncertainty, kind="stable")]


def _has_predictions(pool: Candidates) -> bool:
    return pool.log_probabilities is not None and pool.log_probabilities.shape[1] >= 2


def _audit_places(others: int, audit: int, share: float, *, given: int, audited: int) -> Ids:
    """Places of the audit examples, counted from the next example that is asked for.

    The order is made anew after each label, so a place counts by how many labels were given before: the audit slice
    gets its share of all labels, whether one is taken from each order or a hundred. Arrears are made up for in every
    second place.

    Args:
        given: labels given or handed out before, `audited` of them for audit examples.
    """
    total = others + audit
    if share <= 0:
        return np.arange(others, total)
    number = np.arange(audit)
    due = np.ceil((audited + number + 0.5) / share - given - 0.5).astype(np.int64)
    spaced = np.maximum.accumulate(np.maximum(due, 0) - 2 * number) + 2 * number
    # Those that would fall beyond the end stand there, in order.
    return np.minimum(spaced, np.arange(others, total))


def to_ranking(
    version: str | None,
    example_ids: Ids,
    log_probabilities: Floats | None,
    rows: Ids,
    reasons: NDArray[np.int8],
    unread: Ids,
    odds: Odds | None = None,
) -> Ranking:
    """The ranking of `rows` of the embedded examples ([N] ids, [N, C]), with ids without an embedding at the end.

    `odds`: of the leading rows, those that were chosen; what follows them has none.
    """
    n, m = len(rows), len(unread)
    confidence = np.zeros(n + m, np.float32)
    label = np.full(n + m, -1, np.int32)
    if log_probabilities is not None:
        label[:n] = log_probabilities[rows].argmax(axis=1)
        confidence[:n] = np.exp(log_probabilities[rows].max(axis=1))
        # Nothing is known of what cannot be read. It comes last, and wire scores rise along the order: any lower
        # number here would pull down the scores of what stands before it.
        confidence[n:] = confidence[:n].max(initial=0)
    unread_reasons = np.full(m, _CODE["unread"], np.int8)
    return Ranking(
        version,
        np.concatenate([example_ids[rows], unread]),
        confidence,
        label,
        np.concatenate([reasons, unread_reasons]),
        Odds.unknown(n + m) if odds is None else Odds.joined(odds, Odds.unknown(n + m - len(odds.left))),
    )


def unread_only(version: str | None, unread: Ids) -> Ranking:
    """A ranking while nothing is embedded: as given."""
    nothing = np.empty(0, np.int64)
    return to_ranking(version, nothing, None, nothing, np.empty(0, np.int8), unread)
