"""A run in two processes is the run of one, with everything that its caller may ask of it."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.backbones import BackboneSpec, resolve
from training.errors import DataError, ProcessKilled, TrainingDiverged, TrainingError
from training.tuning import CANCELLED, Examples, HeadSpec, Pictures, Teacher, Untrained, loop, tune
from training.tuning.net import TunedNet
from training.tuning.processes import in_processes

ROOT = Path(__file__).resolve().parents[4]
DIGIT = HeadSpec("digit", "single", tuple("0123456789"))


LEARNER = Untrained("shufflenet_v2_x0_5", 32)


@pytest.fixture
def two(settings):
    """Parts of 13 and 12 pictures in each of three steps an epoch."""
    return replace(settings, devices=2, epochs=2)


@pytest.fixture
def alike(two):
    """What is the same on one device: dropout, and statistics of batch norms, are other ones in each process."""
    return replace(two, batch_norm="frozen", held_out=0.0)


def apart(a, b):
    """Largest difference between any two weights."""
    assert a.state.keys() == b.state.keys()
    return max(float((a.state[name] - b.state[name]).abs().max()) for name in a.state if a.state[name].numel())


def same_losses(a, b):
    """The losses of a step are added up with its gradients."""
    told = [[(e.loss or 0, e.held_out or 0) for e in tuned.history] for tuned in (a, b)]
    return np.allclose(*told, atol=1e-4)


def test_two_processes_learn_what_one_does(labelled, pictures, alike, tmp_path, monkeypatch):
    """Also with mixed pictures, whose halves are shown to different processes, FixMatch and a teacher; with a folder
    that is named from where one stands, as the default one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pool = Examples(np.arange(100, 160), {}, {})
    teacher = Teacher(np.arange(50, 150), {"digit": rng.dirichlet(np.ones(10), 100).astype(np.float32)})
    settings = replace(alike, fixmatch=True, fixmatch_threshold=0.05)
    steps, epochs = [], []
    told = {"on_step": steps.append, "on_epoch": epochs.append, "folder": Path("here")}
    one, other, both = (
        tune(LEARNER, [DIGIT], labelled, pictures, replace(settings, **changes), pool=pool, teacher=teacher, **more)
        for changes, more in (({"devices": 1}, {}), ({"devices": 1, "seed": 1}, {}), ({}, told))
    )
    assert apart(one, both) < 1e-4 < 1e-3 < apart(one, other) and same_losses(one, both)
    assert [(step.epoch, step.step) for step in steps] == [(e, s) for e in (1, 2) for s in (1, 2, 3, 4)]
    assert tuple(epochs) == both.history and len(epochs) == 3
    assert both.reason == one.reason and both.best_epoch == one.best_epoch


def test_a_trained_network_is_tuned_by_two_as_by_one(labelled, pictures, two, tmp_path):
    """Heads are fitted, epochs measured and weights mixed by the first process alone; first layers stay frozen."""
    first = {
        "epochs": 12,
        "batch_size": 16,
        "augmentation": "none",
        "ema_decay": 0.9,
        "lr_trunk": 0.01,
        "lr_head": 0.01,
    }
    two = replace(two, mixing="none")
    made = tune(LEARNER, [DIGIT], labelled, pictures, replace(two, devices=1, **first))
    start = resolve(BackboneSpec(LEARNER.name, str(made.save(tmp_path))), tmp_path)
    one, both = (tune(start, [DIGIT], labelled, pictures, replace(two, devices=devices)) for devices in (1, 2))
    assert one.best_epoch == both.best_epoch == 2 and one.start_share == both.start_share > 0
    assert apart(one, both) < 1e-4 < 1e-3 < apart(one, made) and same_losses(one, both)
    assert both.temperatures == pytest.approx(one.temperatures)


def test_a_process_may_have_no_picture_of_a_step(labelled, pictures, alike):
    few = labelled.take(np.arange(3))
    one, both = (
        tune(LEARNER, [DIGIT], few, pictures, replace(alike, devices=devices, batch_size=1, mixing="none"))
        for devices in (1, 2)
    )
    assert apart(one, both) < 1e-4 and same_losses(one, both)


