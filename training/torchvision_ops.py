"""Import torchvision from here: `from .torchvision_ops import torchvision`, or `functional` for its operations.

torchvision registers shape rules for its compiled operators while it is imported, and that import fails when
the compiled part does not load, as happens with a wheel built for CUDA beside a CPU build of PyTorch.
Declaring the operators first lets the import pass. None of the networks used here calls them; where the
compiled part loads, nothing is declared.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SIGNATURES = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library takes its operators along when it is collected


def _declare_missing() -> None:
    if _compiled_part_loads():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, signature in _SIGNATURES.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + signature)
    _declared.append(library)


def _compiled_part_loads() -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return True  # let the import below say that torchvision is missing
    for path in Path(package.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            continue
        return True
    return False


_declare_missing()

import torchvision  # noqa: E402
from torchvision.transforms.v2 import functional  # noqa: E402

__all__ = ["functional", "torchvision"]
