"""`askfirst simulate`: would active learning have paid here? Replays labels that are known with the product's engine.

One CSV row per (seed, strategy, round). Beside it a file of curves for the report, and one of picks: with what chance
each example was asked for. A run that was stopped goes on where it was: pairs of seed and strategy that are complete
are not run again; columns that an older release did not write stay empty for them.
"""

from __future__ import annotations

import csv
import io
import json
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from training import simulate
from training.api import REASONS, Shares

from .errors import DataProblem
from .files import write_atomic

FIELDS = ("seed", "strategy", "round", "labels", "audit", "junk", *simulate.MEASURES, "select_s", "fit_s", "seconds")
PICK_FIELDS = ("seed", "strategy", "round", "place", "example", "reason", "propensity", "share", "left")
MOST_BUDGETS = 5  # numbers of labels that the report looks at
Job = tuple[int, str]  # seed, strategy
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """What one seed and strategy gave."""

    rows: Sequence[Row]  # of `FIELDS`
    lines: Sequence[str]  # JSON, for the report
    picks: Sequence[Row]  # of `PICK_FIELDS`


@dataclass(frozen=True)
class Settings:
    """What to replay, the same for all seeds and strategies."""

    strategies: tuple[str, ...]
    batch: int = 10
    budget: int = 500
    seeds: int = 3
    first_seed: int = 0
    test_share: float = 0.25
    layers: Shares = field(default_factory=Shares)
    audit_share: float = 0.1
    first: int | None = None
    noise: float = 0.0
    workers: int = 1

    @property
    def all_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def plan(self, seed: int, strategy: str) -> simulate.Plan:
        return simulate.Plan(
            strategy=strategy,
            batch=self.batch,
            budget=self.budget,
            seed=seed,
            layers=self.layers,
            audit_share=self.audit_share,
            first=self.first,
            noise=self.noise,
        )

    def fingerprint(self) -> dict[str, Any]:
        """What two runs must share to be rows of one table."""
        return {
            "batch": self.batch,
            "budget": self.budget,
            "test_share": self.test_share,
            "explore": self.layers.explore,
            "quota": self.layers.quota,
            "veto": self.layers.veto,
            "skips": self.layers.skips,
            "audit_share": self.audit_share,
            "first": self.first,
            "noise": self.noise,
        }


@dataclass(frozen=True)
class Progress:
    """How far a run is, after each round."""

    done: int  # pairs of seed and strategy that are complete
    total: int
    job: Job
    row: Mapping[str, Any] | None  # the last row of the pair that was just completed


def curves_path(out: Path) -> Path:
    return out.with_suffix(".curves.jsonl")


def picks_path(out: Path) -> Path:
    return out.with_suffix(".picks.csv")


def doublings(labels: Sequence[int]) -> list[int]:
    """Of the numbers of labels of a curve at most five, doubling towards the last."""
    wanted = [max(labels) / 2**i for i in range(MOST_BUDGETS)]
    return sorted({min(labels, key=lambda n: abs(n - goal)) for goal in wanted})


def settings_path(out: Path) -> Path:
    return out.with_suffix(".settings.json")


def run(oracle: simulate.Oracle, settings: Settings, out: Path, *, about: Mapping[str, Any]) -> Iterator[Progress]:
    """Replay every pair of seed and strategy, write rows to `out`; yields after each pair.

    Args:
        about: what the data are, remembered with the settings.
    Raises:
        DataProblem: `out` holds a run with other settings or other data.
    """
    said = json.loads(json.dumps({**about, **settings.fingerprint()}))
    _same_settings(out, said)
    wanted: list[Job] = [(seed, strategy) for seed in settings.all_seeds for strategy in settings.strategies]
    known = _kept(out)
    complete = {(int(r["seed"]), r["strategy"]) for r in known.rows}
    _write(out, known)
    left = [job for job in wanted if job not in complete]
    for finished, (job, new) in enumerate(_results(oracle, settings, left), start=1):
        # Whole pairs are added in one step, so a stop in between leaves none that is half there.
        known = Pair([*known.rows, *new.rows], [*known.lines, *new.lines], [*known.picks, *new.picks])
        _write(out, known)
        yield Progress(len(wanted) - len(left) + finished, len(wanted), job, new.rows[-1] if new.rows else None)


def _results(oracle: simulate.Oracle, settings: Settings, jobs: Sequence[Job]) -> Iterator[tuple[Job, Pair]]:
    if settings.workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, one_pair(oracle, settings, job)
        return
    with ProcessPoolExecutor(
        settings.workers, mp_context=get_context("spawn"), initializer=_remember, initargs=(oracle, settings)
    ) as pool:
        running: dict[Future[Pair], Job] = {pool.submit(_pair_here, job): job for job in jobs}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            if running:  # stopped: nobody waits for pairs whose rows are not taken any more
                for child in active_children():
                    child.terminate()


