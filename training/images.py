"""Bytes of any picture people upload -> one square array of RGB pixels. Pure: no files, no network.

The whole picture is squeezed to a square rather than cropped: a centre crop throws away the border, and in
labelling projects the thing asked about may well be there. The aspect ratio is lost instead, for training and
for prediction alike, which a classifier's features forgive more easily than a missing object.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import UnreadableImage

MAX_PIXELS = 64_000_000  # decoded pixels of one picture; 192 MB as RGB, and several are decoded at once

# By its header a picture may be larger, because a JPEG can be decoded at an eighth of its size: enough for
# the 200 megapixels of a telephone. Pillow warns from this number on and refuses from twice this number on.
Image.MAX_IMAGE_PIXELS = 125_000_000

# Raster formats only. EPS is missing on purpose (it starts Ghostscript), as are formats that need the network
# or a second file.
_FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "ICO", "ICNS",
    "TGA", "PCX", "SGI", "XBM", "XPM", "DDS", "QOI",
)  # fmt: skip

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The picture as people see it, squeezed to a square.

    EXIF orientation is applied, transparency is put on white, an animation gives its first frame, single-
    channel pictures of more than 8 bits are brought to 8 (`_to_eight_bits`). Colour profiles are not applied.
    Shrinking is antialiased (triangle filter); a JPEG is first shrunk by a power of two while it is decoded.

    Args:
        data: the file's bytes.
        size: side of the square, pixels.
        max_pixels: more decoded pixels than this are refused before memory is taken for them.
    Returns:
        [size, size, 3] uint8, RGB.
    Raises:
        UnreadableImage: with a reason to show to people; never another exception, whatever the bytes are.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(image, size, max_pixels)
            image.load()
            turn = _TURNS.get(_orientation(image))
            square = _squeeze(image, size)
            if turn is not None:
                # Turning after shrinking gives the same square and moves far fewer pixels.
                square = square.transpose(turn)
            return np.array(square)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(_what_came(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"too large to decode safely: {error}") from error
    except Exception as error:  # damaged files make Pillow's readers raise nearly any type
        raise UnreadableImage(f"damaged picture ({type(error).__name__}: {error})") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image, size: int, max_pixels: int) -> None:
    width, height = image.size
    image.draft("RGB", (size, size))  # JPEG only: decode at 1/2, 1/4 or 1/8, never below the wanted size
    pixels = image.size[0] * image.size[1]
    if pixels > max_pixels:
        raise UnreadableImage(
            f"{width} x {height} pixels are more than the {max_pixels // 1_000_000} million "
            "that are decoded; upload a smaller version"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none. Only after `load`: TIFF turns itself."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block must not cost a picture that can be seen
        return 1


def _squeeze(image: Image.Image, size: int) -> Image.Image:
    """Any mode, any shape -> RGB, size x size."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_eight_bits(image)
    elif image.mode == "1":
        image = image.convert("L")  # Pillow does not blend pixels of one bit
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = _resize(image.convert("RGBA"), size)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "L":
        return _resize(image, size).convert("RGB")
    return _resize(image if image.mode == "RGB" else image.convert("RGB"), size)


def _resize(image: Image.Image, size: int) -> Image.Image:
    # reducing_gap: average whole blocks first when the picture is more than three times too large; much
    # faster and, from three on, not told apart from the plain filter.
    return image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floating point -> grey of 8 bits.

    Whole numbers without a sign are divided by the power of two that the picture needs (12-bit scans in
    16-bit files would be black otherwise); everything else is stretched from its smallest to its largest
    finite value.
    """
    values = np.asarray(image).astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        raise UnreadableImage("the picture holds no finite number")
    low, high = float(values[finite].min()), float(values[finite].max())
    if image.mode != "F" and low >= 0:
        low, high = 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    span = high - low or 1.0
    scaled = np.where(finite, (values - low) * (255.0 / span), 0.0)
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def _what_came(data: bytes) -> str:
    """Why these bytes are no picture, in words that say where to look."""
    if not data:
        return "the file is empty"
    start = data[:512].lstrip().lower()
    if b"<svg" in start:
        return "an SVG drawing, which has no pixels; upload it as PNG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page came instead of a picture; the address may need a login"
    if start.startswith((b"{", b"[", b"<?xml")):
        return "a text answer came instead of a picture; the address may be wrong or need a login"
    if data[128:132] == b"DICM":
        return "a DICOM file; convert it to PNG or JPEG first"
    if start.startswith(b"%pdf"):
        return "a PDF document; convert its pages to PNG or JPEG first"
    return "not a picture in a format that can be read (JPEG, PNG, GIF, WebP, AVIF, TIFF, BMP, JPEG 2000, ...)"
