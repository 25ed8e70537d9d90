"""The fast path: labels -> refit -> order -> push. One call brings a project from where it is to where it should be.

Nothing here remembers what it was doing: each step compares what is with what should be, so a run that was killed is
simply run again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import structlog

from training import api as training

from .errors import BackendError, UnsupportedLabelConfig
from .heads import answers_in_names, asked_the_same, asking_of, fields_of, inputs_of, shown_answers, specs_of
from .label_book import LabelBook
from .labeling_config import LabelingConfig
from .order import Order, from_ranking, read_order, write_order
from .picks import PickLog
from .project import ProjectDesk, Tasks
from .quality_words import PossibleSummary
from .queue_push import (
    FRONT_TASKS,
    SAMPLING,
    Pushed,
    QueuePusher,
    Row,
    read_pushed,
    version_string,
    write_pushed,
)
from .state import State
from .stopwatch import Stopwatch
from .triggers import (
    Fit,
    FitPolicy,
    LabelFacts,
    Push,
    QueueFacts,
    Wait,
    decide_fit,
    decide_push,
    judge_settings,
    sprint_size,
)

log = structlog.get_logger(__name__)

PRUNE_EVERY = 50  # refits; a day of labelling makes thousands of versions
LEFT_SAMPLE = 500  # unlabelled images that are looked at for the status page: shares to 4 %
SERVED_FILE, FULL_FILE = "served.npz", "full.npz"


@dataclass(frozen=True)
class Outcome:
    """What a refresh did, for the log and the job's result."""

    fitted: str | None
    waited: str | None
    pushed: str | None
    labels: int
    seconds: dict[str, float]


