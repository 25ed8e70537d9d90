"""Labels put to the rows of an embedded pool: what is trained on, what is measured with, what is audited.

N  embedded examples    n  audit examples    C  classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .embedding_table import as_ids
from .pool_view import PoolView
from .quality import FEWEST_FOR_SETS, ErrorRanking, agreement, rank_errors, reference_rows
from .ranking import AuditStream
from .targets import HeadLabels, Target

Ids = NDArray[np.int64]


def error_ranking(
    view: PoolView, logits: NDArray[np.float32], temperature: float, labels: HeadLabels
) -> ErrorRanking | None:
    """Which confidence ranks the errors on the audit labels best; `logits` [n, C] are theirs, targets are classes."""
    if len(labels.audit) < FEWEST_FOR_SETS or not labels.train:
        return None
    known, classes = as_ids(list(labels.train)), np.array(list(labels.train.values()), np.int64)
    rows = reference_rows(len(known))
    agreed = agreement(
        view.reduced_rows(as_ids(list(labels.audit))),
        logits.argmax(axis=1),
        view.reduced_rows(known[rows]),
        classes[rows],
    )
    return rank_errors(logits, temperature, np.array(list(labels.audit.values()), np.int64), agreed)


def rows_of_labels(labels: Mapping[int, Target], ids: Ids) -> Ids:
    """[N] class index of each of the sorted ids that has a label, -1 elsewhere."""
    known = as_ids(list(labels))
    out = np.full(len(ids), -1, np.int64)
    if len(known) and len(ids):
        place = np.minimum(np.searchsorted(ids, known), len(ids) - 1)
        there = ids[place] == known
        out[place[there]] = np.array(list(labels.values()), np.int64)[there]
    return out


def audit_mask(audit: Callable[[int], bool], ids: Ids, needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N] which ids belong to the audit slice, of those needed; an `AuditStream` is asked for all at once."""
    if isinstance(audit, AuditStream):
        return audit.mask(ids) & needed
    mask = np.zeros(len(ids), bool)
    mask[needed] = [audit(i) for i in ids[needed].tolist()]
    return mask
