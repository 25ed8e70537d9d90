"""The gate against candidates whose worth is known: how often is a worse one refused, a better one let through?

    python -m benchmark.gate [--draws 2000]

A live version is right with 80 % and states its chances honestly. Candidates answer the same examples, as two versions
of one model do: mostly alike. Planted are candidates that are as good, worse, better, and as good but overconfident.
Writes `results/gate.json`; the page of figures is in `benchmark/README.md`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.gate import LEVEL, compare, squared_distances

RESULTS = Path(__file__).parent / "results" / "gate.json"
CLASSES = 7
SIZES = (10, 20, 50, 100, 300, 1000)  # audit labels
# Name -> (shift of the logit of the true class, factor of all logits). 0 and 1: as good.
PLANTED = {
    "as good": (0.0, 1.0),
    "worse by 5 points": (-0.55, 1.0),
    "worse by 10 points": (-1.1, 1.0),
    "worse by 20 points": (-2.2, 1.0),
    "better by 5 points": (0.58, 1.0),
    "overconfident (logits times 3)": (0.0, 3.0),
}
_SPREAD = 1.0  # of the noise by which two versions of one model differ, in logits

Doubles = NDArray[np.float64]


def draw(n: int, rng: np.random.Generator) -> tuple[Doubles, NDArray[np.int64]]:
    """[n, C] logits that are calibrated and right in some 80 %, and the truth drawn from them."""
    logits = rng.normal(0, 1, (n, CLASSES))
    logits[np.arange(n), rng.integers(0, CLASSES, n)] += rng.uniform(0, 9, n)
    p = softmax(logits)
    truth = (p.cumsum(1) > rng.random(n)[:, None]).argmax(1)
    return logits, truth


def candidate_of(
    logits: Doubles, truth: NDArray[np.int64], shift: float, factor: float, rng: np.random.Generator
) -> Doubles:
    """[n, C] logits of another version: noise of its own on each, some harm or help, some scale."""
    other = logits + rng.normal(0, _SPREAD, logits.shape)
    other[np.arange(len(truth)), truth] += shift
    return other * factor


def softmax(logits: Doubles) -> Doubles:
    p: Doubles = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def trial(n: int, shift: float, factor: float, rng: np.random.Generator) -> tuple[bool, float]:
    """(refused, accuracy of the candidate minus that of the live version)."""
    logits, truth = draw(n, rng)
    # Both versions have noise of their own, so that "as good" is as good.
    live, other = (candidate_of(logits, truth, *how, rng) for how in ((0.0, 1.0), (shift, factor)))
    p, q = softmax(other), softmax(live)
    right, live_right = p.argmax(1) == truth, q.argmax(1) == truth
    found = compare(right, live_right, squared_distances(p, truth), squared_distances(q, truth))
    return found.worse, float(right.mean() - live_right.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    rows = []
    for name, how in PLANTED.items():
        for n in SIZES:
            rng = np.random.default_rng(n)
            found = [trial(n, *how, rng) for _ in range(draws)]
            refused = float(np.mean([worse for worse, _ in found]))
            error = float(np.sqrt(max(refused * (1 - refused), 1e-9) / draws))
            gain = float(np.mean([gain for _, gain in found]))
            rows.append(
                {
                    "candidate": name,
                    "audit_labels": n,
                    "accuracy_minus_live": round(gain, 4),
                    "refused": round(refused, 4),
                    "standard_error": round(error, 4),
                }
            )
            print(
                f"{name:32}{n:6} labels  {100 * gain:+6.1f} points  refused {100 * refused:5.1f} % +- {100 * error:.1f}"
            )
    RESULTS.write_text(json.dumps({"level": LEVEL, "draws": draws, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
