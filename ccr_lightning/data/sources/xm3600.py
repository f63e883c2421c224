"""Crossmodal-3600: 3,600 images with captions in 36 languages, written in each by its speakers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    find_file,
    image_below,
    parse_json,
    read_json_lines,
    without_blank,
)
from ccr_lightning.types import ImageCaptions

LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
_OBTAIN = "get captions.zip of Crossmodal-3600 (google.github.io/crossmodal-3600) and unzip it"


class XM3600:
    """Crossmodal-3600 (Thapliyal et al., 2022), as published: a test split only.

    3,600 images and 261,375 captions in 36 languages, about two per image and language, their number not fixed.
    Parallel, since every language describes the same images in one gallery and ranks are compared over them, although
    captions are written for each language and not translated. Captions are taken as they are, a blank one counts as
    missing. The image id is the key of the image.

    Licence: copies of the captions name CC BY 4.0, their publisher's own text is not confirmed; the images are of Open
    Images, which lists them as CC BY 2.0, and each asks for its photographer to be named.

    Args:
        captions: The file ``captions.jsonl``.
        image_root: The folder of the images, named ``KEY.jpg``.
        languages: Languages to yield, in the order of the K axis.

    Raises:
        CCRError: A file, line or image is not as described.

    Example:
        >>> len(XM3600("captions.jsonl", image_root="images").languages)
        36
    """

    name = "xm3600"
    parallel = True
    splits = ("test",)

    def __init__(self, captions: str, image_root: str, languages: Sequence[str] = LANGUAGES) -> None:
        self.languages = check_languages("Crossmodal-3600", languages, LANGUAGES)
        self._captions, self._image_root = Path(captions), Path(image_root)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the file's path, size and time of change."""
        return files_fingerprint([self.languages, self._image_root.absolute()], [self._file(split)])

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image once, in the order of the file."""
        root = self._image_root.resolve()
        seen: set[str] = set()

        def record(line: Line) -> ImageCaptions:
            fields = parse_json(line)
            key = fields.get("image/key")
            if not isinstance(key, str) or not key:
                raise RecordFault(f"{line.where}: image/key is {key!r}; it is the name of the image.")
            if key in seen:
                raise RecordFault(f"{line.where}: the image {key!r} has a line before; keep one.", "repeated image")
            seen.add(key)
            captions, blank = without_blank(
                {language: _texts(fields.get(language), language, line) for language in self.languages}
            )
            return ImageCaptions(key, image_below(root, f"{key}.jpg", line.where), captions, line.where, blank)

        yield from usable(record, read_json_lines(self._file(split)), report)

    def _file(self, split: str) -> Path:
        check_split(self.name, split, self.splits, "use it with ccr test")
        return find_file(self._captions, _OBTAIN)


def _texts(of_language: Any, language: str, line: Line) -> list[tuple[str, str]]:
    texts = of_language.get("caption") if isinstance(of_language, dict) else of_language
    if of_language is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RecordFault(f"{line.where}: the captions in {language!r} are {texts!r}; they are a list.")
    return [(text, line.where) for text in texts]
