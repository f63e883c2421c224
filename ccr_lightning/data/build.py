"""Builds stores: once, in several files, going on after a kill, the same bytes whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from ccr_lightning._version import __version__
from ccr_lightning.data.cache import writable_folder
from ccr_lightning.data.faults import RecordFault, printable
from ccr_lightning.data.records import RecordOrFault, read_records, with_pictures
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.store import FORMAT, LEFT_OUT, MANIFEST, read_left_out, read_manifest
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, could_not_be_written, load_json, sha256_of
from ccr_lightning.progress import counted
from ccr_lightning.types import ImageCaptions, MachineTranslation

BadRecords = Literal["error", "skip"]

MAX_BAD_FRACTION = 0.01  # of the records of a split, where bad ones are left out

FILE_BYTES = 2**30  # of pictures in one file of a store; each takes a descriptor of every process that reads it
FILE_RECORDS = 20_000  # read for one file at the most, so that many bad ones are seen before the end
EARLIEST_STOP = 1000  # of fewer records, the share of bad ones says nothing about those to come

_ROWS_PER_BATCH = 100
_BEGUN = "begun.json"
_OTHERWISE = "choose another cache_dir"
_SAID_OF: set[Path] = set()  # the stores that lack records, of which this process has spoken


def check_max_bad_fraction(fraction: float) -> None:
    """Check that it is a share.

    Raises:
        CCRError: It is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise CCRError(f"max_bad_fraction is {fraction}; give a share from 0 to 1.")


def default_policy(split: str) -> BadRecords:
    """Return what to do with bad records if nobody says: training skips them, evaluation would change and stops."""
    return "skip" if split == "train" else "error"


