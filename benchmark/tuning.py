"""Fine-tuning: how fast the loop is beside the bare network, and what it is worth on HAM10000.

    python -m benchmark.tuning speed --data FOLDER
    python -m benchmark.tuning ham --data FOLDER --fraction 0.1 --variant all --seeds 3 --size 128 --epochs 20
    python -m benchmark.tuning table

`FOLDER` holds `ham10000_200x150/` and `weights/`. mobilenet_v2 with ImageNet weights.

**speed**: pictures a second of whole epochs of the loop (decoded pictures, RandAugment, CutMix by object, update,
average) against forward and backward passes alone of the same network on one batch that lies ready: as torchvision has
it, and with its norms folded and first layers frozen as the loop does; same size, same threads, all in turns.

**ham**: a fifth of the lesions of each seed is the test set; `--fraction` of the other pictures, whole lesions, is
labelled. Each variant adds one thing to another, see `VARIANTS`; seeds are paired. Rows go to
`results/tuning/ham10000.csv`; what is there is not run again, and a killed run goes on after its last whole epoch.
Measured is what the product serves: a head on the network's features. Balanced accuracy and recalls are of
probabilities for equally frequent classes; accuracy, calibration and selective risk of those for classes as frequent as
the labels.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t

from training.backbones import Backbone, BackboneSpec, resolve
from training.head import fit_head
from training.linear import Head
from training.space import Space
from training.tuning import (
    Epoch,
    Examples,
    HeadSpec,
    Pictures,
    Teacher,
    Tuned,
    TuneSettings,
    ensemble_probabilities,
    load,
    predict,
    side_for,
    tune,
)
from training.tuning.net import TunedNet, as_trained, feature_width, freeze_first, trunk_of
from training.tuning.result import frozen_features
from training.wide_space import WideSpace
from uncertainty.calibration import expected_calibration_error, negative_log_likelihood
from uncertainty.selective import aurc

from .rows import append_rows, read_rows

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "tuning" / "ham10000.csv"
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
HEAD = HeadSpec("dx", "single", CLASSES)
INPUTS = ("age", "sex", "localization")
TEST_SHARE = 0.2  # of the lesions
MEMBERS = 2  # of the ensemble that teaches

PLAIN = TuneSettings(augmentation="none", mixing="none", flips="both")  # a lesion has no right way up
AUGMENTED = replace(PLAIN, augmentation="randaugment")
BY_OBJECT = replace(AUGMENTED, mixing="cutmix-object")
# What each variant is made of, and which one it adds something to.
VARIANTS: dict[str, tuple[TuneSettings, str | None]] = {
    "head": (replace(PLAIN, epochs=0), None),
    "tuned": (PLAIN, "head"),
    "augment": (AUGMENTED, "tuned"),
    "moving-norms": (replace(AUGMENTED, batch_norm="train", lr_trunk=1e-3, lr_head=1e-3), "augment"),
    "cutmix": (replace(AUGMENTED, mixing="cutmix"), "augment"),
    "cutmix-object": (BY_OBJECT, "augment"),
    "distill": (BY_OBJECT, "cutmix-object"),
    "distill-head": (BY_OBJECT, "cutmix-object"),
    "fixmatch": (replace(BY_OBJECT, fixmatch=True), "cutmix-object"),
    "inputs": (BY_OBJECT, "cutmix-object"),
}


# ---------------------------------------------------------------------- data
@dataclass(frozen=True)
class Ham:
    """HAM10000: one row a picture."""

    table: list[dict[str, str]]
    labels: NDArray[np.int64]
    lesions: NDArray[np.int64]
    inputs: dict[str, NDArray[np.float32]]
    folder: Path

    def load(self, row: int) -> bytes:
        return (self.folder / "images" / f"{self.table[row]['image_id']}.jpg").read_bytes()


def ham10000(data: Path) -> Ham:
    folder = data / "ham10000_200x150"
    with (folder / "HAM10000_metadata.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    age = np.array([float(row["age"] or "nan") for row in table], np.float32)
    inputs = {"age": ((age - np.nanmean(age)) / np.nanstd(age))[:, None]}
    for name in INPUTS[1:]:
        values = np.array([row[name] for row in table])
        known = sorted(set(values.tolist()) - {"unknown", ""})
        one_hot = (values[:, None] == np.array(known)).astype(np.float32)
        one_hot[one_hot.sum(1) == 0] = np.nan
        inputs[name] = one_hot
    return Ham(
        table,
        np.array([CLASSES.index(row["dx"]) for row in table]),
        np.unique([row["lesion_id"] for row in table], return_inverse=True)[1],
        inputs,
        folder,
    )


def pictures_of(ham: Ham, size: int, rows: NDArray[np.int64] | None = None) -> Pictures:
    """Pictures with the lesions' true outlines."""
    packed = np.load(ham.folder / "masks_packed.npz")
    place = {str(name): i for i, name in enumerate(packed["image_id"])}
    bits = packed["mask_bits"]

    def mask(row: int) -> NDArray[np.float32] | None:
        index = place.get(ham.table[row]["image_id"])
        return None if index is None else np.unpackbits(bits[index])[:30000].reshape(150, 200).astype(np.float32)

    rows = np.arange(len(ham.table)) if rows is None else rows
    return Pictures.decoded(rows, ham.load, side_for(size), masks=mask, threads=2)


