"""A project in memory for tests of the whole way of a label: Label Studio, Redis and features are stood in for."""

from __future__ import annotations

import io
from dataclasses import replace

import fakeredis
import numpy as np
import pytest
from PIL import Image

from backend import jobs
from backend.fine_tune import FineTuner, TuneFiles
from backend.ls_client import Project
from backend.picks import read_picks
from backend.project import Tasks, Workshop
from backend.refresh import Refresher
from backend.settings import Settings
from backend.state import State
from training import api, pool_features
from training.fine_tuning import FineTuned
from training.representation import Representation, Representations

CONFIG = (
    '<View><Image name="img" value="$image"/><Choices name="cls" toName="img"><Choice value="a"/><Choice value="b"/>'
    "</Choices></View>"
)
TASKS = range(1, 61)


class LabelStudioInMemory:
    """Keeps annotations, predictions and the version served; knows what a refresh asks for."""

    auth_headers = staticmethod(dict)

    def __init__(self):
        self.annotations = {}
        self.predictions = {}
        self.served = Project(5, 1, "p", CONFIG, None, "", 1, 0, len(TASKS), 0, 0, 0, False)

    def project(self, project_id):
        return self.served

    def patch_project(self, project_id, **changes):
        self.served = replace(self.served, **changes)
        return self.served

    def import_predictions(self, project_id, rows):
        for row in rows:
            self.predictions.setdefault(row["model_version"], {})[row["task"]] = row["score"]
        return len(rows)

    def annotated_tasks(self, project_id):
        return [{"id": t, "annotations": a} for t, a in self.annotations.items()]

    def task_annotations(self, task):
        return self.annotations.get(task)

    def next_task(self, place=0):
        order = self.predictions[self.served.model_version]
        left = sorted((score, task) for task, score in order.items() if task not in self.annotations)
        return left[place][1]

    def label(self, task, name=None):
        name = name or "ab"[task % 2]
        result = [{"from_name": "cls", "to_name": "img", "type": "choices", "value": {"choices": [name]}}]
        self.annotations[task] = [{"id": 1000 + task, "completed_by": 1, "result": result, "updated_at": "2026-01-01"}]


class Points:
    """Stands in for learnt features: two pixels."""

    id, width, input_size = "points", 2, 8

    def embed(self, images):
        return np.asarray(images, np.float32)[:, 0, :2, 0] + 1

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.id)


@pytest.fixture
def loop(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_features.PoolFeatures, "learn", staticmethod(lambda sample, seed: Points()))
    monkeypatch.setattr(pool_features.PoolFeatures, "load", staticmethod(lambda path: Points()))
    jobs._refreshers.clear()

    class Loop:
        tasks = TASKS
        picture = staticmethod(lambda task: picture(api.Example(task, "")))

        def __init__(self):
            self.ls = LabelStudioInMemory()
            self.start()
            desk = self.refresher.desk
            desk.files.write_tasks(Tasks("image", tuple(TASKS), ("",) * len(TASKS)))
            assert desk.model.embed([api.Example(t, "") for t in TASKS], picture).embedded == len(TASKS)
            self.refresh()

        def start(self, *, emptied=True):
            """A worker that begins anew, and by default a Redis that does."""
            if emptied:
                self.state = State(fakeredis.FakeStrictRedis())
            settings = Settings(model_dir=tmp_path, strategy="margin", explore=0.3, sprint_min=10, audit_share=0.2)
            self.workshop = Workshop(settings, self.state, self.ls)
            self.refresher = Refresher(self.workshop.desk(5))

        def refresh(self, *tasks):
            self.state.record(5, text="labels", dirty=tasks)
            return self.refresher.run()

        def label(self, place=0):
            task = self.ls.next_task(place)
            self.ls.label(task)
            return task

        @property
        def log(self):
            return {p.task: p.pick for p in read_picks(self.refresher.desk.home)}

    return Loop()


class NoJobs:
    woken = ()

    def jobs(self, project_id):
        return []

    def wake(self, project_id, kind, number):
        self.woken = (*self.woken, kind)


class Shown:
    """A network that shows the answer, or hides it."""

    width, input_size = 2, 8

    def __init__(self, name, pixels):
        self.id = name
        self._pixels = pixels

    def embed(self, images):
        return self._pixels(np.asarray(images, np.float32))


@pytest.fixture
def tuning(loop, monkeypatch):
    """Sixty tasks, labelled by odd and even, which the network in use hardly sees; what a run gives is the test's."""
    networks = {
        "good": Shown("good", lambda p: np.stack([p[:, 0, 1, 0] % 2 + 0.01, 1.01 - p[:, 0, 1, 0] % 2], 1)),
        "bad": Shown("bad", lambda p: np.stack([p[:, 0, 1, 0] % 7 + 1, p[:, 0, 0, 0] % 5 + 1], 1)),
    }
    monkeypatch.setattr(Representations, "embedder", lambda self, name: networks[name])
    monkeypatch.setattr(api.ProjectModel, "can_fine_tune", lambda self: True)
    monkeypatch.setattr("backend.triggers.FEWEST_TO_JUDGE", 7)  # what sixty tasks can have
    loop.result, loop.seen, loop.epoch = "good", [], 1

    def fine_tune_(
        model, heads, examples, load, settings, folder, *, on_epoch, on_step, should_stop, teach, masks, groups=None
    ):
        loop.taught, loop.masks = teach and teach(), masks
        loop.seen.append({i for labels in heads for i in labels.train})
        on_step(api.Step(1, 3, 9, 0.7, {}, 1e-4, 50.0, 1.0))
        on_epoch(api.Epoch(loop.epoch, 2, 0.5, 0.4))
        if isinstance(loop.result, BaseException):
            raise loop.result
        name = loop.result if loop.result in networks else "good"
        about = Representation(name, "tuned", name, 2, f"{name}.", started_from="")
        model._representations._describe(about)
        return FineTuned(about, "done", 0 if loop.result == "nothing learnt" else 1, (), 0, {}, cut_short=False)

    monkeypatch.setattr(api.ProjectModel, "fine_tune", fine_tune_)
    loop.workshop.settings = loop.workshop.settings.model_copy(update={"tune_from": 20})
    monkeypatch.setattr(loop.workshop.fetcher, "fetch", lambda uri, task: loop.picture(task), raising=False)
    monkeypatch.setattr("backend.pool_sync.PoolSync.load", lambda self, example: loop.picture(example.example_id))

    def label(tasks):
        for task in tasks:
            loop.ls.label(task)
        loop.refresh(*tasks)

    loop.give, loop.jobs = label, NoJobs()
    loop.run = lambda: FineTuner(loop.refresher, loop.jobs, lambda done, total, what: None).run()
    loop.files = TuneFiles(loop.refresher.desk.home)
    return loop


def picture(example):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, :2] = 40 * (example.example_id % 2) + np.array([100 + example.example_id, example.example_id])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
