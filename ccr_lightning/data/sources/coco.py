"""COCO in English, Japanese and Chinese: Karpathy's splits, STAIR and YJ Captions, COCO-CN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    find_file,
    image_below,
    read_json,
    read_lines,
    storable,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}

_KARPATHY_NAMES = tuple(name for names in _KARPATHY_SPLITS.values() for name in names)


class Coco:
    """Captions of COCO's images in several languages, by image.

    Images, splits and English come from Karpathy's ``dataset_coco.json``: 113,287 images in ``train`` (82,783 of
    train2014 and the 30,504 of "restval"), 5,000 in ``val`` and in ``test``, five captions an image or a few more.
    Japanese comes from the json files of STAIR Captions (five captions for each of these images) or of YJ Captions
    (26,500 images, about five each), Chinese from the lines ``<image>#<number> TAB <caption>`` of COCO-CN; what a file
    is shows in its content. COCO-CN has splits of its own, lists of 18,341, 1,000 and 1,000 images, which ``lists``
    puts in the place of Karpathy's; Karpathy's train and val have images of COCO-CN's test, which ``held_out`` leaves
    out.

    Not parallel: the captions are written independently in each language, but for 5,000 of COCO-CN that translate
    English ones, so MRV says little. Captions are taken as they are, a blank one counts as missing; those of an image
    that Karpathy's file lacks belong to no split and are passed over. The image id is the name of the image file.

    Licence: the captions of COCO, STAIR and YJ are CC BY 4.0, COCO-CN's MIT; for Karpathy's file none is stated. The
    images are Flickr's, under its terms of use.

    Args:
        coco_root: The folder of COCO that holds ``train2014`` and ``val2014``.
        karpathy: ``dataset_coco.json``.
        captions: Language to its files, beside English.
        languages: Languages to yield, in the order of the K axis; by default English and those of ``captions``.
        lists: Split to a file of image names, instead of Karpathy's splits.
        held_out: Files of names of images that ``train`` and ``val`` are without, such as the lists of COCO-CN's test.

    Raises:
        CCRError: A file, record or image is not as described.

    Example:
        >>> Coco("coco", "dataset_coco.json", captions={"ja": ["stair_train.json", "stair_val.json"]}).languages
        ('en', 'ja')
    """

    name = "coco"
    parallel = False

    def __init__(
        self,
        coco_root: str,
        karpathy: str,
        captions: Mapping[str, Sequence[str]] | None = None,
        languages: Sequence[str] | None = None,
        lists: Mapping[str, str] | None = None,
        held_out: Sequence[str] = (),
    ) -> None:
        self._files = {language: [Path(path) for path in paths] for language, paths in (captions or {}).items()}
        known = ("en", *self._files)
        self.languages = check_languages("Coco, without more files in captions,", languages or known, known)
        self._coco_root, self._karpathy = Path(coco_root), Path(karpathy)
        self._lists = None if lists is None else {split: Path(path) for split, path in lists.items()}
        self._held_out = [Path(path) for path in held_out]

    @property
    def splits(self) -> tuple[str, ...]:
        """Karpathy's splits, or those of ``lists``."""
        return tuple(_KARPATHY_SPLITS if self._lists is None else self._lists)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        files = [
            self._karpathy_file(),
            *(path for language in self._others() for path in self._language_files(language)),
        ]
        if (names := self._list_file(split)) is not None:
            files.append(names)
        held_out = self._held_out_files(split)
        settings = [self.languages, self._files, self._coco_root.absolute(), *held_out]
        return files_fingerprint(settings, [*files, *held_out])

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of Karpathy's file, or of the list."""
        images = self._images(report)
        others = {language: self._captions_of(language, images, report) for language in self._others()}
        root = self._coco_root.resolve()

        def record(image: _Image) -> ImageCaptions:
            captions, blank = without_blank(
                {
                    language: image.english if language == "en" else others[language].get(image.name, [])
                    for language in self.languages
                }
            )
            path = image_below(root, f"{image.folder}/{image.name}", image.where)
            return ImageCaptions(image.name, path, captions, image.where, blank)

        yield from usable(record, self._of_split(split, images, report), report)

    def _images(self, report: Report) -> dict[str, _Image]:
        """All images of Karpathy's file by name."""
        path = self._karpathy_file()
        rows = enumerate(_list(read_json(path), "images", path), 1)
        images: dict[str, _Image] = {}
        numbers: dict[int, str] = {}

        def add(row: tuple[int, Any]) -> None:
            number, image = row
            where = f"{path}: image {number}"
            name = _text(image, "filename", where)
            if name in images:
                raise RecordFault(f"{where}: {name} is in the file before; fetch the file again.", "repeated image")
            sentences = _list(image, "sentences", where, RecordFault)
            english = [(_text(sentence, "raw", where), where) for sentence in sentences]
            folder, split = _text(image, "filepath", where), _text(image, "split", where)
            if split not in _KARPATHY_NAMES:
                raise RecordFault(f"{where}: split is {split!r}; it is one of {', '.join(_KARPATHY_NAMES)}.")
            coco_id = _number(image, "cocoid", where)
            if (other := numbers.setdefault(coco_id, name)) != name:
                raise RecordFault(f"{where}: cocoid {coco_id} is that of {other} too; fetch the file again.")
            images[name] = _Image(name, coco_id, folder, split, english, where)

        for _ in usable(add, rows, report):
            pass
        return images

    def _of_split(self, split: str, images: Mapping[str, _Image], report: Report) -> Iterable[_Image]:
        held_out = {image.name for file in self._held_out_files(split) for image in self._listed(file, images, report)}
        if (file := self._list_file(split)) is None:
            chosen = [image for image in images.values() if image.split in _KARPATHY_SPLITS[split]]
        else:
            chosen = list({image.name: image for image in self._listed(file, images, report)}.values())
        return [image for image in chosen if image.name not in held_out]

    def _listed(self, file: Path, images: Mapping[str, _Image], report: Report) -> Iterator[_Image]:
        def find(line: Line) -> _Image:
            name = f"{line.text.strip().partition('#')[0].removesuffix('.jpg')}.jpg"
            if name not in images:
                raise RecordFault(f"{line.where}: the image {name!r} is not in {self._karpathy}; check the list.")
            return images[name]

        return usable(find, (line for line in read_lines(file) if line.raw.strip()), report)

    def _captions_of(
        self, language: str, images: Mapping[str, _Image], report: Report
    ) -> dict[str, list[tuple[str, str]]]:
        """Captions with their places by image name; those of images that Karpathy's file lacks are of no split."""
        names = {image.number: image.name for image in images.values()}
        captions: dict[str, list[tuple[str, str]]] = {}
        for path in self._language_files(language):
            first = next(read_lines(path)).raw.lstrip()
            found = _coco_json(path, report) if first.startswith(b"{") else _coco_cn_lines(path, report)
            for image, text, where in found:
                if (name := names.get(image) if isinstance(image, int) else image) is not None:
                    captions.setdefault(name, []).append((text, where))
        return captions

    def _others(self) -> list[str]:
        return [language for language in self.languages if language != "en"]

    def _language_files(self, language: str) -> list[Path]:
        return [find_file(path, f"get the captions in {language!r}, see Coco") for path in self._files[language]]

    def _karpathy_file(self) -> Path:
        return find_file(self._karpathy, "get Karpathy's caption_datasets.zip and unzip it")

    def _list_file(self, split: str) -> Path | None:
        check_split(self.name, split, self.splits)
        return None if self._lists is None else find_file(self._lists[split], "correct lists")

    def _held_out_files(self, split: str) -> list[Path]:
        return (
            [find_file(path, "get COCO-CN, or correct held_out") for path in self._held_out] if split != "test" else []
        )


