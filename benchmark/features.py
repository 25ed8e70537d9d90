"""Embeddings of the data sets at hand, made once by the product's own engine and kept for the studies.

    python -m benchmark.features --data FOLDER --out FOLDER

`FOLDER` holds `mnist/mnist.npz`, `cifar10_jpeg/*.npz`, `ham10000_200x150/` and `weights/`. MNIST without outside
weights (features learnt from the pool); CIFAR-10 and HAM10000 by mobilenet_v2 with ImageNet weights.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training import api as training

POOL = 10_000  # pictures of MNIST and CIFAR-10 each
NAMES = ("mnist", "cifar10", "ham10000", "notmnist")
Loaded = tuple[list[Callable[[], bytes]], NDArray[Any], NDArray[Any] | None]


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def load(name: str, data: Path) -> Loaded:
    """(bytes of each picture, class names, groups or None)."""
    rng = np.random.default_rng(0)
    if name == "mnist":
        arrays = np.load(data / "mnist" / "mnist.npz")
        images, labels = arrays["x_train"], arrays["y_train"]
        rows = np.sort(rng.permutation(len(labels))[:POOL])
        return [lambda r=r: png(images[r]) for r in rows], labels[rows].astype(str), None
    if name == "notmnist":
        arrays = np.load(data / "notmnist_10k" / "notmnist_10k.npz")
        images = arrays["x"]
        rows = np.sort(rng.permutation(len(images))[: POOL // 4])
        return [lambda r=r: png(images[r]) for r in rows], np.full(len(rows), "junk"), None
    if name == "cifar10":
        arrays = np.load(data / "cifar10_jpeg" / "cifar10_train_jpeg.npz", allow_pickle=False)
        blob, offsets, labels = arrays["data"], arrays["offsets"], arrays["labels"]
        rows = np.sort(rng.permutation(len(labels))[:POOL])
        return [lambda r=r: blob[offsets[r] : offsets[r + 1]].tobytes() for r in rows], labels[rows].astype(str), None
    folder = data / "ham10000_200x150"
    with (folder / "HAM10000_metadata.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return (
        [(folder / "images" / f"{row['image_id']}.jpg").read_bytes for row in table],
        np.array([row["dx"] for row in table]),
        np.array([row["lesion_id"] for row in table]),
    )


def embed(name: str, data: Path, out: Path, work: Path) -> None:
    """Write `out/<name>.npz`: features [N, D] fp16, labels, groups."""
    loaders, labels, groups = load(name, data)
    spec = training.ModelSpec()
    if name in ("cifar10", "ham10000"):
        weights = data / "weights" / "mobilenet_v2_imagenet_tflite_dequant.pth"
        half = (0.5, 0.5, 0.5)
        spec = training.ModelSpec(backbone="mobilenet_v2", weights=str(weights), mean=half, std=half)
    # MNIST and notMNIST share one representation: junk must look as strange to it as it is.
    home = "mnist" if name == "notmnist" else name
    start = POOL if name == "notmnist" else 0
    examples = [training.Example(start + i, str(i)) for i in range(1, len(loaders) + 1)]
    model = training.ProjectModel(work / home, spec)
    model.embed(examples, lambda example: loaders[example.example_id - start - 1]())
    ids = np.array([e.example_id for e in examples])
    ids = ids[np.isin(ids, model.embedded_ids())]
    kept = ids - start - 1
    values: dict[str, Any] = {"features": model.features(ids).astype(np.float16), "labels": labels[kept]}
    if groups is not None:
        values["groups"] = groups[kept]
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / f"{name}.npz", **values)
    print(f"{name}: {values['features'].shape}, {len(set(labels.tolist()))} classes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/features"))
    parser.add_argument("--only", default=",".join(NAMES))
    args = parser.parse_args()
    for name in args.only.split(","):
        if not (args.out / f"{name}.npz").exists():
            embed(name, args.data, args.out, args.out / "work")


if __name__ == "__main__":
    main()
