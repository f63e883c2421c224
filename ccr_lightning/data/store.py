"""Each split of a source in Arrow files: memory-mapped, read row by row, in any order."""

from __future__ import annotations

import hashlib
import json
import mmap
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError
from ccr_lightning.files import file_name, load_json, sha256_of
from ccr_lightning.memory import refuse_out_of_memory
from ccr_lightning.types import MachineTranslation

FORMAT = 3
_READS_BETWEEN_RELEASES = 500
MANIFEST, LEFT_OUT = "manifest.json", "left_out.jsonl"


class Store:
    """The rows of one split: image id, encoded image, captions by language, and where the record came from.

    The files of a store are plain Arrow streams, which ``datasets.Dataset.from_file`` opens too. Its manifest has the
    source, the split and the source's fingerprint, the version of this package, the number of images, of captions and
    of images with a caption by language, of blank captions and of bad records that were left out (both are listed in
    ``left_out.jsonl``), and of each file the rows, the size and the sha256.

    Attributes:
        folder: Where it lies.
        manifest: What it holds.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], table: Any, maps: Sequence[mmap.mmap]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._maps = maps
        self._reads = 0
        # plain columns: a row through datasets' own formatting takes many times longer
        self._image_id = table.column("image_id")
        self._image = table.column("image")
        self._captions = table.column("captions")
        self._translations = table.column("translations")
        self._text_length = table.column("text_length")
        self._sha256 = table.column("sha256")
        self._where = table.column("where")

    def __len__(self) -> int:
        images: int = self.manifest["images"]
        return images

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.folder,)  # a worker process maps the files instead of receiving their content

    @property
    def image_names(self) -> list[str]:
        """The image id of each row, all of them in memory."""
        names: list[str] = self._image_id.to_pylist()
        return names

    def image(self, row: int) -> bytes:
        """Return the bytes of the row's encoded image."""
        self._reads += 1
        if self._reads % _READS_BETWEEN_RELEASES == 0:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)  # else what was read once counts as this process's memory for ever
        data: bytes = self._image[row].as_py()
        return data

    def captions(self, row: int) -> dict[str, list[str]]:
        """Return the row's captions by language; a language without a caption is absent."""
        return {entry["language"]: entry["texts"] for entry in self._captions[row].as_py()}

    def captions_with_origin(self, row: int) -> dict[str, tuple[str, ...]]:
        """Return the row's captions as its source gave them: machine translations say so."""
        captions = {language: list(texts) for language, texts in self.captions(row).items()}
        for entry in self._translations[row].as_py():
            texts, number = captions[entry["language"]], entry["number"]
            texts[number] = MachineTranslation(texts[number], entry["translated_by"], entry["translated_on"])
        return {language: tuple(texts) for language, texts in captions.items()}

    def where(self, row: int) -> str:
        """Return where the record came from, for error messages."""
        text: str = self._where[row].as_py()
        return text

    def text_lengths(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return the mean length of each row's captions, in bytes of UTF-8."""
        lengths: np.ndarray[Any, np.dtype[np.int32]] = self._text_length.to_numpy()
        return lengths

    def rows_with_caption(self, languages: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows that have a caption in any of the languages, ascending."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if any(self.manifest["images_with_caption"].get(language) == len(self) for language in languages):
            return np.arange(len(self))
        rows = pc.list_parent_indices(self._captions)  # of each row's languages, in one go: a loop takes minutes
        names = pc.struct_field(pc.list_flatten(self._captions), "language")
        chosen = pc.filter(rows, pc.is_in(names, value_set=pa.array(languages, pa.string())))
        return np.unique(chosen.to_numpy())

    def content_sha256(self, languages: Sequence[str]) -> str:
        """Return the sha256 of what is evaluated: image ids, images, and captions in the languages, in order.

        It does not depend on where the files lie, nor on how the store is written.
        """
        digest = hashlib.sha256()
        for row, name in enumerate(self.image_names):
            captions = self.captions(row)
            texts = {language: captions.get(language, []) for language in languages}
            image = hashlib.sha256(self.image(row)).hexdigest()
            digest.update(json.dumps([name, image, texts]).encode())
        return digest.hexdigest()

    def records_sha256(self) -> str:
        """Return the sha256 of what was noted of each record when it was written: its id, image and captions, in order.

        It reads neither images nor captions. Where the records came from does not count.
        """
        digest = hashlib.sha256()
        for rows in self._sha256.iterchunks():  # of as many rows as were written at once, never all of millions
            digest.update("".join(rows.to_pylist()).encode())
        return digest.hexdigest()

    def caption_counts(self) -> dict[str, int]:
        """Return the number of captions by language, without those that have none."""
        counts: dict[str, int] = self.manifest["captions"]
        return counts


def store_folder(source: Source, split: str, cache_dir: Path) -> Path:
    """Return where the store of a split lies; other data, settings or another format of stores have another place.

    Raises:
        CCRError: The source's name or the split's is none for a file.
    """
    return cache_dir / file_name(f"{source.name}-{split}-{source.fingerprint(split)}-v{FORMAT}")


def open_store(folder: str | Path) -> Store:
    """Open a store for reading; its images stay on disk. The sizes of its files are checked, not their content.

    Raises:
        CCRError: There is no store, or it is damaged or of another version.
    """
    import pyarrow as pa

    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
        _allow_open_files(len(manifest["files"]))
        tables, maps = [], []
        for file in manifest["files"]:
            path = folder / file["name"]
            if (size := path.stat().st_size) != file["bytes"]:
                raise ValueError(f"{file['name']} has {size} bytes instead of {file['bytes']}")
            with path.open("rb") as content:
                maps.append(mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ))
            tables.append(pa.ipc.open_stream(pa.py_buffer(maps[-1])).read_all())
        table = pa.concat_tables(tables)
        if table.num_rows != manifest["images"]:
            raise ValueError(f"{table.num_rows} rows instead of {manifest['images']}")
    except CCRError:
        raise
    except FileNotFoundError as error:
        raise CCRError(f"the store {folder} is damaged ({error}); delete the folder to build it again.") from error
    except OSError as error:  # which is nothing that building it again would mend
        refuse_out_of_memory(error, folder)
        raise CCRError(f"the store {folder} cannot be opened ({error}); see to that and start again.") from error
    except Exception as error:
        refuse_out_of_memory(error, folder)
        raise CCRError(f"the store {folder} is damaged ({error}); delete the folder to build it again.") from error
    return Store(folder, manifest, table, maps)


def _allow_open_files(count: int) -> None:
    """Raise this process's own limit of open files, of which a store of millions of images needs hundreds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(hard, soft + count)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a store.

    Raises:
        CCRError: There is no store, or its manifest is damaged or of another version.
    """
    try:
        manifest: dict[str, Any] = load_json((folder / MANIFEST).read_text(encoding="utf-8"))
        if (version := manifest["format"]) == FORMAT:
            _check_manifest(manifest)
    except FileNotFoundError as error:
        raise CCRError(f"there is no store in {folder}; build it with prepare_data() or ccr data build.") from error
    except Exception as error:
        refuse_out_of_memory(error, folder)
        raise CCRError(f"the store {folder} is damaged ({error}); delete the folder to build it again.") from error
    if version != FORMAT:
        raise CCRError(f"the store {folder} is of another version; delete the folder to build it again.")
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    texts = [manifest[name] for name in ("source", "split", "fingerprint")]
    numbers = [manifest[name] for name in ("records", "images", "bad_records", "blank_captions")]
    numbers += [*manifest["captions"].values(), *manifest["images_with_caption"].values()]
    for file in manifest["files"]:
        texts += [file_name(file["name"]), file["sha256"]]
        numbers += [file["rows"], file["bytes"]]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
        raise ValueError("something in its manifest is of the wrong kind")


def read_left_out(folder: Path) -> list[dict[str, str]]:
    """Return what a store was built without: ``left_out`` (record or caption), the fault's ``kind`` and ``message``.

    Raises:
        CCRError: The list is not there, or damaged.
    """
    try:
        with (folder / LEFT_OUT).open("rb") as lines:
            return [load_json(line) for line in lines]
    except (OSError, ValueError) as error:
        raise CCRError(f"{folder} is damaged ({LEFT_OUT}: {error}); delete the folder to build it again.") from error


def verify_store(folder: Path) -> None:
    """Compare the content of a store's files with the manifest; this reads all of them.

    Raises:
        CCRError: A file is not as it was written.
    """
    for file in read_manifest(folder)["files"]:
        path = folder / file["name"]
        try:
            digest = sha256_of(path)
        except OSError as error:
            raise CCRError(f"{path}: cannot be read ({error}); delete the store's folder to build it again.") from error
        if digest != file["sha256"]:
            raise CCRError(f"{path}: is not as it was written; delete the store's folder to build it again.")
