import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.images import open_image
from ccr_lightning.errors import CCRError


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(size=(40, 30)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_as_they_were(form, tmp_path):
    image = noise()
    data = encode(image, form)
    assert np.array_equal(open_image(data, "x"), image)
    (tmp_path / "file").write_bytes(data)
    assert np.array_equal(open_image(tmp_path / "file", "x"), image)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "JPEG2000", "AVIF", "MPO"])
def test_formats_that_lose_a_little(form):
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": [Image.new("RGB", (32, 24), "blue")]} if form == "MPO" else {}
    Image.new("RGB", (32, 24), (200, 40, 90)).save(buffer, form, **options)
    image = open_image(buffer.getvalue(), "here")
    assert image.size == (32, 24)
    np.testing.assert_allclose(np.asarray(image)[12, 16].astype(int), [200, 40, 90], atol=6)


def test_pictures_that_are_mostly_long():
    assert open_image(encode(Image.new("1", (10, 2000))), "here").size == (10, 2000)
    with pytest.raises(RecordFault, match=r"^here: the image has 2001 x 10 pixels, one side more than 200 times"):
        open_image(encode(Image.new("1", (2001, 10))), "here")


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 51)])
    for encoded in (encode(image), encode(image, "WEBP", lossless=True, exact=True), encode(image, "TIFF")):
        assert np.asarray(open_image(encoded, "x")).tolist() == [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]


@pytest.mark.parametrize("lowest", [0, 254, 255])
def test_alpha_is_blended_with_white(lowest):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    pixels[..., 3] = np.random.default_rng(1).integers(lowest, 256, (30, 40))
    alpha = pixels[..., 3:] / 255
    expected = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha))
    found = np.asarray(open_image(encode(Image.fromarray(pixels)), "x"))
    if lowest == 255:
        assert np.array_equal(found, pixels[..., :3])
    assert np.abs(found - expected).max() <= 1


def test_palette_with_transparency_and_grey_with_alpha():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert np.asarray(open_image(encode(palette), "x")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    with_hole = open_image(encode(palette, transparency=0), "x")
    assert np.asarray(with_hole).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    grey = open_image(encode(Image.new("LA", (1, 1), (100, 0))), "x")
    assert grey.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "form", "expected"),
    [
        ("1", 1, "PNG", (255, 255, 255)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("CMYK", (0, 0, 0, 255), "TIFF", (0, 0, 0)),
        ("I;16", 0x8080, "PNG", (128, 128, 128)),
        ("I", 0x4040, "TIFF", (64, 64, 64)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, form, expected):
    image = open_image(encode(Image.new(mode, (2, 2), colour), form), "x")
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = noise()
    pixels = np.asarray(upright)
    stored = {  # what a camera in that position would write
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(open_image(data, "x"), upright)


JPEG = encode(noise(), "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"PK\x03\x04 and so on", "zip archive"),
        (JPEG[: len(JPEG) // 2], "damaged"),
        (encode(noise())[:-300], "damaged"),
        (encode(Image.new("L", (2000, 1001))), "2000 x 1001 pixels, more than 2,000,000"),
        (encode(Image.new("1", (20000, 10000))), "far more than 2,000,000 pixels"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_failures_name_the_place(data, message, as_file, tmp_path, monkeypatch):
    source = data
    if as_file:
        source = tmp_path / "picture.jpg"
        source.write_bytes(data)
    monkeypatch.setattr("ccr_lightning.data.images.MAX_PIXELS", 2_000_000)
    with pytest.raises(CCRError) as error:
        open_image(source, "captions.jsonl:7")
    assert str(error.value).startswith("captions.jsonl:7: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert ("picture.jpg" in str(error.value)) == as_file


def test_a_picture_above_pillows_own_bound_is_one_sentence_and_no_warning(tmp_path):
    (tmp_path / "large.ppm").write_bytes(b"P6 10000 9500 255\n")
    code = (
        "import sys; from pathlib import Path; from ccr_lightning.data.images import open_image\n"
        "try: open_image(Path(sys.argv[1]), 'x')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "large.ppm"], capture_output=True, text=True)
    assert "has 10000 x 9500 pixels" in done.stdout
    assert done.stderr == ""


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    for name, reason in (
        ("no.png", "there is no such file"),
        ("folder.png", "this is no regular file"),
        ("pipe.png", "this is no regular file"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(RecordFault, match=rf"captions.jsonl:7: cannot read the image .*{name} \({reason}") as fault:
            open_image(tmp_path / name, "captions.jsonl:7")
        assert fault.value.kind == "missing image"


def test_no_format_that_runs_a_program():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(CCRError, match="not a picture"):
        open_image(postscript, "x")


def test_large_files(monkeypatch, tmp_path):
    monkeypatch.setattr("ccr_lightning.data.images.MAX_BYTES", 1_000_000)
    (tmp_path / "a.bmp").write_bytes(encode(noise(), "BMP") + bytes(1_000_000))
    with pytest.raises(CCRError, match=r"x: the image .*a.bmp has more than 1 MB; make it smaller"):
        open_image(tmp_path / "a.bmp", "x")
