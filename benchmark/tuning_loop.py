"""The whole loop on HAM10000, replayed: labels are chosen, then the network is tuned on them.

    python -m benchmark.features --data FOLDER --names ham10000
    python -m benchmark.tuning_loop run --data FOLDER --seeds 3 --size 96 --epochs 20
    python -m benchmark.tuning_loop table

For each seed a fifth of the lesions is the test set. Of the others `auto` and random order buy labels (the product's
ranking and head, `training.simulate`, a tenth of the labels in the audit slice, which is never trained on), the
network is tuned on what was bought, and beside it on all labels. `auto` looks at frozen
features all the time; `auto-tuned`, from a tenth of the labels on, at those of the network tuned on that tenth, as in a
project that tunes at doublings. Rows go to `results/tuning/loop.csv`; what is there is not run again, and a killed run
goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.backbones import Backbone
from training.simulate import Ground, Oracle, Plan, replay
from training.tuning import Pictures, Tuned, TuneSettings, load, tune

from . import tuning
from .rows import append_rows, read_rows
from .tuning import CLASSES, HEAD, Embed, Ham, backbone, embedder, examples, ham10000, pictures_of, split, tell, worth

ROWS = Path(__file__).parent / "results" / "tuning" / "loop.csv"
TABLE = Path(__file__).parent / "results" / "tuning" / "loop.md"
# Order -> shares of the pool that are bought; random order buys half as much again, to see whether it catches up.
SHARES = {"auto": (0.1, 0.2), "auto-tuned": (0.2,), "random": (0.1, 0.2, 0.3)}
FIRST = 0.1  # share of the pool that `auto-tuned` buys on frozen features
BATCH = 50
SETTINGS: TuneSettings = replace(tuning.AUGMENTED, start_share=TuneSettings.start_share)
KEYS = ("order", "share", "network", "seed", "size", "epochs")  # what names a row
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Loop:
    """What all runs of one call share."""

    ham: Ham
    features: NDArray[np.float16]  # [N, D], rows as in the metadata
    pictures: Pictures
    start: Backbone
    size: int
    epochs: int
    threads: int | None  # None: all usable cores
    work: Path

    def bought(self, seed: int, order: str) -> dict[float, tuple[Ids, Ids]]:
        """Share of the pool -> (rows trained on, rows in the audit slice)."""
        pool, _, _ = split(self.ham, 1.0, seed)
        if order == "auto-tuned":
            ground, before = self._after_tuning(seed)
        else:
            ground, before = self._ground(seed, lambda rows: self.features[rows].astype(np.float32)), None
        budgets = {round(share * len(pool)): share for share in SHARES[order]}
        plan = Plan(order.removesuffix("-tuned"), BATCH, max(budgets), seed, first=BATCH)
        found = {}
        for state in replay(ground, plan, before):
            # A round may step over a budget: the first one at or above it counts, and its number is what is told.
            for budget in [b for b in budgets if b <= state.labels]:
                found[budgets.pop(budget)] = (pool[state.train], pool[state.measured])
        return found

    def _after_tuning(self, seed: int) -> tuple[Ground, Ids]:
        """What `auto-tuned` goes on with, and rows of the pool whose labels it has."""
        pool, _, _ = split(self.ham, 1.0, seed)
        train, audit = self.bought(seed, "auto")[FIRST]
        tuned, folder = self.tuned(f"auto-{FIRST:g}-tuned", train, seed, self.epochs)
        learnt_from = np.setdiff1d(train, tuned.held_out) if tuned.best_epoch else train[:0]
        embed = embedder(tuned, folder, self.ham, self.threads, SETTINGS.flips)
        return self._ground(seed, embed, learnt_from), np.flatnonzero(np.isin(pool, np.union1d(train, audit)))

    def _ground(self, seed: int, embed: Embed, learnt_from: Ids | None = None) -> Ground:
        """`embed`: rows -> features; `learnt_from`: rows that those were learnt from."""
        pool, _, test = split(self.ham, 1.0, seed)
        seen = None if learnt_from is None else np.isin(pool, learnt_from)
        of_pool, of_test = (
            Oracle(embed(rows), self.ham.labels[rows], CLASSES, self.ham.lesions[rows], seen=known)
            for rows, known in ((pool, seen), (test, None))
        )
        return Ground.of(of_pool, of_test, seed)

    def tuned(self, name: str, rows: Ids, seed: int, epochs: int) -> tuple[Tuned, Path]:
        """Tune on some rows, or read what was; and where it is."""
        done = self.work / f"{name}-{seed}-{self.size}-{self.epochs}"
        if (done / "heads.json").exists():
            return load(done), done
        settings = replace(
            SETTINGS, epochs=epochs, seed=seed, threads=self.threads, input_size=self.size, accelerator="cpu"
        )
        found = tune(
            self.start,
            [HEAD],
            examples(self.ham, np.sort(rows), answers=True, inputs=False),
            self.pictures,
            settings,
            folder=done / "run",
            on_epoch=lambda epoch: tell(done.name, epoch),
        )
        found.save(done)
        return found, done

    def row(self, order: str, share: float, rows: Ids, audit: int, seed: int, network: str) -> dict[str, Any]:
        begun = time.monotonic()
        epochs = 0 if network == "head" else self.epochs
        found, folder = self.tuned(f"{order}-{share:g}-{network}", rows, seed, epochs)
        _, _, test = split(self.ham, 1.0, seed)
        flips = "none" if network == "head" else SETTINGS.flips
        embed = embedder(found, folder, self.ham, self.threads, flips)
        return {
            "order": order,
            "share": share,
            "network": network,
            "seed": seed,
            "size": self.size,
            "epochs": self.epochs,
            "labels": len(rows) + audit,
            "trained_on": len(rows),
            **worth(found, embed, self.ham, np.sort(rows), test, inputs=False),
            "best_epoch": found.best_epoch,
            "seconds": round(time.monotonic() - begun, 1),
        }


def run(args: argparse.Namespace) -> None:
    data = ham10000(args.data)
    loop = Loop(
        data,
        np.load(args.features / "ham10000.npz")["features"],
        pictures_of(data, args.size),
        backbone(args.data, args.work),
        args.size,
        args.epochs,
        args.threads,
        args.work,
    )
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        pool, _, _ = split(data, 1.0, seed)
        wanted: list[tuple[str, float, Ids, int]] = []
        for order in args.orders.split(","):
            bought = loop.bought(seed, order)
            wanted += [(order, share, rows, len(audit)) for share, (rows, audit) in bought.items()]
        wanted.append(("all", 1.0, pool, 0))
        for network in ("head", "tuned"):
            for order, share, rows, audit in wanted:
                key = (order, f"{share:g}", network, str(seed), str(args.size), str(args.epochs))
                if key in {tuple(row[name] for name in KEYS) for row in read_rows(ROWS)}:
                    continue
                found = loop.row(order, share, rows, audit, seed, network)
                append_rows(ROWS, tuple(found), [found])
                print({k: found[k] for k in ("order", "share", "network", "seed", "balanced_accuracy")}, flush=True)


def table() -> str:
    """Means over seeds; labels as a share of the pool."""
    frame = pd.DataFrame(read_rows(ROWS))
    numbers = [column for column in frame.columns if column not in ("order", "network")]
    frame[numbers] = frame[numbers].astype(float)
    lines = [
        "# The loop on HAM10000, replayed",
        "",
        "Made by `python -m benchmark.tuning_loop table`; see it for what was run.",
        "",
    ]
    for (size, epochs), part in frame.groupby(["size", "epochs"]):
        lines += [
            f"## {size:.0f} pixels, {epochs:.0f} epochs at most",
            "",
            "| labels | order | network | seeds | balanced accuracy | of all labels' | melanoma | ECE | AURC |",
            "|---" * 9 + "|",
        ]
        full = part[part["order"] == "all"].set_index(["network", "seed"])["balanced_accuracy"]
        for (share, order, network), rows in part.groupby(["share", "order", "network"]):
            mean = rows.mean(numeric_only=True)
            of_all = [
                row["balanced_accuracy"] / full[(network, row["seed"])]
                for _, row in rows.iterrows()
                if (network, row["seed"]) in full.index
            ]
            lines.append(
                f"| {share:.0%} | {order} | {network} | {len(rows)} | {mean['balanced_accuracy']:.3f} | "
                f"{np.mean(of_all) if of_all else float('nan'):.0%} | {mean['recall_mel']:.3f} | {mean['ece']:.3f} | "
                f"{mean['aurc']:.4f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--features", type=Path, default=Path("build/features"))
    parser.add_argument("--work", type=Path, default=Path("build/tuning-loop"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--orders", default=",".join(SHARES))
    args = parser.parse_args()
    if args.what == "table":
        TABLE.write_text(table() + "\n", encoding="utf-8")
        return
    if args.data is None:
        parser.error("run needs --data")
    run(args)


if __name__ == "__main__":
    main()