class Refresher:
    """Refreshes one project; lives as long as the worker, so that labels and embeddings stay warm."""

    def __init__(self, desk: ProjectDesk) -> None:
        self.desk = desk
        self.book = LabelBook(desk.id)
        self.picks = PickLog(desk.home, desk.home / SERVED_FILE)

    # ------------------------------------------------------------------ the whole way
    def run(self) -> Outcome:
        """Bring the project up to date.

        Raises:
            LabelStudioUnavailable, StoreUnavailable: run again later, nothing is lost.
            UnsupportedLabelConfig: shown on the page; labels and queue stay as they are.
        """
        clock = Stopwatch()
        state, desk = self._state, self.desk
        state.put(desk.id, "refresh_began", time.time())
        used = desk.project.settings_digest
        flags = state.flags(desk.id)
        asked = "train" in flags
        config = self._config()
        if desk.files.tasks().image_key not in ("", config.image_key):
            state.record(desk.id, text="the config shows another data key", flags=["tasks"])
        elif desk.files.tasks().ids and desk.files.tasks().inputs != fields_of(config):
            state.record(desk.id, text="the config looks at other data fields", flags=["tasks"])
        self.book.sync(state, desk.workshop.ls, config)
        self.picks.note(self.book.annotations, time.time())
        clock.lap("labels")
        desk.model.refresh_pool()
        fitted, waited = self._fit(asked)
        clock.lap("fit")
        self._check_settings(reread="project" in flags)
        clock.lap("settings")
        pushed = self._push(clock)
        self._look_at_what_is_left()
        clock.lap("quality")
        state.clean(desk.id, "flags", {f: n for f, n in flags.items() if f in ("train", "project")})
        outcome = Outcome(fitted=fitted, waited=waited, pushed=pushed, labels=self.book.count(), seconds=clock.laps)
        # What this run stood on: by this a later change is told from our own. Label Studio's answer to our flip may
        # bring a config that somebody saved in the same moment, and the event of that has passed already.
        state.put(desk.id, "settings_used", used)
        if desk.project.settings_digest != used:
            state.record(desk.id, text="settings changed while an order was made", flags=["project"])
            state.ask_again(desk.id, "refresh")
        state.put(desk.id, "label_summary", asdict(self.book.summary()))
        state.put(
            desk.id,
            "last_refresh",
            {
                "at": time.time(),
                "seconds": clock.laps,
                "fitted": fitted,
                "waited": waited,
                "pushed": pushed,
                "labels": outcome.labels,
            },
        )
        return outcome

    @property
    def _state(self) -> State:
        return self.desk.workshop.state

    def _config(self) -> LabelingConfig:
        try:
            config = self.desk.config
        except UnsupportedLabelConfig as error:
            self._state.put(self.desk.id, "problem", str(error))
            raise
        if self._state.get(self.desk.id, "problem") is not None:
            self._state.drop(self.desk.id, "problem")
        return config

    # ------------------------------------------------------------------ learning
    def split(self) -> list[training.HeadLabels]:
        """Of each question: answers to train on, and to measure with."""
        embedded = set(self.desk.model.embedded_ids().tolist())
        found = []
        for spec, targets in zip(specs_of(self.desk.config), self.book.targets(self.desk.config), strict=True):
            known = {t: target for t, target in targets.items() if t in embedded}
            audit = {t: target for t, target in known.items() if self.desk.audit(t)}
            found.append(training.HeadLabels(spec, {t: c for t, c in known.items() if t not in audit}, audit))
        return found

    def _fit(self, asked: bool) -> tuple[str | None, str | None]:
        desk = self.desk
        heads = self.split()
        train = {t for labels in heads for t in labels.train}
        audit = {t for labels in heads for t in labels.audit}
        newest = desk.model.newest()
        known = {} if newest is None else desk.model.answers_of(newest.id)
        now = answers_in_names(heads)
        in_use = desk.model.representation()
        representation = in_use.id if in_use else None
        facts = LabelFacts(
            count=len(train),
            changed=sum(now.get(t) != known.get(t) for t in now.keys() | known.keys()),
            outdated=newest is not None
            and (
                not asked_the_same(newest.specs, [labels.spec for labels in heads])
                or newest.representation != representation
                or (bool(inputs_of(desk.config)) and desk.model.facts_changed(newest.id))
            ),
            fitted=newest is not None,
        )
        settings = desk.workshop.settings
        policy = FitPolicy(
            each_n=desk.options.retrain_every or settings.start_training_each_n_updates,
            min_annotations=max(desk.project.min_annotations, desk.options.min_labels or 0),
        )
        decision = decide_fit(facts, policy, asked=asked)
        free = (desk.files.pin() or {}).get("kind") != "model version"
        if isinstance(decision, Wait):
            undecided = desk.model.undecided() if free else None
            if undecided is not None:
                self._note_verdict(undecided, desk.model.judge_heads(undecided, heads))
            return None, decision.reason.value
        assert isinstance(decision, Fit)
        version = desk.model.fit_heads(
            heads,
            generation=(newest.generation if newest else 0) + 1,
            source={
                "project": desk.id,
                "label_studio": desk.workshop.settings.label_studio_url,
                "labels": len(train),
                "audit": len(audit),
            },
        )
        if free:
            self._note_verdict(version.id, desk.model.judge_heads(version.id, heads))
        if version.generation % PRUNE_EVERY == 0:
            desk.model.prune(settings.keep_versions)
        return version.id, None

    def _note_verdict(self, version: str, verdict: training.Verdict) -> None:
        """Show that a version is kept back, and say it once: with every label there is another like it."""
        desk, state = self.desk, self._state
        before = state.get(desk.id, "kept_back")
        if verdict.promoted:
            if before is not None:
                state.drop(desk.id, "kept_back")
                state.note(desk.id, f"version {version} is live: {verdict.words}")
            return
        state.put(desk.id, "kept_back", {"version": version, "words": verdict.words})
        if before is None:
            state.note(desk.id, f"version {version} was kept back: {verdict.words}")

    def _look_at_what_is_left(self) -> None:
        """Keep for the status page what labels the live version thinks possible for the unlabelled images, by a
        sample of them; once for each version, since a single label hardly changes it."""
        desk, state = self.desk, self._state
        live = desk.model.live()
        if live is None or (state.get(desk.id, "possible_labels") or {}).get("version") == live.id:
            return
        fresh, _ = self.unlabelled(desk.files.tasks())
        sample = random.Random(0).sample(fresh, min(len(fresh), LEFT_SAMPLE))
        found = desk.model.possible_labels(live.id, sample)
        if found is not None:
            state.put(desk.id, "possible_labels", PossibleSummary.of(live.id, found).record())

    # ------------------------------------------------------------------ settings that people may change
    def _check_settings(self, *, reread: bool) -> None:
        """Put right what broke, respect what was chosen."""
        desk, state = self.desk, self._state
        if not reread:
            return
        project = desk.workshop.ls.project(desk.id)
        titles = frozenset(str(b.get("title")) for b in desk.workshop.ls.backends(desk.id))
        pushed, pin = read_pushed(state, desk.id), desk.files.pin()
        held = pin["version"] if pin and pin["kind"] == "version in Label Studio" else None
        standing = judge_settings(
            model_version=project.model_version,
            sampling=project.sampling,
            wanted_sampling=SAMPLING,
            pushed=pushed.version if pushed else None,
            backend_titles=titles,
            held=held,
        )
        if standing.hold and standing.hold != held and pin is None:
            desk.files.write_pin({"kind": "version in Label Studio", "version": standing.hold, "since": time.time()})
            state.note(
                desk.id, f"version {standing.hold!r} was chosen by hand in Label Studio: the order stays as it is"
            )
        elif held and not standing.hold:
            desk.files.write_pin(None)
            state.note(desk.id, "the queue follows the model again")
        changes: dict[str, str] = {}
        if standing.reassert_version and pushed is not None:
            changes["model_version"] = pushed.version
            state.note(desk.id, f"model version was {project.model_version!r}: set back to ours")
        if standing.reassert_sampling and standing.hold is None and pushed is not None:
            changes["sampling"] = SAMPLING
            state.note(desk.id, f"sampling was {project.sampling!r}: set back to {SAMPLING!r}")
        if changes:
            state.put(desk.id, "expected_version", changes.get("model_version", project.model_version))
            project = desk.workshop.ls.patch_project(desk.id, **changes)
        desk.project = project
        desk.workshop.remember(project)

    # ------------------------------------------------------------------ the queue
    def unlabelled(self, tasks: Tasks) -> tuple[list[int], list[int]]:
        """(tasks that still want an annotation, of these the ones to ask last: skipped or half done)."""
        overlap = max(1, self.desk.project.overlap)
        fresh, late = [], []
        for task in tasks.ids:
            if task not in self.book.annotations:
                fresh.append(task)
            elif self.book.annotators_of(task) < overlap:
                late.append(task)
        return fresh, late

    def _strategy(self) -> str:
        """The strategy that the project asks for; that of the settings, with a word on the page, if there is none of
        that name: a slip in a config must not stop the queue."""
        desk, state = self.desk, self._state
        wanted = desk.options.strategy
        if wanted is not None:
            try:
                training.get_strategy(wanted)
            except LookupError as error:
                settings = desk.workshop.settings
                state.put(desk.id, "unknown_strategy", f"model_strategy: {error}; {settings.strategy} orders meanwhile")
                return settings.strategy
        state.drop(desk.id, "unknown_strategy")
        return wanted or desk.workshop.settings.strategy

    def rank(self, front: int, *, pending: list[int]) -> Order:
        """The order of all tasks that still want an annotation."""
        desk, config, settings = self.desk, self.desk.config, self.desk.workshop.settings
        fresh, late = self.unlabelled(desk.files.tasks())
        live = desk.model.live()
        fresh_set = set(fresh)
        strategy = self._strategy()
        explore = settings.explore if desk.options.explore is None else desk.options.explore
        ranking = desk.model.rank(
            live.id if live else None,
            fresh,
            sorted(self.book.annotations),
            pending=[t for t in pending if t in fresh_set],
            audit=desk.audit,
            strategy=strategy,
            front=front,
            layers=training.Shares(
                explore=explore, quota=settings.quota, veto=settings.veto, skips=settings.learn_from_skips
            ),
            seed=settings.seed,
            last=late,
            skipped=self.book.skipped(),
            asking=asking_of(config),
        )
        self._state.put(desk.id, "strategy_note", ranking.note)
        return from_ranking(ranking, live.classes if live else config.classes, strategy=strategy, explore=explore)

    def _push(self, clock: Stopwatch) -> str | None:
        desk, state, settings = self.desk, self._state, self.desk.workshop.settings
        pushed = read_pushed(state, desk.id)
        tasks = desk.files.tasks()
        fresh, late = self.unlabelled(tasks)
        waiting = set(fresh) | set(late)
        size = sprint_size(self.book.active_annotators(), state.annotations_per_second(desk.id), settings.sprint_min)
        live = desk.model.live()
        facts = QueueFacts(
            unlabelled=len(waiting),
            remaining=sum(t in waiting for t in pushed.ids) if pushed else 0,
            sprint_size=size,
            pushed=pushed is not None,
            stale=pushed is not None
            and (pushed.model != (live.id if live else None) or pushed.pool != self.pool_mark(tasks)),
            held=(desk.files.pin() or {}).get("kind") == "version in Label Studio",
            ready=len(desk.model.embedded_ids()) > 0 or state.get(desk.id, "pool_at") is not None,
        )
        decision = decide_push(facts)
        if decision is Push.NOTHING:
            return None
        pending = [t for t in pushed.ids if t in waiting][: self.book.active_annotators()] if pushed else []
        order = self.rank(size, pending=pending)
        clock.lap("rank")
        if self._front_in_place(order, pushed, all_of_it=decision is Push.EVERYTHING):
            clock.lap("push")
            return pushed.version if pushed else None
        part = order if decision is Push.EVERYTHING else order.head(size)
        version = self.send(part, "full" if decision is Push.EVERYTHING else "sprint", tasks)
        clock.lap("push")
        return version

    def pool_mark(self, tasks: Tasks) -> str:
        """Names the state of the pool an order is made from: tasks listed, images embedded, representation."""
        representation = self.desk.model.representation()
        embedded = len(self.desk.model.embedded_ids())
        return f"{len(tasks.ids)}/{tasks.last_id}/{embedded}/{representation.id if representation else '-'}"

    def send(
        self,
        order: Order,
        kind: str,
        tasks: Tasks,
        *,
        flip: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Import an order under a new version and (by default) flip to it; returns the version string."""
        desk, state, settings = self.desk, self._state, self.desk.workshop.settings
        pusher = QueuePusher(desk.workshop.ls, state, chunk=settings.import_chunk)
        version = version_string(order.model or None, kind)
        above = settings.prelabel_above if desk.options.prelabel_above is None else desk.options.prelabel_above
        rows = [
            Row(int(t), float(s), shown_answers(order.said(i), desk.config, above))
            for i, (t, s) in enumerate(zip(order.ids, order.scores, strict=True))
        ]
        if not pusher.store(desk.id, rows, version, progress=progress):
            raise BackendError("Label Studio kept none of the predictions; the list of tasks is read again")
        if kind == "full":
            write_order(desk.home / FULL_FILE, order.named(version))
        if flip:
            self.serve_stored(order, version, tasks)
        return version

    def serves_all_there_is(self) -> bool:
        """Whether a full order of the live model and of the pool as it is now is served already."""
        desk = self.desk
        pushed, live = read_pushed(self._state, desk.id), desk.model.live()
        return (
            pushed is not None
            and (pushed.kind, pushed.model) == ("full", live.id if live else None)
            and pushed.pool == self.pool_mark(desk.files.tasks())
            and self._state.get(desk.id, "front_of") != pushed.version
            and pushed.version == self._state.get(desk.id, "full_version")
        )

    def imports_are_slow(self) -> bool:
        """Whether scores of a stored order are changed in place here, instead of importing the next tasks anew."""
        return QueuePusher(self.desk.workshop.ls, self._state).prefers_in_place(self.desk.id)

    def serve_stored(self, order: Order, version: str, tasks: Tasks) -> None:
        """Flip Label Studio to an order whose predictions are stored there already."""
        desk = self.desk
        # What is known of the order served so far goes into the log before another takes its place.
        self.picks.note(self.book.annotations, time.time())
        self.picks.before_serving(order, self._sent(), self.book.active_annotators())
        write_order(desk.home / SERVED_FILE, order.named(version))
        pushed = Pushed(
            version=version,
            model=order.model or None,
            kind="full" if " full-" in version else "sprint",
            ids=tuple(order.ids.tolist()),
            pool=self.pool_mark(tasks),
            at=time.time(),
            labels=self.book.count(),
        )
        after = QueuePusher(desk.workshop.ls, self._state).flip(desk.project, pushed)
        self.picks.after_serving(order, self._sent(), self.book.active_annotators())
        desk.project = replace(after, created_at=desk.project.created_at)
        desk.workshop.remember(desk.project)

    def _sent(self) -> set[int]:
        """Tasks with an annotation, or with word of one that is not read yet."""
        return self.book.annotations.keys() | self._state.dirty(self.desk.id).keys()

    def _front_in_place(self, order: Order, pushed: Pushed | None, *, all_of_it: bool) -> bool:
        """Change the front of the served full version in place, where imports are slow; False: not possible here.

        `all_of_it`: only if the served version holds every task of the order.
        """
        desk = self.desk
        pusher = QueuePusher(desk.workshop.ls, self._state)
        if pushed is None or pushed.kind != "full" or not pusher.prefers_in_place(desk.id):
            return False
        full = read_order(desk.home / FULL_FILE)
        if full is None or full.version != pushed.version:
            return False
        stored = dict(zip(full.ids.tolist(), full.scores.tolist(), strict=True))
        base = {t: stored[t] for t in order.ids.tolist() if t in stored}
        if all_of_it and len(base) < len(order):
            return False
        front = list(base)[: FRONT_TASKS + self.book.active_annotators()]
        if not pusher.reorder_front(desk.id, pushed, base, front):
            return False
        self.picks.moved(order, front, pushed.version, self._sent(), self.book.active_annotators())
        # From now on the order served is that of the newer model, as far as annotators will get before the next one.
        write_pushed(
            self._state,
            desk.id,
            replace(pushed, model=order.model or None, at=time.time(), labels=self.book.count()),
        )
        return True
