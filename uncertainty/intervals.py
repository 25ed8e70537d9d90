"""How far a number measured on n examples can be trusted: the bootstrap.

Axes: n examples, R resamples, M numbers measured at once.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# The ends of a 95 % interval are the 25th numbers from either side: known to about a tenth of the interval's width.
RESAMPLES = 1000


def bootstrap(
    statistic: Callable[[Rows], npt.ArrayLike], n: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """What a statistic would have been on other draws of n examples, imitated by drawing from those at hand.

    Args:
        statistic: row numbers [n], some of them several times -> one number or M of them.
        n: examples, at least one.
        resamples: R, how often to draw.
        seed: the same seed gives the same draws.

    Returns:
        [R, M]; M = 1 for a statistic of one number.

    Raises:
        ValueError: n or R below one.

    Paper:
        Efron 1979.
    """
    if n < 1 or resamples < 1:
        raise ValueError(f"expected at least one example and one resample, got n={n}, resamples={resamples}")
    rng = np.random.default_rng(seed)
    draws = (np.atleast_1d(np.asarray(statistic(rng.integers(0, n, n)), np.float64)) for _ in range(resamples))
    return np.stack(list(draws))


def reflected_interval(
    value: float, draws: npt.ArrayLike, *, confidence: float = 0.95, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    """Interval for what `value` estimates: the spread of `draws` around it, turned over at it.

    Numbers that noise pushes up (calibration errors) are pushed up once more in every resample. Turned over,
    the second push cancels the first; the percentiles themselves would lie above the truth.

    Args:
        value: the number measured; NaN gives (NaN, NaN).
        draws: [R] its bootstrap; NaN ones (no error was drawn) are left out, with none left the answer is `bounds`.
        confidence: coverage aimed at, in (0, 1).
        bounds: the smallest and largest possible value.

    Raises:
        ValueError: confidence out of range.

    Paper:
        Davison and Hinkley 1997, Bootstrap Methods and their Application, sec. 5.2 ("basic" interval).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1 such as 0.95, got {confidence}")
    if np.isnan(value):
        return float("nan"), float("nan")
    known = np.asarray(draws, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return bounds
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return (
        float(np.clip(2 * value - high, *bounds)),
        float(np.clip(2 * value - low, *bounds)),
    )
