"""Kill -9 worker, Redis or web process at random moments while bots label; nothing may be lost.

    python -m benchmark.chaos [--kills 20] [--bots 2] [--seed 0] [--json FILE]

After every kill the clock runs until a label submitted after the kill is in a served order. At the end the newest
model must know every label that was submitted, each once, and no annotator may have seen an error or an empty queue.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from askfirst.errors import LabelStudioProblem
from backend.errors import StoreUnavailable
from backend.queue_push import read_pushed

from .live_stack import Stack, running_stack

VICTIMS = ("worker-fast", "worker-slow", "redis", "web")
HEAL_WITHIN_S = 120.0


class Annotator(threading.Thread):
    """Labels at a person's hurried pace and remembers everything that went wrong."""

    def __init__(self, stack: Stack, project_id: int, number: int, pause_s: float) -> None:
        super().__init__(daemon=True)
        self._stack, self._project_id, self._pause_s = stack, project_id, pause_s
        self._session = stack.another_annotator(100 + number)
        self.done = threading.Event()
        self.submitted: dict[int, str] = {}
        self.errors: list[str] = []
        self.slowest_submit_s = 0.0

    def run(self) -> None:
        while not self.done.is_set():
            try:
                task = self._stack.next_task(self._project_id, self._session)
                if task["id"] in self.submitted:
                    self.errors.append(f"task {task['id']} was served twice")
                begun = time.monotonic()
                self._stack.submit(task, session=self._session)
                self.slowest_submit_s = max(self.slowest_submit_s, time.monotonic() - begun)
                self.submitted[task["id"]] = self._stack.label_of(task)
            except LabelStudioProblem as error:
                self.errors.append(str(error))
            self.done.wait(self._pause_s)


def healed(stack: Stack, project_id: int, annotators: list[Annotator], since: float) -> float:
    """Seconds from `since` until a served order knows as many labels as were submitted by then."""
    target = sum(len(a.submitted) for a in annotators) + 1
    while time.monotonic() - since < HEAL_WITHIN_S:
        try:
            pushed = read_pushed(stack.workshop.state, project_id)
        except StoreUnavailable:
            pushed = None
        if pushed is not None and pushed.labels >= target:
            return time.monotonic() - since
        time.sleep(0.05)
    return float("inf")


def run(stack: Stack, kills: int, bots: int, pause_s: float, seed: int) -> dict[str, Any]:
    random_ = random.Random(seed)
    project_id = stack.ready_project(1700)
    annotators = [Annotator(stack, project_id, i, pause_s) for i in range(bots)]
    for annotator in annotators:
        annotator.start()
    time.sleep(5)
    rows = []
    for number in range(kills):
        victim = VICTIMS[number % len(VICTIMS)]
        time.sleep(random_.uniform(0.0, 3.0))
        pid = stack.supervisor.pid(victim)
        if pid is None:
            rows.append({"victim": victim, "healed_s": None})
            continue
        os.killpg(pid, signal.SIGKILL)
        seconds = healed(stack, project_id, annotators, time.monotonic())
        rows.append({"victim": victim, "healed_s": round(seconds, 2)})
        print(
            f"kill {number + 1}/{kills} {victim}: healed after {seconds:.1f} s, "
            f"{sum(len(a.submitted) for a in annotators)} labels",
            flush=True,
        )
    for annotator in annotators:
        annotator.done.set()
    for annotator in annotators:
        annotator.join()
    truth = {t: label for a in annotators for t, label in a.submitted.items()}
    stack.wait(lambda: stack.labels_used(project_id) == len(truth), "the last label in the newest model", within_s=60)
    model = stack.workshop.desk(project_id).model
    learnt = model.labels_of(model.newest().id)  # type: ignore[union-attr]
    errors = [e for a in annotators for e in a.errors]
    seconds = [r["healed_s"] for r in rows if r["healed_s"] is not None]
    return {
        "kills": len(rows),
        "by_victim": {v: sum(r["victim"] == v for r in rows) for v in VICTIMS},
        "labels_submitted": len(truth),
        "labels_in_the_newest_model": len(learnt),
        "labels_wrong": sum(learnt.get(t) != c for t, c in truth.items()),
        "annotator_errors": len(errors),
        "errors": errors[:5],
        "healed_s": {"p50": float(np.median(seconds)), "max": float(max(seconds))},
        "slowest_submit_s": round(max(a.slowest_submit_s for a in annotators), 2),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--bots", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.7, help="seconds an annotator looks at an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
        result = run(stack, args.kills, args.bots, args.pause, args.seed)
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    good = (
        result["labels_submitted"] == result["labels_in_the_newest_model"]
        and not result["labels_wrong"]
        and not result["annotator_errors"]
        and result["healed_s"]["max"] <= 30
    )
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
