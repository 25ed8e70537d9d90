"""Replay active learning with an oracle: the product's own order, head and audit slice on embeddings whose labels are
known. Pure: arrays in, rows out; nothing is read or written.

    N  examples of the pool     M  examples to test on     D  embedding width     C  classes

No label is used that was not asked for: the head, its regularisation and its temperature come from the labels bought
so far, and the audit slice takes its share of them. The test examples are seen by nobody but the ruler.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blas import one_thread
from .errors import DataError
from .evaluate import audit_metrics
from .head import HeadFit, Start, fit_head
from .linear import Head
from .pool_view import SELECTION_DIMS
from .quality import MISSES, agreement, rank_errors, reference_rows
from .ranking import AuditStream, Candidates, Odds, Shares, order_candidates
from .space import SAMPLE, Space

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]

_DUPLICATE = 0.98  # cosine above which labelled examples share a fold


@dataclass(frozen=True, eq=False)
class Oracle:
    """Embeddings with all their labels."""

    features: Floats  # [N, D] raw embeddings
    labels: Ints  # [N], in [0, C)
    classes: tuple[str, ...]
    groups: Ints | None = None  # [N] examples of one group (a patient, a lesion) are kept on one side of a split
    junk: NDArray[np.bool_] | None = None  # [N] no image of the task: may be asked for, never learnt from or tested on
    seen: NDArray[np.bool_] | None = None  # [N] examples that the features were learnt from, hence too easy
    names: NDArray[Any] | None = None  # [N] what people call each example; None: its row in the oracle first given

    def __post_init__(self) -> None:
        n = len(self.features)
        if self.labels.shape != (n,) or (n and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes)):
            raise DataError(f"expected one label in [0, {len(self.classes)}) for each of {n} examples")

    def take(self, rows: Ints) -> Oracle:
        """Some examples, in the order given."""
        return replace(
            self,
            features=self.features[rows],
            labels=self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
            junk=None if self.junk is None else self.junk[rows],
            seen=None if self.seen is None else self.seen[rows],
            names=rows if self.names is None else self.names[rows],
        )


def split(oracle: Oracle, test_share: float, seed: int) -> tuple[Oracle, Oracle]:
    """(pool, test): whole groups drawn at random until the test side has its share; junk stays in the pool.

    Raises:
        DataError: a side would be empty.
    """
    rng = np.random.default_rng([seed, 10])
    n = len(oracle.labels)
    unit = np.arange(n, dtype=np.int64) if oracle.groups is None else np.unique(oracle.groups, return_inverse=True)[1]
    turn = rng.permutation(int(unit.max(initial=-1)) + 1)[unit]
    fit_to_test = np.ones(n, bool) if oracle.junk is None else ~oracle.junk
    order = np.argsort(turn, kind="stable")
    filled = np.cumsum(fit_to_test[order])
    cut = int(np.searchsorted(filled, round(test_share * fit_to_test.sum())))
    last = turn[order[min(cut, n - 1)]] if n else -1
    test = (turn < last) & fit_to_test
    if not test.any() or test.all():
        raise DataError(f"cannot split {n} examples in {len(np.unique(unit))} groups with a test share of {test_share}")
    return oracle.take(np.flatnonzero(~test)), oracle.take(np.flatnonzero(test))


@dataclass(frozen=True)
class Plan:
    """What to replay. The defaults are the product's."""

    strategy: str
    batch: int = 10
    budget: int = 500
    seed: int = 0
    layers: Shares = field(default_factory=Shares)
    audit_share: float = 0.1  # of all labels; 0: every label is trained on
    first: int | None = None  # labels of the first round; None: as the others
    noise: float = 0.0  # share of answers that are another class, drawn uniformly

    def curve(self, pool: int) -> list[int]:
        """Labels after each round with so many examples in the pool."""
        last = min(self.budget, pool)
        first = self.batch if self.first is None else self.first
        return sorted({last, *range(first, last, self.batch)})


@dataclass(frozen=True, eq=False)
class Round:
    """One refit and what it is worth on the test examples."""

    labels: int  # bought so far, the audit ones and junk among them
    audit: int  # of these, in the audit slice
    junk: int  # of these, no image of the task
    probabilities: NDArray[np.float32]  # [M, C], calibrated
    audit_probabilities: NDArray[np.float32]  # [audit, C]
    audit_labels: Ints
    select_s: float
    fit_s: float
    chosen: Ints  # rows of the pool bought in this round, in order
    reasons: NDArray[np.int8]  # of each, index in REASONS
    odds: Odds  # of each
    head: Head
    train: Ints  # rows of the pool trained on
    train_labels: Ints
    measured: Ints  # rows of the pool in the audit slice, in the order of audit_labels


