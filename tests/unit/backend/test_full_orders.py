"""When an order of all tasks is stored: in quiet times, not at every label."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import fakeredis
import pytest

from backend import jobs
from backend.queue_push import Pushed, write_pushed
from backend.state import State


@pytest.fixture
def refresh(monkeypatch):
    state = State(fakeredis.FakeStrictRedis())
    woken = []
    outcome = SimpleNamespace(labels=1, fitted=None, waited=None, pushed=None, seconds={})
    monkeypatch.setattr(jobs, "fine_tuning_is_due", lambda refresher: refresher.due)
    refresher = SimpleNamespace(due=False, run=lambda: outcome, imports_are_slow=lambda: refresher.slow, slow=False)
    workshop = SimpleNamespace(state=state, is_quiet=lambda project_id: workshop.quiet, quiet=True)
    dispatcher = SimpleNamespace(wake=lambda project_id, kind, number: woken.append(kind))
    monkeypatch.setattr(jobs, "_refresher", lambda workshop, project_id: refresher)
    write_pushed(state, 1, Pushed("askfirst v", "g1", "sprint", (1, 2), "2/2/2/r", 0.0, 1))

    def run(*, quiet=True, slow=False, stored=None, due=False, at_it=False):
        workshop.quiet, refresher.slow, refresher.due = quiet, slow, due
        if stored:
            state.put(1, "full_version", stored)
        woken.clear()
        with ExitStack() as stack:
            if at_it:
                stack.enter_context(state.lease(1, "tune", 5.0))
            jobs._refresh(workshop, dispatcher, 1)
        return list(woken)

    return run


def test_a_full_order_is_asked_for_when_nobody_labels(refresh):
    assert refresh() == ["full"]


def test_it_is_not_begun_anew_at_every_label(refresh):
    assert refresh(quiet=False) == []


def test_where_imports_are_slow_it_is_worth_it_at_once(refresh):
    assert refresh(quiet=False, slow=True) == ["full"]


def test_one_that_is_stored_is_not_stored_again(refresh):
    assert refresh(stored="askfirst full") == []


def test_fine_tuning_is_asked_for_when_it_is_due_and_nobody_is_at_it(refresh):
    assert refresh(quiet=False, due=True) == ["tune"]
    assert refresh(quiet=False, due=True, at_it=True) == []
