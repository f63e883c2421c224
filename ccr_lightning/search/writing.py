"""An index that one process at a time writes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ccr_lightning.locks import one_process
from ccr_lightning.search.index import LOCK, Index, refuse_other_folder


@contextmanager
def open_to_write(folder: str | Path) -> Iterator[Index]:
    """Opens an index, which is made if need be, and keeps other processes from writing to it until the block ends.

    Raises:
        CCRError: Another process writes to it, or what is there is no index, or is damaged.

    Example:
        >>> import tempfile
        >>> with open_to_write(Path(tempfile.mkdtemp()) / "pictures.index") as index:
        ...     len(index)
        0
    """
    folder = Path(folder)
    refuse_other_folder(folder)
    busy = f"{folder}: another process embeds pictures into it; start again when that is done."
    with one_process(folder / LOCK, busy, "name another one"):
        try:
            index = Index(folder)
            index.delete_remains()
            yield index
        finally:
            if {of.name for of in folder.iterdir()} == {LOCK}:  # nothing came of it
                with suppress(OSError):
                    (folder / LOCK).unlink()
                    folder.rmdir()
