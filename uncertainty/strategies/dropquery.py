"""DropQuery: rows whose prediction does not survive dropout of their features, one for each cluster of them."""

import numpy as np
import torch
from torch import Tensor

from ..laplace import LinearPosterior
from ..pool import Pool, Rows
from ..predictives import posterior_of
from ..selection import Selection, StrategyInfo, register_strategy, shuffled
from .cluster_margin import MOST_ROWS, nearest_to_centres, topped_up

_VOTES = 3  # predictions under dropout, as published
_DROPPED = 0.75  # share of features set to zero, as published
_CANDIDATES_PER_CHOICE = 25  # the bar is lowered until there are so many
_VOTED = 65_536  # rows that votes are taken on, or `_PER_CHOICE` rows a choice where that is more
_PER_CHOICE = 100
_BLOCK = 4096  # rows whose votes are taken at once: 19 MB at a width of 384


def _dropquery(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = shuffled(pool, rng)[: min(max(_VOTED, _PER_CHOICE * k), MOST_ROWS)]
    if not pool.tells_classes:
        places, share = nearest_to_centres(pool, rows, k, rng)
        return topped_up(pool, Selection.of(rows[places], share, "diverse"), k, rng)
    against = votes_against(pool, rows, posterior_of(pool), rng)
    candidates = np.flatnonzero(against >= _bar(against, _CANDIDATES_PER_CHOICE * k))
    places, _ = nearest_to_centres(pool, rows[candidates], k, rng)
    chosen = candidates[places]
    return topped_up(pool, Selection.of(rows[chosen], against[chosen] / _VOTES, "uncertain"), k, rng)


def votes_against(pool: Pool, rows: Rows, head: LinearPosterior, rng: np.random.Generator) -> Rows:
    """How many of three predictions under dropout differ from the one without, [n] in 0..3.

    Dropout zeroes three quarters of the features and scales the others up, each row and vote on its own.
    """
    out = np.empty(len(rows), np.int64)
    for at in range(0, len(rows), _BLOCK):
        x = pool.rows(rows[at : at + _BLOCK])
        kept = torch.from_numpy(rng.random((len(x), _VOTES, x.shape[1]), dtype=np.float32) >= _DROPPED)
        dropped: Tensor = x[:, None] * kept / (1 - _DROPPED)  # [n, votes, D]
        voted = head.logits(dropped.flatten(0, 1)).argmax(-1).reshape(len(x), _VOTES)
        said = head.logits(x).argmax(-1)
        out[at : at + len(x)] = (voted != said[:, None]).sum(1).numpy()
    return out


def _bar(against: Rows, wanted: int) -> int:
    """Votes that make a candidate: a majority, or fewer so that `wanted` rows have them."""
    bar = _VOTES // 2 + 1
    while bar > 0 and int((against >= bar).sum()) < wanted:
        bar -= 1
    return bar


register_strategy(
    StrategyInfo(
        "dropquery",
        _dropquery,
        "Examples whose predicted class changes when features are dropped, one of each kind; cluster centres at first.",
        False,
        "Gupte et al. 2024, arXiv:2401.14555",
        exactness=f"all rows up to {_VOTED}; a sample of that size, or {_PER_CHOICE} rows a choice, above",
    )
)
