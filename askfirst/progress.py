"""What the demo says while it works: one line per phase, alive on a terminal, plain elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

PLAIN_EVERY_S = 15.0  # a sign of life in a log, where no line can move
_NAME_WIDTH = 14


class Phase:
    """One phase while it runs: `say` tells what happens, `done` what came of it."""

    def __init__(self, name: str, show: Callable[[str], None]) -> None:
        self.name = name
        self.text = ""
        self._show = show

    def say(self, text: str) -> None:
        self.text = text
        self._show(text)

    def done(self, text: str) -> None:
        """The text with which the line stays."""
        self.text = text


class Progress:
    """Phases with their times. `seconds` keeps them by key, in order."""

    def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._now = now
        self._status: Status | None = None
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, key: str, name: str) -> Iterator[Phase]:
        """A phase; its line stays with the last text and the time, or with "failed" when an exception passes."""
        begun = self._now()
        said = begun

        def show(text: str) -> None:
            nonlocal said
            if self._status is not None:
                self._status.update(f"{name:<{_NAME_WIDTH}} {text}")
            elif self._now() - said >= PLAIN_EVERY_S:
                said = self._now()
                self._line("…", name, text, said - begun)

        phase = Phase(name, show)
        if self._console.is_terminal:
            self._status = self._console.status(f"{name:<{_NAME_WIDTH}} …")
            self._status.start()
        try:
            yield phase
        except BaseException as error:
            # The whole message follows when all is stopped; until then the line says why nothing goes on.
            phase.text = f"{phase.text}: {next(iter(str(error).splitlines()), type(error).__name__)}".lstrip(": ")
            self._close(key, "✗", phase, begun)
            raise
        self._close(key, "✓", phase, begun)

    def _close(self, key: str, sign: str, phase: Phase, begun: float) -> None:
        seconds = self._now() - begun
        self.seconds[key] = round(seconds, 3)
        if self._status is not None:
            self._status.stop()
            self._status = None
        self._line(sign, phase.name, phase.text, seconds)

    def _line(self, sign: str, name: str, text: str, seconds: float) -> None:
        self.note(f"{sign} {name:<{_NAME_WIDTH}} {text:<64} {seconds:7.1f} s")

    def note(self, text: str) -> None:
        """A line of its own, above the one that is alive."""
        self._console.print(Text(text))
        self._console.file.flush()
