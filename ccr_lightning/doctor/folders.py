"""The folders that commands write to: whether they can, how much fits, and what their file system can do."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ccr_lightning.data.cache import default_cache_dir
from ccr_lightning.doctor.finding import Finding
from ccr_lightning.errors import CCRError
from ccr_lightning.memory import in_words

_TOPIC = "folders"
_FULL, _LITTLE = 200e6, 2e9
_SECONDS_TO_COUNT = 0.5


def examine(runs: Path) -> Iterator[Finding]:
    """Yield what is found about the cache, the runs, temporary files and models of the hub.

    Args:
        runs: The folder of runs; it need not exist, and is not made.
    """
    try:
        with warnings.catch_warnings(record=True) as said:
            cache = default_cache_dir()
        yield from _folder("cache", cache, "export CCR_CACHE_DIR=DIR")
        for warning in said:
            yield Finding(_TOPIC, "cache", str(warning.message), "advice", "export CCR_CACHE_DIR=DIR")
        yield _content(cache)
    except CCRError as error:
        yield Finding(_TOPIC, "cache", str(error), "problem", "export CCR_CACHE_DIR=DIR")
    yield from _folder("runs", runs, "pass --runs_dir DIR")
    try:
        yield from _folder("temporary files", Path(tempfile.gettempdir()), "export TMPDIR=DIR")
    except OSError as error:
        yield Finding(_TOPIC, "temporary files", f"none ({error.strerror})", "problem", "export TMPDIR=DIR")
    yield from _hub()


def _hub() -> Iterator[Finding]:
    """As the hub's library finds it."""
    name, otherwise = "models of the hub", "export HF_HOME=DIR"
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    path = Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"))
    if path.parts[:1] == ("~",):
        yield Finding(_TOPIC, name, f"{path} in the working directory, as nobody knows the home", "advice", otherwise)
    else:
        yield from _folder(name, path, otherwise)


def _folder(name: str, path: Path, otherwise: str) -> Iterator[Finding]:
    there = _nearest(path)
    later = "" if there == path else ", to be made"
    try:
        free = shutil.disk_usage(there).free
        lacks = _what_fails(there)
    except OSError as error:
        yield Finding(_TOPIC, name, f"{path}: cannot be written ({error.strerror})", "problem", otherwise)
        return
    found = f"{path}{later}, {in_words(free)} free"
    if free < _LITTLE:
        yield Finding(_TOPIC, name, found, "problem" if free < _FULL else "advice", f"free some space, or {otherwise}")
    elif lacks:
        yield Finding(_TOPIC, name, f"{found}, without {lacks}", "advice", f"a local disk is safer: {otherwise}")
    else:
        yield Finding(_TOPIC, name, found)


def _nearest(path: Path) -> Path:
    """The folder, or the nearest above it that exists, as far as may be seen; a file stands in the way."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), Path("/"))


def _what_fails(folder: Path) -> str:
    """What a file system does not do, of what commands use; raises OSError if it cannot be written at all."""
    lacks = []
    with tempfile.TemporaryDirectory(prefix=".ccr-doctor-", dir=folder) as name:
        file = Path(name) / "file"
        with file.open("wb") as handle:
            handle.write(b"0" * 4096)
            os.fsync(handle.fileno())
        try:
            os.link(file, file.with_name("link"))
        except OSError:
            lacks.append("hard links (previous.ckpt)")
        try:
            with FileLock(file.with_name("lock"), timeout=1):
                pass
        except (OSError, Timeout, NotImplementedError):
            lacks.append("locks (two runs in one folder)")
        file.replace(file.with_name("renamed"))
    return ", ".join(lacks)


def _content(cache: Path) -> Finding:
    """How many stores a cache has, and their size, as far as can be counted in a moment."""
    stores, total, closed = 0, 0, list[str]()
    deadline = time.monotonic() + _SECONDS_TO_COUNT
    try:
        for folder in cache.iterdir():
            if time.monotonic() > deadline:
                return Finding(_TOPIC, "stores", f"more than {stores} in the cache, {in_words(total)}")
            try:
                if (folder / "manifest.json").is_file():
                    stores += 1
                    with suppress(FileNotFoundError):
                        total += sum(entry.stat().st_size for entry in os.scandir(folder))
            except OSError as error:
                closed.append(f"{folder.name} cannot be read ({error.strerror})")
    except OSError as error:
        closed.append(f"{cache} cannot be listed ({error.strerror})")
    found = ", ".join([f"{stores} in the cache", in_words(total), *closed[:3]])
    if closed:
        remedy = "give yourself the rights (chown, chmod u+rwx), or export CCR_CACHE_DIR=DIR"
        return Finding(_TOPIC, "stores", found, "advice", remedy)
    return Finding(_TOPIC, "stores", found)