@dataclass(frozen=True, eq=False)
class Ground:
    """What the strategies of one seed share: a split, and the coordinates learnt from its pool without labels."""

    pool: Oracle
    test: Oracle
    space: Space
    reduced: Floats  # [N, D'] what selection works in, rows of length one

    @classmethod
    def of(cls, pool: Oracle, test: Oracle, seed: int) -> Ground:
        n = len(pool.labels)
        sample = np.sort(np.random.default_rng([seed, 21]).permutation(n)[:SAMPLE])
        with one_thread():
            space = Space.learn(pool.features[sample])
            parts = [space.reduced(pool.features[at : at + 4096], SELECTION_DIMS) for at in range(0, n, 4096)]
        return cls(pool, test, space, np.concatenate(parts))


def replay(ground: Ground, plan: Plan, before: Ints | None = None) -> Iterator[Round]:
    """Buy labels batch by batch until the budget is spent or the pool is empty; one `Round` after each.

    Paired: the audit slice, the noise and the test examples depend on the seed and not on the strategy.

    Args:
        before: rows of the pool whose labels are there already, bought by other features perhaps.
    Raises:
        uncertainty.errors.UnknownMethodError; TrainingDiverged.
    """
    pool, test, space, reduced = ground.pool, ground.test, ground.space, ground.reduced
    n = len(pool.labels)
    rng = np.random.default_rng([plan.seed, 20])
    answers = _noisy(pool.labels, len(pool.classes), plan.noise, rng)
    ids = rng.permutation(n).astype(np.int64) + 1  # ties between examples fall differently for each seed
    audit = AuditStream(plan.audit_share, salt=plan.seed).mask(ids)
    junk = np.zeros(n, bool) if pool.junk is None else pool.junk
    bought = np.zeros(n, bool)
    state: HeadFit | None = None
    if before is not None and len(before):
        bought[before] = True
        with one_thread():
            state = _fit(pool, answers, np.flatnonzero(bought & ~audit & ~junk), space, reduced, None, plan.seed)
    while bought.sum() < min(plan.budget, n):
        begun = time.perf_counter()
        count = plan.first if plan.first is not None and not bought.any() else plan.batch
        count = min(count, plan.budget - int(bought.sum()), n - int(bought.sum()))
        with one_thread():
            log_p = None if state is None else state.head.log_probabilities(_logits(state, pool.features))
            order = order_candidates(
                Candidates(
                    example_ids=ids,
                    features=reduced,
                    log_probabilities=log_p,
                    # Junk that was answered is known as such: skipped in Label Studio, and never a label.
                    labelled=bought,
                    pending=np.zeros(n, bool),
                    audit=audit,
                    open=~bought,
                    labels=np.where(bought & ~junk & ~audit, answers, -1),
                    rejected=bought & junk,
                ),
                strategy=plan.strategy,
                front=max(count, 1),
                layers=plan.layers,
                audit_share=plan.audit_share,
                seed=plan.seed,
            )
            chosen = order.rows[:count]
            bought[chosen] = True
            selected = time.perf_counter()
            train = np.flatnonzero(bought & ~audit & ~junk)
            state = _fit(pool, answers, train, space, reduced, state, plan.seed)
            measured = np.flatnonzero(bought & audit & ~junk)
            yield Round(
                labels=int(bought.sum()),
                audit=len(measured),
                junk=int((bought & junk).sum()),
                probabilities=state.head.probabilities(test.features),
                audit_probabilities=state.head.probabilities(pool.features[measured]),
                audit_labels=answers[measured],
                select_s=selected - begun,
                fit_s=time.perf_counter() - selected,
                chosen=chosen,
                reasons=order.reasons[:count],
                odds=order.odds.take(np.arange(count)),
                head=state.head,
                train=train,
                train_labels=answers[train],
                measured=measured,
            )


def _fit(
    pool: Oracle, answers: Ints, train: Ints, space: Space, reduced: Floats, before: HeadFit | None, seed: int
) -> HeadFit:
    def groups() -> Ints:
        from uncertainty.duplicates import near_duplicate_groups

        if pool.groups is not None:
            return np.unique(pool.groups[train], return_inverse=True)[1].astype(np.int64)
        return near_duplicate_groups(reduced[train], _DUPLICATE)

    start = None
    if before is not None:
        start = Start(before.head, before.regularisation, before.regularisation_labels, before.temperature_labels)
    seen = None if pool.seen is None else pool.seen[train]
    return fit_head(
        pool.features[train], answers[train], len(pool.classes), space, groups=groups, start=start, seen=seen, seed=seed
    )


def _logits(state: HeadFit, features: Floats) -> NDArray[np.float32]:
    parts = [state.head.logits(features[at : at + 4096]) for at in range(0, len(features), 4096)]
    return np.concatenate(parts)


def _noisy(labels: Ints, classes: int, share: float, rng: np.random.Generator) -> Ints:
    """Answers of an oracle that errs: a share of the labels moved to another class, drawn uniformly."""
    wrong = rng.random(len(labels)) < share
    moved = (labels + rng.integers(1, max(classes, 2), len(labels))) % classes
    return np.where(wrong, moved, labels)


