"""Folders of images and CSVs of labels, as users have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from askfirst.errors import DataProblem
from askfirst.sources import read_folder, with_labels


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not looked into")
    return folder


def csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "truth.csv"
    path.write_text(text)
    return path


def test_a_folder_of_images_is_read_in_the_order_a_person_counts(tmp_path):
    data = read_folder(touch(tmp_path, "im10.png", "im9.PNG", "im1.jpeg", "notes.txt", ".hidden.png"))
    assert data.files == ("im1.jpeg", "im9.PNG", "im10.png")
    assert data.classes == ()
    assert data.truth == {}


def test_one_folder_per_class_gives_classes_and_truth_by_folder_name(tmp_path):
    data = read_folder(touch(tmp_path, "ant/1.jpg", "ant/2.jpg", "ant/3.jpg", "bee/1.jpg"))
    assert data.classes == ("ant", "bee")
    assert data.truth == {"ant/1.jpg": "ant", "ant/2.jpg": "ant", "ant/3.jpg": "ant", "bee/1.jpg": "bee"}


def test_classes_alternate_in_the_order_of_tasks(tmp_path):
    data = read_folder(touch(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg"))
    assert data.files == ("a/1.jpg", "b/1.jpg", "a/2.jpg", "a/3.jpg")


def test_images_beside_class_folders_make_it_a_flat_folder_and_say_so(tmp_path):
    data = read_folder(touch(tmp_path, "1.jpg", "a/2.jpg"))
    assert data.files == ("1.jpg",)
    assert "passed over: a" in data.notes[0]


def test_linked_folders_and_images_are_followed(tmp_path):
    real = touch(tmp_path / "real", "1.jpg")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "a").symlink_to(real)
    assert read_folder(tmp_path / "given").files == ("a/1.jpg",)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "nowhere", ["no folder", "--images"]),
        (lambda p: touch(p, "a.png") / "a.png", ["is a file", "--images"]),
        (lambda p: touch(p, "readme.txt"), ["no images", ".jpg"]),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(tmp_path, make, words):
    with pytest.raises(DataProblem) as caught:
        read_folder(make(tmp_path))
    assert all(word in str(caught.value) for word in words)


def test_images_one_level_too_deep_are_pointed_at(tmp_path):
    with pytest.raises(DataProblem, match=r"did you mean --images .*train"):
        read_folder(touch(tmp_path, "train/ants/1.jpg"))


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_names_that_are_not_text_are_passed_over_and_counted(tmp_path):
    touch(tmp_path, "good.png")
    try:
        open(os.fsencode(tmp_path) + b"/bad\xff.png", "wb").close()
    except OSError:
        pytest.skip("this file system refuses such names")
    data = read_folder(tmp_path)
    assert data.files == ("good.png",)
    assert "1 images" in data.notes[0]


# ---------------------------------------------------------------------- CSV
@pytest.fixture
def images(tmp_path):
    return read_folder(touch(tmp_path / "images", "a.png", "b.png", "c.png"))


def test_a_csv_names_the_control_the_classes_and_the_truth(tmp_path, images):
    data = with_labels(images, csv(tmp_path, "image,animal\na.png,dog\nb.png,cat\nc.png,dog\n"))
    assert data.control == "animal"
    assert data.classes == ("cat", "dog")
    assert data.truth == {"a.png": "dog", "b.png": "cat", "c.png": "dog"}
    assert data.notes == ()


@pytest.mark.parametrize("name", ["a.png", "a"])
def test_an_image_may_be_named_with_or_without_its_ending(tmp_path, images, name):
    assert with_labels(images, csv(tmp_path, f"image,animal\n{name},dog\n")).truth == {"a.png": "dog"}


def test_quotes_byte_order_mark_spaces_and_column_order_do_not_matter(tmp_path, images):
    path = csv(tmp_path, '\ufeffanimal , image\r\n"dog, big",a.png\r\n\r\n cat ,b.png\r\n')
    assert with_labels(images, path).truth == {"a.png": "dog, big", "b.png": "cat"}


def test_images_without_a_label_are_counted(tmp_path, images):
    data = with_labels(images, csv(tmp_path, "image,animal\na.png,dog\nb.png,\n"))
    assert data.truth == {"a.png": "dog"}
    assert data.notes[0].startswith("2 images have no label")


def test_a_csv_overrules_folder_names(tmp_path):
    data = read_folder(touch(tmp_path / "i", "x/1.png", "y/2.png"))
    changed = with_labels(data, csv(tmp_path, "image,kind\nx/1.png,p\n2.png,q\n"))
    assert changed.control == "kind"
    assert changed.truth == {"x/1.png": "p", "y/2.png": "q"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,animal\na.png,dog\n", ["first line", "'name,animal'", "image,NAME"]),
        ("image,animal,size\na.png,dog,big\n", ["first line", "One column"]),
        ("", ["first line", "image,NAME"]),
        ("image,animal\n", ["no label"]),
        ("image,animal\na.png\n", ["line 2", "1 cells"]),
        ("image,animal\na.png,dog,\n", ["line 2", "3 cells", "quotes"]),
        ('image,animal\na.png,"dog\n', ["line 2", "not CSV"]),
        ("image,animal\na.png,dog\nz.png,cat\ny.png,cat\n", ["2 of 3", "z.png", "y.png"]),
        ("image,animal\na.png,dog\na,cat\n", ["line 3", "'cat'", "'dog'"]),
    ],
)
def test_a_csv_that_cannot_be_used_is_explained(tmp_path, images, text, words):
    with pytest.raises(DataProblem) as caught:
        with_labels(images, csv(tmp_path, text))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_csv_a_folder_and_binary_data_are_explained(tmp_path, images):
    with pytest.raises(DataProblem, match="no file"):
        with_labels(images, tmp_path / "nowhere.csv")
    with pytest.raises(DataProblem, match="is a folder"):
        with_labels(images, tmp_path)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(DataProblem, match="UTF-8"):
        with_labels(images, tmp_path / "x.csv")


def test_a_file_name_that_two_folders_share_must_be_written_with_its_folder(tmp_path):
    data = read_folder(touch(tmp_path / "i", "x/1.png", "y/1.png"))
    with pytest.raises(DataProblem, match=r"x/1\.png, y/1\.png"):
        with_labels(data, csv(tmp_path, "image,kind\n1.png,p\n"))
    assert with_labels(data, csv(tmp_path, "image,kind\ny/1.png,p\n")).truth == {"y/1.png": "p"}
