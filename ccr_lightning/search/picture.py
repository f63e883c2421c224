"""A picture of an index: what it is called, where its bytes are, and its captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ccr_lightning.files import load_json


class Picture(NamedTuple):
    """A picture in the state in which it was embedded."""

    name: str  # of a file its absolute path; of a record SOURCE/SPLIT/ID
    state: str  # differs when the picture or a caption does
    path: str | None = None  # the file; None where the index keeps the bytes
    kept: tuple[int, int] | None = None  # first byte in the part's file of pictures, and behind the last
    captions: Mapping[str, tuple[str, ...]] = {}

    @classmethod
    def from_json(cls, line: bytes) -> Picture:
        """Return what :meth:`to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            of = load_json(line)
            captions = {language: tuple(texts) for language, texts in of.get("captions", {}).items()}
            kept = (int(of["kept"][0]), int(of["kept"][1])) if "kept" in of else None
            return cls(of["name"], of["state"], of.get("path"), kept, captions)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{line[:60]!r} is no picture") from error

    def to_json(self) -> bytes:
        """Return it as a line, without the end of one.

        Example:
            >>> Picture("/a.jpg", "12 bytes", "/a.jpg").to_json()
            b'{"name": "/a.jpg", "state": "12 bytes", "path": "/a.jpg"}'
        """
        fields = {name: value for name, value in self._asdict().items() if value}
        return json.dumps(fields).encode()  # in ASCII: names of files need not be UTF-8

    def all_captions(self) -> list[tuple[str, str]]:
        """Return language and text of each caption, in the order of their embeddings."""
        return [(language, text) for language, texts in self.captions.items() for text in texts]


def file_state(path: Path) -> str:
    """Return what changes when a file does: its size and the time of its last change.

    Raises:
        OSError: It cannot be looked at.
    """
    of = path.stat()
    return f"{of.st_size} bytes, {of.st_mtime_ns}"


def record_state(image: Path | bytes, captions: Mapping[str, tuple[str, ...]]) -> str:
    """Return what changes when the picture of a record, or a caption, does.

    Raises:
        OSError: The file of the picture cannot be looked at.
    """
    of_image = hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else file_state(image)
    if not captions:
        return of_image
    return f"{of_image}; {hashlib.sha256(json.dumps(captions).encode()).hexdigest()}"
