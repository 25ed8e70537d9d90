"""What `askfirst doctor --project` says of a project that is not there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from backend import doctor
from backend.errors import LabelStudioRejected
from backend.settings import Settings


def report(monkeypatch, tmp_path, project):
    monkeypatch.setattr(doctor, "_general", lambda *_: iter(()))
    monkeypatch.setattr(doctor, "_of_project", lambda *_: iter([("sampling", lambda: "fine")]))
    workshop = SimpleNamespace(ls=SimpleNamespace(project=project))
    return doctor._all(Settings.from_env({"MODEL_DIR": str(tmp_path)}), workshop, None, 999)


def test_a_project_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    def project(number):
        raise LabelStudioRejected("show the project", 404, '{"detail": "No Project matches"}')

    (check,) = report(monkeypatch, tmp_path, project)
    assert not check.ok and "no project 999" in check.message and "{" not in check.message


def test_of_one_that_is_there_everything_else_is_looked_at(monkeypatch, tmp_path):
    checks = report(monkeypatch, tmp_path, lambda number: SimpleNamespace(title="Cats", task_count=3))
    assert [(c.name, c.ok) for c in checks] == [("project", True), ("sampling", True)]


def test_a_labelling_config_that_cannot_be_served_is_the_last_line_because_the_others_would_follow_from_it(
    monkeypatch, tmp_path
):
    project = SimpleNamespace(title="Cats", task_count=3, label_config='<View><Text name="t" value="$t"/></View>')
    monkeypatch.setattr(doctor, "_general", lambda *_: iter(()))
    workshop = SimpleNamespace(ls=SimpleNamespace(project=lambda number: project))
    checks = doctor._all(Settings.from_env({"MODEL_DIR": str(tmp_path)}), workshop, None, 7)
    assert [(c.name, c.ok) for c in checks] == [("project", True), ("labelling config", False)]


@pytest.mark.parametrize(
    ("content", "backbone", "said"),
    [(b"no weights", "mobilenet_v2", "not a file of tensors"), (b"", "nosuchnet", "unknown backbone")],
)
def test_weights_are_opened_and_not_only_looked_for(tmp_path, content, backbone, said):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    env = {"ASKFIRST_WEIGHTS": str(path), "ASKFIRST_BACKBONE": backbone, "MODEL_DIR": str(tmp_path)}
    check = doctor._guarded("representation", lambda: doctor._weights(Settings.from_env(env)))
    assert not check.ok and said in check.message and "ASKFIRST_BACKBONE" in check.message


@pytest.mark.parametrize(
    ("files", "mixing", "ok", "said"),
    [
        (["a.png", "b.TIF", "note.txt"], "cutmix-object", True, "2 images"),
        (["note.txt"], "cutmix-object", False, "holds no image"),
        (["a.png"], "none", False, "looks at no mask: set it to cutmix-object or saliency"),
        (None, "saliency", False, "not a folder"),
    ],
)
def test_masks_that_would_do_nothing_are_told(tmp_path, files, mixing, ok, said):
    folder = tmp_path / "masks"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_bytes(b"")
    check = doctor._guarded("masks", lambda: doctor._masks(folder, mixing))
    assert check.ok is ok and said in check.message


def test_devices_are_counted_before_a_run_wants_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "one is faster" in doctor._guarded("devices", lambda: doctor._devices(1)).message
    assert "cores: ask for no more" in doctor._guarded("devices", lambda: doctor._devices(1000)).message
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert doctor._guarded("devices", lambda: doctor._devices(2)).ok
    check = doctor._guarded("devices", lambda: doctor._devices(4))
    assert (
        not check.ok and "ASKFIRST_TUNE_DEVICES=4" in check.message and "there are 2: ask for no more" in check.message
    )


@pytest.mark.parametrize("status", [401, 403])
def test_another_refusal_is_told_as_it_is(monkeypatch, tmp_path, status):
    def project(number):
        raise LabelStudioRejected("show the project", status, "not you")

    (check,) = report(monkeypatch, tmp_path, project)
    assert not check.ok and "not you" in check.message


@pytest.mark.parametrize(("count", "ending"), [(8, "c7)"), (9, "c7 and 1 more)"), (30, "c7 and 22 more)")])
def test_classes_that_are_not_named_are_counted(count, ending):
    choices = "".join(f'<Choice value="c{i}"/>' for i in range(count))
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="label" toName="image" choice="single">{choices}</Choices></View>'
    )
    ls = SimpleNamespace(project=lambda number: SimpleNamespace(label_config=config))
    assert doctor._config(ls, 1).partition(";")[0] == f"served: {count} classes (c0, c1, c2, c3, c4, c5, c6, {ending}"
