"""What a run of fine-tuning tells, as lines that can be read while it goes on.

<folder>/steps.jsonl     {"epoch", "step", "loss", "lr", "images_per_s", "seconds", ...}, one line a step
<folder>/epochs.jsonl    {"epoch", "loss", "held_out", "metrics", "best", ...}, one line an epoch
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .tuning import Epoch, Step

_log = logging.getLogger(__name__)

_WRITE_EVERY_S = 1.0  # steps wait so long in memory: a run must not wait for a disk


class RunRecord:
    """Writes the record of one run; a full disk costs the record, not the run."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._waiting: list[str] = []
        self._written_at = now()
        self._now = now

    def step(self, step: Step) -> None:
        """Take down a step; written within a second or with the epoch."""
        self._waiting.append(json.dumps(asdict(step)))
        if self._now() - self._written_at >= _WRITE_EVERY_S:
            self.flush()

    def epoch(self, epoch: Epoch) -> None:
        """Take down an epoch, and write what waits."""
        self.flush()
        self._append("epochs.jsonl", [json.dumps(asdict(epoch))])

    def flush(self) -> None:
        """Write the steps that wait."""
        waiting, self._waiting, self._written_at = self._waiting, [], self._now()
        if waiting:
            self._append("steps.jsonl", waiting)

    def _append(self, name: str, lines: list[str]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / name).open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            _log.warning("the record of the run in %s cannot be written: %s", self._folder, error)


def read_record(path: Path) -> list[dict[str, Any]]:
    """Lines of a record, a last one that is half written left out; [] if there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
