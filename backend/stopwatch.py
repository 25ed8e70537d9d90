"""Seconds that the steps of a job took, for the log and the status page."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds of each step."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(self.laps.get(name, 0.0) + now - self._last, 4)
        self._last = now
