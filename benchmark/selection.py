"""Which strategy pays, where, and where it does not: every strategy, three data sets, five kinds of trouble.

    python -m benchmark.features --data FOLDER
    python -m benchmark.selection [--datasets mnist,cifar10,ham10000] [--seeds 20] [--workers 2]
    python -m benchmark.selection --page docs/benchmark.md

The product's own engine (`askfirst simulate`) on embeddings that lie still: convex head, temperature out of fold, audit
slice, a tenth of the places to chance. Paired seeds; HAM10000 split by lesion. Resumable: what is in
`benchmark/results/selection/` is not run again.

Cells: `balanced` (equal classes as far as there are examples), `tail` (classes fall off by 50 to 1; HAM10000 as it
is), `copies` (three quarters of the pool are noisy copies), `noise` (a tenth of the answers is wrong), `junk` (a fifth
of the pool is from another data set, answered by a skip).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from askfirst import simulation
from askfirst.simulation_data import oracle_of
from askfirst.simulation_report import compare, read
from training.api import Shares
from training.simulate import Oracle

RESULTS = Path(__file__).parent / "results" / "selection"
CELLS = ("balanced", "tail", "copies", "noise", "junk")
STRATEGIES = (
    "random", "uherding", "auto", "maxherding", "margin", "power_margin", "entropy", "badge", "bait", "kmeans_margin",
    "cluster_margin", "typiclust", "k_center", "galaxy", "dropquery", "alfa_mix", "power_bald",
)  # fmt: skip
JUNK_OF = {"mnist": "notmnist", "cifar10": "mnist", "ham10000": "cifar10"}
MOST = 5_000  # examples of a cell: keeps twenty seeds of all strategies within an evening
BATCH, BUDGET = 25, 300
DEFAULT = "auto"
FIRST_SEED = 100  # seeds below were used while `auto` was made


def load(name: str, features: Path) -> Oracle:
    """A data set as `benchmark.features` wrote it."""
    arrays = np.load(features / f"{name}.npz")
    groups = arrays["groups"].tolist() if "groups" in arrays.files else None
    return oracle_of(arrays["features"].astype(np.float32), arrays["labels"].tolist(), groups)


def cell(name: str, kind: str, features: Path) -> Oracle:
    """A data set in trouble. Drawn with a fixed seed: the seeds of the study vary split and strategies."""
    oracle, rng = load(name, features), np.random.default_rng(7)
    share = np.ones(len(oracle.classes))
    if name == "ham10000":
        share = np.full(len(oracle.classes), np.inf)  # its tail is its own, except where balance is asked for
    if kind == "tail" and name != "ham10000":
        share = 50.0 ** (-np.arange(len(oracle.classes)) / (len(oracle.classes) - 1))
    rows = _drawn(oracle, share if kind != "balanced" or name != "ham10000" else np.ones_like(share), rng)
    if kind == "copies":
        kept = oracle.take(rows[: max(1, len(rows) // 4)])
        again = np.tile(np.arange(len(kept.labels)), 4)
        copies = kept.take(again)
        spread = 0.05 * np.linalg.norm(kept.features, axis=1).mean() / np.sqrt(kept.features.shape[1])
        noisy = copies.features + spread * rng.normal(size=copies.features.shape).astype(np.float32)
        groups = again if copies.groups is None else copies.groups
        return replace(copies, features=noisy, groups=groups.astype(np.int64))
    taken = oracle.take(rows)
    if kind == "junk":
        other = load(JUNK_OF[name], features) if JUNK_OF[name] != "notmnist" else _raw("notmnist", features)
        count = len(rows) // 4
        extra = other.features[rng.permutation(len(other.features))[:count]]
        if extra.shape[1] != taken.features.shape[1]:  # another width: a rotation of its leading part, same lengths
            extra = _fitted(extra, taken.features, rng)
        groups = (
            None if taken.groups is None else np.concatenate([taken.groups, taken.groups.max() + 1 + np.arange(count)])
        )
        return Oracle(
            np.concatenate([taken.features, extra]),
            np.concatenate([taken.labels, np.zeros(count, np.int64)]),
            taken.classes,
            groups,
            np.concatenate([np.zeros(len(rows), bool), np.ones(count, bool)]),
        )
    return taken


def _raw(name: str, features: Path) -> Oracle:
    arrays = np.load(features / f"{name}.npz")
    n = len(arrays["features"])
    return Oracle(arrays["features"].astype(np.float32), np.zeros(n, np.int64), ("junk",))


def _fitted(extra: np.ndarray, like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    width = like.shape[1]
    turned = extra @ (rng.normal(size=(extra.shape[1], width)) / np.sqrt(width))
    length = np.linalg.norm(like, axis=1).mean()
    return (turned / np.linalg.norm(turned, axis=1, keepdims=True) * length).astype(np.float32)


def _drawn(oracle: Oracle, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most `MOST` rows, classes in proportion to `share` (infinite: as they are), in random order."""
    counts = np.bincount(oracle.labels, minlength=len(oracle.classes))
    if np.isinf(share).all():
        return rng.permutation(len(oracle.labels))[:MOST]
    want = np.minimum(counts, np.maximum(20, MOST * share / share.sum())).astype(int)
    picked = [rng.permutation(np.flatnonzero(oracle.labels == c))[: want[c]] for c in range(len(counts))]
    return rng.permutation(np.concatenate(picked))