_ON_TEST = (
    "accuracy", "balanced_accuracy", "nll", "ece", "aurc",
    "e_aurc", "augrc", "auroc", "coverage_at_95", "ece_debiased", "brier",
)  # fmt: skip
MEASURES = (*_ON_TEST, "audit_accuracy", "audit_ece", "set_size", "set_coverage")
COVERAGES = tuple(round(0.05 * i, 2) for i in range(1, 21))


def measure(found: Round, test: Oracle) -> dict[str, float | None]:
    """What a round is worth: `MEASURES`, on the test examples and on the audit slice; None where nothing can be said.

    balanced_accuracy: mean recall of the classes that occur in the test examples; nll: nats; ece: 15 bins of equal
    width; aurc to brier: as `quality.quality_metrics`, by the likeliest class's probability, aurc of any number of
    examples; set_size, set_coverage: of conformal sets that may miss one time in ten, never empty, fitted to the audit
    labels of the round (from nine on) and measured on the test examples.
    """
    from uncertainty.calibration import expected_calibration_error
    from uncertainty.selective import aurc

    p, on_audit = found.probabilities.astype(np.float64), found.audit_probabilities.astype(np.float64)
    on_test = audit_metrics(p, test.labels, intervals=False)
    right = p.argmax(axis=1) == test.labels
    right_on_audit = on_audit.argmax(axis=1) == found.audit_labels
    return {
        **{name: on_test[name] for name in _ON_TEST},
        "aurc": aurc(p.max(axis=1), right),
        "audit_accuracy": float(right_on_audit.mean()) if found.audit else None,
        "audit_ece": expected_calibration_error(on_audit, found.audit_labels) if found.audit else None,
        **_sets(p, on_audit, found.audit_labels, test),
    }


def _sets(p: Floats, on_audit: Floats, audit_labels: Ints, test: Oracle) -> dict[str, float | None]:
    from uncertainty.conformal import evaluate, fit, never_empty

    fitted = fit(on_audit, audit_labels, alpha=MISSES)
    if fitted.missing:
        return {"set_size": None, "set_coverage": None}
    report = evaluate(never_empty(fitted.sets(p), p), test.labels)
    return {"set_size": report.mean_size, "set_coverage": report.coverage}


def confidences(found: Round, ground: Ground) -> dict[str, Any]:
    """Which confidence ranks the errors on the test examples best, and which the audit labels would have chosen.

    Dearer than `measure` (some 40 ms for 1,500 test examples): for a few rounds, not for each.

    Returns:
        aurc      of each confidence on the test examples
        chosen    the one that the audit labels of the round call better beyond luck, else "msp"
        compared  whether they were enough to compare at all
    """
    from uncertainty.confidence import Outputs, fit, list_confidences, usable
    from uncertainty.selective import aurc

    pool, test = ground.pool, ground.test
    rows = reference_rows(len(found.train))
    known, classes = ground.reduced[found.train[rows]], found.train_labels[rows]

    def outputs(features: Floats, reduced: Floats) -> tuple[Floats, Outputs]:
        logits = found.head.logits(features)
        near = agreement(reduced, logits.argmax(axis=1), known, classes) if len(known) else None
        return logits, replace(Outputs.of_logits(logits, found.head.temperature), agreement=near)

    with one_thread():
        audit_logits, on_audit = outputs(pool.features[found.measured], ground.reduced[found.measured])
        _, on_test = outputs(test.features, ground.space.reduced(test.features, SELECTION_DIMS))
        ranking = rank_errors(audit_logits, found.head.temperature, found.audit_labels, on_audit.agreement)
    right = on_test.probabilities.argmax(axis=1) == test.labels
    right_on_audit = on_audit.probabilities.argmax(axis=1) == found.audit_labels
    areas = {
        info.name: aurc(fit(info.name, on_audit, right_on_audit).of(on_test), right)
        for info in list_confidences()
        if usable(info, on_test)
    }
    return {"aurc": areas, "chosen": "msp" if ranking is None else ranking.best, "compared": ranking is not None}


def curves(found: Round, test: Oracle) -> dict[str, list[list[float]]]:
    """Calibration and selection in full: `reliability` rows of (examples, mean confidence, accuracy) for each bin that
    is not empty, and `risk` rows of (coverage, error rate among the most confident) at `COVERAGES`."""
    from uncertainty.calibration import reliability_bins
    from uncertainty.selective import risk_coverage

    right = found.probabilities.argmax(axis=1) == test.labels
    curve = risk_coverage(found.probabilities.max(axis=1), right)
    risk = np.interp(COVERAGES, curve.coverage, curve.risk)
    bins = reliability_bins(found.probabilities, test.labels)
    return {
        "reliability": [
            [float(b.count), b.confidence, b.accuracy]
            for b in bins
            if b.confidence is not None and b.accuracy is not None
        ],
        "risk": [[c, float(r)] for c, r in zip(COVERAGES, risk, strict=True)],
    }
