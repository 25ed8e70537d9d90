"""The fastest way that this machine has to run a backbone, with the same numbers.

    open_engine(backbone, folder) -> Engine

The network is compiled once for ONNX Runtime in 32-bit floating point, compared with PyTorch on test
pictures, and timed against PyTorch. The compiled one is used only if its numbers agree and it is faster; the
choice is kept in `folder` for this machine and these library versions.

A batch is cut into slices that run at the same time on one thread each. All threads on one slice would have
to meet after every layer, which costs most when something else (decoding, Label Studio) wants the cores too.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .backbones import Backbone, Flips
from .cores import usable_cores
from .errors import CheckpointCorrupt
from .files import locked, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

MAX_DIFFERENCE = 1e-3  # largest difference from PyTorch, relative to the largest feature
_SLICE = 8  # images per call of the compiled network: its activations stay in the cache
_TIMED = 16  # images of one timing
_ROUNDS = 3  # timings of each engine, taken in turns; the best counts
_OPSET = 18

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]
Kind = Literal["onnxruntime", "pytorch"]


@dataclass(frozen=True)
class Choice:
    """Which engine runs a backbone on this machine, and why."""

    kind: Kind
    reason: str
    width: int
    difference: float | None  # of the compiled network from PyTorch, relative; None if it could not be compiled
    images_per_s: dict[str, float]  # measured when the choice was made, while the machine did what it did
    model_sha256: str  # of the compiled network; "" if there is none


class Engine:
    """A backbone that runs. `embed` may be called from several threads."""

    def __init__(self, backbone: Backbone, choice: Choice, run: Callable[[Pixels], Features]) -> None:
        self.backbone = backbone
        self.choice = choice
        self._run = run

    @property
    def id(self) -> str:
        """The backbone's: engines give the same numbers, so vectors made by either can be compared."""
        return self.backbone.id

    @property
    def width(self) -> int:
        return self.choice.width

    @property
    def input_size(self) -> int:
        return self.backbone.input_size

    def embed(self, images: Pixels) -> Features:
        """[B, H, H, 3] uint8 RGB -> [B, D] float32: the mean over the views that `Backbone.flips` allows.

        Raises:
            ValueError: images of another shape or type.
        """
        size = self.input_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
            raise ValueError(f"wanted uint8 images [B, {size}, {size}, 3], got {images.dtype} {list(images.shape)}")
        if not len(images):
            return np.empty((0, self.width), np.float32)
        views = [self._run(np.ascontiguousarray(view)) for view in _turned_over(images, self.backbone.flips)]
        return views[0] if len(views) == 1 else np.mean(views, axis=0, dtype=np.float32)


def _turned_over(images: Pixels, flips: Flips) -> list[Pixels]:
    """Images as they are, and turned over: one, two or four views."""
    views = [images]
    if flips != "none":
        views += [view[:, :, ::-1] for view in views]
    if flips == "both":
        views += [view[:, ::-1] for view in views]
    return views


def open_engine(backbone: Backbone, folder: Path, *, threads: int | None = None) -> Engine:
    """The engine for `backbone`; compiles, checks and times on first use, then opens what is kept in
    `folder`.

    Several processes may do this at once; one compiles and the others wait for it.

    Args:
        threads: threads of one `embed`, all cores by default.
    Raises:
        WeightsUnusable: see `Backbone.build`.
    """
    threads = threads or usable_cores()
    home = folder / f"{backbone.id}-{_digest(_versions())}"
    note = home / f"choice-{_digest([*_machine(), threads])}.json"
    with locked(home / "lock"):
        choice = _read_choice(note)
        if choice is not None and choice.kind == "onnxruntime":
            try:
                return Engine(backbone, choice, compiled(_read_model(home, choice.model_sha256), threads))
            except Exception:  # a damaged file or a runtime that refuses it: make both again
                _log.warning("the compiled network in %s cannot be used, so it is made again", home, exc_info=True)
                choice = None
        module = backbone.build()
        if choice is None:
            choice = _choose(backbone, module, home, threads)
            write_json(note, asdict(choice))
            _log.info("engine for %s: %s, because %s", backbone.id, choice.kind, choice.reason)
        if choice.kind == "onnxruntime":
            return Engine(backbone, choice, compiled(_read_model(home, choice.model_sha256), threads))
        return Engine(backbone, choice, eager(module))


def eager(module: nn.Module) -> Callable[[Pixels], Features]:
    """PyTorch at its best in 32-bit floating point on a CPU: channels-last."""
    import torch

    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: Pixels) -> Features:
        with torch.inference_mode():
            features: Features = module(torch.from_numpy(images)).numpy()
        return features

    return run


