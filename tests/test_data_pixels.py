"""Pixels for training are those of Pillow, however the picture is encoded."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.images import decode_image
from ccr_lightning.data.pixels import EncodedPicture


def photo(size=(61, 45)):
    """Smooth colours with some noise, so that chroma is subsampled in earnest."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    noise = np.random.default_rng(0).normal(0, 12, (size[1], size[0], 3))
    smooth = np.stack([128 + 90 * np.sin(x / 7), 128 + 80 * np.cos(y / 9), 100 + x + y], axis=2)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {"quality": 85}),
        ("RGB", "JPEG", {"quality": 95, "subsampling": 0}),
        ("RGB", "JPEG", {"quality": 60, "progressive": True}),
        ("L", "JPEG", {"quality": 85}),
        ("CMYK", "JPEG", {"quality": 85}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {}),
    ],
)
def test_pixels_are_pillows(mode, form, options):
    data = encode(photo().convert(mode), form, **options)
    pixels = EncodedPicture(data, "x").pixels()
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(decode_image(data, "x")))
    assert EncodedPicture(data, "x").size == (61, 45)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        ((640, 480), (640, 480)),
        ((321, 100), (640, 480)),
        ((320, 240), (320, 240)),
        ((100, 120), (160, 120)),
        ((80, 60), (80, 60)),
        ((8, 8), (80, 60)),
        ((900, 900), (640, 480)),
    ],
)
def test_a_part_of_the_pixels(at_least, size):
    """A reduced JPEG is the picture averaged over squares, but for rounding and for frequencies that it leaves out."""
    image = photo((640, 480)).filter(ImageFilter.GaussianBlur(4))
    data = encode(image, "JPEG", quality=95, subsampling=0)
    pixels = EncodedPicture(data, "x").pixels(at_least)
    assert pixels.shape == (size[1], size[0], 3)
    factor = 640 // size[0]
    means = np.asarray(image, dtype=float).reshape(size[1], factor, size[0], factor, 3).mean(axis=(1, 3))
    assert np.abs(pixels - means).mean() < 1
    assert EncodedPicture(encode(image, "PNG"), "x").pixels(at_least).shape == (480, 640, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), "JPEG", exif=exif)
    assert np.array_equal(EncodedPicture(data, "x").pixels(), np.asarray(decode_image(data, "x")))


def test_a_picture_that_is_too_large(monkeypatch):
    for module in ("images", "pixels"):
        monkeypatch.setattr(f"ccr_lightning.data.{module}.MAX_PIXELS", 1000)
    with pytest.raises(RecordFault, match=r"61 x 45 pixels, more than 1,000"):
        EncodedPicture(encode(photo(), "JPEG"), "x")


@pytest.mark.parametrize("cut", [2, 100, 700])
def test_what_cannot_be_decoded(cut):
    with pytest.raises(RecordFault, match=r"^here:1: the image is"):
        EncodedPicture(encode(photo(), "JPEG")[:cut], "here:1").pixels()
