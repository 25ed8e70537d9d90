"""POST /webhook under load: 200 events/s for a minute on loopback, with real web process, Redis and worker.

    python -m benchmark.webhook_load [--rate 200] [--seconds 60] [--json FILE]

The load is open-loop: each request is sent at its due time, and its latency is counted from then, so a stall is not
hidden. Afterwards every task named by an event must have been looked at, and refreshes must be few.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from .live_stack import Stack, running_stack

SENDERS = 8


def run(stack: Stack, project_id: int, rate: float, seconds: float) -> dict[str, object]:
    """Send events on a fixed time table; returns latencies and what became of the events."""
    tasks = [t["id"] for t in stack.ls.tasks(project_id)]
    project = {
        "id": project_id,
        "title": "x" * 200,
        "label_config": "<View/>" * 50,
        "model_version": "m",
        "sampling": "s",
    }
    total = int(rate * seconds)
    bodies = [
        json.dumps(
            {
                "action": "ANNOTATION_UPDATED",
                "project": project,
                "annotation": {"id": i, "task": tasks[i % len(tasks)], "result": []},
                "task": {"id": tasks[i % len(tasks)], "data": {"image": "x"}},
            }
        ).encode()
        for i in range(len(tasks))
    ]
    address = urlsplit(stack.services.backend_url)
    latencies: list[float] = []
    failures: list[str] = []
    lock = threading.Lock()
    wake_before = stack.workshop.state.wake_number(project_id)
    begun = time.perf_counter() + 0.5

    def send(sender: int) -> None:
        connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=10)
        mine, bad = [], []
        for number in range(sender, total, SENDERS):
            due = begun + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                connection.request(
                    "POST", "/webhook", bodies[number % len(bodies)], {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                answer.read()
                if answer.status != 201:
                    bad.append(f"status {answer.status}")
            except OSError as error:
                bad.append(repr(error))
                connection.close()
            mine.append(time.perf_counter() - due)
        with lock:
            latencies.extend(mine)
            failures.extend(bad)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = stack.workshop.state.wake_number(project_id) - wake_before
    stack.wait(lambda: not stack.workshop.state.dirty(project_id), "every marked task to be read", within_s=120)
    ms = np.array(latencies) * 1000
    refreshes = sum(
        "refresh" in line and "job done" in line
        for line in stack.home.log("worker-fast").read_text(errors="replace").splitlines()
    )
    return {
        "rate_per_s": rate,
        "seconds": seconds,
        "sent": total,
        "failed": len(failures),
        "failures": failures[:3],
        "recorded": recorded,
        "refreshes": refreshes,
        **{f"p{p}_ms": round(float(np.percentile(ms, p)), 2) for p in (50, 95, 99)},
        "max_ms": round(float(ms.max()), 2),
    }


def submit_cost(stack: Stack, rounds: int) -> dict[str, float]:
    """What the webhook adds to an annotator's own submit: medians with and without it, alternating, in ms."""
    project_id = stack.ready_project(4 * rounds)
    hook = stack.ls.webhooks(project_id)[0]
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds):
        active = number % 2 == 0
        stack.ls.patch_webhook(hook["id"], {"is_active": active})
        task = stack.next_task(project_id)
        time.sleep(1.5)  # the refresh of the label before is over: what remains is the webhook itself
        begun = time.perf_counter()
        stack.submit(task)
        times[active].append((time.perf_counter() - begun) * 1000)
    return {
        "submit_with_webhook_ms": round(float(np.median(times[True])), 1),
        "submit_without_webhook_ms": round(float(np.median(times[False])), 1),
        "added_ms": round(float(np.median(times[True]) - np.median(times[False])), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=20, help="submits with and without the webhook")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
        project_id = stack.ready_project(300)
        result = run(stack, project_id, args.rate, args.seconds) | submit_cost(stack, args.rounds)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
