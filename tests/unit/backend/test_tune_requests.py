"""Fine-tuning at somebody's word: what is refused with which reason, and that a word to stop stops that run only."""

from __future__ import annotations

import pytest

from backend import jobs
from backend.errors import FineTuningRefused
from backend.fine_tune import CANCEL
from backend.overview import project_overview
from backend.tune_requests import ASKED, ask, at_hand, cancel
from training import api


@pytest.fixture
def asked_of(tuning, monkeypatch):
    """Forty labels of sixty, 20 of them in the audit slice as far as the version says."""
    monkeypatch.setattr(jobs, "_refresher", lambda workshop, project_id: tuning.refresher)
    monkeypatch.setattr("backend.tune_requests.FEWEST_TO_JUDGE", 7)
    tuning.give(list(tuning.tasks)[:40])
    tuning.workshop.settings = tuning.workshop.settings.model_copy(update={"tune": False})  # only when asked for
    tuning.ask = lambda: ask(tuning.workshop, tuning.jobs, 5)
    tuning.cancel = lambda: cancel(tuning.workshop, tuning.jobs, 5)
    tuning.work = lambda: jobs._tune(tuning.workshop, tuning.jobs, 5)
    tuning.shown = lambda: project_overview(tuning.workshop, tuning.jobs, 5)
    return tuning


def test_a_run_that_was_asked_for_and_waits_is_shown_and_can_be_cancelled(asked_of):
    with pytest.raises(FineTuningRefused, match="not being fine-tuned"):
        asked_of.cancel()
    assert "asked" in asked_of.ask()
    assert "waits for its worker" in asked_of.shown().state
    assert "will not go on" in asked_of.cancel()
    assert asked_of.work() == "the run was cancelled before it began"
    assert at_hand(asked_of.workshop, asked_of.refresher.desk) == "" and asked_of.files.outcomes() == []
    asked_of.ask()
    assert "promoted" in asked_of.work()  # the word was for the run before


def test_a_run_that_was_begun_and_lost_its_worker_can_be_cancelled(asked_of):
    asked_of.result = KeyboardInterrupt()
    asked_of.ask()
    with pytest.raises(KeyboardInterrupt):
        asked_of.work()
    asked_of.result = "good"
    assert "was begun" in asked_of.cancel()
    assert "cancelled" in asked_of.work()
    assert [o.outcome for o in asked_of.files.outcomes()] == ["cancelled"]


@pytest.mark.parametrize("state", ["asked", "begun", "running"])
def test_a_second_run_is_not_begun_behind_the_first(asked_of, state):
    asked_of.ask()
    if state == "begun":
        asked_of.files.begin([])
        asked_of.state.clean(5, "flags", {f: n for f, n in asked_of.state.flags(5).items() if f == ASKED})
    if state == "running":
        with asked_of.state.lease(5, "tune", 10.0), pytest.raises(FineTuningRefused, match="is being fine-tuned"):
            asked_of.ask()
    else:
        with pytest.raises(FineTuningRefused, match=f"was {state}.*--cancel"):
            asked_of.ask()


def test_a_word_to_stop_that_came_too_late_does_not_stop_the_next_run(asked_of):
    asked_of.result = api.DataError("broken in a way of its own")
    asked_of.state.put(5, CANCEL, True)
    asked_of.files.begin(asked_of.refresher.split())
    assert "failed" in asked_of.work()
    assert asked_of.state.get(5, CANCEL) is None


def test_a_version_held_by_hand_is_named_before_a_run_costs_an_hour(asked_of):
    live = asked_of.refresher.desk.model.live()
    asked_of.refresher.desk.files.write_pin({"kind": "model version", "version": live.id, "since": 1.0})
    with pytest.raises(FineTuningRefused, match="askfirst connect --project 5"):
        asked_of.ask()


def test_a_held_project_shows_what_its_workers_do_all_the_same(asked_of):
    from types import SimpleNamespace

    live = asked_of.refresher.desk.model.live()
    asked_of.refresher.desk.files.write_pin({"kind": "model version", "version": live.id, "since": 1.0})
    job = SimpleNamespace(id="tune-5-1", what="fine-tuning of project 5", state="started", progress="3/9", since=9e9)
    asked_of.jobs.jobs = lambda project_id: [job]
    assert asked_of.shown().state.startswith("held") and asked_of.shown().state.endswith("3/9")


def test_how_many_audit_labels_a_first_run_waits_for_is_shown(asked_of, monkeypatch):
    audit = int(asked_of.refresher.desk.model.live().metrics["audit_n"])
    asked_of.workshop.settings = asked_of.workshop.settings.model_copy(update={"tune": True})
    monkeypatch.setattr("backend.fine_tune.FEWEST_TO_JUDGE", audit + 3)
    assert f"from 20 labels and {audit + 3} audit labels on, of which there are {audit}." in (
        asked_of.shown().representation
    )
    monkeypatch.setattr("backend.fine_tune.FEWEST_TO_JUDGE", audit)
    assert "It is fine-tuned from 20 labels on." in asked_of.shown().representation


def test_why_images_are_not_embedded_is_on_the_page_until_they_are(asked_of, monkeypatch):
    broken = api.RepresentationError("weights w.pth cannot be used: they do not fit")

    def fails(*what, **how):
        raise broken

    monkeypatch.setattr("backend.pool_sync.PoolSync.list_tasks", lambda sync, **how: sync.desk.files.tasks())
    with monkeypatch.context() as patch:
        patch.setattr("backend.pool_sync.PoolSync.embed", fails)
        assert "cannot be embedded" in jobs._pool(asked_of.workshop, asked_of.jobs, 5)
    (told,) = [w for w in asked_of.shown().warnings if "w.pth" in w]
    assert "ASKFIRST_WEIGHTS" in told and "asked last" in told
    assert "refresh" in asked_of.jobs.woken  # the queue goes on with what is known
    jobs._pool(asked_of.workshop, asked_of.jobs, 5)
    assert not [w for w in asked_of.shown().warnings if "w.pth" in w]
