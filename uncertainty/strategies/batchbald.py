"""BatchBALD: a small batch that together tells most about the model, so that no two examples tell the same."""

import heapq

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..pool import Pool, Rows
from ..pool_scores import pool_score
from ..predictives import samples_of
from ..selection import Selection, StrategyInfo, concatenate, register_strategy, shuffled

CANDIDATES = 1000  # by BALD; the authors look at no more
CAREFUL = 10  # examples chosen jointly; more cost much and gain little over a draw by chance
TABLE = 1_000_000  # numbers C^m * S of the exact joint distribution of m examples: 4 MB
CONFIGURATIONS = 10_000  # labels of a batch that are drawn where the table would be larger
_FEWEST_CONFIGURATIONS = 1000
_AT_ONCE = 16  # candidates looked at together: 13 MB at 10,000 configurations of ten classes
_LEAST_PROBABILITY = 1e-30
_LEAST_WEIGHT = 1e-12  # a draw in proportion needs a little of everything


class _Joint:
    """Labels the chosen examples may turn out to have: how likely, and what each says about the posterior samples."""

    def __init__(self, probs: Tensor, rng: np.random.Generator) -> None:
        """`probs` [n, S, C] float32 of all candidates."""
        # Above zero, so that no logarithm of a sum over samples is infinite.
        self._probs, self._rng = probs.clamp_min(_LEAST_PROBABILITY), rng
        samples = probs.shape[1]
        self._exact: Tensor | None = torch.full((1, samples), 1 / samples, dtype=torch.float64)  # [M, S] p(y, s)
        self._chosen: list[int] = []
        self._room: tuple[Tensor, Tensor] | None = None  # what `entropy_of` works in
        self.likely = torch.ones(1)  # [M] p(y), summing to one
        self.speaking_for = torch.full((1, samples), 1 / samples)  # [M, S] p(s | y)

    def add(self, row: int) -> None:
        """Count `row` among the chosen."""
        self._chosen.append(row)
        _, samples, classes = self._probs.shape
        if self._exact is not None and self._exact.numel() * classes <= TABLE:
            now = self._probs[row].T.double()  # [C, S]
            table = (self._exact[:, None] * now).reshape(-1, samples)
            table = table[table.sum(1) > 0]
            self._exact = table
            self.likely = table.sum(1).float()
            self.speaking_for = (table / table.sum(1, keepdim=True)).float()
        else:
            self._exact = None
            self._draw(samples, classes)

    def _draw(self, samples: int, classes: int) -> None:
        # What a look at a candidate costs grows with the classes, so many classes get fewer draws.
        count = min(CONFIGURATIONS, max(_FEWEST_CONFIGURATIONS, 10 * CONFIGURATIONS // classes))
        told_by = torch.arange(count) % samples  # every sample tells the same number of configurations
        log_joint = torch.zeros(count, samples, dtype=torch.float64)
        for row in self._chosen:
            probs = self._probs[row].double()  # [S, C]
            cumulated = probs[told_by].cumsum(1)
            tick = torch.from_numpy(self._rng.random(count)) * cumulated[:, -1]
            label = (cumulated <= tick[:, None]).sum(1).clamp_max(classes - 1)
            log_joint += probs.T[label].log()
        self.likely = torch.full((count,), 1 / count)
        self.speaking_for = log_joint.softmax(1).float()

    def entropy_of(self, rows: list[int]) -> Tensor:  # [m]: H(y_row | labels of the chosen), nats
        some = self._probs[rows].transpose(0, 1).flatten(1)  # [S, m * C]
        size = len(self.likely), some.shape[1]
        if self._room is None or self._room[0].shape != size:
            self._room = torch.empty(size), torch.empty(size)  # kept: fresh pages cost as much as the product
        probs, logs = self._room
        torch.mm(self.speaking_for, some, out=probs)  # [M, m * C]
        torch.log(probs, out=logs)
        return -(self.likely @ logs.mul_(probs)).view(len(rows), -1).sum(1)


def jointly_most_informative(probs: Tensor, k: int, rng: np.random.Generator) -> tuple[list[int], list[float]]:
    """Choose k rows one by one, each adding most mutual information between their labels and the model.

    By the chain rule I(y_1..m; w) grows by H(y_m | y_1..m-1) - E_s H(y_m | s). That gain can only shrink as others
    are chosen, so an old one is an upper bound and only rows near the top need a fresh one (lazy greedy).

    Args:
        probs: [n, S, C], the first of equal rows leads.

    Returns:
        rows, gains in nats, in [0, log min(S, C)] up to rounding, or to noise where configurations are drawn.

    Paper:
        Kirsch et al. 2019, arXiv:1906.08158.
    """
    probs = probs.float()
    within = torch.special.entr(probs).sum(-1).mean(1)  # [n] E_s H(y | s)
    joint = _Joint(probs, rng)

    def gains_of(rows: list[int]) -> list[float]:
        out: list[float] = (joint.entropy_of(rows) - within[rows]).clamp_min(0).tolist()
        return out

    blocks = [list(range(i, min(i + _AT_ONCE, len(probs)))) for i in range(0, len(probs), _AT_ONCE)]
    # (-upper bound, row, number of choices made when the bound was computed)
    heap = [(-gain, row, 0) for block in blocks for row, gain in zip(block, gains_of(block), strict=True)]
    heapq.heapify(heap)
    chosen: list[int] = []
    gains: list[float] = []
    while heap and len(chosen) < k:
        stale: list[int] = []
        while heap and heap[0][2] < len(chosen) and len(stale) < _AT_ONCE:
            stale.append(heapq.heappop(heap)[1])
        if stale:
            for row, gain in zip(stale, gains_of(stale), strict=True):
                heapq.heappush(heap, (-gain, row, len(chosen)))
            continue
        top, row, _ = heapq.heappop(heap)
        chosen.append(row)
        gains.append(-top)
        if len(chosen) < k:
            joint.add(row)
    return chosen, gains


def _batchbald(pool: Pool, k: int, rng: np.random.Generator) -> Selection:
    rows = shuffled(pool, rng)
    if not len(rows):
        return Selection.empty()
    information = pool_score("bald", pool, rows).astype(np.float64)
    order = np.argsort(-information, kind="stable")  # rows are in random order: so are ties
    candidates = rows[order[:CANDIDATES]]
    chosen, gains = jointly_most_informative(samples_of(pool, candidates).exp(), min(k, CAREFUL), rng)
    careful = Selection.of(candidates[chosen], gains, "uncertain")
    rest = np.delete(order, chosen)
    return concatenate(careful, _drawn(rows[rest], information[rest], k - len(careful), rng))


def _drawn(rows: Rows, information: npt.NDArray[np.float64], k: int, rng: np.random.Generator) -> Selection:
    """k of `rows` drawn without replacement in proportion to their mutual information (the power form of BALD)."""
    weight = np.maximum(information, _LEAST_WEIGHT)
    taken = np.argsort(-(np.log(weight) + rng.gumbel(size=len(rows))), kind="stable")[: max(k, 0)]
    # Each draw is in proportion among what is left; summed from the end, where differences would cancel.
    left = (weight.sum() - weight[taken].sum()) + np.cumsum(weight[taken][::-1])[::-1]
    chance = np.minimum(1.0, weight[taken] / np.maximum(left, weight[taken]))
    return Selection.of(rows[taken], np.maximum(information[taken], 0), "uncertain", chance)


register_strategy(
    StrategyInfo(
        "batchbald",
        _batchbald,
        "Small careful batches: examples whose labels together tell most about what the model does not know.",
        False,
        "Kirsch et al. 2019, arXiv:1906.08158",
        needs_labels=True,
        needs_samples=True,
        exactness=f"the first {CAREFUL} jointly, among the {CANDIDATES} of highest BALD, exact while C^m * S <= "
        f"{TABLE:.0e} and by up to {CONFIGURATIONS} drawn configurations above; all others drawn in proportion to BALD "
        "(power_bald)",
    )
)
