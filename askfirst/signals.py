"""Ctrl-C and its relatives as one exception in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The user or the system asks the program to end; `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def turned_into_exceptions(on_second: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While the block lasts, the first signal raises Interrupted; later ones only call `on_second`.

    Nothing that cleans up after the first signal can therefore be torn apart by a second one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    seen = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            on_second()
            return
        seen = True
        raise Interrupted(number)

    before = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
