"""POST /webhook under load: 200 events/s for a minute on loopback, with real web process, Redis and worker.

    python -m benchmark.webhook_load [--rate 200] [--seconds 60] [--json FILE]

The load is open-loop: each request is sent at its due time, and its latency is counted from then, so a stall is not
hidden. Afterwards every task named by an event must have been looked at, and refreshes must be few.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from .live_stack import Stack, running_stack

CONNECTIONS = 8


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
    wake_before = stack.workshop.state.wake_number(project_id)
    lines_before = stack.home.log("worker-fast").read_text(errors="replace").count("\n")
    latencies, failures = asyncio.run(_send(str(address.hostname), int(address.port or 80), bodies, rate, total))
    recorded = stack.workshop.state.wake_number(project_id) - wake_before
    stack.wait(lambda: not stack.workshop.state.dirty(project_id), "every marked task to be read", within_s=120)
    ms = np.array(latencies) * 1000
    refreshes = sum(
        "refresh" in line and "job done" in line
        for line in stack.home.log("worker-fast").read_text(errors="replace").splitlines()[lines_before:]
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


async def _send(
    host: str, port: int, bodies: Sequence[bytes], rate: float, total: int
) -> tuple[list[float], list[str]]:
    """Send `total` requests on a fixed time table over a few kept connections; seconds from due time to answer."""
    latencies: list[float] = []
    failures: list[str] = []
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection(host, port))

    async def one(number: int, due: float) -> None:
        reader, writer = await idle.get()
        body = bodies[number % len(bodies)]
        writer.write(
            f"POST /webhook HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = int(head.lower().partition("content-length:")[2].split("\r\n")[0])
            await reader.readexactly(length)
            if " 201 " not in head.split("\r\n")[0]:
                failures.append(head.split("\r\n")[0])
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            failures.append(repr(error))
            writer.close()
            reader, writer = await asyncio.open_connection(host, port)
        latencies.append(time.perf_counter() - due)
        idle.put_nowait((reader, writer))

    begun = time.perf_counter() + 0.2
    running = set()
    for number in range(total):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(number, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    while not idle.empty():
        idle.get_nowait()[1].close()
    return latencies, failures


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
