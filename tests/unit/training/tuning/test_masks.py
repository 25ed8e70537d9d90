"""Where the object is, when nobody drew it."""

import numpy as np

from training.tuning.masks import centre_prior, resized, spectral_residual


def test_a_spot_on_texture_is_the_most_salient():
    rng = np.random.default_rng(0)
    image = np.tile((100 + 10 * np.sin(np.arange(128) / 2))[None, :, None], (128, 1, 3))
    image += rng.normal(0, 1, image.shape)
    image[30:44, 84:98] = 240
    mask = spectral_residual(image.clip(0, 255).astype(np.uint8))
    peak = np.unravel_index(mask.argmax(), mask.shape)
    assert mask.shape == (128, 128) and mask.dtype == np.float32
    assert 26 <= peak[0] < 48 and 80 <= peak[1] < 102
    assert mask.min() == 0 and mask.max() == 1


def test_a_flat_picture_gets_the_centre_prior():
    assert (spectral_residual(np.full((20, 30, 3), 7, np.uint8)) == centre_prior(20, 30)).all()


def test_the_centre_prior_is_one_in_the_middle_and_the_same_from_all_sides():
    prior = centre_prior(9, 9)
    assert prior[4, 4] == 1 and prior.argmax() == 40
    assert np.allclose(prior, prior.T) and np.allclose(prior, prior[::-1, ::-1])


def test_a_resized_mask_keeps_its_mean():
    mask = np.random.default_rng(0).uniform(size=(64, 64)).astype(np.float32)
    assert abs(resized(mask, 16, 16).mean() - mask.mean()) < 0.01
    assert resized(mask, 64, 64) is not None and resized(mask, 16, 24).shape == (16, 24)
