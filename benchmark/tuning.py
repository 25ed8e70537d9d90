"""What fine-tuning and its parts are worth on HAM10000.

    python -m benchmark.tuning ham --data FOLDER --fraction 0.1,0.2 --first-seed 1 --size 96 --epochs 10 --threads 1
    python -m benchmark.tuning ham --data FOLDER --fraction 1 --variant moving-norms,moving-norms-views --size 128
    python -m benchmark.tuning table

`FOLDER` holds `ham10000_200x150/` and `weights/`. mobilenet_v2 with ImageNet weights.

A fifth of the lesions of each seed is the test set; `--fraction` of the other pictures, whole lesions, is
labelled. Each variant adds one thing to another, see `VARIANTS`; seeds are paired. Rows go to
`results/tuning/ham10000.csv`; what is there is not run again, and a killed run goes on after its last whole epoch.
Measured is what the product serves: a head on the network's features. Balanced accuracy and recalls are of
probabilities for equally frequent classes; accuracy, calibration and selective risk of those for classes as frequent as
the labels.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student_t

from training.backbones import Backbone, BackboneSpec, Flips, resolve
from training.engine import open_engine
from training.head import fit_head
from training.images import decode
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
from training.tuning.blend import between
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
EMBEDDED = 64  # pictures at a time
Embed = Callable[[NDArray[np.int64]], NDArray[np.float32]]

# A lesion has no right way up.
PLAIN = TuneSettings(augmentation="none", mixing="none", flips="both", start_share=0.0)
AUGMENTED = replace(PLAIN, augmentation="light")
RANDAUGMENTED = replace(PLAIN, augmentation="randaugment")
MOVING: dict[str, Any] = {"batch_norm": "train", "lr_trunk": 1e-3, "lr_head": 1e-3}


@dataclass(frozen=True)
class Variant:
    """What is tuned, and how it is served."""

    settings: TuneSettings
    base: str | None  # the variant to which it adds one thing
    network: str = ""  # the variant whose network this is; "": one of its own
    flips: Flips = "none"  # views over which features are averaged
    start_share: float = 0.0  # of the start's weights, mixed in afterwards: what a run does itself at its end
    inputs: bool = False  # age, sex and site are told to the head, and to the network if it is one of its own


VARIANTS = {
    "head": Variant(replace(PLAIN, epochs=0), None),
    "tuned": Variant(PLAIN, "head"),
    "augment": Variant(AUGMENTED, "tuned"),
    "randaugment": Variant(RANDAUGMENTED, "augment"),
    "views": Variant(AUGMENTED, "augment", network="augment", flips="both"),
    "quarter-back": Variant(AUGMENTED, "augment", network="augment", start_share=0.25),
    "half-back": Variant(AUGMENTED, "augment", network="augment", start_share=0.5),
    "cutmix": Variant(replace(AUGMENTED, mixing="cutmix"), "augment"),
    "cutmix-object": Variant(replace(AUGMENTED, mixing="cutmix-object"), "augment"),
    "distill": Variant(AUGMENTED, "augment"),
    "distill-head": Variant(AUGMENTED, "augment"),
    "fixmatch": Variant(replace(AUGMENTED, fixmatch=True), "augment"),
    "inputs": Variant(AUGMENTED, "augment", inputs=True),
    "moving-norms": Variant(replace(AUGMENTED, **MOVING), "augment"),
    "moving-norms-views": Variant(AUGMENTED, "moving-norms", network="moving-norms", flips="both"),
    "moving-norms-views-inputs": Variant(AUGMENTED, "moving-norms-views", "moving-norms", "both", inputs=True),
    "moving-randaugment": Variant(replace(RANDAUGMENTED, **MOVING), "moving-norms"),
    "moving-randaugment-views": Variant(RANDAUGMENTED, "moving-randaugment", "moving-randaugment", "both"),
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

    def run(self, variant: str, fraction: float, seed: int, first: int | None = None) -> tuple[Tuned, Path]:
        """Fine-tune, or read what was, and where it is; `first`: seed of the split, if it is another."""
        first = seed if first is None else first
        name = f"{variant}-{fraction:g}-{first}-{seed}-{self.size}-{self.epochs}"
        done = self.work / name
        if (done / "heads.json").exists():
            return load(done), done
        labelled, pool, _ = split(self.ham, fraction, first)
        settings = replace(
            VARIANTS[variant].settings,
            epochs=0 if variant == "head" else self.epochs,
            patience=self.patience,
            seed=seed,
            threads=self.threads,
            input_size=self.size,
            accelerator="cpu",
        )
        teacher = self.teacher(variant, fraction, seed, first)
        extra = VARIANTS[variant].inputs
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
        return tuned, done

    def teacher(self, variant: str, fraction: float, seed: int, first: int) -> Teacher | None:
        """Who teaches a variant: several tuned networks on all pictures; or, as in a project that tunes its first, the
        head on frozen features on those without a label (to the others it would say what it learnt by heart)."""
        labelled, pool, _ = split(self.ham, fraction, first)
        if variant == "distill":
            ids = np.concatenate([labelled, pool])
            members = [self.run("augment", fraction, seed + 1000 * k, first)[0] for k in range(MEMBERS)]
        elif variant == "distill-head":
            ids, members = pool, [self.run("head", fraction, seed, first)[0]]
        else:
            return None
        told = [predict(member, self.pictures, ids).log_probabilities for member in members]
        return Teacher(ids, ensemble_probabilities(told))

    def row(self, variant: str, fraction: float, seed: int) -> dict[str, Any]:
        begun = time.monotonic()
        made = VARIANTS[variant]
        tuned, folder = self.run(made.network or variant, fraction, seed)
        if made.start_share and tuned.best_epoch:
            start = self.run("head", fraction, seed)[0].state
            tuned = replace(tuned, state=between(start, tuned.state, made.start_share))
            folder = folder / variant
            tuned.save(folder)
        labelled, _, test = split(self.ham, fraction, seed)
        embed = embedder(tuned, folder, self.ham, self.threads, made.flips)
        found = worth(tuned, embed, self.ham, labelled, test, inputs=made.inputs)
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


def embedder(tuned: Tuned, folder: Path, ham: Ham, threads: int | None, flips: Flips = "none") -> Embed:
    """Rows -> features [n, D], as the product makes them of a network's file."""
    weights = folder / f"{tuned.architecture}.safetensors"
    backbone = resolve(BackboneSpec(tuned.architecture, str(weights), flips=flips), folder)
    engine = open_engine(backbone, folder / "engines", threads=threads)

    def embed(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = np.array_split(rows, max(1, len(rows) // EMBEDDED))
        with ThreadPoolExecutor(threads) as pool:
            return np.concatenate(
                [
                    engine.embed(np.stack(list(pool.map(lambda r: decode(ham.load(r), engine.input_size), part))))
                    for part in parts
                ]
            )

    return embed


def worth(
    tuned: Tuned, embed: Embed, ham: Ham, labelled: NDArray[np.int64], test: NDArray[np.int64], *, inputs: bool
) -> dict[str, float]:
    """What a network is worth on pictures it has not seen, as the product serves it: with a head fitted on its features
    of all labelled pictures, calibrated by those that it was not tuned on.

    Args:
        embed: rows -> the network's features; labelled, test: rows; inputs: the head is told the extra inputs too.
    """
    learnt, seen = embed(labelled), embed(test)
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
            mine, base = by[name], VARIANTS[name].base
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ham", "table"))
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
    args = parser.parse_args()
    if args.what == "table":
        (ROWS.parent / "ham10000.md").write_text(table() + "\n")
    elif args.data is None:
        parser.error("--data FOLDER is needed")
    else:
        ham(args)


if __name__ == "__main__":
    main()
