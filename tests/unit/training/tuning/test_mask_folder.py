"""Masks in a folder, by the names of the images."""

import numpy as np
import pytest
from PIL import Image

from training.tuning.mask_folder import MaskFolder, image_stem


@pytest.mark.parametrize(
    "uri",
    [
        "/data/upload/3/0a1b2c3d-lesion7.jpg",
        "/data/local-files/?d=skin/set%201/lesion7.png",
        "https://bucket.example/a/lesion7.jpeg?X-Amz-Signature=ab",
        "s3://bucket/lesion7.jpg",
        "lesion7.jpg",
        "/images/lesion7",
    ],
)
@pytest.mark.parametrize("name", ["lesion7.png", "lesion7_segmentation.png", "lesion7_mask.tif"])
def test_a_mask_belongs_to_the_image_of_its_name_wherever_that_lies(uri, name, tmp_path):
    drawn = np.zeros((4, 6), np.uint8)
    drawn[1:3, 2:5] = 255
    Image.fromarray(drawn).save(tmp_path / name)
    masks = MaskFolder(tmp_path, {5: uri, 6: "other.jpg"})
    assert masks(6) is None
    assert masks(5).tolist() == (drawn / 255).tolist() and masks.read == {5}


@pytest.mark.parametrize("light", [1, 7, 255])
def test_a_mask_of_small_numbers_is_as_good_as_a_white_one(light, tmp_path):
    Image.fromarray(np.array([[0, light], [0, 0]], np.uint8)).save(tmp_path / "a.png")
    assert MaskFolder(tmp_path, {1: "a.jpg"})(1).tolist() == [[0, 1], [0, 0]]


def test_names_are_read_as_people_write_them():
    assert image_stem("https://h.example/a%20b/c%20d.final.jpg") == "c d.final"


def test_what_cannot_be_read_or_shows_nothing_is_no_mask(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "b.png")
    masks = MaskFolder(tmp_path, {1: "a.jpg", 2: "b.jpg"})
    assert masks(1) is None and masks(2) is None and not masks.read


def test_a_folder_that_is_not_there_has_no_masks(tmp_path):
    assert MaskFolder(tmp_path / "gone", {1: "a.jpg"})(1) is None


def test_of_two_files_of_one_name_the_lossless_one_counts(tmp_path):
    for suffix, side in (("jpg", 3), ("png", 2)):
        Image.fromarray(np.full((side, side), 255, np.uint8)).save(tmp_path / f"a.{suffix}")
    assert MaskFolder(tmp_path, {1: "a.jpg"})(1).shape == (2, 2)
