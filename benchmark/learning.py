"""Does asking first pay? The digits demo, one bot, against random order, paired seeds.

    python -m benchmark.learning [--seeds 5] [--labels 150] [--strategies uherding,random] [--json FILE]

Each run is `askfirst demo --bots 1 --exit` with its own seed, in a fresh folder: real Label Studio, real queue.
Accuracy is on all images that are not labelled yet; the audit slice takes its tenth of the labels in both arms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from askfirst.processes import free_port

AT = (10, 20, 30, 50, 100, 150)


def accuracy_at(curve: list[dict[str, Any]], labels: int) -> float:
    """Accuracy of the newest model that knew at most `labels` labels."""
    known = [point["accuracy"] for point in curve if point["labels"] <= labels]
    return float(known[-1]) if known else 0.0


def run(strategy: str, seed: int, labels: int) -> list[dict[str, Any]]:
    """The learning curve of one demo."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "askfirst", "demo", "--bots", "1", "--labels-per-bot", str(labels), "--exit"),
                *("--strategy", strategy, "--seed", str(seed), "--json", str(out), "--data-dir", f"{folder}/demo"),
                *("--port", str(free_port()), "--backend-port", str(free_port())),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return list(json.loads(out.read_text())["curve"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--strategies", default="uherding,random")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    for strategy in args.strategies.split(","):
        for seed in range(args.seeds):
            curve = run(strategy, seed, args.labels)
            curves.setdefault(strategy, []).append(curve)
            shown = ", ".join(f"{n}: {accuracy_at(curve, n):.3f}" for n in AT if n <= args.labels)
            print(f"{strategy} seed {seed}: {shown}", flush=True)
    table = {
        strategy: {
            str(n): {
                "mean": round(float(np.mean([accuracy_at(c, n) for c in runs])), 4),
                "each": [round(accuracy_at(c, n), 4) for c in runs],
            }
            for n in AT
            if n <= args.labels
        }
        for strategy, runs in curves.items()
    }
    print(json.dumps(table, indent=1))
    if args.json:
        args.json.write_text(json.dumps({"table": table, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
