"""From a submitted annotation to a task served from an order that used it.

    python -m benchmark.latency --tasks 10000 --labels 100 [--flag off] [--json FILE]
    python -m benchmark.latency --tasks 2000 --labels 200 --beside FOLDER

One annotator on a real Label Studio (SQLite) labels; after each submit the clock runs until a next-task call has
returned a task with a prediction of a version made from that label. Says where the time goes.

`--beside`: a network is fine-tuned on HAM10000 in FOLDER meanwhile, at the niceness and with the threads of the worker
that does it in the product; every second block of labels it is held up by a signal, so that both halves are measured in
one run of one Label Studio.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backend.queue_push import read_pushed
from backend.settings import Settings
from backend.worker import TRAIN_NICER

from .live_stack import Stack, running_stack

FLAG = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"
GIVE_UP_S = 120.0
BLOCK = 10  # labels in a row with fine-tuning beside, then without


def measure(stack: Stack, project_id: int, labels: int, pause_s: float, *, before: int = 0) -> list[dict[str, float]]:
    """One row per label: seconds to submit, to the order, to the served task, and the refresh's own laps.

    Args:
        before: labels that the project has.
    """
    rows = []
    state = stack.workshop.state
    task = stack.next_task(project_id)
    for count in range(before + 1, before + labels + 1):
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


@contextmanager
def fine_tuning(data: Path, work: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that does not end before we do."""
    settings = Settings()
    threads = max(1, (os.cpu_count() or 2) - 1)
    command = ["nice", "-n", str(settings.nice + TRAIN_NICER), sys.executable, "-m", "benchmark.tuning", "ham"]
    command += ["--data", str(data), "--work", str(work), "--fraction", "0.05", "--variant", "cutmix-object"]
    command += ["--size", "128", "--epochs", "1000", "--seeds", "1", "--first-seed", "999", "--threads", str(threads)]
    command += ["--patience", "0"]
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def measure_beside(
    stack: Stack, project_id: int, labels: int, pause_s: float, data: Path, work: Path
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """(rows while nothing else runs, rows while a network is tuned), in turns."""
    alone: list[dict[str, float]] = []
    beside: list[dict[str, float]] = []
    with fine_tuning(data, work) as process:
        while b"1/1000" not in (work / "log").read_bytes():  # pictures are decoded, the first epoch is over
            if process.poll() is not None:
                raise SystemExit((work / "log").read_text()[-2000:])
            time.sleep(1.0)
        while len(beside) < labels // 2:
            process.send_signal(signal.SIGSTOP)
            alone += measure(stack, project_id, BLOCK, pause_s, before=len(alone) + len(beside))
            process.send_signal(signal.SIGCONT)
            time.sleep(2.0)
            beside += measure(stack, project_id, BLOCK, pause_s, before=len(alone) + len(beside))
            if process.poll() is not None:
                raise SystemExit(f"the run beside ended early:\n{(work / 'log').read_text()[-2000:]}")
    return alone, beside


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
    parser.add_argument("--beside", type=Path, help="folder with ham10000_200x150/ and weights/")
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
        beside: list[dict[str, float]] = []
        if args.beside is None:
            rows = measure(stack, project_id, args.labels, args.pause)
        else:
            work = Path(folder) / "tuning"
            work.mkdir()
            rows, beside = measure_beside(stack, project_id, args.labels, args.pause, args.beside, work)
        result: dict[str, Any] = {
            "tasks": args.tasks,
            "labels": args.labels,
            "import_flag": args.flag,
            "front_changed_in_place": int(sum(row["in_place"] for row in rows)),
            "import_of_tasks_s": round(imported - begun, 1),
            "first_full_order_s": round(ready - imported, 1),
            **summary(rows),
        }
        if beside:
            result["beside_fine_tuning"] = summary(beside)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
