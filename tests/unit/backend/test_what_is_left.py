"""After each new version the unlabelled images are looked at once, for the status page."""

from __future__ import annotations

from types import SimpleNamespace

import fakeredis
import numpy as np
import pytest

from backend.refresh import LEFT_SAMPLE, Refresher
from backend.state import State
from training.api import PossibleLabels


@pytest.fixture
def refresher(tmp_path):
    asked = []

    def possible_labels(version, ids):
        asked.append((version, list(ids)))
        return desk.answer and desk.answer(ids)

    model = SimpleNamespace(live=lambda: desk.live, possible_labels=possible_labels)
    desk = SimpleNamespace(
        id=4,
        home=tmp_path,
        live=SimpleNamespace(id="g1"),
        model=model,
        asked=asked,
        answer=lambda ids: PossibleLabels(
            np.array(ids), np.eye(3, dtype=bool)[[0] * len(ids)], np.ones(len(ids), bool), 0.1, 60
        ),
        project=SimpleNamespace(overlap=1),
        files=SimpleNamespace(tasks=lambda: SimpleNamespace(ids=tuple(range(3000)))),
        workshop=SimpleNamespace(state=State(fakeredis.FakeStrictRedis())),
    )
    found = Refresher(desk)
    found.book.annotations = {0: [{}], 1: [{}]}
    return found


def test_a_sample_of_the_unlabelled_is_looked_at_once_for_each_version(refresher):
    for version in ("g1", "g1", "g2"):
        refresher.desk.live = SimpleNamespace(id=version)
        refresher._look_at_what_is_left()
    assert [version for version, _ in refresher.desk.asked] == ["g1", "g2"]
    ids = refresher.desk.asked[0][1]
    assert len(set(ids)) == LEFT_SAMPLE and not {0, 1} & set(ids)
    kept = refresher.desk.workshop.state.get(4, "possible_labels")
    assert (kept["version"], kept["images"], kept["one"], kept["mean"]) == ("g2", LEFT_SAMPLE, LEFT_SAMPLE, 1.0)


def test_where_nothing_can_be_promised_nothing_is_kept(refresher):
    refresher.desk.answer = None
    refresher._look_at_what_is_left()
    assert refresher.desk.workshop.state.get(4, "possible_labels") is None


def test_without_a_version_nothing_is_asked(refresher):
    refresher.desk.live = None
    refresher._look_at_what_is_left()
    assert refresher.desk.asked == []
