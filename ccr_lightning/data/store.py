"""Each split of a source in one Arrow file: built once, memory-mapped, read row by row."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccr_lightning.data.images import open_image, read_image
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_FORMAT = 1
_ARROW, _MANIFEST = "data.arrow", "manifest.json"
_ROWS_PER_BATCH = 100


class Store:
    """The rows of one split: image id, encoded image, captions by language, and where the record came from.

    Attributes:
        folder: Where it lies.
        manifest: Source, split, fingerprint and counts.
        image_names: The image id of each row.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], table: Any) -> None:
        self.folder = folder
        self.manifest = manifest
        self.image_names: list[str] = table.column("image_id").to_pylist()
        # plain columns: a row through datasets' own formatting takes many times longer
        self._image = table.column("image")
        self._captions = table.column("captions")
        self._where = table.column("where")

    def __len__(self) -> int:
        return len(self.image_names)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.folder,)  # a worker process maps the file instead of receiving its content

    def image(self, row: int) -> bytes:
        """Return the bytes of the row's encoded image."""
        data: bytes = self._image[row].as_py()
        return data

    def captions(self, row: int) -> dict[str, list[str]]:
        """Return the row's captions by language; a language without a caption is absent."""
        return {entry["language"]: entry["texts"] for entry in self._captions[row].as_py()}

    def where(self, row: int) -> str:
        """Return where the record came from, for error messages."""
        text: str = self._where[row].as_py()
        return text

    def rows_with_caption(self, languages: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows that have a caption in any of the languages, ascending."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = pc.list_parent_indices(self._captions)  # of each row's languages, in one go: a loop takes minutes
        names = pc.struct_field(pc.list_flatten(self._captions), "language")
        chosen = pc.filter(rows, pc.is_in(names, value_set=pa.array(languages, pa.string())))
        return np.unique(chosen.to_numpy())

    def caption_counts(self) -> dict[str, int]:
        """Return the number of captions by language, without those that have none."""
        counts: dict[str, int] = self.manifest["captions"]
        return counts


def default_cache_dir() -> Path:
    """Return ``$CCR_CACHE_DIR``, else ``ccr-lightning`` in the user's cache folder.

    Where that cannot be written it is, with a warning, a temporary folder.

    Raises:
        CCRError: ``$CCR_CACHE_DIR`` cannot be written.
    """
    if chosen := os.environ.get("CCR_CACHE_DIR"):
        return writable_folder(Path(chosen).expanduser())
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccr-lightning"
    try:
        return writable_folder(usual)
    except CCRError:
        fallback = Path(tempfile.gettempdir()) / f"ccr-lightning-{os.getuid()}"
        warnings.warn(f"{usual} cannot be written; prepared data goes to {fallback}, set CCR_CACHE_DIR.", stacklevel=2)
        return writable_folder(fallback)


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


def build_store(source: Source, split: str, folder: str | Path) -> None:
    """Write the split to a store, unless it is there; several processes may try at once.

    Raises:
        CCRError: The source has no such split or no image in it, an image cannot be read, or the store cannot be
            written.
    """
    folder = Path(folder)
    if (folder / _MANIFEST).is_file():
        return
    writable_folder(folder.parent)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        captions: Counter[str] = Counter()
        images = _write_arrow(source, split, building / _ARROW, captions)
        if not images:
            raise CCRError(f"the split {split!r} of {source.name} has no images; check the source.")
        manifest = {
            "format": _FORMAT,
            "source": source.name,
            "split": split,
            "fingerprint": source.fingerprint(split),
            "images": images,
            "captions": dict(captions),
        }
        (building / _MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        building.chmod(0o755)
        try:
            building.replace(folder)
        except OSError:
            if not (folder / _MANIFEST).is_file():  # else another process was faster, and its store is as good
                raise
    except OSError as error:
        raise CCRError(
            f"the store {folder} cannot be written ({error}); free some space or choose another cache_dir."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def open_store(folder: str | Path) -> Store:
    """Open a store for reading; its images stay on disk.

    Raises:
        CCRError: There is no store, or it is damaged or of another version.
    """
    from datasets import Dataset

    folder = Path(folder)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] == _FORMAT:
            table = Dataset.from_file(str(folder / _ARROW)).data.table
            if table.num_rows == manifest["images"]:
                return Store(folder, manifest, table)
    except FileNotFoundError as error:
        raise CCRError(f"there is no store in {folder}; build it with prepare_data().") from error
    except Exception as error:
        raise CCRError(f"the store {folder} is damaged ({error}); delete the folder to build it again.") from error
    raise CCRError(f"the store {folder} is incomplete or of another version; delete the folder to build it again.")


def _write_arrow(source: Source, split: str, path: Path, captions: Counter[str]) -> int:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    text = Value("string")
    features = Features(
        {
            "image_id": text,
            "image": Value("binary"),
            "captions": List({"language": text, "texts": List(text)}),
            "where": text,
        }
    )
    with ArrowWriter(features=features, path=str(path), writer_batch_size=_ROWS_PER_BATCH) as writer:
        for row in _rows(source, split):
            captions.update({entry["language"]: len(entry["texts"]) for entry in row["captions"]})
            writer.write(row)
        images, _ = writer.finalize()
    return int(images)


def _rows(source: Source, split: str) -> Iterator[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed} images"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"preparing {source.name}/{split}", total=None)
        for record in _records(source, split):
            entries = [{"language": name, "texts": list(texts)} for name, texts in record.captions.items()]
            image = read_image(record.image, record.where)
            open_image(image, record.where)  # a damaged picture stops the preparation, not the fifth hour of a run
            yield {"image_id": record.image_id, "image": image, "captions": entries, "where": record.where}
            progress.advance(task)


def _records(source: Source, split: str) -> Iterator[ImageCaptions]:
    try:
        yield from source.records(split)
    except OSError as error:  # the source's, and not to be taken for one of writing the store
        raise CCRError(f"the split {split!r} of {source.name} cannot be read ({error}); check its files.") from error
