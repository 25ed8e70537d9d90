"""The whole way of a label through a refresh, with a Label Studio in memory: each label given in the order served has
one line in the log of picks, whoever is killed or emptied in between."""

from __future__ import annotations

from dataclasses import replace

import fakeredis
import numpy as np
import pytest

from backend import jobs
from backend.ls_client import Project
from backend.order import read_order
from backend.picks import read_picks
from backend.project import Tasks, Workshop
from backend.refresh import SERVED_FILE, Refresher
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

    def label(self, task):
        result = [{"from_name": "cls", "to_name": "img", "type": "choices", "value": {"choices": ["ab"[task % 2]]}}]
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
        ls = LabelStudioInMemory()

        def __init__(self):
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
    import io

    from PIL import Image

    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, :2] = 40 * (example.example_id % 2) + np.array([100 + example.example_id, example.example_id])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_each_label_has_the_odds_of_the_order_that_asked_for_it(loop):
    given = {}
    for _ in range(12):
        served = read_order(loop.refresher.desk.home / SERVED_FILE)
        task = loop.label()
        row = served.ids.tolist().index(task)
        given[task] = (served.version, row + 1, float(served.propensity[row]), int(served.left[row]))
        loop.refresh(task)
    found = {t: (p.order, p.place, p.propensity, p.left) for t, p in loop.log.items()}
    pending = [t for t, (_, _, propensity, _) in given.items() if np.isnan(propensity)]
    assert found.keys() == given.keys()
    assert {t: v for t, v in found.items() if t not in pending} == {t: v for t, v in given.items() if t not in pending}
    # What was pending in the order served keeps what an earlier one gave it.
    assert all(0 < p.propensity <= 1 and p.left > 0 and p.strategy == "margin" for p in loop.log.values())
    assert {"uncertain", "diverse", "explore", "audit"} >= {p.reason for p in loop.log.values()}


def test_an_emptied_redis_and_a_new_worker_lose_no_pick(loop):
    first = loop.label()
    loop.refresh(first)
    second = loop.label()
    loop.start()
    loop.refresh()
    third = loop.label()
    loop.start(emptied=False)
    loop.refresh(third)
    assert loop.log.keys() == {first, second, third}


def test_a_worker_killed_after_reading_the_labels_leaves_the_pick_to_the_next(loop, monkeypatch):
    task = loop.label()
    monkeypatch.setattr(loop.refresher.picks, "note", lambda *what: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        loop.refresh(task)
    assert loop.log == {}
    loop.start(emptied=False)
    loop.refresh()
    assert loop.log.keys() == {task}


def test_labels_that_came_from_elsewhere_have_no_pick(loop):
    order = read_order(loop.refresher.desk.home / SERVED_FILE)
    elsewhere = next(t for t in TASKS if t not in order.ids)
    loop.ls.label(elsewhere)
    loop.refresh(elsewhere)
    asked = loop.label()
    loop.refresh(asked)
    assert loop.log.keys() == {asked}
