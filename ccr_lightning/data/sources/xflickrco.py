"""xFlickr&CO as IGLUE publishes it: JSON lines of one image each, a file per language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ccr_lightning.data.faults import Report, stop, usable
from ccr_lightning.data.sources.flickr30k import OBTAIN, image_and_sentences, repeated_image
from ccr_lightning.data.sources.reading import (
    Line,
    check_languages,
    check_split,
    files_fingerprint,
    find_file,
    image_below,
    read_json_lines,
    without_blank,
)
from ccr_lightning.errors import CCRError
from ccr_lightning.types import ImageCaptions


class XFlickrCO:
    """xFlickr&CO of IGLUE (Bugliarello et al., 2022).

    ``test`` has 2,000 images, 1,000 of Flickr30k and 1,000 of COCO's val2014, with one caption in each of de en es id
    ja ru tr zh. ``train`` is the few-shot file that ``few_shot`` names, in the languages other than English
    (``train_1`` to ``train_100``; German and Japanese have more, and ``train_100x5``); its images are of Flickr30k's
    training split. There is no ``val``.

    Parallel in the sense that every language describes the same images and the field reports MRV over them (CCRK's
    over en de ja zh), not that all captions are translations. In the half of Flickr30k the English is Flickr30k's
    first caption, the German the first of Multi30K's task 2, written independently, and the Japanese, in all
    likelihood, Flickr30kEnt-JP's translation of the English; where the others come from is not confirmed.

    Languages are aligned by image file, not by line. A blank caption, of which German and Indonesian have one each,
    counts as missing; all others are taken as they are, with the numbers that the Japanese captions of Flickr30k have
    glued to their nouns (the number of the phrase in the English caption), since published results use them so. The
    image id is the name of the image file.

    Licence: IGLUE's repository is MIT, what it took from others keeps their terms: Flickr30k's for the English, German
    and images, CC BY-SA for Flickr30kEnt-JP; COCO's images have Flickr's.

    Args:
        root: The folder ``datasets`` of IGLUE, which holds ``xFlickrCO``.
        flickr_root: The folder of Flickr30k's images.
        coco_root: The folder of COCO that holds ``val2014``.
        languages: Languages to yield, in the order of the K axis.
        few_shot: Name of the few-shot file, for example ``train_10``, to be the training split.

    Raises:
        CCRError: A file, line or image is not as described, or a split has no captions in a language.

    Example:
        >>> source = XFlickrCO("datasets", flickr_root="flickr30k-images", coco_root="coco", languages=["en", "ja"])
        >>> source.name, source.languages, source.parallel
        ('xflickrco', ('en', 'ja'), True)
    """

    parallel = True

    def __init__(
        self,
        root: str,
        flickr_root: str,
        coco_root: str,
        languages: Sequence[str] = ("en", "de", "es", "id", "ja", "ru", "tr", "zh"),
        few_shot: str | None = None,
    ) -> None:
        self.name = "xflickrco" if few_shot is None else f"xflickrco-{few_shot}"
        self.languages = check_languages("XFlickrCO", languages)
        self.splits = ("test",) if few_shot is None else ("train", "test")
        self.few_shot = few_shot
        self._folder = Path(root) / "xFlickrCO" / "annotations"
        self._flickr_root, self._coco_root = Path(flickr_root), Path(coco_root)

    def fingerprint(self, split: str) -> str:
        """Return a short hash of the settings and of the files' paths, sizes and times of change."""
        roots = [self._flickr_root.absolute(), self._coco_root.absolute()]
        return files_fingerprint([self.languages, *roots], list(self._files(split).values()))

    def records(self, split: str, report: Report = stop) -> Iterator[ImageCaptions]:
        """Yield each image of the split once, in the order of the first language's file."""
        images: dict[str, _Image] = {}
        for language, path in self._files(split).items():

            def add(line: Line, language: str = language) -> None:
                image, texts = image_and_sentences(line)
                captions = images.setdefault(image, _Image({}, line.where)).captions
                if language in captions:
                    raise repeated_image(line.where, image)
                captions[language] = [(text, line.where) for text in texts]

            for _ in usable(add, read_json_lines(path), report):
                pass
        flickr_root, coco_root = self._flickr_root.resolve(), (self._coco_root / "val2014").resolve()

        def record(name: str) -> ImageCaptions:
            image = images[name]
            captions, blank = without_blank(image.captions)
            path = image_below(coco_root if "COCO" in name else flickr_root, name, image.where)
            return ImageCaptions(name, path, captions, image.where, blank)

        yield from usable(record, images, report)

    def _files(self, split: str) -> Mapping[str, Path]:
        check_split(self.name, split, self.splits, "name a few_shot file for train, or take Flickr30k's")
        name = "test" if split == "test" else str(self.few_shot)
        return {language: self._file(language, name) for language in self.languages}

    def _file(self, language: str, name: str) -> Path:
        others = sorted(path.parent.name for path in self._folder.glob(f"*/{name}.jsonl*"))
        if others and language not in others:
            raise CCRError(
                f"{self._folder}: {name}.jsonl is there in {', '.join(others)}, not in {language!r}; leave it out of "
                "languages, or get its file."
            )
        return find_file(self._folder / language / f"{name}.jsonl", OBTAIN)


class _Image(NamedTuple):
    captions: dict[str, list[tuple[str, str]]]  # with their places
    where: str  # of its first line
