"""Pictures decoded once, squeezed to squares a little larger than the network's input.

They lie in memory, or in a file that the system maps into memory, as long as a number of bytes allows; beyond that each
is decoded again whenever it is asked for.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.cores import usable_cores
from training.errors import DataError, UnreadableImage
from training.images import decode

from .masks import MaskSource, resized, spectral_residual

_log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Load = Callable[[int], bytes]  # example id -> the file's bytes

_MARGIN = 1.15  # side that is kept, of the input's: a crop of three quarters of the area still has all its pixels
BUDGET_BYTES = 2 * 2**30  # HAM10000's 10,015 pictures for an input of 224 take 2.0 GB


def side_for(input_size: int) -> int:
    """Side at which pictures are kept for a network's input, pixels."""
    return round(_MARGIN * input_size)


class Pictures:
    """Squares by example id. May be read from several threads."""

    def __init__(
        self,
        ids: NDArray[np.int64],
        side: int,
        kept: Pixels | None,
        fetch: Callable[[int], Pixels],
        unreadable: dict[int, str],
        file: int | None = None,
    ) -> None:
        self.ids = ids
        self.side = side
        self.channels = 3 if kept is None else kept.shape[-1]
        self.unreadable = unreadable
        self._kept = kept
        self._file = file  # descriptor of what `kept` is mapped to
        if file is not None:
            weakref.finalize(self, os.close, file)
        self._fetch = fetch
        self._row = {int(example): row for row, example in enumerate(ids)}

    @classmethod
    def of_array(cls, ids: Sequence[int] | NDArray[np.int64], images: Pixels, masks: Pixels | None = None) -> Pictures:
        """Pictures that are there already: [n, H, H, 3] uint8, and [n, H, H] uint8 masks, 0 to 255."""
        wanted = np.asarray(ids, np.int64)
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(f"wanted uint8 pictures [n, H, H, 3], got {images.dtype} {list(images.shape)}")
        if len(images) != len(wanted):
            raise DataError(f"{len(wanted)} ids came with {len(images)} pictures")
        kept = images if masks is None else np.concatenate([images, masks[..., None]], axis=3)
        return cls(wanted, images.shape[1], kept, lambda example: kept[0], {})

    @classmethod
    def decoded(
        cls,
        ids: Sequence[int] | NDArray[np.int64],
        load: Load,
        side: int,
        *,
        masks: MaskSource | None = None,
        with_masks: bool = False,
        folder: Path | None = None,
        budget_bytes: int | None = BUDGET_BYTES,
        threads: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Pictures:
        """Load and decode pictures. One that cannot be read is left out and told in `unreadable`.

        Args:
            load: bytes of an example; called from several threads. What it raises is the reason shown.
            side: pixels, see `side_for`.
            masks: where the object is; saliency where it gives None. with_masks: saliency for all pictures.
            folder: where a file may be mapped into memory; without it pictures lie in memory.
            budget_bytes: more are decoded on demand, and have no masks; None: all are kept.
            should_stop: asked between pictures; those not reached are told as unreadable.
        """
        wanted = np.asarray(ids, np.int64)
        channels = 4 if masks is not None or with_masks else 3

        def fetch(example: int) -> Pixels:
            pixels = decode(load(example), side)
            if channels == 3:
                return pixels
            mask = None if masks is None else masks(example)
            mask = spectral_residual(pixels) if mask is None else resized(mask, side, side)
            return np.concatenate([pixels, np.rint(mask * 255).astype(np.uint8)[..., None]], axis=2)

        needed = len(wanted) * side * side * channels
        fits = budget_bytes is None or needed <= budget_bytes
        if not fits:
            channels = 3
            _log.info("%d MB of pictures are too many: decoding on demand", needed >> 20)
        kept, file = _room((len(wanted), side, side, channels), folder) if fits else (None, None)
        reasons: dict[int, str] = {}

        def read(row: int) -> None:
            example = int(wanted[row])
            if should_stop():
                reasons[example] = "stopped before it was read"
                return
            try:
                pixels = fetch(example)
            except UnreadableImage as error:
                reasons[example] = error.reason
            except Exception as error:  # any error of `load` concerns this example only
                _log.info("example %d could not be loaded", example, exc_info=True)
                reasons[example] = f"could not be loaded ({type(error).__name__}: {error})"
            else:
                if kept is not None:
                    kept[row] = pixels

        with ThreadPoolExecutor(threads or 2 * usable_cores(), thread_name_prefix="decode") as pool:
            for _ in pool.map(read, range(len(wanted))):
                pass
        pictures = cls(wanted, side, kept, fetch, reasons, file)
        for example in reasons:
            pictures._row.pop(example, None)
        return pictures

    def __getstate__(self) -> dict[str, Any]:
        """For a process that this one starts, which maps the same file.

        Raises:
            DataError: they are decoded on demand, by what cannot be sent.
        """
        if self._kept is None:
            raise DataError(
                "pictures that are decoded on demand cannot go to other processes: decode them with budget_bytes=None"
            )
        state = self.__dict__ | {"_fetch": None}
        if self._file is not None:
            state |= {"_kept": None, "_file": (DupFd(self._file), self._kept.shape)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._kept is None:
            handle, shape = state["_file"]
            self._file = None
            with os.fdopen(handle.detach(), "rb") as file:
                self._kept = np.memmap(file, np.uint8, "c", shape=shape)  # written to by nobody

    def __contains__(self, example: int) -> bool:
        return int(example) in self._row

    def readable(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n], which of `ids` have a picture."""
        return np.fromiter((int(example) in self._row for example in ids), bool, len(ids))

    def get(self, example: int) -> Pixels:
        """[side, side, 3 or 4] uint8; the fourth channel is the mask, 0 to 255.

        Raises:
            DataError: there is no such picture; UnreadableImage: it could be decoded once and cannot be now.
        """
        row = self._row.get(int(example))
        if row is None:
            reason = self.unreadable.get(int(example), "it was not among those that were read")
            raise DataError(f"there is no picture of example {example}: {reason}")
        if self._kept is None:
            return self._fetch(int(example))
        pixels: Pixels = self._kept[row]
        return pixels


def _room(shape: tuple[int, int, int, int], folder: Path | None) -> tuple[Pixels, int | None]:
    """An array in memory, or one mapped to a file without a name, gone when nobody holds it, and a descriptor of it."""
    if folder is None or not shape[0]:
        return np.empty(shape, np.uint8), None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not the end of the process later
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return np.memmap(file, np.uint8, "w+", shape=shape), os.dup(file.fileno())