def export(module: nn.Module, size: int) -> bytes:
    """The network as an ONNX file that takes batches of any length."""
    import torch

    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Deprecated in favour of an exporter that needs one more library and is ten times slower.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]  # declared as a path; a buffer is documented
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def compiled(model: bytes, threads: int) -> Callable[[Pixels], Features]:
    """An ONNX file under ONNX Runtime, slices of a batch at the same time on one thread each."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def part(images: Pixels) -> Features:
        features: Features = session.run(["features"], {"images": images})[0]
        return features

    def run(images: Pixels) -> Features:
        step = max(1, min(_SLICE, -(-len(images) // threads)))
        slices = [images[start : start + step] for start in range(0, len(images), step)]
        if len(slices) == 1:
            return part(images)
        # Threads for this call only: they cost 0.1 ms, and would not survive the fork into a job's process.
        with ThreadPoolExecutor(min(threads, len(slices)), thread_name_prefix="engine") as pool:
            return np.concatenate(list(pool.map(part, slices)))

    return run


def _choose(backbone: Backbone, module: nn.Module, home: Path, threads: int) -> Choice:
    """Compile, compare, time."""
    reference = eager(module)
    images = _test_pictures(_TIMED, backbone.input_size)
    few = images[:3]  # not the length that the network was exported with
    expected = reference(few)
    width = expected.shape[1]
    try:
        model = export(module, backbone.input_size)
        candidate = compiled(model, threads)
        found = candidate(few)
    except Exception as error:  # an operator without a counterpart, a library that is not installed, ...
        _log.warning("%s cannot be compiled and runs on PyTorch", backbone.name, exc_info=True)
        reason = f"it could not be compiled ({type(error).__name__}: {str(error)[:200]})"
        return Choice("pytorch", reason, width, None, {}, "")
    difference = relative_difference(found, expected)
    if not difference <= MAX_DIFFERENCE:
        reason = f"the compiled network differs from PyTorch by {difference:.1e}, allowed {MAX_DIFFERENCE:.0e}"
        return Choice("pytorch", reason, width, difference, {}, "")
    speed = _speeds({"onnxruntime": candidate, "pytorch": reference}, images)
    figures = f"{speed['onnxruntime']:.0f} against {speed['pytorch']:.0f} images/s, difference {difference:.0e}"
    if speed["onnxruntime"] < speed["pytorch"]:
        return Choice("pytorch", f"the compiled network is slower: {figures}", width, difference, speed, "")
    digest = hashlib.sha256(model).hexdigest()
    write_bytes(_model_file(home, digest), model)
    return Choice("onnxruntime", f"the compiled network is faster: {figures}", width, difference, speed, digest)


def relative_difference(found: Features, expected: Features) -> float:
    """Largest difference over the largest expected number; infinite for another shape, NaN or infinity."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def _speeds(engines: Mapping[str, Callable[[Pixels], Features]], images: Pixels) -> dict[str, float]:
    """Images per second of each, in turns, so that a busy moment of the machine hits all of them."""
    best = dict.fromkeys(engines, float("inf"))
    for run in engines.values():
        run(images[:2])  # first calls allocate
    for _ in range(_ROUNDS):
        for name, run in engines.items():
            start = time.perf_counter()
            run(images)
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(len(images) / seconds, 1) for name, seconds in best.items()}


def _test_pictures(count: int, size: int) -> Pixels:
    """Smooth blobs with noise: all layers have something to do; the same every time."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3))
    smooth = coarse.repeat(-(-size // 8), axis=1).repeat(-(-size // 8), axis=2)[:, :size, :size]
    return (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


def _read_choice(path: Path) -> Choice | None:
    try:
        kept = read_json(path)
        return Choice(**kept) if kept is not None else None
    except (CheckpointCorrupt, TypeError):
        return None  # written by something else; a new choice costs seconds


def _model_file(home: Path, sha256: str) -> Path:
    return home / f"model-{sha256[:12]}.onnx"


def _read_model(home: Path, sha256: str) -> bytes:
    data = _model_file(home, sha256).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CheckpointCorrupt(str(_model_file(home, sha256)), sha256, found)
    return data


@functools.cache
def _versions() -> tuple[str, ...]:
    """Libraries that decide what the compiled network is and how it is checked."""
    found = [str(_OPSET)]
    for name in ("torch", "onnxruntime", "onnx"):
        try:
            found.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            found.append("")  # `_choose` says so; installing it makes a new choice
    return tuple(found)


@functools.cache
def _machine() -> tuple[str, ...]:
    """What decides which engine is faster."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        pass  # not Linux: the rest has to do
    return platform.machine(), platform.processor(), model


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
