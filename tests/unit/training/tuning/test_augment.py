"""Views of a picture depend on their own generator and on nothing else."""

import numpy as np
import pytest
import torch

from training.tuning import augment

SIDE = 40


@pytest.fixture
def picture():
    """With a mask that marks the brightest pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, SIDE, SIDE)).astype(np.uint8)
    pixels[:] = 10
    pixels[:, 12:28, 6:20] = 240
    pixels[3] = np.where(pixels[0] > 100, 255, 0)
    return torch.from_numpy(pixels)


def all_views(picture, seed):
    rng = np.random.default_rng(seed)
    view = augment.light(picture, 32, rng, "both", 0.6)
    return augment.cutout(augment.randaugment(view, rng), rng)


def test_the_same_generator_gives_the_same_view_whatever_torch_draws(picture):
    first = [all_views(picture, seed) for seed in range(20)]
    torch.manual_seed(99)
    again = [all_views(picture, seed) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({view.numpy().tobytes() for view in first}) > 15


@pytest.mark.parametrize("operation", range(len(augment._OPS)))
@pytest.mark.parametrize("amount", [-1.0, -0.3, 0.3, 1.0])
def test_operations_keep_shape_and_type_and_colours_leave_the_mask_alone(picture, operation, amount):
    changed = augment._OPS[operation](picture, amount)
    assert changed.shape == picture.shape and changed.dtype == torch.uint8
    moves = 1 <= operation <= 5
    assert torch.equal(changed[3], picture[3]) is not moves
    assert torch.equal(augment._OPS[operation](picture[:3], amount), changed[:3])


def test_a_mask_goes_where_its_pixels_go(picture):
    for seed in range(30):
        view = augment.light(picture, SIDE, np.random.default_rng(seed), "both", 0.5)
        inside, outside = view[3] > 250, view[3] < 5
        assert inside.any() and (view[0][inside] > 225).all() and (view[0][outside] < 25).all()


def test_pictures_are_flipped_only_where_that_is_allowed(picture):
    picture = picture.clone()
    picture[:, :, : SIDE // 2] = 0
    picture[:, :, SIDE // 2 :] = 200
    views = [augment.light(picture, 8, np.random.default_rng(seed), "none", 1.0) for seed in range(30)]
    assert all(view[0, 4, -1] > view[0, 4, 0] for view in views)
    views = [augment.light(picture, 8, np.random.default_rng(seed), "horizontal", 1.0) for seed in range(30)]
    assert 5 < sum(bool(view[0, 4, -1] < view[0, 4, 0]) for view in views) < 25


def test_a_whole_view_is_the_picture_itself_at_its_own_size(picture):
    assert augment.whole(picture, SIDE) is picture
    assert augment.whole(picture, 16).shape == (4, 16, 16)


def test_a_cut_out_square_is_grey_and_leaves_the_mask(picture):
    view = augment.cutout(picture, np.random.default_rng(1))
    assert (view[:3] == 128).any() and torch.equal(view[3], picture[3])
    assert not (picture[:3] == 128).any()
