"""From a submitted annotation to a task served from an order that used it.

    python -m benchmark.latency --tasks 10000 --labels 100 [--flag off] [--json FILE]

One annotator on a real Label Studio (SQLite) labels; after each submit the clock runs until a next-task call has
returned a task with a prediction of a version made from that label. Says where the time goes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from backend.queue_push import read_pushed

from .live_stack import Stack, running_stack

FLAG = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"
GIVE_UP_S = 120.0


def measure(stack: Stack, project_id: int, labels: int, pause_s: float) -> list[dict[str, float]]:
    """One row per label: seconds to submit, to the order, to the served task, and the refresh's own laps."""
    rows = []
    state = stack.workshop.state
    task = stack.next_task(project_id)
    for count in range(1, labels + 1):
        begun = time.perf_counter()
        stack.submit(task)
        submitted = time.perf_counter()
        while True:
            pushed = read_pushed(state, project_id)
            if pushed is not None and pushed.labels >= count:
                break
            if time.perf_counter() - submitted > GIVE_UP_S:
                raise SystemExit(
                    f"label {count} did not reach an order within {GIVE_UP_S:.0f} s: {state.events(project_id)[:3]}"
                )
            time.sleep(0.005)
        ordered = time.perf_counter()
        task = stack.next_task(project_id)
        served = time.perf_counter()
        versions = {p["model_version"] for p in task["predictions"]}
        if pushed.version not in versions:
            raise SystemExit(f"served from {versions}, not from {pushed.version!r}")
        in_place = state.get(project_id, "front_of") == pushed.version
        if in_place and str(task["id"]) not in state.get(project_id, "front"):
            raise SystemExit(f"task {task['id']} is not in the front that was changed in place")
        rows.append(
            {
                "submit_s": submitted - begun,
                "order_s": ordered - submitted,
                "next_task_s": served - ordered,
                "total_s": served - submitted,
                "in_place": float(in_place),
                **{
                    f"{name.replace('labels', 'read')}_s": s
                    for name, s in state.get(project_id, "last_refresh")["seconds"].items()
                },
            }
        )
        time.sleep(pause_s)
    return rows


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Median, 95th percentile and maximum of each column, in seconds."""
    return {
        name: {
            q: round(float(np.percentile([r.get(name, 0.0) for r in rows], p)), 3)
            for q, p in (("p50", 50), ("p95", 95), ("max", 100))
        }
        for name in (
            "total_s",
            "submit_s",
            "order_s",
            "next_task_s",
            "read_s",
            "fit_s",
            "settings_s",
            "rank_s",
            "push_s",
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--flag", choices=("on", "off"), default="on", help="Label Studio's memory-efficient import")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between an order and the next submit")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stack(Path(folder), label_studio={FLAG: "true" if args.flag == "on" else "false"}) as stack,
    ):
        begun = time.perf_counter()
        project_id = stack.make_project(0)
        names = sorted(stack.truth)
        for start in range(0, args.tasks, 10_000):
            stack.add_named(project_id, [names[i % len(names)] for i in range(start, min(args.tasks, start + 10_000))])
        imported = time.perf_counter()
        stack.connect(project_id)
        stack.wait(
            # Redis first: Label Studio needs a third of a second to count a project of 100,000 tasks.
            lambda: (
                (p := read_pushed(stack.workshop.state, project_id))
                and (p.kind, len(p.ids)) == ("full", args.tasks)
                and stack.served(project_id)
            ),
            "an order of all tasks",
            within_s=3600,
        )
        ready = time.perf_counter()
        rows = measure(stack, project_id, args.labels, args.pause)
        result = {
            "tasks": args.tasks,
            "labels": args.labels,
            "import_flag": args.flag,
            "front_changed_in_place": int(sum(row["in_place"] for row in rows)),
            "import_of_tasks_s": round(imported - begun, 1),
            "first_full_order_s": round(ready - imported, 1),
            **summary(rows),
        }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
