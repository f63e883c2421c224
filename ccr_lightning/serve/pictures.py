"""Pictures of an index as a browser gets them: always encoded anew, so that nothing but pixels leaves."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock

from ccr_lightning.data.thumbnails import smaller_jpeg
from ccr_lightning.search.index import Index
from ccr_lightning.search.picture import Picture

THUMBNAIL_SIZE, PICTURE_SIZE = 320, 1600  # pixels of the longer side
_KEPT_BYTES = 64_000_000  # of thumbnails


def version(picture: Picture) -> str:
    """Return what tells a picture in its state from all others, for a URL.

    Example:
        >>> version(Picture("/a.jpg", "12 bytes")) != version(Picture("/a.jpg", "13 bytes"))
        True
    """
    return hashlib.sha256(f"{picture.name}\n{picture.state}".encode(errors="surrogateescape")).hexdigest()[:16]


class Pictures:
    """The pictures of an index as JPEG files.

    Args:
        index: The index.
        kept_bytes: Size of the thumbnails that are kept in memory.
    """

    def __init__(self, index: Index, kept_bytes: int = _KEPT_BYTES) -> None:
        self._index, self._most = index, kept_bytes
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # from the one that was asked for longest ago on
        self._bytes, self._lock = 0, Lock()

    def thumbnail(self, number: int) -> bytes:
        """Return a small picture.

        Raises:
            CCRError: There is none, or its file is not what it was.
        """
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        data = smaller_jpeg(self._index.open(number), THUMBNAIL_SIZE)
        with self._lock:
            if number not in self._kept:
                self._bytes += len(data)
            self._kept[number] = data
            while self._bytes > self._most:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def picture(self, number: int) -> bytes:
        """Return a large picture.

        Raises:
            CCRError: There is none, or its file is not what it was.
        """
        return smaller_jpeg(self._index.open(number), PICTURE_SIZE)