def run(name: str, kind: str, features: Path, strategies: tuple[str, ...], seeds: int, workers: int) -> None:
    oracle = cell(name, kind, features)
    settings = simulation.Settings(
        strategies=strategies,
        batch=BATCH,
        budget=BUDGET,
        seeds=seeds,
        first_seed=FIRST_SEED,
        test_share=0.3,
        layers=Shares(),
        noise=0.1 if kind == "noise" else 0.0,
        workers=workers,
    )
    about = {"data": name, "cell": kind, "examples": len(oracle.labels), "classes": len(oracle.classes)}
    for progress in simulation.run(oracle, settings, RESULTS / f"{name}_{kind}.csv", about=about):
        print(f"{name} {kind}: {progress.done} of {progress.total}", end="\r", flush=True)
    print(f"{name} {kind}: done" + " " * 20, flush=True)


# ---------------------------------------------------------------------- the page
def page() -> str:
    """Tables of everything that was run."""
    found = {path.stem: read(path) for path in sorted(RESULTS.glob("*.csv"))}
    tables = {stem: compare(frame, "balanced_accuracy")[0].set_index("strategy") for stem, frame in found.items()}
    strategies = sorted({s for table in tables.values() for s in table.index})
    # By the difference to random order of the same seeds: strategies need not have been run on the same ones.
    gains = {stem: table["to_random"].fillna(0.0) for stem, table in tables.items()}
    ranks = pd.DataFrame({stem: gain.rank(ascending=False) for stem, gain in gains.items()})
    mean_gain = pd.DataFrame(gains).mean(axis=1)
    mean_rank = ranks.mean(axis=1).sort_values()
    lines = [
        "# Which strategy pays",
        "",
        "Made by `python -m benchmark.selection --page docs/benchmark.md`; see it for data and cells.",
        f"Mean balanced accuracy over the learning curve ({BATCH} to {BUDGET} labels, {BATCH} a round), difference to",
        "random order with its 95 % bootstrap interval, paired by seed. **bold**: better beyond chance; ~~struck~~:",
        "worse beyond chance.",
        "",
        "| strategy | mean rank | mean gain | " + " | ".join(stem.replace("_", " ") for stem in tables) + " |",
        "|---" * (len(tables) + 3) + "|",
    ]
    for strategy in mean_rank.index:
        cells = [_cell(table, strategy) for table in tables.values()]
        lines.append(
            f"| {strategy} | {mean_rank[strategy]:.1f} | {100 * mean_gain[strategy]:+.1f} | " + " | ".join(cells) + " |"
        )
    worse = {
        s: [stem for stem, t in tables.items() if s in t.index and t.loc[s, "to_random_high"] < 0] for s in strategies
    }
    lines += ["", "## Honest losses", ""]
    lines += [f"* {s}: worse than random in {', '.join(w)}" for s, w in worse.items() if w] or ["None was shown."]
    lines += [
        "",
        "## Calibration and time",
        "",
        f"| data | ECE on test at 100 labels, {DEFAULT} | at the end | seconds a round |",
    ]
    lines.append("|---|---|---|---|")
    for stem, frame in found.items():
        mine = frame[frame["strategy"] == DEFAULT]
        at = mine[mine["labels"] == 100]["ece"].mean()
        end = mine[mine["labels"] == mine["labels"].max()]["ece"].mean()
        lines.append(f"| {stem.replace('_', ' ')} | {at:.3f} | {end:.3f} | {mine['seconds'].mean():.2f} |")
    counts: dict[int, set[str]] = {}
    for frame in found.values():
        for strategy, rows in frame.groupby("strategy"):
            counts.setdefault(int(rows["seed"].nunique()), set()).add(str(strategy))
    lines += ["", *(f"{n} seeds: {', '.join(sorted(names))}." for n, names in sorted(counts.items(), reverse=True)), ""]
    notes = RESULTS / "notes.md"
    lines += notes.read_text().splitlines() if notes.exists() else []
    return "\n".join([*lines, "", *_milestones(), *_scale(), ""])


