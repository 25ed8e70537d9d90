"""One library's one algorithm on one pool, in a process of its own: what `benchmark.peers` starts.

    python -m benchmark.peers_calls ALGORITHM LIBRARY ROWS FOLDER LIMIT_S LIMIT_GB THREADS

Prints a line of JSON a run. Timed is the query alone: data, imports, the arrays in the layout a library wants and one
call on 400 rows come before; our `Pool` is made within. Peers get their default settings, except where the settings
differ from ours: then those of the paper, see `NOTES`.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from .peers_data import CLASSES, SAMPLES, YARDSTICKS, Array, Given, load

Call = Callable[[int], Any]  # seed -> rows chosen
Make = Callable[[Given, int], Call]  # (pool, k) -> call; what it does is not timed

K = 100
JOINTLY = 10  # BatchBALD's k: ours chooses so many jointly, and all others by chance
RUNS = 5
ENOUGH_S = {2_000: 15.0, 10_000: 10.0}  # after so long no further run is begun; 3 s on larger pools
OF_SAMPLES = {"bald", "power_bald", "variation_ratio", "epig", "batchbald"}

NOTES = {
    ("epig", "baal"): "both about the same 100 target rows",
    ("batchbald", "scikit-activeml"): "default: as many drawn configurations as posterior samples, 20",
    ("batchbald", "scikit-activeml, 10,000 draws"): "configurations: 10,000 as ours",
    (
        "batchbald",
        "baal",
    ): "default: 500 draws a sample, 10,000 configurations as ours; returns k + 1 scores, the first choice last",
    (
        "badge",
        "scikit-activeml",
    ): "the peer counts the origin as chosen already, the paper does not; ours: 50,000 candidates on larger pools",
    ("typiclust", "scikit-activeml"): "20 neighbours as published (default 5); ours: 20,000 rows of larger pools",
    (
        "probcover",
        "scikit-activeml",
    ): "the radius is given to the peer; ours looks for it as well, then takes the same; "
    "ours: 20,000 rows of larger pools",
    ("clue", "scikit-activeml"): "ours: 32,768 rows of larger pools",
    ("dropquery", "scikit-activeml"): "3 votes as published (default 5); the peer does not scale up what dropout "
    "leaves; ours fits its head within; ours: 65,536 rows of larger pools",
    ("maxherding", "scikit-activeml"): "the same kernel width; ours: 3,072 candidates and 4,096 points of larger pools",
}


# ---------------------------------------------------------------------- ours
def _ours(name: str) -> Make:
    def make(d: Given, k: int) -> Call:
        from uncertainty.strategies import Pool, probcover, select

        none, labelled = np.zeros(len(d.x), bool), d.labelled
        log_probs = d.samples if name in OF_SAMPLES else d.log_probs[:, None]
        search = probcover.radius

        def same_radius(*args: Any) -> float:
            search(*args)
            return d.radius

        def call(seed: int) -> Array:
            pool = Pool(d.x, log_probs, labelled, none, none, labels=d.labels)
            return select(name, pool, k, seed=seed).indices

        def with_radius(seed: int) -> Array:
            with patch.object(probcover, "radius", same_radius):
                return call(seed)

        return with_radius if name == "probcover" else call

    return make


# ---------------------------------------------------------------------- scikit-activeml
def _classifier(d: Given) -> Any:
    """A fitted classifier that looks predictions of the rows without a label up, and has a head for any others."""
    from skactiveml.base import SkactivemlClassifier

    class Known(SkactivemlClassifier):  # type: ignore[misc,unused-ignore]
        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Known:
            return self

        def predict_proba(self, X: Any) -> Array:
            return known

        def predict(self, X: Any) -> Array:
            best: Array = (X @ weight + bias).argmax(1)
            return best

        def sample(self, X: Any) -> Array:
            return drawn

    known = d.probs[: d.free]
    weight, bias = d.weight.astype(np.float32), d.bias.astype(np.float32)
    drawn = np.exp(d.samples[: d.free].swapaxes(0, 1), order="C")  # [S, free, C]
    out = Known(classes=list(range(CLASSES)), missing_label=np.nan)
    out.classes_ = np.arange(CLASSES)
    return out


def _activeml(strategy: str, model: str | None = None, **settings: Any) -> Make:
    """`model`: the name under which the query takes a fitted model."""

    def make(d: Given, k: int) -> Call:
        from skactiveml import pool as strategies

        y = np.where(d.labels >= 0, d.labels, np.nan)
        extra: dict[str, Any] = {} if model is None else {model: _classifier(d), f"fit_{model}": False}
        given = {name: value(d) if callable(value) else value for name, value in settings.items()}

        def call(seed: int) -> Any:
            asked = getattr(strategies, strategy)(random_state=seed, **given)
            return asked.query(d.x, y, batch_size=k, **extra)

        return call

    return make


# ---------------------------------------------------------------------- small-text
class _Looked:
    """A small-text classifier whose predictions for the whole data set are known."""

    def __init__(self, d: Given) -> None:
        self._probs, self._samples = d.probs, np.exp(d.samples)

    def predict_proba(self, dataset: Any, dropout_sampling: int = 1) -> Array:
        return self._probs if dropout_sampling == 1 else self._samples


def _small_text(strategy: str, **settings: Any) -> Make:
    def make(d: Given, k: int) -> Call:
        from small_text import query_strategies

        clf, free, labelled = _Looked(d), np.arange(d.free), np.flatnonzero(d.labelled)
        extra = {"embeddings": d.x} if strategy == "GreedyCoreset" else {}

        def call(seed: int) -> Any:
            asked = getattr(query_strategies, strategy)(**settings)
            return asked.query(clf, d.x, free, labelled, d.labels[labelled], n=k, **extra)

        return call

    return make


# ---------------------------------------------------------------------- baal, modAL
def _baal(heuristic: str, sampled: bool = False) -> Make:
    def make(d: Given, k: int) -> Call:
        from training.torchvision_ops import torchvision  # noqa: F401  (baal imports torchvision)

        import baal.active.heuristics as heuristics  # isort: skip
        import baal.active.heuristics.stochastics as stochastics  # isort: skip

        if not sampled:
            given = d.probs[: d.free]
            return lambda seed: getattr(heuristics, heuristic)()(given)[:k]
        given = np.ascontiguousarray(np.exp(d.samples[: d.free]).swapaxes(1, 2))  # [free, C, S]
        if heuristic == "BatchBALD":
            return lambda seed: heuristics.BatchBALD(num_samples=k)(given)[:k]
        if heuristic == "PowerSampling":
            return lambda seed: stochastics.PowerSampling(heuristics.BALD(), query_size=k).get_ranks(given)[0]
        if heuristic == "EPIG":
            about = given[_targets(d)]
            return lambda seed: heuristics.EPIG()(given, about)[:k]
        return lambda seed: getattr(heuristics, heuristic)()(given)[:k]

    return make


def _targets(d: Given) -> Array:
    """Rows that our EPIG asks about."""
    from uncertainty.feature_scores import TARGETS, target_rows
    from uncertainty.pool import Pool

    none = np.zeros(len(d.x), bool)
    rows: Array = target_rows(Pool(d.x, d.samples, d.labelled, none, none, labels=d.labels), TARGETS, balanced=True)
    return rows


def _modal(strategy: str) -> Make:
    def make(d: Given, k: int) -> Call:
        from modAL import uncertainty

        clf, x = _Looked(d), d.x[: d.free]
        clf._probs = clf._probs[: d.free]
        return lambda seed: getattr(uncertainty, strategy)(clf, x, n_instances=k)[0]

    return make


# ---------------------------------------------------------------------- who has what
_DRAWN = {"sample_predictions_method_name": "sample"}
PEERS: dict[tuple[str, str], Make] = {
    ("entropy", "scikit-activeml"): _activeml("UncertaintySampling", "clf", method="entropy"),
    ("entropy", "small-text"): _small_text("PredictionEntropy"),
    ("entropy", "baal"): _baal("Entropy"),
    ("entropy", "modAL"): _modal("entropy_sampling"),
    ("margin", "scikit-activeml"): _activeml("UncertaintySampling", "clf", method="margin_sampling"),
    ("margin", "small-text"): _small_text("BreakingTies"),
    ("margin", "baal"): _baal("Margin"),
    ("margin", "modAL"): _modal("margin_sampling"),
    ("least_confidence", "scikit-activeml"): _activeml("UncertaintySampling", "clf", method="least_confident"),
    ("least_confidence", "small-text"): _small_text("LeastConfidence"),
    ("least_confidence", "baal"): _baal("Certainty"),
    ("least_confidence", "modAL"): _modal("uncertainty_sampling"),
    ("bald", "scikit-activeml"): _activeml("GreedyBALD", "ensemble", **_DRAWN),
    ("bald", "small-text"): _small_text("BALD", dropout_samples=SAMPLES),
    ("bald", "baal"): _baal("BALD", sampled=True),
    ("power_bald", "baal"): _baal("PowerSampling", sampled=True),
    ("variation_ratio", "scikit-activeml"): _activeml(
        "QueryByCommittee", "ensemble", method="variation_ratios", **_DRAWN
    ),
    ("epig", "baal"): _baal("EPIG", sampled=True),
    ("batchbald", "scikit-activeml"): _activeml("BatchBALD", "ensemble", **_DRAWN),
    ("batchbald", "scikit-activeml, 10,000 draws"): _activeml("BatchBALD", "ensemble", n_MC_samples=10_000, **_DRAWN),
    ("batchbald", "baal"): _baal("BatchBALD", sampled=True),
    ("k_center", "scikit-activeml"): _activeml("CoreSet"),
    ("k_center", "small-text"): _small_text("GreedyCoreset"),
    ("badge", "scikit-activeml"): _activeml("Badge", "clf"),
    ("typiclust", "scikit-activeml"): _activeml("TypiClust", k=20),
    ("probcover", "scikit-activeml"): _activeml("ProbCover", n_classes=CLASSES, deltas=lambda d: [d.radius]),
    ("maxherding", "scikit-activeml"): _activeml("MaxHerding", metric_dict=lambda d: {"gamma": 1 / d.sigma**2}),
    ("clue", "scikit-activeml"): _activeml("Clue", "estimator"),
    ("dropquery", "scikit-activeml"): _activeml("DropQuery", "clf", n_dropout_samples=3),
}


# ---------------------------------------------------------------------- one process
def _memory(field: str) -> int:
    """Bytes of a field of this process's status: VmRSS, VmHWM (the most since the last reset), VmSize."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def run(algorithm: str, library: str, n: int, folder: Path, limit_s: float, limit_gb: float, threads: float) -> None:
    """Up to five runs with seeds 0, 1, ...; SIGALRM ends the process when one takes longer than `limit_s`."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(threads))
    k = JOINTLY if algorithm == "batchbald" else K
    make = _ours(algorithm) if library == "ours" else PEERS[algorithm, library]
    d = load(folder, n, sampled=algorithm in OF_SAMPLES)
    try:
        make(d.first(300), k)(0)
    except ImportError as error:
        return _say(outcome="not installed", error=str(error))
    call = make(d, k)
    _say(ready=True)
    begun = time.perf_counter()
    for seed in range(RUNS):
        if seed and time.perf_counter() - begun > ENOUGH_S.get(n, 3.0):
            break
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # for those that take no seed
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at what is held now
        held = _memory("VmRSS")
        most = _memory("VmSize") + int(limit_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        start, worked = time.perf_counter(), time.process_time()
        try:
            chosen = call(seed)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            signal.setitimer(signal.ITIMER_REAL, 0)
            return _say(outcome="out of memory", seconds=time.perf_counter() - start)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = _memory("VmHWM") - held
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        picks = np.array([int(row) for row in chosen])
        if len(np.unique(picks)) != k or d.labelled[picks].any():
            return _say(
                outcome="wrong", error=f"{len(np.unique(picks))} different rows, {d.labelled[picks].sum()} known"
            )
        _say(
            outcome="done",
            seconds=seconds,
            processor=worked,
            peak=peak,
            picks=picks.tolist(),
            yardsticks=YARDSTICKS[algorithm](d, picks),
        )


if __name__ == "__main__":
    name, whose, rows, where, *limits = sys.argv[1:]
    partial(run, name, whose, int(rows), Path(where))(*map(float, limits))