_here: tuple[simulate.Oracle, Settings] | None = None


@lru_cache(maxsize=1)  # jobs come seed by seed
def _ground(oracle: simulate.Oracle, test_share: float, seed: int) -> simulate.Ground:
    return simulate.Ground.of(*simulate.split(oracle, test_share, seed), seed)


def _remember(oracle: simulate.Oracle, settings: Settings) -> None:
    global _here
    _here = oracle, settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches everybody; the parent ends us without tracebacks


def _pair_here(job: Job) -> Pair:
    assert _here is not None
    return one_pair(*_here, job)


def one_pair(oracle: simulate.Oracle, settings: Settings, job: Job) -> Pair:
    """CSV rows, lines of curves and picks of one seed and strategy."""
    seed, strategy = job
    ground = _ground(oracle, settings.test_share, seed)
    plan = settings.plan(seed, strategy)
    looked_at = doublings(plan.curve(len(ground.pool.labels)))
    rows, lines, picks = [], [], []
    for number, found in enumerate(simulate.replay(ground, plan), start=1):
        where = {"seed": seed, "strategy": strategy, "round": number, "labels": found.labels}
        measured = {n: "" if v is None else round(v, 6) for n, v in simulate.measure(found, ground.test).items()}
        rows.append(
            {
                **where,
                "audit": found.audit,
                "junk": found.junk,
                **measured,
                "select_s": round(found.select_s, 4),
                "fit_s": round(found.fit_s, 4),
                "seconds": round(found.select_s + found.fit_s, 4),
            }
        )
        line: dict[str, Any] = {**where, **simulate.curves(found, ground.test)}
        if found.labels in looked_at:  # too dear for every round
            line["confidences"] = simulate.confidences(found, ground)
        lines.append(json.dumps(line))
        picks += _picks(found, ground.pool, where)
    return Pair(rows, lines, picks)


def _picks(found: simulate.Round, pool: simulate.Oracle, where: Row) -> list[dict[str, Any]]:
    assert pool.names is not None  # a pool is taken from an oracle
    return [
        {
            **{name: where[name] for name in ("seed", "strategy", "round")},
            "place": place + 1,
            "example": pool.names[row],
            "reason": REASONS[found.reasons[place]],
            "propensity": f"{found.odds.propensity[place]:.6g}",
            "share": f"{found.odds.share[place]:.4g}",
            "left": int(found.odds.left[place]),
        }
        for place, row in enumerate(found.chosen.tolist())
    ]


# ---------------------------------------------------------------------- files
def refuse_foreign(out: Path) -> None:
    """Raises: DataProblem: `out` is a file that no simulation wrote, or nothing can be written there."""
    if out.exists() and not settings_path(out).exists():
        raise DataProblem(
            f"{out} is there already and not one of ours ({settings_path(out).name} is missing). Give another --out."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise DataProblem(f"nothing can be written to {out.parent}: {error.strerror}. Give another --out.") from None


def _same_settings(out: Path, said: dict[str, Any]) -> None:
    refuse_foreign(out)
    path = settings_path(out)
    if out.exists():
        before = json.loads(path.read_text())
        differs = sorted(k for k in said.keys() | before.keys() if said.get(k) != before.get(k))
        if differs:
            raise DataProblem(
                f"{out} holds a run with another {', '.join(differs)} ({before.get(differs[0])!r}, now "
                f"{said.get(differs[0])!r}). Give the same, or another --out, or remove the file."
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(said, indent=1).encode())


def _kept(out: Path) -> Pair:
    """What an earlier start left."""
    if not out.exists():
        return Pair([], [], [])
    rows = _read(out)
    pairs = {(str(r["seed"]), r["strategy"]) for r in rows}
    path = curves_path(out)
    lines = path.read_text().splitlines() if path.exists() else []
    return Pair(
        rows,
        [line for line in lines if (str((body := json.loads(line))["seed"]), body["strategy"]) in pairs],
        [row for row in _read(picks_path(out)) if (row["seed"], row["strategy"]) in pairs],
    )


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(out: Path, known: Pair) -> None:
    """The rows last: they are what says that a pair is complete."""
    write_atomic(curves_path(out), "".join(f"{line}\n" for line in known.lines).encode())
    write_atomic(picks_path(out), _table(PICK_FIELDS, known.picks))
    write_atomic(out, _table(FIELDS, known.rows))


def _table(names: Sequence[str], rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([row.get(name, "") for name in names] for row in rows)
    return text.getvalue().encode()
