"""The demo's folder and its files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from askfirst import files
from askfirst.errors import DataDirProblem
from askfirst.files import explained_disk_errors, natural_key, only_user, require_free_space, write_atomic
from askfirst.home import Home
from askfirst.processes import package_path


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "demo")
    home.prepare()
    return home


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_second_start_finds_the_credentials_and_projects_of_the_first(home):
    first = home.recall()
    home.remember(first.with_project("/pics#label", 7))
    again = Home(home.root).recall()
    assert again.password == first.password
    assert again.projects == {"/pics#label": 7}


def test_credentials_can_be_read_by_their_owner_alone(home):
    home.recall()
    assert mode(home.root / "demo.json") == 0o600
    assert mode(home.label_studio) == mode(home.models) == 0o700


def test_two_demos_have_different_passwords(tmp_path):
    one, two = Home(tmp_path / "1"), Home(tmp_path / "2")
    for home in (one, two):
        home.prepare()
    assert one.recall().password != two.recall().password
    assert len(one.recall().password) >= 12  # Label Studio wants eight


def test_a_lost_memory_beside_a_data_base_stops_and_changes_nothing(home):
    (home.label_studio / "label_studio.sqlite3").write_bytes(b"x")
    with pytest.raises(DataDirProblem, match=r"demo\.json is missing.*--data-dir"):
        home.recall()
    assert not (home.root / "demo.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"username": "x"}', '{"unknown": 1}'])
def test_a_damaged_memory_stops_and_changes_nothing(home, text):
    (home.root / "demo.json").write_text(text)
    with pytest.raises(DataDirProblem, match="damaged"):
        home.recall()
    assert (home.root / "demo.json").read_text() == text


def test_a_folder_of_images_is_linked_not_copied_and_always_under_the_same_name(home, tmp_path):
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    name = home.link(pictures)
    assert home.link(pictures) == name
    assert (home.files / name).resolve() == pictures.resolve()
    assert name.startswith("my-pictures-")


def test_folders_of_the_same_name_have_different_links(home, tmp_path):
    for parent in "ab":
        (tmp_path / parent / "images").mkdir(parents=True)
    assert home.link(tmp_path / "a" / "images") != home.link(tmp_path / "b" / "images")


def test_the_demos_own_pictures_need_no_link(home):
    (home.files / "digits").mkdir()
    assert home.link(home.files / "digits") == "digits"
    assert not (home.files / "digits").is_symlink()


# ---------------------------------------------------------------------- files
def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EACCES, "cannot be written"),
        (errno.EROFS, "cannot be written"),
    ],
)
def test_disk_errors_say_what_to_do(tmp_path, number, words):
    with pytest.raises(DataDirProblem, match=f"{words}.*--data-dir"), explained_disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(ConnectionResetError), explained_disk_errors(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_nearly_full_disk_is_told_before_the_start(tmp_path):
    with pytest.raises(DataDirProblem, match="MiB left"):
        require_free_space(tmp_path, 2**62)
    require_free_space(tmp_path, 1)


def test_a_folder_has_one_user_at_a_time_and_tells_who(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {package_path()!r})\n"
        "from pathlib import Path\nfrom askfirst.files import only_user\n"
        f"with only_user(Path({str(tmp_path)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DataDirProblem, match=rf"process {other.pid}\b"), only_user(tmp_path):
            pass
        other.kill()  # a hold ends with its process
    with only_user(tmp_path):
        pass


def test_numbers_in_names_sort_as_numbers():
    assert sorted(["10", "9", "a2", "a10", "a", "²"], key=natural_key) == ["a", "a2", "a10", "²", "9", "10"]
