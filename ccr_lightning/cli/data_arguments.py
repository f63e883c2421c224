"""From what ``ccr data`` is given to a source of captioned images."""

from __future__ import annotations

from pathlib import Path

from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError


def read_source(path: str, image_root: str | None) -> Source:
    """Return the source that a file of JSON lines is; its one split has the name of the file.

    Raises:
        CCRError: It is no such file.
    """
    file = Path(path)
    if file.suffix != ".jsonl":
        raise CCRError(f"{path}: not a .jsonl file; give one.")
    return JsonLines({file.stem: path}, image_root=image_root or str(file.parent), name=file.name)
