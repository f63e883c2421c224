"""XTD: 1,000 images of COCO with one caption in each of eleven languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ccr_lightning.data.faults import RecordFault, Report, stop, usable
from ccr_lightning.data.sources.reading import (
    check_languages,
    check_split,
    files_fingerprint,
    find_file,
    image_below,
    read_lines,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions

_OBTAIN = "get the repository github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10"
_FILES = {language: f"XTD10/test_1kcaptions_{language}.txt" for language in ("en", "es", "it", "ko", "pl", "ru", "tr")}
_FILES |= {"zh": "XTD10/test_1kcaptions_zh.txt"}
_FILES |= {language: f"MIC/test_1kcaptions_{language}.txt" for language in ("de", "fr")}
_FILES |= {"ja": "STAIR/test_1kcaptions_jp.txt"}


class XTD:
    """XTD10 and its additions (Aggarwal and Kale, 2020), as published: a test split only.

    1,000 images with one caption in each of en es it ko pl ru tr zh (folder ``XTD10``), de fr (``MIC``, whose second
    English file is not read) and ja (``STAIR``, in whose file name it is "jp"). 800 of the images are of COCO's
    train2014: a model that was trained on COCO has seen them. The sets called XTD-11 on the hub add Arabic and are
    others.

    Parallel, since every language describes the same images and ranks are compared over them; es it ko pl ru tr zh
    were collected by crowdsourcing, ja was written independently of the English, and what de and fr translate is not
    confirmed.
    Captions are taken as they are, a blank one counts as missing. The image id is the name of the image file.

    Licence: Adobe Research License, for non-commercial research only; the images are COCO's, under Flickr's terms.

    Args:
        root: The folder that holds ``XTD10``, ``MIC`` and ``STAIR``.
        coco_root: The folder of COCO that holds ``train2014`` and ``val2014``.
        languages: Languages to yield, in the order of the K axis.

    Raises:
        CCRError: A file, line or image is not as described.

    Example:
        >>> XTD("XTD10-repository", coco_root="coco", languages=["en", "ja"]).languages
        ('en', 'ja')
    """

    name = "xtd"
    parallel = True
    splits = ("test",)

    def __init__(self, root: str, coco_root: str, languages: Sequence[str] = tuple(_FILES)) -> None:
        self.languages = check_languages("XTD", languages, tuple(_FILES))
        self._root, self._coco_root = Path(root), Path(coco_root)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        files = [self._names(split), *self._captions().values()]
        return files_fingerprint([self.languages, self._coco_root.absolute()], files)

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image once, in the order of the published list."""
        names = [line for line in read_lines(self._names(split)) if line.raw.strip()]
        captions = {language: list(read_lines(file)) for language, file in self._captions().items()}
        for language, texts in captions.items():
            if len(texts) != len(names):
                raise CCRError(
                    f"{self._captions()[language]}: {len(texts)} captions for the {len(names)} images of "
                    f"{self._names(split)}; fetch both again."
                )
        root = self._coco_root.resolve()
        seen: set[str] = set()

        def record(row: int) -> ImageCaptions:
            name, where = names[row].text.strip(), names[row].where
            if name in seen:
                raise RecordFault(
                    f"{where}: the image {name!r} is in the list twice; fetch the list again.", "repeated image"
                )
            seen.add(name)
            part = "train2014" if "train2014" in name else "val2014"
            of_image, blank = without_blank(
                {language: [(texts[row].text, texts[row].where)] for language, texts in captions.items()}
            )
            return ImageCaptions(name, image_below(root, f"{part}/{name}", where), of_image, where, blank)

        yield from usable(record, range(len(names)), report)

    def _names(self, split: str) -> Path:
        check_split(self.name, split, self.splits, "use it with ccr test")
        return find_file(self._root / "XTD10" / "test_image_names.txt", _OBTAIN)

    def _captions(self) -> dict[str, Path]:
        return {language: find_file(self._root / _FILES[language], _OBTAIN) for language in self.languages}