def _json(name: str) -> Any:
    path = RESULTS.parent / name
    return json.loads(path.read_text()) if path.exists() else {}


def _milestones() -> list[str]:
    """Tables of `benchmark.milestones`."""
    lines = ["## Labels to 95 % on MNIST", "", "No weights from outside (`python -m benchmark.milestones labels`).", ""]
    lines += ["| strategy | labels | median | worst |", "|---|---|---|---|"]
    for strategy, by in _json("mnist_to_95.json").items():
        lines += [f"| {strategy} | {key} | {v['median']:.0f} | {v['worst']:.0f} |" for key, v in by.items()]
    found = _json("audit_calibration.json")
    lines += [
        "",
        "## Calibration on the audit slice",
        "",
        "`python -m benchmark.milestones calibration`: once the slice",
    ]
    lines += ["holds a hundred labels. Fifteen bins of a hundred labels show an error for a perfect model too.", ""]
    names = list(next(iter(found.values()), {}))
    lines += ["| data | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {data} | " + " | ".join(f"{v:.0f}" if isinstance(v, float) else v for v in values.values()) + " |"
        for data, values in found.items()
    ]
    return [*lines, ""]


def _scale() -> list[str]:
    """Table of `benchmark.scale`."""
    lines = [
        "## A million examples",
        "",
        "`python -m benchmark.scale`: 1,000,000 x 384, a batch of 1,000, two cores.",
        "",
    ]
    lines += ["| strategy | seconds | peak memory of the process, GB |", "|---|---|---|"]
    for strategy, row in _json("scale.json").items():
        shown = (row["failed"], "") if "failed" in row else (f"{row['seconds']:.0f}", f"{row['peak_gb']:.1f}")
        lines.append(f"| {strategy} | {shown[0]} | {shown[1]} |")
    return lines


def _cell(table: pd.DataFrame, strategy: str) -> str:
    if strategy not in table.index:
        return ""
    row = table.loc[strategy]
    if np.isnan(row["to_random"]):
        return f"{row['area']:.3f}"
    text = f"{100 * row['to_random']:+.1f} ({100 * row['to_random_low']:+.1f} to {100 * row['to_random_high']:+.1f})"
    return f"**{text}**" if row["to_random_low"] > 0 else f"~~{text}~~" if row["to_random_high"] < 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("build/features"))
    parser.add_argument("--datasets", default="mnist,cifar10,ham10000")
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.page:
        args.page.write_text(page())
        return
    for name in args.datasets.split(","):
        for kind in args.cells.split(","):
            run(name, kind, args.features, tuple(args.strategies.split(",")), args.seeds, args.workers)


if __name__ == "__main__":
    main()
