"""Pictures to embed: of files, folders and patterns, or the records of a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    found: set[Path] = set()
    for name in named:
        path = Path(name).expanduser()
        if path.is_dir():
            own = {file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()}
        elif path.is_file():
            own = {path}
        else:
            try:
                own = {file for file in Path(path.anchor or ".").glob(_pattern(path)) if file.is_file()}
            except ValueError as error:
                raise CCRError(f"{name}: this is no pattern ({error}); give one such as 'photos/**/*.jpg'.") from error
        if not own:
            raise CCRError(f"{name}: there is no picture there; check the path.")
        found |= own
    return sorted({path.absolute() for path in found})


def _pattern(path: Path) -> str:
    return str(path.relative_to(path.anchor)) if path.anchor else str(path)


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
            path = None if isinstance(record.image, bytes) else str(record.image.absolute())
            name = prefix(source, split) + record.image_id
            yield Found(record.image, Picture(name, state, path, captions=captions))
