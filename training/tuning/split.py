"""Which labelled examples a run is stopped by: whole groups, and no class loses its last examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .heads import Examples, HeadSpec, targets_of

FEWEST_HELD_OUT = 20  # fewer cannot tell two epochs apart, and each of them is worth more as a training example


def hold_out(
    heads: Sequence[HeadSpec], examples: Examples, share: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on and rows to measure with.

    Groups are taken in random order until `share` of the answered examples is reached; a group is left where it is
    if it holds the last example of a class. Nothing is held out where fewer than `FEWEST_HELD_OUT` would be.

    Returns:
        (train, held out), each sorted; examples without any answer are in neither.
    """
    targets = [targets_of(head, examples) for head in heads]
    answered = np.logical_or.reduce([target.answered for target in targets])
    rows = np.flatnonzero(answered)
    wanted = round(share * len(rows))
    nothing = np.empty(0, np.intp)
    if wanted < FEWEST_HELD_OUT:
        return rows, nothing
    classes = np.concatenate(
        [target.values for head, target in zip(heads, targets, strict=True) if head.kind != "number"]
        or [np.zeros((len(examples), 0), np.float32)],
        axis=1,
    )[rows]  # [n, classes of all heads]
    left = classes.sum(axis=0)
    groups = np.arange(len(examples)) if examples.groups is None else examples.groups
    _, group = np.unique(groups[rows], return_inverse=True)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    held: list[NDArray[np.intp]] = []
    count = 0
    for index in np.random.default_rng((seed, 1)).permutation(len(members)):
        part = members[index]
        taken = classes[part].sum(axis=0)
        if count + len(part) > wanted or ((left - taken < 1) & (taken > 0)).any():
            continue
        held.append(part)
        count += len(part)
        left = left - taken
        if count == wanted:
            break
    if count < FEWEST_HELD_OUT:
        return rows, nothing
    mask = np.zeros(len(rows), bool)
    mask[np.concatenate(held)] = True
    return rows[~mask], rows[mask]
