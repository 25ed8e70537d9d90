"""What a webhook call notes and which jobs it wakes, on a stand-in for Redis and with jobs written down."""

from __future__ import annotations

import time
from types import SimpleNamespace

import fakeredis
import pytest

from backend.ls_client import settings_digest
from backend.service import FLOOD, BackendService
from backend.settings import Settings
from backend.state import State


class Jobs:
    """A dispatcher that writes down what it was asked and claims the waiting mark like the real one."""

    def __init__(self, state):
        self.state, self.woken = state, []

    def wake(self, project_id, kind, wake_number):
        job = f"{kind}-{project_id}-{wake_number}"
        if not self.state.claim_waiting(project_id, kind, job):
            return None
        self.woken.append(job)
        return job


@pytest.fixture
def state():
    return State(fakeredis.FakeStrictRedis())


@pytest.fixture
def jobs(state):
    return Jobs(state)


@pytest.fixture
def service(state, jobs, tmp_path):
    settings = Settings.from_env({"MODEL_DIR": str(tmp_path)})
    return BackendService(SimpleNamespace(state=state, settings=settings), jobs)


def annotated(task, project=1, action="ANNOTATION_CREATED"):
    return {
        "action": action,
        "project": {"id": project},
        "annotation": {"id": task * 10, "task": task},
        "task": {"id": task},
    }


def test_events_while_a_refresh_waits_are_noted_and_join_it(service, state, jobs):
    state.adopt(1)
    answers = [service.webhook(annotated(t)).result for t in (3, 4, 5)]
    assert answers == ["queued", "joined a waiting job", "joined a waiting job"]
    assert jobs.woken == ["refresh-1-1"] and set(state.dirty(1)) == {3, 4, 5}


def test_an_event_after_the_refresh_began_wakes_another(service, state, jobs):
    state.adopt(1)
    service.webhook(annotated(3))
    state.clear_waiting(1, "refresh")  # what a job does first
    assert service.webhook(annotated(4)).result == "queued"
    assert jobs.woken == ["refresh-1-1", "refresh-1-2"]


def test_an_event_of_an_unknown_project_has_it_adopted_once(service, state, jobs):
    service.webhook(annotated(3, project=9))
    service.webhook(annotated(4, project=9))
    assert jobs.woken == ["adopt-9-0"] and state.dirty(9) == {}


def test_new_tasks_wake_the_pool_and_not_a_refresh(service, state, jobs):
    state.adopt(1)
    service.webhook({"action": "TASKS_CREATED", "project": {"id": 1}, "tasks": [{"id": 5}]})
    assert jobs.woken == ["pool-1-1"] and set(state.flags(1)) == {"tasks"}


def test_a_flood_is_noted_without_waking_anybody_while_an_order_is_fresh(service, state, jobs):
    state.adopt(1)
    state.put(1, "refresh_began", time.time())
    for task in range(FLOOD):
        service.webhook(annotated(task + 1))
    state.clear_waiting(1, "refresh")
    before = list(jobs.woken)
    assert "flood" in service.webhook(annotated(999)).result
    assert jobs.woken == before and 999 in state.dirty(1)
    state.put(1, "refresh_began", time.time() - 60)
    assert service.webhook(annotated(1000)).result == "queued"


def test_the_start_training_button_is_heard_even_in_a_flood(service, state, jobs):
    state.adopt(1)
    state.put(1, "refresh_began", time.time())
    for task in range(FLOOD + 1):
        service.webhook(annotated(task + 1))
    state.clear_waiting(1, "refresh")
    answer = service.webhook({"action": "START_TRAINING", "project": {"id": 1}})
    assert answer.job == jobs.woken[-1] and "train" in state.flags(1)


def updated(config, version="askfirst v", sampling="Uncertainty sampling", **more):
    project = {"id": 1, "label_config": config, "model_version": version, "sampling": sampling, **more}
    return {"action": "PROJECT_UPDATED", "project": project}


def test_the_event_of_our_own_flip_wakes_nobody_and_a_changed_config_in_it_does(service, state, jobs):
    state.adopt(1)
    state.put(1, "expected_version", "askfirst v")
    state.put(1, "settings_used", settings_digest("<View>a</View>", 0, 1))
    assert service.webhook(updated("<View>a</View>")).result == "our own change"
    assert jobs.woken == []
    # Somebody saved another config in the moment of our flip: version and sampling are ours all the same.
    assert service.webhook(updated("<View>a b</View>")).result == "queued"
    assert "project" in state.flags(1)


@pytest.mark.parametrize("change", [{"maximum_annotations": 2}, {"min_annotations_to_start_training": 9}])
def test_other_settings_that_a_refresh_depends_on_are_noticed_too(service, state, jobs, change):
    state.adopt(1)
    state.put(1, "expected_version", "askfirst v")
    state.put(1, "settings_used", settings_digest("<View>a</View>", 0, 1))
    assert service.webhook(updated("<View>a</View>", **change)).result == "queued"


def test_settings_that_are_no_settings_are_no_change_of_ours(service, state):
    state.adopt(1)
    assert service.webhook(updated("<View/>", maximum_annotations={"x": 1})).result == "queued"
