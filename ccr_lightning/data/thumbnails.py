"""Smaller pictures for pages."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ccr_lightning.data.images import open_image

THUMBNAIL_SIZE = 256  # pixels of the longer side


class Thumbnail(NamedTuple):
    """A picture that a page can hold."""

    uri: str  # data:image/jpeg;base64,...
    width: int
    height: int


def thumbnail(image: Path | bytes, where: str) -> Thumbnail:
    """Return an image as a small JPEG in a data URI.

    Args:
        image: Path of the file, or its bytes.
        where: Where the image is named (``file:line``), for the message.

    Raises:
        RecordFault: It cannot be read or decoded.

    Example:
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (1000, 500)).save(buffer, "PNG")
        >>> thumbnail(buffer.getvalue(), "an example")[1:]
        (256, 128)
    """
    picture = open_image(image, where)
    data = smaller_jpeg(picture, THUMBNAIL_SIZE)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", *picture.size)


def smaller_jpeg(picture: Image.Image, size: int) -> bytes:
    """Make a picture smaller where it is too large, in place, and return it as a JPEG of nothing but its pixels.

    Args:
        picture: Of mode RGB.
        size: Pixels of the longer side, at most.

    Example:
        >>> Image.open(io.BytesIO(smaller_jpeg(Image.new("RGB", (1000, 500)), 320))).size
        (320, 160)
    """
    picture.thumbnail((size, size))
    picture.info.clear()  # Pillow would copy the comment of the file
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()
