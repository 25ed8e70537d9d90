"""A run in two processes is the run of one, with everything that its caller may ask of it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.errors import DataError, TrainingDiverged, TrainingError
from training.tuning import CANCELLED, Examples, HeadSpec, Pictures, Teacher, Untrained, tune

ROOT = Path(__file__).resolve().parents[4]
DIGIT = HeadSpec("digit", "single", tuple("0123456789"))


@pytest.fixture
def two(settings):
    """Parts of 13 and 12 pictures in each of three steps an epoch."""
    return replace(settings, devices=2, epochs=2)


def apart(a, b):
    """Largest difference between any two weights."""
    assert a.state.keys() == b.state.keys()
    return max(float((a.state[name] - b.state[name]).abs().max()) for name in a.state if a.state[name].numel())


def test_two_processes_learn_what_one_does(labelled, pictures, start, two, tmp_path):
    """Also with mixed pictures, whose halves are shown to different processes, a teacher, and pictures on disk."""
    rng = np.random.default_rng(0)
    pool = Examples(np.arange(100, 160), {}, {})
    teacher = Teacher(np.arange(50, 150), {"digit": rng.dirichlet(np.ones(10), 100).astype(np.float32)})
    # Dropout and the statistics of a part of a step are other ones in each process.
    start = Untrained("shufflenet_v2_x0_5", 32)
    settings = replace(two, fixmatch=True, fixmatch_threshold=0.05, batch_norm="frozen", held_out=0.0)
    steps, epochs = [], []
    one = tune(start, [DIGIT], labelled, pictures, replace(settings, devices=1), pool=pool, teacher=teacher)
    other = tune(start, [DIGIT], labelled, pictures, replace(settings, devices=1, seed=1), pool=pool, teacher=teacher)
    both = tune(
        start,
        [DIGIT],
        labelled,
        pictures,
        settings,
        pool=pool,
        teacher=teacher,
        folder=tmp_path,
        on_step=steps.append,
        on_epoch=epochs.append,
    )
    assert apart(one, both) < 1e-4 < 1e-3 < apart(one, other)
    assert [(step.epoch, step.step) for step in steps] == [(e, s) for e in (1, 2) for s in (1, 2, 3, 4)]
    assert tuple(epochs) == both.history and len(epochs) == 3
    for ours, theirs in zip(both.history, one.history, strict=True):
        assert ours.loss == (None if theirs.loss is None else pytest.approx(theirs.loss, abs=1e-4))
    assert both.reason == one.reason and both.best_epoch == one.best_epoch


def test_a_run_that_was_stopped_goes_on(labelled, start, two, digits, tmp_path):
    images, _ = digits
    encoded = [np.ascontiguousarray(image) for image in images[:100]]
    pictures = Pictures.decoded(np.arange(100), lambda i: _png(encoded[i]), 36, folder=tmp_path / "pictures")
    seen = []
    given = start, [DIGIT], labelled, pictures, replace(two, epochs=3)
    stopped = tune(*given, folder=tmp_path, on_epoch=seen.append, should_stop=lambda: len(seen) > 1)
    again = tune(*given, folder=tmp_path)
    assert stopped.reason == CANCELLED and again.reason != CANCELLED
    kept = len(stopped.history)
    assert 2 <= kept < len(again.history) == 4 and again.history[:kept] == stopped.history


def test_an_error_of_one_process_is_that_of_the_run(labelled, pictures, start, two):
    with pytest.raises(TrainingDiverged, match="Lower lr_trunk and lr_head"):
        tune(start, [DIGIT], labelled, pictures, replace(two, lr_trunk=1e30, lr_head=1e30, clip_norm=1e30))


def test_a_process_that_is_killed_ends_the_run_and_the_other(labelled, pictures, start, two):
    def kill(step):
        others = _children()
        assert len(others) >= 2
        os.kill(others[-1], signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"one of 2 processes .* \(SIGKILL\)"):
        tune(start, [DIGIT], labelled, pictures, replace(two, epochs=1000), on_step=kill)
    assert not _children()


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Killed, not stopped: as a worker whose job ran out of time."""
    script = """
import numpy as np
from training.tuning import Examples, HeadSpec, Pictures, TuneSettings, Untrained, tune
if __name__ == "__main__":
    rng = np.random.default_rng(0)
    pictures = Pictures.of_array(np.arange(40), rng.integers(0, 255, (40, 36, 36, 3), np.uint8))
    settings = TuneSettings(devices=2, threads=1, accelerator="cpu", precision="32", epochs=10**6, held_out=0.0)
    examples = Examples(np.arange(40), {"a": np.arange(40) % 2}, {})
    tune(Untrained("squeezenet1_1", 32), [HeadSpec("a", "single", ("0", "1"))], examples, pictures, settings,
         on_step=lambda step: print("step", flush=True))
"""
    (tmp_path / "run.py").write_text(script)
    with_root = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "run.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=with_root) as run:
        assert run.stdout is not None and run.stdout.readline() == "step\n"
        started = _children(run.pid)
        run.kill()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started and not any(_alive(pid) for pid in started)


def test_more_gpus_than_there_are_is_said_before_anything_starts(labelled, pictures, start, two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DataError, match="on 2 GPUs, and there are 1; ask for 1 at most"):
        tune(start, [DIGIT], labelled, pictures, replace(two, accelerator="auto"))


def test_pictures_that_are_decoded_on_demand_are_refused_in_words(labelled, start, two, digits):
    images, _ = digits
    pictures = Pictures.decoded(np.arange(100), lambda i: _png(images[i]), 36, budget_bytes=1)
    with pytest.raises(DataError, match="decoded on demand"):
        tune(start, [DIGIT], labelled, pictures, two)


def _png(image):
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _children(pid=None):
    tasks = Path(f"/proc/{pid or os.getpid()}/task")
    found = {int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()}
    return sorted(child for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text())


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
