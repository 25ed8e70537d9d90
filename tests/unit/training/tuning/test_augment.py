"""Views of a picture depend on their own generator and on nothing else."""

import math

import numpy as np
import pytest
import torch

from training.torchvision_ops import functional as T
from training.tuning import augment

SIDE = 40


@pytest.fixture
def picture():
    """With a mask that marks the brightest pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 20, (SIDE, SIDE, 4)).astype(np.uint8)
    pixels[12:28, 6:20] += 220
    pixels[..., 3] = np.where(pixels[..., 0] > 100, 255, 0)
    return pixels


def all_views(picture, seed):
    rng = np.random.default_rng(seed)
    view = augment.light(augment.as_image(picture), 32, rng, "both", 0.6)
    return augment.cutout(np.asarray(augment.randaugment(view, rng)), rng)


def test_the_same_generator_gives_the_same_view_whatever_torch_draws(picture):
    first = [all_views(picture, seed) for seed in range(20)]
    torch.manual_seed(99)
    again = [all_views(picture, seed) for seed in range(20)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert len({view.tobytes() for view in first}) > 15


@pytest.mark.parametrize("operation", range(len(augment._OPS)))
@pytest.mark.parametrize("amount", [-1.0, -0.3, 0.3, 1.0])
def test_operations_keep_shape_and_type_and_colours_leave_the_mask_alone(picture, operation, amount):
    changed = changed_by(operation, picture, amount)
    assert changed.shape == picture.shape and changed.dtype == np.uint8
    moves = 1 <= operation <= 5
    assert (changed[..., 3] == picture[..., 3]).all() != moves
    assert (changed_by(operation, picture[..., :3], amount) == changed[..., :3]).all()


def changed_by(operation, picture, amount):
    return np.asarray(augment._OPS[operation](augment.as_image(picture), amount))


@pytest.mark.parametrize("operation", range(len(augment._OPS)))
@pytest.mark.parametrize("amount", [-0.3, 0.3])
def test_operations_are_those_of_torchvision_on_tensors(picture, operation, amount):
    """The same names on tensors, but for what comes in at the edges and the rounding of pixels."""
    tensor = torch.from_numpy(picture[..., :3]).permute(2, 0, 1)
    shear = math.degrees(math.atan(0.3)) * amount
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    shift = round(150 / 331 * SIDE * amount)
    moved = {1: {"shear": [shear, 0.0]}, 2: {"shear": [0.0, shear]}, 5: {"angle": 30 * amount}}
    moved |= {3: {"translate": [shift, 0]}, 4: {"translate": [0, shift]}}
    factor = 1 + 0.9 * amount
    coloured = {
        0: lambda x: x,
        6: lambda x: T.adjust_brightness(x, factor),
        7: lambda x: T.adjust_saturation(x, factor),
        8: lambda x: T.adjust_contrast(x, factor),
        9: lambda x: T.adjust_sharpness(x, factor),
        10: lambda x: T.posterize(x, 8 - round(4 * abs(amount))),
        11: lambda x: T.solarize(x, 255.0 * (1 - abs(amount))),
        12: T.autocontrast,
        13: T.equalize,
    }
    if operation in moved:
        options = still | moved[operation]
        expected = T.affine(tensor, interpolation=T.InterpolationMode.BILINEAR, fill=[128.0] * 3, **options)
    else:
        expected = coloured[operation](tensor)
    off = np.abs(changed_by(operation, picture[..., :3], amount).astype(int) - expected.permute(1, 2, 0).numpy())
    if operation == 13:  # tensors are equalised by other rounding of the histogram's steps
        assert off.mean() < 8
    else:
        inside = off[6:-6, 6:-6] if operation in moved and operation not in (3, 4) else off
        assert np.quantile(inside, 0.95) <= 3


def test_a_mask_goes_where_its_pixels_go(picture):
    for seed in range(30):
        view = light(picture, SIDE, seed, "both", 0.5)
        inside, outside = view[..., 3] > 250, view[..., 3] < 5
        assert inside.any() and (view[..., 0][inside] > 215).all() and (view[..., 0][outside] < 30).all()


def light(picture, size, seed, flips, crop_scale):
    return np.asarray(augment.light(augment.as_image(picture), size, np.random.default_rng(seed), flips, crop_scale))


def test_pictures_are_flipped_only_where_that_is_allowed(picture):
    picture = picture.copy()
    picture[:, : SIDE // 2] = 0
    picture[:, SIDE // 2 :] = 200
    views = [light(picture, 8, seed, "none", 1.0) for seed in range(30)]
    assert all(view[4, -1, 0] > view[4, 0, 0] for view in views)
    views = [light(picture, 8, seed, "horizontal", 1.0) for seed in range(30)]
    assert 5 < sum(bool(view[4, -1, 0] < view[4, 0, 0]) for view in views) < 25


def test_a_whole_view_is_the_picture_itself_at_its_own_size(picture):
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    assert augment.whole(tensor, SIDE) is tensor
    assert augment.whole(tensor, 16).shape == (4, 16, 16)


def test_a_cut_out_square_is_grey_and_leaves_the_mask(picture):
    view = augment.cutout(picture, np.random.default_rng(1))
    assert (view[..., :3] == 128).any() and (view[..., 3] == picture[..., 3]).all()
    assert not (picture[..., :3] == 128).any()
