"""The loop against a real Label Studio, Redis, web process and workers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from backend.queue_push import SAMPLING, is_ours, read_pushed
from benchmark.live_stack import config

pytestmark = pytest.mark.e2e


def scores_of(stack, project_id, version):
    rows = stack.ls._send("list predictions", "GET", "/api/predictions/", params={"project": project_id})
    return {r["task"]: r["score"] for r in rows if r["model_version"] == version}


def test_connecting_gives_every_task_a_place_in_a_served_order(stack):
    project_id = stack.ready_project(40)
    pushed = stack.served(project_id)
    project = stack.ls.project(project_id)
    assert project.sampling == SAMPLING
    scores = scores_of(stack, project_id, pushed.version)
    assert len(scores) == 40 and sorted(scores, key=scores.get) == list(pushed.ids)
    assert all(0 <= s <= 1 for s in scores.values()) and len(set(scores.values())) == 40


def test_annotators_are_served_exactly_our_order_while_no_model_is_due(stack):
    # Label Studio's own threshold keeps the first model away, so one order is served all along.
    project_id = stack.ready_project(60, min_annotations_to_start_training=1000)
    order = list(stack.served(project_id).ids)
    people = [stack.session, stack.another_annotator(1), stack.another_annotator(2)]
    served = [stack.label_next(project_id, people[i % 3])["id"] for i in range(30)]
    assert served == order[:30]
    assert stack.labels_used(project_id) == 0


def test_a_label_is_in_the_model_and_the_order_a_moment_later(stack):
    project_id = stack.ready_project(120)
    first = stack.served(project_id)
    labelled = {stack.label_next(project_id)["id"] for _ in range(12)}
    pushed = stack.wait(
        lambda: (p := stack.served(project_id)) and p.labels == 12 and p, "an order that knows 12 labels"
    )
    assert pushed.version != first.version and is_ours(pushed.version)
    assert not labelled & set(pushed.ids)
    model = stack.workshop.desk(project_id).model
    assert set(model.labels_of(model.live().id)) == labelled


def test_an_annotator_who_labels_everything_never_sees_a_task_twice_or_none_too_early(stack):
    project_id = stack.ready_project(70)
    served = [stack.label_next(project_id)["id"] for _ in range(70)]
    assert len(set(served)) == 70


def test_new_tasks_join_the_order(stack):
    project_id = stack.ready_project(30)
    stack.add_tasks(project_id, 15, start=100)
    stack.wait(lambda: (p := stack.served(project_id)) and len(p.ids) == 45, "an order with the new tasks")


def test_labels_imported_with_their_tasks_are_learnt_from(stack):
    project_id = stack.ready_project(20)
    names = sorted(stack.truth)[200:210]
    stack.call(
        "POST",
        f"/api/projects/{project_id}/import",
        [
            {
                "data": {"image": stack.uri(n)},
                "annotations": [
                    {
                        "result": [
                            {
                                "from_name": "digit",
                                "to_name": "image",
                                "type": "choices",
                                "value": {"choices": [stack.truth[n]]},
                            }
                        ]
                    }
                ],
            }
            for n in names
        ],
    )
    stack.wait(lambda: stack.labels_used(project_id) == 10, "a model from imported labels")


def test_a_deleted_annotation_is_forgotten_and_its_task_asked_again(stack):
    project_id = stack.ready_project(30)
    task = stack.next_task(project_id)
    annotation = stack.submit(task)
    for _ in range(3):
        stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 4, "four labels")
    stack.call("DELETE", f"/api/annotations/{annotation}/")
    stack.wait(lambda: stack.labels_used(project_id) == 3, "the label taken back")
    stack.wait(lambda: (p := stack.served(project_id)) and task["id"] in p.ids, "the task back in the order")


def test_a_skipped_task_is_not_trained_on(stack):
    project_id = stack.ready_project(25)
    skipped = stack.next_task(project_id)
    stack.call("POST", f"/api/tasks/{skipped['id']}/annotations/?was_cancelled=1", {"result": [], "lead_time": 1.0})
    for _ in range(3):
        stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 3, "three labels")
    assert skipped["id"] not in stack.workshop.desk(project_id).model.labels_of(
        stack.workshop.desk(project_id).model.newest().id
    )


def test_what_looks_like_skipped_tasks_is_asked_last(stack):
    project_id = stack.ready_project(200)
    unwanted = {"0", "1"}
    for _ in range(70):
        task = stack.next_task(project_id)
        if stack.label_of(task) in unwanted:
            skip = {"result": [], "lead_time": 1.0}
            stack.call("POST", f"/api/tasks/{task['id']}/annotations/?was_cancelled=1", skip)
        else:
            stack.submit(task)
    state = stack.workshop.state
    stack.wait(lambda: "skipped" in (state.get(project_id, "strategy_note") or ""), "an order that knows of the skips")
    name = {int(t["id"]): stack.label_of(t) for t in stack.ls.tasks(project_id)}

    def wanted_first():
        served = stack.served(project_id)
        return served and sum(name[t] in unwanted for t in served.ids[:30]) <= 6  # a fifth of the images are

    stack.wait(wanted_first, "an order with other digits than the skipped ones in front")
    assert "look like what was skipped" in stack.backend("GET", "/status").text


def test_a_webhook_that_was_lost_is_found_by_looking(stack):
    project_id = stack.ready_project(30)
    hook = stack.ls.webhooks(project_id)[0]
    stack.ls.patch_webhook(hook["id"], {"is_active": False})
    for _ in range(3):
        stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 3, "labels that no event told", within_s=30)


@pytest.mark.parametrize("broken", ["", "Ask First"])
def test_a_version_broken_in_the_settings_is_put_right(stack, broken):
    project_id = stack.ready_project(20)
    version = stack.served(project_id).version
    stack.ls.patch_project(project_id, model_version=broken)
    stack.wait(lambda: stack.ls.project(project_id).model_version == version, "our version again")


def test_a_sampling_changed_by_hand_is_put_right_and_told(stack):
    project_id = stack.ready_project(20)
    stack.ls.patch_project(project_id, sampling="Sequential sampling")
    stack.wait(lambda: stack.ls.project(project_id).sampling == SAMPLING, "uncertainty sampling again")
    assert any("sampling was 'Sequential sampling'" in e["what"] for e in stack.workshop.state.events(project_id))


def test_a_version_picked_by_hand_is_respected_until_connected_again(stack):
    project_id = stack.ready_project(30)
    task = stack.served(project_id).ids[0]
    stack.ls.import_predictions(project_id, [{"task": task, "result": [], "score": 0.5, "model_version": "by hand"}])
    stack.ls.patch_project(project_id, model_version="by hand")
    stack.wait(
        lambda: (stack.workshop.desk(project_id).files.pin() or {}).get("version") == "by hand", "notice of the choice"
    )
    for _ in range(2):
        stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 2, "labels learnt while held")
    assert stack.ls.project(project_id).model_version == "by hand"
    stack.connect(project_id)
    stack.wait(lambda: stack.served(project_id), "our order again")


def test_a_label_added_to_the_config_of_a_running_project_is_learnt(stack):
    project_id = stack.ready_project(40, classes=tuple("012345678"))
    for _ in range(6):
        task = stack.next_task(project_id)
        stack.submit(task, "0" if stack.label_of(task) == "9" else None)
    stack.wait(lambda: stack.labels_used(project_id) == 6, "six labels")
    # Label Studio saves whole projects: of two changes at once, a flip of ours and this one, it keeps the later only.
    stack.settle(project_id)
    stack.ls.patch_project(project_id, label_config=config(tuple("0123456789")))
    model = stack.workshop.desk(project_id).model
    stack.wait(lambda: model.newest().classes == tuple("0123456789"), "a model of ten classes")
    assert stack.labels_used(project_id) == 6


def test_start_training_gives_a_job_that_label_studio_can_ask_about(stack):
    project_id = stack.ready_project(20, min_annotations_to_start_training=1000)
    for _ in range(2):
        stack.label_next(project_id)
    payload = {"action": "START_TRAINING", "project": {"id": project_id}}
    answer = stack.backend("POST", "/webhook", json=payload)
    assert answer.status_code == 201 and answer.json()["job"]
    stack.wait(lambda: stack.labels_used(project_id) == 2, "a model although there are fewer labels than the minimum")
    status = stack.backend("POST", "/job_status", json={"job": answer.json()["job"]})
    assert status.json()["job_status"] in ("queued", "started", "finished")


def test_a_backend_removed_in_label_studio_leaves_no_webhook_behind(stack):
    project_id = stack.ready_project(15)

    def cleaned_up():
        # Label Studio saves each entry that it lists: a tick that asks in this very moment brings a removed one back.
        for entry in stack.ls.backends(project_id):
            stack.ls.delete_backend(entry["id"])
        return not stack.ls.webhooks(project_id)

    stack.wait(cleaned_up, "the webhook cleaned up", within_s=60)
    stack.wait(lambda: project_id not in stack.workshop.state.projects(), "the project forgotten")


def test_a_project_connected_in_label_studios_own_pages_is_set_up(stack):
    project_id = stack.make_project(25)
    stack.call("POST", "/api/ml", {"project": project_id, "url": stack.services.backend_url, "title": "Mine"})
    stack.wait(lambda: stack.served(project_id), "an order for a project connected by hand")
    hooks = stack.ls.webhooks(project_id)
    assert len(hooks) == 1 and "X-Ask-First-Secret" in hooks[0]["headers"]


def test_a_broken_image_costs_its_own_task_only_its_place(stack):
    project_id = stack.make_project(20)
    broken = stack.images / "broken.png"
    broken.write_bytes(b"this is no picture")
    stack.call(
        "POST",
        f"/api/projects/{project_id}/import",
        [
            {"data": {"image": stack.uri("broken.png")}},
            {"data": {"image": "data:image/png;base64,AAAA"}},
            {"data": {"image": stack.uri("missing.png")}},
        ],
    )
    stack.connect(project_id)
    stack.settle(project_id)
    pushed = stack.served(project_id)
    bad = {t["id"] for t in stack.ls.tasks(project_id) if Path(str(t["data"].get("image"))).name not in stack.truth}
    assert len(pushed.ids) == 23 and set(pushed.ids[-3:]) == bad


def test_overlap_two_gives_each_task_to_two_people_in_our_order(stack):
    project_id = stack.make_project(16, maximum_annotations=2)
    stack.connect(project_id)
    stack.wait(lambda: stack.served(project_id), "an order")
    people = [stack.session, stack.another_annotator(3)]
    served = [stack.label_next(project_id, people[i % 2])["id"] for i in range(32)]
    assert sorted(served) == sorted(2 * sorted(set(served))) and len(set(served)) == 16


def test_predict_answers_with_the_scores_that_were_pushed(stack):
    project_id = stack.ready_project(30)
    for _ in range(4):
        stack.label_next(project_id)
    pushed = stack.wait(lambda: (p := stack.served(project_id)) and p.labels == 4 and p, "an order from four labels")
    project = stack.ls.project(project_id)
    tasks = list(stack.ls.tasks(project_id))
    body = {
        "tasks": [*tasks, {"odd": 1}, "text"],
        "project": f"{project_id}.{project.created_at}",
        "label_config": project.label_config,
        "params": {"context": None},
    }
    results = stack.backend("POST", "/predict", json=body).json()["results"]
    assert len(results) == len(tasks) + 2
    scores = scores_of(stack, project_id, pushed.version)
    for task, result in zip(tasks, results, strict=False):
        assert result["model_version"] == pushed.version
        if task["id"] in scores:
            assert result["score"] == pytest.approx(scores[task["id"]], abs=1e-12)


def test_the_page_shows_the_project_and_never_the_token(stack):
    project_id = stack.ready_project(15)
    page = stack.backend("GET", "/", headers={"Accept": "text/html"}).text
    assert f"digits {15}" in page and stack.env["LABEL_STUDIO_API_KEY"] not in page
    assert stack.backend("GET", "/").json()["status"] == "UP"
    thumb = stack.backend("GET", f"/thumb/{project_id}/{stack.served(project_id).ids[0]}")
    assert thumb.status_code == 200 and thumb.headers["content-type"] == "image/jpeg"


def test_doctor_is_content_with_a_connected_project(stack):
    from backend import doctor
    from backend.settings import Settings

    project_id = stack.ready_project(15)
    checks = doctor.run(Settings.from_env(stack.env), project_id)
    assert [c for c in checks if not c.ok] == []
    assert len(checks) >= 12


def test_old_versions_are_deleted_once_nobody_labels(stack):
    project_id = stack.ready_project(60)
    for _ in range(6):
        stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 6, "six labels")
    stack.wait(
        lambda: len([v for v in stack.ls.prediction_versions(project_id) if is_ours(v)]) <= 2,
        "old versions to go",
        within_s=60,
    )
    assert stack.next_task(project_id)["id"] in stack.served(project_id).ids


def test_no_log_holds_a_token_or_a_secret(stack):
    time.sleep(0)  # all that was logged so far is on disk already
    secrets = [stack.env["LABEL_STUDIO_API_KEY"], (stack.home.models / "webhook-secret").read_text().strip()]
    for name in ("web", "worker-fast", "worker-slow", "worker-tick"):
        text = stack.home.log(name).read_text(errors="replace")
        assert not any(s in text for s in secrets), name


def test_the_export_of_a_project_is_untouched_by_us(stack):
    project_id = stack.ready_project(10)
    task = stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 1, "one label")
    rows = stack.ls.annotated_tasks(project_id)
    assert [r["id"] for r in rows] == [task["id"]]
    assert json.dumps(rows[0]["data"]) == json.dumps(task["data"])


def test_an_emptied_redis_loses_no_label_and_the_loop_goes_on(stack):
    project_id = stack.ready_project(40)
    for _ in range(4):
        stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 4, "four labels")
    stack.workshop.state._redis.flushall()
    for _ in range(3):
        stack.label_next(project_id)
    stack.wait(lambda: stack.labels_used(project_id) == 7, "all seven labels", within_s=60)
    stack.wait(lambda: stack.backend("GET", "/ready").status_code == 200, "workers that registered again", within_s=60)


def test_where_imports_are_slow_the_front_is_reordered_in_place(stack):
    project_id = stack.ready_project(80)
    before = stack.served(project_id)
    assert before.kind == "full"
    stack.workshop.state.put(project_id, "import_s", 9.0)  # as without Label Studio's memory-efficient import
    for _ in range(5):
        stack.label_next(project_id)
    state = stack.workshop.state
    stack.wait(lambda: state.get(project_id, "front_of") == before.version, "a front changed in place")
    # Once all five labels are in the order, nothing moves any more.
    stack.wait(lambda: (p := read_pushed(state, project_id)) and p.labels == 5, "an order that knows five labels")
    scores = scores_of(stack, project_id, before.version)
    front = [int(t) for t in state.get(project_id, "front")]
    done = state.annotated_ids(project_id)
    untouched = [s for t, s in scores.items() if t not in front and t not in done]
    moved = [scores[t] for t in front if t not in done]
    assert moved
    assert max(moved) < min(untouched)
    assert all(0 <= s <= 1 for s in scores.values())
