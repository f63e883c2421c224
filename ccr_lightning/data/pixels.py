"""Encoded pictures to pixels for training, as fast as the decoder allows."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ccr_lightning.data.images import MAX_PIXELS, decode_image

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

_ORIENTATION = 0x0112


def decode_pixels(data: bytes, where: str) -> Pixels:
    """Return the ``(H, W, 3)`` pixels of a picture, upright: those of :func:`~ccr_lightning.data.images.decode_image`.

    JPEGs in colour or grey go straight into an array, which takes two thirds of the time that Pillow needs; all others,
    and damaged ones, go through Pillow.

    Args:
        data: The encoded picture.
        where: Where the image is named (``file:line``), for the message.

    Raises:
        RecordFault: The picture cannot be decoded, or is too large.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (4, 2), "red").save(buffer, "PNG")
        >>> decode_pixels(buffer.getvalue(), where="an example").shape
        (2, 4, 3)
    """
    pixels = _decode_jpeg(data) if data.startswith(b"\xff\xd8") else None
    return np.asarray(decode_image(data, where)) if pixels is None else pixels


def _decode_jpeg(data: bytes) -> Pixels | None:
    import simplejpeg

    try:
        header = Image.open(io.BytesIO(data), formats=("JPEG",))
        width, height = header.size
        if width * height > MAX_PIXELS:
            return None
        if header.mode not in ("RGB", "L") or header.getexif().get(_ORIENTATION, 1) != 1:
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except Exception:  # Pillow says what is wrong with it
        return None
    return pixels
