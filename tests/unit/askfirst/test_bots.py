"""Bots against a Label Studio that fits on a page."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from askfirst import bots as module
from askfirst.bots import Bot, Job, Record, Served, answer, current_prediction, run_bots
from askfirst.errors import LabelStudioProblem
from askfirst.label_studio import image_url


class TinyLabelStudio:
    """Serves tasks in order, keeps annotations; `trouble` maps the n-th call to a status (None: no answer)."""

    def __init__(self, files: list[str], hidden: int = 0, trouble: dict[int, int | None] | None = None) -> None:
        self.files = files
        self.hidden = hidden  # the last tasks have no prediction, so nobody is shown them
        self.trouble = trouble or {}
        self.submitted: dict[int, dict[str, Any]] = {}
        self.calls: list[tuple[str, str, Any, Any]] = []
        self._open: dict[int, int] = {}  # task -> thread that has it open
        self._lock = threading.Lock()

    def call(self, what: str, method: str, path: str, json: Any = None, *, params: dict[str, Any] | None = None) -> Any:
        with self._lock:
            self.calls.append((method, path, params, json))
            number = len(self.calls)
            if number in self.trouble:
                raise LabelStudioProblem(what, self.trouble[number], "trouble")
            if path == "/api/dm/actions":
                return self._next()
            if path.startswith("/api/projects/"):
                done = sum(1 for body in self.submitted.values() if not body.get("was_cancelled"))
                return {"task_number": len(self.files), "num_tasks_with_annotations": done}
            task = int(path.split("/")[3])
            self.submitted[task] = json
            return {"id": 1}

    def _next(self) -> dict[str, Any]:
        me = threading.get_ident()
        for task, file in enumerate(self.files[: len(self.files) - self.hidden], start=1):
            if task not in self.submitted and self._open.get(task, me) == me:
                self._open[task] = me
                return {
                    "id": task,
                    "data": {"image": image_url("pics", file)},
                    "predictions": [{"score": task / 10, "model_version": "v1"}],
                }
        raise LabelStudioProblem("serve the next task", 404, "no more tasks")


def job(files: list[str], **changes) -> Job:
    truth = {file: f"label of {file}" for file in files}
    return Job(
        **{
            "project_id": 7,
            "control": "kind",
            "image_control": "picture",
            "link": "pics",
            "truth": truth,
            "labels_per_bot": 99,
            **changes,
        }
    )


def work(server: TinyLabelStudio, what: Job) -> Record:
    record = Record()
    Bot("bot-1", server, what, record, stop=threading.Event()).work()
    return record


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.0)


def test_a_bot_asks_as_label_all_tasks_does_and_submits_the_truth():
    server = TinyLabelStudio(["a b.png"])
    record = work(server, job(["a b.png"], labels_per_bot=1))
    assert server.calls[0] == ("POST", "/api/dm/actions", {"id": "next_task", "project": 7}, {})
    method, path, params, body = server.calls[1]
    assert (method, path, params) == ("POST", "/api/tasks/1/annotations/", {"project": 7})
    assert body["result"][0]["from_name"] == "kind"
    assert body["result"][0]["to_name"] == "picture"
    assert body["result"][0]["value"] == {"choices": ["label of a b.png"]}
    assert record.errors == []


def test_score_and_version_are_recorded_as_they_were_when_the_task_was_served():
    record = work(TinyLabelStudio(["a.png", "b.png"]), job(["a.png", "b.png"]))
    assert [(s.bot, s.task, s.score, s.version, s.label) for s in record.served] == [
        ("bot-1", 1, 0.1, "v1", "label of a.png"),
        ("bot-1", 2, 0.2, "v1", "label of b.png"),
    ]


def test_a_bot_stops_at_its_share():
    record = work(TinyLabelStudio(["a.png", "b.png", "c.png"]), job(["a.png", "b.png", "c.png"], labels_per_bot=2))
    assert record.labels() == 2


def test_a_task_whose_truth_is_unknown_is_skipped_and_does_not_count():
    server = TinyLabelStudio(["a.png", "b.png"])
    what = job(["b.png"], labels_per_bot=1)
    record = work(server, what)
    assert server.submitted[1]["was_cancelled"] is True
    assert server.submitted[1]["result"] == []
    assert [s.label for s in record.served] == [None, "label of b.png"]
    assert record.labels() == 1


def test_the_end_of_all_tasks_is_no_error():
    record = work(TinyLabelStudio(["a.png"]), job(["a.png"]))
    assert record.labels() == 1
    assert record.errors == []


def test_no_more_tasks_while_tasks_are_left_is_an_error():
    files = ["a.png", "b.png", "c.png"]
    record = work(TinyLabelStudio(files, hidden=2), job(files))
    assert record.labels() == 1
    assert {(e.what, e.status) for e in record.errors} == {("next task", 404)}
    assert len(record.errors) == module.RETRIES


@pytest.mark.parametrize("status", [500, None])
def test_a_failing_answer_is_recorded_and_tried_again(status):
    record = work(TinyLabelStudio(["a.png"], trouble={1: status, 3: status}), job(["a.png"]))
    assert record.labels() == 1
    assert [(e.what, e.status) for e in record.errors] == [("next task", status), ("submit task 1", status)]


def test_a_bot_gives_up_when_label_studio_keeps_failing():
    trouble = dict.fromkeys(range(1, 100), 500)
    record = work(TinyLabelStudio(["a.png"], trouble=trouble), job(["a.png"]))
    assert len(record.errors) == module.RETRIES


def test_several_bots_share_the_work_without_doing_it_twice():
    files = [f"{i}.png" for i in range(12)]
    server, record = TinyLabelStudio(files), Record()
    run_bots({f"bot-{i}": server for i in range(3)}, job(files, bots=3), record, stop=threading.Event(), every_s=0.01)
    assert sorted(s.task for s in record.served) == list(range(1, 13))
    assert record.errors == []


def test_an_exception_in_a_bot_is_an_error_of_the_run():
    class Broken:
        def call(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("surprise")

    record = Record()
    run_bots({"bot-1": Broken()}, job(["a.png"]), record, stop=threading.Event(), every_s=0.01)
    assert [e.detail for e in record.errors] == ["RuntimeError: surprise"]


def test_an_interrupt_stops_the_bots_and_goes_on():
    files = [f"{i}.png" for i in range(1000)]
    stop = threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bots({"bot-1": TinyLabelStudio(files)}, job(files, think_s=60.0), Record(), stop=stop, tick=interrupt)
    assert stop.is_set()


# ---------------------------------------------------------------------- what a task says about its prediction
def test_of_several_predictions_of_a_version_the_lowest_counts():
    task = {"predictions": [{"score": 0.7, "model_version": "v"}, {"score": 0.2, "model_version": "v"}]}
    assert current_prediction(task) == (0.2, "v")


def test_a_task_without_prediction_has_no_score_and_no_version():
    assert current_prediction({"predictions": []}) == (None, None)
    assert current_prediction({}) == (None, None)


def test_a_prediction_without_score_keeps_its_version():
    assert current_prediction({"predictions": [{"score": None, "model_version": "v"}]}) == (None, "v")


def test_an_answer_carries_how_long_it_took_and_when_it_began():
    body = answer(job(["a.png"]), "x", 2.5, 0.0)
    assert body["lead_time"] == 2.5
    assert body["started_at"] == "1970-01-01T00:00:00+00:00"


def test_the_record_is_told_in_time_order():
    record = Record()
    for at in (3.0, 1.0, 2.0):
        record.add(Served(at, "b", int(at), None, None, None))
    assert [s.at for s in record.in_time_order()[0]] == [1.0, 2.0, 3.0]
