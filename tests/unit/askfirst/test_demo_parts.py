"""Digits, curve, waiting times, progress lines, the JSON document, environments, signals."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from askfirst import digits
from askfirst.bots import BotError, Record, Served
from askfirst.demo import Options, first_label_times, run
from askfirst.errors import DataProblem
from askfirst.home import Home
from askfirst.outcome import Outcome, announcement
from askfirst.processes import Supervisor
from askfirst.progress import Progress
from askfirst.services import Services, redis_executable
from askfirst.signals import Interrupted, turned_into_exceptions
from askfirst.stats import CurvePoint, Waits, learning_curve
from askfirst.workers import roles


# ---------------------------------------------------------------------- digits
def test_a_rendered_digit_is_dark_where_the_ink_was_and_paper_at_the_margin():
    ink = load_digits().images[0]
    picture = np.asarray(digits.render(ink).convert("RGB")).astype(int)
    assert picture.shape == (digits.SIDE, digits.SIDE, 3)
    assert tuple(picture[0, 0]) == digits.PAPER
    cell = digits.SIDE // 10
    # A coarse grid over the picture, margin left out, against the original: the same shape.
    coarse = 255 - picture.mean(axis=2)[cell:-cell, cell:-cell].reshape(8, cell, 8, cell).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), ink.ravel())[0, 1] > 0.95


def test_digits_come_with_their_truth_and_the_second_time_at_once(tmp_path, monkeypatch):
    @dataclass
    class Few:
        images: np.ndarray
        target: np.ndarray

    every = load_digits()
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: Few(every.images[:12], every.target[:12]))
    path = digits.make_digits(tmp_path / "d")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [int(row["digit"]) for row in rows] == every.target[:12].tolist()
    for row in rows:
        with Image.open(tmp_path / "d" / row["image"]) as picture:
            assert picture.size == (digits.SIDE, digits.SIDE)
    before = (tmp_path / "d" / rows[0]["image"]).stat().st_mtime_ns
    assert digits.make_digits(tmp_path / "d") == path
    assert (tmp_path / "d" / rows[0]["image"]).stat().st_mtime_ns == before


def test_an_interrupted_drawing_is_finished_by_the_next_start(tmp_path, monkeypatch):
    @dataclass
    class One:
        images: np.ndarray
        target: np.ndarray

    every = load_digits()
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: One(every.images[:1], every.target[:1]))
    folder = tmp_path / "d"
    digits.make_digits(folder)
    (folder / ".complete").unlink()
    (folder / digits.file_name(0)).unlink()
    digits.make_digits(folder)
    assert (folder / digits.file_name(0)).is_file()


# ---------------------------------------------------------------------- curve
@dataclass
class FakeVersion:
    id: str
    created_at: float
    classes: tuple[str, ...] = ("a", "b")


@dataclass
class FakePredictions:
    example_ids: np.ndarray
    probabilities: np.ndarray
    known: np.ndarray


class FakeModel:
    """Says "a" for even tasks and "b" for odd ones; has never seen task 9."""

    def __init__(self, *versions: FakeVersion) -> None:
        self._versions = versions

    def versions(self):
        return self._versions

    def predict(self, version, example_ids):
        ids = np.asarray(example_ids)
        odd = (ids % 2).astype(np.float32)
        return FakePredictions(ids, np.stack([1 - odd, odd], axis=1), ids != 9)


def test_each_version_is_measured_on_what_was_unlabelled_when_it_was_made():
    model = FakeModel(FakeVersion("late", 20.0), FakeVersion("early", 10.0))
    truth = {1: "b", 2: "a", 3: "a", 4: "b"}
    labelled_at = {1: 5.0, 3: 15.0, 7: 1.0}
    assert learning_curve(model, truth, labelled_at) == [
        CurvePoint(2, pytest.approx(1 / 3), "early"),  # of 2, 3, 4 only 2 is right; 1 and 7 were labelled
        CurvePoint(3, pytest.approx(1 / 2), "late"),
    ]


def test_tasks_the_model_never_saw_do_not_count_and_a_version_without_tasks_has_no_point():
    model = FakeModel(FakeVersion("v", 10.0))
    assert learning_curve(model, {9: "b", 1: "b"}, {}) == [CurvePoint(0, 1.0, "v")]
    assert learning_curve(model, {9: "b"}, {}) == []
    assert learning_curve(model, {1: "b"}, {1: 2.0}) == []


def test_the_first_annotation_counts_and_skips_do_not():
    def annotation(second: int, cancelled: bool = False):
        return {"created_at": f"1970-01-01T00:00:{second:02}.000000Z", "was_cancelled": cancelled}

    tasks = [
        {"id": 1, "annotations": [annotation(30), annotation(20), annotation(10, True)]},
        {"id": 2, "annotations": [annotation(5, True)]},
    ]
    assert first_label_times(tasks) == {1: 20.0}


def test_waiting_times_are_summed_up():
    waits = Waits()
    for seconds in range(1, 101):
        waits.add(float(seconds))
    assert waits.summary() == {"count": 100, "median_s": 50.5, "p95_s": pytest.approx(95.05), "longest_s": 100.0}
    assert Waits().summary()["median_s"] is None


# ---------------------------------------------------------------------- progress
def clock(*times: float):
    moments = iter(times)
    return lambda: next(moments)


def test_each_phase_is_one_line_with_its_time():
    out = io.StringIO()
    progress = Progress(out, now=clock(0.0, 2.5))
    with progress.phase("redis", "Redis") as phase:
        phase.done("on 127.0.0.1")
    assert out.getvalue().split() == ["✓", "Redis", "on", "127.0.0.1", "2.5", "s"]
    assert progress.seconds == {"redis": 2.5}


def test_a_phase_that_fails_says_so_and_keeps_its_time():
    out = io.StringIO()
    progress = Progress(out, now=clock(0.0, 1.0))
    with pytest.raises(ValueError, match="broken"), progress.phase("redis", "Redis"):
        raise ValueError("broken")
    assert out.getvalue().startswith("✗ Redis")
    assert "broken" in out.getvalue()


def test_a_long_phase_gives_signs_of_life_in_a_log_but_not_more_often_than_needed():
    out = io.StringIO()
    progress = Progress(out, now=clock(0.0, 1.0, 14.0, 16.0, 16.0, 16.0, 17.0, 20.0))
    with progress.phase("x", "Long") as phase:
        for n in range(4):
            phase.say(f"step {n}")
    assert [line.split()[:4] for line in out.getvalue().splitlines()] == [
        ["…", "Long", "step", "2"],
        ["✓", "Long", "step", "3"],
    ]


# ---------------------------------------------------------------------- settings for other commands
def test_the_settings_of_the_backend_can_be_read_by_a_shell_and_by_nobody_else(tmp_path):
    home = Home(tmp_path)
    home.write_backend_env({"ASKFIRST_REDIS_URL": "redis://:p'a$s@127.0.0.1:1/0", "PORT": "9090"})
    shell = f'. {home.backend_env}; printf "%s %s" "$ASKFIRST_REDIS_URL" "$PORT"'
    said = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert said == "redis://:p'a$s@127.0.0.1:1/0 9090"
    assert stat.S_IMODE(home.backend_env.stat().st_mode) == 0o600


def test_truth_of_one_label_only_is_refused_before_anything_is_made(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "truth.csv").write_text("image,kind\na.png,x\nb.png,x\n")
    options = Options(images=tmp_path, labels=tmp_path / "truth.csv", data_dir=tmp_path / "demo")
    with pytest.raises(DataProblem, match="one label only"):
        run(options)
    assert not (tmp_path / "demo").exists()


# ---------------------------------------------------------------------- outcome
def outcome(**changes) -> Outcome:
    return Outcome(
        **{
            "label_studio_url": "http://127.0.0.1:1",
            "backend_url": "http://127.0.0.1:2",
            "project_id": 3,
            "username": "u",
            "password": "p",
            "api_key": "k",
            "phases": {"images": 1.0},
            "settings": Path("/data/backend.env"),
            **changes,
        }
    )


def test_the_document_without_bots_has_addresses_credentials_and_times():
    body = outcome().as_json()
    assert set(body) >= {"label_studio_url", "backend_url", "project_id", "username", "password", "api_key", "phases"}
    assert "served" not in body
    assert body["errors"] == []


def test_the_document_with_bots_tells_what_was_served_in_time_order(tmp_path):
    record = Record()
    record.add(Served(2.0, "bot-2", 8, 0.2, "v", "b"))
    record.add(Served(1.0, "bot-1", 9, None, None, None))
    record.add(BotError(3.0, "bot-1", "next task", 500, "oops"))
    path = tmp_path / "sub" / "out.json"
    outcome(record=record, curve=(CurvePoint(2, 0.5, "v"),)).write(path)
    body = json.loads(path.read_text())
    assert body["served"] == [
        {"bot": "bot-1", "task": 9, "score": None, "version": None, "label": None},
        {"bot": "bot-2", "task": 8, "score": 0.2, "version": "v", "label": "b"},
    ]
    assert body["curve"] == [{"labels": 2, "accuracy": 0.5, "version": "v"}]
    assert body["errors"][0]["status"] == 500
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_processes_that_failed_are_errors_too():
    assert [e.what for e in outcome(troubles=(BotError(0.0, "-", "run web", None, "x"),)).errors] == ["run web"]


def test_the_announcement_says_where_how_and_what_to_press():
    text = announcement(outcome(), 1797)
    for word in (
        "http://127.0.0.1:1/projects/3/data",
        "u",
        "p",
        "Label All Tasks",
        "1,797",
        "http://127.0.0.1:2/status",
        ". /data/backend.env; .venv/bin/askfirst doctor --project 3",
    ):
        assert word in text


# ---------------------------------------------------------------------- environments
@pytest.fixture
def services(tmp_path):
    return Services(Supervisor(), Home(tmp_path), port=18298, backend_port=18299)


def test_variables_of_the_user_reach_the_backend_except_addresses_and_folders(services, tmp_path):
    inherited = {
        "ASKFIRST_SPRINT_MIN": "50",
        "START_TRAINING_EACH_N_UPDATES": "5",
        "ASKFIRST_SEED": "7",
        "MODEL_DIR": "/else",
        "LABEL_STUDIO_HOST": "http://else",
        "REDIS_URL": "redis://else",
    }
    env = services.backend_environment(inherited, api_key="key")
    assert env["ASKFIRST_SPRINT_MIN"] == "50"
    assert env["START_TRAINING_EACH_N_UPDATES"] == "5"
    assert env["ASKFIRST_SEED"] == "7"
    assert env["MODEL_DIR"] == str(tmp_path / "models")
    assert "LABEL_STUDIO_HOST" not in env
    assert "REDIS_URL" not in env
    assert env["HOST"] == "127.0.0.1"


def test_options_of_the_command_win_over_variables(services):
    env = services.backend_environment(
        {"ASKFIRST_SEED": "7", "ASKFIRST_STRATEGY": "margin"}, api_key="key", seed=3, strategy="random"
    )
    assert (env["ASKFIRST_SEED"], env["ASKFIRST_STRATEGY"]) == ("3", "random")


def test_the_backend_accepts_the_environment_it_is_given(services):
    from backend.settings import Settings

    settings = Settings.from_env(services.backend_environment({}, api_key="key"))
    assert settings.label_studio_url == services.url
    assert settings.url_for_label_studio == services.backend_url


def test_there_is_a_redis_server_that_can_be_run():
    assert os.access(redis_executable(), os.X_OK)


@pytest.mark.parametrize(
    ("fast", "slow", "expected"),
    [
        (True, True, {"fast", "tick", "slow", "train"}),
        (True, False, {"fast", "tick"}),
        (False, True, {"slow", "train"}),
    ],
)
def test_the_clock_runs_with_the_fast_worker(fast, slow, expected):
    assert set(roles(fast=fast, slow=slow)) == expected


# ---------------------------------------------------------------------- signals
def test_the_first_signal_ends_the_block_and_a_second_one_only_hurries():
    hurried = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with turned_into_exceptions(on_second=lambda: hurried.append(1)):
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # while things are being cleaned up

    with pytest.raises(Interrupted) as caught:
        work()
    assert caught.value.number == signal.SIGTERM
    assert hurried == [1]
    assert signal.getsignal(signal.SIGTERM) is before
