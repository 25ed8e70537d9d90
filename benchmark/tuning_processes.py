"""What several processes are worth to fine-tuning on a machine without a GPU.

    python -m benchmark.tuning_processes --data FOLDER --processes 1,2 --threads 2 --size 96 --steps 20 --rounds 2

`FOLDER` holds `ham10000_200x150/` and `weights/`. mobilenet_v2, batches of 32, crops and flips (the default). Pictures
a second of whole epochs, first epochs of a run left out, with as many threads in all however many processes share them;
seconds until the first step; and the largest memory of one process. `--rounds` times in turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from training.tuning import Epoch, Pictures, Step, TuneSettings, side_for, tune

from .tuning import HEAD, VARIANTS, backbone, examples, ham10000

OUT = Path(__file__).parent / "results" / "tuning_processes.json"


def measure(args: argparse.Namespace) -> None:
    data = ham10000(args.data)
    rows = np.arange(args.steps * 32)
    start = backbone(args.data, args.work)
    counts = [int(text) for text in args.processes.split(",")]
    found: dict[int, dict[str, list[float]]] = {
        count: {"images_per_s": [], "ready_s": [], "MB": []} for count in counts
    }
    with tempfile.TemporaryDirectory() as folder:
        pictures = Pictures.decoded(rows, data.load, side_for(args.size), folder=Path(folder))
        for _ in range(args.rounds):
            for count in counts:
                settings: TuneSettings = replace(
                    VARIANTS["augment"].settings,
                    **{"epochs": 3, "fewest_steps": 0, "held_out": 0.0, "patience": 0, "start_heads": False},
                    **{"input_size": args.size, "threads": args.threads, "devices": count},
                    **{"accelerator": "cpu", "precision": "32"},
                )
                began = time.monotonic()

                def on_epoch(epoch: Epoch, to: dict[str, list[float]] = found[count], began: float = began) -> None:
                    if epoch.epoch == 0:
                        to["ready_s"].append(round(time.monotonic() - began, 1))
                    elif epoch.epoch > 1:
                        to["images_per_s"].append(round(epoch.images_per_s, 1))

                def on_step(step: Step, to: dict[str, list[float]] = found[count]) -> None:
                    if step.epoch == 3 and step.step == step.steps:
                        one = psutil.Process()
                        sizes = [
                            process.memory_info().rss
                            for process in (
                                [c for c in one.children() if "spawn_main" in " ".join(c.cmdline())] or [one]
                            )
                        ]
                        to["MB"].append(round(max(sizes) / 2**20))

                tune(
                    start,
                    [HEAD],
                    examples(data, rows, answers=True, inputs=False),
                    pictures,
                    settings,
                    on_epoch=on_epoch,
                    on_step=on_step,
                )
                print(count, found[count], flush=True)
    about: dict[str, Any] = {"network": "mobilenet_v2", "size": args.size, "batch": 32, "threads": args.threads}
    args.out.write_text(json.dumps({"settings": about, "processes": found}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/tuning"))
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--threads", type=int, default=2, help="of all processes together")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
