"""WIT as IGLUE publishes it: Wikipedia's images with the captions of eleven languages' editions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.sources.reading import Line, files_fingerprint, find_file, is_blank, parse_json, read_lines
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_OBTAIN = "get datasets/wit/annotations of the IGLUE repository (github.com/e-bug/iglue), and unzip what is zipped"
_IMAGES = "get the images of IGLUE's WIT and name their tab-separated file in images"


class WIT:
    """The captions of WIT (Srinivasan et al., 2021) in the splits of IGLUE (Bugliarello et al., 2022).

    ``test`` has 570 to 1,000 captions in each of ar bg da el en et id ja ko tr vi; ``train`` and ``val`` are English
    only. An image has up to 24 captions; it is known by its URL, which is the image id (``image_idx`` repeats for
    different images). Languages describe different images, so MRV is undefined. A caption of white space only counts as
    missing; all others are taken as they are, repeated ones included. Licence: the captions are CC BY-SA 3.0, the
    images have their own.

    The image of a line is the base64 field ``image_content`` in it, or is looked up in a file of two tab-separated
    columns, URL and base64.

    Args:
        annotations: The folder of ``test_en.jsonl`` and the others.
        images: The tab-separated file, plain text; needed unless the lines hold their images.
        languages: Languages to yield, in the order of the K axis.

    Raises:
        CCRError: A file, line or image is not as described.

    Example:
        >>> source = WIT("wit/annotations", images="wit/images.tsv", languages=["en", "ja"])
        >>> source.parallel
        False
    """

    name = "wit"
    parallel = False

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        languages: Sequence[str] = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi"),
    ) -> None:
        if not languages or len(set(languages)) < len(languages):
            raise CCRError(f"WIT got the languages {list(languages)}; name at least one, each once.")
        self.languages = tuple(languages)
        self._annotations = Path(annotations)
        self._images = None if images is None else Path(images)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        images = [] if self._images is None else [find_file(self._images, _IMAGES)]
        return files_fingerprint([self.languages], [*self._files(split).values(), *images])

    def records(self, split: str) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the files."""
        images: dict[str, _Image] = {}
        for language, path in self._files(split).items():
            for line in read_lines(path):
                url, caption = _parse(line)
                image = images.setdefault(url, _Image({}, line.where))
                if not is_blank(caption):
                    image.captions.setdefault(language, []).append(caption)
        # The images of a split are large, and those of the lines are looked at a second time instead of being kept.
        pictures = self._from_lines(split) if self._images is None else self._from_table(self._images)
        for url, data, where in pictures:
            if found := images.pop(url, None):
                captions = {language: tuple(texts) for language, texts in found.captions.items()}
                yield ImageCaptions(url, _decode(data, where), captions, found.where)
        if images:
            url, lost = next(iter(images.items()))
            place = "image_content in its line" if self._images is None else f"line for it in {self._images}"
            raise CCRError(
                f"{lost.where}: the image {url!r} has no {place}, nor have {len(images) - 1} others; {_IMAGES}."
            )

    def _from_lines(self, split: str) -> Iterator[tuple[str, str, str]]:
        for path in self._files(split).values():
            for line in read_lines(path):
                record = parse_json(line)
                if content := record.get("image_content"):
                    yield record["image_url"], content, line.where

    def _from_table(self, path: Path) -> Iterator[tuple[str, str, str]]:
        for line in read_lines(find_file(path, _IMAGES)):
            url, tab, data = line.text.partition("\t")
            if not tab:
                raise CCRError(f"{line.where}: no tab; the line is a URL, a tab and an image in base64.")
            yield url, data, line.where

    def _files(self, split: str) -> dict[str, Path]:
        if split not in ("train", "val", "test"):
            raise CCRError(f"wit has no split {split!r}, only train, val and test; choose one of these.")
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


class _Image(NamedTuple):
    captions: dict[str, list[str]]
    where: str  # of its first line


def _parse(line: Line) -> tuple[str, str]:
    record: Any = parse_json(line)
    fields = []
    for key in ("image_url", "caption_reference_description"):
        value = record.get(key) if isinstance(record, dict) else None
        if not isinstance(value, str) or not value:
            raise CCRError(f"{line.where}: {key} is {value!r}; it is a text.")
        fields.append(value)
    return fields[0], fields[1]


def _decode(data: object, where: str) -> bytes:
    try:
        return base64.b64decode(str(data), validate=True)
    except binascii.Error as error:
        raise CCRError(f"{where}: the image is not valid base64 ({error}); fetch it again.") from error
