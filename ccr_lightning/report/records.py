"""Pictures and captions of some images of a split, while its data are there and still those that were scored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.store import MANIFEST, Store, open_store, store_folder
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions


class Records(NamedTuple):
    """What was found."""

    by_name: Mapping[str, ImageCaptions]
    remark: str  # why some or all are missing, or what was not checked


def find_records(source: Source, cache_dir: Path, document: Mapping[str, Any], names: Collection[str]) -> Records:
    """Find images of the split that was scored, in its store or else in the files of its source.

    A store is compared with the hash in the results; the files of a source are not, for all of them would be read.

    Args:
        source: That of the results.
        cache_dir: Where stores lie.
        document: The results.
        names: Image ids.
    """
    split = document["split"]
    try:
        folder = store_folder(source, split, cache_dir)
        if (folder / MANIFEST).is_file():
            store = open_store(folder)
            if not _is_scored(store, document):
                return Records({}, "The data have changed since they were scored, so neither pictures nor captions.")
            return Records(_of_store(store, names), "")
        found = _of_source(source, split, names)
    except CCRError as error:
        return Records({}, f"Without pictures and captions, for the data cannot be read: {error}")
    if missing := len(names) - len(found):
        return Records({}, f"The data have changed since they were scored: {missing} of these images are not in them.")
    return Records(found, "The pictures and captions are those of the data's files now; their hash was not compared.")


def _is_scored(store: Store, document: Mapping[str, Any]) -> bool:
    scored = document["data"]
    return bool(len(store) == scored["images"]) and bool(
        store.content_sha256(list(document["languages"])) == scored["sha256"]
    )


def _of_store(store: Store, names: Collection[str]) -> dict[str, ImageCaptions]:
    return {
        name: ImageCaptions(name, store.image(row), store.captions_with_origin(row), store.where(row))
        for row, name in enumerate(store.image_names)
        if name in names
    }


def _of_source(source: Source, split: str, names: Collection[str]) -> dict[str, ImageCaptions]:
    found: dict[str, ImageCaptions] = {}
    for record in source.records(split, report=lambda fault: None):
        if record.image_id in names:
            found[record.image_id] = record
            if len(found) == len(names):
                break
    return found
