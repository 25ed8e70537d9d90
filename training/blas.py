"""One thread for products and conversions that take milliseconds.

OpenBLAS and OpenMP wait for their threads by spinning. Our products are small, so two threads gain little when the
machine is idle, and when Label Studio or an embedding wants the same cores each product waits for a thread that is
not running: a first fit that takes 2.4 s with one thread took 132 s with two (two cores, load 9).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

_lock = threading.Lock()
_holders = 0
_limit: Any = None


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # it brings a BLAS of its own, which must be there to be found

    del scipy
    return ThreadpoolController()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """While held, numpy and scipy multiply with one thread, and so does torch in the calling thread.

    The limit of BLAS is one for the whole process: the first to come sets it, the last to go takes it back.
    """
    import torch

    global _holders, _limit
    with _lock:
        if _holders == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _holders += 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with _lock:
            _holders -= 1
            if _holders == 0:
                _limit.restore_original_limits()
