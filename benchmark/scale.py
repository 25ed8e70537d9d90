"""A million examples: seconds and memory of choosing a batch of a thousand, each strategy in a process of its own.

    python -m benchmark.scale [--rows 1000000] [--batch 1000] [--strategies auto,uherding,...]

Rows of 384 numbers around 1,000 centres, half-precision and memory-mapped as the product keeps them; predictions of
ten classes; 1,000 labels. Timed: everything from `Pool` to the chosen rows, the layers around the strategy included.
Peak memory is that of the whole process, features that were read among it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "scale.json"
WIDTH, CENTRES, CLASSES, LABELS = 384, 1_000, 10, 1_000
STRATEGIES = (
    "auto", "uherding", "maxherding", "margin", "power_margin", "badge", "kmeans_margin", "cluster_margin", "clue",
    "typiclust", "probcover", "galaxy", "dropquery", "alfa_mix", "bald", "power_bald", "batchbald", "bait", "k_center",
)  # fmt: skip
LIMIT_S = 900


def make(rows: int, folder: Path) -> None:
    """Features [rows, 384] float16, log-probabilities [rows, 1, 10] and classes [rows], written once."""
    if (folder / "classes.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, WIDTH)).astype(np.float32)
    head = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (rows, WIDTH))
    log_p = np.lib.format.open_memmap(folder / "log_probs.npy", "w+", np.float32, (rows, 1, CLASSES))
    classes = np.empty(rows, np.int64)
    for start in range(0, rows, 50_000):
        stop = min(rows, start + 50_000)
        x = centres[rng.integers(0, CENTRES, stop - start)] + rng.normal(size=(stop - start, WIDTH)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        logits = 3 * (x @ head) + 0.5 * rng.normal(size=(stop - start, CLASSES)).astype(np.float32)
        logits -= logits.max(1, keepdims=True)
        features[start:stop] = x
        log_p[start:stop, 0] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        classes[start:stop] = (x @ head).argmax(1)
    np.save(folder / "classes.npy", classes)


def one(strategy: str, folder: Path, batch: int) -> dict[str, Any]:
    """Choose once, here."""
    from uncertainty.layers import Layers, select_in_layers
    from uncertainty.strategies import Pool

    features = np.load(folder / "features.npy", mmap_mode="r")
    log_p = np.load(folder / "log_probs.npy", mmap_mode="r")
    classes = np.load(folder / "classes.npy")
    n = len(classes)
    labelled = np.zeros(n, bool)
    labelled[np.random.default_rng(1).permutation(n)[:LABELS]] = True
    none = np.zeros(n, bool)
    begun = time.perf_counter()
    pool = Pool(features, log_p, labelled, none, none, labels=np.where(labelled, classes, -1))
    chosen = select_in_layers(strategy, pool, batch, seed=0, layers=Layers(explore=0.1, quota=0, veto=0))
    seconds = time.perf_counter() - begun
    return {
        "seconds": round(seconds, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "chosen": len(chosen),
        "note": chosen.note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--folder", type=Path, default=Path("build/scale"))
    parser.add_argument("--here", action="store_true", help="one strategy in this process, result as JSON")
    args = parser.parse_args()
    folder = args.folder / str(args.rows)
    if args.here:
        print(json.dumps(one(args.strategies, folder, args.batch)))
        return
    make(args.rows, folder)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for strategy in args.strategies.split(","):
        command = [sys.executable, "-m", "benchmark.scale", "--here", "--strategies", strategy]
        command += ["--rows", str(args.rows), "--batch", str(args.batch), "--folder", str(args.folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
            found[strategy] = {"rows": args.rows, "batch": args.batch, **json.loads(done.stdout)}
        except subprocess.TimeoutExpired:
            found[strategy] = {"rows": args.rows, "batch": args.batch, "failed": f"not done after {LIMIT_S} s"}
        except subprocess.CalledProcessError as error:
            found[strategy] = {"rows": args.rows, "batch": args.batch, "failed": error.stderr.strip().splitlines()[-1]}
        found[strategy]["cores"] = os.cpu_count()
        print(strategy, found[strategy], flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
