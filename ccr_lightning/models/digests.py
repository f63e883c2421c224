"""Hashes beside the files of a model whose own format has none."""

from __future__ import annotations

import json
from pathlib import Path

from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, load_json, sha256_of

_FILE = "sha256.json"


def write_digests(folder: Path) -> None:
    """Writes ``sha256.json``: the sha256 of each other file of a folder, by name.

    Raises:
        CCRError: It cannot be written.
    """
    digests = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != _FILE}
    with atomic_write(folder / _FILE, "the hashes") as file:
        file.write((json.dumps(digests, indent=2) + "\n").encode())


def check_digests(folder: Path) -> None:
    """Checks that the files of a folder are those that :func:`write_digests` saw; others may have come since.

    Raises:
        CCRError: One is missing or another.
    """
    path = folder / _FILE
    if not path.is_file():
        return
    try:
        digests = dict(load_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CCRError(f"{path}: cannot be read ({error}); fetch or save the model again.") from error
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise CCRError(f"{folder / name}: the file is not the one that was saved (sha256); fetch or save it again.")
