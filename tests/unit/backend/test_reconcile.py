"""What the tick reads from Label Studio: everything that changed, and nothing over and over."""

from __future__ import annotations

from types import SimpleNamespace

import fakeredis
import pytest

from backend import reconcile
from backend.state import State


class LabelStudio:
    """Tasks with the moment of their last change; writes down how many rows each look returned."""

    def __init__(self):
        self.tasks: dict[int, str] = {}
        self.annotated: set[int] = set()
        self.read: list[int] = []

    def touch(self, task, stamp, *, annotated=True):
        self.tasks[task] = stamp
        if annotated:
            self.annotated.add(task)

    def newest_change(self, project_id):
        return max(self.tasks.values(), default=None)

    def touched_since(self, project_id, stamp):
        rows = [
            {"id": t, "updated_at": at, "total_annotations": int(t in self.annotated), "cancelled_annotations": 0}
            for t, at in self.tasks.items()
            if at > stamp
        ]
        self.read.append(len(rows))
        return rows


def at(second):
    return f"2026-11-21T10:{second // 60:02d}:{second % 60:02d}.000000Z"


@pytest.fixture
def clock(monkeypatch):
    moment = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(reconcile.time, "time", lambda: moment.now)
    return moment


@pytest.fixture
def ls():
    return LabelStudio()


@pytest.fixture
def look(ls, clock):
    state = State(fakeredis.FakeStrictRedis(), now=lambda: clock.now)
    workshop, desk = SimpleNamespace(ls=ls, state=state), SimpleNamespace(id=1)

    def one(after_s=15.0):
        clock.now += after_s
        return reconcile._touched_tasks(workshop, desk)

    return one


def test_the_first_look_only_notes_where_to_begin(look, ls):
    ls.touch(1, at(0))
    assert look() == [] and ls.read == []


def test_a_change_is_found_by_the_next_look_and_by_no_later_one(look, ls):
    ls.touch(1, at(0))
    look()
    ls.touch(2, at(20))
    assert look() == [2]
    assert [look() for _ in range(4)] == [[]] * 4


def test_a_change_that_is_committed_after_a_later_one_is_found(look, ls):
    ls.touch(1, at(0))
    look()
    ls.touch(2, at(30))
    assert look(5.0) == [2]
    ls.touch(3, at(27))  # its transaction began before
    assert look(5.0) == [3]
    assert look() == [] and look() == []


def test_an_import_of_many_tasks_is_read_twice_at_most(look, ls):
    ls.touch(0, at(0))
    look()
    for task in range(1, 500):
        ls.touch(task, at(20), annotated=False)
    for _ in range(6):
        assert look() == []
    assert ls.read == [499, 499, 0, 0, 0, 0]


def test_tasks_imported_before_the_first_look_are_never_read(look, ls):
    for task in range(500):
        ls.touch(task, at(20), annotated=False)
    look()
    ls.touch(7, at(60))
    assert look() == [7]
    assert sum(ls.read) == 1


@pytest.mark.parametrize(
    ("answered", "cancelled", "known", "is_known"),
    [
        (1, 0, [False], True),
        (1, 2, [False], True),  # skips of a task that somebody answered
        (2, 0, [False], False),
        (0, 1, [True], True),
        (0, 1, [], False),
        (0, 2, [True], False),
        (1, 0, [True], False),
        (0, 0, [], True),
    ],
)
def test_counts_tell_whether_a_task_is_known(answered, cancelled, known, is_known):
    row = {"id": 1, "updated_at": at(5), "total_annotations": answered, "cancelled_annotations": cancelled}
    assert reconcile._is_known(row, [{"was_cancelled": skip, "updated_at": at(5)} for skip in known]) is is_known