def backbone(data: Path, work: Path) -> Backbone:
    weights = data / "weights" / "mobilenet_v2_imagenet_tflite_dequant.pth"
    half = (0.5, 0.5, 0.5)
    return resolve(BackboneSpec("mobilenet_v2", str(weights), 224, half, half), work)


def split(ham: Ham, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows that are labelled, the rest of the pool, and the test set; no lesion is in two of them."""
    lesions = np.random.default_rng((seed, 100)).permutation(ham.lesions.max() + 1)
    cut = round(TEST_SHARE * len(lesions))
    test = np.flatnonzero(np.isin(ham.lesions, lesions[:cut]))
    sizes = np.bincount(ham.lesions)[lesions[cut:]]
    taken = int(np.searchsorted(np.cumsum(sizes), fraction * sizes.sum() - 0.5)) + 1
    labelled = np.flatnonzero(np.isin(ham.lesions, lesions[cut : cut + taken]))
    pool = np.flatnonzero(np.isin(ham.lesions, lesions[cut + taken :]))
    return labelled, pool, test


def examples(ham: Ham, rows: NDArray[np.int64], *, answers: bool, inputs: bool) -> Examples:
    return Examples(
        rows,
        {"dx": ham.labels[rows]} if answers else {},
        {name: values[rows] for name, values in ham.inputs.items()} if inputs else {},
        ham.lesions[rows],
    )


# ---------------------------------------------------------------------- runs
@dataclass(frozen=True)
class Bench:
    """What all runs of one call share."""

    ham: Ham
    pictures: Pictures
    start: Backbone
    size: int
    epochs: int
    threads: int
    work: Path
    patience: int = TuneSettings.patience

    def run(self, variant: str, fraction: float, seed: int, first: int | None = None) -> Tuned:
        """Fine-tune, or read what was; `first`: seed of the split, if it is another."""
        first = seed if first is None else first
        name = f"{variant}-{fraction:g}-{first}-{seed}-{self.size}-{self.epochs}"
        done = self.work / name
        if (done / "heads.json").exists():
            return load(done)
        labelled, pool, _ = split(self.ham, fraction, first)
        settings, _ = VARIANTS[variant]
        settings = replace(
            settings,
            epochs=0 if variant == "head" else self.epochs,
            patience=self.patience,
            seed=seed,
            threads=self.threads,
            input_size=self.size,
            accelerator="cpu",
        )
        teacher = self.teacher(variant, fraction, seed, first)
        extra = variant == "inputs"
        tuned = tune(
            self.start,
            [replace(HEAD, inputs=INPUTS if extra else ())],
            examples(self.ham, labelled, answers=True, inputs=extra),
            self.pictures,
            settings,
            pool=examples(self.ham, pool, answers=False, inputs=extra) if (teacher or settings.fixmatch) else None,
            teacher=teacher,
            folder=done / "run",
            on_epoch=lambda epoch: tell(name, epoch),
        )
        tuned.save(done)
        return tuned

    def teacher(self, variant: str, fraction: float, seed: int, first: int) -> Teacher | None:
        """Who teaches a variant: several tuned networks on all pictures; or, as in a project that tunes its first, the
        head on frozen features on those without a label (to the others it would say what it learnt by heart)."""
        labelled, pool, _ = split(self.ham, fraction, first)
        if variant == "distill":
            ids = np.concatenate([labelled, pool])
            members = [self.run("cutmix-object", fraction, seed + 1000 * k, first) for k in range(MEMBERS)]
        elif variant == "distill-head":
            ids, members = pool, [self.run("head", fraction, seed, first)]
        else:
            return None
        told = [predict(member, self.pictures, ids).log_probabilities for member in members]
        return Teacher(ids, ensemble_probabilities(told))

    def row(self, variant: str, fraction: float, seed: int) -> dict[str, Any]:
        begun = time.monotonic()
        tuned = self.run(variant, fraction, seed)
        labelled, _, test = split(self.ham, fraction, seed)
        found = worth(tuned, self.ham, self.pictures, labelled, test, inputs=variant == "inputs")
        trained = [epoch.images_per_s for epoch in tuned.history if epoch.epoch]
        return {
            "variant": variant,
            "fraction": fraction,
            "seed": seed,
            "size": self.size,
            "epochs": self.epochs,
            "labels": len(labelled),
            "test": len(test),
            **found,
            "best_epoch": tuned.best_epoch,
            "last_epoch": tuned.history[-1].epoch,
            "images_per_s": float(np.median(trained)) if trained else 0.0,
            "train_seconds": tuned.history[-1].seconds,
            "seconds": time.monotonic() - begun,
        }


def worth(
    tuned: Tuned, ham: Ham, pictures: Pictures, labelled: NDArray[np.int64], test: NDArray[np.int64], *, inputs: bool
) -> dict[str, float]:
    """What a network is worth on pictures it has not seen, as the product serves it: with a head fitted on its features
    of all labelled pictures, calibrated by those that it was not tuned on.

    Args:
        labelled, test: rows; inputs: the head is told the extra inputs too.
    """
    net = tuned.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learnt, seen = (
        frozen_features(net.trunk, pictures, rows, tuned.input_size, 1).numpy() for rows in (labelled, test)
    )
    space: Space | WideSpace = Space.learn(np.concatenate([learnt, seen]))
    if inputs:
        beside = [np.nan_to_num(values) for values in ham.inputs.values()]
        space = WideSpace(space, sum(values.shape[1] for values in beside))
        learnt = np.concatenate([learnt, *(values[labelled] for values in beside)], 1)
        seen = np.concatenate([seen, *(values[test] for values in beside)], 1)
    of_network = np.zeros(len(labelled), bool)
    if tuned.best_epoch:
        of_network = ~np.isin(labelled, tuned.held_out)
    head = fit_head(
        learnt,
        ham.labels[labelled],
        len(CLASSES),
        space,
        groups=lambda: np.unique(ham.lesions[labelled], return_inverse=True)[1],
        seen=of_network,
    ).head
    truth = ham.labels[test]
    width = space.space.width if isinstance(space, WideSpace) else space.width
    of_picture = Head(head.weight[:width], head.bias, head.temperature)
    columns = of_picture.logits(seen[:, :width]) + seen[:, width:] @ head.weight[width:]
    log_p = head.log_probabilities(columns).astype(np.float64)
    p = np.exp(log_p)
    p /= p.sum(1, keepdims=True)
    # As for classes that are equally frequent: balanced accuracy counts them so.
    shares = np.bincount(ham.labels[labelled], minlength=len(CLASSES)) + 0.5
    uniform = (log_p - np.log(shares)).argmax(1)
    recalls = [float((uniform[truth == c] == c).mean()) for c in range(len(CLASSES))]
    right = p.argmax(1) == truth
    return {
        "balanced_accuracy": float(np.mean(recalls)),
        **{f"recall_{name}": recall for name, recall in zip(CLASSES, recalls, strict=True)},
        "accuracy": float(right.mean()),
        "ece": expected_calibration_error(p, truth),
        "nll": negative_log_likelihood(p, truth),
        "aurc": aurc(p.max(1), right),
    }


def tell(name: str, epoch: Epoch) -> None:
    """An epoch on standard output."""
    held = "" if epoch.held_out is None else f" held out {epoch.held_out:.3f} {dict(epoch.metrics)}"
    loss = "" if epoch.loss is None else f" loss {epoch.loss:.3f}"
    print(f"{name} {epoch.epoch}/{epoch.epochs}{loss}{held} {epoch.images_per_s:.0f} images/s", flush=True)


def ham(args: argparse.Namespace) -> None:
    data = ham10000(args.data)
    bench = Bench(
        data,
        pictures_of(data, args.size),
        backbone(args.data, args.work),
        args.size,
        args.epochs,
        args.threads,
        args.work,
        args.patience,
    )
    names = tuple(VARIANTS) if args.variant == "all" else tuple(args.variant.split(","))
    keys = ("variant", "fraction", "seed", "size", "epochs")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for fraction in (float(text) for text in args.fraction.split(",")):
            for variant in names:
                done = {tuple(row[key] for key in keys) for row in read_rows(ROWS)}
                if (variant, f"{fraction:g}", str(seed), str(args.size), str(args.epochs)) in done:
                    continue
                row = bench.row(variant, fraction, seed)
                append_rows(ROWS, tuple(row), [row])
                print(
                    {key: row[key] for key in ("variant", "fraction", "seed", "balanced_accuracy", "ece")}, flush=True
                )


# ---------------------------------------------------------------------- tables
def table() -> str:
    """Means over seeds, and the paired difference to the variant that each adds something to.

    With its 95 % interval by Student's t over the seeds, from three on, in points.
    """
    frame = pd.DataFrame(read_rows(ROWS))
    numbers = [column for column in frame.columns if column != "variant"]
    frame[numbers] = frame[numbers].astype(float)
    lines = [
        "# Fine-tuning on HAM10000",
        "",
        "Made by `python -m benchmark.tuning table`; see it for what was run.",
        "",
    ]
    for (size, epochs, fraction), part in frame.groupby(["size", "epochs", "fraction"]):
        lines += [
            f"## {fraction:.0%} of the labels, {size:.0f} pixels, {epochs:.0f} epochs at most",
            "",
            "| variant | seeds | balanced accuracy | difference to | melanoma | accuracy | ECE | AURC | minutes |",
            "|---" * 9 + "|",
        ]
        by = {str(name): rows.set_index("seed") for name, rows in part.groupby("variant")}
        for name in (name for name in VARIANTS if name in by):
            mine, base = by[name], VARIANTS[name][1]
            mean = mine.mean(numeric_only=True)
            lines.append(
                f"| {name} | {len(mine)} | {mean['balanced_accuracy']:.3f} | {_difference(by, name, base)} | "
                f"{mean['recall_mel']:.3f} | {mean['accuracy']:.3f} | {mean['ece']:.3f} | {mean['aurc']:.4f} | "
                f"{mean['train_seconds'] / 60:.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


def _difference(by: dict[str, pd.DataFrame], name: str, base: str | None) -> str:
    if base is None or base not in by:
        return ""
    gain = (by[name]["balanced_accuracy"] - by[base]["balanced_accuracy"]).dropna().to_numpy()
    if len(gain) < 3:
        return f"{base}: {100 * gain.mean():+.1f} ({len(gain)} seeds)" if len(gain) else ""
    half = student_t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return f"{base}: {100 * gain.mean():+.1f} ± {100 * half:.1f}"


# ---------------------------------------------------------------------- speed
def speed(args: argparse.Namespace) -> None:
    """Whole epochs against bare passes, in turns."""
    data = ham10000(args.data)
    rows = np.arange(args.steps * args.batch)
    start = backbone(args.data, args.work)
    pictures = pictures_of(data, args.size, rows)
    found: dict[str, Any] = {}
    for variant in ("tuned", "augment", "cutmix-object"):
        settings = replace(
            VARIANTS[variant][0],
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
    parser.add_argument("what", choices=("speed", "ham", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/tuning"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fraction", default="0.1")
    parser.add_argument("--variant", default="all", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--patience", type=int, default=TuneSettings.patience, help="0: no early stop")
    parser.add_argument("--batch", type=int, default=32, help="of the speed test")
    parser.add_argument("--steps", type=int, default=6, help="an epoch of the speed test")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed test")
    parser.add_argument("--out", type=Path, default=RESULTS / "tuning_speed.json")
    args = parser.parse_args()
    if args.what == "table":
        (ROWS.parent / "ham10000.md").write_text(table() + "\n")
    elif args.data is None:
        parser.error("--data FOLDER is needed")
    else:
        {"speed": speed, "ham": ham}[args.what](args)


if __name__ == "__main__":
    main()
