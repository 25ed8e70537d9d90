"""Choose which examples of a pool to ask for next. Importing this package registers every strategy.

What a strategy is and promises: `selection`. Each module here holds one family.
"""

from .. import feature_scores  # noqa: F401  (registers scores, which `top` makes strategies of)
from ..pool import Pool
from ..selection import (
    REASONS,
    Reason,
    Selection,
    Strategy,
    StrategyInfo,
    get_strategy,
    interleave,
    list_strategies,
    register_strategy,
    select,
)
from . import (
    alfamix,
    auto,
    badge,
    bait,
    batchbald,
    cluster_margin,
    core_set,
    dropquery,
    galaxy,
    herding,
    probcover,
    top,
    typiclust,
)

__all__ = [
    "REASONS",
    "Pool",
    "Reason",
    "Selection",
    "Strategy",
    "StrategyInfo",
    "alfamix",
    "auto",
    "badge",
    "bait",
    "batchbald",
    "cluster_margin",
    "core_set",
    "dropquery",
    "galaxy",
    "get_strategy",
    "herding",
    "interleave",
    "list_strategies",
    "probcover",
    "register_strategy",
    "select",
    "top",
    "typiclust",
]
