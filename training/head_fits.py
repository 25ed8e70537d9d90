"""Fits the heads of a version, one after the other, and measures each on its own audit labels.

n  labelled examples    C  classes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import output_of
from .embedding_table import as_ids
from .errors import DataError
from .head import HeadFit, Start, fit_head, fit_label_head
from .head_measures import as_array, metrics_of
from .inputs import InputSchema, InputTable
from .linear import Head
from .number_head import fit_number_head
from .pool_labels import error_ranking
from .pool_view import SELECTION_DIMS, PoolView
from .space import Space
from .targets import HeadLabels, HeadSpec, Target
from .version_values import FitState, HeadContent, HeadInfo, StoredHead
from .wide_space import WideSpace

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


def fit_heads(
    view: PoolView, heads: Sequence[HeadLabels], starts: Sequence[StoredHead | None], facts: InputTable | None
) -> list[HeadContent]:
    """Fit each head and measure it.

    Args:
        heads: labels of embedded examples, as `embedded` gives them; none is needed.
        starts: of each head, where its last fit ended.
        facts: of the whole pool.
    Raises:
        TrainingDiverged.
    """
    return [_fit(view, labels, start, facts) for labels, start in zip(heads, starts, strict=True)]


def _fit(view: PoolView, labels: HeadLabels, before: StoredHead | None, facts: InputTable | None) -> HeadContent:
    spec = labels.spec
    weights = None if labels.weights is None else {i: labels.weights.get(i, 1.0) for i in labels.train}
    numbers = _numbers(labels) if spec.kind == "number" else {}
    schema = InputSchema.learn(facts, spec.inputs)
    encoded = schema.encode(facts, as_ids(list(labels.train)))
    fit = _fit_by_kind(view, labels, weights, numbers, before, encoded if schema.fields else None)
    head, extra = _split(fit, view.space().width, spec) if schema.fields else (fit.head, None)
    audited = as_ids(list(labels.audit))
    info = HeadInfo(spec, 0, "", {}, head.temperature, None, numbers, schema)
    stored = StoredHead(
        info, head, FitState(fit.regularisation, fit.regularisation_labels, fit.temperature_labels), extra
    )
    columns = stored.with_inputs(head.logits(view.rows(audited)), schema.encode(facts, audited))
    truth = as_array(spec, list(labels.audit.values()))
    metrics = metrics_of(output_of(spec, head, columns, numbers), truth)
    return HeadContent(
        spec,
        head,
        stored.state,
        labels.train,
        weights,
        labels.audit,
        metrics | {"nll_out_of_fold": fit.nll_out_of_fold},
        error_ranking(view, columns, head.temperature, labels) if spec.kind == "single" else None,
        numbers,
        schema,
        extra,
    )


def _split(fit: HeadFit, width: int, spec: HeadSpec) -> tuple[Head, NDArray[np.float32]]:
    """The head of the picture, and what encoded facts add to its columns, see `StoredHead.with_inputs`."""
    weight = fit.head.weight
    extra = np.concatenate([weight[width:], np.zeros((1, weight.shape[1]), np.float32)])
    if spec.kind == "number" and fit.regularisation_labels:  # with few labels nothing but their mean is told
        extra[-1, 1] = 1 / fit.regularisation
    return Head(np.ascontiguousarray(weight[:width]), fit.head.bias, fit.head.temperature), extra


def _fit_by_kind(
    view: PoolView,
    labels: HeadLabels,
    weights: Mapping[int, float] | None,
    numbers: Mapping[str, float],
    before: StoredHead | None,
    encoded: NDArray[np.float32] | None,
) -> HeadFit:
    kind, picture = labels.spec.kind, view.space()
    features = view.rows(as_ids(list(labels.train)))
    targets = as_array(labels.spec, list(labels.train.values()))
    space: Space | WideSpace = picture
    start = before.head if before else None
    wide = features
    if encoded is not None:
        space = WideSpace(picture, encoded.shape[1])
        wide = np.concatenate([features.astype(np.float32), encoded], axis=1)
        if before is not None and start is not None:
            same = before.extra is not None and len(before.extra) == encoded.shape[1] + 1
            added = (
                before.extra[:-1] if same and before.extra is not None else np.zeros((encoded.shape[1], start.classes))
            )
            start = Head(np.concatenate([start.weight, added.astype(np.float32)]), start.bias, start.temperature)
    shared: dict[str, Any] = {
        "weights": None if weights is None else list(weights.values()),
        "groups": lambda: _groups(picture, features),
        "seen": np.isin(as_ids(list(labels.train)), view.learnt_from()),
        "start": None if before is None or start is None else Start(start, **vars(before.state)),
    }
    if kind == "multiple":
        return fit_label_head(wide, targets, space, **shared)
    if kind == "number":
        return fit_number_head(wide, targets, (numbers["low"], numbers["high"]), space, **shared)
    return fit_head(wide, targets, len(labels.spec.classes), space, **shared)


def _numbers(labels: HeadLabels) -> dict[str, float]:
    """The range of a number: as the question says, else that of the answers known."""
    known = [float(target) for target in (*labels.train.values(), *labels.audit.values()) if isinstance(target, float)]
    low, high = labels.spec.low, labels.spec.high
    low = min([*known, math.inf if high is None else high]) if low is None else low
    low = 0.0 if math.isinf(low) else low
    high = max([*known, low]) if high is None else high
    return {"low": low, "high": high if high > low else low + 1}


def _groups(space: Space, features: NDArray[np.float32]) -> Ids:
    """[n] near-duplicate group of each labelled example, -1 for none."""
    from uncertainty.duplicates import near_duplicate_groups

    return near_duplicate_groups(space.reduced(features, SELECTION_DIMS), _DUPLICATE)
