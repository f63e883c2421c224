"""Where prepared data lie."""

from __future__ import annotations

import os
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

from ccr_lightning.errors import CCRError


def default_cache_dir() -> Path:
    """Return ``$CCR_CACHE_DIR``, else ``ccr-lightning`` in the user's cache folder.

    Where that cannot be written it is, with a warning, a temporary folder.

    Raises:
        CCRError: ``$CCR_CACHE_DIR`` cannot be written, or none of these.
    """
    if chosen := os.environ.get("CCR_CACHE_DIR"):
        return writable_folder(Path(os.path.expanduser(chosen)))
    usual = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "ccr-lightning"
    if usual.parts[0] != "~":  # which it is where nobody knows the home
        with suppress(CCRError):
            return writable_folder(usual)
    try:
        fallback = writable_folder(_own_folder(Path(tempfile.gettempdir()) / f"ccr-lightning-{os.getuid()}"))
    except OSError as error:
        raise CCRError(
            f"neither {usual} nor a temporary folder can be written ({error.strerror}); set CCR_CACHE_DIR."
        ) from error
    _warn_once(f"{usual} cannot be written; prepared data goes to {fallback}, set CCR_CACHE_DIR.")
    return fallback


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _own_folder(folder: Path) -> Path:
    """A folder in a place where all may write, of which nobody else has the making."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise CCRError(f"{folder} belongs to somebody else; set CCR_CACHE_DIR.")
    return folder


def writable_folder(folder: Path) -> Path:
    """Return the folder after making it and trying to write there.

    Raises:
        CCRError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise CCRError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another cache_dir."
        ) from error


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder of the stores: the given one, or the default.

    Raises:
        CCRError: It cannot be written.
    """
    return default_cache_dir() if cache_dir is None else writable_folder(Path(os.path.expanduser(cache_dir)))
