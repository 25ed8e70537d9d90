"""Any picture's bytes become one square of RGB pixels, and anything else one reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from training.errors import UnreadableImage
from training.images import decode


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def quadrants(width=64, height=48):
    """Red, green / blue, white: every turn and flip looks different."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


def grey16(values):
    return Image.fromarray(np.asarray(values, np.uint16))


PALETTE = Image.new("RGB", (20, 10), (200, 100, 50)).quantize(4)
PICTURES = {
    "RGB": (encoded(Image.new("RGB", (20, 10), (200, 100, 50))), (200, 100, 50)),
    "JPEG": (encoded(Image.new("RGB", (20, 10), (200, 100, 50)), "JPEG", quality=95), (200, 100, 50)),
    "grey": (encoded(Image.new("L", (20, 10), 90)), (90, 90, 90)),
    "grey with alpha": (encoded(Image.new("LA", (20, 10), (90, 255))), (90, 90, 90)),
    "palette": (encoded(PALETTE), (200, 100, 50)),
    "palette with a transparent colour": (encoded(PALETTE, transparency=PALETTE.getpixel((0, 0))), (255, 255, 255)),
    "RGB with a transparent colour": (
        encoded(Image.new("RGB", (20, 10), (1, 2, 3)), transparency=(1, 2, 3)),
        (255, 255, 255),
    ),
    "transparent": (encoded(Image.new("RGBA", (20, 10), (0, 0, 0, 0))), (255, 255, 255)),
    "half transparent": (encoded(Image.new("RGBA", (20, 10), (0, 0, 0, 128))), (127, 127, 127)),
    "one bit": (encoded(Image.new("1", (20, 10), 1)), (255, 255, 255)),
    "CMYK": (encoded(Image.new("CMYK", (20, 10), (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0)),
    "YCbCr TIFF": (encoded(Image.new("RGB", (20, 10), (200, 100, 50)).convert("YCbCr"), "TIFF"), (200, 100, 50)),
    "16 bits": (encoded(grey16(np.full((10, 20), 65535))), (255, 255, 255)),
    "12 bits in 16": (encoded(grey16(np.full((10, 20), 4095))), (255, 255, 255)),
    "8 bits in 16": (encoded(grey16(np.full((10, 20), 90))), (90, 90, 90)),
    "32 bits": (encoded(Image.fromarray(np.full((10, 20), 4095, np.int32)), "TIFF"), (255, 255, 255)),
    "WebP": (encoded(Image.new("RGB", (20, 10), (200, 100, 50)), "WEBP", lossless=True), (200, 100, 50)),
    "BMP": (encoded(Image.new("RGB", (20, 10), (200, 100, 50)), "BMP"), (200, 100, 50)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_picture_becomes_a_square_of_its_colour(kind):
    data, colour = PICTURES[kind]
    out = decode(data, 16)
    assert out.shape == (16, 16, 3)
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_a_viewer_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(quadrants(), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    expected = np.asarray(upright.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(data, 16) - expected).max() <= 1


def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encoded(quadrants(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode(data, 8).shape == (8, 8, 3)


def test_the_border_is_kept_because_nothing_is_cropped():
    wide = np.zeros((30, 300, 3), np.uint8)
    wide[:, :30, 0] = 255
    wide[:, -30:, 2] = 255
    out = decode(encoded(Image.fromarray(wide)), 10)
    assert (out[:, 0, 0] > 200).all()
    assert (out[:, -1, 2] > 200).all()


def test_shrinking_averages_instead_of_picking_pixels():
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    out = decode(encoded(Image.fromarray(board)), 16)
    assert np.abs(out.astype(int) - 127).max() <= 3


def test_a_jpeg_decoded_at_reduced_size_looks_like_the_whole_one():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    data = encoded(coarse, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(decode(data, 64).astype(int) - np.asarray(whole).astype(int)).mean() < 1.5


def test_a_scan_of_12_bits_keeps_its_proportions():
    ramp = np.tile(np.linspace(0, 4095, 16), (16, 1))
    out = decode(encoded(grey16(ramp)), 16)[0, :, 0].astype(int)
    assert np.abs(out - np.linspace(0, 255, 16)).max() <= 1


def test_floating_point_is_stretched_between_its_finite_ends():
    values = np.tile(np.linspace(-1000, 3000, 16, dtype=np.float32), (16, 1))
    values[0, 0] = np.nan
    out = decode(encoded(Image.fromarray(values), "TIFF"), 16)[8, :, 0].astype(int)
    assert np.abs(out - np.linspace(0, 255, 16)).max() <= 1


def test_a_picture_without_a_finite_number_is_refused():
    with pytest.raises(UnreadableImage, match="finite"):
        decode(encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), 8)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(decode(data, 8).astype(int) - (255, 0, 0)).max() <= 3


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_header_that_promises_too_many_pixels_is_refused(side):
    with pytest.raises(UnreadableImage, match=r"large|million"):
        decode(png_header(side, side), 8)


def test_a_large_jpeg_is_read_at_a_size_that_fits():
    data = encoded(quadrants(1600, 1600), "JPEG")
    assert decode(data, 100, max_pixels=200 * 200).shape == (100, 100, 3)
    with pytest.raises(UnreadableImage, match="1600 x 1600"):
        decode(encoded(quadrants(1600, 1600)), 100, max_pixels=200 * 200)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><p>Log in", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b'{"detail": "Authentication credentials were not provided."}', "login"),
        (b"%PDF-1.7", "PDF"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"hello", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (encoded(quadrants(), "JPEG")[:500], "damaged"),
        (encoded(quadrants(), "PNG")[:60], "damaged"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason_for_people(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(data, 8)
    assert caught.value.reason


SEEDS = [PICTURES[kind][0] for kind in ("RGB", "JPEG", "palette", "WebP", "YCbCr TIFF", "BMP", "16 bits")]


@pytest.mark.filterwarnings("ignore")  # Pillow warns about some damaged files
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(SEEDS), st.integers(0, 400), st.binary(min_size=1, max_size=12))
def test_damaged_files_give_pixels_or_a_reason_and_never_another_error(data, at, patch):
    at %= len(data)
    damaged = data[:at] + patch + data[at + len(patch) :]
    try:
        out = decode(damaged, 8)
    except UnreadableImage:
        return
    assert out.shape == (8, 8, 3)
