"""Safe decoding: any picture file to an RGB image, or one sentence that says why not."""

from __future__ import annotations

import errno
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from ccr_lightning.data.faults import RecordFault

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ZIP_ARCHIVE = b"PK\x03\x04"
MAX_PIXELS = 50_000_000  # larger pictures are refused from their header, before memory is spent on them
MAX_BYTES = 100_000_000  # of an encoded picture
MAX_RATIO = 200  # of its sides: a model that resizes the shorter one would need any amount of memory
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")  # none that runs a program

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is below its bound


def read_image(source: Path | bytes, where: str) -> bytes:
    """Return the bytes of an encoded image file.

    Args:
        source: Path of the file, or its bytes.
        where: Where the image is named (``file:line``), for the message.

    Raises:
        RecordFault: The file cannot be read, is empty or too large, or is a git-LFS pointer or an archive instead of a
            picture.
    """
    name = _name(source)
    if isinstance(source, bytes):
        data = source
    else:
        try:
            if not source.is_file():  # a folder, or a pipe that would never end
                what = "this is no regular file" if source.exists() else "there is no such file"
                raise FileNotFoundError(errno.ENOENT, what)
            with source.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecordFault(
                f"{where}: cannot read {name} ({reason}); check the image folder.", "missing image"
            ) from error
    for found, says in (
        (not data, "has zero bytes; fetch it again"),
        (len(data) > MAX_BYTES, f"has more than {MAX_BYTES // 10**6} MB; make it smaller"),
        (data.startswith(LFS_POINTER), "is a git-LFS pointer, not a picture; run git lfs pull where it comes from"),
        (data[:512].lstrip()[:5].lower() in (b"<!doc", b"<html"), "is a web page, not a picture; fetch it again"),
        (data.startswith(ZIP_ARCHIVE), "is a zip archive, not a picture; unzip it first"),
    ):
        if found:
            raise _unreadable(f"{where}: {name} {says}.")
    return data


def open_image(source: Path | bytes, where: str) -> Image.Image:
    """Read and decode a picture; see :func:`read_image` and :func:`decode_image`."""
    return decode_image(read_image(source, where), where, _name(source))


def decode_image(data: bytes, where: str, name: str = "the image") -> Image.Image:
    """Decode a picture completely and return it as RGB, upright, transparent parts on white.

    Args:
        data: The encoded picture.
        where: Where the image is named (``file:line``), for the message.
        name: What it is called in the message.

    Raises:
        RecordFault: It is truncated, no picture, or too large.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGBA", (4, 2), (0, 0, 0, 0)).save(buffer, "PNG")
        >>> image = decode_image(buffer.getvalue(), where="an example")
        >>> image.mode, image.size, image.getpixel((0, 0))
        ('RGB', (4, 2), (255, 255, 255))
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(f"{where}: {name} has far more than {MAX_PIXELS:,} pixels; make it smaller.") from error
    except MemoryError:
        raise  # it is no fault of the picture, which would be left out
    except Exception as error:
        raise _unreadable(f"{where}: {name} is not a picture that Pillow can open; replace or remove it.") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _unreadable(f"{where}: {name} has {width} x {height} pixels, more than {MAX_PIXELS:,}; make it smaller.")
    if max(width, height) > MAX_RATIO * min(width, height):
        sides = f"{width} x {height} pixels, one side more than {MAX_RATIO} times the other"
        raise _unreadable(f"{where}: {name} has {sides}; crop it.")
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except MemoryError:
        raise  # it is no fault of the picture, which would be left out
    except Exception as error:
        raise _unreadable(f"{where}: {name} is damaged and cannot be decoded ({error}); fetch it again.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture that is decoded already as :func:`decode_image` does: RGB, upright, transparent parts on white.

    Example:
        >>> as_rgb(Image.new("LA", (4, 2), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    return _to_rgb(ImageOps.exif_transpose(image))


def damage(data: bytes) -> str:
    """Return what is damaged in a picture that can be decoded all the same; empty where nothing is.

    Decoders fill in what is missing in the middle or at the end of a JPEG, often with grey, and say nothing.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
        >>> whole = buffer.getvalue()
        >>> damage(whole), damage(whole[: len(whole) // 2] + whole[-2:])
        ('', 'the JPEG is damaged (Corrupt JPEG data: premature end of data segment)')
    """
    if not data.startswith(b"\xff\xd8"):
        return ""
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=1)
    except ValueError as error:
        return f"the JPEG is damaged ({error})"
    return ""


def _name(source: Path | bytes) -> str:
    return "the image" if isinstance(source, bytes) else f"the image {source}"


def _unreadable(message: str) -> RecordFault:
    return RecordFault(message, "unreadable image")


def file_ending(data: bytes, where: str) -> str:
    """Return the usual ending of a file with this encoded picture, by what is in it.

    Raises:
        RecordFault: It is no picture.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (4, 2)).save(buffer, "JPEG")
        >>> file_ending(buffer.getvalue(), where="an example")
        'jpg'
    """
    try:
        name = str(Image.open(io.BytesIO(data), formats=FORMATS).format)
    except Exception as error:
        raise _unreadable(f"{where}: the image is not a picture that Pillow can open; replace or remove it.") from error
    return "jpg" if name in ("JPEG", "MPO") else name.lower()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            upon_white = Image.new("RGB", image.size, "white")
            upon_white.paste(image, mask=image)
            return upon_white
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8 instead of scaling
        image = image.convert("F").point(lambda level: level / 257).convert("L")
    return image.convert("RGB")
