"""The pre-training files of CCLM and CCRK: folders of JSON lines, with paths or base64 images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    image_below,
    image_from_base64,
    parse_json,
    read_json_lines,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_IMAGE_KEYS = ("image", "binary")


class PretrainJsonLines:
    """Machine-translated pre-training data in the layout of CCLM and CCRK (Nie et al., KDD 2024).

    A split is a folder of files ``*.data``, read in the order of their names; as published there is ``train`` only,
    1,863,804 images of CC3M and 1,445,716 of SBU, Visual Genome and COCO in CCRK's. A line is an image with
    ``caption``, an object of language to caption or a list of such objects (CCLM's; CCRK's code reads no lists), and
    either ``image_path``, a path below ``image_root``, or the image itself in base64 in ``image`` or ``binary``. Both
    codes have a setting ``is_image_rpath`` for that, with opposite meanings; here each line says by its key which one
    it is, and a line with both or with neither is an error. The image id is the path, or split, file and line.

    Parallel: the captions of an image translate one English caption. Blank captions count as missing, others are taken
    as they are. Licence: not stated for the translations; captions and images keep the terms of their data sets.

    Args:
        folders: Split (``train``, ``val``, ``test``) to folder.
        image_root: Folder of the images; needed for lines with a path.
        languages: Languages to yield, in the order of the K axis; by default CCRK's ten. CCLM's files have cs de en fr
            ja zh.
        name: Name for folders, logs and tables.

    Raises:
        CCRError: A folder, file, line or image is not as described.

    Example:
        >>> source = PretrainJsonLines({"train": "cc3m"}, image_root="images", languages=["en", "zh"])
        >>> source.languages
        ('en', 'zh')
    """

    parallel = True

    def __init__(
        self,
        folders: Mapping[str, str],
        image_root: str | None = None,
        languages: Sequence[str] = ("cs", "de", "en", "es", "fr", "id", "ja", "ru", "tr", "zh"),
        name: str = "pretrain",
    ) -> None:
        self.name = name
        self.languages = check_languages("PretrainJsonLines", languages)
        self._folders = {split: Path(folder) for split, folder in folders.items()}
        self._image_root = None if image_root is None else Path(image_root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a folder."""
        return tuple(self._folders)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        root = None if self._image_root is None else self._image_root.absolute()
        return files_fingerprint([self.languages, root], self._files(split))

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield the image of each line."""
        root = None if self._image_root is None else self._image_root.resolve()
        seen: set[int] = set()  # hashes: the paths of three million images would take half a gigabyte

        def record(line: Line) -> ImageCaptions:
            fields = parse_json(line)
            captions, blank = without_blank(self._captions(fields.get("caption"), line))
            image_id, image = _image(fields, root, line, split)
            if hash(image_id) in seen:
                raise RecordFault(
                    f"{line.where}: the image {image_id!r} has a line before; give its captions as a list in one.",
                    "repeated image",
                )
            seen.add(hash(image_id))
            return ImageCaptions(image_id, image, captions, line.where, blank)

        for path in self._files(split):
            yield from usable(record, read_json_lines(path), report)

    def _captions(self, given: Any, line: Line) -> dict[str, list[tuple[str, str]]]:
        several = given if isinstance(given, list) else [given]
        captions: dict[str, list[tuple[str, str]]] = {}
        for by_language in several:
            if not isinstance(by_language, dict) or not all(isinstance(text, str) for text in by_language.values()):
                raise RecordFault(
                    f"{line.where}: caption is {given!r}; it is an object of language to caption, or a list."
                )
            for language in self.languages:
                if language in by_language:
                    captions.setdefault(language, []).append((by_language[language], line.where))
        return captions

    def _files(self, split: str) -> list[Path]:
        check_split(self.name, split, self.splits, "add it to folders")
        files = sorted(self._folders[split].glob("*.data"))
        if not files:
            raise CCRError(f"{self._folders[split]}: there are no files *.data; check the folder of split {split!r}.")
        return files


def _image(record: Mapping[str, Any], root: Path | None, line: Line, split: str) -> tuple[str, Path | bytes]:
    keys = [key for key in ("image_path", *_IMAGE_KEYS) if record.get(key) is not None]
    if len(keys) != 1 or not isinstance(record[keys[0]], str):
        raise RecordFault(f"{line.where}: found {keys}; give the image as one text, in image_path, image or binary.")
    value = record[keys[0]]
    if keys[0] == "image_path":
        if root is None:
            raise CCRError(f"{line.where}: image_path {value!r} is below no folder; set image_root.")
        return value, image_below(root, value, line.where)
    return f"{split}/{line.where.rpartition('/')[2]}", image_from_base64(value, line.where)
