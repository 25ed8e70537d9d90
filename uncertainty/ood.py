"""Whether a score tells examples like those trained on from foreign ones.

Scores are higher for what looks familiar. `inside` are scores of examples from the distribution trained on,
`outside` of foreign ones.
"""

import numpy as np
import numpy.typing as npt

from .errors import NonFiniteScoreError, ShapeError
from .intervals import Floats
from .selective import auroc

KEPT = 0.95  # share of familiar examples that the threshold of FPR95 accepts
_ROUNDING = 1e-9  # 0.95 * n may come out just above a whole number


def ood_auroc(inside: npt.ArrayLike, outside: npt.ArrayLike) -> float:
    """Chance that a familiar example scores higher than a foreign one, ties counting half.

    Args:
        inside: [n], outside: [m]; finite, higher means more familiar.

    Returns:
        In [0, 1]: 1 apart, 1/2 useless; NaN when either is empty.

    Raises:
        ShapeError; NonFiniteScoreError: a score is NaN or infinite (rows count through both arrays).
    """
    known, foreign = _checked(inside, outside)
    return auroc(np.concatenate([known, foreign]), np.arange(len(known) + len(foreign)) < len(known))


def false_positive_rate(inside: npt.ArrayLike, outside: npt.ArrayLike, kept: float = KEPT) -> float:
    """Share of foreign examples accepted by the strictest threshold that accepts `kept` of the familiar ones (FPR95).

    Accepted is what scores at least the threshold, so foreign examples equal to it count as accepted.

    Args:
        inside, outside: as `ood_auroc`.
        kept: in (0, 1].

    Returns:
        In [0, 1], lower is better; NaN when either is empty.

    Raises:
        ValueError: `kept` out of range; ShapeError, NonFiniteScoreError as `ood_auroc`.

    Paper:
        Liang et al. 2018, arXiv:1706.02690.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"expected a share of familiar examples between 0 and 1 such as 0.95, got {kept}")
    known, foreign = _checked(inside, outside)
    if not len(known) or not len(foreign):
        return float("nan")
    needed = max(1, int(np.ceil(kept * len(known) - _ROUNDING)))
    threshold = np.sort(known)[len(known) - needed]
    return float((foreign >= threshold).mean())


def _checked(inside: npt.ArrayLike, outside: npt.ArrayLike) -> tuple[Floats, Floats]:
    known, foreign = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    if known.ndim != 1 or foreign.ndim != 1:
        raise ShapeError(f"expected scores of shape [n] and [m], got {list(known.shape)} and {list(foreign.shape)}")
    bad = np.flatnonzero(~np.isfinite(np.concatenate([known, foreign])))
    if len(bad):
        raise NonFiniteScoreError("out-of-distribution score", bad.tolist())
    return known, foreign
