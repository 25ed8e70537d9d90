"""Several annotators on one queue: is our order what they get, does anybody get a task twice, or none too early?

    python -m benchmark.order [--bots 3] [--tasks 300] [--runs 3] [--think 1] [--json FILE]

Bots of their own Label Studio accounts label all tasks at once, as fast as Label Studio answers. Two kinds of runs:
`still`: no model is due, one order is served from first to last, and each task must come in its place: a task that was
answered before another was asked for stands before it in our order. (Of requests that overlap in time either may be
answered first.)
`learning`: the model is refitted and the order replaced all along; who gets what is counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from askfirst.bots import Job, Record, run_bots

from .live_stack import Stack, running_stack


def one_run(stack: Stack, number: int, bots: int, tasks: int, think_s: float, *, learning: bool) -> dict[str, Any]:
    """One project labelled to the end; what its annotators met."""
    project_id = stack.ready_project(tasks, min_annotations_to_start_training=0 if learning else 10 * tasks)
    pushed = stack.served(project_id)
    assert pushed is not None
    browsers = {f"bot {n}": stack.another_annotator(100 * number + n) for n in range(1, bots + 1)}
    record = Record()
    job = Job(
        project_id=project_id,
        control="digit",
        image_control="image",
        link=stack.home.link(stack.images),
        truth=stack.truth,
        labels_per_bot=tasks,
        think_s=think_s,
        bots=bots,
    )
    run_bots(browsers, job, record, stop=threading.Event())
    stack.say_goodbye()
    served, errors = record.in_time_order()
    times = Counter(s.task for s in served)
    place = {task: i for i, task in enumerate(pushed.ids)}
    # Served in order of their asking: whoever asked after the answer to another must not stand before it.
    inversions = (
        0 if learning else sum(a.at < b.asked and place[a.task] > place[b.task] for a in served for b in served)
    )
    stack.remove_project(project_id)
    return {
        "kind": "learning" if learning else "still",
        "served": len(served),
        "distinct": len(times),
        "twice": sum(n > 1 for n in times.values()),
        "without_prediction": sum(s.version is None for s in served),
        "versions": len({s.version for s in served}),
        "out_of_order": inversions,
        "errors": [f"{e.what}: {e.status} {e.detail[:120]}" for e in errors],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bots", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--think", type=float, default=0.0, help="seconds that a bot looks at an image")
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
        rows = []
        for number in range(2 * args.runs):
            rows.append(one_run(stack, number, args.bots, args.tasks, args.think, learning=number % 2 == 1))
            print(json.dumps(rows[-1]), flush=True)
        log = stack.home.log("label-studio").read_text(errors="replace")
    result = {"bots": args.bots, "tasks": args.tasks, "think_s": args.think, "runs": rows}
    result["label_studio_said_a_task_should_not_be_taken"] = log.count("should not be taken")
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
