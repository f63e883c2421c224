"""WebDataset shards: tar files in which the members of a sample follow each other, so that they are read in one go."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.images import FORMATS, MAX_BYTES
from ccr_lightning.data.sources.jsonl import caption_text
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    parse_json,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.files import load_json
from ccr_lightning.memory import refuse_out_of_memory
from ccr_lightning.types import ImageCaptions

INDEX, FORMAT = "shards.json", 1
UNFINISHED = b"{}\n"  # an index while shards are written
IMAGE_ENDINGS = ("jpg", *(name.lower() for name in FORMATS))

_MAX_HEADER = 2**20  # bytes; headers have some hundred
_READ_AHEAD = 2**20


class Sample(NamedTuple):
    """Members of a tar file that follow each other and have the same key: the name up to the first dot."""

    key: str
    where: str  # ``shard.tar: key``
    members: dict[str, bytes | RecordFault]  # by what follows the first dot, in lower case

    def content(self, ending: str) -> bytes:
        """Return a member.

        Raises:
            RecordFault: It cannot be used.
        """
        content = self.members[ending]
        if isinstance(content, RecordFault):
            raise content
        return content


def read_samples(path: Path, endings: Container[str]) -> Iterator[Sample]:
    """Yield the samples of a tar file in their order, each with its members of the given endings.

    The file is read from its beginning to its end, nothing is unpacked, and links, folders and other members are
    passed over. Memory is bounded: a member has at most ``MAX_BYTES``. The ``webdataset`` library is not used here: it
    reads members of any size, and importing it takes torch.

    Raises:
        CCRError: The file cannot be read, is no tar file (a compressed one is none), is damaged or cut off.
    """
    for key, members in groupby(_read_members(path, endings), lambda member: member.key):
        sample = Sample(key, f"{path}: {key}", {})
        for member in members:
            if member.ending in sample.members:
                fault = RecordFault(f"{sample.where}: has .{member.ending} twice; keep one of them.", "repeated image")
                sample.members[member.ending] = fault
            else:
                sample.members[member.ending] = member.content
        yield sample


class Shard(NamedTuple):
    """A tar file that an index lists."""

    path: Path
    images: int
    bytes: int
    sha256: str
    languages: dict[tuple[str, ...], int]  # number of images by the languages that they have captions in


class ShardIndex(NamedTuple):
    """What ``shards.json`` says of the shards of a split; see :func:`~ccr_lightning.data.shards.write_shards`."""

    folder: Path
    content: dict[str, Any]
    shards: tuple[Shard, ...]


def read_index(folder: Path) -> ShardIndex:
    """Read ``shards.json`` and compare the sizes of the files with it.

    Raises:
        CCRError: There is no index, it is damaged or of another version, or a file is missing or of another size.
    """
    path = folder / INDEX
    try:
        text = path.read_bytes()
        if text == UNFINISHED:
            raise CCRError(f"{path}: the shards are not finished; run ccr data shards again.")
        content = load_json(text)
        if content["format"] != FORMAT:
            raise CCRError(f"{path}: is of another version; write the shards again with ccr data shards.")
        shards = tuple(_shard(folder, entry) for entry in content["shards"])
        names = [*(content[name] for name in ("source", "split", "fingerprint")), *content["languages"]]
        counts = [content["images"], *content["captions"].values()]
        if not all(isinstance(name, str) for name in names) or not all(isinstance(count, int) for count in counts):
            raise ValueError("a name or a number is something else")
    except FileNotFoundError as error:
        raise CCRError(f"{path}: there is no such file; write shards with ccr data shards.") from error
    except CCRError:
        raise
    except Exception as error:  # of a file that may hold anything
        refuse_out_of_memory(error, path)
        raise CCRError(f"{path}: is damaged ({error!r}); write the shards again with ccr data shards.") from error
    for shard in shards:
        try:
            size = shard.path.stat().st_size
        except OSError as error:
            raise CCRError(f"{shard.path}: cannot be read ({error.strerror}); fetch it again.") from error
        except ValueError as error:  # of a name that no file can have
            raise CCRError(f"{path}: is damaged ({error}); write the shards again with ccr data shards.") from error
        if size != shard.bytes:
            raise CCRError(f"{shard.path}: has {size} bytes instead of {shard.bytes}; fetch it again.")
    return ShardIndex(folder, content, shards)


class WebDatasetShards:
    r"""Captioned images in WebDataset's shards: those of ``ccr data shards``, and others in the common layout.

    A split is a folder of tar files; those that ``shards.json`` lists, or else all ``*.tar`` in the order of their
    names. A sample has an image (``.jpg``, ``.png``, ``.webp``, ...), and captions in a ``.json``, an object of
    language to a caption or a list of them::

        00042.jpg
        00042.json    {"image_id": "a", "captions": {"en": ["A dog.", "A puppy."], "de": "Ein Hund."}}

    Others have captions of one language, as a text or a list in the ``.json`` (``captions_key: caption``) or as the one
    text in a ``.txt``: say with ``text_language`` which it is. The ``.json`` comes first; a blank caption counts as
    missing. Without an ``image_id`` it is the split, the shard and the key (``train/00000/00042``). Images that have
    captions in other languages only are passed over.

    Shards are read in order, for storage on which that is fast and random access slow; see
    :func:`~ccr_lightning.data.shards.write_shards` for what one gives up with them.

    Args:
        folders: Split (``train``, ``val``, ``test``) to folder.
        languages: Languages to yield, in the order of the K axis; by default what ``shards.json`` says, or
            ``text_language``.
        captions_key: The key of the captions in a ``.json``.
        text_language: The language of captions that are not given by language.
        parallel: Whether the captions of an image say the same in all languages; without it a rank variance over
            languages is undefined.
        name: Name for folders, logs and tables.

    Raises:
        CCRError: A folder, shard, sample or language is not as described; the message names shard and key.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with tarfile.open(folder / "00000.tar", "w") as shard:
        ...     for ending, content in (("jpg", b"an encoded picture"), ("txt", b"A dog.\n")):
        ...         member = tarfile.TarInfo(f"00042.{ending}")
        ...         member.size = len(content)
        ...         shard.addfile(member, io.BytesIO(content))
        >>> source = WebDatasetShards({"test": str(folder)}, text_language="en")
        >>> record = next(source.records("test"))
        >>> record.image_id, record.captions
        ('test/00000/00042', {'en': ('A dog.',)})
    """

    def __init__(
        self,
        folders: Mapping[str, str],
        languages: Sequence[str] | None = None,
        captions_key: str = "captions",
        text_language: str | None = None,
        parallel: bool = True,
        name: str = "shards",
    ) -> None:
        if not folders:
            raise CCRError("WebDatasetShards got no folders; name one per split, for example {'train': 'train/'}.")
        self.folders = {split: str(folder) for split, folder in folders.items()}
        self.captions_key = captions_key
        self.text_language = text_language
        self.parallel = parallel
        self.name = name
        self._languages = None if languages is None else check_languages("WebDatasetShards", languages)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a folder."""
        return tuple(self.folders)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of the captions, in the order of the K axis."""
        if self._languages is None:
            folders = [Path(folder) for folder in self.folders.values() if (Path(folder) / INDEX).is_file()]
            found = [language for folder in folders for language in read_index(folder).content["languages"]]
            if not found and self.text_language is not None:
                found = [self.text_language]
            if not found:
                raise CCRError(
                    f"WebDatasetShards: {', '.join(self.folders.values())} has no {INDEX} that names the languages; "
                    "give languages, or text_language."
                )
            self._languages = tuple(dict.fromkeys(found))
        return self._languages

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the shards' paths, sizes and times of change."""
        return files_fingerprint([self.languages, self.captions_key, self.text_language], self._shards(split))

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the shards."""
        seen: set[str] = set()

        def parse(place: tuple[Path, Sample]) -> ImageCaptions | None:
            path, sample = place
            record = self.record(sample, f"{split}/{path.stem}/{sample.key}")
            if record is not None:
                if record.image_id in seen:
                    raise RecordFault(
                        f"{record.where}: image_id {record.image_id!r} was there before; give each image its own.",
                        "repeated image",
                    )
                seen.add(record.image_id)
            return record

        samples = ((path, sample) for path in self._shards(split) for sample in read_samples(path, self.endings))
        yield from (record for record in usable(parse, samples, report) if record is not None)

    def captions(self, split: str) -> Iterator[dict[str, tuple[str, ...]]]:
        """Yield the captions of each sample of the split by language; the pictures are not read.

        Raises:
            RecordFault: A sample cannot be used.
        """
        for path in self._shards(split):
            for sample in read_samples(path, self.endings - {*IMAGE_ENDINGS}):
                yield without_blank(self._captions(sample, _fields(sample)))[0]

    @property
    def endings(self) -> frozenset[str]:
        """Endings of the members that are read."""
        return frozenset({*IMAGE_ENDINGS, "json", *(() if self.text_language is None else ("txt",))})

    def record(self, sample: Sample, image_id: str) -> ImageCaptions | None:
        """Return the record of a sample; None if it has captions in other languages only.

        Args:
            sample: Members of :attr:`endings`.
            image_id: Its identity if it has none of its own.

        Raises:
            RecordFault: It cannot be used.
        """
        where, fields = sample.where, _fields(sample)
        name = fields.get("image_id", image_id)
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            raise RecordFault(f"{where}: image_id is {name!r}; give a string or an integer.")
        images = [ending for ending in IMAGE_ENDINGS if ending in sample.members]
        if len(images) != 1:
            found = f"images in {', '.join(images)}" if images else "no image (.jpg, .png, .webp)"
            raise RecordFault(f"{where}: has {found}; give it one.", "missing image")
        given, blank = without_blank(self._captions(sample, fields))
        captions = {language: given[language] for language in self.languages if language in given}
        if given and not captions:
            return None
        return ImageCaptions(str(name), sample.content(images[0]), captions, where, blank)

    def _captions(self, sample: Sample, fields: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
        where = sample.where
        given = fields.get(self.captions_key)
        if given is None and "txt" in sample.members:
            given = Line(sample.content("txt"), where).text.strip()
        if given is None:
            raise RecordFault(
                f"{where}: has no captions: no key {self.captions_key!r} in a .json, and no .txt with text_language; "
                "give them, or set captions_key and text_language."
            )
        if not isinstance(given, dict):
            if self.text_language is None:
                raise RecordFault(f"{where}: {self.captions_key!r} is not by language; give text_language.")
            given = {self.text_language: given}
        return {
            language: [
                (caption_text(text, language, where), where) for text in (texts if isinstance(texts, list) else [texts])
            ]
            for language, texts in given.items()
        }

    def _shards(self, split: str) -> list[Path]:
        check_split(self.name, split, self.splits, "add it to folders")
        folder = Path(self.folders[split])
        if (folder / INDEX).is_file():
            return [shard.path for shard in read_index(folder).shards]
        shards = sorted(path for path in folder.glob("*.tar") if path.is_file())
        if not shards:
            raise CCRError(f"{folder}: there are no shards (*.tar) of split {split!r}; check folders.")
        return shards


def _fields(sample: Sample) -> dict[str, Any]:
    return parse_json(Line(sample.content("json"), sample.where)) if "json" in sample.members else {}


class _Member(NamedTuple):
    key: str
    ending: str
    content: bytes | RecordFault


class _Tar(io.BufferedReader):
    """A file of which ``tarfile`` reads no more at once than a header has: a damaged one may ask for any size."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)

    def content(self, member: tarfile.TarInfo) -> bytes:
        self.seek(member.offset_data)
        content = super().read(member.size)
        if len(content) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        return content


