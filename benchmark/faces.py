"""Yale faces: who is it, and which expression? Two heads against two networks against the other answer as extra input.

    python -m benchmark.faces run --data FOLDER [--split subject,condition,picture] [--seeds 3]
    python -m benchmark.faces table

`FOLDER` holds `yale_faces/` (15 subjects under 11 conditions) and `weights/`. mobilenet_v2 with ImageNet weights.

**Splits**, in three folds drawn anew for each seed:

    subject     no subject is on both sides: expressions of strangers; who they are cannot be asked
    condition   no condition is on both sides: subjects as never seen; an expression without examples cannot be asked
    picture     no picture is on both sides: both questions, and each other's answers as known extra inputs

Pictures with the same pixels under two names stay on one side, and so do conditions that share some. They count once,
and either name is right. "noglasses" counts as "normal": for 7 of 15 subjects they are one picture.

**Variants**: `frozen`, the product's head on frozen features; `separate`, a tuned network for each question; `joint`,
one with two heads, their losses weighed by learnt variances; `film`, a network for one question that is told the answer
to the other in four of five training examples, tested with it (`given`) and without (`missing`). Where the split keeps
the told answer's values apart (`subject`, `condition`) the value given is one never seen in training.

There is one picture of each subject under each condition. So no split can show what an extra input is worth at best:
left out are either all pictures with its value, or the very pair of value and answer, which a network that has seen the
subject under all other conditions then thinks impossible.

The learning rate is chosen for each fold by a third of its training side, with the units of the split kept apart, and
a network for the one question (expression, where there are two). Everything else is fixed. Rows go to
`results/tuning/faces.csv`; what is there is not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student_t

from training.backbones import Backbone, BackboneSpec, resolve
from training.blas import one_thread
from training.head import fit_head
from training.space import Space
from training.tuning import Examples, HeadSpec, Pictures, Tuned, TuneSettings, predict, side_for, tune
from training.tuning.net import trunk_of
from training.tuning.result import frozen_features

from .rows import append_rows, read_rows

ROWS = Path(__file__).parent / "results" / "tuning" / "faces.csv"
FOLDS = 3
SIZE = 96  # pixels
RATES = (1e-4, 3e-4)  # ten times the first left a training loss of 2.8, the second one of 1.4
# A network of a hundred pictures takes a quarter of a minute on one core. Nothing is held out: who a stranger is cannot
# stop a run, so that networks of one and of two questions would stop by different things.
SETTINGS = {
    "epochs": 8,
    "fewest_steps": 0,
    "held_out": 0.0,
    "patience": 0,
    "batch_size": 16,
    "ema_decay": 0.9,
    "augmentation": "light",
    "flips": "none",  # light comes from the left or from the right
    "mixing": "none",
    "input_size": SIZE,
    "threads": 1,
    "accelerator": "cpu",
    "precision": "32",
}
ASKED = {"subject": ("expression",), "condition": ("subject",), "picture": ("subject", "expression")}  # by split
OTHER = {"subject": "expression", "expression": "subject"}
VARIANTS = ("frozen", "separate", "joint", "film")
COLUMNS = ("split", "seed", "fold", "variant", "question", "input", "rate", "train", "test", "right", "seconds")

Ints = NDArray[np.int64]


# ---------------------------------------------------------------------- data
@dataclass(frozen=True)
class Faces:
    """One row a name; several rows may have the same pixels."""

    subjects: Sequence[str]
    conditions: Sequence[str]
    pixels: Sequence[str]  # equal where the pixels are

    @property
    def expressions(self) -> list[str]:
        return ["normal" if name == "noglasses" else name for name in self.conditions]

    def answers(self, question: str) -> list[str]:
        """Of each row to "subject" or "expression"."""
        return list(self.subjects) if question == "subject" else self.expressions

    def classes(self, question: str) -> tuple[str, ...]:
        return tuple(sorted(set(self.answers(question))))

    def codes(self, question: str) -> Ints:
        return np.unique(self.answers(question), return_inverse=True)[1].astype(np.int64)


def faces_of(folder: Path) -> tuple[Faces, list[Path]]:
    """The names under `folder`, and the file of each."""
    files = sorted((folder / "images").glob("subject*.png"))
    if not files:
        raise SystemExit(f"no subjectNN.condition.png in {folder / 'images'}; --data is the folder above yale_faces/")
    names = [path.stem.split(".") for path in files]
    pixels = []
    for path in files:
        with Image.open(path) as image:
            pixels.append(sha256(image.convert("L").tobytes()).hexdigest())
    return Faces([subject for subject, _ in names], [condition for _, condition in names], pixels), files


def units(faces: Faces, split: str) -> Ints:
    """[n] what may not be on both sides: rows of one subject or condition, and those that share pixels."""
    keys = {"subject": faces.subjects, "condition": faces.conditions, "picture": faces.pixels}[split]
    n = len(faces.pixels)
    links = []
    for names in (keys, faces.pixels):
        index = np.unique(names, return_inverse=True)[1]
        first = np.unique(index, return_index=True)[1]
        links.append((np.arange(n), first[index]))
    rows, columns = (np.concatenate(side) for side in zip(*links, strict=True))
    return connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)))[1].astype(np.int64)


def fold_of(unit: Ints, folds: int, seed: int) -> Ints:
    """[n] fold of each row: units in random order, the largest first, each to the smallest fold."""
    sizes = np.bincount(unit)
    order = np.random.default_rng((seed, 200)).permutation(len(sizes))
    filled = np.zeros(folds, np.int64)
    place = np.zeros(len(sizes), np.int64)
    for one in order[np.argsort(-sizes[order], kind="stable")]:
        place[one] = filled.argmin()
        filled[place[one]] += sizes[one]
    return place[unit]


def right(faces: Faces, question: str, rows: Ints, found: Ints) -> NDArray[np.bool_]:
    """[m] of the distinct pictures among `rows`: whether the answer is one of a picture's names."""
    answers, classes = faces.answers(question), faces.classes(question)
    names: dict[str, set[str]] = {}
    for pixels, answer in zip(faces.pixels, answers, strict=True):
        names.setdefault(pixels, set()).add(answer)
    once: dict[str, int] = {}
    for place, row in enumerate(rows.tolist()):
        once.setdefault(faces.pixels[row], place)
    return np.array([classes[found[place]] in names[pixels] for pixels, place in once.items()], bool)


