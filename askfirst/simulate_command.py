"""The command `askfirst simulate`: data in, rows and a report out, with a line that moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.api import Shares
from training.simulate import Oracle

from . import simulation, simulation_data, simulation_report
from .errors import DataProblem

if TYPE_CHECKING:
    from backend.settings import Settings

SHOWN_UNREADABLE = 5


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    out: Path
    images: Path | None
    labels: Path | None
    label: str | None
    group: str | None
    project: int | None
    strategies: tuple[str, ...]
    batch: int
    budget: int
    seeds: int
    test_share: float
    audit_share: float | None
    noise: float
    workers: int
    work: Path
    report: Path | None
    metric: str
    target: float | None


def run(request: Request, settings: Settings) -> None:
    """Simulate and report. Raises: DataProblem, and what the backend raises for a project."""
    if request.images is not None and request.project is not None:
        raise DataProblem("--images and --project are two sources of labels: give one of them")
    console = Console(highlight=False, soft_wrap=True)
    if request.images is not None or request.project is not None:
        _simulate(request, settings, console)
    elif request.report is None:
        raise DataProblem("nothing to replay: give --images PATH --labels CSV, or --project NUMBER")
    if request.report is not None:
        page = simulation_report.write_report(request.out, request.report, metric=request.metric, target=request.target)
        console.print(f"report: {page}")


def _simulate(request: Request, settings: Settings, console: Console) -> None:
    simulation.refuse_foreign(request.out)  # before an hour of embedding
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        oracle, about = _data(request, settings, bars)
        plan = simulation.Settings(
            strategies=request.strategies,
            batch=request.batch,
            budget=request.budget,
            seeds=request.seeds,
            test_share=request.test_share,
            layers=Shares(settings.explore, settings.quota, settings.veto, settings.learn_from_skips),
            audit_share=settings.audit_share if request.audit_share is None else request.audit_share,
            noise=request.noise,
            workers=request.workers,
        )
        pool = round((1 - plan.test_share) * len(oracle.labels))
        if plan.budget > pool:
            bars.console.print(
                f"  --budget {plan.budget} is more than there is: {1 - plan.test_share:.0%} of {len(oracle.labels):,} "
                f"examples are to be asked for, about {pool:,}; each run ends when all are labelled"
            )
        pairs = bars.add_task("strategies x seeds", total=len(plan.strategies) * plan.seeds)
        for progress in simulation.run(oracle, plan, request.out, about=about):
            bars.update(pairs, completed=progress.done)  # stopped here, the same command goes on
            if progress.row is not None:
                seed, strategy = progress.job
                bars.console.print(
                    f"{strategy}, seed {seed}: {progress.row['labels']} labels, accuracy {progress.row['accuracy']}, "
                    f"balanced {progress.row['balanced_accuracy']}"
                )
        bars.update(pairs, completed=len(plan.strategies) * plan.seeds)
    console.print(f"rows: {request.out}")


def _data(request: Request, settings: Settings, bars: Progress) -> tuple[Oracle, dict[str, Any]]:
    """The oracle, and what it is in words."""
    if request.project is not None:
        from backend.worker_context import build

        workshop, _ = build(settings)
        try:
            oracle = simulation_data.of_project(workshop.desk(request.project).model)
        finally:
            workshop.close()
        return oracle, {"data": f"project {request.project}", "examples": len(oracle.labels)}
    from backend.project import model_spec

    assert request.images is not None
    data = simulation_data.read_labels(request.images, request.labels, request.label, request.group)
    for note in data.notes:
        bars.console.print(f"  {note}")
    images = bars.add_task("images", total=len(data.files))

    def progress(done: int, total: int) -> None:
        bars.update(images, completed=done, total=total)

    oracle, unreadable = simulation_data.embed(data, model_spec(settings), request.work, progress)
    bars.update(images, completed=len(data.files), total=len(data.files))
    for file, reason in list(unreadable.items())[:SHOWN_UNREADABLE]:
        bars.console.print(f"  {file} is left out: {reason}")
    if len(unreadable) > SHOWN_UNREADABLE:
        bars.console.print(f"  and {len(unreadable) - SHOWN_UNREADABLE} more")
    about = {"data": str(data.folder.name), "examples": len(oracle.labels), "classes": list(oracle.classes)}
    return oracle, about | ({"group": request.group} if request.group else {})
