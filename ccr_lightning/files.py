"""Files that are whole or as they were before."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ccr_lightning.errors import CCRError

_REMEDIES: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTDIR), "move what is in its way"),
    None: "free some space",  # what is not the system's own error is mostly torch's on a full disk
    errno.ENOMEM: "give it more memory",
    errno.ENOENT: "leave its folder where it is and start again",
}
_TEMPORARY = re.compile(r"\..+\.\d+")  # the names that atomic_write gives, see there


@contextmanager
def atomic_write(path: Path, what: str, otherwise: str = "choose another place") -> Iterator[IO[bytes]]:
    """Opens a file to write; when the block ends it is synced to disk and takes the place of ``path`` at once.

    Whatever stops the block, a crash or a full disk included, leaves ``path`` as it was before.

    Args:
        path: The file; its folder is made if need be.
        what: What is written, for the message ("the results").
        otherwise: What else to do than to remove the obstacle, for the message.

    Yields:
        The open binary file.

    Raises:
        CCRError: If the file cannot be written; it names the cause.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "new" / "a.txt"
        ...     with atomic_write(path, "the example") as file:
        ...         _ = file.write(b"whole")
        ...     path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make_folder(path.parent)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise could_not_be_written(path, what, error, otherwise) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def could_not_be_written(path: Path, what: str, error: OSError, otherwise: str) -> CCRError:
    """Return an error that says what was not written, why, and what to do about it.

    Example:
        >>> error = OSError(errno.ENOSPC, "No space left on device")
        >>> print(could_not_be_written(Path("a"), "the list", error, "choose another place"))
        a: the list could not be written ([Errno 28] No space left on device); free some space, or choose another place.
    """
    first = _REMEDIES.get(error.errno, "see to that")
    return CCRError(f"{path}: {what} could not be written ({error}); {first}, or {otherwise}.")


def load_json(text: str | bytes) -> Any:
    """Return what JSON says; a file of somebody else may be nested more deeply than Python can follow.

    Raises:
        ValueError: It is no JSON, or nested too deeply.

    Example:
        >>> load_json('{"a": [1]}')
        {'a': [1]}
        >>> load_json("[" * 100_000)
        Traceback (most recent call last):
        ...
        ValueError: it is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; no power loss undoes it.

    Raises:
        OSError: It cannot be made.
    """
    missing = [of for of in (folder, *folder.parents) if not of.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    """Sees to it that a new name in a folder outlasts a power loss, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_remains(folder: Path) -> None:
    """Remove what ``atomic_write`` has left in a folder where its process was killed; nobody may be writing there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in (".last.ckpt.4711", ".lock", "last.ckpt"):
        ...         (Path(folder) / name).touch()
        ...     remove_remains(Path(folder))
        ...     sorted(os.listdir(folder))
        ['.lock', 'last.ckpt']
    """
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def file_name(name: str) -> str:
    """Return a name that becomes one of a file: names of data sets and splits may come from anywhere.

    Raises:
        CCRError: It is empty, or would lead to another folder.

    Example:
        >>> file_name("multi30k-train")
        'multi30k-train'
    """
    if name in ("", ".", "..") or not name.isprintable() or any(character in name for character in "/\\"):
        raise CCRError(f"{name!r} is no name for a file; give the source and its splits names without slashes.")
    return name


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """Return the sha256 of settings that JSON can hold.

    Example:
        >>> settings_sha256({"a": 1, "b": [2]}) == settings_sha256({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
