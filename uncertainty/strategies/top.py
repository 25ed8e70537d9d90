"""Uniform random choice, and the most uncertain first by any registered score, for sure or by chance."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..pool import Pool, Rows
from ..pool_scores import ScoreInfo, list_scores, pool_score
from ..selection import Selection, Strategy, StrategyInfo, one_per_group, register_strategy, shuffled

_POWER = 1.0  # beta of the power form: 0 is uniform, large is top-k


def _random(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    left = int(pool.selectable.sum())
    rows = shuffled(pool, rng)[:k]
    return Selection.of(rows, np.zeros(len(rows)), "explore", 1 / (left - np.arange(len(rows))))


def _most_uncertain(method: str) -> Strategy:
    def choose(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        rows = rng.permutation(np.flatnonzero(pool.selectable))  # a stable sort leaves ties in this order
        uncertainty = pool_score(method, pool, rows).astype(np.float64)
        order = np.argsort(-uncertainty, kind="stable")
        chosen, gain = _first_of_groups(pool, rows[order], uncertainty[order], k)
        return Selection.of(chosen, gain - _zero(uncertainty), "uncertain")

    return choose


def _power(method: str) -> Strategy:
    """Draw without replacement in proportion to score^beta: log scores plus Gumbel noise, the largest k."""

    def choose(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
        rows = rng.permutation(np.flatnonzero(pool.selectable))
        uncertainty = pool_score(method, pool, rows).astype(np.float64)
        weight = np.maximum(uncertainty - _zero(uncertainty), 1e-12) ** _POWER
        keys = np.log(weight) + rng.gumbel(size=len(rows))
        order = np.argsort(-keys, kind="stable")
        chosen, _ = _first_of_groups(pool, rows[order], uncertainty[order], k)
        place = {row: i for i, row in enumerate(rows.tolist())}
        at = np.array([place[row] for row in chosen.tolist()], np.int64)
        # Plackett-Luce: each draw is in proportion to what is left (passed-over copies stay in the sum: a bound).
        left = weight.sum() - np.concatenate([[0.0], np.cumsum(weight[at])[:-1]])
        return Selection.of(
            chosen,
            uncertainty[at] - _zero(uncertainty),
            "uncertain",
            np.minimum(1.0, weight[at] / np.maximum(left, weight[at])),
        )

    return choose


def _zero(uncertainty: npt.NDArray[np.float64]) -> float:
    """What gains are measured from: scores that may be negative (energy, distance to a boundary) from their least."""
    return min(0.0, float(uncertainty.min(initial=0.0)))


def _first_of_groups(
    pool: Pool, rows: Rows, values: npt.NDArray[np.float64], k: int
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """The first k of `rows` that are no copy of an earlier one, and their values."""
    chosen = one_per_group(pool, rows)[:k]
    if pool.groups is None:
        return chosen, values[:k]
    by_row = dict(zip(rows.tolist(), values.tolist(), strict=True))
    return chosen, np.array([by_row[row] for row in chosen.tolist()], dtype=np.float64)


def _register(info: ScoreInfo) -> None:
    forms: tuple[tuple[str, Callable[[str], Strategy], str, str], ...] = (
        (info.name, _most_uncertain, f"Most uncertain first by {info.summary}.", info.paper),
        (
            f"power_{info.name}",
            _power,
            f"Drawn by chance in proportion to {info.summary}: as good in batches as careful ones, at no cost.",
            "Kirsch et al. 2021, arXiv:2106.12059",
        ),
    )
    for name, make, summary, paper in forms:
        register_strategy(
            StrategyInfo(
                name,
                make(info.name),
                summary,
                info.needs_predictions,
                paper,
                needs_labels=info.needs_labels,
                needs_samples=info.needs_samples,
            )
        )


register_strategy(
    StrategyInfo("random", _random, "Uniform random: what every other strategy is measured against.", False, "")
)
for _score in list_scores():
    _register(_score)
