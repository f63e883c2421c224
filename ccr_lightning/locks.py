"""Locks on folders: the system takes them back however a process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ccr_lightning.errors import CCRError


@contextmanager
def one_process(lock: Path, busy: str, otherwise: str) -> Iterator[None]:
    """Keeps other processes out until the block ends or the process does.

    Args:
        lock: A file that is locked, and stays; its folder is made if need be.
        busy: What is said if another process has it.
        otherwise: What to do about a folder that cannot be written, for the message.

    Raises:
        CCRError: Another process has the lock, or it cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = Path(folder) / "index" / ".lock"
        ...     with one_process(lock, "another process writes the index; wait for it.", "name another folder"):
        ...         with one_process(lock, "another process writes the index; wait for it.", "name another folder"):
        ...             pass
        Traceback (most recent call last):
        ...
        ccr_lightning.errors.CCRError: another process writes the index; wait for it.
    """
    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout as error:
        raise CCRError(busy) from error
    except OSError as error:
        raise CCRError(f"{lock.parent}: the folder cannot be written ({error.strerror}); {otherwise}.") from error
    try:
        yield
    finally:
        held.release()