# ---------------------------------------------------------------------- runs
@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    faces: Faces
    pictures: Pictures
    start: Backbone
    features: NDArray[np.float32]  # [n, D] of the network that nobody tuned
    space: Space

    def given(self, question: str, rows: Ints) -> dict[str, NDArray[np.float32]]:
        """The other question's answers as an extra input."""
        other = OTHER[question]
        return {other: np.eye(len(self.faces.classes(other)), dtype=np.float32)[self.faces.codes(other)[rows]]}

    def tuned(self, asked: Sequence[str], rows: Ints, rate: float, seed: int, *, told: bool = False) -> Tuned:
        """A network for the questions `asked`; `told`: the other question's answer conditions it."""
        return tune(
            self.start,
            [HeadSpec(q, "single", self.faces.classes(q), inputs=(OTHER[q],) if told else ()) for q in asked],
            Examples(
                rows,
                {q: self.faces.codes(q)[rows] for q in asked},
                self.given(asked[0], rows) if told else {},
            ),
            self.pictures,
            TuneSettings(**SETTINGS, lr_head=rate, lr_trunk=rate, seed=seed),  # type: ignore[arg-type]
        )

    def says(
        self, tuned: Tuned, question: str, rows: Ints, inputs: Mapping[str, NDArray[np.float32]] | None = None
    ) -> NDArray[np.bool_]:
        found = predict(tuned, self.pictures, rows, inputs).log_probabilities[question].argmax(1)
        return right(self.faces, question, rows, found)

    def rate(self, split: str, unit: Ints, train: Ints, seed: int) -> float:
        """The learning rate that does best on a third of the training side."""
        inner = fold_of(np.unique(unit[train], return_inverse=True)[1], FOLDS, seed) == 0
        question = ASKED[split][-1]
        shares = [
            self.says(self.tuned([question], train[~inner], rate, seed), question, train[inner]).mean()
            for rate in RATES
        ]
        return RATES[int(np.argmax(shares))]

    def run(
        self, variant: str, split: str, unit: Ints, train: Ints, test: Ints, rate: float, seed: int
    ) -> list[tuple[str, str, NDArray[np.bool_]]]:
        """(question, what became of the extra input, whether right [m]) of one variant."""
        found = []
        joint = self.tuned(("subject", "expression"), train, rate, seed) if variant == "joint" else None
        for question in ASKED[split]:
            if joint is not None:
                found.append((question, "", self.says(joint, question, test)))
            elif variant == "frozen":
                labels, classes = self.faces.codes(question)[train], len(self.faces.classes(question))
                with one_thread():
                    fit = fit_head(
                        self.features[train], labels, classes, self.space, groups=lambda: unit[train], seed=seed
                    )
                answer = fit.head.logits(self.features[test]).argmax(1)
                found.append((question, "", right(self.faces, question, test, answer)))
            elif variant == "separate":
                net = self.tuned([question], train, rate, seed)
                found.append((question, "", self.says(net, question, test)))
            else:
                net = self.tuned([question], train, rate, seed, told=True)
                found.append((question, "given", self.says(net, question, test, self.given(question, test))))
                found.append((question, "missing", self.says(net, question, test)))
        return found


