"""Writes a split as WebDataset shards, for storage on which reading in order is fast and random access slow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from ccr_lightning._version import __version__
from ccr_lightning.data.build import (
    EARLIEST_STOP,
    MAX_BAD_FRACTION,
    BadRecords,
    WrittenFile,
    alone,
    check_max_bad_fraction,
    refuse_many_bad,
    refuse_what_lacks,
    say_left_out,
    total_counts,
    write_left_out,
)
from ccr_lightning.data.cache import writable_folder
from ccr_lightning.data.images import file_ending
from ccr_lightning.data.records import RecordOrFault, read_records, with_pictures
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.sources.webdataset import FORMAT, INDEX, UNFINISHED, ShardIndex, read_index
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, could_not_be_written, sha256_of
from ccr_lightning.progress import counted
from ccr_lightning.types import ImageCaptions, MachineTranslation

_OTHERWISE = "choose another folder"


SHARD_BYTES = 256_000_000  # of pictures


def write_shards(
    source: Source,
    split: str,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    bad_records: BadRecords = "error",
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> ShardIndex:
    """Write the split to tar files in WebDataset's layout, unless they are there.

    A sample is ``000000042.jpg``, the encoded image as it is, and ``000000042.json`` with its ``image_id``,
    ``captions`` by language, and ``where`` it comes from. The number is that of the image in the split. Every picture
    is decoded once. The same data give the same bytes, in whole files; ``shards.json`` comes last, and what a killed
    run has left is written anew. It has the languages, the numbers that the manifest of a store has, and of each shard
    the number of images by the languages that they have captions in.

    Training from shards mixes images less, and reads the beginning of an epoch once more to go on in its middle; stores
    have no such limits. See docs/shards.md.

    Args:
        source: Where images and captions come from.
        split: One of its splits.
        folder: The folder of the shards: a new or an empty one.
        shard_bytes: A shard is closed when its pictures have so many bytes.
        bad_records: As in :func:`~ccr_lightning.data.build.build_store`.
        max_bad_fraction: As there.

    Returns:
        What was written.

    Raises:
        CCRError: The source has no such split or no image in it, there are too many bad records, the folder has
            something else or cannot be written, or the package ``webdataset`` is missing.
    """
    check_max_bad_fraction(max_bad_fraction)
    if shard_bytes < 1:
        raise CCRError(f"shard_bytes is {shard_bytes}; give a number of bytes above 0.")
    folder = Path(folder)
    data = {"format": FORMAT, "source": source.name, "split": split, "fingerprint": source.fingerprint(split)}
    data |= {"languages": list(source.languages), "shard_bytes": shard_bytes}
    writable_folder(folder.parent)
    try:
        with alone(folder):
            if (folder / INDEX).is_file() and (folder / INDEX).read_bytes() != UNFINISHED:
                index = read_index(folder)
                if {name: index.content.get(name) for name in data} != data:
                    raise CCRError(f"{folder} has shards of other data or size; choose a new folder, or delete it.")
                refuse_what_lacks(folder, index.content, bad_records, max_bad_fraction)
                return index
            files = _write(source, split, folder, data, bad_records, max_bad_fraction)
    except OSError as error:
        raise could_not_be_written(folder, "the shards", error, _OTHERWISE) from error
    say_left_out(files, source, split, folder)
    return read_index(folder)


@dataclass
class _ShardFile(WrittenFile):
    by_languages: Counter[tuple[str, ...]] = field(default_factory=Counter)  # images by what they have captions in


def _write(
    source: Source, split: str, folder: Path, data: dict[str, Any], bad_records: BadRecords, max_bad_fraction: float
) -> list[_ShardFile]:
    tar_writer = _tar_writer()
    if not (folder / INDEX).is_file():
        folder.mkdir(exist_ok=True)
        if others := sorted(path.name for path in folder.iterdir()):
            raise CCRError(f"{folder} has {others[0]!r} in it; choose a new or an empty folder.")
        _write_index(folder, UNFINISHED)  # so that nobody takes some shards for all of them
    files: list[_ShardFile] = []
    records = counted(with_pictures(read_records(source, split)), f"writing {source.name}/{split}", "images")
    while not files or files[-1].records:
        files.append(_write_shard(tar_writer, records, folder, files, data["shard_bytes"], bad_records))
        if not files[-1].records or sum(file.records for file in files) >= EARLIEST_STOP:
            refuse_many_bad(files, max_bad_fraction)
    counts = total_counts(files)
    if not counts["images"]:
        raise CCRError(f"the split {split!r} of {source.name} has no images; check the source.")
    del counts["files"]
    shards = {
        file.name: {
            "name": file.name,
            "images": file.rows,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "images_by_languages": sorted(file.by_languages.items()),
        }
        for file in files
        if file.rows
    }
    for path in folder.iterdir():  # an empty last shard, and remains of a run that was killed
        if path.name not in (*shards, INDEX):
            path.unlink()
    write_left_out(files, folder)
    content = {**data, "package_version": __version__, **counts, "shards": list(shards.values())}
    _write_index(folder, json.dumps(content, indent=1, ensure_ascii=False).encode())
    return files


def _tar_writer() -> Callable[[IO[bytes]], Any]:
    try:
        from webdataset import TarWriter  # which imports torch
    except ImportError as error:
        raise CCRError(
            f"writing shards needs the package {error.name!r}; run: pip install 'ccr-lightning[webdataset]'"
        ) from error
    return partial(TarWriter, encoder=False, compress=False, mtime=0, user="", group="", mode=0o644)


def _write_shard(
    tar_writer: Callable[[IO[bytes]], Any],
    records: Iterator[RecordOrFault],
    folder: Path,
    files: list[_ShardFile],
    shard_bytes: int,
    bad_records: BadRecords,
) -> _ShardFile:
    """Write records until the shard is large enough or there are no more."""
    file, size, first = _ShardFile(f"shard-{len(files):06}.tar"), 0, sum(file.rows for file in files)
    path = folder / file.name
    with atomic_write(path, "the shard", _OTHERWISE) as tar, tar_writer(tar) as writer:
        for record in file.usable(records, bad_records):
            picture = record.image
            assert isinstance(picture, bytes)  # as with_pictures makes it
            key = f"{first + file.rows - 1:09}"
            writer.write({"__key__": key, file_ending(picture, record.where): picture, "json": _json(record)})
            file.by_languages[tuple(sorted(record.captions))] += 1
            size += len(picture)
            if size >= shard_bytes:
                break
    file.bytes, file.sha256 = path.stat().st_size, sha256_of(path)
    return file


def _json(record: ImageCaptions) -> bytes:
    captions = {language: [_caption(text) for text in texts] for language, texts in record.captions.items()}
    fields = {"image_id": record.image_id, "captions": captions, "where": record.where}
    return json.dumps(fields, ensure_ascii=False).encode()


def _caption(text: str) -> str | dict[str, str]:
    if not isinstance(text, MachineTranslation):
        return text
    return {"text": text, "translated_by": text.translated_by, "translated_on": text.translated_on}


def _write_index(folder: Path, content: bytes) -> None:
    with atomic_write(folder / INDEX, "the index of the shards", _OTHERWISE) as file:
        file.write(content)


def verify_shards(folder: Path) -> ShardIndex:
    """Compare the content of the shards with their index, which is returned; this reads all of them.

    Raises:
        CCRError: There is no index, or a shard is not as it was written.
    """
    index = read_index(folder)
    for shard in index.shards:
        if sha256_of(shard.path) != shard.sha256:
            raise CCRError(f"{shard.path}: is not as it was written; fetch it again, or write the shards again.")
    return index
