"""Two promises in figures: MNIST's labels to 95 %, and how calibrated a model is on its own audit slice.

    python -m benchmark.features --data FOLDER
    python -m benchmark.milestones labels [--seeds 20]
    python -m benchmark.milestones calibration [--seeds 10]

`labels`: 7,000 of 10,000 digits to choose from, 3,000 to measure on, features learnt from the pool, five labels a
round; with the product's audit slice (a tenth of the labels is not trained on) and without. `calibration`: the
default strategy until its audit slice holds a hundred labels. ECE in 15 bins of n labels is above 0 for a perfect
model too; the debiased one is not, and the test examples (thousands, no label of which was ever asked for) say what
the audit slice estimates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from askfirst.simulation_report import interval, labels_to
from training.simulate import Ground, Plan, Round, measure, replay, split
from uncertainty.calibration import debiased_calibration_error, expected_calibration_error

from .selection import DEFAULT, FIRST_SEED, cell, load

RESULTS = Path(__file__).parent / "results"
TARGET = 0.95
ENOUGH = 100  # labels of the audit slice


def labels(features: Path, seeds: int) -> dict[str, Any]:
    """Labels to 95 % accuracy on MNIST, by strategy and audit share."""
    oracle = load("mnist", features)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        ground = Ground.of(*split(oracle, 0.3, seed), seed)
        for strategy in (DEFAULT, "uherding", "random"):
            for audit_share in (0.1, 0.0):
                rounds = list(replay(ground, Plan(strategy, batch=5, budget=150, seed=seed, audit_share=audit_share)))
                bought = np.array([r.labels for r in rounds], np.float64)
                right = np.array([_accuracy(r, ground) for r in rounds])
                key = "a tenth in the audit slice" if audit_share else "every label trained on"
                found.setdefault(strategy, {}).setdefault(key, []).append(labels_to(bought, right, TARGET))
    return {
        strategy: {key: {"median": float(np.median(v)), "worst": max(v), "runs": v} for key, v in by.items()}
        for strategy, by in found.items()
    }


def _accuracy(found: Round, ground: Ground) -> float:
    value = measure(found, ground.test)["accuracy"]
    assert value is not None
    return value


def calibration(features: Path, seeds: int) -> dict[str, Any]:
    """Calibration error on the audit slice and on test examples once the slice holds a hundred labels."""
    out: dict[str, Any] = {}
    for name, kind in (("mnist", "balanced"), ("cifar10", "balanced"), ("ham10000", "tail")):
        oracle = cell(name, kind, features)
        plain, debiased, test, sizes, accuracy = [], [], [], [], []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            ground = Ground.of(*split(oracle, 0.3, seed), seed)
            for found in replay(ground, Plan(DEFAULT, batch=100, budget=1_400, seed=seed)):
                if found.audit >= ENOUGH:
                    break
            plain.append(expected_calibration_error(found.audit_probabilities, found.audit_labels))
            debiased.append(debiased_calibration_error(found.audit_probabilities, found.audit_labels))
            test.append(expected_calibration_error(found.probabilities, ground.test.labels))
            accuracy.append(_accuracy(found, ground))
            sizes.append((found.labels, found.audit))
        out[f"{name} {kind}"] = {
            "labels": float(np.mean([s[0] for s in sizes])),
            "audit labels": float(np.mean([s[1] for s in sizes])),
            "accuracy on test": str(interval(np.array(accuracy))),
            "ECE on audit": str(interval(np.array(plain))),
            "ECE on audit, debiased": str(interval(np.array(debiased))),
            "ECE on test": str(interval(np.array(test))),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("labels", "calibration"))
    parser.add_argument("--features", type=Path, default=Path("build/features"))
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    found = (labels if args.what == "labels" else calibration)(args.features, args.seeds)
    path = RESULTS / ("mnist_to_95.json" if args.what == "labels" else "audit_calibration.json")
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
