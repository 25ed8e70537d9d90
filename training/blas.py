"""One thread for numpy's matrix products.

OpenBLAS waits for its threads by spinning. Our products take milliseconds, so two threads gain little when the
machine is idle, and when Label Studio or an embedding wants the same cores each product waits for a thread that is
not running: a fit that takes 2.4 s with one thread took 132 s with two (two cores, load 9).
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # it brings a BLAS of its own, which must be there to be found

    del scipy
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """While this is held, numpy and scipy multiply with one thread; torch keeps its own."""
    held: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return held
