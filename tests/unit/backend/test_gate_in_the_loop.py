"""The gate between a new model and the queue, on the whole way of a label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backend.overview import project_overview
from training.gate import compare


@pytest.fixture
def labelled(loop):
    """Half of the tasks labelled, a model is live; a line parts the two classes, so it is a good one."""
    x = loop.refresher.desk.model.features(list(loop.tasks))
    steep = x[:, 1] / x[:, 0] > np.median(x[:, 1] / x[:, 0])
    loop.truth = lambda task, turned=False: "ab"[bool(steep[task - 1]) != turned]
    audit = loop.refresher.desk.audit
    trained = [t for t in loop.tasks if not audit(t)][::2]
    measured = [t for t in loop.tasks if audit(t)]
    for task in trained + measured:
        loop.ls.label(task, loop.truth(task))
    loop.refresh(*trained, *measured)
    loop.trained, loop.measured = trained, measured
    return loop


def turn(loop, tasks):
    """Somebody labels the other way round."""
    for task in tasks:
        loop.ls.label(task, loop.truth(task, turned=True))
        loop.ls.annotations[task][0]["updated_at"] = "2026-01-02"
    loop.refresh(*tasks)


class NoJobs:
    def jobs(self, project_id):
        return []


def warnings(loop):
    return project_overview(loop.workshop, NoJobs(), 5).warnings


def test_the_first_model_is_live_and_a_better_one_follows(labelled):
    model = labelled.refresher.desk.model
    first = model.live().id
    assert model.verdict(first).promoted
    more = next(t for t in labelled.tasks if t not in labelled.ls.annotations)
    labelled.ls.label(more, labelled.truth(more))
    labelled.refresh(more)
    assert model.live().id == model.newest().id != first
    assert "not worse than" in model.verdict(model.live().id).words


def test_a_model_of_labels_turned_round_is_kept_back_and_the_order_stays(labelled):
    model = labelled.refresher.desk.model
    live, served = model.live().id, labelled.ls.served.model_version
    turn(labelled, labelled.trained)
    assert model.live().id == live != model.newest().id
    assert labelled.ls.served.model_version == served
    kept_back = model.verdict(model.newest().id)
    assert not kept_back.promoted and kept_back.live == live
    assert kept_back.comparison.examples == len(labelled.measured)
    (told,) = [w for w in warnings(labelled) if "kept back" in w]
    assert model.newest().id in told and "askfirst promote" in told


def test_labels_put_right_again_bring_a_model_that_passes(labelled):
    model = labelled.refresher.desk.model
    turn(labelled, labelled.trained)
    for task in labelled.trained:
        labelled.ls.label(task, labelled.truth(task))
        labelled.ls.annotations[task][0]["updated_at"] = "2026-01-03"
    labelled.refresh(*labelled.trained)
    assert model.live().id == model.newest().id
    assert not [w for w in warnings(labelled) if "kept back" in w]


def test_that_models_are_kept_back_is_said_once(labelled):
    turn(labelled, labelled.trained)
    turn(labelled, [next(t for t in labelled.tasks if t not in labelled.ls.annotations)])
    said = [event["what"] for event in labelled.state.events(5) if "kept back" in event["what"]]
    assert len(said) == 1


def test_a_worker_killed_before_the_gate_leaves_the_judgement_to_the_next(labelled, monkeypatch):
    model = labelled.refresher.desk.model
    live = model.live().id
    monkeypatch.setattr(model, "judge_heads", lambda *what: (_ for _ in ()).throw(KeyboardInterrupt))
    more = next(t for t in labelled.tasks if t not in labelled.ls.annotations)
    labelled.ls.label(more, labelled.truth(more))
    with pytest.raises(KeyboardInterrupt):
        labelled.refresh(more)
    labelled.start(emptied=False)
    model = labelled.refresher.desk.model
    assert model.live().id == live and model.undecided() == model.newest().id
    labelled.refresh()
    assert model.live().id == model.newest().id != live and model.undecided() is None


def test_many_small_steps_down_are_noticed_too(labelled, monkeypatch):
    model = labelled.refresher.desk.model
    first = model.live()

    def number(version):
        return int(version[1:].partition("-")[0])

    def compared(candidate, live, heads):
        """One step down is within chance, three are not."""
        wrong = np.arange(40) < 2 * (number(candidate) - number(live))
        return compare(~wrong, np.ones(40, bool))

    monkeypatch.setattr(model, "compare_heads", compared)
    for task in labelled.trained[:3]:
        turn(labelled, [task])
    newest = model.newest()
    assert number(newest.id) == number(first.id) + 3 and number(model.live().id) == number(first.id) + 2
    verdict = model.verdict(newest.id)
    assert not verdict.promoted and f"worse than an earlier version {first.id}" in verdict.words


def test_a_strategy_that_does_not_exist_is_told_and_stops_nothing(labelled):
    xml = labelled.ls.served.label_config.replace('name="cls"', 'name="cls" model_strategy="magic"')
    labelled.refresher.desk.project = replace(labelled.refresher.desk.project, label_config=xml)
    more = next(t for t in labelled.tasks if t not in labelled.ls.annotations)
    labelled.ls.label(more, labelled.truth(more))
    labelled.refresh(more)
    (told,) = [w for w in warnings(labelled) if "magic" in w]
    assert "margin orders meanwhile" in told
    assert more not in labelled.ls.predictions[labelled.ls.served.model_version]
