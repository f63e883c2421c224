"""Encoded pictures to pixels for training, as fast as the decoder allows."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ccr_lightning.data.images import MAX_PIXELS, decode_image

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

_ORIENTATION = 0x0112


class EncodedPicture:
    """A picture whose size is known, and whose pixels are decoded when it is known how many are needed.

    JPEGs in colour or grey go straight into an array, in two thirds of the time that Pillow needs; all others, and
    damaged ones, go through Pillow.

    Args:
        data: The encoded picture.
        where: Where the image is named (``file:line``), for the message.

    Raises:
        RecordFault: The picture cannot be decoded, or is too large.

    Attributes:
        size: Width and height in pixels, upright.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (64, 32), "red").save(buffer, "JPEG")
        >>> picture = EncodedPicture(buffer.getvalue(), where="an example")
        >>> picture.size, picture.pixels().shape, picture.pixels(at_least=(30, 9)).shape
        ((64, 32), (32, 64, 3), (16, 32, 3))
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where = data, where
        self._decoded: Pixels | None = None
        size = _size_of_plain_jpeg(data) if data.startswith(b"\xff\xd8") else None
        if size is None:
            self._decoded = np.asarray(decode_image(data, where))
            size = self._decoded.shape[1], self._decoded.shape[0]
        self.size = size

    def pixels(self, at_least: tuple[int, int] | None = None) -> Pixels:
        """Return the ``(H, W, 3)`` pixels: those of :func:`~ccr_lightning.data.images.decode_image`.

        Args:
            at_least: Width and height that suffice: a JPEG is then decoded at a half, a quarter or an eighth of its
                size if that is not smaller, which spares most of the work.
        """
        if self._decoded is not None:
            return self._decoded
        import simplejpeg

        width, height = at_least or self.size
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                self._data, "RGB", min_width=width, min_height=height, min_factor=2 if at_least else 1
            )
        except ValueError:  # Pillow says what is wrong with it
            pixels = np.asarray(decode_image(self._data, self._where))
        return pixels


def _size_of_plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that needs nothing but decoding."""
    try:
        header = Image.open(io.BytesIO(data), formats=("JPEG",))
        is_plain = header.mode in ("RGB", "L") and header.getexif().get(_ORIENTATION, 1) == 1
    except Exception:
        return None
    width, height = header.size
    return (width, height) if is_plain and width * height <= MAX_PIXELS else None
