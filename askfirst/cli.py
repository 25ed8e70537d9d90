"""The command `askfirst`. Commands stay thin: each reads settings, calls one function, and prints what it said.

Imports of the backend stand inside the commands, so that `askfirst --help` does not load a network.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import AskFirstError
from .signals import Interrupted, turned_into_exceptions

if TYPE_CHECKING:
    from backend.dispatch import Dispatcher
    from backend.project import Workshop
    from backend.settings import Settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The images your model is least sure about, first: active learning for Label Studio.",
)

ProjectOption = Annotated[int, typer.Option("--project", "-p", min=1, help="number of the project in Label Studio")]
GUNICORN_CONFIG = Path("backend") / "gunicorn_conf.py"
WSGI_APP = "backend.wsgi:app"
PICK_COLUMNS = ("place", "reason", "propensity", "share", "left", "strategy", "explore", "order", "model")


def main() -> None:
    """Entry point: errors that somebody can act on are one message, not a traceback."""
    try:
        app()
    except AskFirstError as error:
        sys.exit(f"askfirst: {error}")
    except Interrupted as signal:
        sys.exit(128 + signal.number)


def fail(message: str) -> typer.Exit:
    """Print a message for the user; the caller raises what this returns."""
    typer.echo(f"askfirst: {message}", err=True)
    return typer.Exit(1)


# ---------------------------------------------------------------------- the demo
@app.command()
def demo(
    images: Annotated[
        Path | None,
        typer.Option(help="folder of images, or of one folder per class; without it: 1,797 handwritten digits"),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with the header image,<control>: the truth that bots answer with")
    ] = None,
    bots: Annotated[int, typer.Option(min=0, max=64, help="simulated annotators")] = 0,
    labels_per_bot: Annotated[int, typer.Option(min=1, help="labels that each of them gives")] = 20,
    think_time: Annotated[float, typer.Option(min=0.0, help="seconds that a bot looks at an image")] = 0.0,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of Label Studio")] = 8080,
    backend_port: Annotated[int, typer.Option(min=1, max=65535, help="of the backend")] = 9090,
    data_dir: Annotated[Path, typer.Option(help="where everything is kept between two starts")] = Path(".demo"),
    json: Annotated[Path | None, typer.Option(help="write addresses, credentials, times and results here")] = None,
    exit: Annotated[bool, typer.Option("--exit", help="end everything when the bots are done")] = False,
    seed: Annotated[int | None, typer.Option(help="seed of every random choice of the backend")] = None,
    strategy: Annotated[str | None, typer.Option(help="selection strategy, see `askfirst strategies`")] = None,
) -> None:
    """Label Studio, Redis, backend and a project with images, connected and ordered, on this machine."""
    from backend.errors import BackendError

    from .demo import Options, run

    if port == backend_port:
        raise fail(f"--port and --backend-port are both {port}: give one of them another number")
    if strategy is not None:
        _known_strategy(strategy)
    _settings()  # a variable of the environment that cannot be used is told now, not by a child that dies
    options = Options(
        images=images,
        labels=labels,
        bots=bots,
        labels_per_bot=labels_per_bot,
        think_s=think_time,
        port=port,
        backend_port=backend_port,
        data_dir=data_dir,
        json=json,
        exit=exit,
        seed=seed,
        strategy=strategy,
    )
    try:
        status = run(options)
    except BackendError as error:  # a labelling config that cannot be served, say
        raise fail(str(error)) from None
    except FileNotFoundError as error:
        raise fail(f"{error.strerror}: {error.filename}; choose another --data-dir DIR") from None
    raise typer.Exit(status)


# ---------------------------------------------------------------------- processes
@app.command()
def serve() -> None:
    """The web process, under gunicorn. Port, threads and the rest come from settings."""
    from .processes import package_path

    _known_strategy(_settings().strategy)  # here, since the web process itself never loads strategies
    root = Path(__file__).resolve().parents[1]
    os.environ["PYTHONPATH"] = package_path(os.environ.get("PYTHONPATH", ""))
    # The same process goes on as gunicorn, so whoever supervises us supervises it.
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", str(root / GUNICORN_CONFIG), WSGI_APP])


@app.command()
def worker(
    fast_only: Annotated[bool, typer.Option("--fast-only", help="refreshes and the clock only")] = False,
    slow_only: Annotated[
        bool, typer.Option("--slow-only", help="embeddings and fine-tuning only: for more machines")
    ] = False,
) -> None:
    """The workers: refreshes, embeddings, fine-tuning, and the clock that finds what was lost. One that dies is started
    again."""
    from .workers import roles, run_workers

    if fast_only and slow_only:
        raise fail("--fast-only and --slow-only exclude each other; without both, everything runs")
    _known_strategy(_settings().strategy)
    run_workers(roles(fast=not slow_only, slow=not fast_only))


# ---------------------------------------------------------------------- one project
@app.command()
def connect(
    project: ProjectOption,
    public_url: Annotated[
        str | None, typer.Option(help="this backend as Label Studio reaches it, if not as ASKFIRST_PUBLIC_URL says")
    ] = None,
) -> None:
    """Connect a project: backend entry, webhook with a secret, sampling, first order. Safe to repeat."""
    from backend.connect import connect_project

    with _tools() as (workshop, dispatcher):
        connect_project(workshop, dispatcher, project, url=public_url, say=typer.echo)
    typer.echo("connected; `askfirst status` tells when the order is served")


@app.command()
def doctor(
    project: Annotated[int | None, typer.Option("--project", "-p", min=1, help="check this project too")] = None,
) -> None:
    """Check everything this backend depends on; each line is ok or says what to do. Status 1 when one is not."""
    from backend import doctor as backend_doctor

    checks = backend_doctor.run(_settings(), project)
    for check in checks:
        mark = "ok   " if check.ok else "WRONG"
        typer.secho(f"{mark} {check.name}: {check.message}", fg=None if check.ok else typer.colors.RED)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def status(
    project: Annotated[int | None, typer.Option("--project", "-p", min=1, help="this project only")] = None,
) -> None:
    """What the backend does for each project, as its status page shows it."""
    from backend.service import BackendService

    with _tools() as (workshop, dispatcher):
        service = BackendService(workshop, dispatcher)
        overview, redis_away = service.overview(), "redis" in service.ready()
    shown = [p for p in overview.projects if project in (None, p.project_id)]
    for warning in overview.warnings:
        typer.secho(f"! {warning}", fg=typer.colors.YELLOW)
    typer.echo(f"Label Studio {overview.label_studio_url}, workers: {', '.join(overview.workers) or 'none'}")
    for p in shown:
        typer.echo(f"\nproject {p.project_id} {p.title!r}: {p.state}")
        for name, value in (
            ("model", p.version or "none yet"),
            ("served", p.pushed or "nothing yet"),
            ("labels", f"{p.labels_used} learnt from, {p.unlabelled} of {p.tasks} tasks unlabelled"),
            ("accuracy", p.accuracy),
            *((f"- {name}", sentence) for name, sentence in p.questions),
            *p.quality,
            ("images", p.representation),
            ("strategy", p.strategy),
        ):
            typer.echo(f"  {name:<11} {value}")
        for warning in p.warnings:
            typer.secho(f"  ! {warning}", fg=typer.colors.YELLOW)
    if redis_away:
        raise typer.Exit(1)
    if project is not None and not shown:
        raise fail(f"project {project} is not connected; run `askfirst connect --project {project}`")
    if not overview.projects:
        typer.echo("no project is connected; run `askfirst connect --project NUMBER`")


@app.command()
def versions(project: ProjectOption) -> None:
    """Model versions of a project, newest first; the live one is marked."""
    from backend.overview import question_sentences

    with _tools() as (workshop, _):
        model = workshop.desk(project).model
        live = model.live()
        found = sorted(model.versions(), key=lambda v: v.created_at, reverse=True)
        verdicts = {version.id: model.verdict(version.id) for version in found}
    if not found:
        typer.echo(f"project {project} has no model version yet; one comes with the first label")
    for version in found:
        mark = "*" if live is not None and version.id == live.id else " "
        accuracy, low = version.metrics.get("accuracy"), version.metrics.get("accuracy_low")
        shown = "accuracy unknown" if accuracy is None else f"accuracy {accuracy:.3f} on audit labels"
        if accuracy is not None and low is not None:
            shown = f"{shown} (at least {low:.3f}; {version.metrics.get('audit_n') or 0:.0f} of them)"
        when = datetime.fromtimestamp(version.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        verdict = verdicts[version.id]
        kept_back = "" if verdict is None or verdict.promoted else f"  kept back: {verdict.words}"
        questions = question_sentences(version)
        worth = f"{len(questions)} questions" if questions else f"{version.labels_used} labels  {shown}"
        typer.echo(f"{mark} {version.id}  {when}  {worth}{kept_back}")
        for name, sentence in questions:
            typer.echo(f"    - {name}: {sentence}")


@app.command()
def picks(
    project: ProjectOption,
    out: Annotated[Path | None, typer.Option(help="CSV to write; without it: standard output")] = None,
) -> None:
    """With what chance each labelled task was asked for, as CSV: for estimates from labels that were not drawn evenly.

    One row for each task that was labelled after our queue had asked for it; labels from elsewhere have none.
    `propensity` is the chance of the task given who filled its place (`reason`) and what the same one took before,
    `share` the part of the places that it gets, `left` how many tasks it could take from when the order was made. In a
    project with several questions `question` is the one whose answer was worth most.
    """
    import csv

    from backend.picks import read_picks

    with _tools() as (workshop, _):
        found = list(read_picks(workshop.desk(project).home))
    columns = (*PICK_COLUMNS, "question") if any(line.pick.question for line in found) else PICK_COLUMNS
    try:
        with out.open("w", newline="") if out else nullcontext(sys.stdout) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("task", "labelled_at", *columns))
            for line in found:
                writer.writerow((line.task, line.at, *(getattr(line.pick, name) for name in columns)))
    except OSError as error:
        raise fail(f"{error.strerror}: {error.filename}; choose another --out FILE") from None
    if out:
        typer.echo(f"{len(found)} picks: {out}")


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="as `askfirst versions` shows it")], project: ProjectOption
) -> None:
    """Let a model version make the order, and keep it until `askfirst connect` lifts the choice."""
    _choose(project, lambda model: _promoted(model, version))


@app.command()
def rollback(project: ProjectOption) -> None:
    """Go back to the model version before the live one, and keep it until `askfirst connect` lifts the choice."""
    _choose(project, lambda model: str(model.roll_back().id))


@app.command()
def tune(
    project: ProjectOption,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="stop the run that is at it, or waits for its worker")
    ] = False,
) -> None:
    """Fine-tune the network on the labels of now, without waiting for them to double; or stop the run at hand."""
    from backend.tune_requests import ask
    from backend.tune_requests import cancel as stop

    with _tools() as (workshop, dispatcher):
        typer.echo((stop if cancel else ask)(workshop, dispatcher, project))


def _promoted(model: Any, version: str) -> str:
    model.promote(version)
    return version


def _choose(project: int, change: Callable[[Any], str]) -> None:
    """Change the live version, pin it against newer ones, and have the queue ordered by it."""
    from training.errors import VersionError

    with _tools() as (workshop, dispatcher):
        desk = workshop.desk(project)
        try:
            version = change(desk.model)
        except VersionError as error:
            raise fail(str(error)) from None
        desk.files.write_pin({"kind": "model version", "version": version, "since": time.time()})
        workshop.state.drop(project, "kept_back")
        wake = workshop.state.record(project, text=f"model version {version} was chosen by command").wake
        dispatcher.wake(project, "refresh", wake)
    typer.echo(f"{version} is live; the queue follows in seconds")
    typer.echo(f"`askfirst connect --project {project}` lifts this choice")


# ---------------------------------------------------------------------- tables
@app.command()
def settings() -> None:
    """Every setting: environment variable, default, unit, meaning."""
    from backend.settings import settings_table

    for row in settings_table():
        default = f" [default: {row['default']}]" if row["default"] else ""
        typer.secho(row["names"], bold=True)
        typer.echo(f"    {row['help']} ({row['unit']}){default}")


@app.command()
def strategies() -> None:
    """Selection strategies by name."""
    from training import api

    for strategy in api.list_strategies():
        typer.secho(strategy.name, bold=True)
        typer.echo(f"    {strategy.summary}" + (f" ({strategy.paper})" if strategy.paper else ""))


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="CSV to write, one row per seed, strategy and round")],
    images: Annotated[Path | None, typer.Option(help="folder of images, or of one folder per class")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV with a column of image names and one of labels")] = None,
    label: Annotated[str | None, typer.Option(help="column of the labels; without it: the first other one")] = None,
    group: Annotated[str | None, typer.Option(help="column of groups (patient, lesion) that are kept together")] = None,
    project: Annotated[int | None, typer.Option("--project", "-p", min=1, help="replay a project's own labels")] = None,
    strategy: Annotated[str, typer.Option(help="names, separated by commas; see `askfirst strategies`")] = "",
    batch: Annotated[int, typer.Option(min=1, help="labels per round")] = 10,
    budget: Annotated[int, typer.Option(min=1, help="labels in all")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="repetitions, paired over strategies")] = 3,
    test_share: Annotated[float, typer.Option(min=0.01, max=0.9, help="examples that are only tested on")] = 0.25,
    audit_share: Annotated[float | None, typer.Option(min=0.0, max=0.5, help="of the labels; as in production")] = None,
    noise: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of answers that are wrong")] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="pairs of seed and strategy at the same time")] = 1,
    work: Annotated[Path, typer.Option(help="where embeddings are kept between runs")] = Path(".simulate"),
    report: Annotated[Path | None, typer.Option(help="folder for tables and pictures")] = None,
    metric: Annotated[str, typer.Option(help="column that the report compares by")] = "balanced_accuracy",
    target: Annotated[float | None, typer.Option(help="value to count labels to; else 95 % of random's last")] = None,
) -> None:
    """Replay labels that are known, and see what each strategy would have been worth. Goes on where it was stopped.

    Ctrl-C ends it with status 130.

    With --report and without --images or --project only the report is written anew.
    """
    from training.errors import RepresentationError

    from .simulate_command import Request, run

    names = tuple(name.strip() for name in strategy.split(",") if name.strip()) or ("random", _settings().strategy)
    for name in names:
        _known_strategy(name)
    request = Request(
        out=out,
        images=images,
        labels=labels,
        label=label,
        group=group,
        project=project,
        strategies=tuple(dict.fromkeys(names)),
        batch=batch,
        budget=budget,
        seeds=seeds,
        test_share=test_share,
        audit_share=audit_share,
        noise=noise,
        workers=workers,
        work=work,
        report=report,
        metric=metric,
        target=target,
    )
    try:
        with turned_into_exceptions():
            run(request, _settings())
    except RepresentationError as error:  # weights that cannot be used
        raise fail(str(error)) from None
    except Interrupted:
        typer.echo(f"stopped; {out} keeps what is complete, and the same command goes on from there", err=True)
        raise


# ---------------------------------------------------------------------- shared
def _settings() -> Settings:
    from backend.errors import ConfigError
    from backend.settings import Settings

    try:
        return Settings.from_env()
    except ConfigError as error:
        raise fail(str(error)) from None


@contextmanager
def _tools() -> Iterator[tuple[Workshop, Dispatcher]]:
    """The backend's tools; its errors become one message."""
    from backend.errors import BackendError
    from backend.worker_context import build

    workshop, dispatcher = build(_settings())
    try:
        yield workshop, dispatcher
    except BackendError as error:
        raise fail(str(error)) from None
    finally:
        workshop.ls.close()


def _known_strategy(name: str) -> None:
    from training import api

    try:
        api.get_strategy(name)
    except LookupError as error:
        raise fail(f"there is no strategy {name!r}: {error}") from None
