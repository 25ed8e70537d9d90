"""Fits the heads of a version, one after the other, and measures each on its own audit labels.

n  labelled examples    C  classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .answers import Output
from .embedding_table import as_ids
from .errors import DataError
from .evaluate import audit_metrics
from .head import Start, fit_head
from .pool_labels import error_ranking
from .pool_view import SELECTION_DIMS, PoolView
from .quality import set_metrics
from .space import Space
from .targets import HeadLabels, Target
from .version_values import FitState, HeadContent, StoredHead

Ids = NDArray[np.int64]
_DUPLICATE = 0.98  # cosine above which labelled examples share a fold


def embedded(view: PoolView | None, labels: HeadLabels) -> HeadLabels:
    """Labels of embedded examples, by ascending id: the same labels give the same fit, however they came. What is
    measured with is not learnt from.

    Raises:
        DataError: a target that is no answer to the question.
    """
    for target in (*labels.train.values(), *labels.audit.values()):
        if not labels.spec.valid(target):
            raise DataError(f"{target!r} is no answer to {_shown(labels)}: map labels to its classes")

    def known(targets: dict[int, Target]) -> dict[int, Target]:
        ids = as_ids(sorted(targets))
        return {} if view is None else {i: targets[i] for i in ids[view.table.known(ids)].tolist()}

    return replace(
        labels,
        train=known({i: target for i, target in labels.train.items() if i not in labels.audit}),
        audit=known(dict(labels.audit)),
    )


def _shown(labels: HeadLabels) -> str:
    name = f"{labels.spec.name!r}, " if labels.spec.name else ""
    return f"a question ({name}{labels.spec.kind}) with {len(labels.spec.classes)} classes"


def fit_heads(view: PoolView, heads: Sequence[HeadLabels], starts: Sequence[StoredHead | None]) -> list[HeadContent]:
    """Fit each head and measure it.

    Args:
        heads: labels of embedded examples, as `embedded` gives them; none is needed.
        starts: of each head, where its last fit ended.
    Raises:
        TrainingDiverged.
    """
    return [_fit(view, labels, start) for labels, start in zip(heads, starts, strict=True)]


def _fit(view: PoolView, labels: HeadLabels, before: StoredHead | None) -> HeadContent:
    space, spec = view.space(), labels.spec
    features = view.rows(as_ids(list(labels.train)))
    weights = None if labels.weights is None else {i: labels.weights.get(i, 1.0) for i in labels.train}
    fit = fit_head(
        features,
        _places(labels.train),
        len(spec.classes),
        space,
        weights=None if weights is None else list(weights.values()),
        groups=lambda: _groups(space, features),
        start=None if before is None else Start(before.head, **vars(before.state)),
    )
    logits = fit.head.logits(view.rows(as_ids(list(labels.audit))))
    truth = _places(labels.audit)
    probabilities = np.exp(Output.of(spec, fit.head, logits).log_probabilities)
    metrics = audit_metrics(probabilities, truth) | set_metrics(probabilities, truth)
    return HeadContent(
        spec,
        fit.head,
        FitState(fit.regularisation, fit.regularisation_labels, fit.temperature_labels),
        labels.train,
        weights,
        labels.audit,
        metrics | {"nll_out_of_fold": fit.nll_out_of_fold},
        error_ranking(view, logits, fit.head.temperature, labels),
    )


def _groups(space: Space, features: NDArray[np.float32]) -> Ids:
    """[n] near-duplicate group of each labelled example, -1 for none."""
    from uncertainty.duplicates import near_duplicate_groups

    return near_duplicate_groups(space.reduced(features, SELECTION_DIMS), _DUPLICATE)


def _places(targets: Mapping[int, Target]) -> Ids:
    """Class indices as an array."""
    return np.array(list(targets.values()), np.int64)