def test_one_process_may_be_short_of_memory(labelled, pictures, alike):
    one = tune(LEARNER, [DIGIT], labelled, pictures, replace(alike, devices=1))
    both = with_two(short_of_memory, alike, labelled, pictures)
    assert apart(one, both) < 1e-4 and same_losses(one, both)


def test_a_run_that_was_stopped_goes_on(labelled, start, two, digits, tmp_path):
    """With pictures that lie in a file."""
    images, _ = digits
    pictures = Pictures.decoded(np.arange(100), lambda i: _png(images[i]), 36, folder=tmp_path / "pictures")
    runs = []
    for _ in range(2):
        seen = []
        runs.append(
            tune(
                *(start, [DIGIT], labelled, pictures, replace(two, epochs=10**4, patience=0)),
                folder=tmp_path,
                on_epoch=seen.append,
                should_stop=lambda seen=seen: len(seen) > 2,
            )
        )
    first, second = runs
    assert first.reason == second.reason == CANCELLED
    kept = len(first.history)
    assert 3 <= kept < len(second.history) and second.history[:kept] == first.history


def test_an_error_of_one_process_is_that_of_the_run(labelled, pictures, start, two):
    with pytest.raises(TrainingDiverged, match="Lower lr_trunk and lr_head"):
        tune(start, [DIGIT], labelled, pictures, replace(two, lr_trunk=1e30, lr_head=1e30, clip_norm=1e30))


def test_an_error_that_nobody_foresaw_is_told_and_ends_all(labelled, pictures, two):
    """Not that of the others, which lost their peer."""
    with pytest.raises(TrainingError, match=r"^OSError: .*No space left on device"):
        with_two(disk_full, two, labelled, pictures)
    assert not _children()


def test_a_process_that_is_killed_ends_the_run_and_the_other(labelled, pictures, start, two):
    killed = []

    def kill(step):
        if not killed:
            killed.extend(_children())
            os.kill(killed[-1], signal.SIGKILL)

    with pytest.raises(ProcessKilled, match=r"one of the 2 processes .* \(SIGKILL\)"):
        tune(start, [DIGIT], labelled, pictures, replace(two, epochs=1000), on_step=kill)
    assert len(killed) == 2 and not _children()


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Killed, not stopped, and with signals as RQ leaves them to the process of a job."""
    script = """
import signal
import numpy as np
from training.tuning import Examples, HeadSpec, Pictures, TuneSettings, Untrained, tune
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    assert len(started) == 2 and not any(_alive(pid) for pid in started)


def test_more_gpus_than_there_are_is_said_before_anything_starts(labelled, pictures, start, two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DataError, match="on 2 GPUs, and there are 1: ask for no more"):
        tune(start, [DIGIT], labelled, pictures, replace(two, accelerator="auto"))


def test_pictures_that_are_decoded_on_demand_are_refused_in_words(labelled, start, two, digits):
    images, _ = digits
    pictures = Pictures.decoded(np.arange(100), lambda i: _png(images[i]), 36, budget_bytes=1)
    with pytest.raises(DataError, match="decoded on demand"):
        tune(start, [DIGIT], labelled, pictures, two)


# ---------------------------------------------------------------------- what happens in the processes
def with_two(run, settings, labelled, pictures):
    """`run` in two processes, in place of the loop."""
    given = {"start": LEARNER, "heads": [DIGIT], "labelled": labelled, "pictures": pictures}
    return in_processes(
        run, settings, None, lambda step: None, lambda epoch: None, lambda: False, **given, pool=None, teacher=None
    )


def short_of_memory(**given):
    """The loop, whose second process has no memory for its first part."""
    forward, asked = TunedNet.forward, []

    def starved(*args):
        asked.append(args)
        if os.environ["LOCAL_RANK"] == "1" and len(asked) == 1:
            raise MemoryError
        return forward(*args)

    TunedNet.forward = starved
    return loop._run(**given)


def disk_full(**given):
    """The loop, whose first process cannot write what it measured."""

    def write(epoch):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return loop._run(**given | ({"on_epoch": write} if os.environ["LOCAL_RANK"] == "0" else {}))


def _png(image):
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
