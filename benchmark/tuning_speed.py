"""How fast fine-tuning is beside the bare network.

    python -m benchmark.tuning_speed --data FOLDER --size 96 --threads 1 --steps 16 --rounds 3

`FOLDER` holds `ham10000_200x150/` and `weights/`. Pictures a second of whole epochs of the loop (decoded pictures,
RandAugment, CutMix by object, update, average) against forward and backward passes alone of the same network on one
batch that lies ready: as torchvision has it, and with its norms folded and first layers frozen as the loop does; same
size, same threads, all in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.backbones import Backbone
from training.tuning import Epoch, TuneSettings, tune
from training.tuning.net import TunedNet, as_trained, feature_width, freeze_first, trunk_of

from .tuning import CLASSES, HEAD, VARIANTS, backbone, examples, ham10000, pictures_of

RESULTS = Path(__file__).parent / "results"


def speed(args: argparse.Namespace) -> None:
    """Whole epochs against bare passes, in turns."""
    data = ham10000(args.data)
    rows = np.arange(args.steps * args.batch)
    start = backbone(args.data, args.work)
    pictures = pictures_of(data, args.size, rows)
    found: dict[str, Any] = {}
    for variant in ("tuned", "augment", "randaugment", "cutmix-object"):
        settings = replace(
            VARIANTS[variant].settings,
            epochs=args.rounds,
            fewest_steps=0,
            held_out=0.0,
            patience=0,
            batch_size=args.batch,
            input_size=args.size,
            threads=args.threads,
            accelerator="cpu",
            precision="32",
            start_heads=False,
        )
        bares = {"bare": _bare(start, args, None), "bare_alike": _bare(start, args, settings)}
        speeds: dict[str, list[float]] = {"loop": [], "bare": [], "bare_alike": []}

        def in_turns(epoch: Epoch, bares: dict[str, Iterator[float]] = bares, to: Any = speeds) -> None:
            if epoch.epoch:
                to["loop"].append(epoch.images_per_s)
            for name, passes in bares.items():
                to[name].append(next(passes))

        tune(start, [HEAD], examples(data, rows, answers=True, inputs=False), pictures, settings, on_epoch=in_turns)
        medians = {name: float(np.median(values)) for name, values in speeds.items()}
        found[variant] = {f"{name}_images_per_s": [round(x, 1) for x in values] for name, values in speeds.items()}
        found[variant] |= {f"share_of_{name}": round(medians["loop"] / medians[name], 3) for name in bares}
        print(variant, found[variant], flush=True)
    about = {
        "network": start.name,
        "size": args.size,
        "batch": args.batch,
        "threads": args.threads,
        "steps": args.steps,
    }
    args.out.write_text(json.dumps({"settings": about, "results": found}, indent=1) + "\n")


def _bare(start: Backbone, args: argparse.Namespace, settings: TuneSettings | None) -> Iterator[float]:
    """Pictures a second of forward and backward passes on one batch that lies ready.

    Of the network as torchvision has it, all layers trained; with `settings`, of the one that the loop trains: norms
    folded, first layers frozen.
    """
    trunk = as_trained(start).build().requires_grad_(True) if settings is None else trunk_of(start)
    net = TunedNet(trunk, feature_width(trunk, args.size), [HEAD], {})
    if settings is not None:
        freeze_first(net, settings.frozen_layers)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.training_mode(frozen_norms=True)
    images = torch.randint(0, 256, (args.batch, args.size, args.size, 3), dtype=torch.uint8)
    labels = torch.randint(0, len(CLASSES), (args.batch,))
    while True:
        begun = time.monotonic()
        for _ in range(args.steps):
            net.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(net(images, {})[0], labels).backward()
        yield args.steps * args.batch / (time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/tuning"))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "tuning_speed.json")
    speed(parser.parse_args())


if __name__ == "__main__":
    main()
