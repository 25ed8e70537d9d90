"""The slowest path: a network tuned on the labels, and the gate that decides whether it may take over.

    labels double --> tune --> embed what is labelled --> fit --> gate --> embed the pool --> fit --> gate --> live

The fast path goes on meanwhile with the network in use. Only the last step, under the lease of the refresh, changes
what is served. A run that is killed goes on where it was, with the labels it began with.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from training import api as training

from .dispatch import Dispatcher
from .errors import BackendError
from .heads import group_of
from .pool_sync import PoolSync
from .refresh import Refresher
from .settings import Settings
from .triggers import FEWEST_TO_JUDGE, TuneFacts, tune_is_due

log = structlog.get_logger(__name__)

CANCEL = "tune_cancel"  # key in the shared state: somebody asked to stop
RUNS_KEPT = 20
_ASK_EVERY_S = 1.0  # whether to stop: a look at Redis, between steps of a tenth of a second
_SHOW_EVERY_S = 5.0  # where a run is within an epoch: a write to Redis, between steps of a tenth of a second
_LEASE_TRIES = 60
_STALE_RUN_S = 86400.0  # a run begun so long ago is begun anew: its labels are old
_MOST_STARTS = 5  # without an epoch between: what is killed as often is killed by what it does, by memory likely


@dataclass(frozen=True)
class TuneOutcome:
    """What became of a run, for the status page and the list of runs."""

    at: float  # unix seconds
    labels: int  # that it was trained on
    outcome: str  # "promoted", "kept back", "cancelled", "failed"
    words: str
    version: str | None
    seconds: float


class TuneFiles:
    """Runs of one project on disk: what was decided, and the run at hand."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "tuning"

    def outcomes(self) -> list[TuneOutcome]:
        """Oldest first."""
        try:
            lines = (self.folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(TuneOutcome(**json.loads(line)))
            except (ValueError, TypeError):
                continue  # half written by a machine that died
        return found

    def add(self, outcome: TuneOutcome) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")

    def labels_before(self) -> int:
        """Labels of the last run that came to an end; 0 without one. One that failed would fail again, and one that
        somebody stopped shall not begin again with the next label."""
        outcomes = self.outcomes()
        return outcomes[-1].labels if outcomes else 0

    def begun(self) -> tuple[Path, list[training.HeadLabels]] | None:
        """The run at hand, and the labels it began with."""
        try:
            at_hand = json.loads((self.folder / "begun.json").read_text(encoding="utf-8"))
            if time.time() - at_hand["at"] > _STALE_RUN_S:
                return None
            return self.folder / at_hand["run"], [_labels_of(record) for record in at_hand["heads"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def starts(self) -> int:
        """How often the run at hand was started since it last finished an epoch; counts this one."""
        path = self.folder / "starts"
        try:
            count = int(path.read_text(encoding="utf-8")) + 1
        except (FileNotFoundError, ValueError):
            count = 1
        path.write_text(str(count), encoding="utf-8")
        return count

    def came_on(self) -> None:
        """The run at hand finished an epoch: who stopped it before did not do so for what it is."""
        (self.folder / "starts").unlink(missing_ok=True)

    def begin(self, heads: list[training.HeadLabels]) -> Path:
        """A new run with these labels."""
        run = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / ".begun.json"
        begun = {"run": run, "at": time.time(), "heads": [_record_of(labels) for labels in heads]}
        part.write_text(json.dumps(begun), encoding="utf-8")
        os.replace(part, self.folder / "begun.json")
        return self.folder / run

    def end(self, run: Path) -> None:
        """The run is over: only its record stays, and that of the last `RUNS_KEPT`."""
        for path in (self.folder / "begun.json", self.folder / "starts", run / training.TAUGHT):
            path.unlink(missing_ok=True)
        for part in ("run", "pictures", "network"):
            shutil.rmtree(run / part, ignore_errors=True)
        runs = sorted(path for path in self.folder.iterdir() if path.is_dir())
        for path in runs[:-RUNS_KEPT]:
            shutil.rmtree(path, ignore_errors=True)


def due(refresher: Refresher) -> bool:
    """Whether the labels have grown enough for a run; cheap, asked after each refresh."""
    desk = refresher.desk
    settings = desk.workshop.settings
    if not settings.tune or not desk.model.can_fine_tune():
        return False
    heads = refresher.split()
    facts = TuneFacts(
        labels=len({task for labels in heads for task in labels.train}),
        audit=len({task for labels in heads for task in labels.audit}),
        labels_before=TuneFiles(desk.home).labels_before(),
        live=desk.model.live() is not None,
        held=desk.files.pin() is not None,
    )
    return tune_is_due(facts, start=settings.tune_from)


class FineTuner:
    """One run for one project."""

    def __init__(self, refresher: Refresher, dispatcher: Dispatcher, show: Callable[[int, int, str], None]) -> None:
        """`show`: told (done, total, what) while the run goes on."""
        self.refresher = refresher
        self.desk = refresher.desk
        self.files = TuneFiles(self.desk.home)
        self._dispatcher = dispatcher
        self._show = show
        self._asked_at, self._stop = 0.0, False
        self._shown_at = time.monotonic()

    def run(self) -> str:
        """Tune, judge, and put into use what passes; the outcome in words.

        Raises: LabelStudioUnavailable, StoreUnavailable: run again later, the run goes on where it was.
        """
        desk, state = self.desk, self.desk.workshop.state
        began = time.time()
        desk.model.refresh_pool()
        self.refresher.book.sync(state, desk.workshop.ls, desk.config)
        found = self.files.begun()
        if found is None:
            heads = self.refresher.split()
            folder = self.files.begin(heads)
        else:
            folder, heads = found
        labels = len({task for of_head in heads for task in of_head.train})
        version: str | None = None
        unforeseen: Exception | None = None
        try:
            if self.files.starts() > _MOST_STARTS:
                outcome, words = "failed", f"its process was killed {_MOST_STARTS} times; does it have enough memory?"
            else:
                outcome, words, version = self._decided(folder, heads)
        except training.ProcessKilled as error:
            log.warning("fine-tuning goes on with the next tick", project=desk.id, cause=str(error))
            raise  # as where this process itself is killed: it goes on from its last epoch
        except training.TrainingStopped:
            outcome, words = "cancelled", "it was cancelled by command"
        except training.TrainingError as error:
            outcome, words = "failed", str(error)
            log.warning("fine-tuning failed", project=desk.id, cause=words)
        except BackendError:
            raise  # Label Studio or Redis are away: the run goes on when they are back
        except Exception as error:  # a full disk, a mistake of ours: the same would happen again at every tick
            outcome, words, unforeseen = "failed", f"{type(error).__name__}: {error}", error
        desk.model.end_fine_tuning()
        state.drop(desk.id, CANCEL)  # however it ended: the word was for this run and no other
        self.files.end(folder)
        self.files.add(TuneOutcome(time.time(), labels, outcome, words, version, round(time.time() - began, 1)))
        text = f"fine-tuning on {labels} labels: {outcome}; {words}"
        state.note(desk.id, text)
        if unforeseen is not None:
            raise unforeseen
        return text

    def _decided(self, folder: Path, heads: list[training.HeadLabels]) -> tuple[str, str, str | None]:
        """(outcome, words, version)."""
        desk, model = self.desk, self.desk.model
        tasks = desk.files.tasks()
        examples = [training.Example(i, uri) for i, uri in zip(tasks.ids, tasks.uris, strict=True)]
        sync = PoolSync(desk)
        tuned = self._tune(folder, heads, examples)
        self._look_for_a_stop()
        if not tuned.learnt:
            model.end_fine_tuning()
            model.drop_representation(tuned.representation.id)
            words = "no epoch was better on held-out labels than the network it started from"
            return "kept back", f"{words} ({tuned.reason})", None
        # Only what is labelled is embedded for a first look: what does not pass has cost seconds, not hours.
        wanted = {i for labels in heads for i in (*labels.train, *labels.audit)}
        network = tuned.representation.id
        model.embed_in(network, [e for e in examples if e.example_id in wanted], sync.load, should_stop=self._stopped)
        self._look_for_a_stop()
        candidate = self._fit(heads, network)
        verdict = model.judge_heads(candidate, heads, must_gain=True, promote=False)
        if not verdict.promoted:
            cut = f" ({tuned.reason})" if tuned.cut_short else ""
            return "kept back", f"{verdict.words}{cut}", candidate
        model.embed_in(
            network,
            examples,
            sync.load,
            progress=lambda done, total: self._show(done, total, "images, by the fine-tuned network"),
            should_stop=self._stopped,
        )
        self._look_for_a_stop()
        return self._take_over(network)

    def _tune(self, folder: Path, heads: list[training.HeadLabels], examples: list[training.Example]) -> Any:
        settings = tune_settings(self.desk.workshop.settings)
        record = training.RunRecord(folder)

        def on_epoch(epoch: training.Epoch) -> None:
            record.epoch(epoch)
            if epoch.epoch:
                self.files.came_on()
            held_out = "" if epoch.held_out is None else f", {epoch.held_out:.3f} on held-out labels"
            loss = "" if epoch.loss is None else f", loss {epoch.loss:.3f}{held_out}, {epoch.images_per_s:.0f} images/s"
            self._show(epoch.epoch, epoch.epochs, f"epochs of fine-tuning{loss}")

        def on_step(step: training.Step) -> None:
            record.step(step)
            now = time.monotonic()
            if now - self._shown_at >= _SHOW_EVERY_S:
                self._shown_at = now
                speed = f"loss {step.loss:.3f}, {step.images_per_s:.0f} images/s"
                self._show(
                    step.step, step.steps, f"steps of epoch {step.epoch} of {settings.epochs} of fine-tuning, {speed}"
                )

        return self.desk.model.fine_tune(
            heads,
            examples,
            PoolSync(self.desk).load,
            settings,
            folder,
            groups=self._groups(),
            teach=self._teach(heads),
            masks=self.desk.workshop.settings.tune_masks,
            on_step=on_step,
            on_epoch=on_epoch,
            should_stop=self._stopped,
        )

    def _teach(self, heads: list[training.HeadLabels]) -> Callable[[], Any] | None:
        """The live version teaches what it makes of images that nobody labelled (an epoch passes as many of them as of
        labelled ones), where the settings want that."""
        model, settings = self.desk.model, self.desk.workshop.settings
        live = model.live()
        if not settings.tune_pool or live is None:
            return None
        labelled = {i for labels in heads for i in (*labels.train, *labels.audit)}
        ids = model.embedded_ids()
        others = ids[~np.isin(ids, sorted(labelled))]
        drawn = np.random.default_rng(settings.seed).permutation(others)[: settings.tune_pool]
        return lambda: model.teacher(live.id, np.sort(drawn))

    def _groups(self) -> dict[int, str] | None:
        """Of each task, what keeps it together with others; None where the config names no such field."""
        tasks, name = self.desk.files.tasks(), group_of(self.desk.config)
        if name not in tasks.inputs:
            return None
        values = tasks.facts[tasks.inputs.index(name)]
        return {task: str(value) for task, value in zip(tasks.ids, values, strict=True) if value is not None}

    def _fit(self, heads: list[training.HeadLabels], network: str) -> str:
        newest = self.desk.model.newest()
        version = self.desk.model.fit_heads(
            heads,
            generation=(newest.generation if newest else 0) + 1,
            source={"project": self.desk.id, "fine_tuned": True, "labels": len(heads[0].train)},
            representation=network,
        )
        return version.id

    def _take_over(self, network: str) -> tuple[str, str, str | None]:
        """Fit on the newest labels, ask the gate once more, go live: while no refresh is at it."""
        desk, state = self.desk, self.desk.workshop.state
        for _ in range(_LEASE_TRIES):
            with state.lease(desk.id, "refresh", desk.workshop.settings.lease_s) as held:
                if held:
                    desk.model.refresh_pool()
                    self.refresher.book.sync(state, desk.workshop.ls, desk.config)
                    if desk.files.pin() is not None:
                        return "kept back", "a version was chosen by hand meanwhile", None
                    heads = self.refresher.split()
                    version = self._fit(heads, network)
                    verdict = desk.model.judge_heads(version, heads, must_gain=True)
                    break
            time.sleep(1.0)
        else:
            raise BackendError("the refresh of the project did not come to an end; fine-tuning tries again")
        wake = state.record(desk.id, text=f"version {version} of a fine-tuned network").wake
        if verdict.promoted:
            state.drop(desk.id, "full_version")
            state.drop(desk.id, "kept_back")  # an older version that was: nobody shall promote it now
            self._dispatcher.wake(desk.id, "pool", wake)  # tasks that came meanwhile
        self._dispatcher.wake(desk.id, "refresh", wake)
        return ("promoted" if verdict.promoted else "kept back"), verdict.words, version

    def _stopped(self) -> bool:
        now = time.monotonic()
        if not self._stop and now - self._asked_at > _ASK_EVERY_S:
            self._asked_at = now
            self._stop = self.desk.workshop.state.get(self.desk.id, CANCEL) is not None
        return self._stop

    def _look_for_a_stop(self) -> None:
        self._asked_at = 0.0
        if self._stopped():
            raise training.TrainingStopped


def tune_settings(settings: Settings) -> training.TuneSettings:
    """How the settings want runs to be."""
    return training.TuneSettings(
        epochs=settings.tune_epochs,
        time_limit_s=settings.tune_limit_s,
        flips=settings.tune_flips,
        augmentation=settings.tune_augmentation,
        mixing=settings.tune_mixing,
        seed=settings.seed,
        threads=settings.worker_threads,
        devices=settings.tune_devices,
    )


def tuning_sentence(home: Path, start: int | None, audit: int) -> str:
    """What became of the last run, or when the first one comes, for people; "" where there is nothing to say.

    Args:
        start: labels from which on runs begin by themselves; None: they do not.
        audit: audit labels that there are.
    """
    outcomes = TuneFiles(home).outcomes()
    if not outcomes:
        if start is None:
            return ""
        judges = f" and {FEWEST_TO_JUDGE} audit labels on, of which there are {audit}" * (audit < FEWEST_TO_JUDGE)
        return f"It is fine-tuned from {start} labels{judges or ' on'}."
    last = outcomes[-1]
    return f"Last fine-tuning, on {last.labels} labels: {last.outcome}; {last.words}."


def _record_of(labels: training.HeadLabels) -> dict[str, Any]:
    return {
        "spec": labels.spec.record(),
        "train": {str(i): target for i, target in labels.train.items()},
        "audit": {str(i): target for i, target in labels.audit.items()},
    }


def _labels_of(record: dict[str, Any]) -> training.HeadLabels:
    spec = training.HeadSpec.of(record["spec"])
    train, audit = ({int(i): spec.from_json(t) for i, t in record[part].items()} for part in ("train", "audit"))
    return training.HeadLabels(spec, train, audit)
