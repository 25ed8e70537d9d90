"""Mixed pictures, and labels in proportion to what is left to be seen."""

import numpy as np
import pytest

from training.tuning.mixing import Box, cut_box, mix, object_share, partners

SIDE = 12


@pytest.fixture
def batch():
    rng = np.random.default_rng(3)
    return (
        rng.integers(0, 256, (6, SIDE, SIDE, 3)).astype(np.uint8),
        (rng.uniform(size=(6, SIDE, SIDE)) ** 4 * 255).astype(np.uint8),
    )


def naive_shares(before, after, masks, other):
    """By looking at each pixel of the mixed picture; (share by area, share by object)."""
    areas, objects = [], []
    for row, source in enumerate(other):
        area = a = b = 0.0
        for y in range(SIDE):
            for x in range(SIDE):
                pasted = (after[row, y, x] == before[source, y, x]).all() and source != row
                if pasted:
                    area += 1 / SIDE**2
                    b += masks[source, y, x]
                else:
                    a += masks[row, y, x]
        areas.append(area)
        objects.append(b / (a + b))
    return areas, objects


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("how", "which"), [("cutmix", 0), ("cutmix-object", 1), ("saliency", 0)])
def test_the_share_of_the_label_is_what_a_loop_over_the_pixels_counts(batch, how, which, seed):
    images, masks = batch
    other = np.array([3, 1, 5, 0, 2, 4])
    mixed, share = mix(images, masks, other, how, np.random.default_rng(seed))
    expected = np.array(naive_shares(images, mixed, masks, other)[which])
    assert share == pytest.approx(np.where(other == np.arange(6), 0, expected), abs=1e-6)
    assert (mixed[1] == images[1]).all()


def test_where_next_to_nothing_of_either_object_is_visible_the_area_decides():
    below, pasted = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    pasted[9, 9] = 255  # outside of the box
    assert object_share(below, pasted, Box(0, 5, 0, 4)) == pytest.approx(0.2)


def test_an_object_that_the_box_hides_gives_its_whole_label_away():
    below, pasted = np.zeros((10, 10), np.uint8), np.full((10, 10), 255, np.uint8)
    below[2:4, 2:4] = 255
    assert object_share(below, pasted, Box(0, 5, 0, 5)) == 1


def test_the_area_of_a_box_is_uniform_before_it_is_clipped():
    rng = np.random.default_rng(0)
    boxes = [cut_box(1000, rng, centre=(500, 500)) for _ in range(4000)]
    areas = np.sort([box.area_share(1000) for box in boxes])
    # The largest distance from the diagonal, which chance keeps below 1.63 / sqrt(n) in 99 of 100 draws.
    assert np.abs(areas - np.linspace(0, 1, 4000)).max() < 1.63 / np.sqrt(4000)


def test_the_salient_box_lies_round_the_most_salient_pixel(batch):
    images, masks = batch
    masks = np.zeros_like(masks)
    masks[:, 8, 3] = 255
    other = np.roll(np.arange(6), 1)
    for seed in range(20):
        mixed, share = mix(images, masks, other, "saliency", np.random.default_rng(seed))
        for row in np.flatnonzero(share > 0.02):
            assert (mixed[row, 8, 3] == images[other[row], 8, 3]).all()


def test_pictures_of_one_group_are_never_mixed():
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    rng = np.random.default_rng(1)
    for _ in range(200):
        other = partners(groups, rng, probability=1.0)
        mixed = other != np.arange(8)
        assert mixed.any() and (groups[other[mixed]] != groups[mixed]).all()


def test_half_of_the_pictures_are_mixed_on_average():
    groups, rng = np.arange(500), np.random.default_rng(1)
    share = np.mean([(partners(groups, rng, 0.5) != groups).mean() for _ in range(20)])
    assert share == pytest.approx(0.5, abs=0.02)


def test_without_mixing_nothing_changes(batch):
    images, _ = batch
    mixed, share = mix(images, None, np.arange(6)[::-1], "none", np.random.default_rng(0))
    assert mixed is images and not share.any()
