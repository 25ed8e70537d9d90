"""How fast a pool is embedded: the product's engine against PyTorch, in the same pipeline, on the same pictures.

    python -m benchmark.embedding --images FOLDER --backbone mobilenet_v2 --weights FILE --mean 0.5 --std 0.5

Both sides read files, decode and shrink in the same threads and write the same shards; only the embedder differs
(32-bit floating point on both, PyTorch in its channels-last layout). They take turns in blocks, so that a busy
moment of the machine hits both. Then the whole pool is embedded once by the product.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.backbones import Backbone, BackboneSpec, resolve
from training.cores import usable_cores
from training.embeddings import EmbeddingStore
from training.engine import Choice, Engine, eager, open_engine, relative_difference

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class File:
    """One picture on disk as an example."""

    example_id: int
    uri: str


@dataclass(frozen=True)
class Outcome:
    """What was measured; speeds in images per second, end to end."""

    product: list[float]  # one per block
    pytorch: list[float]
    difference: float  # largest, relative to the largest feature, over one block
    pool: int
    pool_s: float
    pool_cpu_s: float  # processor time of all threads; hardly moved by what else runs
    choice: Choice
    first_start_s: float  # compile, check, time
    next_start_s: float
    load: tuple[float, float]  # load average at the start and the end

    @property
    def ratio(self) -> float:
        """Product over PyTorch, each at its best block."""
        return max(self.product) / max(self.pytorch)


def files_in(folder: Path) -> list[File]:
    """All pictures below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return [File(number, str(path)) for number, path in enumerate(paths)]


def load(file: File) -> bytes:
    """A picture's bytes."""
    return Path(file.uri).read_bytes()


def embed(embedder: Engine, files: Sequence[File]) -> tuple[float, np.ndarray]:
    """Seconds for a fresh pool, and its rows."""
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(Path(folder), embedder)
        start = time.perf_counter()
        report = store.embed(files, load)
        seconds = time.perf_counter() - start
        assert report.embedded == len(files), report.unreadable
        return seconds, store.table.rows([file.example_id for file in files])


def measure(backbone: Backbone, files: Sequence[File], block: int, rounds: int) -> Outcome:
    """Blocks in turns, then the whole pool by the product."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        engine = open_engine(backbone, Path(folder))
        first = time.perf_counter() - start
        start = time.perf_counter()
        open_engine(backbone, Path(folder))
        following = time.perf_counter() - start
    pytorch = Engine(backbone, engine.choice, eager(backbone.build()))
    product_speed, pytorch_speed = [], []
    difference = 0.0
    for number in range(rounds):
        part = files[number * block : (number + 1) * block]
        ours_s, ours = embed(engine, part)
        theirs_s, theirs = embed(pytorch, part)
        product_speed.append(len(part) / ours_s)
        pytorch_speed.append(len(part) / theirs_s)
        difference = max(difference, relative_difference(ours, theirs))
    cpu = time.process_time()
    pool_s, _ = embed(engine, files)
    pool_cpu_s = time.process_time() - cpu
    return Outcome(
        product_speed,
        pytorch_speed,
        difference,
        len(files),
        pool_s,
        pool_cpu_s,
        engine.choice,
        first,
        following,
        (before, os.getloadavg()[0]),
    )


def compare_networks(names: Sequence[str], folder: Path) -> dict[str, Choice]:
    """What the product chooses for other networks. Speed does not depend on the weights, so they are random here."""
    import torch

    from training.torchvision_ops import torchvision

    choices = {}
    for name in names:
        torch.manual_seed(0)
        path = folder / f"{name}.pth"
        torch.save(torchvision.models.get_model(name, weights=None).state_dict(), path)
        choices[name] = open_engine(resolve(BackboneSpec(name, str(path)), folder), folder).choice
    return choices


def report(backbone: Backbone, outcome: Outcome, networks: dict[str, Choice], command: str) -> str:
    """The measurement as a page."""
    speed, slow = max(outcome.product), max(outcome.pytorch)
    lines = [
        "# Embedding a pool",
        "",
        f"`{command}`",
        "",
        f"{platform.processor() or platform.machine()}, {usable_cores()} cores, load average "
        f"{outcome.load[0]:.1f} at the start and {outcome.load[1]:.1f} at the end (two busy cores of our own "
        "make 2). Files are read, decoded, shrunk, embedded and written; both sides in the same pipeline.",
        "",
        f"| {backbone.name}, {backbone.input_size} px | images/s, best block | all blocks |",
        "|---|---|---|",
        f"| product ({outcome.choice.kind}, f32) | {speed:.0f} | {', '.join(f'{v:.0f}' for v in outcome.product)} |",
        f"| PyTorch, channels-last f32 | {slow:.0f} | {', '.join(f'{v:.0f}' for v in outcome.pytorch)} |",
        f"| ratio | {outcome.ratio:.1f} | |",
        "",
        f"Largest difference from PyTorch, of the largest feature: {outcome.choice.difference or 0.0:.1e} as computed, "
        f"{outcome.difference:.1e} as stored (two roundings to half precision allow 9.8e-4).",
        f"The whole pool of {outcome.pool} pictures: {outcome.pool_s:.1f} s, {outcome.pool / outcome.pool_s:.0f} "
        f"images/s, {1000 * outcome.pool_cpu_s / outcome.pool:.1f} ms of processor time per picture.",
        f"First start (compile, check, time) {outcome.first_start_s:.1f} s, later starts {outcome.next_start_s:.2f} s.",
    ]
    if networks:
        lines += [
            "",
            "Other networks, forward pass only, as timed when the engine is chosen (random weights):",
            "",
            "| network | chosen | ONNX Runtime, images/s | PyTorch, images/s | ratio | difference |",
            "|---|---|---|---|---|---|",
        ]
        for name, choice in networks.items():
            ours, theirs = choice.images_per_s.get("onnxruntime"), choice.images_per_s.get("pytorch")
            figures = f"{ours:.0f} | {theirs:.0f} | {ours / theirs:.1f}" if ours and theirs else "- | - | -"
            lines.append(f"| {name} | {choice.kind} | {figures} | {choice.difference or float('nan'):.0e} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.embedding", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", required=True, help='file, URL or "torchvision"')
    parser.add_argument("--mean", type=float, help="one number for the three colours; default: with the weights")
    parser.add_argument("--std", type=float)
    parser.add_argument("--limit", type=int, help="pictures of the pool to use")
    parser.add_argument("--block", type=int, default=512, help="pictures per block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", default="", help="other networks to time, separated by commas")
    parser.add_argument("--out", type=Path, help="write the page there as well")
    options = parser.parse_args(arguments)
    command = "python -m benchmark.embedding " + " ".join(
        f"--{key} {Path(str(value)).name}" for key, value in vars(options).items() if value and key != "out"
    )
    with tempfile.TemporaryDirectory() as folder:
        mean = (options.mean,) * 3 if options.mean is not None else None
        std = (options.std,) * 3 if options.std is not None else None
        backbone = resolve(BackboneSpec(options.backbone, options.weights, mean=mean, std=std), Path(folder))
        outcome = measure(backbone, files_in(options.images)[: options.limit], options.block, options.rounds)
        networks = compare_networks([name for name in options.networks.split(",") if name], Path(folder))
    page = report(backbone, outcome, networks, command)
    if options.out:
        options.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
