"""Learning from skips: which rows look like those that annotators said are none of the classes."""

import numpy as np
import numpy.typing as npt

from .linear_head import LinearHead, fit_linear_head
from .ood import ood_auroc
from .pool import CHUNK, Pool, Rows

_FEWEST = 5  # rows of either kind before anything is learnt
_MOST = 2_000  # rows of either kind that are looked at
_FOLDS = 5
_RIDGE = 0.1  # rows have length one
_BELIEVED = 0.8  # area under the ROC curve on rows not seen


def like_rejected(pool: Pool, seed: int) -> Rows:
    """Selectable rows that look like what annotators rejected rather than like what they labelled, ascending.

    A linear classifier tells the two apart. It is believed only if it ranks rows it has not seen (five folds) well
    enough: people also skip what is hard, and that looks like everything else.
    """
    nothing = np.empty(0, np.int64)
    if pool.rejected is None:
        return nothing
    rng = np.random.default_rng([seed, 5])
    yes = rng.permutation(np.flatnonzero(pool.rejected))[:_MOST]
    no = rng.permutation(np.flatnonzero(pool.labelled & ~pool.excluded & ~pool.rejected))[:_MOST]
    if min(len(yes), len(no)) < _FEWEST:
        return nothing
    told = np.concatenate([yes, no])
    y = np.repeat(np.array([1, 0]), [len(yes), len(no)])
    x = pool.features[told].astype(np.float64)
    fold = np.concatenate([np.arange(len(yes)), np.arange(len(no))]) % _FOLDS
    held_out = np.empty(len(y))
    for number in range(_FOLDS):
        seen = fold != number
        head = fit_linear_head(x[seen], y[seen], 2, regularisation=_RIDGE)
        held_out[~seen] = _log_odds(head, x[~seen])
    if ood_auroc(-held_out[y == 0], -held_out[y == 1]) < _BELIEVED:
        return nothing
    head = fit_linear_head(x, y, 2, regularisation=_RIDGE)
    rows = np.flatnonzero(pool.selectable)
    odds = [
        _log_odds(head, pool.features[rows[at : at + CHUNK]].astype(np.float32)) for at in range(0, len(rows), CHUNK)
    ]
    return rows[np.concatenate(odds) > 0] if odds else nothing


def _log_odds(head: LinearHead, x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    logits = head.logits(x)
    return logits[:, 1] - logits[:, 0]
