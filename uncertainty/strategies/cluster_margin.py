"""Uncertain rows spread over clusters: Cluster-Margin, k-means-margin and CLUE."""

import numpy as np
import numpy.typing as npt

from .. import clustering
from ..coverage import systematic_sample
from ..pool import CHUNK, Pool, Rows
from ..pool_scores import pool_score
from ..selection import Selection, StrategyInfo, concatenate, one_per_group, register_strategy, shuffled

OVERSAMPLING = 10  # beta: the least certain beta * k rows are the candidates (both papers)
_ROWS_PER_CLUSTER = 10  # average size of the clusters that Cluster-Margin spreads over
_LINKED_SWEEPS = 5  # Lloyd iterations for many small clusters: their borders hardly matter
_PER_CHOICE = 8  # rows that CLUE clusters for each one chosen, at least
MOST_ROWS = 131_072  # rows held at once for large k: 200 MB of float32 at a width of 384


def _cluster_margin(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = shuffled(pool, rng)
    unsure = pool_score("margin", pool, rows)
    first = np.argsort(-unsure, kind="stable")[: OVERSAMPLING * k]
    # Numbered without gaps: only clusters with a candidate take turns.
    _, cluster = np.unique(_small_clusters(pool, rows, first, rng), return_inverse=True)
    sizes = np.bincount(cluster)
    smallest_first = rng.permutation(len(sizes))
    smallest_first = smallest_first[np.argsort(sizes[smallest_first], kind="stable")]
    places, turn = clustering.in_turn(cluster, rng.random(len(first)), smallest_first)
    places, turn = places[:k], turn[:k]
    chosen = first[places]
    return Selection.of(rows[chosen], unsure[chosen], "uncertain", 1 / (sizes[cluster[places]] - turn))


def _small_clusters(pool: Pool, rows: Rows, asked: Rows, rng: np.random.Generator) -> Rows:
    """Clusters of about ten of `rows`, for the places `asked` among them."""
    count = max(1, len(rows) // _ROWS_PER_CLUSTER)
    if len(rows) <= clustering.LINKED_ROWS:
        return clustering.average_linkage(pool.rows(rows), count)[asked]
    count = min(count, clustering.MOST_CENTRES)
    sample = pool.rows(rows[: clustering.FIT_ROWS])
    centres = clustering.k_means(sample, count, rng, iterations=_LINKED_SWEEPS).centres
    parts = [rows[asked[at : at + CHUNK]] for at in range(0, len(asked), CHUNK)]
    return np.concatenate([clustering.assign(pool.rows(part), centres)[0] for part in parts])


def _kmeans_margin(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = shuffled(pool, rng)
    unsure = pool_score("margin", pool, rows).astype(np.float64)
    first = np.argsort(-unsure, kind="stable")[: min(OVERSAMPLING * k, MOST_ROWS)]
    rows, unsure = rows[first], unsure[first]
    places, _ = nearest_to_centres(pool, rows, k, rng, unsure)
    return topped_up(pool, Selection.of(rows[places], unsure[places], "uncertain"), k, rng)


def _clue(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = shuffled(pool, rng)
    entropy = pool_score("entropy", pool, rows).astype(np.float64)
    # A sample in proportion to weight, each row standing for the weight around it.
    weights = entropy if entropy.sum() > 0 else np.ones(len(rows))
    size = min(max(clustering.FIT_ROWS, _PER_CHOICE * k), MOST_ROWS)
    sample, represented = systematic_sample(weights, size, rng)
    places, _ = nearest_to_centres(pool, rows[sample], k, rng, represented)
    chosen = sample[places]
    return topped_up(pool, Selection.of(rows[chosen], entropy[chosen], "uncertain"), k, rng)


def nearest_to_centres(
    pool: Pool, rows: Rows, k: int, rng: np.random.Generator, weights: npt.NDArray[np.float64] | None = None
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Places in `rows` of the k nearest to the centres of k clusters, heaviest cluster first, and the share of the
    weight that lies in the cluster of each; those after the first of a cluster have share 0.

    With more than `MOST_CENTRES` asked for, or fewer clusters than that because rows are copies, clusters supply
    their next nearest in turn.
    """
    if not len(rows):
        return np.empty(0, np.int64), np.empty(0)
    weight = np.ones(len(rows)) if weights is None or not weights.sum() > 0 else weights
    found = clustering.k_means(pool.rows(rows), min(k, clustering.MOST_CENTRES), rng, weights=weight)
    mass = np.bincount(found.labels, weight, minlength=len(found.centres))
    heaviest_first = np.argsort(-mass, kind="stable")
    places, turn = clustering.in_turn(found.labels, found.distances, heaviest_first)
    places, turn = places[:k], turn[:k]
    return places, np.where(turn == 0, mass[found.labels[places]] / mass.sum(), 0)


def topped_up(pool: Pool, chosen: Selection, k: int, rng: np.random.Generator) -> Selection:
    """`chosen`, and up to k the most uncertain of what is left by margin; without predictions, random ones."""
    if len(chosen) >= k:
        return chosen
    rows = shuffled(pool, rng)
    rest = one_per_group(pool, np.concatenate([chosen.indices, rows[~np.isin(rows, chosen.indices)]]))[len(chosen) :]
    wanted = k - len(chosen)
    if pool.has_predictions:
        unsure = pool_score("margin", pool, rest)
        first = np.argsort(-unsure, kind="stable")[:wanted]
        return concatenate(chosen, Selection.of(rest[first], unsure[first], "uncertain"))
    drawn = rest[:wanted]
    left = len(rest) - np.arange(len(drawn))
    return concatenate(chosen, Selection.of(drawn, np.zeros(len(drawn)), "explore", 1 / left))


_FITTED = f"centres fitted to {clustering.FIT_ROWS} rows or 16 a centre, at most {clustering.MOST_CENTRES} centres"
for _info in (
    StrategyInfo(
        "cluster_margin",
        _cluster_margin,
        "Uncertain examples from as many small clusters as possible, rare clusters first; made for large batches.",
        True,
        "Citovsky et al. 2021, arXiv:2107.14263",
        exactness=f"average linkage up to {clustering.LINKED_ROWS} rows; k-means above, {_FITTED}",
    ),
    StrategyInfo(
        "kmeans_margin",
        _kmeans_margin,
        "The centres of clusters among the most uncertain examples: as many kinds of doubt as the batch is long.",
        True,
        "Zhdanov 2019, arXiv:1901.05954",
        exactness=_FITTED,
    ),
    StrategyInfo(
        "clue",
        _clue,
        "The centres of clusters of the whole pool, drawn to where the model is unsure.",
        True,
        "Prabhu et al. 2021, arXiv:2010.08666",
        exactness=f"all rows up to {clustering.FIT_ROWS}; a sample of that size by entropy above; {_FITTED}",
    ),
):
    register_strategy(_info)
