"""A project in memory for tests of the whole way of a label: Label Studio, Redis and features are stood in for."""

from __future__ import annotations

import io
from dataclasses import replace

import fakeredis
import numpy as np
import pytest
from PIL import Image

from backend import jobs
from backend.ls_client import Project
from backend.picks import read_picks
from backend.project import Tasks, Workshop
from backend.refresh import Refresher
from backend.settings import Settings
from backend.state import State
from training import api, pool_features

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


def picture(example):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, :2] = 40 * (example.example_id % 2) + np.array([100 + example.example_id, example.example_id])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
