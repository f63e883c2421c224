"""Pictures to embed: of files, folders and patterns, or the records of a source."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ccr_lightning.data.faults import RecordFault, Report
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError
from ccr_lightning.search.picture import Picture, file_state, record_state

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".jp2", ".avif")


class Found(NamedTuple):
    """A picture that may be embedded, and what it will be in the index."""

    image: Path | bytes
    picture: Picture


def find_pictures(named: Iterable[str]) -> list[Path]:
    """Return the files that paths, folders and patterns stand for, each once, as absolute paths, sorted.

    Args:
        named: Files; folders, whose pictures are taken with those of the folders in them; or patterns such as
            ``photos/**/*.jpg``.

    Raises:
        CCRError: One stands for nothing.
    """
    found: set[str] = set()
    for name in named:
        path = _expanded(name)
        if os.path.isdir(path):
            own = {file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()}
        elif os.path.isfile(path):
            own = {path}
        else:
            own = _matching(name, path)
        if not own:
            raise CCRError(f"{name}: there is no picture there; check the path.")
        found |= set(map(os.path.abspath, own))
    return sorted(map(Path, found))


def _expanded(name: str) -> Path:
    if not name:
        raise CCRError("a path is empty; name a file, a folder or a pattern.")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise CCRError(f"{name}: there is no such user; check the path.") from error


def _matching(name: str, pattern: Path) -> set[Path]:
    below = str(pattern.relative_to(pattern.anchor)) if pattern.anchor else str(pattern)
    try:
        return {file for file in Path(pattern.anchor or ".").glob(below) if file.is_file()}
    except ValueError as error:
        raise CCRError(f"{name}: this is no pattern ({error}); give one such as 'photos/**/*.jpg'.") from error
    except OSError:  # a name that is too long to be one
        return set()


def gone_from(named: Iterable[str]) -> Callable[[Picture], bool]:
    """Return whether a picture was in a folder that is named, and is not there any more, nor its file elsewhere.

    Args:
        named: As for :func:`find_pictures`; only folders count.
    """
    folders = [os.path.join(os.path.abspath(_expanded(name)), "") for name in named if os.path.isdir(_expanded(name))]

    def is_gone(picture: Picture) -> bool:
        path = picture.path
        return path == picture.name and path.startswith(tuple(folders)) and not os.path.isfile(path)

    return is_gone


def of_files(paths: Iterable[Path], report: Report) -> Iterator[Found]:
    """Yield pictures that are files; one that cannot be looked at is reported."""
    for path in paths:
        try:
            yield Found(path, Picture(str(path), file_state(path), str(path)))
        except OSError as error:
            report(RecordFault(f"{path}: cannot be read ({error.strerror}).", "missing image"))


def prefix(source: Source, split: str) -> str:
    """Return what the names of a split's pictures begin with."""
    return f"{source.name}/{split}/"


def of_source(source: Source, splits: Sequence[str], report: Report) -> Iterator[Found]:
    """Yield the pictures of splits, with their captions; records that cannot be used are reported.

    Raises:
        CCRError: A split cannot be read.
    """
    for split in splits:
        for record in source.records(split, report=report):
            captions: Mapping[str, tuple[str, ...]] = {
                language: tuple(map(str, texts)) for language, texts in record.captions.items()
            }
            try:
                state = record_state(record.image, captions)
            except OSError as error:
                report(
                    RecordFault(f"{record.where}: cannot read {record.image!s} ({error.strerror}).", "missing image")
                )
                continue
            path = None if isinstance(record.image, bytes) else os.path.abspath(record.image)
            name = prefix(source, split) + record.image_id
            yield Found(record.image, Picture(name, state, path, captions=captions))
