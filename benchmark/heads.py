"""Two questions about each image: how a strategy that knows one distribution should see two heads.

    python -m benchmark.features --data FOLDER
    python -m benchmark.heads --data FOLDER [--seeds 12] [--out benchmark/results/heads.json]

HAM10000 asks for diagnosis (7) and site (15), split by lesion; MNIST for the digit (10) and how much ink it has
(3 classes of equal size). 3,000 examples to ask from, 1,500 to test on, 200 labels in batches of 20, every answer of a
task given at once. What is told is the area under the curve of balanced accuracy on the test examples, the mean of both
heads.

    random   random order
    first    the first head alone, as if the other were not asked
    second   the other alone
    margins  both by the mean of their margins, on the classes of the first: what the product does
    ranks    as margins, by the ranks of the margins (`uncertainty.multihead.combine`)
    wrong    as margins, by the chance that an answer is wrong
    product  the distribution over pairs of classes, as if heads were independent
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.answers import OneOf
from training.blas import one_thread
from training.evaluate import audit_metrics
from training.head import HeadFit, Start, fit_head
from training.joint import Asking, as_log_probabilities, join
from training.ranking import Candidates, Shares, order_candidates
from training.space import Space
from training.targets import HeadSpec
from uncertainty.multihead import combine

POOL, TEST, BUDGET, BATCH = 3_000, 1_500, 200, 20
DIMS = 128
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Seen = tuple[Floats, Ints]  # log-probabilities [N, C] and class of each row


def load(name: str, features: Path, data: Path) -> tuple[Floats, list[Ints], Ints]:
    """(features [N, D], classes of each example by each head, group of each example)."""
    arrays = np.load(features / f"{name}.npz")
    x = arrays["features"].astype(np.float32)
    first = np.unique(arrays["labels"], return_inverse=True)[1]
    if name == "ham10000":
        with (data / "ham10000_200x150" / "HAM10000_metadata.csv").open(newline="") as file:
            site = np.array([row["localization"] for row in csv.DictReader(file)])
        return x, [first, np.unique(site, return_inverse=True)[1]], np.unique(arrays["groups"], return_inverse=True)[1]
    images = np.load(data / "mnist" / "mnist.npz")["x_train"]
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[: len(x)])  # those that `features` drew
    ink = images[rows].reshape(len(x), -1).mean(axis=1)
    return x, [first, np.searchsorted(np.quantile(ink, [1 / 3, 2 / 3]), ink)], np.arange(len(x))


def outputs_of(fits: list[HeadFit], x: Floats) -> list[OneOf]:
    return [
        OneOf(
            HeadSpec(str(place), "single", tuple(map(str, range(fit.head.classes)))),
            fit.head.log_probabilities(fit.head.logits(x)),
        )
        for place, fit in enumerate(fits)
    ]


def alone(place: int) -> Callable[[list[OneOf], list[Ints]], Seen]:
    return lambda outputs, y: (outputs[place].log_probabilities, y[place])


def margins(outputs: list[OneOf], y: list[Ints]) -> Seen:
    joint = join(outputs, [o.answers() for o in outputs], [np.zeros(len(y[0]), bool)] * len(outputs), Asking())
    return as_log_probabilities(joint.uncertainty, outputs[0].log_probabilities), y[0]


def ranks(outputs: list[OneOf], y: list[Ints]) -> Seen:
    uncertainty, _ = combine({o.spec.name: o.uncertainty() for o in outputs})
    return as_log_probabilities(uncertainty, outputs[0].log_probabilities), y[0]


def wrong(outputs: list[OneOf], y: list[Ints]) -> Seen:
    mean = np.mean([1 - o.answers().confidence for o in outputs], axis=0).astype(np.float64)
    return as_log_probabilities(mean, outputs[0].log_probabilities), y[0]


def product(outputs: list[OneOf], y: list[Ints]) -> Seen:
    a, b = (o.log_probabilities for o in outputs)
    return (a[:, :, None] + b[:, None, :]).reshape(len(a), -1), y[0] * b.shape[1] + y[1]


WAYS = {
    "first": alone(0),
    "second": alone(1),
    "margins": margins,
    "ranks": ranks,
    "wrong": wrong,
    "product": product,
}


def replay(x: Floats, y: list[Ints], groups: Ints, way: str, strategy: str, seed: int) -> list[list[float]]:
    """Balanced accuracy of each head after each batch."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(np.unique(groups))
    is_test = np.isin(groups, shuffled[: len(shuffled) // 3])
    pool = rng.permutation(np.flatnonzero(~is_test))[:POOL]
    test = rng.permutation(np.flatnonzero(is_test))[:TEST]
    classes = [int(labels.max()) + 1 for labels in y]
    space = Space.learn(x[pool])
    reduced = space.reduced(x[pool], DIMS)
    answers = [labels[pool] for labels in y]
    bought = np.zeros(len(pool), bool)
    none = np.zeros(len(pool), bool)
    fits: list[HeadFit] = []
    curve = []
    while bought.sum() < BUDGET:
        log_p, labels = None, None
        if fits and way != "random":
            log_p, known = WAYS[way](outputs_of(fits, x[pool]), answers)
            labels = np.where(bought, known, -1)
        order = order_candidates(
            Candidates(np.arange(len(pool)), reduced, log_p, bought, none, none, ~bought, labels),
            strategy="random" if way == "random" else strategy,
            front=BATCH,
            layers=Shares(explore=0.1),
            audit_share=0.0,
            seed=seed,
        )
        bought[order.rows[:BATCH]] = True
        rows = np.flatnonzero(bought)
        starts = [Start(f.head, f.regularisation, f.regularisation_labels, f.temperature_labels) for f in fits]
        fits = [
            fit_head(x[pool][rows], labels[rows], count, space, start=starts[place] if starts else None, seed=seed)
            for place, (labels, count) in enumerate(zip(answers, classes, strict=True))
        ]
        found = outputs_of(fits, x[test])
        curve.append(
            [
                float(
                    audit_metrics(np.exp(o.log_probabilities), labels[test], intervals=False)["balanced_accuracy"] or 0
                )
                for o, labels in zip(found, y, strict=True)
            ]
        )
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, default=Path("build/features"))
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--strategies", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/heads.json"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in ("ham10000", "mnist"):
        x, y, groups = load(name, arguments.features, arguments.data)
        for strategy in arguments.strategies.split(","):
            for way in ("random", *WAYS):
                if way == "random" and strategy != arguments.strategies.split(",")[0]:
                    continue
                with one_thread():
                    curves = np.array(
                        [replay(x, y, groups, way, strategy, seed) for seed in range(arguments.seeds)]
                    )  # [seeds, rounds, heads]
                area = curves.mean(axis=1)
                rows.append(
                    {
                        "data": name,
                        "strategy": "" if way == "random" else strategy,
                        "way": way,
                        "area": [round(float(a), 4) for a in area.mean(axis=1)],
                        "heads": [round(float(a), 4) for a in area.mean(axis=0)],
                    }
                )
                print(f"{name:<9} {strategy:<9} {way:<8} {area.mean():.4f} ({rows[-1]['heads']})", flush=True)
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
