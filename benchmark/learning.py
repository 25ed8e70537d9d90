"""Does asking first pay? The digits demo, one bot, against random order, paired seeds.

    python -m benchmark.learning [--seeds 5] [--labels 150] [--strategies uherding,random] [--replay] [--json FILE]

Each run is `askfirst demo --bots 1 --exit` with its own seed, in a fresh folder: real Label Studio, real queue.
Accuracy is on all images that are not labelled yet; the audit slice takes its tenth of the labels in both arms.
`--replay` leaves Label Studio out: the same representation, head, ranking and audit slice through the same door, one
label at a time; minutes instead of a quarter of an hour.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from askfirst.digits import make_digits
from askfirst.processes import free_port
from training import api as training

FRONT, EXPLORE = 100, 0.1  # as the product chooses by default
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


def replay(strategy: str, seed: int, labels: int) -> list[dict[str, Any]]:
    """The learning curve of the same loop without Label Studio, refitted after each label."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "digits"
        with make_digits(pictures).open(newline="") as file:
            rows = sorted((row["image"], int(row["digit"])) for row in csv.DictReader(file))
        examples = [training.Example(i, name) for i, (name, _) in enumerate(rows, start=1)]
        truth = {i: digit for i, (_, digit) in enumerate(rows, start=1)}
        model = training.ProjectModel(Path(folder) / "home", training.ModelSpec(seed=seed))
        model.embed(examples, lambda example: (pictures / example.uri).read_bytes())
        audit, classes = training.AuditStream(share=0.1, salt=seed), tuple("0123456789")
        labelled: dict[int, int] = {}
        version: str | None = None
        curve = []
        while len(labelled) < labels:
            ranking = model.rank(
                version,
                [i for i in truth if i not in labelled],
                sorted(labelled),
                audit=audit,
                strategy=strategy,
                front=FRONT,
                layers=training.Shares(explore=EXPLORE),
                seed=seed,
            )
            chosen = int(ranking.example_ids[0])
            labelled[chosen] = truth[chosen]
            train = {i: c for i, c in labelled.items() if not audit(i)}
            if not train:
                continue
            measured = {i: c for i, c in labelled.items() if audit(i)}
            version = model.fit(
                training.LabelledSet(train, classes),
                training.LabelledSet(measured, classes),
                generation=len(labelled),
                source={},
            ).id
            rest = np.array([i for i in truth if i not in labelled])
            right = model.predict(version, rest).probabilities.argmax(axis=1) == np.array(
                [truth[i] for i in rest.tolist()]
            )
            curve.append({"labels": len(labelled), "accuracy": float(right.mean()), "version": version})
        return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--strategies", default="uherding,random")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    for strategy in args.strategies.split(","):
        for seed in range(args.seeds):
            curve = (replay if args.replay else run)(strategy, seed, args.labels)
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
