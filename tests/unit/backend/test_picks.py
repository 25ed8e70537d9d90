"""No label loses its propensity: not with one label a refresh, two workers, a killed worker or an emptied Redis."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backend.order import Order, read_order, write_order
from backend.picks import LOG_FILE, OFFERED_FILE, OFFERED_KEPT, PickLog, read_picks
from training.api import REASONS

CODE = {reason: code for code, reason in enumerate(REASONS)}


def order(version, tasks, reasons=None, model="g1"):
    """An order; pending and late tasks have no odds."""
    n = len(tasks)
    reasons = reasons or ["uncertain"] * n
    chosen = np.array([reason not in ("pending", "unread") for reason in reasons])
    return Order(
        version=version,
        model=model,
        classes=("a", "b"),
        ids=np.array(tasks, np.int64),
        scores=np.linspace(0, 1, n),
        confidence=np.full(n, 0.5, np.float32),
        label=np.zeros(n, np.int32),
        reason=np.array([CODE[reason] for reason in reasons], np.int8),
        propensity=np.where(chosen, 1 / (1.0 + np.arange(n)), np.nan),
        share=np.where(chosen, 0.9, np.nan),
        left=np.where(chosen, 50, 0).astype(np.int32),
        strategy="margin",
        explore=0.1,
    )


@pytest.fixture
def desk(tmp_path):
    """Serving and noting as the refresh does it."""

    class Desk:
        home = tmp_path / "project"

        def __init__(self):
            self.home.mkdir()
            self.log = self.worker()

        def worker(self):
            return PickLog(self.home, self.home / "served.npz")

        def serve(self, served, annotated=(), sent=(), people=0):
            self.log.note(set(annotated), 1.0)
            self.log.before_serving(served, {*annotated, *sent}, people)
            write_order(self.home / "served.npz", served)

        def lines(self):
            return [(p.task, p.pick.order, p.pick.place, p.pick.reason) for p in read_picks(self.home)]

    return Desk()


def test_a_label_is_put_down_to_the_place_that_asked_for_it(desk):
    desk.serve(order("v1", [7, 8, 9], ["uncertain", "explore", "audit"]))
    assert desk.log.note({8}, 12.5) == 1
    (found,) = read_picks(desk.home)
    assert (found.task, found.at, found.pick.order, found.pick.place, found.pick.reason) == (
        8,
        12.5,
        "v1",
        2,
        "explore",
    )
    assert (found.pick.propensity, found.pick.share, found.pick.left) == (0.5, 0.9, 50)
    assert (found.pick.strategy, found.pick.explore, found.pick.model) == ("margin", 0.1, "g1")


def test_a_label_is_written_once_however_often_it_is_noted_and_by_whom(desk):
    desk.serve(order("v1", [7, 8]))
    other = desk.worker()
    assert [log.note({7}, 1.0) for log in (desk.log, other, desk.log, desk.worker())] == [1, 0, 0, 0]


def test_one_label_for_each_order_gives_one_line_for_each_label(desk):
    labelled = []
    for turn in range(5):
        left = [t for t in range(10) if t not in labelled]
        desk.serve(order(f"v{turn}", left), labelled)
        labelled.append(left[0])
    desk.log.note(set(labelled), 1.0)
    assert desk.lines() == [(t, f"v{t}", 1, "uncertain") for t in range(5)]


def test_a_pending_task_keeps_the_pick_that_it_was_handed_out_by(desk):
    desk.serve(order("v1", [7, 8, 9], ["uncertain", "explore", "uncertain"]))
    desk.serve(order("v2", [8, 9], ["pending", "uncertain"]), {7})
    desk.serve(order("v3", [8, 9], ["pending", "uncertain"], model="g2"), {7})
    desk.log.note({7, 8, 9}, 3.0)
    assert desk.lines() == [(7, "v1", 1, "uncertain"), (8, "v1", 2, "explore"), (9, "v3", 2, "uncertain")]


def test_a_task_that_the_new_order_leaves_out_may_still_be_open_somewhere(desk):
    desk.serve(order("v1", [7, 8, 9]))
    desk.serve(order("v2", [20, 21]))
    desk.serve(order("v3", [22, 23]))
    desk.log.note({9, 21}, 1.0)
    assert desk.lines() == [(9, "v1", 3, "uncertain"), (21, "v2", 2, "uncertain")]


def test_a_task_that_is_asked_for_again_counts_from_where_it_stands_now(desk):
    desk.serve(order("v1", [7, 8, 9]))
    desk.serve(order("v2", [9, 8, 7]))
    desk.log.note({7}, 1.0)
    assert desk.lines() == [(7, "v2", 3, "uncertain")]


def test_a_label_on_its_way_belongs_to_the_order_it_was_given_under(desk):
    desk.serve(order("v1", [7, 8, 9, 10]))
    # While v2 was made 8 was labelled: word of it is there, and v2 has it at the front.
    desk.serve(order("v2", [8, 10, 9, 7]), sent={8})
    desk.log.note({8, 10}, 1.0)
    assert desk.lines() == [(8, "v1", 2, "uncertain"), (10, "v2", 2, "uncertain")]


def test_a_label_given_while_label_studio_changes_over_belongs_to_the_order_before(desk):
    desk.serve(order("v1", [7, 8, 9]))
    newer = order("v2", [9, 8])
    desk.serve(newer, {7})
    desk.log.after_serving(newer, sent={7, 8}, people=1)
    desk.log.note({7, 8, 9}, 1.0)
    assert sorted(desk.lines()) == [(7, "v1", 1, "uncertain"), (8, "v1", 2, "uncertain"), (9, "v1", 3, "uncertain")]


def test_the_next_tasks_are_open_with_those_at_work(desk):
    desk.serve(order("v1", [7, 8, 9, 10]))
    desk.serve(order("v2", [10, 9, 8]), {7}, people=2)
    desk.log.note({7, 8, 9, 10}, 1.0)
    assert desk.lines() == [
        (7, "v1", 1, "uncertain"),
        (8, "v1", 2, "uncertain"),
        (9, "v1", 3, "uncertain"),
        (10, "v2", 1, "uncertain"),
    ]


def test_far_down_a_long_order_the_next_tasks_are_still_known(desk):
    desk.serve(order("v1", list(range(1000))))
    desk.serve(order("v2", [998, 999]), range(997), people=1)
    desk.log.note(range(1000), 1.0)
    assert desk.lines()[-3:] == [
        (997, "v1", 998, "uncertain"),
        (998, "v2", 1, "uncertain"),
        (999, "v2", 2, "uncertain"),
    ]


def test_a_front_moved_in_place_leaves_what_is_open(desk):
    desk.serve(order("v1", [1, 2, 3, 4, 5]))
    desk.log.moved(order("", [2, 5, 3], model="g2"), [2, 5, 3], "v1", {1, 3}, 1)
    desk.log.note({2, 3, 5}, 1.0)
    assert {(p.task, p.pick.model, p.pick.place) for p in read_picks(desk.home)} == {
        (2, "g1", 2),
        (3, "g1", 3),
        (5, "g2", 2),
    }


def test_a_label_has_one_line_however_many_orders_still_list_its_task(desk):
    desk.serve(order("v1", [7, 8, 9]))
    desk.log.note({7}, 1.0)
    # v2 was made before the label was known, and lists the task again.
    desk.serve(order("v2", [7, 9, 8]), {7})
    desk.log.note({7, 9}, 2.0)
    desk.log = desk.worker()
    desk.log.note({7, 9}, 3.0)
    assert desk.lines() == [(7, "v1", 1, "uncertain"), (9, "v2", 2, "uncertain")]


def test_what_we_never_asked_for_has_no_line(desk):
    desk.serve(order("v1", [7, 8, 5], ["uncertain", "uncertain", "unread"]), {1, 2, 3})
    assert desk.log.note({1, 2, 3, 5, 99}, 1.0) == 0
    assert desk.lines() == [] and not (desk.home / LOG_FILE).exists()


def test_a_worker_killed_before_the_line_leaves_it_to_the_next_and_after_it_has_done_it(desk):
    desk.serve(order("v1", [7, 8]))
    # Killed after the labels were read: nothing was noted, the same order is served.
    assert desk.worker().note({7}, 1.0) == 1
    # Killed after the line: the next one reads it.
    assert desk.worker().note({7}, 2.0) == 0


def test_a_worker_killed_in_the_middle_of_a_line_spoils_that_line_alone(desk):
    desk.serve(order("v1", [7, 8]))
    desk.log.note({7}, 1.0)
    path = desk.home / LOG_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    other = desk.worker()
    assert other.note({7, 8}, 2.0) == 1
    assert [line[0] for line in desk.lines()] == [7, 8]
    assert desk.worker().note({7, 8}, 3.0) == 0


def test_a_worker_killed_between_keeping_picks_and_serving_loses_none(desk):
    desk.serve(order("v1", [7, 8, 9]))
    desk.log.before_serving(order("v2", [20, 21]))  # and never served
    other = desk.worker()
    other.note({8}, 1.0)
    assert desk.lines() == [(8, "v1", 2, "uncertain")]


def test_a_label_that_was_taken_back_and_given_again_is_two_picks(desk):
    desk.serve(order("v1", [7, 8]))
    desk.serve(order("v2", [8]), {7})
    desk.serve(order("v3", [7, 8]))  # its annotation was deleted
    desk.log.note({7}, 2.0)
    assert desk.lines() == [(7, "v1", 1, "uncertain"), (7, "v3", 1, "uncertain")]


def test_a_front_moved_in_place_is_what_was_asked_for(desk):
    desk.serve(order("v1", [1, 2, 3, 4, 5]))
    desk.log.moved(
        order("", [4, 5, 1, 2, 3], ["pending", "explore", "uncertain", "uncertain", "uncertain"], "g2"), [4, 5], "v1"
    )
    desk.log.note({5}, 1.0)
    desk.log.moved(order("", [4, 2, 1, 3], ["pending", "uncertain", "uncertain", "uncertain"], "g3"), [4, 2], "v1")
    desk.log.note({5, 2, 4}, 2.0)
    assert [(p.task, p.pick.model, p.pick.place, p.pick.reason) for p in read_picks(desk.home)] == [
        (5, "g2", 2, "explore"),
        (4, "g1", 4, "uncertain"),
        (2, "g3", 2, "uncertain"),
    ]


def test_a_task_moved_back_stands_where_the_served_order_has_it(desk):
    desk.serve(order("v1", [1, 2, 3, 4]))
    desk.log.moved(order("", [4, 3, 1, 2], model="g2"), [4], "v1")
    desk.log.moved(order("", [3, 4, 1, 2], model="g3"), [3], "v1")
    desk.log.note({4}, 1.0)
    assert [(p.pick.model, p.pick.place) for p in read_picks(desk.home)] == [("g1", 4)]


def test_what_is_kept_of_the_past_is_bounded(desk):
    for turn in range(6):
        desk.serve(order(f"v{turn}", list(range(1000 * turn, 1000 * turn + 150))))
    kept = json.loads((desk.home / OFFERED_FILE).read_text())
    assert len(kept) == OFFERED_KEPT and "4149" in kept and "0" not in kept


def test_a_file_that_is_broken_or_gone_stops_nothing(desk):
    desk.serve(order("v1", [7, 8]))
    desk.serve(order("v2", [8]))
    (desk.home / OFFERED_FILE).write_text("{")
    assert desk.log.note({7, 8}, 1.0) == 1
    (desk.home / LOG_FILE).unlink()
    assert desk.log.note({7, 8}, 1.0) == 1  # written anew
    (desk.home / "served.npz").unlink()
    assert desk.worker().note({7, 8}, 1.0) == 0


def test_the_order_of_an_older_release_is_served_on_and_tells_no_odds(tmp_path):
    path = tmp_path / "served.npz"
    write_order(path, order("v1", [7, 8]))
    with np.load(path) as data:
        old = {k: data[k] for k in data.files if k not in ("propensity", "share", "left", "strategy", "explore")}
    with path.open("wb") as file:
        np.savez(file, **old)
    found = read_order(path)
    assert found.ids.tolist() == [7, 8] and np.isnan(found.propensity).all() and found.left.tolist() == [0, 0]
    assert PickLog(tmp_path, path).note({7}, 1.0) == 0


def test_an_order_comes_back_as_it_was_written(tmp_path):
    write_order(tmp_path / "o.npz", order("v1", [7, 8, 9], ["pending", "explore", "audit"]))
    found = read_order(tmp_path / "o.npz").head(2)
    np.testing.assert_array_equal(found.propensity, [np.nan, 0.5])
    assert (found.strategy, found.explore, found.left.tolist()) == ("margin", 0.1, [0, 50])


def test_a_long_project_is_not_looked_through_at_every_label(desk, monkeypatch):
    desk.serve(order("v1", list(range(2000))))
    desk.log.note(range(1999), 1.0)
    desk.serve(order("v2", [1999, 5000]), range(1999))
    opened = []
    monkeypatch.setattr("backend.picks._lines", lambda data: opened.append(data) or iter(()))
    desk.log.note(range(1999), 2.0)
    assert opened == []  # no line is read twice
