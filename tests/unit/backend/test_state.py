"""What web and workers share: events are never lost, work is coalesced, a dead holder frees its lease."""

import os
import time

import fakeredis
import pytest
import redis

from backend.errors import StoreUnavailable
from backend.state import State, connect


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def state(clock):
    return State(fakeredis.FakeStrictRedis(), now=clock)


def test_an_event_marks_its_tasks_until_somebody_has_read_them(state):
    state.record(1, text="a", dirty=[7, 8])
    seen = state.dirty(1)
    assert set(seen) == {7, 8}
    state.clean(1, "dirty", seen)
    assert state.dirty(1) == {}


def test_a_task_touched_again_while_it_was_read_stays_marked(state):
    state.record(1, text="a", dirty=[7, 8])
    seen = state.dirty(1)
    state.record(1, text="b", dirty=[8])
    state.clean(1, "dirty", seen)
    assert set(state.dirty(1)) == {8}


def test_a_flag_raised_again_while_it_was_worked_on_stays_raised(state):
    state.record(1, text="a", flags=["tasks", "train"])
    seen = state.flags(1)
    state.record(1, text="b", flags=["tasks"])
    state.clean(1, "flags", seen)
    assert set(state.flags(1)) == {"tasks"}


def test_projects_do_not_share_anything(state):
    state.record(1, text="a", dirty=[7], gone=[3], flags=["tasks"])
    state.put(1, "pushed", {"x": 1})
    assert state.dirty(2) == state.gone(2) == state.flags(2) == {} and state.get(2, "pushed") is None


def test_only_one_job_of_a_kind_waits(state):
    assert state.claim_waiting(1, "refresh", "job-1")
    assert not state.claim_waiting(1, "refresh", "job-2")
    assert state.claim_waiting(1, "pool", "job-3") and state.waiting(1, "refresh") == "job-1"
    state.clear_waiting(1, "refresh")
    assert state.claim_waiting(1, "refresh", "job-4")


def test_word_left_for_the_running_job_is_taken_once(state):
    state.ask_again(1, "refresh")
    assert state.take_again(1, "refresh") and not state.take_again(1, "refresh")


def test_a_lease_is_held_by_one_and_free_afterwards(state):
    with state.lease(1, "refresh", 10) as first:
        with state.lease(1, "refresh", 10) as second:
            assert first and not second
        assert state.holder(1, "refresh") is not None
    assert state.holder(1, "refresh") is None
    with state.lease(1, "refresh", 10) as again:
        assert again


def test_a_lease_whose_holder_died_on_this_host_is_taken_at_once(state):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    import socket

    state._redis.set("askfirst:1:lease:refresh", f"{socket.gethostname()}|{child}|1.0|1", px=60_000)
    assert state.holder(1, "refresh") is None
    with state.lease(1, "refresh", 10) as held:
        assert held


def test_a_lease_held_on_another_host_is_respected_until_it_runs_out(state):
    state._redis.set("askfirst:1:lease:refresh", "elsewhere|1|1.0|1", px=60_000)
    with state.lease(1, "refresh", 10) as held:
        assert not held


def test_a_heart_beat_never_takes_a_lease_from_another_holder(state):
    state._redis.set("k", "other", px=60_000)
    state._renew(keys=["k"], args=["mine", 1000])
    assert state._redis.get("k") == b"other"
    state._redis.delete("k")
    state._renew(keys=["k"], args=["mine", 1000])
    assert state._redis.get("k") == b"mine"


def test_cached_annotations_know_whether_they_were_ever_read(state):
    assert state.annotations(1) is None
    state.put_annotations(1, {5: [{"id": 1}], 6: []}, replace=True)
    assert state.annotations(1) == {5: [{"id": 1}]}
    state.put_annotations(1, {5: [], 7: [{"id": 2}]})
    assert state.annotations(1) == {7: [{"id": 2}]} and state.annotated_ids(1) == {7}


def test_every_change_of_the_cached_annotations_counts_one_revision(state):
    first = state.put_annotations(1, {}, replace=True)
    assert state.put_annotations(1, {5: [{"id": 1}]}) == first + 1 == state.get(1, "labels_rev")


def test_the_pace_of_labelling_is_that_of_the_last_minute(state, clock):
    for _ in range(30):
        state.record(1, text="submit", dirty=[1], annotations=1)
        clock.now += 1
    assert state.annotations_per_second(1) == pytest.approx(1.0, rel=0.05)
    clock.now += 61
    assert state.annotations_per_second(1) == 0.0


def test_the_newest_events_come_first_and_old_ones_go(state):
    for i in range(60):
        state.note(1, f"event {i}")
    events = state.events(1)
    assert events[0]["what"] == "event 59" and len(events) == 50


def test_forgetting_a_project_leaves_nothing_behind(state):
    state.adopt(1), state.adopt(2)
    state.record(1, text="a", dirty=[7])
    state.forget(1)
    assert state.projects() == [2] and not list(state._redis.scan_iter("askfirst:1:*"))


def test_every_error_of_redis_becomes_store_unavailable(state, monkeypatch):
    for error in (redis.ConnectionError, redis.TimeoutError, redis.ResponseError, redis.exceptions.BusyLoadingError):
        monkeypatch.setattr(state._redis, "ping", lambda error=error: (_ for _ in ()).throw(error("gone")))
        with pytest.raises(StoreUnavailable, match="Redis does not answer"):
            state.ping()


def test_a_redis_that_is_not_there_is_found_out_quickly():
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        State(connect("redis://127.0.0.1:1/0")).ping()
    assert time.monotonic() - started < 5


def test_a_flood_of_events_shows_in_the_count_of_its_span(state, clock):
    assert [state.record(1, text="x").burst for _ in range(3)] == [1, 2, 3]
    clock.now += 4
    assert state.record(1, text="x").burst == 1


def test_recording_tells_which_jobs_wait_and_when_the_last_refresh_began(state, clock):
    state.adopt(1)
    assert state.record(1, text="x").waiting == frozenset() and state.record(1, text="x").refreshed_at == 0.0
    state.claim_waiting(1, "refresh", "job-1")
    state.put(1, "refresh_began", 123.5)
    noted = state.record(1, text="x")
    assert noted.waiting == {"refresh"} and noted.refreshed_at == 123.5 and noted.adopted
    state.clear_waiting(1, "refresh")
    state.claim_waiting(1, "pool", "job-2")
    assert state.record(1, text="x").waiting == {"pool"}


def test_an_event_of_a_project_that_is_not_ours_leaves_no_trace_when_asked_so(state):
    noted = state.record(7, text="x", dirty=[1], flags=["tasks"], annotations=1, adopted_only=True)
    assert not noted.adopted and noted.wake == 0
    assert state.dirty(7) == {} and state.flags(7) == {} and state.events(7) == [] and state.wake_number(7) == 0
