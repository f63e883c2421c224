"""A source from the command line."""

from __future__ import annotations

from pathlib import Path

from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError


def read_source(path: str, image_root: str | None) -> Source:
    """Return the source that a command is given.

    Args:
        path: A file of JSON lines; its name without the ending is the split.
        image_root: Folder of the images; by default the file's.

    Raises:
        CCRError: The file is of another kind.
    """
    file = Path(path)
    if file.suffix != ".jsonl":
        raise CCRError(f"{path}: not a file of captions; give a .jsonl file.")
    return JsonLines({file.stem: path}, image_root=image_root or str(file.parent))
