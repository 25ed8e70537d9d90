"""Where the object is, when nobody drew it: from the picture's spectrum, or from where people point cameras.

A mask is [H, W] float32 in [0, 1]: how much each pixel belongs to what the label is about.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter

Mask = NDArray[np.float32]
MaskSource = Callable[[int], "Mask | None"]  # example id -> mask of any size, or None where there is none

_SALIENCY_SIDE = 64  # pixels at which the spectrum is looked at, as in the paper: larger ones show texture
_BLUR = 2.5  # pixels at that side
_FLAT = 1.0  # grey levels of deviation below which a picture has nothing to be salient
_SPREAD = 0.35  # of the centre prior, in sides: a third of its weight lies within a third of the picture


def spectral_residual(image: NDArray[np.uint8]) -> Mask:
    """Saliency of a picture: what its spectrum has beyond the usual fall with frequency.

    A picture without contrast gets the centre prior.

    Args:
        image: [H, W, 3] uint8.
    Returns:
        [H, W] in [0, 1], the largest value 1.
    Paper: Hou, Zhang 2007, CVPR, eq. 5 to 7.
    """
    height, width = image.shape[:2]
    side = _SALIENCY_SIDE
    grey = np.asarray(Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.BILINEAR), np.float64)
    if grey.std() < _FLAT:
        return centre_prior(height, width)
    spectrum = np.fft.fft2(grey)
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = amplitude - uniform_filter(amplitude, 3, mode="wrap")
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    saliency = gaussian_filter(saliency, _BLUR)
    saliency = resized(saliency.astype(np.float32) / np.float32(saliency.max()), height, width)
    return (saliency - saliency.min()) / max(float(np.ptp(saliency)), 1e-12)


def centre_prior(height: int, width: int) -> Mask:
    """A round hill in the middle, 1 at its top."""
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    hill = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * _SPREAD**2))
    return (hill / hill.max()).astype(np.float32)


def resized(mask: Mask, height: int, width: int) -> Mask:
    """The mask at another size, in [0, 1]."""
    if mask.shape != (height, width):
        picture = Image.fromarray(np.ascontiguousarray(mask, np.float32))
        mask = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return mask.clip(0, 1)