def _read_members(path: Path, endings: Container[str]) -> Iterator[_Member]:
    try:
        with (
            _Tar(path.open("rb", buffering=0), _READ_AHEAD) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which would grow with the file
                if member.size < 0:
                    raise tarfile.ReadError("a member of negative size")
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not member.isreg() or not stem or ending.lower() not in endings:
                    continue
                key = f"{folder}{slash}{stem}".encode(errors="backslashreplace").decode()
                fault = RecordFault(f"{path}: {key}: .{ending} has more than {MAX_BYTES // 10**6} MB; make it smaller.")
                is_large = member.size > MAX_BYTES or member.issparse()
                yield _Member(key, ending.lower(), fault if is_large else file.content(member))
            file.seek(tar.offset)  # tarfile takes any header that it cannot read for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"there is no end at byte {tar.offset}")
    except Exception as error:  # tarfile raises what it likes
        refuse_out_of_memory(error, path)
        raise CCRError(f"{path}: is no tar file, or damaged, or cut off ({error}); fetch it again.") from error


def _shard(folder: Path, entry: dict[str, Any]) -> Shard:
    name, images, size, digest = (entry[key] for key in ("name", "images", "bytes", "sha256"))
    if Path(name).name != name or not isinstance(images, int) or not isinstance(size, int):
        raise ValueError(f"a shard is {entry}")
    languages = {tuple(names): int(count) for names, count in entry["images_by_languages"]}
    if images < 0 or sum(languages.values()) != images:
        raise ValueError(f"{name} has {images} images, and by languages {sum(languages.values())}")
    return Shard(folder / name, images, size, str(digest), languages)
