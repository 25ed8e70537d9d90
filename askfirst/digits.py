"""The demo's own pictures: scikit-learn's 1,797 handwritten digits, enlarged until a person can read them."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from .files import write_atomic

COUNT = 1797
SIDE = 160  # pixels; an 8x8 original is not readable, and a larger one costs time without showing more
PAPER = (250, 247, 238)
INK = (28, 42, 92)
CSV_NAME = "digits.csv"
_FULL_INK = 16.0  # grey values of the originals go from 0 to 16
_FORMAT = "1"  # raise when pictures change: an older folder is then drawn anew


def file_name(index: int) -> str:
    return f"digit-{index:04d}.png"


def render(ink: np.ndarray, side: int = SIDE) -> Image.Image:
    """Picture [side, side] of one digit in palette colours from paper to ink, with an empty margin.

    Args:
        ink: [8, 8] amount of ink, 0 (none) to 16.
    """
    grey = np.clip(np.asarray(ink) * (255.0 / _FULL_INK) + 0.5, 0, 255).astype(np.uint8)
    smooth = Image.fromarray(np.pad(grey, 1)).resize((side, side), Image.Resampling.BICUBIC)
    picture = smooth.point(_STEEPEN)
    picture.putpalette(_PALETTE)
    return picture


# A pen leaves little grey: steepen the edges of the enlarged stroke, but leave the shades that tell digits apart.
_STEEPEN = [round(255 * min(1.0, max(0.0, (level / 255 - 0.28) / 0.68))) for level in range(256)]
_PALETTE = [
    round(paper + (ink - paper) * level / 255) for level in range(256) for paper, ink in zip(PAPER, INK, strict=True)
]


def make_digits(folder: Path) -> Path:
    """Fill `folder` with 1,797 PNGs and the truth; returns the CSV (header image,digit). At once when it is there.

    Safe to interrupt: pictures are written whole, and the CSV, which says "complete", last.
    """
    truth = folder / CSV_NAME
    done = folder / ".complete"
    if done.is_file() and done.read_text() == _FORMAT and truth.is_file():
        return truth
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["image", "digit"])
    for index, (ink, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        buffer = io.BytesIO()
        # Level 1: a third of the time of the default for a few hundred bytes more.
        render(ink).save(buffer, "PNG", compress_level=1)
        write_atomic(folder / file_name(index), buffer.getvalue(), sync=False)
        rows.writerow([file_name(index), int(digit)])
    write_atomic(truth, table.getvalue().encode())
    os.sync()
    write_atomic(done, _FORMAT.encode())
    return truth
