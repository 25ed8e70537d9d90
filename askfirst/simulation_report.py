"""Tables and pictures of a simulation: what each strategy was worth, and whether that is more than chance.

Everything is paired by seed: strategies of one seed share the split, the audit slice and the noise, so differences to
random order are taken seed by seed before anything is averaged. Intervals are 95 % bootstrap intervals over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import DataProblem
from .files import write_atomic
from .simulation import curves_path, doublings, settings_path

REFERENCE = "random"
_BOOTSTRAP = 4_000
# Columns of the CSV that the page has a table of, and what they mean.
AT_BUDGETS = {
    "ece": "Expected calibration error on the test examples, 15 bins of equal width; noise makes it larger.",
    "ece_debiased": "Typical gap between confidence and accuracy, freed of noise.",
    "brier": "Squared distance of the prediction to the truth.",
    "aurc": "Area under the risk-coverage curve: low where errors are rare and found by low confidence.",
    "e_aurc": "The part of it that a perfect ranking of the same errors would not have.",
    "augrc": "Mean risk of an accepted error over all coverages.",
    "auroc": "Chance that a right answer is surer than a wrong one.",
    "set_size": "Possible labels of an example, at most one truth in ten missed; from nine audit labels on.",
    "set_coverage": "Share of those sets that hold the truth: 0.9 or more on average over seeds.",
}
_ENOUGH_SEEDS = 5  # a bootstrap over fewer values is too sure of itself
_TARGET_SHARE = 0.95  # of what random order reaches with the whole budget, unless a target is given


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(values: NDArray[np.float64]) -> Interval:
    """Of the mean of [seeds]; of one seed it is the value itself."""
    draws = np.random.default_rng(0).integers(0, len(values), (_BOOTSTRAP, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def area(labels: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Mean height of a learning curve: its area by trapezoids over the range of labels, divided by the range."""
    if len(labels) < 2:
        return float(values.mean())
    return float(np.trapezoid(values, labels) / (labels[-1] - labels[0]))


def labels_to(labels: NDArray[np.float64], values: NDArray[np.float64], target: float) -> float:
    """Labels at which a curve first reaches the target and the next round does not fall below it, by straight lines
    between rounds; infinity if it never does."""
    for i, value in enumerate(values):
        if value >= target and (i + 1 == len(values) or values[i + 1] >= target):
            if i == 0:
                return float(labels[0])
            share = (target - values[i - 1]) / (value - values[i - 1]) if value > values[i - 1] else 1.0
            return float(labels[i - 1] + np.clip(share, 0, 1) * (labels[i] - labels[i - 1]))
    return float("inf")


