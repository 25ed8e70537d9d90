"""POST /predict for 100 embedded tasks through the real web process.

python -m benchmark.predict_speed [--rounds 100] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from .live_stack import Stack, running_stack


def measure(stack: Stack, rounds: int) -> dict[str, object]:
    """Milliseconds per request: tasks of the served order, and labelled tasks, which need the head."""
    project_id = stack.ready_project(400)
    for _ in range(110):
        stack.label_next(project_id)
    stack.settle(project_id)
    project = stack.ls.project(project_id)
    labelled = set(stack.workshop.state.annotated_ids(project_id))
    tasks = list(stack.ls.tasks(project_id))
    result: dict[str, object] = {"labels": len(labelled)}
    for name, chosen in (
        ("in_the_order", [t for t in tasks if t["id"] not in labelled][:100]),
        ("through_the_head", [t for t in tasks if t["id"] in labelled][:100]),
    ):
        body = {
            "tasks": chosen,
            "project": f"{project_id}.{project.created_at}",
            "label_config": project.label_config,
            "params": {"login": None, "password": None, "context": None},
        }
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            answer = stack.backend("POST", "/predict", json=body)
            times.append((time.perf_counter() - begun) * 1000)
            assert len(answer.json()["results"]) == len(chosen) == 100
        result[name] = {
            q: round(float(np.percentile(times[1:], p)), 1)
            for q, p in (("p50_ms", 50), ("p95_ms", 95), ("max_ms", 100))
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
        result = measure(stack, args.rounds)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
