"""GALAXY: for each class a line of examples by its margin, asked where labels along it change; rare classes first."""

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..pool import CHUNK, Pool, Rows
from ..selection import Selection, StrategyInfo, register_strategy, shuffled, thinned
from ..shapes import check_log_probs

NUMBERS = 50_000_000  # probabilities held at once: 200 MB of float32, a million rows of fifty classes

Signs = npt.NDArray[np.int8]


@dataclass(frozen=True)
class _Predictions:
    """Averaged probabilities [n, C] of some rows, their largest [n], their second largest [n], and its class [n]."""

    probs: npt.NDArray[np.float32]
    first: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32]
    likeliest: Rows

    @classmethod
    def of(cls, pool: Pool, rows: Rows) -> "_Predictions":
        """Raises: ShapeError, NotADistributionError."""
        classes = int(pool.predictions(rows[:0]).shape[2])
        probs = np.empty((len(rows), classes), np.float32)
        top, which = np.empty((len(rows), 2), np.float32), np.empty(len(rows), np.int64)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            log_probs = pool.predictions(rows[part])
            check_log_probs(log_probs, min_classes=2)
            mean = log_probs.float().exp().mean(1)
            values, where = mean.topk(2, dim=1)
            probs[part], top[part], which[part] = mean.numpy(), values.numpy(), where[:, 0].numpy()
        return cls(probs, top[:, 0], top[:, 1], which)

    def margin(self, of_class: int) -> npt.NDArray[np.float32]:
        """[n] in [-1, 1]: probability of a class above that of the likeliest other one."""
        return self.probs[:, of_class] - np.where(self.likeliest == of_class, self.second, self.first)


def at_the_cuts(signs: Signs, believed: Signs, count: int, rng: np.random.Generator) -> list[int]:
    """Places to ask for on a line of examples, where its answers change from one sign to the other.

    The shortest stretch of unanswered places between two different answers is halved, again and again; each place
    asked for counts as answered the way the model believes. Once every change is between neighbours, the unanswered
    places nearest to a change follow, on both sides alike. A sign that nobody has answered yet is taken to lie
    beyond its end of the line: 1 before the first place, -1 after the last.

    Args:
        signs: [n] 1, -1, or 0 for unanswered.
        believed: [n] 1 or -1, answers expected.

    Returns:
        min(count, unanswered) different places, in the order to ask in.
    """
    signs = signs.copy()
    answered = np.flatnonzero(signs)
    ends = [*answered.tolist()]
    of_end = [*signs[answered].tolist()]
    if 1 not in of_end:
        ends, of_end = [-1, *ends], [1, *of_end]
    if -1 not in of_end:
        ends, of_end = [*ends, len(signs)], [*of_end, -1]
    at, sign = np.array(ends), np.array(of_end)
    changes = np.flatnonzero(sign[1:] != sign[:-1])
    # (length, tie, left, right, sign on the left)
    open_cuts = [
        (right - left, rng.random(), left, right, int(before))
        for left, right, before in zip(at[changes].tolist(), at[changes + 1].tolist(), sign[changes], strict=True)
    ]
    heapq.heapify(open_cuts)
    # (distance, tie, place, direction)
    beside: list[tuple[int, float, int, int]] = []
    asked: list[int] = []
    while open_cuts and len(asked) < count:
        length, _, left, right, before = heapq.heappop(open_cuts)
        if length <= 1:
            heapq.heappush(beside, (1, rng.random(), left - 1, -1))
            heapq.heappush(beside, (1, rng.random(), right + 1, 1))
            continue
        middle = (left + right) // 2
        asked.append(middle)
        signs[middle] = believed[middle]
        left, right = (middle, right) if believed[middle] == before else (left, middle)
        heapq.heappush(open_cuts, (right - left, rng.random(), left, right, before))
    while beside and len(asked) < count:
        distance, _, place, direction = heapq.heappop(beside)
        if not 0 <= place < len(signs):
            continue
        if not signs[place]:
            asked.append(place)
            signs[place] = believed[place]
        heapq.heappush(beside, (distance + 1, rng.random(), place + direction, direction))
    return asked


def _counts(pool: Pool, classes: int) -> npt.NDArray[np.int64]:
    """[C] labels of each class, rows handed out counted for the class that the model sees in them."""
    told = pool.labels_of_labelled
    waiting = pool.likeliest_class(np.flatnonzero(pool.pending & ~pool.excluded))
    return np.bincount(told[told < classes], minlength=classes) + np.bincount(waiting, minlength=classes)


def _turns(counts: npt.NDArray[np.int64], k: int, rng: np.random.Generator) -> list[int]:
    """Class of each of k questions: always the one with the fewest labels, those asked for included."""
    heap = [(int(count), rng.random(), of_class) for of_class, count in enumerate(counts)]
    heapq.heapify(heap)
    turns: list[int] = []
    for _ in range(k):
        count, _, of_class = heap[0]
        turns.append(of_class)
        heapq.heapreplace(heap, (count + 1, rng.random(), of_class))
    return turns


def _galaxy(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    free = shuffled(pool, rng)
    k = min(k, len(free))
    if not k:
        return Selection.empty()
    classes = int(pool.predictions(free[:0]).shape[2])
    limit = max(NUMBERS // (2 * classes), k)
    free = thinned(pool, free, limit, rng)
    known = thinned(pool, pool.known_rows, limit, rng)
    rows = rng.permutation(np.concatenate([free, known]))
    predictions = _Predictions.of(pool, rows)
    answer = np.full(len(rows), -1)  # -1: none; of what is asked for, the class that the model believes in
    is_known = np.isin(rows, known)
    of_known = dict(zip(pool.known_rows.tolist(), pool.labels_of_labelled.tolist(), strict=True))
    answer[is_known] = [of_known[row] for row in rows[is_known].tolist()]
    turns = _turns(_counts(pool, classes), k, rng)
    chosen = np.empty(k, np.int64)
    gain = np.empty(k)
    for of_class in dict.fromkeys(turns):
        margin = predictions.margin(of_class)
        order = np.argsort(-margin, kind="stable")  # rows are in random order: so are ties
        signs = np.where(answer[order] < 0, 0, np.where(answer[order] == of_class, 1, -1)).astype(np.int8)
        believed = np.where(predictions.likeliest[order] == of_class, 1, -1).astype(np.int8)
        mine = np.flatnonzero(np.array(turns) == of_class)
        asked = order[at_the_cuts(signs, believed, len(mine), rng)]
        answer[asked] = predictions.likeliest[asked]
        chosen[mine], gain[mine] = rows[asked], 1 - np.abs(margin[asked])
    return Selection.of(chosen, np.maximum(gain, 0), "uncertain")


register_strategy(
    StrategyInfo(
        "galaxy",
        _galaxy,
        "Examples where labels change along the margin of each class, rare classes first: for very uneven classes.",
        True,
        "Zhang et al. 2022, arXiv:2202.01402",
        needs_labels=True,
        exactness="within a batch the model's own answers stand for those awaited; all rows while rows * C <= "
        f"{NUMBERS:.0e}, a random part above, each predicted class by its share",
    )
)
