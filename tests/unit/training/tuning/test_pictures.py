"""Pictures are decoded once; what cannot be read is told and left out."""

import io

import numpy as np
import pytest
from PIL import Image

from training.errors import DataError
from training.images import decode
from training.tuning import Pictures, side_for


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 60, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


FILES = {example: jpeg(example) for example in range(6)}


@pytest.mark.parametrize("options", [{}, {"folder": True}, {"budget_bytes": 100}], ids=["memory", "file", "on demand"])
def test_a_picture_is_what_the_decoder_gives_wherever_it_is_kept(options, tmp_path):
    if "folder" in options:
        options = {"folder": tmp_path}
    pictures = Pictures.decoded([4, 0, 2], FILES.__getitem__, 24, **options)
    for example in (0, 2, 4):
        assert (pictures.get(example) == decode(FILES[example], 24)).all()
    assert pictures.readable(np.array([0, 1, 4])).tolist() == [True, False, True]
    assert list(tmp_path.iterdir()) == []  # a mapped file has no name, so a killed run leaves nothing


def test_what_cannot_be_read_is_told_and_costs_nobody_else(tmp_path):
    files = {1: FILES[1], 2: b"no picture", 3: FILES[3]}
    pictures = Pictures.decoded([1, 2, 3, 9], files.__getitem__, 24)
    assert set(pictures.unreadable) == {2, 9} and "KeyError" in pictures.unreadable[9]
    assert pictures.readable(np.array([1, 2, 3, 9])).tolist() == [True, False, True, False]
    with pytest.raises(DataError, match="example 2: not a picture"):
        pictures.get(2)


def test_a_mask_is_the_given_one_or_else_the_saliency():
    given = np.zeros((12, 12), np.float32)
    given[:6] = 1
    pictures = Pictures.decoded([0, 1], FILES.__getitem__, 24, masks=lambda example: given if example else None)
    assert pictures.channels == 4
    assert (pictures.get(1)[:10, :, 3] == 255).all() and (pictures.get(1)[14:, :, 3] == 0).all()
    salient = Pictures.decoded([0], FILES.__getitem__, 24, with_masks=True)
    assert (pictures.get(0) == salient.get(0)).all() and pictures.get(0)[..., 3].max() == 255


def test_decoding_can_be_stopped():
    asked = iter([False, True, True, True, True, True])
    pictures = Pictures.decoded(range(6), FILES.__getitem__, 8, threads=1, should_stop=lambda: next(asked))
    assert len(pictures.unreadable) == 5 and "stopped" in pictures.unreadable[5]


def test_arrays_of_another_form_are_refused():
    with pytest.raises(DataError, match="uint8"):
        Pictures.of_array([0], np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(DataError, match="2 ids came with 1"):
        Pictures.of_array([0, 1], np.zeros((1, 8, 8, 3), np.uint8))


def test_pictures_are_kept_a_little_larger_than_the_input():
    assert side_for(224) == 258
