"""WIT as IGLUE publishes it: Wikipedia's images with the captions of eleven languages' editions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    find_file,
    image_from_base64,
    parse_json,
    read_json_lines,
    read_lines,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_OBTAIN = "get datasets/wit/annotations of the IGLUE repository (github.com/e-bug/iglue), and unzip what is zipped"
_IMAGES = "get the pixel files (kaggle.com/c/wikipedia-image-caption/data) and name them, or their folder, in images"
_TABLES = ("*.csv", "*.csv.gz", "*.tsv", "*.tsv.gz")


class WIT:
    """The captions of WIT (Srinivasan et al., 2021) in the splits of IGLUE (Bugliarello et al., 2022).

    ``test`` has 570 to 1,000 captions in each of ar bg da el en et id ja ko tr vi; ``val`` (4,632 captions) and
    ``train`` (how many is not confirmed) are English only. An image has up to 24 captions; it is known by its URL,
    which is the image id (``image_idx`` repeats for different images). Not parallel: the languages describe different
    images, so MRV is undefined. A caption of white space only counts as missing; all others are taken as they are,
    repeated ones included.

    The image of a line is the base64 field ``image_content`` in it, or is looked up by its URL, letter for letter, in
    tab-separated files whose first two columns are URL and base64, as the pixel files of the Kaggle competition
    "Wikipedia - Image/Caption Matching" are. The first image of a URL counts. Those files leave out pictures of people,
    so some will be missing, each of which is a bad record.

    Licence: the captions are CC BY-SA 3.0; each image has its own, on Wikimedia Commons.

    Args:
        annotations: The folder of ``test_en.jsonl`` and the others.
        images: A tab-separated file, several, or a folder of ``*.csv`` and ``*.tsv``, plain or gzip; needed unless the
            lines hold their images.
        languages: Languages to yield, in the order of the K axis.

    Raises:
        CCRError: A file, line or image is not as described.

    Example:
        >>> source = WIT("wit/annotations", images="wit/image_pixels", languages=["en", "ja"])
        >>> source.parallel
        False
    """

    name = "wit"
    parallel = False
    splits = ("train", "val", "test")

    def __init__(
        self,
        annotations: str,
        images: str | Sequence[str] | None = None,
        languages: Sequence[str] = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi"),
    ) -> None:
        self.languages = check_languages("WIT", languages)
        self._annotations = Path(annotations)
        if images is not None and not images:
            raise CCRError("WIT: images is empty; name a file or a folder, or leave it out.")
        self._images = None if images is None else [Path(path) for path in _as_list(images)]

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        return files_fingerprint([self.languages], [*self._files(split).values(), *self._tables()])

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the images: the tables', or their lines'."""
        images: dict[str, _Image] = {}
        for language, path in self._files(split).items():

            def add(line: Line, language: str = language) -> None:
                url, caption = _parse(line)
                image = images.setdefault(url, _Image({}, line.where))
                image.captions.setdefault(language, []).append((caption, line.where))

            for _ in usable(add, read_json_lines(path), report):
                pass

        def record(picture: _Picture) -> ImageCaptions:
            image = images.pop(picture.url)
            captions, blank = without_blank(image.captions)
            data = image_from_base64(picture.base64, picture.where)
            return ImageCaptions(picture.url, data, captions, image.where, blank)

        # The images of a split are large, and those of the lines are looked at a second time instead of being kept.
        pictures = self._from_lines(split) if self._images is None else self._from_tables(report)
        yield from usable(record, (picture for picture in pictures if picture.url in images), report)
        place = "image_content in its line"
        if self._images is not None:
            place = f"line for it in {', '.join(map(str, self._images))}"
        for url, image in images.items():
            report(RecordFault(f"{image.where}: the image {url!r} has no {place}; {_IMAGES}.", "missing image"))

    def _from_lines(self, split: str) -> Iterator[_Picture]:
        for path in self._files(split).values():
            for line in read_json_lines(path):
                try:
                    record = parse_json(line)
                except RecordFault:  # reported before
                    continue
                if content := record.get("image_content"):
                    yield _Picture(str(record.get("image_url")), content, line.where)

    def _from_tables(self, report: Report) -> Iterator[_Picture]:
        def picture(line: Line) -> _Picture:
            url, *columns = line.text.split("\t")
            if not columns:
                raise RecordFault(f"{line.where}: no tab; the line is a URL, a tab and an image in base64.")
            return _Picture(url, columns[0], line.where)

        for path in self._tables():
            yield from usable(picture, read_lines(path), report)

    def _tables(self) -> list[Path]:
        tables = []
        for path in self._images or ():
            in_folder = sorted(file for ending in _TABLES for file in path.glob(ending))
            if path.is_dir() and not in_folder:
                raise CCRError(f"{path}: there are no files *.csv or *.tsv in it; {_IMAGES}.")
            tables += in_folder or [find_file(path, _IMAGES)]
        return tables

    def _files(self, split: str) -> dict[str, Path]:
        check_split(self.name, split, self.splits)
        there = sorted(
            path.name.split(".")[0].rpartition("_")[2] for path in self._annotations.glob(f"{split}_*.jsonl*")
        )
        for language in self.languages:
            if there and language not in there:
                raise CCRError(
                    f"{self._annotations}: the split {split!r} is there in {', '.join(there)}, not in {language!r}; "
                    "leave it out of languages, or get its file."
                )
        return {
            language: find_file(self._annotations / f"{split}_{language}.jsonl", _OBTAIN) for language in self.languages
        }


def _as_list(paths: str | Sequence[str]) -> Sequence[str]:
    return [paths] if isinstance(paths, str) else paths


class _Image(NamedTuple):
    captions: dict[str, list[tuple[str, str]]]  # with their places
    where: str  # of its first line


class _Picture(NamedTuple):
    url: str
    base64: object
    where: str


def _parse(line: Line) -> tuple[str, str]:
    record = parse_json(line)
    fields = []
    for key in ("image_url", "caption_reference_description"):
        value = record.get(key)
        if not isinstance(value, str) or not value:
            raise RecordFault(f"{line.where}: {key} is {value!r}; it is a text.")
        fields.append(value)
    return fields[0], fields[1]