def build_store(
    source: Source,
    split: str,
    folder: str | Path,
    bad_records: BadRecords = "error",
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> None:
    """Write the split to a store, unless it is there.

    Every picture is decoded once. A build that was killed goes on after its last finished file, and gives the same
    bytes as one that was not. Of several processes that try at once one builds and the others wait.

    A bad record is one that cannot be parsed or whose picture cannot be decoded. A blank caption of a published data
    set is left out and its image stays. Both are counted in the manifest and listed in ``left_out.jsonl`` with their
    places. As the pictures of a store can be decoded and its rows are numbered without what was left out, no record is
    replaced while training.

    Args:
        source: Where images and captions come from.
        split: One of its splits.
        folder: The store's folder.
        bad_records: ``error`` stops at the first bad record, and refuses a store that lacks some; ``skip`` leaves them
            out.
        max_bad_fraction: With ``skip``, the largest fraction of bad records, in [0, 1]; it is looked at after each
            file from 1,000 records on, and at the end.

    Raises:
        CCRError: The source has no such split or no image in it, there are too many bad records, or the store cannot be
            written.
    """
    check_max_bad_fraction(max_bad_fraction)
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        writable_folder(folder.parent)
        try:
            with alone(folder):
                if not (folder / MANIFEST).is_file():
                    _build(source, split, folder, bad_records, max_bad_fraction)
                    _SAID_OF.add(folder)
                    return
        except OSError as error:
            raise could_not_be_written(folder, "the store", error, _OTHERWISE) from error
    manifest = read_manifest(folder)
    refuse_what_lacks(folder, manifest, bad_records, max_bad_fraction)
    if manifest["bad_records"] and folder not in _SAID_OF:
        _SAID_OF.add(folder)
        print(
            f"{folder.name} was built without {manifest['bad_records']} of {manifest['records']} records; see "
            f"{folder / LEFT_OUT}, and delete the folder to try them again",
            file=sys.stderr,
        )


def refuse_what_lacks(folder: Path, counts: dict[str, Any], bad_records: BadRecords, max_bad_fraction: float) -> None:
    """Refuse what was written before if it lacks records that the policy does not allow to leave out.

    Raises:
        CCRError: It does.
    """
    if bad := counts["bad_records"]:
        entries = (entry for entry in read_left_out(folder) if entry["left_out"] == "record")
        first = next(entries, {"message": "it is not listed."})
        if bad_records == "error":
            raise CCRError(
                f"{folder} was built without {bad} bad records (the first: {first['message']}); mend the data and "
                "delete the folder, or set bad_records to skip."
            )
        _check_fraction(bad, counts["records"], max_bad_fraction, first["message"])


@dataclass
class WrittenFile:
    """A file of a store or of shards, and what was left out on the way to its end."""

    name: str
    records: int = 0  # read for it, bad ones included
    rows: int = 0
    bytes: int = 0
    sha256: str = ""
    captions: Counter[str] = field(default_factory=Counter)
    images_with_caption: Counter[str] = field(default_factory=Counter)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def usable(self, records: Iterator[RecordOrFault], bad_records: BadRecords) -> Iterator[ImageCaptions]:
        """Yield the records that can be used, to be written as its rows, and count all.

        Raises:
            RecordFault: A record cannot be used, and the policy is to stop.
        """
        for record in records:
            self.records += 1
            if isinstance(record, RecordFault):
                if bad_records == "error":
                    raise record
                self.left_out.append({"left_out": "record", "kind": record.kind, "message": str(record)})
            else:
                for place in record.blank_captions:
                    message = f"{place}: the caption is blank."
                    self.left_out.append({"left_out": "caption", "kind": "blank caption", "message": message})
                self.rows += 1
                self.captions.update({language: len(texts) for language, texts in record.captions.items()})
                self.images_with_caption.update(record.captions.keys())
                yield record
            if self.records == FILE_RECORDS:
                return


def _build(source: Source, split: str, folder: Path, bad_records: BadRecords, max_bad_fraction: float) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise CCRError(f"{folder} has something else in it; move that away, or choose another cache_dir.")
    data = {"format": FORMAT, "source": source.name, "split": split, "fingerprint": source.fingerprint(split)}
    partial = folder.with_name(f".{folder.name}.partial")
    files: list[WrittenFile] = []
    try:
        files += _finished_files(partial, {**data, "bad_records": bad_records, "package_version": __version__})
        for file in _write_files(source, split, partial, files, bad_records):
            files.append(file)
            if sum(file.records for file in files) >= EARLIEST_STOP:
                _refuse_many_bad(files, max_bad_fraction, partial)
            _write_json(partial / f"{file.name}.json", vars(file))
        _refuse_many_bad(files, max_bad_fraction, partial)
        if not sum(file.rows for file in files):
            raise CCRError(f"the split {split!r} of {source.name} has no images; check the source.")
        write_left_out(files, partial)
        _write_json(partial / MANIFEST, {**data, "package_version": __version__, **total_counts(files)})
        for path in partial.iterdir():  # the notes of the build, and remains of a kill
            if path.name not in (MANIFEST, LEFT_OUT, *(file.name for file in files)):
                path.unlink()
        partial.replace(folder)
    finally:
        if not files:
            shutil.rmtree(partial, ignore_errors=True)
    say_left_out(files, source, split, folder)


def _finished_files(partial: Path, begun: dict[str, Any]) -> list[WrittenFile]:
    """What an interrupted build of the same data has finished; other remains are removed."""
    try:
        is_same = load_json((partial / _BEGUN).read_text(encoding="utf-8")) == begun
    except (OSError, ValueError):
        is_same = False
    if not is_same:
        shutil.rmtree(partial, ignore_errors=True)
        _write_json(partial / _BEGUN, begun)
    files: list[WrittenFile] = []
    while (path := partial / f"{_file_name(len(files))}.json").is_file():
        try:
            fields = load_json(path.read_text(encoding="utf-8"))
            if sha256_of(partial / _file_name(len(files))) != fields["sha256"]:
                break
            counters = {name: Counter(fields[name]) for name in ("captions", "images_with_caption")}
            files.append(WrittenFile(**{**fields, **counters}))
        except (OSError, ValueError, TypeError, KeyError):  # it is written again
            break
    return files


def _write_files(
    source: Source, split: str, partial: Path, finished: list[WrittenFile], bad_records: BadRecords
) -> Iterator[WrittenFile]:
    read = sum(file.records for file in finished)
    remaining = islice(read_records(source, split), read, None)
    records = counted(with_pictures(remaining), f"preparing {source.name}/{split}", "images", start=read)
    for number in count(len(finished)):
        path = partial / _file_name(number)
        file = _write_file(records, path, bad_records)
        if not file.records:
            path.unlink()
            return
        yield file


def _write_file(records: Iterator[RecordOrFault], path: Path, bad_records: BadRecords) -> WrittenFile:
    """Write records until the file is large enough or there are no more."""
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    text = Value("string")
    captions = List({"language": text, "texts": List(text)})
    columns = {"image_id": text, "image": Value("binary"), "captions": captions, "text_length": Value("int32")}
    columns |= {"sha256": text}
    origin = {"language": text, "number": Value("int32"), "translated_by": text, "translated_on": text}
    features = Features({**columns, "translations": List(origin), "where": text})
    file, size = WrittenFile(path.name), 0
    with ArrowWriter(features=features, path=str(path), writer_batch_size=_ROWS_PER_BATCH) as writer:
        for record in file.usable(records, bad_records):
            row = _row(record)
            writer.write(row)
            size += len(row["image"])
            if size >= FILE_BYTES:
                break
        writer.finalize()
    with path.open("rb") as written:
        os.fsync(written.fileno())
    file.bytes, file.sha256 = path.stat().st_size, sha256_of(path)
    return file


def _row(record: ImageCaptions) -> dict[str, Any]:
    assert isinstance(record.image, bytes)
    captions = {name: list(texts) for name, texts in record.captions.items()}
    lengths = [len(text.encode()) for texts in captions.values() for text in texts]
    content = [record.image_id, hashlib.sha256(record.image).hexdigest(), captions]
    return {
        "image_id": record.image_id,
        "image": record.image,
        "captions": [{"language": name, "texts": texts} for name, texts in captions.items()],
        "translations": [
            {
                "language": name,
                "number": number,
                "translated_by": text.translated_by,
                "translated_on": text.translated_on,
            }
            for name, texts in record.captions.items()
            for number, text in enumerate(texts)
            if isinstance(text, MachineTranslation)
        ],
        "text_length": sum(lengths) // max(len(lengths), 1),
        "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "where": printable(record.where),
    }


def total_counts(files: Sequence[WrittenFile]) -> dict[str, Any]:
    """Return the numbers of all files together, and of each the rows, the size and the sha256."""
    left_out = Counter(entry["left_out"] for file in files for entry in file.left_out)
    captions: Counter[str] = sum((file.captions for file in files), Counter())
    images: Counter[str] = sum((file.images_with_caption for file in files), Counter())
    return {
        "records": sum(file.records for file in files),
        "images": sum(file.rows for file in files),
        "captions": dict(captions),
        "images_with_caption": dict(images),
        "blank_captions": left_out["caption"],
        "bad_records": left_out["record"],
        "files": [{name: getattr(file, name) for name in ("name", "rows", "bytes", "sha256")} for file in files],
    }


def _refuse_many_bad(files: Sequence[WrittenFile], max_bad_fraction: float, partial: Path) -> None:
    try:
        refuse_many_bad(files, max_bad_fraction)
    except CCRError:
        shutil.rmtree(partial, ignore_errors=True)  # what is missing may be there the next time
        raise


def refuse_many_bad(files: Sequence[WrittenFile], max_bad_fraction: float) -> None:
    """Refuse too many bad records.

    Raises:
        CCRError: There are.
    """
    counts = total_counts(files)
    if bad := counts["bad_records"]:
        first = next(entry for file in files for entry in file.left_out if entry["left_out"] == "record")
        _check_fraction(bad, counts["records"], max_bad_fraction, first["message"])


def _check_fraction(bad: int, records: int, most: float, first: str) -> None:
    if bad > most * records:
        raise CCRError(
            f"{first.removesuffix('.')} (one of {bad} bad records of {records}, more than the {100 * most:g} % that "
            "max_bad_fraction allows; ccr data check lists them)."
        )


def write_left_out(files: Sequence[WrittenFile], folder: Path) -> None:
    """Write the list of what was left out, an empty one too."""
    left_out = [entry for file in files for entry in file.left_out]
    with atomic_write(folder / LEFT_OUT, "the list of what was left out", _OTHERWISE) as list_file:
        list_file.write("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in left_out).encode())


def say_left_out(files: Sequence[WrittenFile], source: Source, split: str, folder: Path) -> None:
    """Say on the terminal what was left out, if anything was."""
    counts = total_counts(files)
    if counts["bad_records"] or counts["blank_captions"]:
        numbers = f"{counts['bad_records']} of {counts['records']} records, {counts['blank_captions']} blank captions"
        print(f"left out of {source.name}/{split}: {numbers}; see {folder / LEFT_OUT}", file=sys.stderr)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process in at a time."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process prepares {folder.name}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _file_name(number: int) -> str:
    return f"data-{number:05}.arrow"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path, "the store", _OTHERWISE) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode())
