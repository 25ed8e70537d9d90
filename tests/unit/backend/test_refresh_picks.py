"""The whole way of a label through a refresh, with a Label Studio in memory: each label given in the order served has
one line in the log of picks, whoever is killed or emptied in between."""

from __future__ import annotations

import numpy as np
import pytest

from backend.order import read_order
from backend.refresh import SERVED_FILE


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
    elsewhere = next(t for t in loop.tasks if t not in order.ids)
    loop.ls.label(elsewhere)
    loop.refresh(elsewhere)
    asked = loop.label()
    loop.refresh(asked)
    assert loop.log.keys() == {asked}
