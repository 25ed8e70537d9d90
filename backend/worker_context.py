"""What jobs share in one worker process: made at the first job, kept for the process's life."""

from __future__ import annotations

import threading

from .dispatch import Dispatcher
from .ls_client import LabelStudioClient
from .project import Workshop
from .settings import Settings
from .state import State, connect

_lock = threading.Lock()
_made: tuple[Workshop, Dispatcher] | None = None


def context() -> tuple[Workshop, Dispatcher]:
    """The process's Workshop and Dispatcher, from the environment unless `use` gave others."""
    global _made
    with _lock:
        if _made is None:
            _made = build(Settings.from_env())
        return _made


def use(workshop: Workshop, dispatcher: Dispatcher) -> None:
    """Let jobs of this process work with these parts."""
    global _made
    with _lock:
        _made = (workshop, dispatcher)


def build(settings: Settings) -> tuple[Workshop, Dispatcher]:
    """Fresh parts from settings."""
    redis = connect(settings.redis_url)
    state = State(redis)
    ls = LabelStudioClient(
        settings.label_studio_url,
        settings.label_studio_api_key.get_secret_value(),
        timeout_s=settings.ls_timeout_s,
        verify_ssl=settings.verify_ssl,
    )
    return Workshop(settings, state, ls), Dispatcher(redis, state)