def read(path: Path) -> pd.DataFrame:
    """Rows of a simulation.

    Raises: DataProblem.
    """
    try:
        frame = pd.read_csv(path)
    except FileNotFoundError:
        raise DataProblem(f"There is no file {path}. Run `askfirst simulate ... --out {path}` first.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataProblem(f"{path} is not a CSV of `askfirst simulate`: {error}") from None
    missing = {"seed", "strategy", "round", "labels", "balanced_accuracy"} - set(frame.columns)
    if missing or frame.empty:
        raise DataProblem(f"{path} is not a CSV of `askfirst simulate`: no {', '.join(sorted(missing)) or 'rows'}")
    return frame


def compare(frame: pd.DataFrame, metric: str, target: float | None = None) -> tuple[pd.DataFrame, float]:
    """One row per strategy, best area first, and the target used.

    Columns: area, area_low, area_high; to_random, to_random_low, to_random_high (paired differences of areas; NaN
    without random order); labels_to_target (median over seeds, infinity where most never reach it); seconds (mean
    time of a round); seeds.
    """
    curves: dict[str, dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for (strategy, seed), rows in frame.groupby(["strategy", "seed"]):
        rows = rows.sort_values("round")
        curves.setdefault(str(strategy), {})[int(seed)] = (
            rows["labels"].to_numpy(np.float64),
            rows[metric].to_numpy(np.float64),
        )
    reference = curves.get(REFERENCE, {})
    if target is None:
        finals = [values[-1] for _, values in (reference or next(iter(curves.values()))).values()]
        target = _TARGET_SHARE * float(np.mean(finals))
    table = []
    for strategy, by_seed in curves.items():
        areas = {seed: area(*curve) for seed, curve in by_seed.items()}
        found = interval(np.array(list(areas.values())))
        shared = sorted(areas.keys() & reference.keys()) if strategy != REFERENCE else []
        difference = (
            interval(np.array([areas[seed] - area(*reference[seed]) for seed in shared]))
            if shared
            else Interval(np.nan, np.nan, np.nan)
        )
        table.append(
            {
                "strategy": strategy,
                "area": found.mean,
                "area_low": found.low,
                "area_high": found.high,
                "to_random": difference.mean,
                "to_random_low": difference.low,
                "to_random_high": difference.high,
                "labels_to_target": float(np.median([labels_to(*curve, target) for curve in by_seed.values()])),
                "seconds": float(frame.loc[frame["strategy"] == strategy, "seconds"].mean()),
                "seeds": len(by_seed),
            }
        )
    return pd.DataFrame(table).sort_values("area", ascending=False, ignore_index=True), target


def budgets(frame: pd.DataFrame) -> list[int]:
    """Numbers of labels that all pairs of seed and strategy have a row for, at most five, doubling towards the last."""
    counts = frame.groupby("labels").size()
    return doublings([int(n) for n in counts.index[counts == counts.max()]])


def write_report(
    csv_path: Path, folder: Path, *, metric: str = "balanced_accuracy", target: float | None = None
) -> Path:
    """Write report.md and its pictures into `folder`; returns the page.

    Raises: DataProblem.
    """
    frame = read(csv_path)
    if metric not in frame.columns:
        raise DataProblem(f"{csv_path} has no column {metric!r}; choose one of {', '.join(frame.columns[6:])}")
    table, target = compare(frame, metric, target)
    at = budgets(frame)
    folder.mkdir(parents=True, exist_ok=True)
    order = [str(s) for s in table["strategy"]]
    _draw_curves(frame, order, metric, target, folder / "learning_curves.svg")
    lines = _lines(csv_path)
    if lines:
        _draw_panels(lines, order, at, "reliability", folder / "calibration.svg")
        _draw_panels(lines, order, at, "risk", folder / "risk_coverage.svg")
    page = folder / "report.md"
    write_atomic(page, _page(csv_path, frame, table, metric, target, at, lines).encode())
    return page


# ---------------------------------------------------------------------- the page
def _page(
    csv_path: Path,
    frame: pd.DataFrame,
    table: pd.DataFrame,
    metric: str,
    target: float,
    at: Sequence[int],
    lines: Sequence[Mapping[str, Any]],
) -> str:
    name = metric.replace("_", " ")
    settings = json.loads(settings_path(csv_path).read_text()) if settings_path(csv_path).exists() else {}
    told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items() if value is not None)
    parts = [
        f"# What each strategy was worth: {csv_path.stem}",
        f"{told}. Intervals: 95 %, bootstrap over seeds; differences are paired by seed.",
        f"Area: {name} over the learning curve by trapezoids, divided by the range of labels. Target: {target:.3f}; "
        "labels to it are read off straight lines between rounds where it is reached and not lost again in "
        "the next, the median over seeds. The first round is the same "
        "for all strategies that need a model, since there is none yet."
        + (
            "" if frame["seed"].nunique() >= _ENOUGH_SEEDS else " **Few seeds: intervals are narrower than the truth.**"
        ),
        f"| strategy | area | difference to {REFERENCE} order | verdict | labels to target | s per round | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        found = Interval(row["area"], row["area_low"], row["area_high"])
        difference = Interval(row["to_random"], row["to_random_low"], row["to_random_high"])
        reached = row["labels_to_target"]
        parts.append(
            f"| {row['strategy']} | {found} | {'' if np.isnan(difference.mean) else difference} | "
            f"{_verdict(difference)} | {'not reached' if np.isinf(reached) else f'{reached:.0f}'} | "
            f"{row['seconds']:.2f} | {row['seeds']} |"
        )
    parts[3:] = ["\n".join(parts[3:])]
    for column, meaning in {metric: "", **AT_BUDGETS}.items():
        if column in frame.columns and frame[column].notna().any():  # older releases wrote fewer
            parts += [
                f"## {column.replace('_', ' ')} at each budget",
                *([meaning] if meaning else []),
                _at_budgets(frame, list(table["strategy"]), column, at),
            ]
    parts += confidence_table(lines, at)
    parts.append("![learning curves](learning_curves.svg)")
    if lines:
        parts += ["![calibration](calibration.svg)", "![risk and coverage](risk_coverage.svg)"]
    return "\n\n".join(parts) + "\n"


def _verdict(difference: Interval) -> str:
    if np.isnan(difference.mean):
        return ""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference shown"


def _at_budgets(frame: pd.DataFrame, strategies: Sequence[str], column: str, at: Sequence[int]) -> str:
    lines = ["| strategy | " + " | ".join(f"{n} labels" for n in at) + " |", "|---" * (len(at) + 1) + "|"]
    for strategy in strategies:
        cells = []
        for n in at:
            values = frame.loc[(frame["strategy"] == strategy) & (frame["labels"] == n), column].dropna()
            cells.append(str(interval(values.to_numpy(np.float64))) if len(values) else "")
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def confidence_table(lines: Sequence[Mapping[str, Any]], at: Sequence[int]) -> list[str]:
    """Which confidence ranks errors best: how far its AURC lies below that of the likeliest class's probability, mean
    over strategies, interval over seeds; and what choosing by the audit slice would have given. Nothing where older
    releases wrote no confidences."""
    told = [line for line in lines if "confidences" in line and line["labels"] in at]
    if not told:
        return []
    columns = sorted({line["labels"] for line in told})
    names = sorted({name for line in told for name in line["confidences"]["aurc"]} - {"msp"})
    head = "| confidence | " + " | ".join(f"{n} labels" for n in columns) + " |"
    rows = [head, "|---" * (len(columns) + 1) + "|"]
    of = {n: [line for line in told if line["labels"] == n] for n in columns}

    def row(title: str, name: str | None) -> str:
        return f"| {title} | " + " | ".join(_gain_over_seeds(of[n], name) for n in columns) + " |"

    msp = [interval(np.array(list(_by_seed(of[n], lambda c: c["aurc"]["msp"]).values()))) for n in columns]
    rows.append("| AURC of msp | " + " | ".join(map(str, msp)) + " |")
    rows += [row(name, name) for name in names]
    rows.append(row("**chosen on the audit slice**", None))
    counts = []
    for n in columns:
        compared = [line["confidences"] for line in of[n] if line["confidences"]["compared"]]
        other = sum(c["chosen"] != "msp" for c in compared)
        counts.append(f"{n} labels: {other} of {len(compared)}")
    return [
        "## Which confidence ranks errors best",
        "Fall of the AURC on the test examples against msp, the probability of the likeliest class; above 0 is better. "
        "The last row takes another than msp only where the audit labels of the round show beyond luck that it is "
        "better (at least 50 labels and 5 errors among them). Rounds that could compare, and chose another: "
        + "; ".join(counts)
        + ".",
        "\n".join(rows),
    ]


def _gain_over_seeds(lines: Sequence[Mapping[str, Any]], name: str | None) -> str:
    """Of a confidence, or with None of the one chosen; empty where there was none."""

    def gain(found: Mapping[str, Any]) -> float | None:
        area = found["aurc"].get(found["chosen"] if name is None else name)
        return None if area is None else found["aurc"]["msp"] - area

    values = list(_by_seed(lines, gain).values())
    if not values:
        return ""
    found = interval(np.array(values))
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _by_seed(
    lines: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]
) -> dict[int, float]:
    """Mean over the strategies of each seed."""
    values: dict[int, list[float]] = {}
    for line in lines:
        found = value(line["confidences"])
        if found is not None and not np.isnan(found):
            values.setdefault(int(line["seed"]), []).append(found)
    return {seed: float(np.mean(of_seed)) for seed, of_seed in values.items()}


# ---------------------------------------------------------------------- pictures
def _figure(panels: int) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "askfirst"  # the same picture for the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, panels, figsize=(5.2 * panels if panels == 1 else 3.2 * panels, 4.2), squeeze=False
    )
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _colours(strategies: Sequence[str]) -> Mapping[str, Any]:
    import matplotlib

    palette = [matplotlib.colormaps["tab20"](i) for i in range(20)]
    return {s: "black" if s == REFERENCE else palette[i % len(palette)] for i, s in enumerate(strategies)}


