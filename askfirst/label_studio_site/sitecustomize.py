"""Loaded at the start of the demo's Label Studio, through PYTHONPATH: one annotator at a time is given a task.

Label Studio looks for a lock on a task and sets it in two steps, which are one transaction on Postgres and none on
SQLite (`conditional_atomic(db_is_not_sqlite)` in projects/functions/next_task.py, 1.23.2): two people who ask in the
same tenth of a second get the same task. Measured with three bots: 1 to 5 tasks of 100. Here both steps happen under
a lock of the process, which suffices because the demo's Label Studio is one process. Nothing else is changed, and a
Label Studio without that module starts as it is.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE, FUNCTION = "projects.functions.next_task", "get_next_task"


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which no two threads run at once."""
    lock = threading.Lock()

    @functools.wraps(function)
    def serial(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return function(*args, **kwargs)

    return serial


class Finder(importlib.abc.MetaPathFinder):
    """Finds the one module as usual, and wraps its function once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            if hasattr(module, FUNCTION):
                setattr(module, FUNCTION, one_at_a_time(getattr(module, FUNCTION)))

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
