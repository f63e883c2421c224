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
    yield from _folder("temporary files", Path(tempfile.gettempdir()), "export TMPDIR=DIR")
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    yield from _folder("models of the hub", Path(hub).expanduser(), "export HF_HOME=DIR")


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
    """The folder, or the nearest above it that exists."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


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
    stores, total, deadline = 0, 0, time.monotonic() + _SECONDS_TO_COUNT
    for folder in cache.iterdir():
        if time.monotonic() > deadline:
            return Finding(_TOPIC, "stores", f"more than {stores} in the cache, {in_words(total)}")
        if (folder / "manifest.json").is_file():
            stores += 1
            with suppress(OSError):
                total += sum(entry.stat().st_size for entry in os.scandir(folder))
    return Finding(_TOPIC, "stores", f"{stores} in the cache, {in_words(total)}")