def _draw_curves(frame: pd.DataFrame, order: Sequence[str], metric: str, target: float, path: Path) -> None:
    figure, (axis,) = _figure(1)
    colours = _colours(order)
    for strategy in order:
        rows = frame[frame["strategy"] == strategy]
        points = [
            (float(n), interval(values.to_numpy(np.float64)))
            for n, values in rows.groupby("labels")[metric]
            if len(values)
        ]
        x = [n for n, _ in points]
        axis.plot(x, [found.mean for _, found in points], color=colours[strategy], label=strategy, linewidth=1.4)
        axis.fill_between(
            x,
            [found.low for _, found in points],
            [found.high for _, found in points],
            color=colours[strategy],
            alpha=0.15,
            linewidth=0,
        )
    axis.axhline(target, color="grey", linestyle=":", linewidth=1)
    axis.set_xlabel("labels")
    axis.set_ylabel(metric.replace("_", " "))
    axis.legend(fontsize=7, ncols=2)
    _save(figure, path)


def _draw_panels(
    lines: Sequence[Mapping[str, Any]], order: Sequence[str], at: Sequence[int], what: str, path: Path
) -> None:
    figure, axes = _figure(len(at))
    colours = _colours(order)
    for axis, n in zip(axes, at, strict=True):
        for strategy in order:
            rows = [line for line in lines if line["strategy"] == strategy and line["labels"] == n]
            x, y = _mean_reliability(rows) if what == "reliability" else _mean_risk(rows)
            axis.plot(
                x, y, color=colours[strategy], label=strategy, linewidth=1.2, marker="." if what != "risk" else None
            )
        if what == "reliability":
            axis.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
        axis.set_title(f"{n} labels", fontsize=9)
        axis.set_xlabel("confidence" if what == "reliability" else "coverage")
    axes[0].set_ylabel("accuracy" if what == "reliability" else "error rate")
    axes[-1].legend(fontsize=6)
    _save(figure, path)


def _mean_reliability(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Bins of all seeds pooled: fifteen of equal width, each weighted by its examples."""
    bins = np.array([entry for row in rows for entry in row["reliability"]], np.float64).reshape(-1, 3)
    where = np.minimum((bins[:, 1] * 15).astype(np.int64), 14)
    count = np.bincount(where, bins[:, 0], minlength=15)
    used = count > 0
    x = np.bincount(where, bins[:, 0] * bins[:, 1], minlength=15)[used] / count[used]
    y = np.bincount(where, bins[:, 0] * bins[:, 2], minlength=15)[used] / count[used]
    return x.tolist(), y.tolist()


def _mean_risk(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    if not rows:
        return [], []
    points = np.array([row["risk"] for row in rows], np.float64)
    return points[0, :, 0].tolist(), points[:, :, 1].mean(axis=0).tolist()


def _lines(csv_path: Path) -> list[dict[str, Any]]:
    path = curves_path(csv_path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