def bench_of(data: Path, work: Path) -> Bench:
    faces, files = faces_of(data / "yale_faces")
    rows = np.arange(len(files))
    pictures = Pictures.decoded(rows, lambda row: files[row].read_bytes(), side_for(SIZE), threads=1)
    weights = data / "weights" / "mobilenet_v2_imagenet_tflite_dequant.pth"
    half = (0.5, 0.5, 0.5)
    start = resolve(BackboneSpec("mobilenet_v2", str(weights), 224, half, half), work)
    features = frozen_features(trunk_of(start).eval(), pictures, rows, SIZE).numpy()
    return Bench(faces, pictures, start, features, Space.learn(features))


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    bench = bench_of(args.data, args.work)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for split in args.split.split(","):
            unit = units(bench.faces, split)
            folds = fold_of(unit, FOLDS, seed)
            for fold in range(FOLDS):
                at = (split, f"{seed}", f"{fold}")
                rows = [row for row in read_rows(ROWS) if (row["split"], row["seed"], row["fold"]) == at]
                left = [variant for variant in VARIANTS if variant not in {row["variant"] for row in rows}]
                if not left:
                    continue
                train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
                rate = float(rows[0]["rate"]) if rows else bench.rate(split, unit, train, seed)
                for variant in left:
                    begun = time.monotonic()
                    found = bench.run(variant, split, unit, train, test, rate, seed)
                    seconds = f"{time.monotonic() - begun:.1f}"
                    key = (split, seed, fold, variant)
                    told = [
                        (*key, question, given, rate, len(train), len(hits), int(hits.sum()), seconds)
                        for question, given, hits in found
                    ]
                    append_rows(ROWS, COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in told])
                    print(*key, f"rate {rate:g}", *(f"{q} {g} {hits.mean():.3f}" for q, g, hits in found), flush=True)


# ---------------------------------------------------------------------- tables
NAMES = {
    "frozen": "frozen features, a head for each question",
    "separate": "a tuned network for each question",
    "joint": "one tuned network, two heads",
    "film given": "told the {other}, which is given",
    "film missing": "told the {other}, which is missing",
}
TITLES = {
    "subject": "Subjects left out",
    "condition": "Conditions left out",
    "picture": "Pictures left out",
}


def table() -> str:
    """Share right, and the paired difference to a network of its own, each with its 95 % interval from three folds on.

    By Student's t over folds and seeds, which share pictures: a little too narrow.
    Only folds count that all variants ran on, and only seeds with all folds where there is one.
    """
    frame = pd.DataFrame(read_rows(ROWS))
    frame[["right", "test"]] = frame[["right", "test"]].astype(int)
    frame["share"] = 100 * frame["right"] / frame["test"]
    frame["way"] = (frame["variant"] + " " + frame["input"]).str.strip()
    lines = [
        "# Two questions about faces",
        "",
        "Made by `python -m benchmark.faces table`; see it for splits and variants. Percent right and, against a tuned",
        "network for that question alone, points on the same folds and seeds; 95 % intervals over folds and seeds",
        "(which share pictures: a little too narrow).",
        "",
    ]
    for split, title in TITLES.items():
        for question in ASKED[split]:
            part = frame[(frame["split"] == split) & (frame["question"] == question)]
            shares = (
                part.pivot(index=["seed", "fold"], columns="way", values="share").reindex(columns=list(NAMES)).dropna()
            )
            whole = shares[shares.groupby("seed")["frozen"].transform("count") == FOLDS]
            shares = whole if len(whole) else shares
            if shares.empty:
                continue
            lines += [
                f"## {title}: {question}",
                "",
                f"Folds: {len(shares)}; seeds that drew them: {shares.index.get_level_values('seed').nunique()}.",
                "",
                "| variant | right, % | against separate |",
                "|---|---|---|",
            ]
            for way in NAMES:
                against = "" if way == "separate" else _interval(shares[way] - shares["separate"], "+.1f")
                lines.append(
                    f"| {NAMES[way].format(other=OTHER[question])} | {_interval(shares[way], '.1f')} | {against} |"
                )
            lines.append("")
    return "\n".join(lines)


def _interval(values: pd.Series, form: str) -> str:
    if len(values) < FOLDS:
        return f"{values.mean():{form}}"
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():{form}} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/tuning"))
    parser.add_argument("--split", default=",".join(ASKED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "table":
        ROWS.with_suffix(".md").write_text(table().rstrip() + "\n")
    elif args.data is None:
        parser.error("--data FOLDER is needed")
    elif unknown := set(args.split.split(",")) - set(ASKED):
        parser.error(f"--split: {', '.join(sorted(unknown))} is none of {', '.join(ASKED)}")
    else:
        run(args)


if __name__ == "__main__":
    main()
