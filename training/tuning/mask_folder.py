"""Masks that somebody drew, or that a segmentation model left, in a folder: found by the names of the images' files."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from .masks import Mask
from .settings import MASK_SUFFIXES

_log = logging.getLogger(__name__)

_ENDINGS = ("_segmentation", "_mask")  # that tools put after the image's name
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts this before the name of an uploaded file


def image_stem(uri: str) -> str:
    """Name of an image's file without its suffix: of a path, a URL, or what Label Studio calls a local file (?d=)."""
    parts = urlsplit(uri)
    local = parse_qs(parts.query).get("d")
    return PurePosixPath(local[0] if local else unquote(parts.path)).stem


class MaskFolder:
    """Masks by example id. May be read from several threads."""

    def __init__(self, folder: Path, uris: Mapping[int, str]) -> None:
        """
        Args:
            folder: of grey images, light where the object is, of any size; `lesion7.png`, `lesion7_mask.png` or
                `lesion7_segmentation.png` belongs to `lesion7.jpg`. One that is not there has no masks.
            uris: of the examples.
        """
        files: dict[str, Path] = {}
        for file in folder.iterdir() if folder.is_dir() else ():
            suffix = file.suffix.lower()
            if suffix in MASK_SUFFIXES:
                stem = next((file.stem.removesuffix(end) for end in _ENDINGS if file.stem.endswith(end)), file.stem)
                known = files.get(stem)
                if known is None or MASK_SUFFIXES.index(suffix) < MASK_SUFFIXES.index(known.suffix.lower()):
                    files[stem] = file
        self._paths = {example: path for example, uri in uris.items() if (path := _file_of(uri, files))}
        self.read: set[int] = set()  # examples whose mask could be read and shows something
        if not self._paths:
            _log.warning("no mask in %s belongs to any of %d images: saliency takes their place", folder, len(uris))

    def __call__(self, example: int) -> Mask | None:
        """[H, W] in [0, 1], the lightest pixel 1; None where there is none that can be read."""
        path = self._paths.get(example)
        if path is None:
            return None
        try:
            with Image.open(path) as image:
                mask = np.asarray(image.convert("L"), np.float32)
        except Exception as error:  # anything may be wrong with foreign bytes; the picture itself is fine
            _log.warning("the mask %s cannot be read (%s): saliency takes its place", path, error)
            return None
        top = mask.max()  # 255, or 1 where a network wrote classes
        if top == 0:
            return None  # nothing drawn tells as little as no mask
        self.read.add(example)
        return mask / top


def _file_of(uri: str, files: Mapping[str, Path]) -> Path | None:
    stem = image_stem(uri)
    return files.get(stem) or files.get(_UPLOADED.sub("", stem))
