"""Flickr30k in English as IGLUE publishes it: JSON lines of one image and its five captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    Line,
    check_split,
    files_fingerprint,
    find_file,
    image_below,
    parse_json,
    read_json_lines,
    without_blank,
)
from ccr_lightning.types import ImageCaptions

OBTAIN = "get the folder datasets/ of the IGLUE repository (github.com/e-bug/iglue)"
_FILES = {"train": "train_ann.jsonl", "val": "valid_ann.jsonl", "test": "test_ann.jsonl"}


class Flickr30k:
    """English captions of Flickr30k (Young et al., 2014) in the splits and files of IGLUE (Bugliarello et al., 2022).

    29,000 images in ``train``, 1,014 in ``val`` and 1,000 in ``test``, five captions each; it is what models are
    fine-tuned on before they are tested on xFlickr&CO. One language, hence no MRV. Captions are taken as they are,
    white space and line breaks in them included; a blank one counts as missing. The image id is the name of the image
    file. Licence: IGLUE's repository is MIT; captions and images keep Flickr30k's terms, for non-commercial research
    and education, and the images those of Flickr.

    Args:
        root: The folder ``datasets`` of IGLUE, which holds ``flickr30k``.
        image_root: The folder of the images.

    Raises:
        CCRError: A file, line or image is not as described.

    Example:
        >>> Flickr30k("datasets", image_root="flickr30k-images").languages
        ('en',)
    """

    name = "flickr30k"
    languages = ("en",)
    parallel = False  # one language: there is no variance over languages
    splits = tuple(_FILES)

    def __init__(self, root: str, image_root: str) -> None:
        self._folder = Path(root) / "flickr30k" / "annotations"
        self._image_root = Path(image_root)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the file's path, size and time of change."""
        return files_fingerprint([self._image_root.absolute()], [self._file(split)])

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the file."""
        root = self._image_root.resolve()
        seen: set[str] = set()

        def record(line: Line) -> ImageCaptions:
            image, texts = image_and_sentences(line)
            path = image_below(root, image, line.where)
            if image in seen:
                raise repeated_image(line.where, image)
            seen.add(image)
            captions, blank = without_blank({"en": [(text, line.where) for text in texts]})
            return ImageCaptions(image, path, captions, line.where, blank)

        yield from usable(record, read_json_lines(self._file(split)), report)

    def _file(self, split: str) -> Path:
        check_split(self.name, split, self.splits)
        return find_file(self._folder / _FILES[split], OBTAIN)


def image_and_sentences(line: Line) -> tuple[str, list[str]]:
    """Return the image file and the captions of a line of IGLUE's Flickr30k or xFlickr&CO.

    Raises:
        RecordFault: The line is not as published.
    """
    record = parse_json(line)
    image, texts = record.get("img_path"), record.get("sentences")
    if not isinstance(image, str) or not image:
        raise RecordFault(f"{line.where}: img_path is {image!r}; it is the name of the image file.")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RecordFault(f"{line.where}: sentences is {texts!r}; it is a list of captions.")
    return image, texts


def repeated_image(where: str, image: str) -> RecordFault:
    """Return the fault of a line whose image has one before."""
    return RecordFault(f"{where}: the image {image!r} is in the file twice; keep one of its lines.", "repeated image")