class _Image(NamedTuple):
    name: str
    number: int
    folder: str
    split: str
    english: list[tuple[str, str]]  # with their places
    where: str


def _coco_json(path: Path, report: Report) -> Iterator[tuple[int, str, str]]:
    def parse(row: tuple[int, Any]) -> tuple[int, str, str]:
        number, annotation = row
        where = f"{path}: annotation {number}"
        return _number(annotation, "image_id", where), _text(annotation, "caption", where), where

    yield from usable(parse, enumerate(_list(read_json(path), "annotations", path), 1), report)


def _coco_cn_lines(path: Path, report: Report) -> Iterator[tuple[str, str, str]]:
    def parse(line: Line) -> tuple[str, str, str]:
        image, tab, text = line.text.partition("\t")
        name, sharp, _ = image.partition("#")
        if not (tab and sharp and name):
            raise RecordFault(
                f"{line.where}: {line.text[:40]!r} is not '<image>#<number>', a tab and a caption; mend it."
            )
        return f"{name.removesuffix('.jpg')}.jpg", text, line.where

    yield from usable(parse, read_lines(path), report)


def _list(record: Any, key: str, where: str | Path, error: type[CCRError] = CCRError) -> list[Any]:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, list):
        raise error(f"{where}: {key} is missing or no list; fetch the file again.")
    return value


def _number(record: Any, key: str, where: str) -> int:
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) is not int:  # True is an int too
        raise RecordFault(f"{where}: {key} is {value!r}; it is an integer.")
    return value


def _text(record: Any, key: str, where: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise RecordFault(f"{where}: {key} is {value!r}; it is a text.")
    return storable(value, where)
